"""What a transaction has defined and not yet committed: its names can't be seen in the catalog, so what uses them is refused.

A name is given as written; ``!`` before it: not even definitions may use it (it stands for something else now); ``*`` is any.
Never add here: the session's memory of it, or rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from control.policy.effects import Effects
from control.policy.facts import Facts, Refusal
from control.policy.schema import Snapshot
from control.policy.weigh import Touch

__all__ = ["hidden", "unseen_after", "with_effects"]

_NEW_MEANING = frozenset({"rename", "alter_object_schema"})
_NEW_EFFECTS = frozenset(
    {
        "create_function", "create_procedure", "alter_function", "create_aggregate", "create_view", "create_materialized_view",
        "create_trigger", "create_rule", "create_foreign_table", "create_domain", "alter_domain", "create_policy", "alter_policy",
    }
)  # fmt: skip
_ANYTHING = frozenset(
    {"create_operator", "create_cast", "create_extension", "create_event_trig", "create_op_class", "import_foreign_schema"}
)
_SUBTLE = (
    "AT_AddInherit",
    "AT_DropInherit",
    "AT_AttachPartition",
    "AT_EnableTrig",
    "AT_EnableAlwaysTrig",
    "AT_EnableRule",
    "CONSTR_FOREIGN",
)
_PLACED = frozenset({"create_table", "create_table_as", "select_into", "drop_table", "drop_view", "drop_materialized_view"})


def unseen_after(facts: Facts, effects: Effects, snapshot: Snapshot) -> frozenset[str]:
    """The names that later statements of the transaction can't be judged by."""
    kinds = {*facts.kinds, *effects.kinds}
    behind = any(touch.verb == "ddl" for touch in effects.touches) or (_NEW_EFFECTS | _NEW_MEANING | _ANYTHING) & set(effects.kinds)
    if kinds & _ANYTHING or effects.dark or effects.unknown or behind:
        return frozenset({"*"})
    names = {access.name for access in facts.accesses if access.verb == "ddl"}
    text = repr(facts.tree) if facts.kind in ("alter_table", "create_table") else ""
    if facts.kind in _NEW_MEANING:
        every = names | set(_strings(facts.tree))
        return frozenset(every | {f"!{name}" for name in every})
    if kinds & _NEW_EFFECTS:
        return frozenset((names | set(_strings((facts.tree or {}).get("CreateFunctionStmt", {}).get("funcname")))) or _named(facts))
    if any(word in text for word in _SUBTLE) or "inhRelations" in text:
        return frozenset({access.name for access in facts.accesses})
    if kinds & _PLACED:
        # Another schema may have one of this name, which is meant from now on, or was until now.
        found = {relation.name for relation in snapshot.relations.values() if relation.name in names}
        twice = [relation.name for relation in snapshot.relations.values() if relation.name in found]
        drops = facts.kind.startswith("drop")
        return frozenset(name for name in found if not drops or twice.count(name) > 1)
    return frozenset()


def hidden(unseen: frozenset[str], facts: Facts, effects: Effects, touched: Iterable[Touch]) -> Refusal | None:
    """Why a statement can't be judged after what its transaction has defined; None: it can."""
    if not unseen:
        return None
    uses = {access.name for access in facts.accesses if access.verb != "ddl"}
    uses |= {f"!{access.name}" for access in facts.accesses if access.verb == "ddl"}
    uses |= {touch.table.partition(".")[2] for touch in touched if touch.through}
    uses |= {name.rpartition(".")[2] for name in (*facts.functions, *effects.routines)}
    met = sorted(uses & unseen) or (["what it uses"] if "*" in unseen and (facts.accesses or facts.functions) else [])
    if not met:
        return None
    what = met[0].removeprefix("!")
    return Refusal(
        f"{what} may have been defined in this transaction, and can't be judged before it is committed", "Commit first.", "0A000"
    )


def with_effects(facts: Facts, effects: Effects, refusal: Refusal | None) -> Facts:
    """The facts as rules see them: with the kinds, functions and refusals of what is behind the statement."""
    refusals = (*facts.refusals, *effects.refusals, *((refusal,) if refusal is not None else ()))
    kinds = tuple(dict.fromkeys((*facts.kinds, *effects.kinds)))
    return replace(facts, kinds=kinds, functions=facts.functions | set(effects.routines), refusals=refusals)


def _named(facts: Facts) -> set[str]:
    return set(_strings(facts.tree)) or {"*"}


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _strings(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("sval", "newname", "relname") and isinstance(value, str):
                yield value
            elif isinstance(value, dict | list):
                yield from _strings(value)

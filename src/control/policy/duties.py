"""What an allow is conditional on: the strictest of what the rules ask, and whether a statement's rows can be counted.

Never add here: keeping the obligations; that is the data plane's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from control.policy.facts import Facts
from control.policy.rules import Rule
from pgwire.ports import NO_OBLIGATIONS, Obligations

__all__ = ["kept", "mixed", "strictest", "uncounted"]

_COUNTED = frozenset({"insert", "update", "delete", "merge", "copy_from"})
_WRITING_NODES = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})


def kept(rules: Sequence[Rule]) -> Obligations:
    """The strictest of what the rules ask together."""
    return strictest(rule.obligations for rule in rules)


def strictest(every: Iterable[Obligations]) -> Obligations:
    """Each limit is the least that is asked; ``rule`` is the one whose row limit counts, or the first that asks anything."""
    asked = [each for each in every if each != NO_OBLIGATIONS]
    if len(asked) <= 1:
        return asked[0] if asked else NO_OBLIGATIONS

    def least(name: str) -> Any:
        return min((value for each in asked if (value := getattr(each, name)) is not None), default=None)

    most, rows = least("max_affected"), least("max_rows")
    counting = [each.rule for each in asked if most is not None and each.max_affected == most]
    counting += [each.rule for each in asked if rows is not None and each.max_rows == rows]
    return Obligations(
        rows,
        most,
        any(each.read_only for each in asked),
        least("statement_timeout"),
        least("lock_timeout"),
        least("record"),
        (counting or [asked[0].rule])[0],
    )


def uncounted(facts: Facts, effects: frozenset[str]) -> str:
    """Why the rows that a statement writes are not those of its command tag; empty: they are, or it writes none."""
    if "unknown" in effects:
        return "what its functions write can't be counted"
    if "writes" not in effects:
        return ""
    if facts.kind in ("execute", "prepare") and facts.inner:
        return next((why for each in facts.inner if (why := uncounted(each, effects))), "")
    if facts.kind not in _COUNTED:
        return f"the rows of {facts.kind.replace('_', ' ').upper()} are not told"
    if facts.tree is not None and _writes_within(next(iter(facts.tree.values()))):
        return "what is written inside WITH is not told"
    return ""


def mixed(facts: Sequence[Facts], asked: Iterable[Obligations]) -> str:
    """Why the rows of one message can't be counted before it commits; empty: they can."""
    counts = any(each.max_rows is not None or each.max_affected is not None for each in asked)
    if len(facts) > 1 and counts and any("transaction" in each.verbs for each in facts):
        return "a message with limited rows can't begin or end a transaction beside other statements"
    return ""


def _writes_within(node: Any) -> bool:
    if isinstance(node, list):
        return any(_writes_within(item) for item in node)
    if isinstance(node, dict):
        return not _WRITING_NODES.isdisjoint(node) or any(_writes_within(value) for value in node.values())
    return False

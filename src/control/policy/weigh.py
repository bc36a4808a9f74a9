"""One rule against one statement: whether it speaks, of what, or on what it fails. Pure.

Never add here: what follows from it (decide.py), I/O, or clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from control.policy.bound import BoundValues, Undecodable
from control.policy.builtins import built_in_class
from control.policy.facts import Facts
from control.policy.rules import EFFECTS, Rule, matches
from pgwire.ports import Effect, Principal

__all__ = ["Circumstances", "Touch", "Weighing", "effects_of", "weigh"]

_DML = ("select", "insert", "update", "delete", "truncate")
_WRITES = frozenset({"insert", "update", "delete", "truncate"})
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Touch:
    """One resolved table (``schema.name``) and what is done to it. ``through``: by way of a view, trigger, cascade … (``via``)."""

    table: str
    verb: str
    wide: bool = False
    through: bool = False
    via: str = ""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a rule may look at besides the statement's facts.

    ``server`` is ``HOST:PORT`` of the database. ``labels`` are those of the columns that are certainly read or written, and
    ``possible`` those that may be. ``values`` are the bound parameters; None: there are none, their places stand in the text.
    ``preparing``: it is only parsed, and judged again with its values when it runs.
    """

    now: datetime = _EPOCH
    server: str = ""
    labels: frozenset[str] = frozenset()
    possible: frozenset[str] = frozenset()
    values: BoundValues | None = None
    preparing: bool = False


@dataclass(frozen=True, slots=True)
class Weighing:
    """What one rule says. ``hits`` is what it speaks of (None: it does not speak); ``missed`` on what it failed.

    ``reached``: principal, database and server are right. ``error``: it could not be evaluated, so it denies.
    ``by_values``: bound values are looked at, so another execution of the same text may get another answer.
    """

    rule: Rule
    hits: tuple[Touch, ...] | None = None
    missed: str = ""
    error: str = ""
    reached: bool = True
    by_values: bool = False

    @property
    def speaks(self) -> bool:
        """Whether it speaks of the statement."""
        return self.hits is not None

    @property
    def reason(self) -> str:
        """The rule's word, for people."""
        if self.error:
            return f"error: rule {self.rule.name}: {self.error}"
        return f"{self.rule.effect.value}: rule {self.rule.name}"


def weigh(
    rule: Rule, principal: Principal, database: str, facts: Facts, work: Sequence[Touch], opaque: Sequence[str], around: Circumstances
) -> Weighing:
    """What ``rule`` says of a statement with these facts and resolved tables."""
    if why := _elsewhere(rule, principal, database, around):
        return Weighing(rule, missed=why, reached=False)
    if why := _conditions(rule, facts, work, opaque, around):
        return Weighing(rule, missed=why)
    hits, why = _hits(rule, facts, work, opaque)
    if hits is None:
        return Weighing(rule, missed=why)
    return replace(_by_values(rule, hits, around), by_values=True) if rule.when.parameters else Weighing(rule, hits)


def _elsewhere(rule: Rule, principal: Principal, database: str, around: Circumstances) -> str:
    if why := rule.who.lacks(principal):
        return f"who: {why}"
    if not matches(rule.database, database):
        return f"database {database} is none of {', '.join(rule.database)}"
    if rule.server != ("*",) and not matches(rule.server, around.server):
        return f"server {around.server or 'unknown'} is none of {', '.join(rule.server)}"
    return ""


def _conditions(rule: Rule, facts: Facts, work: Sequence[Touch], opaque: Sequence[str], around: Circumstances) -> str:
    when = rule.when
    if when.times and not any(window.open(around.now) for window in when.times):
        return f"now ({around.now:%a %H:%M} UTC) is outside its times"
    if when.kinds and not any(matches(when.kinds, kind) for kind in facts.kinds):
        return f"kind {', '.join(facts.kinds)} is none of {', '.join(when.kinds)}"
    if when.functions and not any(matches(when.functions, name) for name in facts.functions | set(opaque)):
        return f"it calls none of the functions {', '.join(when.functions)}"
    if when.effects and not (found := effects_of(facts, work, opaque)) & when.effects:
        return f"its effects ({', '.join(sorted(found)) or 'none'}) are none of {', '.join(sorted(when.effects))}"
    # What may carry a label counts against the statement, never for it.
    if when.labels:
        labels = around.labels if rule.effect is Effect.ALLOW else around.labels | around.possible
        if not any(matches(when.labels, label) for label in labels):
            return f"it uses no column labelled {', '.join(when.labels)}"
    return ""


def _by_values(rule: Rule, hits: tuple[Touch, ...], around: Circumstances) -> Weighing:
    if around.preparing:
        return Weighing(rule, hits) if rule.effect is Effect.ALLOW else Weighing(rule, missed="its values are known when it runs")
    for condition in rule.when.parameters:
        if around.values is None or not around.values.has(condition.position):
            why = f"parameter ${condition.position} is not bound"
            return Weighing(rule, missed=why) if rule.effect is Effect.ALLOW else Weighing(rule, error=why)
        try:
            if not around.values.satisfy(condition):
                return Weighing(rule, missed=f"parameter ${condition.position} is not {condition.operator} {_shown(condition.operand)}")
        except Undecodable as error:
            return Weighing(rule, error=f"parameter ${condition.position}: {error}")
    return Weighing(rule, hits)


def _shown(operand: object) -> str:
    return f"({', '.join(map(str, operand))})" if isinstance(operand, tuple) else str(operand).lower() if operand is True else str(operand)


def _hits(rule: Rule, facts: Facts, work: Sequence[Touch], opaque: Sequence[str]) -> tuple[tuple[Touch, ...] | None, str]:
    """The touches that the rule speaks of; None, and why, when it does not speak of this statement."""
    when = rule.when
    hits = [touch for touch in work if touch.verb in rule.verbs and matches(rule.tables, touch.table)]
    why = f"none of {_listed(work)} is {', '.join(sorted(rule.verbs))} on {', '.join(rule.tables)}"
    if when.without_where is not None:
        hits = [touch for touch in hits if touch.verb in ("update", "delete") and touch.wide == when.without_where]
        why = why if not hits and not work else f"{'no UPDATE or DELETE is without a WHERE' if when.without_where else 'no WHERE narrows'}"
    if when.kinds:
        dml = [kind for kind in _DML if matches(when.kinds, kind)]
        others = any(kind not in _DML and matches(when.kinds, kind) for kind in facts.kinds)
        if dml and not others:
            hits = [touch for touch in hits if touch.verb in dml]
    if rule.effect is Effect.ALLOW:
        hits = [touch for touch in hits if not touch.through]
    if hits:
        return tuple(hits), ""
    if when.without_where is not None or (work and rule.tables != ("*",)):
        return None, why
    # Nothing of a table: the rule speaks when it names the kind, function, effect or label, or is about definitions in general.
    named = bool(when.kinds or when.functions or when.effects or when.labels)
    general = "ddl" in facts.verbs and "ddl" in rule.verbs and any(pattern in ("*", "*.*") for pattern in rule.tables)
    tableless = not work and (general or (named and rule.tables == ("*",)))
    speaks = tableless or (named and rule.tables == ("*",) and rule.effect is Effect.DENY)
    return ((), "") if speaks else (None, why)


def _listed(work: Sequence[Touch]) -> str:
    return ", ".join(dict.fromkeys(f"{touch.verb} on {touch.table}" for touch in work)) or "what it does (no table)"


def effects_of(facts: Facts, work: Sequence[Touch], opaque: Sequence[str]) -> frozenset[str]:
    """What the statement may do, in the words of ``rules.EFFECTS``."""
    verbs, kinds = {touch.verb for touch in work}, set(facts.kinds)
    called = {built_in_class(name) for name in facts.functions}
    found = {
        "reads": "select" in verbs,
        "writes": bool(_WRITES & verbs),
        "ddl": "ddl" in facts.verbs or "ddl" in verbs,
        "settings": bool(facts.settings),
        "transaction": "transaction" in facts.verbs,
        "locks": "lock" in kinds or bool({"update", "delete"} & verbs) or "lock" in called,
        "notify": "notify" in kinds or any(name.rpartition(".")[2] == "pg_notify" for name in facts.functions),
        "copy_in": "copy_from" in kinds,
        "copy_out": facts.copies_out,
        "rows": facts.rows,
        "unknown": bool(opaque) or bool({"do", "call"} & kinds),
    }
    assert found.keys() == EFFECTS
    return frozenset(name for name, does in found.items() if does)

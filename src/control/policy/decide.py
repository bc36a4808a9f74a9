"""``decide``: one statement's resolved facts against rules and grant, to a ruling with its reasons. Pure.

Deny overrides hold overrides allow; nothing matches means deny. Never add here: I/O, clocks, parse trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.policy.facts import Facts, Refusal, explicit_kinds
from control.policy.rules import Policy, Rule, matches
from pgwire.ports import Effect, HoldTerms, Principal, Scope

__all__ = ["Ruling", "Touch", "decide"]


@dataclass(frozen=True, slots=True)
class Touch:
    """One resolved table (``schema.name``) and what is done to it. ``through``: by way of a view."""

    table: str
    verb: str
    wide: bool = False
    through: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say about one statement. ``sqlstate``, ``message``, ``hint`` describe a denial or what is held."""

    effect: Effect
    rule: str = ""
    reasons: tuple[str, ...] = ()
    message: str = ""
    hint: str = ""
    sqlstate: str = "42501"
    hold: HoldTerms | None = None


# System relations that show other people's data, secrets or statistics of values.
_CLOSED_NAMES = (
    "pg_authid", "pg_shadow", "pg_statistic", "pg_stats", "pg_statistic_ext_data", "pg_stats_ext", "pg_stats_ext_exprs",
    "pg_stat_activity", "pg_largeobject", "pg_user_mapping", "pg_user_mappings", "pg_subscription", "pg_hba_file_rules",
    "pg_ident_file_mappings", "pg_file_settings", "pg_stat_ssl", "pg_stat_gssapi", "pg_stat_replication", "pg_stat_wal_receiver",
    "pg_replication_origin_status", "pg_backend_memory_contexts",
)  # fmt: skip
_CLOSED = frozenset(f"pg_catalog.{name}" for name in _CLOSED_NAMES)
# Those of them that hold no secrets: an allow rule may open them by their full name for those who see everything unmasked.
_OPENABLE_NAMES = (
    "pg_statistic", "pg_stats", "pg_statistic_ext_data", "pg_stats_ext", "pg_stats_ext_exprs", "pg_stat_activity", "pg_largeobject",
    "pg_stat_ssl", "pg_stat_gssapi", "pg_stat_replication", "pg_stat_wal_receiver", "pg_replication_origin_status",
    "pg_backend_memory_contexts",
)  # fmt: skip
_OPENABLE = frozenset(f"pg_catalog.{name}" for name in _OPENABLE_NAMES)


def decide(
    policy: Policy, principal: Principal, scope: Scope, facts: Facts, touches: Sequence[Touch], opaque: Sequence[str] = ()
) -> Ruling:
    """The ruling. ``opaque`` are functions called that may do anything; a rule must name them in ``when.functions``."""
    if refusals := _standing(policy, principal, scope, facts):
        first = refusals[0]
        reasons = tuple(f"built-in: {refusal.message}" for refusal in refusals)
        return Ruling(Effect.DENY, "built-in", reasons, f"{first.message}", first.hint, first.sqlstate)
    if facts.unknown_name:
        what, sqlstate = ("cursor", "34000") if {"fetch", "move"} & set(facts.kinds) else ("prepared statement", "26000")
        reason = f"the gateway does not know what {facts.unknown_name!r} stands for in this session"
        message = f'{what} "{facts.unknown_name}" does not exist'
        hint = "The gateway knows what was made by PREPARE, DECLARE, Parse or Bind in this session."
        return Ruling(Effect.DENY, "built-in", (reason,), message, hint, sqlstate)
    opened = _OPENABLE.intersection(name for rule in _allowing(policy, principal, scope) for name in rule.tables)
    for touch in touches:
        if (touch.table in _CLOSED and touch.table not in opened) or (_system(touch.table) and touch.verb != "select"):
            message = f"{touch.verb} on {touch.table} is not available through the gateway"
            return Ruling(Effect.DENY, "built-in", (f"built-in: {touch.table} is closed",), message, "Other system catalogs can be read.")
    work = [touch for touch in touches if not _system(touch.table)]
    if outside := _outside(scope, work, facts):
        allowed = f"Your grant covers {', '.join(sorted(scope.verbs))} on {', '.join(scope.tables)} in {scope.database}."
        reason = f"grant: {outside} is outside its scope"
        return Ruling(Effect.DENY, "grant", (reason,), f"{outside} is outside your grant", allowed)
    rules = [rule for rule in policy.rules if rule.who.covers(principal) and matches(rule.database, scope.database)]
    spoken = [(rule, hits) for rule in rules if (hits := _hits(rule, facts, work, opaque)) is not None]
    reasons = tuple(f"{rule.effect.value}: rule {rule.name}" for rule, _ in spoken)
    for rule, hits in spoken:
        if rule.effect is Effect.DENY:
            message = rule.message or f"{_describe(facts, hits)} is denied by rule {rule.name}"
            return Ruling(Effect.DENY, rule.name, reasons, f"{message}", rule.hint or _way_forward(hits))
    permitting = [(rule, hits) for rule, hits in spoken if rule.effect is not Effect.DENY]
    if open_points := _uncovered(facts, work, opaque, permitting):
        message = f"no rule allows {open_points[0]}"
        readable = sorted({pattern for rule in rules if rule.effect is Effect.ALLOW for pattern in rule.tables})
        hint = f"Rules that allow something for you speak of {', '.join(readable)}." if readable else "The policy allows you nothing here."
        return Ruling(Effect.DENY, "", (*reasons, *(f"nothing allows {point}" for point in open_points)), message, hint)
    held = [(rule, hits) for rule, hits in permitting if rule.effect is Effect.HOLD]
    if held and facts.executes:
        rule, hits = held[0]
        # Several rules may hold: everyone must be someone whom each of them accepts; else the first rule's approvers.
        common = set(rule.approvers).intersection(*(other.approvers for other, _ in held))
        approvers = tuple(name for name in rule.approvers if name in common) or rule.approvers
        terms = HoldTerms(approvers, min(other.timeout for other, _ in held))
        message = rule.message or f"{_describe(facts, hits)} waits for approval by rule {rule.name}"
        return Ruling(Effect.HOLD, rule.name, reasons, f"{message}", rule.hint, hold=terms)
    name = permitting[0][0].name if permitting else "built-in"
    return Ruling(Effect.ALLOW, name, reasons or ("built-in: nothing that needs a rule",))


def _allowing(policy: Policy, principal: Principal, scope: Scope) -> list[Rule]:
    """The allow rules whose word on what is closed counts: none for those who see anything masked."""
    if policy.masks_for(principal, scope.database):
        return []
    return [
        rule
        for rule in policy.rules
        if rule.effect is Effect.ALLOW and rule.who.covers(principal) and matches(rule.database, scope.database)
    ]


def _standing(policy: Policy, principal: Principal, scope: Scope, facts: Facts) -> list[Refusal]:
    """The refusals that no rule lifts by the function's full name; a pattern with ``*`` does not."""
    named = {name for rule in _allowing(policy, principal, scope) for name in rule.when.functions} if facts.refusals else set()
    return [refusal for refusal in facts.refusals if not refusal.function or refusal.function not in named]


def _system(table: str) -> bool:
    return table.startswith(("pg_catalog.", "information_schema."))


def _outside(scope: Scope, work: Sequence[Touch], facts: Facts) -> str:
    for touch in work:
        if touch.through:
            continue
        if touch.verb not in scope.verbs or not matches((*scope.tables, "pg_temp.*"), touch.table):
            return f"{touch.verb} on {touch.table}"
    if "ddl" in facts.verbs and "ddl" not in scope.verbs:
        return facts.kind.replace("_", " ").upper()
    return ""


def _hits(rule: Rule, facts: Facts, work: Sequence[Touch], opaque: Sequence[str]) -> tuple[Touch, ...] | None:
    """The touches that the rule speaks of; None when it does not speak of this statement."""
    when = rule.when
    if when.kinds and not any(matches(when.kinds, kind) for kind in facts.kinds):
        return None
    if when.functions and not any(matches(when.functions, name) for name in facts.functions | set(opaque)):
        return None
    hits = [touch for touch in work if touch.verb in rule.verbs and matches(rule.tables, touch.table)]
    if when.without_where is not None:
        hits = [touch for touch in hits if touch.verb in ("update", "delete") and touch.wide == when.without_where]
    if when.kinds:
        dml = [kind for kind in ("select", "insert", "update", "delete", "truncate") if matches(when.kinds, kind)]
        others = any(kind not in ("select", "insert", "update", "delete", "truncate") and matches(when.kinds, kind) for kind in facts.kinds)
        if dml and not others:
            hits = [touch for touch in hits if touch.verb in dml]
    if rule.effect is Effect.ALLOW:
        hits = [touch for touch in hits if not touch.through]
    if hits:
        return tuple(hits)
    if when.without_where is not None or (work and rule.tables != ("*",)):
        return None
    # Nothing of a table: the rule speaks when it names the kind or function, or is about definitions in general.
    named = bool(when.kinds or when.functions)
    general = "ddl" in facts.verbs and "ddl" in rule.verbs and any(pattern in ("*", "*.*") for pattern in rule.tables)
    tableless = not work and (general or (named and rule.tables == ("*",)))
    return () if tableless or (named and rule.tables == ("*",) and rule.effect is Effect.DENY) else None


def _uncovered(
    facts: Facts, work: Sequence[Touch], opaque: Sequence[str], permitting: Sequence[tuple[Rule, tuple[Touch, ...]]]
) -> list[str]:
    covered = {touch for _, hits in permitting for touch in hits}
    points = [f"{touch.verb} on {touch.table}" for touch in work if not touch.through and touch not in covered]
    for kind in explicit_kinds(facts.kinds):
        if not any(kind_pattern != "*" and matches((kind_pattern,), kind) for rule, _ in permitting for kind_pattern in rule.when.kinds):
            points.append(f"{kind.replace('_', ' ').upper()} (a rule must name it in when.kinds)")
    for name in opaque:
        if not any(matches(rule.when.functions, name) for rule, _ in permitting):
            points.append(f"function {name}, whose effects are not known (a rule must name it in when.functions)")
    if "ddl" in facts.verbs and not work and not permitting:
        points.append(facts.kind.replace("_", " ").upper())
    return points


def _describe(facts: Facts, hits: Sequence[Touch]) -> str:
    if not hits:
        return facts.kind.replace("_", " ").upper()
    first = hits[0]
    what = facts.kind.replace("_", " ").upper() if first.verb == "ddl" else first.verb.upper()
    return f"{what}{' without WHERE' if first.wide else ''} on {', '.join(dict.fromkeys(touch.table for touch in hits))}"


def _way_forward(hits: Sequence[Touch]) -> str:
    return "Add a WHERE that narrows the rows." if any(touch.wide for touch in hits) else "Ask whoever keeps the policy."

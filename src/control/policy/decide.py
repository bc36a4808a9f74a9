"""``decide``: one statement's resolved facts against rules and grant, to a ruling with its reasons. Pure.

Deny overrides hold overrides allow; nothing matches means deny; a rule that errors denies. Never add here: I/O, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from control.policy.duties import kept, uncounted
from control.policy.facts import Facts, Refusal, explicit_kinds
from control.policy.rules import Policy, Rule, matches
from control.policy.weigh import Circumstances, Touch, Weighing, effects_of, weigh
from pgwire.ports import NO_OBLIGATIONS, Effect, HoldTerms, Obligations, Principal, Scope

__all__ = ["Ruling", "Touch", "decide"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say about one statement. ``sqlstate``, ``message``, ``hint`` describe a denial or what is held.

    ``matched`` is what of the statement decided (``DELETE on public.orders``). ``weighed`` has every rule of the policy, with
    what it says of the statement; ``observed`` those that would change the ruling if they were enforced.
    """

    effect: Effect
    rule: str = ""
    reasons: tuple[str, ...] = ()
    message: str = ""
    hint: str = ""
    sqlstate: str = "42501"
    hold: HoldTerms | None = None
    matched: tuple[str, ...] = ()
    effects: frozenset[str] = frozenset()
    obligations: Obligations = NO_OBLIGATIONS
    weighed: tuple[Weighing, ...] = ()
    observed: tuple[str, ...] = ()


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


_DECODABLE = "Send the value as a bound parameter, in text format or as a plain number, text, date or boolean."


def decide(
    policy: Policy,
    principal: Principal,
    scope: Scope,
    facts: Facts,
    touches: Sequence[Touch],
    opaque: Sequence[str] = (),
    around: Circumstances | None = None,
) -> Ruling:
    """The ruling. ``opaque`` are functions called that may do anything; a rule must name them in ``when.functions``."""
    work = [touch for touch in touches if not _system(touch.table)]
    around = around or Circumstances()
    weighed = tuple(weigh(rule, principal, scope.database, facts, work, opaque, around) for rule in policy.rules)
    ruling = _built_in(policy, principal, scope, facts, touches) or _outside(principal, scope, work, facts)
    if ruling is None:
        ruling = _by_rules([each for each in weighed if not each.rule.observe], facts, work, opaque)
    return replace(ruling, effects=effects_of(facts, work, opaque), weighed=weighed, observed=_observed(weighed, ruling))


def _built_in(policy: Policy, principal: Principal, scope: Scope, facts: Facts, touches: Sequence[Touch]) -> Ruling | None:
    """What is refused whatever the rules say."""
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
            point = f"{touch.verb} on {touch.table}"
            message = f"{point} is not available through the gateway"
            reasons = (f"built-in: {touch.table} is closed",)
            return Ruling(Effect.DENY, "built-in", reasons, message, "Other system catalogs can be read.", matched=(point,))
    return None


def _outside(principal: Principal, scope: Scope, work: Sequence[Touch], facts: Facts) -> Ruling | None:
    """What the grant does not cover."""
    verb, table = next(
        (
            (touch.verb, touch.table)
            for touch in work
            if not touch.through and (touch.verb not in scope.verbs or not matches((*scope.tables, "pg_temp.*"), touch.table))
        ),
        ("ddl", "*.*") if "ddl" in facts.verbs and "ddl" not in scope.verbs else ("", ""),
    )
    if not verb:
        return None
    point = f"{verb} on {table}" if table != "*.*" else facts.kind.replace("_", " ").upper()
    allowed = f"Your grant covers {', '.join(sorted(scope.verbs))} on {', '.join(scope.tables)} in {scope.database}."
    who, where = principal.subject, scope.database
    command = f"pgleash grants create {who} {where} --table '{table}' --verb {verb} --for 15m --reason WHY"
    hint = f"{allowed} To get more, ask an operator for: {command}"
    return Ruling(Effect.DENY, "grant", (f"grant: {point} is outside its scope",), f"{point} is outside your grant", hint, matched=(point,))


def _by_rules(weighed: Sequence[Weighing], facts: Facts, work: Sequence[Touch], opaque: Sequence[str]) -> Ruling:
    spoken = [each for each in weighed if each.speaks or each.error]
    reasons = tuple(each.reason for each in spoken)
    for each in spoken:
        if each.error:
            message = f"rule {each.rule.name} can't be evaluated: {each.error}"
            return Ruling(Effect.DENY, each.rule.name, reasons, message, each.rule.hint or _DECODABLE, matched=(each.error,))
    for each in spoken:
        rule, hits = each.rule, each.hits or ()
        if rule.effect is Effect.DENY:
            message = rule.message or f"{_describe(facts, hits)} is denied by rule {rule.name}"
            return Ruling(Effect.DENY, rule.name, reasons, f"{message}", _hint(rule, hits), matched=_points(facts, hits))
    permitting = [(each.rule, each.hits or ()) for each in spoken]
    if open_points := _uncovered(facts, work, opaque, permitting):
        message = f"no rule allows {open_points[0]}"
        mine = [each.rule for each in weighed if each.rule.effect is Effect.ALLOW and each.reached]
        readable = sorted({pattern for rule in mine for pattern in rule.tables})
        hint = f"Rules that allow something for you speak of {', '.join(readable)}." if readable else "The policy allows you nothing here."
        if closed := [each for each in weighed if each.rule.effect is Effect.ALLOW and each.reached and each.missed.startswith("now ")]:
            hint = f"Rule {closed[0].rule.name} may allow it at another time: {closed[0].missed}."
        missing = (*reasons, *(f"nothing allows {point}" for point in open_points))
        return Ruling(Effect.DENY, "", missing, message, hint, matched=tuple(open_points))
    duties = kept([rule for rule, _ in permitting])
    if waits := [rule for rule, _ in permitting if rule.effect is Effect.HOLD]:
        # A person looks at it: how many rows it may touch is then for the holding rules to say.
        asked = kept(waits)
        duties = replace(duties, max_rows=asked.max_rows, max_affected=asked.max_affected, rule=asked.rule or duties.rule)
    if facts.executes and (failing := _breach(duties, facts, work, opaque, [rule for rule, _ in permitting])) is not None:
        return replace(failing, reasons=(*reasons, *failing.reasons))
    held = [(rule, hits) for rule, hits in permitting if rule.effect is Effect.HOLD]
    if held and facts.executes:
        rule, hits = held[0]
        message = rule.message or f"{_describe(facts, hits)} waits for approval by rule {rule.name}"
        terms = _terms([rule for rule, _ in held])
        return Ruling(
            Effect.HOLD, rule.name, reasons, f"{message}", rule.hint, hold=terms, matched=_points(facts, hits), obligations=duties
        )
    name = permitting[0][0].name if permitting else "built-in"
    return Ruling(Effect.ALLOW, name, reasons or ("built-in: nothing that needs a rule",), obligations=duties)


def _terms(rules: Sequence[Rule]) -> HoldTerms:
    """The terms when several rules hold: everyone must be someone whom each of them accepts; else the first rule's approvers."""
    first = rules[0]
    common = set(first.approvers).intersection(*(other.approvers for other in rules))
    approvers = tuple(name for name in first.approvers if name in common) or first.approvers
    within = [rule.transaction_timeout for rule in rules if rule.transaction_timeout is not None]
    return HoldTerms(
        approvers,
        min(rule.timeout for rule in rules),
        max(rule.needed for rule in rules),
        min(within, default=None),
        any(rule.defer for rule in rules),
        all(rule.dry_run for rule in rules),
    )


def _breach(duties: Obligations, facts: Facts, work: Sequence[Touch], opaque: Sequence[str], rules: Sequence[Rule]) -> Ruling | None:
    """The denial of a statement that can't keep what its allow is conditional on."""
    effects = effects_of(facts, work, opaque)
    if duties.read_only and (found := effects & {"writes", "ddl", "unknown"}):
        rule = next(rule for rule in rules if rule.obligations.read_only)
        what = {"writes": "it writes", "ddl": "it changes definitions"}.get(min(found), "what it does is not known")
        hint = rule.hint or "Send statements that only read."
        message = f"rule {rule.name} allows reading only, and {what}"
        return Ruling(Effect.DENY, rule.name, (f"read_only: {what}",), message, hint, matched=tuple(sorted(found)))
    if duties.max_affected is not None and (why := uncounted(facts, effects)):
        rule = next(rule for rule in rules if rule.obligations.max_affected is not None)
        hint = rule.hint or "Send each write as a statement of its own: INSERT, UPDATE, DELETE, MERGE or COPY."
        message = f"rule {rule.name} limits the affected rows, and {why}"
        return Ruling(Effect.DENY, rule.name, (f"max_affected: {why}",), message, hint, matched=(why,))
    return None


def _observed(weighed: Sequence[Weighing], ruling: Ruling) -> tuple[str, ...]:
    """The rules in observe mode that speak, each with what it would say."""
    return tuple(
        f"observe: rule {each.rule.name} would {'deny' if each.error else each.rule.effect.value}"
        for each in weighed
        if each.rule.observe and (each.speaks or each.error) and (each.rule.effect is not Effect.ALLOW or ruling.effect is Effect.DENY)
    )


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


def _uncovered(
    facts: Facts, work: Sequence[Touch], opaque: Sequence[str], permitting: Sequence[tuple[Rule, tuple[Touch, ...]]]
) -> list[str]:
    covered = {touch for _, hits in permitting for touch in hits}
    points = [f"{touch.verb} on {touch.table}" for touch in work if not touch.through and touch not in covered]
    for kind in explicit_kinds(facts.kinds):
        if not any(kind_pattern != "*" and matches((kind_pattern,), kind) for rule, _ in permitting for kind_pattern in rule.when.kinds):
            points.append(f"{kind.replace('_', ' ').upper()} (a rule must name it in when.kinds)")
    for name in opaque:
        seen = name == "DO" and any(rule.effect is Effect.HOLD and matches(rule.when.kinds, "do") for rule, _ in permitting)
        if seen or any(matches(rule.when.functions, name) for rule, _ in permitting):
            continue  # of a DO block, its approvers see the whole text
        if name == "DO":
            points.append("DO with SQL that its text does not show (a rule that allows it must name DO in when.functions)")
        else:
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


def _points(facts: Facts, hits: Sequence[Touch]) -> tuple[str, ...]:
    """What of the statement matched, for machines and people."""
    return tuple(dict.fromkeys(f"{hit.verb} on {hit.table}" for hit in hits)) or (facts.kind,)


def _hint(rule: Rule, hits: Sequence[Touch]) -> str:
    """The way forward: what the rule says, the view that it names, or what the statement lacks."""
    said = [rule.hint] if rule.hint else []
    if rule.instead:
        said.append(f"Use {rule.instead} instead.")
    if said:
        return " ".join(said)
    if any(touch.wide for touch in hits):
        return "Add a WHERE that narrows the rows."
    return f"Leave it out, or ask whoever keeps the policy about rule {rule.name}."

"""What the policy would say to somebody's SQL, for people: every rule with its word, or on what it failed. Nothing is run.

Never add here: judging; it is the engine's, with the same facts and catalog as for a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control.policy.engine import PolicyEngine, SessionJudge
from control.policy.rules import VERBS
from control.policy.weigh import Weighing
from pgwire.ports import Effect, HoldTerms, MaskRule, Obligations, Principal, Scope, Statement

__all__ = ["Explanation", "RuleWord", "explain"]


@dataclass(frozen=True, slots=True)
class RuleWord:
    """One rule's word on one statement. ``outcome``: speaks, silent or error; ``why`` is what it speaks of or failed on."""

    name: str
    effect: str
    observe: bool
    outcome: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict. ``masks`` has one entry per output column, ``rules`` one per rule (and statement, if there are several)."""

    effect: str
    rule: str
    reasons: tuple[str, ...]
    message: str
    hint: str
    facts: Mapping[str, Any]
    masks: tuple[MaskRule | None, ...]
    policy_version: str
    rules: tuple[RuleWord, ...]
    observed: tuple[str, ...]
    obligations: Obligations
    hold: HoldTerms | None
    sqlstate: str


async def explain(
    engine: PolicyEngine,
    principal: Principal,
    database: str,
    sql: str,
    *,
    scope: Scope | None = None,
    bound: tuple[tuple[bytes | None, ...], tuple[int, ...]] | None = None,
) -> Explanation:
    """What would be answered. Without ``scope`` the automatic grant's, else everything. ``bound``: values and their formats."""
    if scope is None:
        given = engine.auto_grant(principal, database)
        scope = given.scope if given else Scope(database, ("*.*",), VERBS)
    source = engine.catalog(database)
    judge = SessionJudge(engine, source, await source.snapshot(), principal, scope, principal.subject, None)
    judge.explains = []
    statement = Statement(sql.encode(), "simple", counted=True)
    if bound is not None:
        statement = Statement(sql.encode(), "execute", parameters=bound[0], parameter_formats=bound[1], counted=True)
    verdict = await judge.judge(statement)
    denied = verdict.effect is Effect.DENY
    return Explanation(
        verdict.effect.value,
        verdict.rule,
        verdict.reasons,
        verdict.message,
        verdict.hint,
        verdict.facts,
        () if denied else judge.output_masks(statement),
        engine.version,
        tuple(_word(each) for ruling in judge.explains for each in ruling.weighed),
        verdict.observed,
        verdict.obligations,
        verdict.hold,
        verdict.sqlstate if denied else "",
    )


def _word(weighed: Weighing) -> RuleWord:
    rule = weighed.rule
    if weighed.error:
        outcome, why = "error", weighed.error
    elif weighed.hits is not None:
        outcome = "speaks"
        why = ", ".join(dict.fromkeys(f"{touch.verb} on {touch.table}" for touch in weighed.hits)) or "the statement as a whole"
    else:
        outcome, why = "silent", weighed.missed
    return RuleWord(rule.name, rule.effect.value, rule.observe, outcome, why)

"""From the rulings on a text's statements to the one verdict that the data plane gets.

Never add here: a judgement; every ruling is decide.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from control.policy.decide import Ruling, Touch
from control.policy.duties import strictest
from control.policy.effects import Effects
from control.policy.facts import Facts, Unreadable
from pgwire.ports import Effect, NameChange, Verdict

__all__ = ["too_deep", "unreadable", "used_up", "verdict_of"]


def unreadable(version: str, error: Unreadable) -> Verdict:
    """The refusal of what PostgreSQL's grammar does not read, or what can't be looked up."""
    hint = "Write the statement so that PostgreSQL's own grammar reads it, in UTF-8 and of moderate size and depth."
    if error.sqlstate == "55P03":
        hint = "Send it again when the transaction that changes definitions has ended."
    told = {"class": "unreadable"}
    return Verdict(
        Effect.DENY, (error.message,), "built-in", version,
        sqlstate=error.sqlstate, message=error.message, position=error.position, detail=told, hint=hint,
    )  # fmt: skip


def too_deep(version: str) -> Verdict:
    """The refusal of what can be read but is nested too deeply to be looked through."""
    why, hint = "the statement is nested too deeply to be judged", "Write it flatter: IN in place of OR, WITH in place of subqueries."
    return Verdict(Effect.DENY, (why,), "built-in", version, sqlstate="54001", message=why, hint=hint, detail={"class": "unreadable"})


def verdict_of(
    version: str,
    facts: tuple[Facts, ...],
    ruling: Ruling,
    found: Sequence[tuple[Ruling, tuple[Touch, ...]]],
    touched: tuple[Touch, ...],
    masks: bool,
    effects: Sequence[Effects] = (),
) -> Verdict:
    """The verdict: ``ruling`` is the one that decides, ``found`` has each statement's own; ``masks``: its rows need a plan.

    ``effects`` are what is behind each statement.
    """
    reasons = tuple(dict.fromkeys(reason for each, _ in found for reason in each.reasons)) or ruling.reasons
    tables = sorted({touch.table for touch in touched})
    changes = any(each.settings or each.names or {"ddl", "transaction"} & each.verbs or each.kind in ("do", "call") for each in facts)
    changes = changes or any("set_config" in each.functions for each in facts)
    changes = changes or any(each.unknown or "ddl" in {touch.verb for touch in each.touches} for each in effects)
    plain = not changes and all(each.kind in ("select", "insert", "update", "delete", "empty") for each in facts)
    names = tuple(
        NameChange(index, change.space, change.name, change.text if change.facts is not None else None, change.holds)
        for index, each in enumerate(facts)
        for change in each.names
    )
    verbs = sorted(frozenset().union(*(each.verbs for each in facts)))
    summary: dict[str, Any] = {
        "kinds": list(dict.fromkeys(kind for each in facts for kind in each.kinds)),
        "verbs": verbs,
        "tables": [
            {"table": each.table, "verb": each.verb, "wide": each.wide, **({"via": each.via} if each.via else {})} for each in touched
        ],
        "effects": sorted(frozenset().union(*(each.effects for each, _ in found))),
        "functions": sorted(frozenset().union(*(each.functions for each in facts), *(each.routines for each in effects))),
    }
    for name, every in (("unknown", [each.unknown for each in effects]), ("checked", [each.checked for each in effects])):
        if told := sorted(frozenset().union(*every)):
            summary[name] = told
    if settings := sorted({setting.name for each in facts for setting in each.settings}):
        summary["settings"] = settings
    observed = tuple(dict.fromkeys(word for each, _ in found for word in each.observed))
    by_values = any(weighed.by_values for each, _ in found for weighed in each.weighed)
    kept = ruling.effect is Effect.ALLOW and plain and not observed and not by_values
    kept = kept and not any(each.hold is not None for each, _ in found)
    return Verdict(
        effect=ruling.effect,
        reasons=reasons if ruling.reasons and ruling.reasons[0] in reasons else (*ruling.reasons, *reasons),
        rule=ruling.rule,
        policy_version=version,
        masks=masks,
        cacheable=kept,
        settles=changes,
        hold=ruling.hold if ruling.effect is Effect.HOLD else None,
        sqlstate=ruling.sqlstate,
        message=ruling.message,
        detail=_detail(ruling, tables) if ruling.effect is not Effect.ALLOW else {},
        hint=ruling.hint,
        facts=summary,
        names=names,
        copies_in=any("copy_from" in each.kinds for each in facts),
        obligations=strictest(each.obligations for each, _ in found),
        observed=observed,
    )


def _detail(ruling: Ruling, tables: list[str]) -> dict[str, Any]:
    """What a denial tells machines (docs/denials.md)."""
    kind = ruling.rule if ruling.rule in ("grant", "mask", "built-in") else "rule"
    matched = list(ruling.matched) or list(ruling.reasons[:1])
    return {"class": kind, "rule": ruling.rule, "tables": tables, "reasons": list(ruling.reasons), "matched": matched}


def used_up(version: str, per_minute: float, wait: float) -> Verdict:
    """The denial of a statement for which no budget is left for ``wait`` seconds."""
    message = f"the limit of {per_minute:g} statements per minute is used up"
    hint = f"Wait {wait:.1f} s, and ask for more with fewer statements."
    detail = {"class": "budget", "limit": "statements_per_minute", "allowed": per_minute, "retry_after": round(wait, 1)}
    reasons = ("limit: statements_per_minute",)
    return Verdict(Effect.DENY, reasons, "limit", version, sqlstate="53400", message=message, hint=hint, detail=detail)

"""The statements of the audit log judged by two policies: what would change.

Never add here: reading of the audit log, or running anything.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from control.policy.engine import PolicyEngine
from control.policy.explaining import Explanation, explain
from pgwire.ports import Principal, Refused

__all__ = ["Change", "Sent", "compare", "sent"]


@dataclass(slots=True)
class Sent:
    """A statement that somebody sent ``count`` times. ``parameters`` is what Bind carried, empty for a simple query."""

    principal: Principal
    database: str
    text: str
    parameters: bytes = b""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A statement and two different answers to it."""

    sent: Sent
    before: Explanation
    after: Explanation


@dataclass(slots=True)
class _Log:
    sessions: dict[int, tuple[Principal, str]] = field(default_factory=dict)
    found: dict[tuple[object, ...], Sent] = field(default_factory=dict)


def sent(
    entries: Iterable[tuple[float, int, str, Mapping[str, Any]]],
    *,
    values: bool,
    database: str = "",
    subject: str = "",
    since: float = 0,
    until: float = float("inf"),
    limit: int = 10_000,
) -> tuple[list[Sent], bool]:
    """The different statements of audit entries (Unix seconds, session, kind, fields), and whether there were more than ``limit``.

    ``values``: the same text with other bound values is another statement.
    """
    log, cut = _Log(), False
    for at, session, kind, fields in entries:
        if kind == "session.opened":
            log.sessions[session] = (_principal(fields), str(fields.get("database") or ""))
        elif kind in ("statement", "statement.denied") and session in log.sessions and since <= at < until:
            principal, where = log.sessions[session]
            text = fields.get("text")
            if not isinstance(text, str) or fields.get("protocol") in ("parse", "function"):
                continue
            if (database and where != database) or (subject and principal.subject != subject):
                continue
            bound = bytes.fromhex(str(fields.get("parameters") or "")) if fields.get("protocol") == "extended" else b""
            who = (principal.subject, principal.acts_for, principal.groups, repr(sorted(principal.claims.items())))
            key = (who, where, text, bound if values else bool(bound))
            if key not in log.found:
                if len(log.found) >= limit:
                    cut = True
                    continue
                log.found[key] = Sent(principal, where, text, bound)
            log.found[key].count += 1
    return list(log.found.values()), cut


def _principal(fields: Mapping[str, Any]) -> Principal:
    groups, claims = fields.get("groups"), fields.get("claims")
    return Principal(
        str(fields.get("subject") or ""),
        str(fields.get("issuer") or ""),
        frozenset(group for group in groups if isinstance(group, str)) if isinstance(groups, list) else frozenset(),
        fields.get("acts_for") or None,
        claims=claims if isinstance(claims, dict) else {},
    )


async def compare(old: PolicyEngine, new: PolicyEngine, statements: Iterable[Sent]) -> list[Change]:
    """Those that the policies answer differently: another effect, other masks or other obligations."""
    changes: list[Change] = []
    for number, each in enumerate(statements):
        try:
            before, after = await _answer(old, each), await _answer(new, each)
        except Refused:
            continue  # a database that is not here any more
        if (before.effect, before.masks, before.obligations, before.hold) != (after.effect, after.masks, after.obligations, after.hold):
            changes.append(Change(each, before, after))
        if number % 16 == 0:
            await asyncio.sleep(0)
    return changes


async def _answer(engine: PolicyEngine, each: Sent) -> Explanation:
    bound = bind_values(each.parameters) if each.parameters else None
    return await explain(engine, each.principal, each.database, each.text, bound=bound)


def bind_values(raw: bytes) -> tuple[tuple[bytes | None, ...], tuple[int, ...]]:
    """Values and formats of Bind's parameter part; none where it can't be read."""
    try:
        (codes,) = struct.unpack_from("!H", raw)
        given = struct.unpack_from(f"!{codes}H", raw, 2)
        at = 2 + 2 * codes
        (count,) = struct.unpack_from("!H", raw, at)
        at += 2
        values: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", raw, at)
            at += 4
            values.append(None if length < 0 else raw[at : at + length])
            at += max(0, length)
    except struct.error:
        return (), ()
    formats = given if codes > 1 else (given[0] if codes else 0,) * count
    return tuple(values), formats

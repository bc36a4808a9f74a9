"""Approved shapes: the same statement with other values within stated bounds, for so many uses or so long, without asking again.

Uses are counted in the store, one transaction each, so never more than were given; each is audited before its statement is sent.
Never add here: who may approve, or how a text's shape is found (the policy tells it).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from control.grants.errors import InvalidArgument, NotFound, WrongState
from control.grants.records import ApprovalRecord, binding_of, shown_parameters
from control.store.database import Store
from control.store.feed import Feed
from pgwire.ports import Audit, HoldTerms, Principal, SessionInfo, Statement, Verdict

__all__ = ["Bound", "ShapeBook", "ShapeRecord", "ShapeTerms"]

_MOST_USES = 1_000_000
_LONGEST = 86400.0  # seconds
_NUMBER = re.compile(r"-?\d{1,100}(\.\d{1,100})?")
_INTEGERS = {20, 21, 23, 26}
_TEXTS = {18, 19, 25, 1042, 1043}
_UUID, _BOOL = 2950, 16


@dataclass(frozen=True, slots=True)
class Bound:
    """What one value may be: anything, one of ``values``, or a number from ``least`` to ``most``."""

    any: bool = False
    values: tuple[str, ...] = ()
    least: str | None = None
    most: str | None = None


@dataclass(frozen=True, slots=True)
class ShapeTerms:
    """What an approver allows beyond the one statement. ``bounds`` by place: ``$1`` a parameter, ``#1`` a constant of the text.

    A place without a bound keeps the value that was approved. ``group``: every member may use it, not the one agent alone.
    """

    bounds: Mapping[str, Bound]
    uses: int
    seconds: float
    group: str = ""


@dataclass(frozen=True, slots=True)
class ShapeRecord:
    """One approved shape. ``state``: ACTIVE, REVOKED, SPENT, EXPIRED or VOIDED. Times are Unix seconds."""

    name: str
    approval: str
    rule: str
    database: str
    subject: str
    group: str
    shape: str
    bounds: Mapping[str, Mapping[str, Any]]
    most: int
    uses: int
    state: str
    created_by: str
    created_at: float
    expires_at: float
    ended_at: float | None
    ended_by: str
    end_reason: str


class ShapeBook:
    """The shapes that stand. ``changes`` tells of every change."""

    def __init__(self, store: Store, audit: Audit, clock: Callable[[], float]) -> None:
        self.changes: Feed[ShapeRecord] = Feed()
        self._store = store
        self._audit = audit
        self._clock = clock

    def checked(self, record: ApprovalRecord, terms: ShapeTerms) -> dict[str, Any]:
        """``terms`` as they are kept with a vote. Raises ``InvalidArgument``."""
        if not 1 <= terms.uses <= _MOST_USES:
            raise InvalidArgument(f"shape.uses: 1 to {_MOST_USES}")
        if not 0 < terms.seconds <= _LONGEST:
            raise InvalidArgument(f"shape.duration: more than 0 and at most {_LONGEST:.0f} seconds")
        if terms.group and terms.group not in record.groups:
            raise InvalidArgument(f"shape.group: one of the agent's groups, {', '.join(record.groups) or 'of which it has none'}")
        places = _places(record)
        bounds: dict[str, dict[str, Any]] = {}
        for place, bound in terms.bounds.items():
            if place not in places:
                raise InvalidArgument(f"shape.bounds: there is no place {place}; there are {', '.join(places) or 'none'}")
            bounds[place] = _checked(place, bound, places[place])
        return {"bounds": bounds, "uses": terms.uses, "seconds": terms.seconds, "group": terms.group}

    async def create(self, record: ApprovalRecord, terms: Mapping[str, Any]) -> ShapeRecord:
        """Let what ``record`` approved stand for its like."""
        now = self._clock()
        bounds = {place: terms["bounds"].get(place, {"values": [value]}) for place, value in _places(record).items()}
        binding = {**record.binding, "resolved_types": record.evidence.get("parameter_types") or record.binding.get("parameter_types", [])}
        values = {
            "name": "shapes/sh_" + secrets.token_hex(6),
            "approval": record.name,
            "rule": record.rule,
            "database": record.database,
            "subject": record.subject,
            "acts_for": record.acts_for,
            "for_group": terms["group"],
            "shape": record.binding["shape"],
            "shape_key": _key(record.database, record.binding),
            "binding": json.dumps({**binding, "facts": record.facts, "approvers": record.approvers, "needed": record.needed}),
            "bounds": json.dumps(bounds),
            "most": terms["uses"],
            "state": "ACTIVE",
            "created_by": record.decided_by,
            "created_at": now,
            "expires_at": now + terms["seconds"],
        }
        # Audited first: what stands without a record would be used without one.
        self._audit.record("shape.created", {**values, "bounds": bounds, "binding": binding})
        sql = f"INSERT INTO shapes ({', '.join(values)}) VALUES ({', '.join('?' * len(values))}) RETURNING *"
        made = _record(await self._store.run(lambda db: db.execute(sql, tuple(values.values())).fetchone()))
        self.changes.publish(made)
        return made

    async def take(self, session: SessionInfo, statement: Statement, verdict: Verdict) -> str:
        """The name of the shape that covers this statement, with one of its uses taken; empty: none does."""
        now = self._clock()
        binding = binding_of(statement, verdict)
        key = _key(session.database, binding)

        def work(db: sqlite3.Connection) -> ShapeRecord | None:
            rows = db.execute(
                "SELECT * FROM shapes WHERE shape_key = ? AND state = 'ACTIVE' AND expires_at > ? AND uses < most ORDER BY created_at",
                (key, now),
            ).fetchall()
            for row in rows:
                if not _is_for(row, session.principal) or not _covers(row, statement, verdict, binding):
                    continue
                row = db.execute(
                    "UPDATE shapes SET uses = uses + 1, state = iif(uses + 1 = most, 'SPENT', state),"
                    " ended_at = iif(uses + 1 = most, ?, ended_at) WHERE name = ? RETURNING *",
                    (now, row["name"]),
                ).fetchone()
                return _record(row)
            return None

        used = await self._store.run(work)
        if used is None:
            return ""
        self._audit.record(
            "shape.used",
            {
                "shape": used.name,
                "approval": used.approval,
                "subject": session.principal.subject,
                "database": session.database,
                "statement": statement.text.decode("utf-8", "replace"),
                "parameters": shown_parameters(statement),
                "use": used.uses,
                "of": used.most,
            },
            session.number,
        )
        self.changes.publish(used)
        return used.name

    async def get(self, name: str) -> ShapeRecord:
        """One shape. Raises ``NotFound``."""
        row = await self._store.run(lambda db: db.execute("SELECT * FROM shapes WHERE name = ?", (name,)).fetchone())
        if row is None:
            raise NotFound(f"there is no shape {name}")
        return _record(row)

    async def list(self, *, active: bool = False, subject: str | None = None, limit: int = 100, offset: int = 0) -> list[ShapeRecord]:
        """Shapes, newest first."""
        clause = " AND ".join([*(["state = 'ACTIVE'"] if active else []), *(["subject = ?"] if subject else []), "1"])
        sql = f"SELECT * FROM shapes WHERE {clause} ORDER BY created_at DESC, name LIMIT ? OFFSET ?"
        arguments = (*((subject,) if subject else ()), limit, offset)
        return [_record(row) for row in await self._store.run(lambda db: db.execute(sql, arguments).fetchall())]

    async def revoke(self, name: str, *, by: Principal, reason: str = "") -> ShapeRecord:
        """End a shape now; revoking what was revoked changes nothing. Raises ``NotFound``, ``WrongState``."""
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[ShapeRecord, bool]:
            row = db.execute("SELECT * FROM shapes WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"there is no shape {name}")
            if row["state"] == "REVOKED":
                return _record(row), False
            if row["state"] != "ACTIVE":
                raise WrongState(f"{name} is {row['state']} already")
            row = db.execute(
                "UPDATE shapes SET state = 'REVOKED', ended_at = ?, ended_by = ?, end_reason = ? WHERE name = ? RETURNING *",
                (now, by.subject, reason, name),
            ).fetchone()
            return _record(row), True

        record, changed = await self._store.run(work)
        if changed:
            self.changes.publish(record)
            self._audit.record("shape.revoked", {"shape": name, "by": by.subject, "reason": reason, "uses": record.uses})
        return record

    async def expire_due(self) -> None:
        """Mark shapes whose time is over."""
        now = self._clock()
        rows = await self._store.run(
            lambda db: db.execute(
                "UPDATE shapes SET state = 'EXPIRED', ended_at = expires_at WHERE state = 'ACTIVE' AND expires_at <= ? RETURNING *", (now,)
            ).fetchall()
        )
        for row in rows:
            record = _record(row)
            self.changes.publish(record)
            self._audit.record("shape.expired", {"shape": record.name, "uses": record.uses})


def _places(record: ApprovalRecord) -> dict[str, str | None]:
    """Every value of an approved statement by its place."""
    parameters = {f"${index}": value for index, value in enumerate(_readable(record), 1)}
    constants = {f"#{index}": value for index, value in enumerate(record.binding.get("constants", []), 1)}
    return {**parameters, **constants}


def _readable(record: ApprovalRecord) -> list[str | None]:
    types = record.evidence.get("parameter_types") or record.binding.get("parameter_types", [])
    return [_shown(value, types[index] if index < len(types) else 0) for index, value in enumerate(record.parameters)]


def _shown(value: str | None, type_oid: int) -> str | None:
    """A value as bounds see it; what can't be read stays ``base64:…``, and only that very value or anything fits."""
    if value is None or not value.startswith("base64:"):
        return value
    try:
        raw = base64.b64decode(value[7:], validate=True)
        if type_oid in _INTEGERS and len(raw) in (2, 4, 8):
            return str(int.from_bytes(raw, "big", signed=type_oid != 26))
        if type_oid in _TEXTS:
            return raw.decode()
        if type_oid == _UUID and len(raw) == 16:
            text = raw.hex()
            return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        if type_oid == _BOOL and len(raw) == 1:
            return "true" if raw[0] else "false"
    except ValueError:
        pass
    return value


def _checked(place: str, bound: Bound, approved: str | None) -> dict[str, Any]:
    ranged = bound.least is not None or bound.most is not None
    if bound.any + bool(bound.values) + ranged != 1:
        raise InvalidArgument(f"shape.bounds[{place}]: one of any, values, or least and most")
    if bound.any:
        kept: dict[str, Any] = {"any": True}
    elif bound.values:
        kept = {"values": list(bound.values)}
    else:
        if not all(end is not None and _NUMBER.fullmatch(end) for end in (bound.least, bound.most)):
            raise InvalidArgument(f"shape.bounds[{place}]: least and most are numbers, both of them")
        kept = {"least": bound.least, "most": bound.most}
    if not _within(kept, approved):
        raise InvalidArgument(f"shape.bounds[{place}]: they leave out the value that is asked for, {approved}")
    return kept


def _within(bound: Mapping[str, Any], value: str | None) -> bool:
    if bound.get("any"):
        return True
    if "values" in bound:
        return value in bound["values"]
    return value is not None and bool(_NUMBER.fullmatch(value)) and Decimal(bound["least"]) <= Decimal(value) <= Decimal(bound["most"])


def _key(database: str, binding: Mapping[str, Any]) -> str:
    """What statements of one shape have in common: text but for constants, formats, types, what their names mean."""
    standing = {name: value for name, value in binding["standing"].items() if name != "role"}
    parts = [database, binding["shape"], binding["parameter_formats"], binding["parameter_types"], standing]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()


def _is_for(row: sqlite3.Row, principal: Principal) -> bool:
    if row["for_group"]:
        return str(row["for_group"]) in principal.groups
    return bool(row["subject"] == principal.subject and row["acts_for"] == principal.acts_for)


def _covers(row: sqlite3.Row, statement: Statement, verdict: Verdict, binding: Mapping[str, Any]) -> bool:
    approved = json.loads(row["binding"])
    terms = verdict.hold or HoldTerms()
    asked = (row["rule"], tuple(approved["approvers"]), approved["needed"])
    if asked != (verdict.rule, tuple(terms.approvers), max(1, terms.needed)):
        return False
    if json.dumps(approved["facts"], sort_keys=True) != json.dumps(
        json.loads(json.dumps(dict(verdict.facts), default=str)), sort_keys=True
    ):
        return False
    bounds, types = json.loads(row["bounds"]), approved["resolved_types"]
    values = _values(shown_parameters(statement), types, binding["constants"])
    return values.keys() == bounds.keys() and all(_within(bounds[place], value) for place, value in values.items())


def _values(parameters: Sequence[str | None], types: Sequence[int], constants: Sequence[str]) -> dict[str, str | None]:
    shown = [_shown(value, types[index] if index < len(types) else 0) for index, value in enumerate(parameters)]
    return {
        **{f"${index}": value for index, value in enumerate(shown, 1)},
        **{f"#{index}": value for index, value in enumerate(constants, 1)},
    }


def _record(row: sqlite3.Row) -> ShapeRecord:
    return ShapeRecord(
        name=row["name"],
        approval=row["approval"],
        rule=row["rule"],
        database=row["database"],
        subject=row["subject"],
        group=row["for_group"],
        shape=row["shape"],
        bounds=json.loads(row["bounds"]),
        most=row["most"],
        uses=row["uses"],
        state=row["state"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
        ended_by=row["ended_by"],
        end_reason=row["end_reason"],
    )

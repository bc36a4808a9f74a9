"""Grants: who may use which database, for what, until when. The one place where they are made and ended.

Never add here: server logins, sessions, or who is allowed to call (the API's roles say that).
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from control.grants.errors import InvalidArgument, NotFound, WrongState
from control.store.database import Store
from control.store.feed import Feed
from pgwire.ports import Audit, Grant, Principal, Refused, Scope

__all__ = ["VERBS", "GrantLedger", "GrantRecord", "Template"]

VERBS: Final = frozenset({"select", "insert", "update", "delete", "truncate", "ddl"})
_LONGEST = 366 * 86400.0  # seconds
_MOST_STANDING = 4096  # grants that are remembered as open


class Template(Protocol):
    """What the policy gives at connect."""

    @property
    def scope(self) -> Scope: ...
    @property
    def duration(self) -> float: ...


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """One grant as it is kept. Times are Unix seconds; ``state`` is ACTIVE, REVOKED or EXPIRED."""

    id: str
    subject: str
    scope: Scope
    reason: str
    state: str
    created_by: str
    created_at: float
    expires_at: float
    ended_at: float | None = None
    ended_by: str = ""
    end_reason: str = ""

    def as_grant(self) -> Grant:
        """The part that the data plane needs."""
        return Grant(self.id, self.subject, self.scope, self.expires_at, self.reason)


class GrantLedger:
    """Implements ``pgwire.ports.Grants``, and what people do with grants. ``changes`` tells of every change."""

    def __init__(
        self, store: Store, audit: Audit, auto: Callable[[Principal, str], Template | None], clock: Callable[[], float] = time.time
    ) -> None:
        self.changes: Feed[GrantRecord] = Feed()
        self._store = store
        self._audit = audit
        self._auto = auto
        self._clock = clock
        self._soonest = 0.0  # no grant that stands ends before this moment
        # What ``open`` found last, by subject and database: good until a grant is made or ends, which only this process does.
        self._standing: dict[tuple[str, str], GrantRecord] = {}
        self._changed = 0

    async def open(self, principal: Principal, database: str) -> Grant:
        """The newest active grant, or one that the policy gives at connect. Raises ``Refused`` 28000."""
        now = self._clock()
        standing = self._standing.get((principal.subject, database))
        if standing is not None and standing.expires_at > now:
            return standing.as_grant()
        template = self._auto(principal, database)
        changed = self._changed

        def work(db: sqlite3.Connection) -> tuple[GrantRecord | None, bool]:
            row = db.execute(
                "SELECT * FROM grants WHERE subject = ? AND database = ? AND state = 'ACTIVE' AND expires_at > ?"
                " ORDER BY created_at DESC LIMIT 1",
                (principal.subject, database, now),
            ).fetchone()
            if row is not None:
                return _record(row), False
            if template is None:
                last = db.execute(
                    "SELECT * FROM grants WHERE subject = ? AND database = ? ORDER BY created_at DESC LIMIT 1",
                    (principal.subject, database),
                ).fetchone()
                return (_record(last) if last is not None else None), False
            return _insert(
                db, principal.subject, template.scope, template.duration, "given at connect by policy", "policy", now, None
            ), True

        record, made = await self._store.run(work)
        if made:
            assert record is not None
            self._soonest = min(self._soonest, record.expires_at)
            self._note("grant.created", record)
            self.changes.publish(record)
        if record is None or record.state != "ACTIVE" or record.expires_at <= now:
            raise _no_grant(principal, database, record)
        if changed == self._changed:
            if len(self._standing) >= _MOST_STANDING:
                self._standing.clear()
            self._standing[principal.subject, database] = record
        return record.as_grant()

    async def create(
        self, *, by: Principal, subject: str, scope: Scope, duration: float, reason: str, request_id: str | None = None
    ) -> GrantRecord:
        """Make a grant for ``duration`` seconds. The same ``request_id`` gives the same grant. Raises ``InvalidArgument``."""
        _check(subject, scope, duration)
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[GrantRecord, bool]:
            if request_id:
                row = db.execute("SELECT * FROM grants WHERE request_id = ?", (request_id,)).fetchone()
                if row is not None:
                    known = _record(row)
                    if (known.subject, known.scope, row["duration"]) != (subject, scope, duration):
                        raise InvalidArgument("request_id was used before for a different grant")
                    return known, False
            return _insert(db, subject, scope, duration, reason, by.subject, now, request_id), True

        record, made = await self._store.run(work)
        if made:
            self._soonest = min(self._soonest, record.expires_at)
            self._forget()
            try:
                self._note("grant.created", record)
            except Refused:
                await self._end(record.id, "REVOKED", "gateway", "its making could not be audited", None)
                raise
            self.changes.publish(record)
        return record

    async def get(self, grant_id: str) -> GrantRecord:
        """One grant. Raises ``NotFound``."""
        row = await self._store.run(lambda db: db.execute("SELECT * FROM grants WHERE id = ?", (grant_id,)).fetchone())
        if row is None:
            raise NotFound(f"there is no grant {grant_id}")
        return _record(row)

    async def list(
        self, *, subject: str | None = None, database: str | None = None, state: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[GrantRecord]:
        """Grants, newest first."""
        where = [(column, value) for column, value in (("subject", subject), ("database", database), ("state", state)) if value]
        clause = " AND ".join(f"{column} = ?" for column, _ in where) or "1"
        sql = f"SELECT * FROM grants WHERE {clause} ORDER BY created_at DESC, id LIMIT ? OFFSET ?"
        rows = await self._store.run(lambda db: db.execute(sql, (*(value for _, value in where), limit, offset)).fetchall())
        return [_record(row) for row in rows]

    async def revoke(self, grant_id: str, *, by: Principal, reason: str = "", request_id: str | None = None) -> GrantRecord:
        """End a grant now. The same ``request_id`` again changes nothing. Raises ``NotFound``, ``WrongState``."""
        record, changed = await self._end(grant_id, "REVOKED", by.subject, reason, request_id)
        if changed:
            self.changes.publish(record)
            self._note("grant.revoked", record)
        return record

    async def expire_due(self) -> Sequence[GrantRecord]:
        """Mark grants whose time is over; call it often. Returns those that just ended."""
        now = self._clock()
        if now < self._soonest:
            return ()

        def work(db: sqlite3.Connection) -> tuple[list[GrantRecord], float]:
            rows = db.execute(
                "UPDATE grants SET state = 'EXPIRED', ended_at = expires_at, ended_by = 'time'"
                " WHERE state = 'ACTIVE' AND expires_at <= ? RETURNING *",
                (now,),
            ).fetchall()
            (soonest,) = db.execute("SELECT min(expires_at) FROM grants WHERE state = 'ACTIVE'").fetchone()
            return [_record(row) for row in rows], math.inf if soonest is None else soonest

        self._soonest = math.inf  # what is made while this waits lowers it again
        ended, soonest = await self._store.run(work)
        self._soonest = min(self._soonest, soonest)
        if ended:
            self._forget()
        for record in ended:
            self.changes.publish(record)
            self._note("grant.expired", record)
        return ended

    async def active(self) -> frozenset[str]:
        """The ids of all grants that stand."""
        rows = await self._store.run(
            lambda db: db.execute("SELECT id FROM grants WHERE state = 'ACTIVE' AND expires_at > ?", (self._clock(),)).fetchall()
        )
        return frozenset(row["id"] for row in rows)

    async def _end(self, grant_id: str, state: str, by: str, reason: str, request_id: str | None) -> tuple[GrantRecord, bool]:
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[GrantRecord, bool]:
            row = db.execute("SELECT * FROM grants WHERE id = ?", (grant_id,)).fetchone()
            if row is None:
                raise NotFound(f"there is no grant {grant_id}")
            if row["state"] != "ACTIVE":
                if request_id and row["end_request"] == request_id:
                    return _record(row), False
                raise WrongState(f"grant {grant_id} is {row['state']} already")
            row = db.execute(
                "UPDATE grants SET state = ?, ended_at = ?, ended_by = ?, end_reason = ?, end_request = ? WHERE id = ? RETURNING *",
                (state, now, by, reason, request_id, grant_id),
            ).fetchone()
            return _record(row), True

        try:
            return await self._store.run(work)
        finally:
            self._forget()

    def _forget(self) -> None:
        self._standing.clear()
        self._changed += 1

    def _note(self, kind: str, record: GrantRecord) -> None:
        self._audit.record(
            kind,
            {
                "grant": record.id,
                "subject": record.subject,
                "database": record.scope.database,
                "tables": list(record.scope.tables),
                "verbs": sorted(record.scope.verbs),
                "reason": record.end_reason if kind != "grant.created" else record.reason,
                "by": record.ended_by if kind != "grant.created" else record.created_by,
                "expires_at": record.expires_at,
            },
        )


def _no_grant(principal: Principal, database: str, last: GrantRecord | None) -> Refused:
    if last is None:
        return Refused(
            "28000",
            f'{principal.subject} has no grant on database "{database}"',
            hint="Ask an operator for one: pgleash grants create.",
        )
    what = "was revoked" if last.state == "REVOKED" else "has expired"
    return Refused(
        "28000", f'the grant {last.id} on database "{database}" {what}', hint="Ask an operator for a new one: pgleash grants create."
    )


def _check(subject: str, scope: Scope, duration: float) -> None:
    if not subject or len(subject) > 255 or not subject.isprintable():
        raise InvalidArgument("subject: a printable text of 1 to 255 characters")
    if not scope.database:
        raise InvalidArgument("database: the name of a database in the configuration")
    if not scope.tables or not all(re.fullmatch(r"[^.\s\x00]+\.[^\x00]+", table) for table in scope.tables):
        raise InvalidArgument("tables: at least one pattern like schema.table; * is allowed")
    if not scope.verbs or not scope.verbs <= VERBS:
        raise InvalidArgument(f"verbs: at least one of {', '.join(sorted(VERBS))}")
    if not 0 < duration <= _LONGEST:
        raise InvalidArgument(f"duration: more than 0 and at most {_LONGEST:.0f} seconds")


def _insert(
    db: sqlite3.Connection, subject: str, scope: Scope, duration: float, reason: str, by: str, now: float, request_id: str | None
) -> GrantRecord:
    row = db.execute(
        "INSERT INTO grants (id, request_id, subject, database, tables, verbs, reason, state, created_by, created_at, expires_at, duration)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'ACTIVE', ?, ?, ?, ?) RETURNING *",
        (
            "gr_" + secrets.token_hex(8),
            request_id or None,
            subject,
            scope.database,
            json.dumps(list(scope.tables)),
            json.dumps(sorted(scope.verbs)),
            reason,
            by,
            now,
            now + duration,
            duration,
        ),
    ).fetchone()
    return _record(row)


def _record(row: sqlite3.Row) -> GrantRecord:
    return GrantRecord(
        id=row["id"],
        subject=row["subject"],
        scope=Scope(row["database"], tuple(json.loads(row["tables"])), frozenset(json.loads(row["verbs"]))),
        reason=row["reason"],
        state=row["state"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
        ended_by=row["ended_by"] or "",
        end_reason=row["end_reason"],
    )

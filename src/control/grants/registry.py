"""The sessions that live and have lived, and the way to end one.

Never add here: the journal's records of a session, or its traffic.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from control.grants.errors import NotFound, WrongState
from control.store.database import Store
from control.store.feed import Feed
from pgwire.ports import Audit, Principal, Refused, SessionInfo

__all__ = ["SessionRecord", "SessionRegistry"]

_log = logging.getLogger(__name__)
_SOON = 0.5  # seconds until a session's beginning or end is in the store
_MOST_OVER = 4096  # ended grants remembered


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session. Times are Unix seconds; ``ended_at`` is None while it lives."""

    id: str
    number: int
    subject: str
    acts_for: str | None
    groups: tuple[str, ...]
    grant_id: str
    database: str
    peer: str
    peer_port: int
    tls: bool
    server_user: str
    application_name: str
    started_at: float
    ended_at: float | None
    end_reason: str
    statements: int


class SessionRegistry:
    """Implements ``pgwire.ports.Sessions``, and what operators do. ``changes`` tells of begins and ends."""

    def __init__(
        self,
        store: Store,
        audit: Audit,
        most: Callable[[Principal, str], int | None] = lambda principal, database: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``most`` says how many sessions a principal may have on a database at a time (None: no limit)."""
        self.changes: Feed[SessionRecord] = Feed()
        self._store = store
        self._audit = audit
        self._clock = clock
        self._most = most
        self._live: dict[str, tuple[SessionInfo, Callable[[str, str], None]]] = {}
        self._unwritten: dict[str, SessionRecord] = {}
        self._writing: asyncio.Task[None] | None = None
        self._over: dict[str, None] = {}  # grants that have ended, the latest last

    async def start(self) -> None:
        """Sessions that an earlier process did not see end are over."""
        now = self._clock()
        await self._store.run(
            lambda db: db.execute(
                "UPDATE sessions SET ended_at = ?, end_reason = 'the gateway was restarted' WHERE ended_at IS NULL", (now,)
            )
        )

    async def register(self, session: SessionInfo, end: Callable[[str, str], None]) -> None:
        """A session begins. Raises ``Refused`` 53300 when it is one too many for its principal."""
        principal = session.principal
        most = self._most(principal, session.database)
        if most is not None:
            have = sum(info.principal.subject == principal.subject and info.database == session.database for info, _ in self._live.values())
            if have >= most:
                raise Refused("53300", f"{principal.subject} has {have} sessions already, and the limit is {most}", hint="Close one first.")
        self._live[session.id] = (session, end)
        self._write(_record_of(session))
        if session.grant.id in self._over:
            # The grant ended between its opening and now, when nobody could yet know of this session.
            end("57P01", "the grant of this session has ended")

    async def closed(self, session: SessionInfo, reason: str, statements: int) -> None:
        """A session is over. Never raises."""
        self._live.pop(session.id, None)
        self._write(_record_of(session, self._clock(), reason, statements))

    def _write(self, record: SessionRecord) -> None:
        # Many begin and end in the time of one disk flush: they are kept together, soon. The audit log has each at once.
        self._unwritten[record.id] = record
        self.changes.publish(record)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        await asyncio.sleep(_SOON)
        try:
            await self.flush()
        except Exception:
            _log.exception("sessions were not kept")

    async def flush(self) -> None:
        """Keep what is not kept yet. Raises what the store raises."""
        records, self._unwritten = list(self._unwritten.values()), {}
        if not records:
            return
        rows = [_row(record) for record in records]
        marks = ", ".join("?" * len(rows[0]))
        try:
            await self._store.run(lambda db: db.executemany(f"INSERT OR REPLACE INTO sessions ({_COLUMNS}) VALUES ({marks})", rows))
        except BaseException:
            self._unwritten = {record.id: record for record in records} | self._unwritten
            raise

    async def get(self, session_id: str) -> SessionRecord:
        """One session. Raises ``NotFound``."""
        await self.flush()
        row = await self._store.run(lambda db: db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone())
        if row is None:
            raise NotFound(f"there is no session {session_id}")
        return _record(row)

    async def list(
        self, *, live: bool | None = None, subject: str | None = None, database: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[SessionRecord]:
        """Sessions, newest first; ``live`` picks those that go on (True) or are over (False)."""
        clauses = [f"{column} = ?" for column, value in (("subject", subject), ("database", database)) if value]
        if live is not None:
            clauses.append(f"ended_at IS {'' if live else 'NOT '}NULL")
        sql = f"SELECT * FROM sessions WHERE {' AND '.join(clauses) or '1'} ORDER BY started_at DESC, id LIMIT ? OFFSET ?"
        values = [value for value in (subject, database) if value]
        await self.flush()
        rows = await self._store.run(lambda db: db.execute(sql, (*values, limit, offset)).fetchall())
        return [_record(row) for row in rows]

    async def terminate(self, session_id: str, *, by: Principal, reason: str = "") -> SessionRecord:
        """End a live session with a FATAL. Raises ``NotFound``, ``WrongState``."""
        record = await self.get(session_id)
        live = self._live.get(session_id)
        if live is None:
            raise WrongState(f"session {session_id} is over already")
        info, end = live
        end("57P01", f"the session was ended by {by.subject}" + (f": {reason}" if reason else ""))
        self._audit.record("session.terminated", {"id": session_id, "by": by.subject, "reason": reason}, info.number)
        return record

    def databases(self) -> frozenset[str]:
        """The databases that live sessions use."""
        return frozenset(info.database for info, _ in self._live.values())

    def end_grant(self, grant_id: str, message: str) -> int:
        """End every live session of a grant with a FATAL (57P01). Returns how many."""
        self._over[grant_id] = None
        if len(self._over) > _MOST_OVER:
            self._over.pop(next(iter(self._over)))
        ends = [end for info, end in self._live.values() if info.grant.id == grant_id]
        for end in ends:
            end("57P01", message)
        return len(ends)


_COLUMNS = (
    "id, number, subject, acts_for, groups, grant_id, database, peer, peer_port, tls, server_user, application_name, started_at,"
    " ended_at, end_reason, statements"
)


def _row(record: SessionRecord) -> tuple[str | int | float | None, ...]:
    return (
        *(record.id, record.number, record.subject, record.acts_for, json.dumps(record.groups), record.grant_id, record.database),
        *(record.peer, record.peer_port, int(record.tls), record.server_user, record.application_name, record.started_at),
        *(record.ended_at, record.end_reason, record.statements),
    )


def _record_of(session: SessionInfo, ended_at: float | None = None, end_reason: str = "", statements: int = 0) -> SessionRecord:
    principal = session.principal
    return SessionRecord(
        id=session.id,
        number=session.number,
        subject=principal.subject,
        acts_for=principal.acts_for,
        groups=tuple(sorted(principal.groups)),
        grant_id=session.grant.id,
        database=session.database,
        peer=session.peer.address,
        peer_port=session.peer.port,
        tls=session.peer.tls,
        server_user=session.server_user,
        application_name=session.application_name,
        started_at=session.started_at,
        ended_at=ended_at,
        end_reason=end_reason,
        statements=statements,
    )


def _record(row: sqlite3.Row) -> SessionRecord:
    return SessionRecord(
        id=row["id"],
        number=row["number"],
        subject=row["subject"],
        acts_for=row["acts_for"],
        groups=tuple(json.loads(row["groups"])),
        grant_id=row["grant_id"],
        database=row["database"],
        peer=row["peer"],
        peer_port=row["peer_port"],
        tls=bool(row["tls"]),
        server_user=row["server_user"],
        application_name=row["application_name"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        end_reason=row["end_reason"],
        statements=row["statements"],
    )

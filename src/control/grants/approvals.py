"""The desk where held statements wait for a decision. A statement is decided once, and the decision is audited first.

Never add here: what gets held (policy), or how approvers are reached (the API).
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from control.grants.errors import InvalidArgument, NotAllowed, NotFound, WrongState
from control.store.database import Store
from control.store.feed import Feed
from pgwire.ports import Audit, Decision, HoldTerms, PendingApproval, Principal, Refused, SessionInfo, Statement, Verdict

__all__ = ["ApprovalDesk", "ApprovalRecord"]

_PREFIX = "approvals/"


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """One held statement. ``state``: PENDING, APPROVED, DENIED, EXPIRED or CANCELLED. Times are Unix seconds.

    ``parameters`` are the bound values: text as it is, binary as ``base64:…``, None for NULL.
    """

    name: str
    session_id: str
    session: int
    subject: str
    acts_for: str | None
    groups: tuple[str, ...]
    database: str
    statement: str
    parameters: tuple[str | None, ...]
    facts: Mapping[str, Any]
    reasons: tuple[str, ...]
    rule: str
    approvers: tuple[str, ...]
    state: str
    created_at: float
    expires_at: float
    decided_at: float | None = None
    decided_by: str = ""
    comment: str = ""


class ApprovalDesk:
    """Implements ``pgwire.ports.Approvals``, and what approvers do. ``changes`` tells of every change."""

    def __init__(self, store: Store, audit: Audit, clock: Callable[[], float] = time.time) -> None:
        self.changes: Feed[ApprovalRecord] = Feed()
        self._store = store
        self._audit = audit
        self._clock = clock
        self._waiting: dict[str, asyncio.Future[Decision]] = {}

    async def start(self) -> None:
        """Statements that an earlier process held can't run any more."""
        now = self._clock()
        rows = await self._store.run(
            lambda db: db.execute(
                "UPDATE approvals SET state = 'CANCELLED', decided_at = ?, comment = 'the gateway was restarted'"
                " WHERE state = 'PENDING' RETURNING *",
                (now,),
            ).fetchall()
        )
        for row in rows:
            self._note("approval.cancelled", _record(row))

    async def ask(self, session: SessionInfo, statement: Statement, verdict: Verdict) -> PendingApproval:
        """Put a held statement before the approvers. Raises ``Refused`` when it can't be kept or audited."""
        now = self._clock()
        terms = verdict.hold or HoldTerms()
        name = _PREFIX + "ap_" + secrets.token_hex(6)
        values = (
            name,
            session.id,
            session.number,
            session.principal.subject,
            session.principal.acts_for,
            json.dumps(sorted(session.principal.groups)),
            session.database,
            statement.text.decode("utf-8", "replace"),
            json.dumps(_parameters(statement)),
            json.dumps(dict(verdict.facts), default=str),
            json.dumps(list(verdict.reasons)),
            verdict.rule,
            json.dumps(list(terms.approvers)),
            now,
            now + terms.timeout,
        )

        def work(db: sqlite3.Connection) -> ApprovalRecord:
            return _record(
                db.execute(
                    "INSERT INTO approvals (name, session_id, session, subject, acts_for, groups, database, statement, parameters, facts,"
                    " reasons, rule, approvers, state, created_at, expires_at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'PENDING', ?, ?) RETURNING *",
                    values,
                ).fetchone()
            )

        self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            record = await self._store.run(work)
            self._note("approval.asked", record)
        except BaseException:
            self._waiting.pop(name, None)
            raise
        self.changes.publish(record)
        return _Pending(self, name, record.expires_at)

    async def get(self, name: str) -> ApprovalRecord:
        """One approval. Raises ``NotFound``."""
        row = await self._store.run(lambda db: db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone())
        if row is None:
            raise NotFound(f"there is no approval {name}")
        return _record(row)

    async def list(
        self, *, state: str | None = None, database: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[ApprovalRecord]:
        """Approvals, newest first."""
        where = [(column, value) for column, value in (("state", state), ("database", database)) if value]
        clause = " AND ".join(f"{column} = ?" for column, _ in where) or "1"
        sql = f"SELECT * FROM approvals WHERE {clause} ORDER BY created_at DESC, name LIMIT ? OFFSET ?"
        rows = await self._store.run(lambda db: db.execute(sql, (*(value for _, value in where), limit, offset)).fetchall())
        return [_record(row) for row in rows]

    async def decide(self, name: str, *, approve: bool, by: Principal, comment: str = "", request_id: str | None = None) -> ApprovalRecord:
        """Approve or deny. The same ``request_id`` with the same answer changes nothing.

        Raises ``NotFound``, ``NotAllowed`` (one's own request, or not an approver of it), ``WrongState`` (decided already).
        """
        if len(comment) > 2000:
            raise InvalidArgument("comment: at most 2000 characters")
        state = "APPROVED" if approve else "DENIED"
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord, bool]:
            row = db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"there is no approval {name}")
            record = _record(row)
            _may_decide(record, by)
            if record.state != "PENDING":
                if request_id and row["request_id"] == request_id and record.state == state and record.decided_by == by.subject:
                    return record, False
                raise WrongState(f"{name} is {record.state} already")
            if record.expires_at <= now:
                raise WrongState(f"{name} has expired")
            row = db.execute(
                "UPDATE approvals SET state = ?, decided_at = ?, decided_by = ?, comment = ?, request_id = ? WHERE name = ? RETURNING *",
                (state, now, by.subject, comment, request_id or None, name),
            ).fetchone()
            return _record(row), True

        if name not in self._waiting:
            record = await self.get(name)
            if record.state == "PENDING":
                raise WrongState(f"nothing waits for {name} any more")
        record, changed = await self._store.run(work)
        if changed:
            self._told(record)
        return record

    async def settle(self, name: str, state: str, comment: str = "") -> ApprovalRecord | None:
        """EXPIRED or CANCELLED, unless it has been decided. Returns what it is now; None when there is none."""
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord | None, bool]:
            row = db.execute(
                "UPDATE approvals SET state = ?, decided_at = ?, comment = ? WHERE name = ? AND state = 'PENDING' RETURNING *",
                (state, now, comment, name),
            ).fetchone()
            if row is not None:
                return _record(row), True
            row = db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone()
            return (_record(row) if row is not None else None), False

        record, changed = await self._store.run(work)
        if record is not None and changed:
            self._told(record)
        return record

    def future(self, name: str) -> asyncio.Future[Decision]:
        """What resolves with the decision on ``name``. Raises ``NotFound``."""
        future = self._waiting.get(name)
        if future is None:
            raise NotFound(f"nothing waits for {name}")
        return future

    def forget(self, name: str) -> None:
        """Nobody waits for ``name`` any more."""
        self._waiting.pop(name, None)

    def _told(self, record: ApprovalRecord) -> None:
        # Audited before the statement is let go: if that fails, nothing runs.
        future = self._waiting.get(record.name)
        try:
            self._note(f"approval.{record.state.lower()}", record)
        except Refused as refused:
            if future is not None and not future.done():
                future.set_exception(refused)
            raise
        finally:
            self.changes.publish(record)
        if future is not None and not future.done():
            future.set_result(Decision(record.state, record.decided_by, record.comment))

    def _note(self, kind: str, record: ApprovalRecord) -> None:
        fields: dict[str, Any] = {
            "approval": record.name,
            "session": record.session_id,
            "subject": record.subject,
            "database": record.database,
            "rule": record.rule,
        }
        if kind == "approval.asked":
            fields |= {"statement": record.statement, "reasons": list(record.reasons), "approvers": list(record.approvers)}
        else:
            fields |= {"by": record.decided_by, "comment": record.comment}
        self._audit.record(kind, fields, record.session)


class _Pending:
    # The data plane's hold on one approval.
    def __init__(self, desk: ApprovalDesk, name: str, expires_at: float) -> None:
        self.name = name
        self.expires_at = expires_at
        self._desk = desk
        self._decision = desk.future(name)

    async def wait(self) -> Decision:
        try:
            return await asyncio.wait_for(asyncio.shield(self._decision), max(0.0, self.expires_at - time.time()))
        except TimeoutError:
            record = await self._desk.settle(self.name, "EXPIRED")
            if record is None:
                return Decision("EXPIRED")
            return Decision(record.state, record.decided_by, record.comment)
        finally:
            if self._decision.done():
                self._desk.forget(self.name)

    async def withdraw(self, reason: str) -> None:
        self._desk.forget(self.name)
        await self._desk.settle(self.name, "CANCELLED", reason)


def _may_decide(record: ApprovalRecord, by: Principal) -> None:
    own = {record.subject, record.acts_for} - {None}
    if own & {by.subject, by.acts_for}:
        raise NotAllowed("nobody decides on their own request, nor on that of an agent that acts for them")
    if record.approvers and not (set(record.approvers) & (by.groups | {by.subject})):
        raise NotAllowed(f"{record.name} is for {', '.join(record.approvers)} to decide")


def _parameters(statement: Statement) -> list[str | None]:
    shown: list[str | None] = []
    for index, value in enumerate(statement.parameters):
        binary = index < len(statement.parameter_formats) and statement.parameter_formats[index] != 0
        if value is None:
            shown.append(None)
        elif binary:
            shown.append("base64:" + base64.b64encode(value).decode())
        else:
            shown.append(value.decode("utf-8", "replace"))
    return shown


def _record(row: sqlite3.Row) -> ApprovalRecord:
    return ApprovalRecord(
        name=row["name"],
        session_id=row["session_id"],
        session=row["session"],
        subject=row["subject"],
        acts_for=row["acts_for"],
        groups=tuple(json.loads(row["groups"])),
        database=row["database"],
        statement=row["statement"],
        parameters=tuple(json.loads(row["parameters"])),
        facts=json.loads(row["facts"]),
        reasons=tuple(json.loads(row["reasons"])),
        rule=row["rule"],
        approvers=tuple(json.loads(row["approvers"])),
        state=row["state"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        decided_at=row["decided_at"],
        decided_by=row["decided_by"],
        comment=row["comment"],
    )

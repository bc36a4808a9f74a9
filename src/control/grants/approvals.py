"""The desk where held statements wait for a decision. A statement is decided once, and the decision is audited first.

One that waits on the wire lives as long as its client waits. A deferred one is kept: when it is approved, the same statement of
the same principal passes once (``take``). Never add here: what gets held (policy), or how approvers are reached.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from control.grants.errors import InvalidArgument, NotAllowed, NotFound, WrongState
from control.grants.records import ApprovalRecord, Vote, approval_record, binding_of, digest_of, match_key, next_sequence, shown_parameters
from control.grants.shapes import ShapeBook, ShapeTerms
from control.grants.votes import approvals_of, check_may_decide, check_votes_once, earlier_vote
from control.store.database import Store
from control.store.feed import Feed
from pgwire.ports import Audit, Decision, HoldTerms, Principal, Refused, SessionInfo, Statement, Verdict

__all__ = ["ApprovalDesk", "ApprovalRecord", "Held"]

_log = logging.getLogger(__name__)
_PREFIX = "approvals/"
_PATIENCE = 10.0  # seconds within which an approved statement is on its way or void
_MOST_PENDING = 1000  # deferred statements of one principal that may wait at a time
_SWEEP = 1.0  # seconds between looks for what has expired


@dataclass(frozen=True, slots=True)
class Held:
    """A statement that has just been put before the approvers, with what it came from: for evidence. ``since``: see ``ask``."""

    record: ApprovalRecord
    session: SessionInfo
    statement: Statement
    verdict: Verdict
    since: float | None = None


@dataclass(slots=True)
class _Waiter:
    # a client that waits: the decision it gets, and what became of an approved statement
    decision: asyncio.Future[Decision]
    outcome: asyncio.Future[str]
    used: bool = False


class ApprovalDesk:
    """Implements ``pgwire.ports.Approvals``, and what approvers do. ``changes`` tells of every change, ``asked`` of new ones.

    ``enqueue(db, record)`` is called inside the transaction of every change of state, so that who must be notified is never forgotten.
    """

    def __init__(
        self,
        store: Store,
        audit: Audit,
        clock: Callable[[], float] = time.time,
        enqueue: Callable[[sqlite3.Connection, ApprovalRecord], None] | None = None,
    ) -> None:
        self.changes: Feed[ApprovalRecord] = Feed()
        self.asked: Feed[Held] = Feed()
        self.shapes = ShapeBook(store, audit, clock)
        self._store = store
        self._audit = audit
        self._clock = clock
        self._enqueue = enqueue
        self._waiting: dict[str, _Waiter] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._swept = 0.0

    async def start(self) -> None:
        """Statements whose clients waited for an earlier process can't run any more. Deferred ones stand."""
        now = self._clock()

        def work(db: sqlite3.Connection) -> list[ApprovalRecord]:
            names = db.execute("SELECT name FROM approvals WHERE state = 'PENDING' AND mode = 'wait' ORDER BY sequence").fetchall()
            comment = "the gateway was restarted"
            return [self._changed(db, row["name"], state="CANCELLED", decided_at=now, comment=comment) for row in names]

        for record in await self._store.run(work):
            self._note("approval.cancelled", record)

    async def stop(self) -> None:
        """Write what is still to be written."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    # -- the data plane's side -----------------------------------------------------------------------------------

    async def take(self, session: SessionInfo, statement: Statement, verdict: Verdict) -> str:
        """See ``ports.Approvals``. Raises ``Refused`` when the use can't be audited."""
        now = self._clock()
        key = match_key(session, statement, verdict)

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord | None, list[ApprovalRecord]]:
            voided = []
            for row in db.execute(
                "SELECT * FROM approvals WHERE match_key = ? AND mode = 'defer' AND state = 'APPROVED' AND used_at IS NULL"
                " AND use_before > ? ORDER BY decided_at",
                (key, now),
            ).fetchall():
                record = approval_record(row)
                if why := _differs(record, statement, verdict):
                    voided.append(self._changed(db, record.name, state="VOIDED", comment=why))
                    continue
                return self._changed(db, record.name, used_at=now, used_by=session.id), voided
            return None, voided

        used, voided = await self._store.run(work)
        for record in voided:
            self._tell("approval.voided", record)
        if used is not None:
            self._tell("approval.used", used, {"used_by": session.id})
            return used.name
        return await self.shapes.take(session, statement, verdict)

    async def ask(self, session: SessionInfo, statement: Statement, verdict: Verdict, since: float | None = None) -> _Pending:
        """See ``ports.Approvals``. Raises ``Refused`` when it can't be kept or audited."""
        now = self._clock()
        terms = verdict.hold or HoldTerms()
        timeout = terms.timeout
        if statement.status != "I" and terms.transaction_timeout is not None and not terms.defer:
            timeout = min(timeout, terms.transaction_timeout)
        name = _PREFIX + "ap_" + secrets.token_hex(6)
        values = _asked(name, session, statement, verdict, terms, now, timeout, since)

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord, bool]:
            if terms.defer and (known := self._known(db, values["match_key"], now, statement, verdict)) is not None:
                return known, False
            if terms.defer:
                _check_room(db, session.principal, now)
            values["sequence"] = next_sequence(db)
            columns = ", ".join(values)
            row = db.execute(
                f"INSERT INTO approvals ({columns}) VALUES ({', '.join('?' * len(values))}) RETURNING *", tuple(values.values())
            ).fetchone()
            record = approval_record(row)
            if self._enqueue is not None:
                self._enqueue(db, record)
            return record, True

        loop = asyncio.get_running_loop()
        if not terms.defer:
            self._waiting[name] = _Waiter(loop.create_future(), loop.create_future())
        try:
            record, new = await self._store.run(work)
            if new:
                self._note("approval.asked", record)
        except BaseException:
            self._waiting.pop(name, None)
            raise
        if new:
            self.changes.publish(record)
            self.asked.publish(Held(record, session, statement, verdict, since))
        return _Pending(self, record, self._waiting.get(name))

    def _known(self, db: sqlite3.Connection, key: str, now: float, statement: Statement, verdict: Verdict) -> ApprovalRecord | None:
        # The same deferred statement is put before the approvers once; a denial stands for its time.
        for row in db.execute(
            "SELECT * FROM approvals WHERE match_key = ? AND mode = 'defer' AND state IN ('PENDING', 'DENIED') AND expires_at > ?"
            " ORDER BY created_at DESC",
            (key, now),
        ).fetchall():
            record = approval_record(row)
            if not _differs(record, statement, verdict):
                return record
        return None

    def use(self, name: str, session_id: str) -> bool:
        """An approved statement that waited goes to the server. False when it was withdrawn. Raises ``Refused`` if not audited."""
        waiter = self._waiting.get(name)
        if waiter is None or waiter.used or waiter.outcome.done():
            return False
        self._audit.record("approval.used", {"approval": name, "session": session_id})
        waiter.used = True
        waiter.outcome.set_result("")
        del self._waiting[name]
        now = self._clock()

        async def write() -> None:
            try:
                record = await self._store.run(lambda db: self._changed(db, name, used_at=now, used_by=session_id))
                self.changes.publish(record)
            except Exception:
                _log.exception("the use of %s was not kept; the audit log has it", name)

        task = asyncio.get_running_loop().create_task(write())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return True

    async def settle(self, name: str, state: str, comment: str = "") -> ApprovalRecord | None:
        """EXPIRED, CANCELLED or VOIDED, unless it has been decided, or was approved and is on its way. Returns what it is now."""
        now = self._clock()
        waiter = self._waiting.get(name)
        open_states = ("PENDING",) if state == "EXPIRED" else ("PENDING", "APPROVED")

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord | None, bool]:
            row = db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None, False
            record = approval_record(row)
            used = record.used_at is not None or (waiter is not None and waiter.used)
            if record.state not in open_states or used:
                return record, False
            return self._changed(db, name, state=state, decided_at=record.decided_at or now, comment=comment), True

        record, changed = await self._store.run(work)
        if record is not None and changed:
            self._told(record)
        return record

    def forget(self, name: str) -> None:
        """Nobody waits for ``name`` any more."""
        waiter = self._waiting.pop(name, None)
        if waiter is not None and not waiter.outcome.done():
            waiter.outcome.set_result("its client has gone")

    # -- the approvers' side -------------------------------------------------------------------------------------

    async def get(self, name: str) -> ApprovalRecord:
        """One approval. Raises ``NotFound``."""
        row = await self._store.run(lambda db: db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone())
        if row is None:
            raise NotFound(f"there is no approval {name}")
        return approval_record(row)

    async def list(
        self, *, state: str | None = None, database: str | None = None, subject: str | None = None, limit: int = 100, offset: int = 0
    ) -> list[ApprovalRecord]:
        """Approvals, newest first."""
        where = [(column, value) for column, value in (("state", state), ("database", database), ("subject", subject)) if value]
        clause = " AND ".join(f"{column} = ?" for column, _ in where) or "1"
        sql = f"SELECT * FROM approvals WHERE {clause} ORDER BY created_at DESC, name LIMIT ? OFFSET ?"
        rows = await self._store.run(lambda db: db.execute(sql, (*(value for _, value in where), limit, offset)).fetchall())
        return [approval_record(row) for row in rows]

    async def since(self, sequence: int, pending: bool = False, limit: int = 500) -> Sequence[ApprovalRecord]:
        """Approvals that changed after ``sequence``, in the order of their last change; ``pending``: only those that are."""
        clause = "state = 'PENDING' AND sequence > ?" if pending else "sequence > ?"
        sql = f"SELECT * FROM approvals WHERE {clause} ORDER BY sequence LIMIT ?"
        rows = await self._store.run(lambda db: db.execute(sql, (sequence, limit)).fetchall())
        return [approval_record(row) for row in rows]

    async def decide(
        self,
        name: str,
        *,
        approve: bool,
        by: Principal,
        comment: str = "",
        request_id: str | None = None,
        shape: ShapeTerms | None = None,
    ) -> ApprovalRecord:
        """Approve or deny. The same ``request_id`` with the same answer changes nothing.

        An approval counts once per person until as many as are needed have come. Returns when the statement is on its way.
        Raises ``NotFound``, ``NotAllowed`` (one's own request, or not an approver of it), ``WrongState`` (decided already; void).
        """
        if len(comment) > 2000:
            raise InvalidArgument("comment: at most 2000 characters")
        now = self._clock()
        waiter = self._waiting.get(name)

        def work(db: sqlite3.Connection) -> tuple[ApprovalRecord, bool]:
            row = db.execute("SELECT * FROM approvals WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"there is no approval {name}")
            record = approval_record(row)
            check_may_decide(record, by)
            if earlier_vote(record, by, approve, request_id) is not None:
                return record, False
            if record.state != "PENDING":
                raise WrongState(f"{name} is {record.state} already")
            if record.expires_at <= now:
                raise WrongState(f"{name} has expired")
            if record.mode == "wait" and waiter is None:
                raise WrongState(f"nothing waits for {name} any more")
            terms = self.shapes.checked(record, shape) if shape is not None and approve else None
            return self._voted(db, record, Vote(by.subject, approve, now, by.acts_for, comment, request_id, terms), by), True

        record, changed = await self._store.run(work)
        if changed and record.state == "PENDING":
            self._tell("approval.vote", record, {"by": by.subject})
        elif changed:
            self._told(record)
            if record.state == "APPROVED":
                await self._grant_shape(record)
        return await self._outcome(record, waiter) if record.state == "APPROVED" and record.mode == "wait" else record

    def _voted(self, db: sqlite3.Connection, record: ApprovalRecord, vote: Vote, by: Principal) -> ApprovalRecord:
        if vote.approve:
            check_votes_once(record, by)
        votes = (*record.votes, vote)
        told: dict[str, Any] = {"votes": json.dumps([asdict(each) for each in votes])}
        if not vote.approve or len(approvals_of(votes)) >= record.needed:
            state = "APPROVED" if vote.approve else "DENIED"
            names = ", ".join(each.subject for each in approvals_of(votes)) if vote.approve else vote.subject
            told |= {"state": state, "decided_at": vote.at, "decided_by": names, "comment": vote.comment}
            if vote.approve and record.mode == "defer":
                told["use_before"] = vote.at + record.duration
        return self._changed(db, record.name, **told)

    async def _grant_shape(self, record: ApprovalRecord) -> None:
        # Only what every one of them has said in the same words goes beyond the one statement.
        wishes = [vote.shape for vote in approvals_of(record.votes)]
        if wishes and wishes[0] is not None and all(wish == wishes[0] for wish in wishes):
            await self.shapes.create(record, wishes[0])

    async def _outcome(self, record: ApprovalRecord, waiter: _Waiter | None) -> ApprovalRecord:
        # An approver hears of success when the statement is on its way, and not before.
        if waiter is not None:
            try:
                await asyncio.wait_for(asyncio.shield(waiter.outcome), _PATIENCE)
            except TimeoutError:
                _log.warning("%s was approved and has not been sent in %g s", record.name, _PATIENCE)
        now = await self.get(record.name)
        if now.state in ("VOIDED", "CANCELLED"):
            raise WrongState(f"{record.name} was approved and is {now.state}: {now.comment}; the statement was not run")
        return now

    async def attach(self, name: str, evidence: Mapping[str, Any]) -> None:
        """Add to what approvers are shown of a pending approval."""

        def work(db: sqlite3.Connection) -> ApprovalRecord | None:
            row = db.execute("SELECT * FROM approvals WHERE name = ? AND state = 'PENDING'", (name,)).fetchone()
            if row is None:
                return None
            joined = {**json.loads(row["evidence"]), **evidence}
            return self._changed(db, name, evidence=json.dumps(joined, default=str))

        record = await self._store.run(work)
        if record is not None:
            self.changes.publish(record)

    async def withdraw(self, name: str, by: Principal) -> ApprovalRecord:
        """The agent takes a deferred statement back. Raises ``NotFound``, ``NotAllowed``, ``WrongState``."""
        record = await self.get(name)
        if record.subject != by.subject:
            raise NotAllowed("only the agent that asked takes it back")
        settled = await self.settle(name, "CANCELLED", "taken back by the agent")
        if settled is None or settled.state != "CANCELLED":
            raise WrongState(f"{name} is {record.state} already")
        return settled

    async def expire_due(self) -> None:
        """Deferred statements that nobody decided on, or that were approved and not used in time. Call it often."""
        now = self._clock()
        if now - self._swept < _SWEEP:
            return
        self._swept = now

        def work(db: sqlite3.Connection) -> list[ApprovalRecord]:
            rows = db.execute(
                "SELECT name, state FROM approvals WHERE mode = 'defer' AND ((state = 'PENDING' AND expires_at <= ?)"
                " OR (state = 'APPROVED' AND used_at IS NULL AND use_before <= ?))",
                (now, now),
            ).fetchall()
            why = {"PENDING": "nobody decided in time", "APPROVED": "approved, and not used in time"}
            return [self._changed(db, row["name"], state="EXPIRED", comment=why[row["state"]]) for row in rows]

        for record in await self._store.run(work):
            self._told(record)
        await self.shapes.expire_due()

    # -- every change --------------------------------------------------------------------------------------------

    def _changed(self, db: sqlite3.Connection, name: str, **values: Any) -> ApprovalRecord:
        values["sequence"] = next_sequence(db)
        setting = ", ".join(f"{column} = ?" for column in values)
        row = db.execute(f"UPDATE approvals SET {setting} WHERE name = ? RETURNING *", (*values.values(), name)).fetchone()
        record = approval_record(row)
        if "state" in values and self._enqueue is not None:
            self._enqueue(db, record)
        return record

    def _told(self, record: ApprovalRecord) -> None:
        # Audited before the statement is let go: if that fails, nothing runs.
        waiter = self._waiting.get(record.name)
        try:
            self._note(f"approval.{record.state.lower()}", record)
        except Refused as refused:
            if waiter is not None and not waiter.decision.done():
                waiter.decision.set_exception(refused)
            raise
        finally:
            self.changes.publish(record)
            if waiter is not None and record.state != "APPROVED" and not waiter.outcome.done():
                waiter.outcome.set_result(record.comment)
        if waiter is not None and not waiter.decision.done():
            waiter.decision.set_result(Decision(record.state, record.decided_by, record.comment))

    def _tell(self, kind: str, record: ApprovalRecord, more: Mapping[str, Any] | None = None) -> None:
        try:
            self._note(kind, record, more)
        finally:
            self.changes.publish(record)

    def _note(self, kind: str, record: ApprovalRecord, more: Mapping[str, Any] | None = None) -> None:
        fields: dict[str, Any] = {
            "approval": record.name,
            "session": record.session_id,
            "subject": record.subject,
            "database": record.database,
            "rule": record.rule,
            "digest": record.digest,
        }
        if kind == "approval.asked":
            fields |= {
                "statement": record.statement,
                "parameters": list(record.parameters),
                "reasons": list(record.reasons),
                "approvers": list(record.approvers),
                "needed": record.needed,
                "mode": record.mode,
                "standing": record.binding.get("standing", {}),
            }
        else:
            fields |= {"by": record.decided_by, "comment": record.comment}
        self._audit.record(kind, {**fields, **(more or {})}, record.session)


class _Pending:
    # The data plane's hold on one approval.
    def __init__(self, desk: ApprovalDesk, record: ApprovalRecord, waiter: _Waiter | None) -> None:
        self.name = record.name
        self.expires_at = record.expires_at
        self.state = record.state
        self.comment = record.comment
        self._session = record.session_id
        self._desk = desk
        self._waiter = waiter

    async def wait(self) -> Decision:
        if self._waiter is None:
            raise RuntimeError("a deferred statement is not waited for")
        try:
            return await asyncio.wait_for(asyncio.shield(self._waiter.decision), max(0.0, self.expires_at - time.time()))
        except TimeoutError:
            record = await self._desk.settle(self.name, "EXPIRED")
            if record is None:
                return Decision("EXPIRED")
            return Decision(record.state, record.decided_by, record.comment)

    async def use(self) -> bool:
        return self._desk.use(self.name, self._session)

    async def void(self, reason: str) -> None:
        await self._desk.settle(self.name, "VOIDED", reason)
        self._desk.forget(self.name)

    async def withdraw(self, reason: str) -> None:
        await self._desk.settle(self.name, "CANCELLED", reason)
        self._desk.forget(self.name)


def _asked(
    name: str,
    session: SessionInfo,
    statement: Statement,
    verdict: Verdict,
    terms: HoldTerms,
    now: float,
    timeout: float,
    since: float | None,
) -> dict[str, Any]:
    """The row of a new approval."""
    evidence = {} if since is None else {"transaction": {"status": statement.status, "age": round(now - since, 3)}}
    return {
        "name": name,
        "sequence": 0,
        "session_id": session.id,
        "session": session.number,
        "subject": session.principal.subject,
        "acts_for": session.principal.acts_for,
        "groups": json.dumps(sorted(session.principal.groups)),
        "database": session.database,
        "statement": statement.text.decode("utf-8", "replace"),
        "parameters": json.dumps(shown_parameters(statement)),
        "facts": json.dumps(dict(verdict.facts), default=str),
        "reasons": json.dumps(list(verdict.reasons)),
        "rule": verdict.rule,
        "approvers": json.dumps(list(terms.approvers)),
        "needed": max(1, terms.needed),
        "mode": "defer" if terms.defer else "wait",
        "dry_run": int(terms.dry_run),
        "digest": digest_of(session, statement, verdict),
        "match_key": match_key(session, statement, verdict),
        "binding": json.dumps(binding_of(statement, verdict)),
        "evidence": json.dumps(evidence),
        "state": "PENDING",
        "created_at": now,
        "expires_at": now + timeout,
        "duration": timeout,
    }


def _differs(record: ApprovalRecord, statement: Statement, verdict: Verdict) -> str:
    """What is not as it was when a deferred statement was put before the approvers; empty: nothing."""
    terms = verdict.hold or HoldTerms()
    if (record.rule, record.approvers, record.needed) != (verdict.rule, tuple(terms.approvers), max(1, terms.needed)):
        return "the policy asks for another approval of it now"
    if json.dumps(record.facts, sort_keys=True) != json.dumps(json.loads(json.dumps(dict(verdict.facts), default=str)), sort_keys=True):
        return "what it would do has changed"
    bound = binding_of(statement, verdict)
    for name, value in bound["standing"].items():
        if name != "role" and record.binding.get("standing", {}).get(name) != value:
            return f"{name} has changed"
    return ""


def _check_room(db: sqlite3.Connection, principal: Principal, now: float) -> None:
    (count,) = db.execute(
        "SELECT count(*) FROM approvals WHERE subject = ? AND mode = 'defer' AND state = 'PENDING' AND expires_at > ?",
        (principal.subject, now),
    ).fetchone()
    if count >= _MOST_PENDING:
        raise Refused("53400", f"{count} deferred statements wait for approval already", hint="Wait until some are decided.")

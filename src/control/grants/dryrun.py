"""A dry run: a held write is executed through the gateway's own login in a transaction that is always rolled back.

It runs as the role that the session has at the server, with its search path and its values as they were bound, and holds its
locks for a few seconds at most. What may outlive a rollback is not tried; the policy's part finds that out, after the server
has parsed the statement and so keeps its table as it is. Never add here: a commit, or values of labelled columns in the clear.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import logging
import re
import select
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psycopg
from psycopg import pq, sql

from control.grants.approvals import ApprovalDesk
from control.grants.errors import DryRunRefused, WrongState
from control.grants.evidence import open_connection, set_standing
from control.grants.records import ApprovalRecord
from control.grants.samples import Row, Sampling, limit, sampled
from control.grants.votes import check_may_decide
from pgwire.ports import Audit, Binding, Principal

__all__ = ["DryRun", "DryRunner", "Examiner", "TableChange"]

_log = logging.getLogger(__name__)
_MOST = 2  # dry runs at a time
_LONGEST = 5.0  # seconds from the first lock of the statement to the rollback
_NAME = b"pgleash_dry_run"
_PARAMETERS: Mapping[str, str | int] = {
    "application_name": "pgleash dry run",
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=5000 -c lock_timeout=500 -c idle_in_transaction_session_timeout=10000 -c jit=off"
    " -c default_transaction_isolation=read\\ committed",
}
# Settings of the session that are taken over; a statement under any other is not tried.
_TAKEN_OVER = frozenset({"datestyle", "timezone", "intervalstyle", "geqo"})
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_+\-/:., ]{1,80}")
_CHANGES = """
SELECT schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_catalog.pg_stat_xact_user_tables
WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 ORDER BY 1 LIMIT 100
"""

_OPEN_TRANSACTION = "the session's own open transaction is not seen by it, and may hold locks that it needs"
# Before anything of our own is asked: the session's path may lead to operators of others' making.
_NO_PATH = "SELECT pg_catalog.set_config('search_path', '', true)"

Connection = psycopg.Connection[tuple[Any, ...]]


class Trial(Protocol):
    """What is known of a write before it is tried. ``reasons``: why it is not; ``kind`` and the rest: see ``samples.Sampling``."""

    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def schema(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def columns(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def computed(self) -> tuple[str, ...]: ...


class Examiner(Protocol):
    """Finds out whether all that a write does ends with a rollback."""

    def first_look(self, text: bytes) -> str:
        """Why it is not tried, as far as the text tells; empty: it may be."""
        ...

    async def examine(
        self, database: str, text: bytes, path: tuple[str, ...], fetch: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
    ) -> Trial:
        """All that it reaches, by the catalog as it is now. ``fetch`` asks the database; it blocks."""
        ...


@dataclass(frozen=True, slots=True)
class TableChange:
    """Rows written in one table (``schema.name``)."""

    table: str
    inserted: int
    updated: int
    deleted: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """What came of it. ``affected`` is None when it failed: then ``sqlstate`` and ``error`` say how. ``seconds``: how long it took."""

    affected: int | None = None
    tables: tuple[TableChange, ...] = ()
    samples: tuple[Row, ...] = ()
    sqlstate: str = ""
    error: str = ""
    constraint: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class _Failed(Exception):
    # the statement's error: the body of an ErrorResponse
    def __init__(self, result: pq.abc.PGresult) -> None:
        fields = [(int(code), value) for code in pq.DiagnosticField if (value := result.error_field(code)) is not None]
        self.body = b"".join(bytes((code,)) + value + b"\0" for code, value in fields) + b"\0"


@dataclass(frozen=True, slots=True)
class _Held:
    # the statement as it would be sent, made of what is kept of it
    text: bytes
    values: list[bytes | None]
    formats: list[pq.Format]
    types: list[int]
    path: tuple[str, ...]
    role: str
    settings: tuple[tuple[str, str], ...]
    binding: Binding


class DryRunner:
    """Makes dry runs for approvers. ``logins`` are libpq parameters of the gateway's own login by database.

    ``scrub`` takes the values out of an ErrorResponse: its kind (``E``) and body to a body.
    """

    def __init__(
        self,
        desk: ApprovalDesk,
        audit: Audit,
        examiner: Examiner,
        logins: Mapping[str, Mapping[str, str | int]],
        scrub: Callable[[bytes, bytes], bytes],
    ) -> None:
        self._desk = desk
        self._audit = audit
        self._examiner = examiner
        self._logins = logins
        self._scrub = scrub
        self._threads = ThreadPoolExecutor(_MOST, thread_name_prefix="dry-run")
        self._running: dict[str, asyncio.Task[DryRun]] = {}

    async def stop(self) -> None:
        """Wait for those that go on; each is bounded."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, name: str, by: Principal) -> DryRun:
        """Try what ``name`` holds. It goes on to its rollback when the caller leaves.

        Raises ``NotFound``, ``NotAllowed`` (not an approver of it), ``WrongState`` (not pending; one goes on), ``DryRunRefused``,
        and ``Refused`` when it can't be audited.
        """
        record = await self._desk.get(name)
        check_may_decide(record, by)
        if record.state != "PENDING":
            raise WrongState(f"{name} is {record.state} already")
        if record.expires_at <= time.time():
            raise WrongState(f"{name} has expired")
        if not record.dry_run:
            raise DryRunRefused(f"the rule {record.rule} does not allow a dry run")
        if name in self._running:
            raise WrongState(f"a dry run of {name} goes on")
        if len(self._running) >= _MOST:
            raise WrongState(f"{_MOST} dry runs go on; try again in some seconds")
        task = asyncio.create_task(self._audited(record, by))
        self._running[name] = task
        task.add_done_callback(functools.partial(self._over, name))
        return await asyncio.shield(task)

    def _over(self, name: str, task: asyncio.Task[DryRun]) -> None:
        self._running.pop(name, None)
        if not task.cancelled():
            task.exception()  # it has been told, or its caller has left

    async def _audited(self, record: ApprovalRecord, by: Principal) -> DryRun:
        self._note(record, by, {"outcome": "begun"})
        try:
            made = await self._tried(record)
        except DryRunRefused as refused:
            self._note(record, by, {"outcome": "refused", "reason": str(refused)[:2000]})
            raise
        except BaseException as error:
            self._note(record, by, {"outcome": "failed", "reason": type(error).__name__})
            raise
        told = {
            "affected_rows": made.affected,
            "tables": {each.table: [each.inserted, each.updated, each.deleted] for each in made.tables},
            "sqlstate": made.sqlstate,
        }
        self._note(record, by, {"outcome": "failed" if made.sqlstate else "rolled back", **told, "seconds": round(made.seconds, 3)})
        await self._desk.attach(record.name, {"dry_run": {"by": by.subject, "at": time.time(), **told}})
        return made

    def _note(self, record: ApprovalRecord, by: Principal, more: Mapping[str, Any]) -> None:
        who = {"by": by.subject, "acts_for": by.acts_for} if by.acts_for else {"by": by.subject}
        told = {"approval": record.name, "subject": record.subject, "database": record.database, "digest": record.digest}
        self._audit.record("approval.dry_run", {**told, **who, **more}, record.session)

    async def _tried(self, record: ApprovalRecord) -> DryRun:
        held = _restored(record)
        if why := self._examiner.first_look(held.text):
            raise DryRunRefused(why)
        login = self._logins.get(record.database)
        if login is None:
            raise DryRunRefused(f"the gateway has no login of its own for {record.database}")
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        try:
            made = await self._on_connections(loop, {**login, **_PARAMETERS}, record, held)
        except _Failed as failed:
            made = replace(self._failure(failed.body), seconds=time.monotonic() - began)
        except psycopg.Error as error:
            _log.warning("no dry run of %s: %s", record.name, " ".join(str(error).split()))
            raise DryRunRefused("the database could not be asked for it") from error
        if record.binding.get("transaction") == "T":
            made = replace(made, notes=(*made.notes, _OPEN_TRANSACTION))
        return made

    def _failure(self, body: bytes) -> DryRun:
        fields = {each[:1]: each[1:].decode("utf-8", "replace") for each in self._scrub(b"E", body).split(b"\0") if each}
        return DryRun(sqlstate=fields.get(b"C", "XX000"), error=fields.get(b"M", ""), constraint=fields.get(b"n", ""))

    async def _on_connections(
        self, loop: asyncio.AbstractEventLoop, login: Mapping[str, str | int], record: ApprovalRecord, held: _Held
    ) -> DryRun:
        opened: list[Connection] = []
        try:
            opened.append(await loop.run_in_executor(self._threads, open_connection, login, False))
            opened.append(await loop.run_in_executor(self._threads, open_connection, login, True))
            trying, beside = opened
            await loop.run_in_executor(self._threads, _prepare, trying, held)

            def fetch(query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
                return trying.execute(query, values).fetchall()

            trial = await self._examiner.examine(record.database, held.text, held.path, fetch)
            if trial.reasons:
                raise DryRunRefused("; ".join(trial.reasons[:20]))
            return await loop.run_in_executor(self._threads, _execute, trying, beside, held, trial)
        finally:
            for connection in opened:
                await loop.run_in_executor(self._threads, _end, connection)


def _restored(record: ApprovalRecord) -> _Held:
    """Raises ``DryRunRefused`` where what is kept is not all that the statement is."""
    binding = record.binding
    standing: Mapping[str, str] = binding.get("standing", {})
    formats = list(binding.get("parameter_formats", ()))
    formats = [*formats, *(0 for _ in record.parameters)][: len(record.parameters)]
    if standing.get("temporary"):
        raise DryRunRefused("the session has temporary tables, which only it sees")
    if " | " in standing.get("search_path", "") or "search_path" not in standing:
        raise DryRunRefused("it is not certain which search_path holds")
    values: list[bytes | None] = []
    for value, code in zip(record.parameters, formats, strict=True):
        binary = code != 0 and value is not None
        values.append(None if value is None else base64.b64decode(value.removeprefix("base64:")) if binary else value.encode())
    plain = [value for value, code in zip(record.parameters, formats, strict=True) if value is not None and code == 0]
    if any("\ufffd" in each for each in (record.statement, *plain)):
        raise DryRunRefused("its text or one of its values is not plain UTF-8")
    types = [*binding.get("parameter_types", ()), *(0 for _ in values)][: len(values)]
    path = tuple(name for name in standing["search_path"].split(", ") if name)
    kept = Binding(standing={"search_path": standing["search_path"]})
    settings = _settings(standing.get("settings", ""))
    return _Held(
        record.statement.encode(), values, [pq.Format(code) for code in formats], types, path, standing.get("role", ""), settings, kept
    )


def _settings(told: str) -> tuple[tuple[str, str], ...]:
    found = []
    for each in re.split(r", (?=[A-Za-z_][A-Za-z0-9_.]*=)", told) if told else ():
        name, _, value = each.partition("=")
        sure = _PLAIN_VALUE.fullmatch(value) and not value.endswith(" local") and not value.startswith("not known") and value != "default"
        if name.lower() not in _TAKEN_OVER or not sure:
            raise DryRunRefused(f"the session has changed {name}")
        found.append((name, value))
    return tuple(found)


def _prepare(connection: Connection, held: _Held) -> None:
    """Become the session's role and have the statement parsed, which keeps its table as it is. Raises ``_Failed``."""
    set_standing(connection, held.binding)
    for name, value in held.settings:
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
    try:
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(held.role)))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject) as error:
        raise DryRunRefused(f"the gateway's own login may not act as {held.role}, the session's role at the server") from error
    result = connection.pgconn.prepare(_NAME, held.text, held.types or None)
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise _Failed(result)
    connection.execute(_NO_PATH)


def _execute(connection: Connection, beside: Connection, held: _Held, trial: Trial) -> DryRun:
    """Run it, look at what it did, and roll back. Raises ``_Failed``."""
    began = time.monotonic()
    deadline = began + _LONGEST
    notes: tuple[str, ...] = ()
    set_standing(connection, held.binding)  # as it was when the statement was parsed
    result = _run(connection.pgconn, held, deadline)
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise _Failed(result)
    affected = result.command_tuples
    limit(connection, deadline)
    result = connection.pgconn.exec_(b"SET CONSTRAINTS ALL IMMEDIATE")
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise _Failed(result)
    samples: tuple[Row, ...] = ()
    changes: tuple[TableChange, ...] = ()
    try:
        connection.execute(_NO_PATH)
        connection.execute("SET LOCAL ROLE NONE")
        changes = tuple(TableChange(*row) for row in connection.execute(_CHANGES).fetchall())
        if trial.table and affected:
            wanted = Sampling(trial.kind, trial.schema, trial.table, trial.columns, trial.computed, deadline)
            samples = sampled(connection, beside, wanted)
        elif affected:
            notes = ("no rows are shown, since it writes through a view",)
    except psycopg.errors.QueryCanceled:
        notes = ("no rows are shown: they were not found in time",)
    except psycopg.errors.InsufficientPrivilege:
        notes = ("no rows are shown: the gateway's own login may not read them",)
    except psycopg.Error as error:
        notes = (f"no rows are shown: looking for them failed with {error.sqlstate or 'a lost connection'}",)
    finally:
        connection.pgconn.exec_(b"ROLLBACK")
    return DryRun(affected, changes, samples, notes=notes, seconds=time.monotonic() - began)


def _run(connection: pq.abc.PGconn, held: _Held, deadline: float) -> pq.abc.PGresult:
    """The statement's last result; its rows are let go one by one. Raises ``psycopg.OperationalError``."""
    connection.send_query_prepared(_NAME, held.values, held.formats or None)
    connection.set_single_row_mode()
    while connection.flush():
        select.select([], [connection.socket], [], 1.0)
    last: pq.abc.PGresult | None = None
    while True:
        while connection.is_busy():
            readable, _, _ = select.select([connection.socket], [], [], max(0.0, deadline + 2.0 - time.monotonic()))
            if not readable:
                raise psycopg.OperationalError("the server did not end it in time")
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            break
        last = result
    if last is None:
        raise psycopg.OperationalError("the server did not answer")
    return last


def _end(connection: Connection) -> None:
    """Roll back whatever there is, and close."""
    try:
        if connection.pgconn.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
            if connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                connection.pgconn.get_cancel().cancel()
            else:
                connection.pgconn.exec_(b"ROLLBACK")
    except psycopg.Error:
        _log.info("a dry run's connection was closed without a word; the server rolls back")
    finally:
        connection.close()

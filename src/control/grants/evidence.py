"""What an approver is told beyond the statement: its plan, its tables, the locks its transaction holds, the agent's recent work.

Found out through the gateway's own login, in a transaction that may only read and is rolled back; the statement itself is never
executed. Planning evaluates functions, so no plan is asked for where it could reach one that is not built in. Blocking: it runs in
threads. Never add here: anything that is executed for its effect.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import psycopg
from psycopg import pq

from control.grants.approvals import ApprovalDesk, Held
from control.store.feed import Overrun
from pgwire.ports import Binding, Statement

__all__ = ["EvidenceGatherer", "open_connection", "planning_is_safe", "set_standing"]

_log = logging.getLogger(__name__)
_PLANNED = frozenset({"select", "insert", "update", "delete", "merge", "values"})
_MOST_PLAN = 60_000  # bytes of a plan that are kept
_WORKERS = 2
_BACKLOG = 256  # holds whose evidence is waited for; more get none
_PARAMETERS: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "application_name": "pgleash evidence",
    "options": "-c statement_timeout=3000 -c lock_timeout=500 -c idle_in_transaction_session_timeout=10000 -c jit=off",
}

# Functions that planning could evaluate: not volatile, and of this database's own making.
_FUNCTIONS = """
SELECT p.proname::text,
       EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass AND d.refobjid = p.oid
               AND d.classid <> 'pg_catalog.pg_trigger'::regclass AND d.classid <> 'pg_catalog.pg_event_trigger'::regclass)
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384 AND p.provolatile <> 'v' AND l.lanname NOT IN ('internal', 'c')
"""
_RELATIONS = """
SELECT n.nspname || '.' || c.relname, c.reltuples::int8, c.relpages::int8 * 8192
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p', 'm')
"""
_LOCKS = """
SELECT n.nspname || '.' || c.relname, k.mode, k.granted
FROM pg_catalog.pg_locks k JOIN pg_catalog.pg_class c ON c.oid = k.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.pid = %s AND k.locktype = 'relation' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relkind <> 'i'
ORDER BY 1, 2 LIMIT 50
"""
_BLOCKED = "SELECT count(*) FROM pg_catalog.pg_locks k WHERE NOT k.granted AND %s = ANY (pg_catalog.pg_blocking_pids(k.pid))"


class Recent(Protocol):
    """The latest statements of a session, newest last. Blocking."""

    def __call__(self, session: int, most: int) -> list[str]: ...


class EvidenceGatherer:
    """Gathers for each new approval. ``logins`` are libpq parameters of the gateway's own login by database."""

    def __init__(self, desk: ApprovalDesk, logins: Mapping[str, Mapping[str, str | int]], recent: Recent | None = None) -> None:
        self._desk = desk
        self._logins = logins
        self._recent = recent
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="evidence")
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    with self._desk.asked.subscribe() as asked:
                        async for held in asked:
                            if len(self._tasks) < _BACKLOG:
                                task = asyncio.create_task(self._gather(held))
                                self._tasks.add(task)
                                task.add_done_callback(self._tasks.discard)
                except Overrun:
                    continue
        finally:
            for task in self._tasks:
                task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _gather(self, held: Held) -> None:
        login = self._logins.get(held.record.database)
        loop = asyncio.get_running_loop()
        try:
            if login is not None:
                found = await loop.run_in_executor(self._threads, gather, login, held)
                await self._desk.attach(held.record.name, found)
            if self._recent is not None:
                texts = await loop.run_in_executor(self._threads, self._recent, held.session.number, 20)
                await self._desk.attach(held.record.name, {"recent_statements": texts})
        except (psycopg.Error, OSError) as error:
            _log.warning("no evidence for %s: %s", held.record.name, " ".join(str(error).split()))
        except Exception:
            _log.exception("no evidence for %s", held.record.name)


def gather(login: Mapping[str, str | int], held: Held) -> dict[str, Any]:
    """All that is found out on a connection. Blocking. Raises ``psycopg.Error``."""
    found: dict[str, Any] = {
        "identity": {
            "subject": held.session.principal.subject,
            "acts_for": held.session.principal.acts_for,
            "groups": sorted(held.session.principal.groups),
            "issuer": held.session.principal.issuer,
            "application": held.session.application_name,
            "peer": held.session.peer.address,
            "session_started": held.session.started_at,
        }
    }
    with open_connection(login) as connection:
        tables = sorted({each["table"] for each in held.verdict.facts.get("tables", ())})
        found["relations"] = [
            {"table": table, "rows": rows if rows >= 0 else None, "bytes": size}
            for table, rows, size in connection.execute(_RELATIONS, (tables,)).fetchall()
        ]
        pid = held.session.server_pid
        locks = connection.execute(_LOCKS, (pid,)).fetchall()
        found["locks_held"] = [{"table": table, "mode": mode, "granted": granted} for table, mode, granted in locks]
        row = connection.execute(_BLOCKED, (pid,)).fetchone()
        found["sessions_blocked"] = row[0] if row is not None else 0
        refused = planning_is_safe(connection, held.verdict.facts)
        set_standing(connection, held.verdict.binding or Binding())
        types = _types(connection.pgconn, held.statement)
        if types is not None:
            found["parameter_types"] = types
        kinds = held.verdict.facts.get("kinds", ())
        if refused:
            found["plan_refused"] = refused
        elif kinds and all(kind in _PLANNED for kind in kinds):
            found |= _plan(connection.pgconn, held.statement)
    return found


def open_connection(login: Mapping[str, str | int], read_only: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in a transaction that is never committed. Use it as a context manager; leaving it closes it."""
    connection = _Uncommitted.connect(**{**_PARAMETERS, **login})  # type: ignore[arg-type]
    try:
        connection.read_only = read_only
        connection.execute("SELECT")
    except BaseException:
        connection.close()
        raise
    return connection


class _Uncommitted(psycopg.Connection[tuple[Any, ...]]):
    # psycopg's own would commit at the end of the block
    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self) -> None:
        raise RuntimeError("nothing is ever committed here")


def planning_is_safe(connection: psycopg.Connection[tuple[Any, ...]], facts: Mapping[str, Any]) -> str:
    """Why no plan may be asked for; empty: planning reaches nothing but what is built in."""
    own = connection.execute(_FUNCTIONS).fetchall()
    called = {str(name).rpartition(".")[2] for name in facts.get("functions", ())}
    for name, used in own:
        if name in called or used:
            return f"planning may evaluate the function {name}, which is not built in"
    return ""


def set_standing(connection: psycopg.Connection[tuple[Any, ...]], binding: Binding) -> None:
    """Names mean on this connection what they mean to the session."""
    path = binding.standing.get("search_path", "").partition(" | ")[0]
    names = [name for name in path.split(", ") if name]
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    connection.execute("SELECT pg_catalog.set_config('search_path', %s, true)", (quoted or '""',))


def _types(connection: pq.abc.PGconn, statement: Statement) -> list[int] | None:
    # Parsed, and by the extended protocol, which takes one statement only; nothing runs.
    if not statement.parameters:
        return []
    _savepoint(connection, b"SAVEPOINT pgleash")
    result = connection.prepare(b"", statement.text, list(statement.parameter_types) or None)
    types: list[int] | None = None
    if result.status == pq.ExecStatus.COMMAND_OK:
        described = connection.describe_prepared(b"")
        if described.status == pq.ExecStatus.COMMAND_OK:
            types = [described.param_type(index) for index in range(described.nparams)]
    _savepoint(connection, b"ROLLBACK TO SAVEPOINT pgleash")
    return types


def _plan(connection: pq.abc.PGconn, statement: Statement) -> dict[str, Any]:
    types = [*statement.parameter_types, *(0 for _ in statement.parameters)][: len(statement.parameters)]
    result = connection.exec_params(
        b"EXPLAIN (VERBOSE, FORMAT JSON) " + statement.text,
        list(statement.parameters),
        types,
        [pq.Format(code) for code in statement.parameter_formats] or None,
    )
    if result.status != pq.ExecStatus.TUPLES_OK:
        return {"plan_error": (result.error_message or b"").decode("utf-8", "replace").strip()[:1000]}
    text = (result.get_value(0, 0) or b"[]")[: 4 * _MOST_PLAN]
    try:
        (plan,) = json.loads(text)
    except ValueError:
        return {"plan_error": "the plan is too long to be shown"}
    top = plan["Plan"]
    changed = top["Plans"][0] if top.get("Node Type") == "ModifyTable" and top.get("Plans") else top
    found: dict[str, Any] = {"estimated_rows": changed.get("Plan Rows"), "estimated_cost": top.get("Total Cost")}
    if len(text) <= _MOST_PLAN:
        found["plan"] = top
    return found


def _savepoint(connection: pq.abc.PGconn, sql: bytes) -> None:
    result = connection.exec_(sql)
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.OperationalError((result.error_message or b"").decode("utf-8", "replace"))

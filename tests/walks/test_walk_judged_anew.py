"""Each execution is judged by what holds then: policies that change, times that begin and end, values, portals and prepared names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest

from fixtures.gateway import Agent
from kit.twins import OPEN_POLICY, Twins, answer_of, ending, open_stage
from kit.wire import bind, close, execute, message, parse, query, sync
from pgleash.demo.stage import POLICY, Stage
from pgleash.v1 import policy_pb2

NO_ORDERS = "\n  - {name: no-orders, who: {groups: [agents]}, tables: [public.orders], effect: deny}\n\nmasks:"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(customers=500) as made:
        yield made


def change(stage: Stage, policy: str) -> None:
    (stage.home / "policy.yaml").write_text(policy)
    with Agent(stage).api("operator") as api:
        api.policy.Reload(policy_pb2.ReloadRequest())


def test_a_policy_change_reaches_what_was_prepared(stage: Stage) -> None:
    text = "SELECT id FROM orders WHERE id = %s"
    with Agent(stage).connect() as connection:
        for _ in range(3):
            assert connection.execute(text, (1,), prepare=True).fetchone() == (1,)
        raw = connection.pgconn
        raw.prepare(b"kept", b"SELECT id FROM orders WHERE id = $1")
        change(stage, POLICY.replace("\nmasks:", NO_ORDERS, 1))
        for _ in range(2):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-orders"):
                connection.execute(text, (1,), prepare=True)
            assert b"no-orders" in raw.exec_prepared(b"kept", [b"1"]).error_message
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="no-orders"):
            psycopg.ClientCursor(connection).execute("SELECT id FROM orders WHERE id = 1")
        change(stage, POLICY)
        assert connection.execute(text, (1,), prepare=True).fetchone() == (1,)
        assert raw.exec_prepared(b"kept", [b"1"]).get_value(0, 0) == b"1"


def test_a_policy_change_reaches_an_open_portal_and_a_cursor(stage: Stage) -> None:
    async def walk() -> None:
        with Agent(stage).connect() as known:
            where, password = known.info.get_parameters(), known.info.password
        made = await asyncpg.connect(
            host=where["host"], port=int(where["port"]), user=where["user"], database=where["dbname"], password=password, ssl="require"
        )
        try:
            async with made.transaction():
                cursor = await made.cursor("SELECT id FROM orders ORDER BY id")
                assert [row["id"] for row in await cursor.fetch(2)] == [1, 2]
                await asyncio.to_thread(change, stage, POLICY.replace("\nmasks:", NO_ORDERS, 1))
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await cursor.fetch(2)
        except asyncpg.InFailedSQLTransactionError:
            pass
        finally:
            await made.close()

    asyncio.run(walk())


def test_a_time_ends_what_it_allowed(stage: Stage) -> None:
    """Cached verdicts too: the session asks the same text again and again until the window has closed."""
    closes = (datetime.now(UTC) + timedelta(seconds=62)).replace(second=0, microsecond=0)
    if (left := (closes - datetime.now(UTC)).total_seconds()) > 25:
        pytest.skip(f"the next full minute is {left:.0f} s away")
    hours = f'"{(closes - timedelta(hours=2)):%H:%M}-{closes:%H:%M}"'
    change(stage, POLICY.replace("    effect: allow\n", f"    when: {{times: {{hours: {hours}}}}}\n    effect: allow\n", 1))
    with Agent(stage).connect() as connection:
        while datetime.now(UTC) < closes - timedelta(milliseconds=50):
            assert connection.execute("SELECT id FROM orders WHERE id = 1", prepare=False).fetchone() == (1,)
            time.sleep(0.02)
        time.sleep(0.1)
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            connection.execute("SELECT id FROM orders WHERE id = 1", prepare=False)
        assert "another time" in str(caught.value.diag.message_hint)


BIG = "{name: big, who: {groups: [agents]}, tables: [public.orders], when: {parameters: {position: 1, gt: 100}}, effect: deny}"
VALUES = f"\n  - {BIG}\n\nmasks:"


def test_binary_values_of_types_that_nobody_told(stage: Stage) -> None:
    """asyncpg sends binary values and tells no types: what the server takes them for is found out."""
    change(stage, POLICY.replace("\nmasks:", VALUES, 1))

    async def walk() -> None:
        with Agent(stage).connect() as known:
            where, password = known.info.get_parameters(), known.info.password
        made = await asyncpg.connect(
            host=where["host"], port=int(where["port"]), user=where["user"], database=where["dbname"], password=password, ssl="require"
        )
        try:
            for cast in ("", "::int8", "::float8", "::numeric"):
                text = f"SELECT id FROM orders WHERE id = $1{cast}"
                assert [row["id"] for row in await made.fetch(text, 7)] == [7]
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="big"):
                    await made.fetch(text, 101)
                assert [row["id"] for row in await made.fetch(text, 8)] == [8]
            # Eight bytes that are a small int8 and a large float8: it is the server's reading that counts.
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="can't be evaluated"):
                await made.fetch("SELECT id FROM orders WHERE status = 'x' AND $1::bytea IS NOT NULL", b"\0")
        finally:
            await made.close()

    asyncio.run(walk())


DENIED = "SELECT 1 FROM pg_authid"  # by the gateway, when it is parsed
FAILING = "SELECT 1 FROM nowhere_at_all"  # by the server, at the same place
TOO_MANY = "UPDATE orders SET status = 'x' WHERE id <= 9 RETURNING id"  # by the gateway, when it has run
DIVIDING = "UPDATE orders SET status = (1 / (id - 10))::text WHERE id <= 10 AND id >= 10 RETURNING id"  # by the server, when it runs


def _run(text: str, limit: int = 0) -> bytes:
    return parse(text) + bind() + execute(limit=limit)


CASES: dict[str, Any] = {
    "simple": query,
    "simple in a transaction": lambda bad: query("BEGIN") + query(bad) + query("SELECT 1") + query("COMMIT") + query("SELECT 2"),
    "simple at a savepoint": lambda bad: query("BEGIN") + query("SAVEPOINT s") + query(bad) + query("ROLLBACK TO s") + query("COMMIT"),
    "extended": lambda bad: _run(bad) + sync() + query("SELECT 2"),
    "extended in a transaction": lambda bad: query("BEGIN") + _run(bad) + sync() + _run("SELECT 1") + sync() + query("COMMIT"),
    "in a pipeline": lambda bad: _run("SELECT 1") + _run(bad) + _run("SELECT 3") + sync() + _run("SELECT 4") + sync(),
    "behind a flush": lambda bad: _run("SELECT 1") + message(b"H") + _run(bad) + message(b"H") + _run("SELECT 3") + sync(),
    "named": lambda bad: parse(bad, "n") + sync() + bind(statement="n") + execute() + sync() + close("S", "n") + sync(),
    "a goodbye behind": lambda bad: query("BEGIN") + query(bad) + sync(),
}


def _told(answer: Any) -> list[str]:
    """The kinds in order, with the status of each ReadyForQuery; rows, notices and parameters left out."""
    return [one.kind + (one.body.decode() if one.kind == "Z" else "") for one in answer.messages if one.kind not in "NSADT"]


def _compare(stage: Stage, name: str, ours: str, theirs: str) -> None:
    with Twins(stage) as twins:
        twins.direct.send(CASES[name](theirs) + ending())
        twins.gateway.send(CASES[name](ours) + ending())
        one, two = answer_of(twins.direct), answer_of(twins.gateway)
        assert (_told(two), two.end) == (_told(one), one.end)


@pytest.fixture(scope="module")
def wired() -> Iterator[Stage]:
    limited = OPEN_POLICY.replace("effect: allow, tables", "effect: allow, obligations: {max_affected: 3}, tables", 1)
    limited = limited.replace("  - {name: any-function, effect: allow, when: {functions: ['*']}}\n", "")
    with open_stage(policy=limited) as stage:
        yield stage


@pytest.mark.parametrize("name", CASES)
def test_a_denial_has_the_sequence_of_an_error(wired: Stage, name: str) -> None:
    _compare(wired, name, DENIED, FAILING)


@pytest.mark.parametrize("name", [name for name in CASES if name != "named"])
def test_a_limit_has_the_sequence_of_an_error_when_it_runs(wired: Stage, name: str) -> None:
    _compare(wired, name, TOO_MANY.replace(" RETURNING id", ""), DIVIDING.replace(" RETURNING id", ""))


def test_a_limited_execute_does_not_hide_what_was_changed(wired: Stage) -> None:
    with Twins(wired) as twins:
        twins.gateway.send(_run(TOO_MANY, limit=1) + sync() + ending())
        assert "E" in answer_of(twins.gateway).kinds
    with psycopg.connect(wired.server.dsn("shop")) as direct:
        assert direct.execute("SELECT count(*) FROM orders WHERE status = 'x'").fetchone() == (0,)

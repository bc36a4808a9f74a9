"""A session behind the gateway answers any sequence of messages as PostgreSQL does, and a masked one shows nothing more."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import psycopg
import pytest

from kit.sessions import CASES, FLUSH, GOOD, LEAKS, runs
from kit.twins import Twins, answer_of, difference, ending
from kit.wire import WireClient, bind, error_fields, execute, message, parse, query, sync
from pgleash.demo.stage import Stage

LO_OPEN = 952  # its OID: a function that no general rule opens


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_answers_are_the_servers(twins: Twins, name: str) -> None:
    assert difference(*twins.both(b"".join(CASES[name]))) == ""


def test_a_function_call_is_refused_and_changes_nothing(open_gateway: Stage) -> None:
    call = message(b"F", struct.pack("!Ihhh", LO_OPEN, 0, 0, 0))
    with WireClient("127.0.0.1", open_gateway.port) as client:
        client.login("agent-7", "shop", open_gateway.token())
        client.send(parse("SELECT 1") + sync() + call + bind() + execute() + sync() + query("BEGIN") + call + query("SELECT 1") + ending())
        assert answer_of(client).kinds == "1ZEZ2DCZCZEZEZZCZTDCZ"


def _sum(*numbers: int, oid: int = 177) -> bytes:
    arguments = b"".join(struct.pack("!ii", 4, number) for number in numbers)
    return message(b"F", struct.pack("!Ihhh", oid, 1, 1, len(numbers)) + arguments + struct.pack("!h", 1))


@pytest.mark.parametrize(
    "data",
    [
        _sum(2, 40),
        query("BEGIN") + _sum(2, 40) + _sum(2**31 - 1, 1) + _sum(1, 1) + query("ROLLBACK") + _sum(1, 2),
        parse("SELECT 1") + bind() + sync() + _sum(1, 2) + bind() + execute() + sync(),
        _sum(1) + _sum(1, 2, 3) + _sum(1, 2),
    ],
    ids=["alone", "in a transaction", "between statements", "of another number of arguments"],
)
def test_a_function_call_that_is_allowed_is_answered_as_the_server_does(twins: Twins, data: bytes) -> None:
    assert difference(*twins.both(data + query("SELECT 1"))) == ""


def test_a_function_call_is_judged_as_the_select_of_that_function(open_gateway: Stage, masked_gateway: Stage) -> None:
    for stage, call, sqlstate in (
        (open_gateway, _sum(oid=LO_OPEN), "42501"),
        (open_gateway, _sum(oid=4_000_000_000), "42883"),
        (masked_gateway, _sum(2, 40), "42501"),
    ):
        with WireClient("127.0.0.1", stage.port) as client:
            client.login("agent-7", "shop", stage.token())
            client.send(call)
            got = client.until("Z")
            assert [one.kind for one in got] == ["E", "Z"] and error_fields(got[0].body)["C"] == sqlstate


def test_a_denied_statement_is_skipped_to_the_sync(masked_gateway: Stage) -> None:
    with WireClient("127.0.0.1", masked_gateway.port) as client:
        client.login("agent-7", "shop", masked_gateway.token())
        client.send(
            parse("SELECT 1")
            + sync()
            + parse("SELECT 2", "kept")
            + runs("DROP SCHEMA x")
            + runs("SELECT 3", "n")
            + query("SELECT 4")
            + sync()
        )
        client.send(bind() + execute() + sync() + bind(statement="kept") + execute() + sync() + bind(statement="n") + sync() + ending())
        assert answer_of(client).kinds == "1Z1EZEZ2DCZEZZCZTDCZ"


@pytest.mark.parametrize("name", sorted(LEAKS))
def test_no_masked_value_passes(masked_gateway: Stage, name: str) -> None:
    with WireClient("127.0.0.1", masked_gateway.port) as client:
        client.login("agent-7", "shop", masked_gateway.token())
        client.send(b"".join(LEAKS[name]) + ending())
        answer = answer_of(client)
        assert answer.end in ("ready", "closed") and answer.messages
        assert b"CANARY" not in b"".join(one.body for one in answer.messages) + answer.rest


@pytest.mark.parametrize("how", ["MOVE ALL IN p", "FETCH ALL FROM p", "MOVE 1 IN p"])
def test_a_bound_statement_is_judged_before_a_cursor_command_runs_it(masked_gateway: Stage, how: str) -> None:
    with psycopg.connect(masked_gateway.server.dsn("shop"), autocommit=True) as direct:
        before = direct.execute("SELECT count(*) FROM orders").fetchone()
        with WireClient("127.0.0.1", masked_gateway.port) as client:
            client.login("agent-7", "shop", masked_gateway.token())
            client.send(
                query("BEGIN") + parse("DELETE FROM orders RETURNING id") + bind(portal="p") + sync() + query(how) + query("COMMIT")
            )
            told = answer_of(client, patience=5, quiet=1.0)
            assert any(one.kind == "N" and b"statement held" in one.body for one in told.messages)
        assert direct.execute("SELECT count(*) FROM orders").fetchone() == before


SLEEPS: dict[str, bytes] = {
    "simple": query("SELECT pg_sleep(30)"),
    "extended": runs("SELECT pg_sleep(30)") + sync(),
    "without sync": runs("SELECT pg_sleep(30)"),
    "in a pipeline": runs("SELECT 1") + sync() + runs("SELECT pg_sleep(30)") + runs("SELECT 2") + sync() + query("SELECT 3"),
    "a text of several": query("SELECT 1; SELECT pg_sleep(30); SELECT 2"),
    "in a message": runs("SELECT pg_sleep(30)") + sync() + query("SELECT 1")[:-4],
    "while its next waits": query("SELECT pg_sleep(30)") + query("LISTEN x"),
    "in a copy": query("COPY lines FROM STDIN") + GOOD,
    "in a copy out": query("COPY (SELECT pg_sleep(30)) TO STDOUT"),
    "in a transaction": query("BEGIN") + query("SELECT pg_sleep(30)"),
}


@pytest.fixture
def sleeper(open_gateway: Stage) -> Iterator[WireClient]:
    """A gateway session with a table ``lines``."""
    with WireClient("127.0.0.1", open_gateway.port) as client:
        client.login("agent-7", "shop", open_gateway.token())
        client.run("CREATE TEMP TABLE lines (a int PRIMARY KEY, b text)")
        yield client


def backend(client: WireClient) -> int:
    row = next(one for one in client.run("SELECT pg_backend_pid()") if one.kind == "D")
    return int(row.body[6:])


@pytest.mark.parametrize("name", sorted(SLEEPS))
def test_a_client_that_dies_ends_what_it_runs(open_gateway: Stage, sleeper: WireClient, name: str) -> None:
    pid = backend(sleeper)
    sleeper.send(SLEEPS[name])
    time.sleep(0.15)
    sleeper.socket.close()
    with psycopg.connect(open_gateway.server.dsn("shop"), autocommit=True) as direct:
        for _ in range(20):
            if direct.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None:
                return
            time.sleep(0.05)
    pytest.fail("its backend still lives after a second")


@pytest.mark.parametrize("name", [*sorted(SLEEPS), "idle"])
def test_a_server_that_dies_is_told_at_once(open_gateway: Stage, sleeper: WireClient, name: str) -> None:
    pid = backend(sleeper)
    sleeper.send(SLEEPS.get(name, b""))
    time.sleep(0.15)
    with psycopg.connect(open_gateway.server.dsn("shop"), autocommit=True) as direct:
        direct.execute("SELECT pg_terminate_backend(%s)", (pid,))
    answer = answer_of(sleeper, patience=3)
    assert answer.end == "closed"
    assert [error_fields(one.body)["C"] for one in answer.messages if one.kind == "E"][-1:] in (["57P01"], ["08006"])


def test_what_was_sent_before_goodbye_is_done(open_gateway: Stage) -> None:
    with psycopg.connect(open_gateway.server.dsn("shop"), autocommit=True) as direct:
        direct.execute("CREATE TABLE goodbye (a int); ALTER TABLE goodbye OWNER TO shop_owner")
        try:
            with WireClient("127.0.0.1", open_gateway.port) as client:
                client.login("agent-7", "shop", open_gateway.token())
                client.run("INSERT INTO goodbye SELECT 0")
                client.send(query("INSERT INTO goodbye SELECT 1 FROM pg_sleep(0.3)") + message(b"X"))
            for _ in range(30):
                if direct.execute("SELECT count(*) FROM goodbye").fetchone() == (2,):
                    return
                time.sleep(0.1)
            pytest.fail("it was not done")
        finally:
            direct.execute("DROP TABLE goodbye")


def test_asynchronous_messages_come_at_any_moment(open_gateway: Stage, sleeper: WireClient) -> None:
    sleeper.run("LISTEN news")
    with psycopg.connect(open_gateway.server.dsn("shop"), autocommit=True) as direct:
        direct.execute("NOTIFY news, 'idle'")
        assert sleeper.receive().kind == "A"
        direct.execute("NOTIFY news, 'in a pipeline'")
        pieces = [
            parse("SELECT 1"),
            FLUSH,
            bind(),
            execute(),
            FLUSH,
            sync(),
            query("SET application_name = 'other'"),
            runs("SELECT 2"),
            sync(),
        ]
        for piece in pieces:
            sleeper.send(piece)
            direct.execute("NOTIFY news, 'more'")
        sleeper.send(query("DO $$ BEGIN RAISE NOTICE 'n'; RAISE WARNING 'w'; END $$") + ending())
    answer = answer_of(sleeper)
    assert answer.kinds == "12DCZCZ12DCZCZZCZTDCZ" and answer.end == "ready"
    others = [one.kind for one in answer.messages if one.kind in "NSA"]
    assert others.count("A") >= len(pieces) and others.count("N") >= 2 and "S" in others


def test_many_small_tls_records_at_once(open_gateway: Stage) -> None:
    """What TLS has read is used though nothing more comes, whatever the messages before it wait for."""
    with WireClient("127.0.0.1", open_gateway.port) as client:
        client.secure(str(open_gateway.certificates.ca))
        client.login("agent-7", "shop", open_gateway.token())
        for turn in range(20):
            for number in range(12):
                client.send(
                    query(f"SELECT {turn} AS n{turn}_{number}") if number % 3 else query(f"SET application_name = 'a{turn}{number}'")
                )
            for _ in range(12):
                client.until("Z")

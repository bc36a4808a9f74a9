"""A session behind the gateway answers any sequence of messages as PostgreSQL does, and a masked one shows nothing more."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import psycopg
import pytest

from kit.twins import Twins, answer_of, difference, ending
from kit.wire import WireClient, bind, close, describe, error_fields, execute, message, parse, query, sync
from pgleash.demo.stage import Stage

COPY = "COPY lines FROM STDIN"
GOOD = message(b"d", b"7\tseven\n")
BAD = message(b"d", b"x\tx\n")
DONE = message(b"c")
FAIL = message(b"f", b"never mind\0")
FLUSH = message(b"H")
FIVE = "SELECT generate_series(1, 5)"


def runs(sql: str, name: str = "") -> bytes:
    return parse(sql, name) + bind(statement=name) + execute()


CASES: dict[str, tuple[bytes, ...]] = {
    # an error while the next message waits for its verdict
    "error before a new statement": (bind(statement="missing"), query("NOTIFY x"), sync(), query("SELECT email FROM customers LIMIT 1")),
    "error before several": (bind(statement="missing"), runs("SELECT 11"), query("SELECT 12"), sync(), runs("SELECT 13"), sync()),
    "errors between syncs": (runs("SELECT 1"), runs("SELECT 1/0"), runs("SELECT 2"), sync(), runs("SELECT 3"), sync(), runs("x"), sync(), sync()),
    "flush without sync": (parse("SELECT 1"), FLUSH, bind(), FLUSH, execute(), FLUSH, runs("SELECT 1/0"), FLUSH, runs("SELECT 2")),
    "query inside a pipeline": (parse("SELECT 1"), bind(), query("SELECT 2"), execute(), sync(), query("SELECT 3")),
    "failing query inside a pipeline": (parse("SELECT 1", "a"), query("SELECT 1/0"), bind(statement="a"), execute(), sync()),
    # portals
    "suspended again and again": (parse(FIVE), bind(), *(execute("", 2) for _ in range(4)), sync()),
    "suspended over flushes": (query("BEGIN"), parse(FIVE), bind(portal="p"), execute("p", 1), FLUSH, execute("p", 3), sync(), execute("p", 3), sync()),
    "portals end with the pipeline": (parse(FIVE), bind(portal="p"), execute("p", 1), sync(), execute("p", 1), sync(), bind(portal="p"), sync()),
    "a named portal twice": (query("BEGIN"), parse(FIVE), bind(portal="p"), bind(portal="p"), sync(), query("ROLLBACK"), bind(portal="p"), sync()),
    "describe and execute in a failed transaction": (
        query("BEGIN"), parse(FIVE, "s"), bind(portal="p", statement="s"), sync(), query("SELECT 1/0"), describe("P", "p"), sync(),
        execute("p"), sync(), describe("S", "s"), sync(), parse("ROLLBACK"), bind(), execute(), sync(),
    ),
    # empty queries, several statements
    "empty": (query(""), query(" ; "), parse(""), bind(), describe("P"), execute(), describe("S"), sync()),
    "several statements": (query("SELECT 1; SELECT 2; ; SELECT 3"), query("SELECT 1; SELECT 1/0; SELECT 2"), query("SELECT 1; x")),
    "a transaction inside a text": (query("BEGIN; SELECT 1; COMMIT; SELECT 1/0"), query("BEGIN; SELECT 1/0; COMMIT"), query("COMMIT")),
    "implicit transaction": (
        runs("INSERT INTO lines VALUES (1)"), runs("INSERT INTO lines VALUES (1)"), sync(), query("SELECT count(*) FROM lines"),
        runs("INSERT INTO lines VALUES (1)"), sync(), query("SELECT count(*) FROM lines"),
    ),
    "transaction in a pipeline": (runs("BEGIN"), runs("SELECT 1/0"), sync(), runs("SELECT 1"), sync(), runs("COMMIT"), sync()),
    # missing names, failed Parse
    "missing names": (describe("S", "x"), sync(), describe("P", "x"), sync(), close("S", "x"), close("P", "x"), execute("x"), sync(), bind(), sync()),
    "parse fails": (parse("SELEC", "a"), bind(statement="a"), execute(), sync(), bind(statement="a"), execute(), sync()),
    "parse of the unnamed fails": (parse("SELECT 1"), sync(), parse("SELEC"), sync(), bind(), execute(), sync()),
    "parse again": (parse("SELECT 1", "a"), sync(), parse("SELECT 2", "a"), sync(), bind(statement="a"), execute(), sync()),
    "parse behind a failing one": (parse("SELECT 1", "a"), parse("SELECT 2", "a"), parse("SELECT 3", "b"), sync(), runs("SELECT 4", "b"), sync()),
    "query drops the unnamed": (parse("SELECT 1"), sync(), query("SELECT 2"), bind(), execute(), sync()),
    "empty query and the unnamed": (query("BEGIN"), parse(FIVE), bind(), query(""), execute("", 1), sync(), bind(), sync()),
    "close in a pipeline": (parse("SELECT 1", "a"), bind(statement="a"), close("S", "a"), execute(), close("P"), execute(), sync()),
    # one namespace
    "PREPARE and Bind": (query("PREPARE s AS SELECT 1 AS a"), bind(statement="s"), describe("P"), execute(), sync(), close("S", "s"), sync(), query("EXECUTE s")),
    "Parse and EXECUTE": (parse("SELECT 2", "t"), sync(), query("EXECUTE t"), query("DEALLOCATE t"), bind(statement="t"), sync(), query("EXECUTE t")),
    "PREPARE of a parsed name": (parse("SELECT 2", "t"), sync(), query("PREPARE t AS SELECT 3"), query("EXECUTE t"), query("DEALLOCATE ALL"), query("EXECUTE t")),
    "a text that fails behind PREPARE": (query("PREPARE q AS SELECT 1; SELECT 1/0"), query("EXECUTE q"), query("DEALLOCATE q; PREPARE q AS SELECT 2; x()"),
                                         query("EXECUTE q")),
    "long names": (parse("SELECT 1", "n" * 70), bind(statement="n" * 63), execute(), sync(), query("EXECUTE " + "n" * 80), query("DEALLOCATE " + "n" * 64),
                   bind(statement="n" * 70), sync()),
    "names of two bytes a letter": (query('PREPARE "' + "é" * 40 + '" AS SELECT 1'), bind(statement="é" * 31), execute(), sync(), bind(statement="é" * 32), sync()),
    "DECLARE, Describe, Execute": (query("BEGIN"), query(f"DECLARE c CURSOR FOR {FIVE}"), describe("P", "c"), execute("c", 2), sync(), query("FETCH 1 FROM c"),
                                   close("P", "c"), sync(), query("FETCH 1 FROM c")),
    "Bind and FETCH": (query("BEGIN"), parse(FIVE), bind(portal="p"), execute("p", 1), sync(), query("FETCH 2 FROM p"), query("MOVE 1 IN p"), execute("p"),
                       sync(), query("CLOSE p"), execute("p"), sync()),
    "cursors end": (query("BEGIN"), query(f"DECLARE c CURSOR FOR {FIVE}"), query("COMMIT"), query("FETCH c"), execute("c"), sync(),
                    query(f"DECLARE c CURSOR FOR {FIVE}"), query("FETCH c")),
    "WITH HOLD": (query(f"DECLARE c CURSOR WITH HOLD FOR {FIVE}"), query("FETCH 1 FROM c"), execute("c", 1), sync(), query("BEGIN; ROLLBACK"), execute("c", 1),
                  sync(), query("CLOSE ALL"), query("FETCH 1 FROM c"), execute("c"), sync()),
    "WITH HOLD, rolled back": (query("BEGIN"), query(f"DECLARE c CURSOR WITH HOLD FOR {FIVE}"), query("ROLLBACK"), query("FETCH 1 FROM c"), execute("c"), sync()),
    "WITH HOLD, committed": (query("BEGIN"), query(f"DECLARE c CURSOR WITH HOLD FOR {FIVE}"), query("COMMIT"), query("BEGIN"), query("ROLLBACK"),
                             query("FETCH 1 FROM c"), execute("c", 1), sync()),
    "savepoints": (query("BEGIN"), query(f"DECLARE c CURSOR FOR {FIVE}"), query("SAVEPOINT a"), query(f"DECLARE d CURSOR FOR {FIVE}"), query("SAVEPOINT b"),
                   query("SELECT 1/0"), query("ROLLBACK TO a"), query("FETCH 1 FROM c"), execute("c", 1), sync(), query("FETCH 1 FROM d")),
    "DISCARD": (parse("SELECT 1", "k"), sync(), query("DISCARD ALL"), bind(statement="k"), sync(), query("EXECUTE k")),
    "EXECUTE inside a text": (query("PREPARE z AS SELECT 1; EXECUTE z; DEALLOCATE z; EXECUTE z"), query("BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT")),
    # COPY
    "copy, then a query at once": (query(COPY), query("SELECT 1"), query("SELECT 2")),
    "copy, data, a query": (query(COPY), GOOD, query("SELECT 1"), query("SELECT 2")),
    "copy, bad data, a query": (query(COPY), BAD, query("SELECT 1"), DONE, query("SELECT 2")),
    "copy in a pipeline, a query": (runs(COPY), query("SELECT 1"), sync()),
    "copy in a pipeline, more": (runs(COPY), runs("SELECT 1"), sync(), query("SELECT 2")),
    "copy in a pipeline, good": (runs(COPY), sync(), GOOD, DONE, sync(), query("TABLE lines")),
    "copy in a pipeline, bad": (runs(COPY), sync(), BAD, sync(), DONE, sync(), query("TABLE lines")),
    "copy that skips behind its syncs": (runs(COPY), sync(), sync(), GOOD, FAIL, query("SELECT 1"), sync(), query("SELECT 2")),
    "copy that fails at once": (runs(COPY), sync(), sync(), sync(), BAD, DONE, query("SELECT 1")),
    "copy that fails at its end": (runs(COPY), GOOD, sync(), GOOD, sync(), DONE, sync(), sync(), query("SELECT 1")),
    "simple copy with syncs": (query(COPY), sync(), BAD, sync(), FLUSH, DONE, sync(), query("SELECT 1")),
    "simple copy that the client fails": (query(COPY), sync(), GOOD, sync(), FAIL, sync(), query("SELECT 1")),
    "two copies in a text": (query(f"{COPY}; {COPY}"), GOOD, DONE, message(b"d", b"8\tx\n"), sync(), DONE, query("TABLE lines")),
    "two copies, the first fails": (query(f"{COPY}; {COPY}"), BAD, DONE, GOOD, DONE, query("TABLE lines")),
    "copy that does not begin": (query("COPY nowhere FROM STDIN"), GOOD, DONE, runs("COPY nowhere FROM STDIN"), sync(), GOOD, DONE, query("SELECT 1")),
    "copy behind an error": (bind(statement="missing"), runs(COPY), sync(), GOOD, DONE, query("SELECT 1")),
    "copy behind others": (runs("SELECT 1"), runs(COPY), sync(), GOOD, DONE, sync(), query("TABLE lines")),
    "copy in a transaction": (query("BEGIN"), query(COPY), GOOD, FAIL, query("SELECT 1"), query("ROLLBACK"), query("TABLE lines")),
    "copy, then goodbye": (query(COPY), GOOD, message(b"X")),
    "copy data outside": (GOOD, DONE, FAIL, query("SELECT 1"), runs("COPY lines TO STDOUT"), sync(), query("COPY lines TO STDOUT; SELECT 1")),
    # the end
    "goodbye": (query("SELECT 1"), runs("INSERT INTO lines VALUES (1)"), sync(), message(b"X"), query("SELECT 2")),
    "goodbye while skipping": (bind(statement="missing"), query("SELECT 1"), message(b"X")),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_answers_are_the_servers(twins: Twins, name: str) -> None:
    assert difference(*twins.both(b"".join(CASES[name]))) == ""


def test_a_function_call_is_refused_and_changes_nothing(open_gateway: Stage) -> None:
    call = message(b"F", struct.pack("!Ihhh", 1598, 0, 0, 0))
    with WireClient("127.0.0.1", open_gateway.port) as client:
        client.login("agent-7", "shop", open_gateway.token())
        client.send(parse("SELECT 1") + sync() + call + bind() + execute() + sync() + query("BEGIN") + call + query("SELECT 1") + ending())
        assert answer_of(client).kinds == "1ZEZ2DCZCZEZEZZCZTDCZ"


def test_a_denied_statement_is_skipped_to_the_sync(masked_gateway: Stage) -> None:
    with WireClient("127.0.0.1", masked_gateway.port) as client:
        client.login("agent-7", "shop", masked_gateway.token())
        client.send(parse("SELECT 1") + sync() + parse("SELECT 2", "kept") + runs("DROP SCHEMA x") + runs("SELECT 3", "n") + query("SELECT 4") + sync())
        client.send(bind() + execute() + sync() + bind(statement="kept") + execute() + sync() + bind(statement="n") + sync() + ending())
        assert answer_of(client).kinds == "1Z1EZEZ2DCZEZZCZTDCZ"


LEAKS: dict[str, tuple[bytes, ...]] = {
    "a name prepared anew in a text that fails": (
        parse("SELECT 'x' AS email", "s"), sync(), query("DEALLOCATE s; PREPARE s AS SELECT email FROM customers; SELECT 1/0"),
        bind(statement="s"), execute(), sync(), query("EXECUTE s"),
    ),
    "the second result of a text": (query("SET application_name = 'x'; SELECT email || '' AS e FROM customers; SELECT 'a' AS e"),),
    "a parsed name by EXECUTE": (parse("SELECT email FROM customers", "s"), sync(), query("EXECUTE s"), runs("EXECUTE s"), sync()),
    "a cursor by Execute": (query("BEGIN"), query("DECLARE c BINARY CURSOR FOR SELECT email, notes FROM customers"), execute("c", 3), sync(), query("FETCH 3 FROM c")),
    "a portal by FETCH": (query("BEGIN"), parse("SELECT email FROM customers"), bind(portal="p"), sync(), query("FETCH 3 FROM p"), execute("p"), sync()),
    "a verdict of another message": (bind(statement="missing"), query("NOTIFY x"), sync(), query("SELECT email FROM customers LIMIT 1")),
    "behind a copy": (query("COPY orders FROM STDIN"), query("SELECT 1"), query("SELECT email FROM customers"), query("SELECT email FROM customers")),
    "behind a copy that failed": (
        runs("COPY orders FROM STDIN"), sync(), sync(), BAD, sync(), DONE, query("SELECT email FROM customers"), sync(), query("SELECT 1"), query("SELECT email FROM customers"),
    ),
    "a settled name": (query("PREPARE s AS SELECT 1"), query("DEALLOCATE s"), query("PREPARE s AS SELECT email FROM customers"), bind(statement="s"), execute(), sync()),
    "RETURNING": (query("BEGIN"), runs("UPDATE customers SET email = email WHERE id < 4 RETURNING email"), sync(), query("DELETE FROM customers WHERE id = 1 RETURNING *")),
    "a table of the transaction": (query("BEGIN"), query("SELECT email AS e INTO TEMP stolen FROM customers"), query("SELECT e FROM stolen")),
}  # fmt: skip


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
            client.send(query("BEGIN") + parse("DELETE FROM orders RETURNING id") + bind(portal="p") + sync() + query(how) + query("COMMIT"))
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
        pieces = [parse("SELECT 1"), FLUSH, bind(), execute(), FLUSH, sync(), query("SET application_name = 'other'"), runs("SELECT 2"), sync()]
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
                client.send(query(f"SELECT {turn} AS n{turn}_{number}") if number % 3 else query(f"SET application_name = 'a{turn}{number}'"))
            for _ in range(12):
                client.until("Z")

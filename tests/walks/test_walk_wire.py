"""The wire through a whole gateway: what drivers rely on, and what no driver would send."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import asyncpg
import psycopg
import pytest

from fixtures.gateway import Agent
from kit.wire import WireClient, bind, describe, error_fields, execute, message, parse, query, row_values, sync
from pgleash.demo.stage import Stage


def wire(stage: Stage, who: str = "analyst") -> WireClient:
    client = WireClient("127.0.0.1", stage.port)
    client.secure(str(stage.certificates.ca))
    client.login({"agent": "agent-7", "analyst": "analyst-1"}[who], "shop", stage.token(who))
    return client


BAD: dict[str, bytes] = {
    "unknown type": b"y\0\0\0\4",
    "length below four": b"Q\0\0\0\3",
    "huge length": b"Q\x7f\xff\xff\xff",
    "query without its end": message(b"Q", b"SELECT 1"),
    "text behind the end": message(b"Q", b"SELECT 1\0SELECT 2\0"),
    "truncated bind": message(b"B", b"\0\0\0\1"),
    "bind with a lying count": message(b"B", b"\0\0" + struct.pack("!hh", 0, 32000)),
    "describe of nothing": message(b"D", b"X\0"),
    "sync with a body": message(b"S", b"x"),
    "parse without text": message(b"P", b"\0"),
    "copy data longer than PostgreSQL reads": b"d\x3f\xff\xff\xff",
    "a query without a body": b"Q\0\0\0\4",
    "password when none was asked": message(b"p", b"secret\0"),
    "terminate with a body": message(b"X", b"0"),
    "negative parameter length": message(b"B", b"\0\0" + struct.pack("!hhi", 0, 1, -2) + b"\0\0"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_malformed_messages_end_the_session_and_nothing_else(stage: Stage, name: str) -> None:
    with wire(stage) as other, wire(stage) as client:
        client.send(BAD[name])
        if name == "truncated bind":
            client.send(sync())
        try:
            told = client.until("E")
            assert error_fields(told[-1].body)["C"] == "08P01"
        except (EOFError, ConnectionError):
            pass
        client.socket.settimeout(5)
        try:
            while client.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        assert other.run("SELECT 1")[-1].kind == "Z"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\4",
        b"\0\0\0\x09\0\3\0\0x",
        struct.pack("!ii", 1 << 30, 196608),
        struct.pack("!ii", 8, 2 << 16),
        struct.pack("!ii", 8, 80877103) + b"early",
    ],
)
def test_garbage_instead_of_a_startup_is_harmless(stage: Stage, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", stage.port), timeout=5) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        try:
            while raw.recv(65536):
                pass
        except ConnectionError:
            pass
    with wire(stage) as client:
        assert client.run("SELECT 1")[-1].kind == "Z"


def test_gss_is_declined_and_tls_goes_on(stage: Stage) -> None:
    with WireClient("127.0.0.1", stage.port) as client:
        client.send(struct.pack("!ii", 8, 80877104))
        assert client.exactly(1) == b"N"
        client.secure(str(stage.certificates.ca))
        assert client.login("analyst-1", "shop", stage.token("analyst"))[-1].kind == "Z"


def test_every_split_of_a_pipeline_gives_the_same_answer(stage: Stage) -> None:
    data = parse("SELECT $1::int + 1") + bind([b"41"]) + describe("P") + execute() + sync() + query("SELECT 'x'")
    with wire(stage) as client:
        client.send(data)
        expected = client.until("Z") + client.until("Z")
        for cut in range(1, len(data)):
            client.send(data[:cut])
            client.send(data[cut:])
            assert client.until("Z") + client.until("Z") == expected
        for position in range(len(data)):
            client.send(data[position : position + 1])
        assert client.until("Z") + client.until("Z") == expected
        assert [row_values(one.body) for one in expected if one.kind == "D"] == [[b"42"], [b"x"]]


def test_an_error_in_a_pipeline_skips_to_sync(stage: Stage) -> None:
    with wire(stage, "agent") as client:
        client.send(
            parse("SELECT 1") + bind() + execute() + parse("DROP TABLE nowhere.x") + bind() + execute() + parse("SELECT 3") + sync()
        )
        kinds = "".join(one.kind for one in client.until("Z") if one.kind != "N")
        assert kinds == "12DCEZ"
        assert [one.kind for one in client.run("SELECT 1")][-1] == "Z"


def test_portals_suspend(stage: Stage) -> None:
    with wire(stage) as client:
        client.send(parse("SELECT * FROM generate_series(1, 5)") + bind() + execute("", 2) + execute("", 2) + execute("", 2) + sync())
        assert "".join(one.kind for one in client.until("Z")) == "12DDsDDsDCZ"


def test_a_wrong_cancel_key_cancels_nothing(stage: Stage) -> None:
    with wire(stage) as client:
        client.send(query("SELECT pg_sleep(1)"))
        key, client.key = client.key, bytes(len(client.key))
        client.cancel(ca_file=str(stage.certificates.ca))
        assert [one.kind for one in client.until("Z")].count("E") == 0
        client.key = key
        client.send(query("SELECT pg_sleep(10)"))
        time.sleep(0.2)
        client.cancel(ca_file=str(stage.certificates.ca))
        failed = [one for one in client.until("Z") if one.kind == "E"]
        assert error_fields(failed[0].body)["C"] == "57014"


def test_copy_both_ways_and_eight_megabytes(agent: Agent) -> None:
    with agent.connect() as connection:
        with connection.cursor().copy("COPY orders (customer_id, placed_at, amount, status) FROM STDIN") as copy:
            for number in range(5000):
                copy.write_row((number, "2026-01-01", "1.00", "copied"))
        assert connection.execute("SELECT count(*) FROM orders WHERE status = 'copied'").fetchone() == (5000,)
        with connection.cursor().copy("COPY (SELECT id FROM orders WHERE status = 'copied') TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 5000
        assert connection.execute("DELETE FROM orders WHERE status = 'copied'").rowcount == 5000
        big = "x" * (8 << 20)
        assert connection.execute("SELECT length(%s::text)", (big,)).fetchone() == (8 << 20,)


def test_notices_and_notifications_pass(agent: Agent) -> None:
    with agent.connect("analyst") as connection:
        connection.execute("LISTEN news")
        with psycopg.connect(agent.stage.server.dsn("shop"), autocommit=True) as direct:
            direct.execute("SELECT pg_notify('news', 'hello')")
        heard = [told.payload for told in connection.notifies(timeout=3, stop_after=1)]
        assert heard == ["hello"]


def test_a_client_that_leaves_takes_its_query_along(stage: Stage) -> None:
    with wire(stage) as client:
        client.send(query("SELECT pg_sleep(30) /* left behind */"))
        time.sleep(0.5)
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        for _ in range(50):
            row = direct.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%left behind%' AND pid <> pg_backend_pid()"
            ).fetchone()
            if row == (0,):
                return
            time.sleep(0.1)
    pytest.fail("the query of a client that left still runs")


def test_a_server_that_dies_is_told(agent: Agent) -> None:
    with agent.connect("analyst") as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        with psycopg.connect(agent.stage.server.dsn("shop"), autocommit=True) as direct:
            direct.execute("SELECT pg_terminate_backend(%s)", (row[0],))
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            connection.execute("SELECT 1")


def test_asyncpg_in_depth(stage: Stage) -> None:
    async def walk() -> None:
        context = ssl.create_default_context(cafile=str(stage.certificates.ca))
        connection = await asyncpg.connect(
            host="localhost", port=stage.port, user="agent-7", password=stage.token(), database="shop", ssl=context
        )
        try:
            rows = await connection.fetch(
                "SELECT id, email, card, amount FROM customers JOIN orders USING (id) WHERE id <= $1 ORDER BY 1", 20
            )
            assert len(rows) == 20 and all("***" in row["email"] and row["card"].startswith("****") for row in rows)
            async with connection.transaction():
                seen = [row["email"] async for row in connection.cursor("SELECT email FROM customers LIMIT 120", prefetch=50)]
            assert len(seen) == 120 and all("***" in email for email in seen)
            with pytest.raises(asyncpg.PostgresError):
                async with connection.transaction():
                    await connection.execute("UPDATE orders SET status = 'in' WHERE id = 1")
                    await connection.execute("SELECT 1 / 0")
            assert await connection.fetchval("SELECT status <> 'in' FROM orders WHERE id = 1")
            await connection.executemany("UPDATE orders SET status = status WHERE id = $1", [(number,) for number in range(50)])
        finally:
            await connection.close()

    asyncio.run(walk())


def test_many_agents_at_once(agent: Agent) -> None:
    problems: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    def work() -> None:
        for _ in range(3):
            with agent.connect() as connection, connection.pipeline():
                cursors = [connection.execute("SELECT email, %s::int FROM customers WHERE id = %s", (n, n)) for n in range(1, 40)]
                for number, cursor in enumerate(cursors, start=1):
                    row = cursor.fetchone()
                    assert row is not None and row[1] == number and "***" in row[0]

    threads = [threading.Thread(target=guarded, args=(work,)) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []


def test_statements_behind_a_copy_cannot_shift_the_answers(stage: Stage) -> None:
    """The server drops them without an answer; the next answer must not pass as theirs, unmasked."""
    copy = query("COPY orders (customer_id, placed_at, amount, status) FROM STDIN")
    masked = query("SELECT email FROM customers LIMIT 3")
    for behind in (query("SELECT 1"), query(""), query("SELECT 1") * 3, parse("SELECT 1") + bind() + execute() + sync(), sync()):
        with wire(stage, "agent") as client:
            seen = b""
            try:
                client.send(copy + behind + masked + masked + sync())
                client.socket.settimeout(2)
                while data := client.socket.recv(65536):
                    seen += data
            except (OSError, EOFError):
                pass
            assert b"@example" not in seen


def test_a_verdict_is_good_for_its_message_only(stage: Stage) -> None:
    """An error that comes while a message waits for its verdict makes the server skip that message: its verdict must not
    pass on to the next one."""
    for harmless in ("NOTIFY x", "LISTEN x", "SELECT 1 AS a", "BEGIN"):
        with wire(stage, "agent") as client:
            seen = b""
            try:
                client.send(bind([b"1"], statement="missing") + query(harmless) + query("LISTEN x") + sync())
                client.send(query("SELECT email FROM customers LIMIT 3") + query("SELECT * FROM employees") + sync())
                client.socket.settimeout(1)
                while data := client.socket.recv(65536):
                    seen += data
            except (OSError, EOFError):
                pass
            assert b"@example" not in seen

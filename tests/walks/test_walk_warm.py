"""Warm server connections: who gets one, what is left of the former session (nothing), and when they are closed.

The door allows everything and logs in as a superuser, so that a session can leave behind whatever PostgreSQL lets it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from fixtures.door import Door
from kit.postgres import PostgresServer
from kit.wire import PROTOCOL_3_2, WireClient, bind, close, error_fields, execute, message, parse, query, row_values, sync
from pgwire.errand import Errand
from pgwire.warm import WarmLimits

FLUSH = message(b"H")
LIMITS = WarmLimits(per_login=2, total=3, idle=30, age=60)


def door(server: PostgresServer, limits: WarmLimits = LIMITS, **more: Any) -> Door:
    return Door(port=server.port, user="postgres", password=server.password, users={"bob": "secret", "eve": "secret"}, warm=limits, **more)


@pytest.fixture
def made(postgres: PostgresServer) -> Iterator[Door]:
    with door(postgres) as one:
        yield one


def login(made: Door, user: str = "bob", **parameters: str) -> WireClient:
    client = WireClient("127.0.0.1", made.port)
    told = client.login(user, "db", "secret", PROTOCOL_3_2, **parameters)
    assert told[-1].kind == "Z", error_fields(told[-1].body)
    return client


def value(client: WireClient, sql: str) -> str | None:
    told = client.run(sql)
    rows = [one for one in told if one.kind == "D"]
    assert rows, [error_fields(one.body) for one in told if one.kind == "E"]
    found = row_values(rows[0].body)[0]
    return None if found is None else found.decode()


def pid(client: WireClient) -> int:
    return int(value(client, "SELECT pg_backend_pid()") or 0)


def until(true: Callable[[], bool], wait: float = 5.0) -> bool:
    ends = time.monotonic() + wait
    while not true():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def kept(made: Door) -> int:
    assert made.parts.warm is not None
    return len(made.parts.warm)


def visit(made: Door, *sent: bytes | str, user: str = "bob", wait: bool = True, **parameters: str) -> int:
    """A session that sends this, waits for each answer, and says goodbye. Returns the server's process."""
    before = kept(made)
    with login(made, user, **parameters) as client:
        number = pid(client)
        for one in sent:
            if isinstance(one, str):
                client.run(one)
            else:
                client.ask(one)
        before = kept(made)
        client.terminate()
    if wait:
        assert until(lambda: kept(made) == before + 1)
    return number


def alive(server: PostgresServer, number: int) -> bool:
    with psycopg.connect(server.dsn()) as direct:
        return direct.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (number,)).fetchone() is not None


# -- reuse ---------------------------------------------------------------------------------------------------------------


def test_the_next_session_gets_the_same_server_connection(made: Door) -> None:
    first = visit(made, application_name="one")
    with login(made, application_name="two's") as client:
        assert client.parameters["application_name"] == "two's"
        assert (pid(client), value(client, "SHOW application_name")) == (first, "two's")
        assert value(client, "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()") == "two's"
        assert client.pid == first
        client.terminate()
    assert [fields["warm"] for fields in made.kinds("session.opened")] == [False, True]
    assert {fields["server_pid"] for fields in made.kinds("session.opened")} == {first}


def test_the_welcome_is_that_of_a_fresh_login(made: Door) -> None:
    told = []
    for _ in range(2):
        with WireClient("127.0.0.1", made.port) as client:
            told.append([(one.kind, one.body) for one in client.login("bob", "db", "secret", application_name="x") if one.kind in "SZ"])
            client.terminate()
        assert until(lambda: kept(made) == 1)
    assert told[0] == told[1]


def test_over_several_reactors(postgres: PostgresServer) -> None:
    with door(postgres, reactors=3) as made:
        assert len({visit(made) for _ in range(7)}) == 1


LEFTOVERS = {
    "temporary table": ("CREATE TEMP TABLE left_over (a int)", "SELECT to_regclass('left_over')", None),
    "prepared by SQL": ("PREPARE left_over AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements", "0"),
    "cursor with hold": ("DECLARE left_over CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors", "0"),
    "advisory lock": ("SELECT pg_advisory_lock(4711)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    "listen": ("LISTEN left_over", "SELECT count(*) FROM pg_listening_channels()", "0"),
    "set": ("SET work_mem = '77MB'", "SELECT current_setting('work_mem') = '77MB'", "f"),
    "time zone": ("SET TimeZone = 'Asia/Tokyo'", "SELECT current_setting('TimeZone') = 'Asia/Tokyo'", "f"),
    "set_config": ("SELECT set_config('left.over', 'secret', false)", "SELECT nullif(current_setting('left.over', true), '')", None),
    "role": ("SET ROLE pg_monitor", "SELECT current_user", "postgres"),
    "session authorization": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user", "postgres"),
    "read only": ("SET default_transaction_read_only = on", "SHOW transaction_read_only", "off"),
    "isolation": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
        "read committed",
    ),
    "search path": ("SET search_path = pg_temp", "SELECT current_setting('search_path') = 'pg_temp'", "f"),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_nothing_is_left(made: Door, name: str) -> None:
    leave, ask, expected = LEFTOVERS[name]
    first = visit(made, leave)
    with login(made) as client:
        assert (pid(client), value(client, ask)) == (first, expected)


def test_sequences_are_forgotten(made: Door) -> None:
    first = visit(made, "CREATE SEQUENCE IF NOT EXISTS warm_numbers", "SELECT nextval('warm_numbers')")
    with login(made) as client:
        assert pid(client) == first
        for ask in ("SELECT currval('warm_numbers')", "SELECT lastval()"):
            assert [error_fields(one.body)["C"] for one in client.run(ask) if one.kind == "E"] == ["55000"]


def test_statements_and_portals_of_the_protocol_are_gone(made: Door) -> None:
    first = visit(made, parse("SELECT 1", "s") + bind(statement="s") + execute() + sync())
    with login(made) as client:
        assert pid(client) == first
        told = client.ask(bind(statement="s") + execute() + sync())
        assert [error_fields(one.body)["C"] for one in told if one.kind == "E"] == ["26000"]
        assert "1" in {one.kind for one in client.ask(parse("SELECT 2", "s") + close("S", "s") + sync())}


def test_a_failed_statement_is_no_obstacle(made: Door) -> None:
    first = visit(made, "SELECT 1/0", parse("nonsense") + sync(), "BEGIN", "SELECT 1/0", "ROLLBACK")
    assert visit(made) == first


# -- who gets one --------------------------------------------------------------------------------------------------------


def test_another_principal_gets_its_own(made: Door) -> None:
    assert visit(made) != visit(made, user="eve")


def test_other_startup_parameters_get_their_own(made: Door) -> None:
    first = visit(made, TimeZone="Asia/Tokyo")
    with login(made) as client:
        assert pid(client) != first
        assert value(client, "SHOW TimeZone") != "Asia/Tokyo"
    with login(made, timezone="Asia/Tokyo") as client:
        assert (pid(client), value(client, "SHOW TimeZone")) == (first, "Asia/Tokyo")


def test_two_at_a_time_never_share(made: Door) -> None:
    visit(made)
    with login(made) as one, login(made) as two:
        assert pid(one) != pid(two)


# -- ends that leave nothing -----------------------------------------------------------------------------------------------


def leaves_nothing(made: Door, server: PostgresServer, number: int) -> None:
    assert until(lambda: not alive(server, number))
    assert kept(made) == 0


@pytest.mark.parametrize(
    "sent",
    [
        query("BEGIN"),
        query("BEGIN") + query("SELECT 1/0"),
        parse("INSERT INTO warm_rows VALUES (1)") + bind() + execute() + FLUSH,
        parse("SELECT pg_sleep(30)") + bind() + execute() + FLUSH,
        query("COPY warm_rows FROM STDIN"),
        query("SELECT pg_sleep(30)"),
    ],
    ids=["transaction", "failed transaction", "no sync", "running without sync", "copy", "running"],
)
@pytest.mark.parametrize("goodbye", [True, False])
def test_an_end_in_the_middle(made: Door, postgres: PostgresServer, sent: bytes, goodbye: bool) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as direct:
        direct.execute("DROP TABLE IF EXISTS warm_rows; CREATE TABLE warm_rows (a int)")
        with login(made) as client:
            number = pid(client)
            client.send(sent)
            time.sleep(0.2)
            if goodbye and b"pg_sleep" not in sent:
                client.terminate()
        leaves_nothing(made, postgres, number)
        assert direct.execute("SELECT count(*) FROM warm_rows").fetchone() == (0,)


def test_a_lost_client_leaves_nothing(made: Door, postgres: PostgresServer) -> None:
    client = login(made)
    number = pid(client)
    client.socket.shutdown(socket.SHUT_RDWR)
    client.socket.close()
    leaves_nothing(made, postgres, number)


def test_a_session_that_is_ended_leaves_nothing(made: Door, postgres: PostgresServer) -> None:
    with login(made) as client:
        number = pid(client)
        made.call(lambda: next(iter(made.listener.sessions)).end("57P01", "enough"))
        assert client.receive().kind == "E"
    leaves_nothing(made, postgres, number)


def test_what_the_server_tells_otherwise_leaves_nothing(made: Door, postgres: PostgresServer) -> None:
    """A default that changes while the session lasts: DISCARD ALL does not bring back what the login told."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as direct, login(made) as client:
        number = pid(client)
        direct.execute("ALTER SYSTEM SET IntervalStyle = 'iso_8601'")
        direct.execute("SELECT pg_reload_conf()")
        try:
            assert until(lambda: value(client, "SHOW IntervalStyle") == "iso_8601")
            client.terminate()
            leaves_nothing(made, postgres, number)
        finally:
            direct.execute("ALTER SYSTEM RESET IntervalStyle")
            direct.execute("SELECT pg_reload_conf()")


# -- dead ones, limits, ends -----------------------------------------------------------------------------------------------


def test_a_dead_one_is_not_noticed(made: Door, postgres: PostgresServer) -> None:
    first = visit(made)
    with psycopg.connect(postgres.dsn(), autocommit=True) as direct:
        direct.execute("SELECT pg_terminate_backend(%s, 5000)", (first,))
    assert visit(made, wait=False) != first
    assert made.kinds("session.opened")[-1]["warm"] is False


def test_a_server_that_was_restarted(postgres: PostgresServer) -> None:
    with PostgresServer(18) as server, door(server) as made:
        visit(made)
        with login(made), login(made):
            pass
        server.restart()
        visit(made)
        assert [fields["warm"] for fields in made.kinds("session.opened")].count(True) == 1
        assert made.kinds("session.opened")[-1]["warm"] is False


def test_a_frozen_one_is_passed_over(made: Door, postgres: PostgresServer) -> None:
    first = visit(made)
    os.kill(first, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with login(made) as client:
            assert pid(client) != first
        assert time.monotonic() - began < 4
    finally:
        os.kill(first, signal.SIGCONT)


def test_no_more_are_kept_than_allowed(made: Door, postgres: PostgresServer) -> None:
    for user in ("bob", "eve"):
        clients = [login(made, user) for _ in range(4)]
        for client in clients:
            with client:
                client.terminate()
        time.sleep(0.5)
        assert kept(made) == (2 if user == "bob" else 3)
    assert until(lambda: len(made.given_back) == 1)  # by the total; the others gave theirs back themselves
    with psycopg.connect(postgres.dsn()) as direct:
        ask = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        assert direct.execute(ask).fetchone() == (3,)


def test_none_is_kept_when_told_so(postgres: PostgresServer) -> None:
    with door(postgres, WarmLimits(total=0)) as made:
        assert visit(made, wait=False) != visit(made, wait=False)


def test_idle_and_old_ones_are_closed(postgres: PostgresServer) -> None:
    for limits in (WarmLimits(idle=0.2), WarmLimits(age=0.9)):
        with door(postgres, limits) as made:
            number = visit(made)
            leaves_nothing(made, postgres, number)
            assert until(lambda made=made: len(made.given_back) == 1)  # type: ignore[misc]


def test_the_end_of_a_grant_closes_them_and_keeps_no_more(made: Door, postgres: PostgresServer) -> None:
    number = visit(made)
    assert made.parts.warm is not None
    with login(made, TimeZone="Asia/Tokyo") as client:
        other = pid(client)
        made.call(lambda: made.parts.warm.end_grant("g1"))  # type: ignore[union-attr]
        leaves_nothing(made, postgres, number)
        client.terminate()
    leaves_nothing(made, postgres, other)


def test_a_full_server_gets_its_room_back() -> None:
    settings = {"max_connections": "5", "superuser_reserved_connections": "0", "reserved_connections": "0"}
    with PostgresServer(18, settings=settings) as server, door(server, WarmLimits(per_login=5, total=9)) as made:
        clients = [login(made) for _ in range(5)]
        for client in clients:
            with client:
                client.terminate()
        assert until(lambda: kept(made) == 5)
        with login(made, "eve") as client:
            assert value(client, "SELECT 1") == "1"


def test_a_cancel_key_of_a_session_that_is_over_is_harmless(made: Door) -> None:
    with login(made) as former:
        first = pid(former)
        former.terminate()
    assert until(lambda: kept(made) == 1)
    with login(made) as client:
        assert pid(client) == first
        client.send(query("SELECT pg_sleep(0.5)"))
        former.cancel()
        assert not [one for one in client.until("Z") if one.kind == "E"]
        # its own one still works
        client.send(query("SELECT pg_sleep(30)"))
        time.sleep(0.2)
        client.cancel()
        assert [error_fields(one.body)["C"] for one in client.until("Z") if one.kind == "E"] == ["57014"]
        client.terminate()
    # and who was cancelled leaves nothing, since the signal may come late
    time.sleep(0.2)
    assert kept(made) == 0


# -- the errand's answers, byte for byte -------------------------------------------------------------------------------------

DONE = message(b"C", b"DISCARD ALL\0")
IDLE = message(b"Z", b"I")


def test_answers_in_pieces() -> None:
    told = message(b"S", b"TimeZone\0UTC\0")
    whole = told + DONE + IDLE
    for cut in range(len(whole)):
        errand = Errand()
        assert errand.add("DISCARD ALL", "DISCARD ALL") == query("DISCARD ALL")
        assert not errand.receive(whole[:cut])
        assert errand.receive(whole[cut:])
        assert errand.told == told


@pytest.mark.parametrize(
    "answer",
    [
        message(b"Z", b"I"),
        DONE + message(b"Z", b"T"),
        DONE + DONE + IDLE,
        message(b"C", b"SET\0") + IDLE,
        DONE + IDLE + message(b"N", b"\0"),
        DONE + IDLE + IDLE,
        message(b"E", b"\0"),
        message(b"A", b"\0\0\0\1a\0b\0"),
        message(b"N", b"\0"),
        message(b"D", b"\0\0"),
        b"Z\0\0\0\1",
        b"Z\x7f\0\0\0",
    ],
)
def test_answers_that_do_not_fit(answer: bytes) -> None:
    with pytest.raises(Exception, match=r"answered|length"):
        errand = Errand()
        errand.add("DISCARD ALL", "DISCARD ALL")
        errand.receive(answer)

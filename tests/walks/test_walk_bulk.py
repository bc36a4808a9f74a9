"""Steady flows are read by the clock: everything arrives whole and in order, and nobody beside them waits for it."""

from __future__ import annotations

import hashlib
import io
import statistics
import threading
import time

import psycopg
import pytest

from fixtures.gateway import Agent

ROWS = "SELECT n, md5(n::text) AS text FROM generate_series(1, {}) n"


def _digest(rows: list[tuple[object, ...]]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


@pytest.mark.parametrize("count", [1, 900, 1100, 2000, 30_000, 200_000])
def test_a_result_of_any_size_arrives_whole(agent: Agent, count: int) -> None:
    query = ROWS.format(count)
    with psycopg.connect(agent.stage.server.dsn("shop")) as direct, agent.connect("analyst") as connection:
        expected = _digest(direct.execute(query).fetchall())
        for _ in range(3):
            assert _digest(connection.execute(query).fetchall()) == expected
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_flows_of_many_sessions_at_once_arrive_whole(agent: Agent) -> None:
    query = ROWS.format(60_000)
    with psycopg.connect(agent.stage.server.dsn("shop")) as direct:
        expected = _digest(direct.execute(query).fetchall())
    digests: list[str] = []

    def read(who: str) -> None:
        with agent.connect(who) as connection:
            for _ in range(3):
                digests.append(_digest(connection.execute(query).fetchall()))

    threads = [threading.Thread(target=read, args=("analyst" if n % 2 else "agent",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [expected] * 24


def test_a_flow_that_is_cancelled_or_left_ends(agent: Agent) -> None:
    query = ROWS.format(5_000_000)
    with agent.connect("analyst") as connection:
        for _ in range(3):
            with pytest.raises(psycopg.errors.QueryCanceled), connection.cursor() as cursor:
                for number, _ in enumerate(cursor.stream(query)):
                    if number == 20_000:
                        connection.cancel_safe()
            assert connection.execute("SELECT 1").fetchone() == (1,)
    leaving = agent.connect("analyst")
    pid = leaving.info.backend_pid
    leaving.pgconn.send_query(query.encode())
    leaving.close()
    with psycopg.connect(agent.stage.server.dsn("shop"), autocommit=True) as direct:
        deadline = time.monotonic() + 20
        while direct.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
            assert time.monotonic() < deadline, "the backend of a client that left goes on"
            time.sleep(0.05)


def test_a_flow_holds_nobody_up(agent: Agent) -> None:
    done = threading.Event()

    def flow() -> None:
        with agent.connect("analyst") as connection:
            sink = io.BytesIO()
            while not done.is_set():
                with connection.cursor().copy("COPY (SELECT n, md5(n::text) FROM generate_series(1, 300000) n) TO STDOUT") as copy:
                    for block in copy:
                        sink.seek(0)
                        sink.write(block)

    streams = [threading.Thread(target=flow) for _ in range(2)]
    for stream in streams:
        stream.start()
    try:
        with agent.connect() as connection:
            waits = []
            for _ in range(200):
                began = time.monotonic()
                connection.execute("SELECT id FROM orders WHERE id = 7")
                waits.append(time.monotonic() - began)
    finally:
        done.set()
        for stream in streams:
            stream.join()
    # Bounds for a loaded machine of two cores: what they catch is a session that waits for another's whole result.
    assert statistics.median(waits) < 0.1 and max(waits) < 2

"""Several threads on the wire: every session works whichever has it, and a cancel finds the right one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgleash.demo.stage import Stage


@pytest.fixture(scope="module")
def threaded() -> Iterator[Stage]:
    """A stage whose gateway has three threads on the wire."""
    with Stage(customers=2000, settings={"listen": {"threads": 3}}) as stage:
        yield stage


def _connect(stage: Stage) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(stage.dsn("analyst-1", stage.token("analyst")), autocommit=True)


def test_sessions_work_side_by_side(threaded: Stage) -> None:
    problems: list[str] = []

    def work(seed: int) -> None:
        with _connect(threaded) as connection:
            for number in range(seed, seed + 150):
                row = connection.execute("SELECT %s::int, id FROM orders WHERE id = %s", (number, number % 50 + 1)).fetchone()
                if row != (number, number % 50 + 1):
                    problems.append(f"{number} got {row}")

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_cancel_finds_its_session_in_any_thread(threaded: Stage) -> None:
    sessions = [_connect(threaded) for _ in range(6)]
    try:
        for chosen in sessions:
            outcome: list[str | None] = [None] * len(sessions)

            def sleep(index: int, outcome: list[str | None] = outcome) -> None:
                try:
                    sessions[index].execute("SELECT pg_sleep(0.7)")
                    outcome[index] = "slept"
                except psycopg.errors.QueryCanceled:
                    outcome[index] = "cancelled"

            threads = [threading.Thread(target=sleep, args=(n,)) for n in range(len(sessions))]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            chosen.cancel_safe()
            for thread in threads:
                thread.join()
            assert [what == "cancelled" for what in outcome] == [one is chosen for one in sessions]
    finally:
        for one in sessions:
            one.close()

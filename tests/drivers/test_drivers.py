"""Each driver's scenario against PostgreSQL and through the gateway: the same outcomes, whatever they are.

With DRIVERS_TABLE set the outcomes are written to that document. Never add here: an allowance for a difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from drivers.matrix import DRIVERS, STEPS, Driver, Outcome, Place, play
from drivers.permissive import ADMINISTRATOR, administrator_token, permissive_stage
from drivers.report import Row, write_drivers
from pgleash.demo.postgres import PostgresServer, binaries
from pgleash.demo.stage import Stage

MAJORS = (18, 15)
ALSO_ON_15 = frozenset({"psql", "psycopg3", "asyncpg", "jdbc"})
GONE_WITHIN = 5.0  # seconds in which the server's process must have ended after its client did


class Bench:
    """Servers and gateways, each started when first asked for, and the rows of the table."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stages: dict[int, Stage] = {}
        self.rows: list[Row] = []

    def stage(self, major: int) -> Stage:
        """The permissive gateway before PostgreSQL ``major``."""
        if major not in self._stages:
            server = PostgresServer(major)
            server.start()
            stage = permissive_stage(server, self._home)
            self._stages[major] = stage
            stage.start()
        return self._stages[major]

    def stop(self) -> None:
        """End everything."""
        for stage in self._stages.values():
            stage.stop()
            stage.server.stop()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """See ``Bench``; at the end the table is written, if one is wanted."""
    made = Bench(tmp_path_factory.mktemp("drivers"))
    try:
        yield made
    finally:
        made.stop()
    if table := os.environ.get("DRIVERS_TABLE"):
        write_drivers(Path(table), made.rows)


def _pairs() -> list[tuple[Driver, int]]:
    return [(driver, major) for major in MAJORS for driver in DRIVERS if major == 18 or driver.name in ALSO_ON_15]


def _wait_until_gone(server: PostgresServer, pid: int) -> bool:
    with psycopg.connect(server.dsn(), autocommit=True) as watcher:
        until = time.monotonic() + GONE_WITHIN
        while time.monotonic() < until:
            if watcher.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == (0,):
                return True
            time.sleep(0.05)
    return False


def _busy(server: PostgresServer, pid: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as watcher:
        for _ in range(100):
            if watcher.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == ("active",):
                return
            time.sleep(0.05)
    raise AssertionError(f"the server's process {pid} is not the one that serves the driver")


@pytest.mark.parametrize(("driver", "major"), _pairs(), ids=lambda value: value.name if isinstance(value, Driver) else str(value))
@pytest.mark.timeout(180)
def test_the_driver_sees_no_difference(bench: Bench, driver: Driver, major: int) -> None:
    if missing := driver.lacks():
        pytest.skip(missing)
    try:
        binaries(major)
    except FileNotFoundError:
        pytest.skip(f"PostgreSQL {major} is not installed")
    stage = bench.stage(major)
    server = stage.server

    def end(pid: int) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    plain = Place(server.host, server.port, server.superuser, server.password, "shop")
    direct, complaints = play(driver, plain, settle=end)
    assert not [step for step in STEPS if direct[step].kind in ("error", "silent")], (
        f"the scenario fails without us: {direct}\n{complaints}"
    )
    secure = Place("localhost", stage.port, ADMINISTRATOR, administrator_token(stage), "shop", str(stage.certificates.ca))
    through, complaints = play(driver, secure, settle=lambda pid: _busy(server, pid))
    different = {step: (direct[step], through[step]) for step in STEPS[:-1] if direct[step] != through[step]}
    pid = through["disconnect"].value
    if not isinstance(pid, int):
        different["disconnect"] = (direct["disconnect"], Outcome("silent"))
    elif not _wait_until_gone(server, pid):
        different["disconnect"] = (Outcome("ok"), Outcome("error", f"the server's process was there after {GONE_WITHIN:g} s"))
    bench.rows.append(Row(driver.label, driver.version(), major, direct, different))
    assert not different, complaints

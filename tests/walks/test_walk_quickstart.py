"""The quickstart's steps on a PostgreSQL 15 with TLS (Debian's), an agent with psql, and minted roles there."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kit.postgres import PostgresServer
from kit.tls import make_certificates
from pgleash.demo.acts import Theatre, act_hold, act_revoke
from pgleash.demo.stage import Stage
from pgleash.v1 import approvals_pb2, grants_pb2

pytestmark = pytest.mark.skipif(not Path("/usr/lib/postgresql/15/bin/postgres").exists(), reason="Debian's PostgreSQL 15 is not installed")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage in front of PostgreSQL 15, reached by TLS with verify-full."""
    made = make_certificates(tmp_path_factory.mktemp("server-tls"))
    tls = {"mode": "verify-full", "ca": str(made.ca)}
    settings = {"databases": {"shop": {"server": {"tls": tls}}}}
    with (
        PostgresServer(15, certificate=made.certificate, key=made.key) as server,
        Stage(customers=1000, settings=settings, server=server) as stage,
    ):
        yield stage


def test_doctor_is_content(old: Stage) -> None:
    found = Theatre(old).pgleash("doctor", "--config", str(old.config))
    assert found.returncode == 0, found.stdout


def test_psql_reads_masked_rows(old: Stage) -> None:
    done = subprocess.run(
        [str(old.server.psql), "-X", "-At", "-c", "SELECT email FROM customers WHERE id = 7", old.dsn("agent-7", old.token())],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == "t***@e***.org", done.stderr


def test_the_server_leg_is_encrypted(old: Stage) -> None:
    with psycopg.connect(old.dsn("analyst-1", old.token("analyst")), autocommit=True) as connection:
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = %s"
        assert Theatre(old).server_value(query, row[0]) is True


def test_held_revoked_and_gone(old: Stage) -> None:
    theatre = Theatre(old)
    act_hold(theatre)
    act_revoke(theatre)
    assert theatre.failures == []


def test_what_an_agent_made_outlives_its_role(old: Stage) -> None:
    theatre = Theatre(old)
    with theatre.api("bot") as bot, theatre.api("operator") as operator, theatre.connect() as connection:
        watching = bot.approvals.Watch(approvals_pb2.ApprovalServiceWatchRequest())

        def told(_: object) -> None:
            for seen in watching:
                if seen.approval.state == approvals_pb2.APPROVAL_STATE_PENDING:
                    bot.approvals.Approve(approvals_pb2.ApproveRequest(name=seen.approval.name))
                    return

        connection.add_notice_handler(told)
        connection.execute("CREATE TABLE notes (text text)")
        connection.execute("INSERT INTO notes VALUES ('kept')")
        watching.cancel()
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        operator.grants.Revoke(grants_pb2.GrantServiceRevokeRequest(id=str(row[0]).removeprefix("pgleash_")))
        for _ in range(100):
            if theatre.server_value("SELECT count(*) FROM pg_roles WHERE rolname = %s", row[0]) == 0:
                break
            time.sleep(0.05)
    assert theatre.server_value("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'notes'") == "shop_owner"
    assert theatre.server_value("SELECT text FROM notes") == "kept"

"""Warm server connections on a whole stage: minted roles, Vault's leases, revocation, policy, and the gateway's own end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import POLICY, Stage
from pgleash.v1 import audit_pb2, grants_pb2


@pytest.fixture
def own() -> Iterator[Stage]:
    """A stage whose gateway and policy a test may end and change."""
    with Stage(customers=500) as made:
        yield made


def visit(stage: Stage, *statements: str, subject: str = "agent-7", **more: Any) -> int:
    """A session; returns the process of its server connection."""
    with psycopg.connect(stage.dsn(subject, stage.token(subject=subject, **more)), autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        for statement in statements:
            connection.execute(statement.encode())
    assert row is not None
    time.sleep(0.1)
    return int(row[0])


def until(true: Callable[[], bool], wait: float) -> float:
    """How long it took; fails when it took longer."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < wait
        time.sleep(0.02)
    return time.monotonic() - began


def alive(stage: Stage, pid: int) -> bool:
    with psycopg.connect(stage.server.dsn("shop")) as direct:
        return direct.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None


def grant(stage: Stage, subject: str, seconds: int, *tables: str) -> str:
    request = grants_pb2.GrantServiceCreateRequest(subject=subject, database="shop", tables=tables, verbs=["select"])
    request.duration.seconds = seconds
    with Agent(stage).api("operator") as api:
        return str(api.grants.Create(request).grant.id)


def test_reuse_is_for_one_principal_and_in_the_audit_log(stage: Stage, agent: Agent) -> None:
    first = visit(stage, subject="warm-1")
    assert visit(stage, subject="warm-1") == first
    assert visit(stage, subject="warm-2") != first
    assert visit(stage, subject="warm-1", acts_for="someone@example.com") != first
    assert visit(stage, subject="warm-1", groups=["agents", "night"]) != first
    with agent.api("auditor") as api:
        found = list(api.audit.Query(audit_pb2.QueryRequest(kinds=["session.opened"], limit=1000)))
    assert [one.fields["warm"] for one in found if one.fields["server_pid"] == first] == [False, True]


def test_masks_hold_on_a_warm_connection(stage: Stage) -> None:
    first = visit(stage, "SELECT email FROM customers LIMIT 1", subject="warm-3")
    with psycopg.connect(stage.dsn("warm-3", stage.token(subject="warm-3")), autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid(), email FROM customers LIMIT 1").fetchone()
        assert row is not None and row[0] == first and "***" in row[1]


def test_tables_made_meanwhile_are_covered(stage: Stage) -> None:
    first = visit(stage, subject="warm-4")
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        direct.execute("SET ROLE shop_owner")
        direct.execute("CREATE TABLE IF NOT EXISTS made_later (a int)")
    time.sleep(2.1)
    assert visit(stage, "SELECT * FROM made_later", subject="warm-4") == first


def test_revoking_closes_what_is_kept_within_a_second(stage: Stage, agent: Agent) -> None:
    name = grant(stage, "warm-5", 60, "public.orders")
    first = visit(stage, subject="warm-5")
    assert alive(stage, first)
    with agent.api("operator") as api:
        api.grants.Revoke(grants_pb2.GrantServiceRevokeRequest(id=name, reason="enough"))
    assert until(lambda: not alive(stage, first), 2) < 1


def test_expiry_closes_what_is_kept_within_a_second(stage: Stage) -> None:
    grant(stage, "warm-6", 2, "public.orders")
    began = time.monotonic()
    first = visit(stage, subject="warm-6")
    until(lambda: not alive(stage, first), 4)
    assert time.monotonic() - began < 3.1


def test_a_role_that_somebody_dropped(stage: Stage) -> None:
    name = grant(stage, "warm-7", 60, "public.orders")
    first = visit(stage, subject="warm-7")
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        direct.execute(f'DROP OWNED BY "pgleash_{name}"')
        direct.execute(f'DROP ROLE "pgleash_{name}"')
    time.sleep(2.1)
    assert visit(stage, "SELECT count(*) FROM orders", subject="warm-7") != first


def test_a_new_policy_closes_what_is_kept(own: Stage) -> None:
    first = visit(own)
    assert visit(own) == first
    own.set_policy(POLICY.replace("timeout: 60", "timeout: 61"))
    until(lambda: not alive(own, first), 2)
    second = visit(own)
    assert second != first
    assert own.process is not None
    own.process.send_signal(signal.SIGHUP)
    until(lambda: not alive(own, second), 2)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_gateways_end_closes_them(own: Stage, how: signal.Signals) -> None:
    first = visit(own)
    own.stop_gateway(how)
    until(lambda: not alive(own, first), 2)
    own.start_gateway()
    assert visit(own) != first
    with psycopg.connect(own.server.dsn("shop")) as direct:
        assert direct.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgleash_gr%'").fetchone() == (1,)


def test_a_restarted_server_is_not_noticed(own: Stage) -> None:
    first = visit(own)
    time.sleep(0.5)  # the stage's server writes its WAL late
    own.server.restart()
    assert visit(own) != first


def test_none_is_kept_when_told_so() -> None:
    with Stage(customers=100, settings={"warm": {"total": 0}}) as cold:
        assert visit(cold) != visit(cold)

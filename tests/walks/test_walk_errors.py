"""What an agent is told when it can't have what it wants: SQLSTATE and text, from real drivers."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import asyncpg
import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import POLICY, Stage
from pgleash.v1 import grants_pb2


def refusal(stage: Stage, user: str, token: str, **more: str) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(stage.dsn(user, token, **more))
    return str(caught.value)


async def sqlstate(stage: Stage, user: str, token: str, database: str = "shop") -> str:
    context = ssl.create_default_context(cafile=str(stage.certificates.ca))
    with pytest.raises(asyncpg.PostgresError) as caught:
        await asyncpg.connect(host="localhost", port=stage.port, user=user, password=token, database=database, ssl=context)
    return str(caught.value.sqlstate)


CASES: list[tuple[str, dict[str, Any], dict[str, str], str, str]] = [
    ("expired", {"lifetime": -100}, {}, "28P01", "the token has expired"),
    ("audience", {"audience": "other"}, {}, "28000", "meant for another audience"),
    ("database", {}, {"dbname": "nope"}, "3D000", 'database "nope" is not served here'),
    ("not yet", {"nbf": int(time.time()) + 3600}, {}, "28P01", "the token is not valid yet"),
    ("too long", {"lifetime": 86400}, {}, "28P01", "lives longer than"),
    ("no grant", {"groups": ["nobody"]}, {}, "28000", "has no grant"),
]


@pytest.mark.parametrize(("claims", "more", "state", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_logins_say_why(stage: Stage, claims: dict[str, Any], more: dict[str, str], state: str, text: str) -> None:
    token = stage.token(**{"subject": "agent-x", **claims})
    told = refusal(stage, "agent-x", token, **more)
    assert text in told
    assert "HINT" in told
    assert asyncio.run(sqlstate(stage, "agent-x", token, more.get("dbname", "shop"))) == state


def test_garbage_and_foreign_tokens(stage: Stage) -> None:
    assert "not a token that the gateway understands" in refusal(stage, "agent-7", "hunter2")
    assert "issued to someone else" in refusal(stage, "bob", stage.token())
    assert "issuer that is not trusted" in refusal(stage, "agent-7", stage.token(iss="https://evil.example"))
    head, body, signature = stage.token().split(".")
    assert "signature or form is wrong" in refusal(stage, "agent-7", ".".join((head, body, signature[:-4] + "AAAA")))


def test_plaintext_is_refused(stage: Stage) -> None:
    assert "TLS" in refusal(stage, "agent-7", stage.token(), sslmode="disable")


def test_a_grant_that_expires_ends_the_session(stage: Stage, agent: Agent) -> None:
    request = grants_pb2.GrantServiceCreateRequest(subject="short-1", database="shop", tables=["public.orders"], verbs=["select"])
    request.duration.seconds = 2
    with agent.api("operator") as api:
        made = api.grants.Create(request).grant
    with agent.connect(subject="short-1") as connection:
        assert connection.execute("SELECT count(*) > 0 FROM orders").fetchone() == (True,)
        time.sleep(2.6)
        with pytest.raises(psycopg.OperationalError, match="expired"):
            connection.execute("SELECT 1")
    for _ in range(40):
        with psycopg.connect(stage.server.dsn("shop")) as direct:
            if direct.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (f"pgleash_{made.id}",)).fetchone() is None:
                return
        time.sleep(0.1)
    pytest.fail("the role outlived its grant")


def test_a_grant_covers_its_tables_and_verbs_only(agent: Agent) -> None:
    request = grants_pb2.GrantServiceCreateRequest(subject="narrow-1", database="shop", tables=["public.orders"], verbs=["select"])
    request.duration.seconds = 60
    with agent.api("operator") as api:
        api.grants.Create(request)
    with agent.connect(subject="narrow-1") as connection:
        assert connection.execute("SELECT count(*) > 0 FROM orders").fetchone() == (True,)
        for statement in ("SELECT name FROM customers", "UPDATE orders SET status = 'x' WHERE id = 1", "DROP TABLE orders"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                connection.execute(statement)
            assert caught.value.diag.message_primary is not None
            assert "outside your grant" in caught.value.diag.message_primary


def test_nobody_decides_in_time() -> None:
    with Stage(customers=1000, policy=POLICY.replace("timeout: 60", "timeout: 1")) as short:
        with psycopg.connect(short.dsn("agent-7", short.token()), autocommit=True) as connection:
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                connection.execute("DELETE FROM orders")
            assert "nobody decided on the statement in time" in str(caught.value)
            assert caught.value.diag.message_hint
            assert connection.execute("SELECT count(*) > 0 FROM orders").fetchone() == (True,)
        short.server.stop()
        told = refusal(short, "agent-8", short.token(subject="agent-8"))
        assert "can't be reached" in told
        assert str(short.server.port) not in told


def test_a_held_statement_can_be_cancelled(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.add_notice_handler(lambda told: connection.cancel_safe())
        with pytest.raises(psycopg.errors.QueryCanceled, match="held"):
            connection.execute("DELETE FROM orders")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_running_statement_can_be_cancelled(agent: Agent) -> None:
    import threading

    with agent.connect("analyst") as connection:
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT count(*) FROM orders a, orders b, orders c")
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)

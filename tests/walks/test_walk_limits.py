"""Rows returned and affected, and time: what is too much fails, and leaves nothing behind, in every way a driver may send it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg import sql

from fixtures.gateway import Agent
from pgleash.demo.stage import POLICY, Stage

OBLIGED = POLICY.replace(
    "    verbs: [select, insert, update, delete]\n    effect: allow\n",
    "    verbs: [select, insert, update, delete]\n    effect: allow\n"
    "    obligations: {max_affected: 3, max_rows: 50, statement_timeout: 1, lock_timeout: 2, record: 4096}\n",
    1,
)
assert OBLIGED != POLICY
TOO_MANY = "UPDATE orders SET status = 'limit' WHERE id <= 4"
FEW = "UPDATE orders SET status = 'few' WHERE id <= 3"


@pytest.fixture(scope="module")
def obliged() -> Iterator[Stage]:
    with Stage(customers=2000, policy=OBLIGED) as stage:
        with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
            direct.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
            direct.execute("CREATE TABLE late (id int PRIMARY KEY, other int REFERENCES notes DEFERRABLE INITIALLY DEFERRED)")
            direct.execute("ALTER TABLE notes OWNER TO shop_owner; ALTER TABLE late OWNER TO shop_owner")
        yield stage


@pytest.fixture
def connection(obliged: Stage) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(obliged.server.dsn("shop"), autocommit=True) as direct:
        direct.execute("TRUNCATE notes CASCADE")
        direct.execute("UPDATE orders SET status = 'new' WHERE id <= 10")
    with Agent(obliged).connect() as made:
        yield made


def truth(stage: Stage, text: str) -> Any:
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        row = direct.execute(text).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row[0]


def touched(stage: Stage) -> Any:
    return truth(stage, "SELECT count(*) FROM orders WHERE status IN ('limit', 'few')")


def simple(connection: psycopg.Connection[Any], text: str) -> Any:
    return psycopg.ClientCursor(connection).execute(text)  # type: ignore[arg-type]


WAYS: list[Any] = [simple, lambda c, t: c.execute(t, prepare=False), lambda c, t: c.execute(t, prepare=True)]


@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
def test_outside_a_transaction_nothing_stays(obliged: Stage, connection: psycopg.Connection[Any], send: Any) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="4 rows would be changed") as caught:
            send(connection, TOO_MANY)
        detail = json.loads(str(caught.value.diag.message_detail))
        assert (detail["limit"], detail["allowed"], detail["rule"]) == ("max_affected", 3, "agents-work")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert touched(obliged) == 0
    assert send(connection, FEW).statusmessage == "UPDATE 3"
    assert touched(obliged) == 3
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
def test_a_transaction_can_only_roll_back(obliged: Stage, connection: psycopg.Connection[Any], send: Any) -> None:
    connection.execute("BEGIN")
    assert send(connection, FEW).statusmessage == "UPDATE 3"
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        send(connection, TOO_MANY)
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        send(connection, "SELECT 1")
    assert connection.execute("COMMIT").statusmessage == "ROLLBACK"
    assert touched(obliged) == 0


@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
def test_a_savepoint_is_rolled_back_to(obliged: Stage, connection: psycopg.Connection[Any], send: Any) -> None:
    connection.execute("BEGIN")
    send(connection, "UPDATE orders SET status = 'few' WHERE id = 1")
    connection.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        send(connection, TOO_MANY)
    connection.execute("ROLLBACK TO s")
    assert connection.execute("COMMIT").statusmessage == "COMMIT"
    assert touched(obliged) == 1


def test_a_message_of_several_statements_is_one(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        simple(connection, f"UPDATE orders SET status = 'few' WHERE id = 9; {TOO_MANY}; SELECT 1")
    assert touched(obliged) == 0
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        simple(connection, "; ".join(f"UPDATE orders SET status = 'few' WHERE id = {number}" for number in range(1, 5)))
    assert touched(obliged) == 0
    cursor = simple(connection, "SELECT 1; UPDATE orders SET status = 'few' WHERE id = 1; SELECT 2")
    assert [cursor.fetchall(), cursor.nextset(), cursor.statusmessage, cursor.nextset(), cursor.fetchall()] == [
        [(1,)], True, "UPDATE 1", True, [(2,)],
    ]  # fmt: skip
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="transaction"):
        simple(connection, f"BEGIN; {TOO_MANY}; COMMIT")
    assert touched(obliged) == 1


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO notes SELECT g, 'x' FROM generate_series(1, 4) g",
        "INSERT INTO notes SELECT id, 'x' FROM orders WHERE id <= 4",
        "INSERT INTO notes SELECT g, 'x' FROM generate_series(1, 4) g ON CONFLICT (id) DO UPDATE SET body = 'y' RETURNING id",
        "MERGE INTO notes n USING (SELECT id FROM orders WHERE id <= 4) o ON n.id = o.id WHEN NOT MATCHED THEN INSERT VALUES (o.id, 'x')",
    ],
)
@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
def test_every_writing_statement_is_counted(obliged: Stage, connection: psycopg.Connection[Any], send: Any, text: str) -> None:
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        send(connection, text)
    assert truth(obliged, "SELECT count(*) FROM notes") == 0
    send(connection, text.replace("(1, 4)", "(1, 2)").replace("<= 4", "<= 2"))
    assert truth(obliged, "SELECT count(*) FROM notes") == 2


@pytest.mark.parametrize(
    "text",
    [
        "WITH w AS (UPDATE orders SET status = 'few' WHERE id <= 9 RETURNING 1) SELECT count(*) FROM w",
        "WITH w AS (INSERT INTO notes VALUES (1), (2), (3), (4) RETURNING id) UPDATE orders SET status = 'few' WHERE id = 1",
        "EXPLAIN ANALYZE UPDATE orders SET status = 'few' WHERE id <= 9",
    ],
)
def test_what_no_tag_counts_is_not_sent(obliged: Stage, connection: psycopg.Connection[Any], text: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="limits the affected rows"):
        simple(connection, text)
    assert touched(obliged) == 0


def copy_in(connection: psycopg.Connection[Any], rows: int) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY notes FROM STDIN") as copy:
        for number in range(rows):
            copy.write_row((number, "x"))


def test_copy_is_counted(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        copy_in(connection, 4)
    assert truth(obliged, "SELECT count(*) FROM notes") == 0
    copy_in(connection, 3)
    assert truth(obliged, "SELECT count(*) FROM notes") == 3
    with pytest.raises(psycopg.errors.UniqueViolation):
        copy_in(connection, 3)
    with pytest.raises(psycopg.errors.QueryCanceled), connection.cursor() as cursor, cursor.copy("COPY notes FROM STDIN") as copy:
        copy.write_row((9, "x"))
        raise psycopg.errors.QueryCanceled("given up")
    assert connection.execute("SELECT 1").fetchone() == (1,)
    assert truth(obliged, "SELECT count(*) FROM notes") == 3


def test_a_pipeline_is_taken_back_to_its_sync(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded), connection.pipeline() as pipeline:
        connection.execute("UPDATE orders SET status = 'few' WHERE id = 9")
        connection.execute(TOO_MANY)
        connection.execute("UPDATE orders SET status = 'few' WHERE id = 8")
        pipeline.sync()
    assert touched(obliged) == 0
    with connection.pipeline():
        made = [connection.execute("UPDATE orders SET status = 'few' WHERE id = %s", (number,)) for number in range(1, 7)]
    assert [cursor.statusmessage for cursor in made] == ["UPDATE 1"] * 6
    assert touched(obliged) == 6


def test_a_commit_that_fails_is_told_in_its_place(connection: psycopg.Connection[Any]) -> None:
    for send in WAYS:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            send(connection, "INSERT INTO late VALUES (1, 77)")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with pytest.raises(psycopg.errors.DivisionByZero):
            send(connection, "UPDATE orders SET status = (1 / (id - id))::text WHERE id = 1")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_sql_prepared_statements_are_counted(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    simple(connection, "PREPARE p(int) AS UPDATE orders SET status = 'few' WHERE id <= $1")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        simple(connection, "EXECUTE p(4)")
    assert simple(connection, "EXECUTE p(2)").statusmessage == "UPDATE 2"
    assert touched(obliged) == 2


@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
@pytest.mark.parametrize("text", ["SELECT id, email FROM customers ORDER BY id LIMIT {}", "SELECT id FROM orders ORDER BY id LIMIT {}"])
def test_rows_returned_are_counted(connection: psycopg.Connection[Any], send: Any, text: str) -> None:
    assert len(send(connection, text.format(50)).fetchall()) == 50
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="more than the 50 rows"):
        send(connection, text.format(51))
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    connection.execute("BEGIN")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        send(connection, text.format(2000))
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
    connection.execute("ROLLBACK")
    assert send(connection, text.format(1)).fetchall()


def test_fetches_and_portals_do_not_hide_rows(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    connection.execute("BEGIN")
    connection.execute("DECLARE c CURSOR FOR SELECT id FROM orders ORDER BY id")
    assert len(connection.execute("FETCH 50 FROM c").fetchall()) == 50
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        connection.execute("FETCH ALL FROM c")
    connection.execute("ROLLBACK")

    async def walk() -> None:
        where, password = connection.info.get_parameters(), connection.info.password
        made = await asyncpg.connect(
            host=where["host"], port=int(where["port"]), user=where["user"], database=where["dbname"], password=password, ssl="require"
        )
        try:
            with pytest.raises(asyncpg.PostgresError, match="more than the 50 rows"):
                async with made.transaction():
                    async for _ in made.cursor("SELECT id FROM orders ORDER BY id", prefetch=20):
                        pass
        finally:
            await made.close()

    asyncio.run(walk())


@pytest.mark.parametrize("send", WAYS, ids=["simple", "extended", "prepared"])
def test_time_is_kept_whatever_the_session_sets(connection: psycopg.Connection[Any], send: Any) -> None:
    connection.execute("SET statement_timeout = 0")
    began = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled, match="longer than the 1 s that rule agents-work allows") as caught:
        send(connection, "SELECT pg_sleep(20), count(*) FROM orders WHERE id < 3")
    assert 0.9 < time.monotonic() - began < 2.5
    assert json.loads(str(caught.value.diag.message_detail))["limit"] == "statement_timeout"
    assert send(connection, "SELECT count(*) FROM orders WHERE id < 3").fetchone() == (2,)


def test_locks_are_not_waited_for_longer(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    assert connection.execute("SHOW lock_timeout").fetchone() == ("2s",)
    for text in ("SET lock_timeout = 0", "SET LOCAL lock_timeout = '1min'", "SELECT set_config('lock_timeout', '0', false)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="lock_timeout may be at most 2 s"):
            connection.execute(text)
    connection.execute("SET lock_timeout = '100ms'")
    with psycopg.connect(obliged.server.dsn("shop")) as other:
        other.execute("LOCK TABLE orders")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute("SELECT count(*) FROM orders WHERE id < 3")
    connection.execute("RESET lock_timeout")
    assert connection.execute("SHOW lock_timeout").fetchone() == ("2s",)


def test_a_suspended_portal_does_not_hide_its_count(obliged: Stage, connection: psycopg.Connection[Any]) -> None:
    async def walk() -> None:
        with Agent(obliged).connect() as known:
            where, password = known.info.get_parameters(), known.info.password
        made = await asyncpg.connect(
            host=where["host"], port=int(where["port"]), user=where["user"], database=where["dbname"], password=password, ssl="require"
        )
        try:
            with pytest.raises(asyncpg.PostgresError):
                async with made.transaction():
                    cursor = await made.cursor("UPDATE orders SET status = 'few' WHERE id <= 9 RETURNING id")
                    await cursor.fetch(1)
                    await cursor.fetch(1)
        finally:
            await made.close()

    asyncio.run(walk())
    assert touched(obliged) == 0


def test_identifiers_in_the_error_are_quoted_by_nobody(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded) as caught:
        connection.execute(sql.SQL("UPDATE orders SET status = {} WHERE id <= 4").format(sql.Literal("\ue000")))
    assert "4 rows" in str(caught.value.diag.message_primary)

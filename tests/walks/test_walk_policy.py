"""Ways around the policy that were tried, from a real driver: none may show a value or run what is held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import POLICY, Stage

REAL = ("tony.moore7@example.org", "4000000000055433")
LEAKS = [
    "SELECT * FROM customers WHERE id = 7",
    "SELECT c FROM customers c WHERE id = 7",
    "SELECT row_to_json(c) FROM customers c WHERE id = 7",
    "SELECT to_jsonb(customers.*) FROM customers WHERE id = 7",
    "SELECT email || '' FROM customers WHERE id = 7",
    "SELECT substr(email, 1, 5) FROM customers WHERE id = 7",
    "SELECT max(email) FROM customers",
    "SELECT string_agg(email, ',') FROM customers WHERE id < 9",
    "SELECT array_agg(email) FROM customers WHERE id < 9",
    "SELECT (SELECT email FROM customers WHERE id = 7)",
    "WITH x AS (SELECT email AS y FROM customers WHERE id = 7) SELECT y FROM x",
    "SELECT email FROM customers WHERE id = 7 UNION SELECT 'x'",
    "SELECT 'x' UNION ALL SELECT email FROM customers WHERE id = 7",
    "SELECT * FROM (SELECT email AS e FROM customers) s(z) WHERE z LIKE 'tony.moore7%'",
    "SELECT CASE WHEN email LIKE 'tony%' THEN email END FROM customers WHERE id = 7",
    "SELECT coalesce(email, 'x') FROM customers WHERE id = 7",
    "SELECT x.e FROM customers c, LATERAL (SELECT c.email AS e) x WHERE c.id = 7",
    "UPDATE customers SET name = name WHERE id = 7 RETURNING email",
    "UPDATE customers SET name = email WHERE id = 7 RETURNING name",
    "INSERT INTO employees (name, email, title, salary) SELECT email, 'e', 't', 1 FROM customers WHERE id = 7 RETURNING name",
    'SELECT upper(email COLLATE "C") FROM customers WHERE id = 7',
    "SELECT email::bytea FROM customers WHERE id = 7",
    "SELECT encode(email::bytea, 'base64') FROM customers WHERE id = 7",
    "SELECT query_to_xml('SELECT email FROM customers WHERE id = 7', true, false, '')",
    "SELECT table_to_xml('customers', true, false, '')",
    "SELECT most_common_vals FROM pg_stats WHERE tablename = 'customers'",
    "SELECT histogram_bounds FROM pg_stats WHERE tablename = 'customers'",
    "SELECT cast(email AS int) FROM customers WHERE id = 7",
    "SELECT 1 / (CASE WHEN email = 'tony.moore7@example.org' THEN 0 ELSE 1 END) FROM customers WHERE id = 7",
    "TABLE customers",
    "COPY customers TO STDOUT",
    "COPY (SELECT email FROM customers) TO STDOUT",
    "VALUES ((SELECT email FROM customers WHERE id = 7))",
    "SELECT * FROM customers TABLESAMPLE BERNOULLI (1) WHERE id < 20",
    "SELECT 1; SELECT email FROM customers WHERE id = 7",
    "PREPARE p AS SELECT email FROM customers WHERE id = 7; EXECUTE p",
    "BEGIN; DECLARE c CURSOR FOR SELECT email FROM customers WHERE id = 7; FETCH ALL FROM c; COMMIT",
    "EXPLAIN ANALYZE SELECT * FROM customers WHERE email = 'tony.moore7@example.org'",
    "CREATE TEMP TABLE stolen AS SELECT email FROM customers WHERE id = 7; SELECT * FROM stolen",
    "SELECT email INTO TEMP stolen2 FROM customers WHERE id = 7; SELECT * FROM stolen2",
    "DO $$ BEGIN RAISE NOTICE '%', (SELECT email FROM customers WHERE id = 7); END $$",
    "SELECT set_config('a.b', email, false) FROM customers WHERE id = 7; SHOW a.b",
    "SELECT lo_from_bytea(0, email::bytea) FROM customers WHERE id = 7",
    "SELECT pg_notify('x', email) FROM customers WHERE id = 7",
]


@pytest.fixture
def connection(agent: Agent) -> Iterator[psycopg.Connection[Any]]:
    with agent.connect(subject="prober-1") as made:
        yield made


@pytest.mark.parametrize("statement", LEAKS)
def test_no_way_shows_a_masked_value(connection: psycopg.Connection[Any], statement: str) -> None:
    seen: list[str] = []
    connection.add_notice_handler(lambda told: seen.append(str(told.message_primary)))
    connection.execute("SET statement_timeout = 3000")
    cursor = psycopg.ClientCursor(connection)
    try:
        if statement.startswith("COPY"):
            with cursor.copy(statement) as copy:
                seen += [bytes(block).decode() for block in copy]
        else:
            cursor.execute(statement)
            while True:
                if cursor.description is not None:
                    seen += [str(row) for row in cursor.fetchall()]
                if not cursor.nextset():
                    break
    except psycopg.Error as error:
        seen.append(str(error).replace("'tony.moore7@example.org'", ""))
    text = "\n".join(seen)
    for value in REAL:
        assert value not in text
        assert value[:8] not in text


HELD = [
    "DELETE FROM orders",
    "DELETE FROM orders WHERE true",
    "UPDATE orders SET status = 'x'",
    "UPDATE orders SET status = 'x' WHERE id = id OR 1 = 1",
    "WITH d AS (DELETE FROM orders RETURNING 1) SELECT count(*) FROM d",
    "TRUNCATE orders",
    "ALTER TABLE orders DROP COLUMN status",
    "DROP TABLE orders",
    "CREATE INDEX i ON orders (status)",
    "EXPLAIN ANALYZE DELETE FROM orders",
    "SELECT 1; DELETE FROM orders",
    "PREPARE d AS DELETE FROM orders; EXECUTE d",
    "/* harmless */ dElEtE /**/ FrOm ONLY public . orders",
    "COMMENT ON TABLE orders IS 'x'",
    "CREATE TABLE loot AS SELECT 1 AS one",
]


@pytest.mark.parametrize("statement", HELD)
def test_every_spelling_is_held_or_denied(agent: Agent, statement: str) -> None:
    with agent.connect(subject="prober-2") as connection:
        connection.add_notice_handler(lambda told: "held" in str(told.message_primary) and connection.cancel_safe())
        with pytest.raises(psycopg.Error) as caught:
            psycopg.ClientCursor(connection).execute(statement)
        assert caught.value.sqlstate in ("42501", "57014")


@pytest.mark.parametrize(
    "statement", ["DELETE FROM orders", "UPDATE orders SET status = status", "WITH d AS (DELETE FROM orders RETURNING 1) SELECT 1 FROM d"]
)
def test_a_prepared_statement_is_held_each_time_it_is_executed(agent: Agent, statement: str) -> None:
    with agent.connect(subject="prober-4") as connection:
        connection.add_notice_handler(lambda told: "held" in str(told.message_primary) and connection.cancel_safe())
        for _ in range(2):
            with pytest.raises(psycopg.errors.QueryCanceled, match="was held and has not run"):
                connection.execute(statement, prepare=True)
        with pytest.raises(psycopg.errors.QueryCanceled):
            psycopg.ClientCursor(connection).execute(statement)
    with psycopg.connect(agent.stage.server.dsn("shop")) as direct:
        assert direct.execute("SELECT count(*) >= 40000 FROM orders").fetchone() == (True,)
        assert direct.execute("SELECT count(*) FROM orders WHERE status = 'x'").fetchone() == (0,)


def test_limits_hold_over_all_sessions_of_a_principal() -> None:
    policy = POLICY + "\nlimits:\n  - {who: {subjects: [stormy]}, sessions: 2, statements_per_minute: 30}\n"
    with Stage(customers=1000, policy=policy) as stage:

        def connect() -> psycopg.Connection[Any]:
            return psycopg.connect(stage.dsn("stormy", stage.token(subject="stormy")), autocommit=True)

        with connect() as one, connect() as two:
            with pytest.raises(psycopg.OperationalError, match="limit is 2"):
                connect()
            told = None
            for number in range(40):
                try:
                    (one, two)[number % 2].execute("SELECT 1", prepare=False)
                except psycopg.Error as error:
                    told = error
                    break
            assert told is not None and told.sqlstate == "53400"
            assert 29 <= number <= 32
            time.sleep(2.2)
            assert one.execute("SELECT 1").fetchone() == (1,)
            # Known verdicts are counted too, in every protocol and whatever the literals are.
            time.sleep(6)
            ran = 0
            for number in range(20):
                try:
                    two.pgconn.exec_(b"SELECT %d" % number)
                    one.execute("SELECT 1", prepare=True)
                    ran += 2
                except psycopg.Error as error:
                    assert error.sqlstate == "53400"
            assert ran <= 12
        with psycopg.connect(stage.dsn("calm", stage.token(subject="calm")), autocommit=True) as other:
            for _ in range(50):
                other.execute("SELECT 1")

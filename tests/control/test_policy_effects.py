"""What statements do behind what they say, held against PostgreSQL's own locks: no relation that it touches is left out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.policy.analysis import touches
from control.policy.catalog import Catalog, Snapshot
from control.policy.effects import Effects, Reach
from control.policy.reading import read_facts
from fixtures.servers import postgres  # noqa: F401
from kit.postgres import PostgresServer

PATHS = (("public",),)
SCHEMA = Path(__file__).with_name("effects_schema.sql")


class Shop:
    """A database of its own, and its catalog."""

    def __init__(self, server: PostgresServer) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS effects")
            admin.execute("CREATE DATABASE effects")
        self.connection = psycopg.connect(server.dsn(dbname="effects"), autocommit=True)
        self.connection.execute(SCHEMA.read_text())
        self.snapshot: Snapshot = asyncio.run(_read(server))
        self.reach = Reach(self.snapshot)

    def effects(self, sql: str) -> Effects:
        (facts,) = read_facts(sql.encode(), None)
        return self.reach.of(facts, PATHS, frozenset())

    def told(self, sql: str) -> dict[str, set[str]]:
        """Every relation that the facts know of, with what is done to it."""
        (facts,) = read_facts(sql.encode(), None)
        effects = self.reach.of(facts, PATHS, frozenset())
        found: dict[str, set[str]] = {name: {"checked"} for name in effects.checked}
        for touch in (*touches(facts, self.snapshot, PATHS, frozenset()), *effects.touches):
            found.setdefault(touch.table, set()).add(touch.verb + (" wide" if touch.wide else ""))
        return found

    def locked(self, sql: str) -> set[str]:
        """The relations that the server locks when it runs this, which is then undone."""
        self.connection.execute("BEGIN")
        try:
            self.connection.execute(sql.encode())
            rows = self.connection.execute(
                "SELECT n.nspname || '.' || relname FROM pg_locks l JOIN pg_class c ON c.oid = relation JOIN pg_namespace n"
                " ON n.oid = relnamespace WHERE pid = pg_backend_pid() AND c.oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f')"
                " AND nspname <> 'pg_toast'"
            ).fetchall()
        finally:
            self.connection.execute("ROLLBACK")
        return {name for (name,) in rows}


async def _read(server: PostgresServer) -> Snapshot:
    catalog = Catalog(psycopg.conninfo.conninfo_to_dict(server.dsn(dbname="effects")))
    try:
        return await catalog.refresh()
    finally:
        await catalog.rest()


@pytest.fixture(scope="module")
def shop(postgres: PostgresServer) -> Iterator[Shop]:  # noqa: F811
    made = Shop(postgres)
    yield made
    made.connection.close()


@pytest.mark.parametrize(
    ("sql", "table", "verb"),
    [
        ("DELETE FROM customers WHERE id = 1", "public.orders", "delete"),
        ("DELETE FROM customers WHERE id = 1", "public.items", "delete"),
        ("DELETE FROM customers WHERE id = 1", "public.audit_log", "insert"),
        ("DELETE FROM employees WHERE id = 1", "public.items", "update"),
        ("UPDATE customers SET id = 5000 WHERE id = 1", "public.orders", "update"),
        ("INSERT INTO quiet VALUES (9)", "public.employees", "delete wide"),
        ("UPDATE notes SET body = 'x' WHERE id = 1", "public.items", "delete"),
        ("SELECT purge()", "public.customers", "delete wide"),
        ("SELECT purge_one(1)", "public.customers", "delete"),
        ("SELECT purge_deep()", "public.customers", "delete wide"),
        ("SELECT purge_deep()", "public.notes", "select"),
        ("SELECT runs_one()", "public.employees", "delete wide"),
        ("SELECT pays(1)", "public.employees", "select"),
        ("SELECT c.of_row FROM customers c", "public.notes", "delete wide"),
        ("SELECT (c).of_row FROM customers c", "public.notes", "delete wide"),
        ("SELECT hidden.spares()", "public.notes", "delete wide"),
        ("SELECT 1 ?!? 2", "public.employees", "delete wide"),
        ("SELECT odd_sum(id) FROM customers", "public.notes", "delete wide"),
        ("CALL clears()", "public.items", "truncate"),
        ("INSERT INTO defaulted (id) VALUES (1)", "public.notes", "delete wide"),
        ("DELETE FROM redirected WHERE id = 1", "public.employees", "delete"),
        ("DELETE FROM cheaper", "public.orders", "delete wide"),
        ("SELECT * FROM paid", "public.employees", "select"),
        ("DELETE FROM events", "public.events_old", "delete wide"),
        ("DELETE FROM events_old", "public.events", "delete wide"),
        ("SELECT * FROM animals", "public.dogs", "select"),
        ("TRUNCATE customers CASCADE", "public.items", "truncate"),
        ("REFRESH MATERIALIZED VIEW totals", "public.orders", "select"),
        ("DO $$ BEGIN DELETE FROM employees; END $$", "public.employees", "delete wide"),
        ("DROP SCHEMA public CASCADE", "public.customers", "ddl"),
    ],
)
def test_what_is_behind(shop: Shop, sql: str, table: str, verb: str) -> None:
    assert verb in shop.told(sql).get(table, set())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT add_tax(10)",
        "SELECT order_total(1)",
        "SELECT pays(1)",
        "INSERT INTO orders (customer, amount) VALUES (1, 2)",
        "UPDATE customers SET name = 'x' WHERE id = 1",
        "SELECT * FROM cheaper",
        "INSERT INTO notes VALUES (1)",
    ],
)
def test_what_is_harmless(shop: Shop, sql: str) -> None:
    effects = shop.effects(sql)
    assert not effects.unknown and not effects.refusals
    assert not [touch for touch in effects.touches if touch.verb != "select" and touch.table != "public.audit_log"]


def test_what_can_not_be_known_is_named(shop: Shop) -> None:
    assert list(shop.effects("SELECT runs('x')").unknown) == ["public.runs"]
    assert shop.effects("DO $$ BEGIN EXECUTE current_setting('x'); END $$").dark


STATEMENTS = [
    "SELECT * FROM customers JOIN orders ON customer = customers.id",
    "DELETE FROM customers WHERE id = 3",
    "DELETE FROM customers",
    "DELETE FROM employees WHERE id = 2",
    "UPDATE customers SET id = id + 1000",
    "UPDATE customers SET name = 'y' WHERE id = 3",
    "INSERT INTO quiet VALUES (9)",
    "INSERT INTO quiet VALUES (1)",
    "UPDATE notes SET body = 'x' WHERE id = 1",
    "SELECT purge()",
    "SELECT purge_one(4)",
    "SELECT purge_deep()",
    "SELECT order_total(4)",
    "SELECT pays(1)",
    "SELECT runs_one()",
    "SELECT 1 ?!? 2",
    "SELECT c.of_row FROM customers c",
    "SELECT odd_sum(id) FROM customers",
    "CALL clears()",
    "INSERT INTO defaulted (id) VALUES (1)",
    "DELETE FROM redirected WHERE id = 1",
    "DELETE FROM cheaper",
    "UPDATE cheap SET amount = 1 WHERE id = 2",
    "SELECT * FROM paid",
    "INSERT INTO cheap (customer, amount) VALUES (1, 1)",
    "SELECT * FROM events",
    "DELETE FROM events WHERE id = 1",
    "INSERT INTO events VALUES (1, '2030-01-01')",
    "DELETE FROM events_old",
    "SELECT * FROM animals",
    "UPDATE animals SET name = 'z'",
    "DELETE FROM ONLY animals",
    "INSERT INTO dogs VALUES (1)",
    "TRUNCATE customers CASCADE",
    "TRUNCATE events",
    "TRUNCATE items",
    "REFRESH MATERIALIZED VIEW totals",
    "SELECT * FROM totals",
    "DO $$ BEGIN DELETE FROM employees; END $$",
    "WITH gone AS (DELETE FROM customers RETURNING id) SELECT * FROM gone, notes",
    "LOCK TABLE cheaper",
    "COPY (SELECT * FROM paid) TO STDOUT",
    "MERGE INTO customers c USING notes n ON c.id = n.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING",
    "EXPLAIN ANALYZE DELETE FROM orders",
    "CREATE TABLE made AS SELECT * FROM cheaper",
    "SELECT * FROM orders FOR UPDATE",
    "INSERT INTO orders (customer, amount) SELECT id, order_total(id) FROM customers",
    "DECLARE c CURSOR FOR SELECT * FROM cheaper",
    "UPDATE orders SET amount = 1 FROM cheaper WHERE cheaper.id = orders.id",
    "SELECT hidden.spares() FROM dogs",
    "INSERT INTO customers VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET id = 900",
    "SELECT (SELECT max(salary) FROM paid)",
]


@pytest.mark.parametrize("sql", STATEMENTS)
def test_no_relation_that_the_server_locks_is_left_out(shop: Shop, sql: str) -> None:
    if sql.startswith("COPY"):
        sql = sql.replace("COPY (", "EXPLAIN ANALYZE ").replace(") TO STDOUT", "")
    told = set(shop.told(sql))
    assert shop.locked(sql) - {"public.made"} <= told


TABLES = [
    "customers",
    "orders",
    "items",
    "employees",
    "notes",
    "quiet",
    "events",
    "events_old",
    "animals",
    "dogs",
    "cheap",
    "cheaper",
    "paid",
]
VALUES = [
    "1",
    "purge_deep()",
    "order_total(3)::int",
    "pays(2)",
    "(SELECT max(id) FROM {0})",
    "(SELECT odd_sum(id) FROM {0})",
    "runs_one() IS NULL",
]
CONDITIONS = [
    "true",
    "EXISTS (SELECT 1 FROM {0})",
    "1 ?!? 2",
    "pays(1) > 0",
    "(SELECT count(*) FROM {0}, {1}) > 0",
    "order_total(1) IS NULL",
]
FORMS = [
    "SELECT {value} FROM {0} WHERE {condition}",
    "SELECT * FROM {0} a JOIN {1} b ON {condition} LIMIT 3",
    "DELETE FROM {0} WHERE {condition}",
    "WITH w AS (DELETE FROM {0} WHERE {condition} RETURNING 1) SELECT {value} FROM w, {1}",
    "WITH w AS MATERIALIZED (SELECT {value} AS v FROM {1}) DELETE FROM {0} USING w WHERE {condition}",
    "UPDATE customers SET id = id + 100 FROM {0} WHERE {condition}",
    "UPDATE notes SET body = 'x' WHERE {condition}",
    "INSERT INTO quiet SELECT 6 FROM {0} WHERE {condition}",
    "INSERT INTO defaulted (id) SELECT 1 FROM {1} LIMIT 1",
    "MERGE INTO employees e USING {0} s ON {condition} WHEN NOT MATCHED THEN INSERT (id) VALUES (777) WHEN MATCHED THEN DELETE",
    "EXPLAIN (ANALYZE) DELETE FROM {0} WHERE {condition}",
    "CREATE TEMP TABLE made AS SELECT {value} AS v FROM {0}",
    "(SELECT 1 FROM {0} WHERE {condition}) UNION ALL (SELECT 2 FROM {1})",
    "DO $$ BEGIN PERFORM {value} FROM {0}; DELETE FROM {1} WHERE {condition}; END $$",
    "SELECT 1 FROM {0} ORDER BY {value} LIMIT 2",
    "TRUNCATE {0} CASCADE",
]


@given(
    st.sampled_from(FORMS),
    st.sampled_from(VALUES),
    st.sampled_from(CONDITIONS),
    st.tuples(st.sampled_from(TABLES), st.sampled_from(TABLES)),
)
@settings(max_examples=int(os.environ.get("PGLEASH_EXAMPLES", "400")), deadline=None, suppress_health_check=list(HealthCheck))
def test_no_made_up_statement_touches_more_than_is_told(shop: Shop, form: str, value: str, condition: str, tables: tuple[str, str]) -> None:
    sql = form.format(*tables, value=value.format(*tables), condition=condition.format(*tables))
    told = set(shop.told(sql))
    try:
        locked = shop.locked(sql)
    except psycopg.Error:
        return  # the server does not run it
    assert {name for name in locked if not name.startswith("pg_temp")} <= told, sql

"""What statements reach without naming it: by types, row security, keys over several tables, drops, event triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from control.policy.analysis import Masking, forbidden_use, result_columns, touches
from control.policy.catalog import Catalog, Snapshot
from control.policy.document import read_policy
from control.policy.effects import Reach
from control.policy.reading import read_facts
from control.policy.rules import Mask
from fixtures.servers import postgres  # noqa: F401
from kit.postgres import PostgresServer

PATHS = (("public",),)


async def _read(server: PostgresServer) -> Snapshot:
    catalog = Catalog(psycopg.conninfo.conninfo_to_dict(server.dsn(dbname="reach")))
    try:
        return await catalog.refresh()
    finally:
        await catalog.rest()


class Place:
    """A database of its own and its catalog."""

    def __init__(self, server: PostgresServer) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS reach")
            admin.execute("CREATE DATABASE reach")
        self.server = server
        self.connection = psycopg.connect(server.dsn(dbname="reach"), autocommit=True)
        self.connection.execute(Path(__file__).with_name("reach_schema.sql").read_text())
        self.read()

    def read(self) -> None:
        """Read the catalog as it is now."""
        self.snapshot = asyncio.run(_read(self.server))
        self.reach = Reach(self.snapshot)

    def told(self, sql: str) -> set[str]:
        """What is touched, as ``verb table``."""
        (facts,) = read_facts(sql.encode(), None)
        effects = self.reach.of(facts, PATHS, frozenset())
        every = (*touches(facts, self.snapshot, PATHS, frozenset()), *effects.touches)
        return {f"{touch.verb} {touch.table.removeprefix('public.')}" for touch in every} | {f"unknown {name}" for name in effects.unknown}


@pytest.fixture(scope="module")
def place(postgres: PostgresServer) -> Iterator[Place]:  # noqa: F811
    made = Place(postgres)
    yield made
    made.connection.close()


@pytest.mark.parametrize(
    ("sql", "reached"),
    [
        ("SELECT * FROM guarded", "delete secret"),
        ("SELECT * FROM guarded", "select acl"),
        ("SELECT 5::checked", "delete secret"),
        ("SELECT CAST(5 AS checked_twice)", "delete secret"),
        ("SELECT '(1,2)'::pair", "delete secret"),
        ("INSERT INTO with_domain VALUES (1)", "delete secret"),
        ("INSERT INTO with_pair VALUES ('(1,2)')", "delete secret"),
        ("COPY with_domain FROM STDIN", "delete secret"),
        ("INSERT INTO purse SELECT c FROM coins", "delete secret"),
        ("INSERT INTO purse VALUES (ROW(1)::coin)", "delete secret"),
        ("SELECT c::note_coin FROM coins", "delete secret"),
        ("SELECT * FROM coins ORDER BY c", "delete secret"),
        ("SELECT DISTINCT c FROM coins", "delete secret"),
        ("SELECT max(c) FROM coins WHERE c BETWEEN ROW(1)::coin AND ROW(2)::coin", "delete secret"),
        ("UPDATE first SET id = 2", "update second"),
        ("UPDATE first SET id = 2", "update third"),
        ("UPDATE renamed SET number = 2", "update third"),
        ("DELETE FROM first WHERE id = 1", "update third"),
        ("INSERT INTO first VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 7", "update third"),
        ("UPDATE moved SET body = 'y'", "update after_moved"),
        ("UPDATE watched SET body = 'y'", "delete secret"),
        ("UPDATE watched SET (plain, body) = ('y', 'z')", "delete secret"),
        ("INSERT INTO by_class VALUES (1)", "delete secret"),
        ("INSERT INTO by_expression VALUES (1)", "delete secret"),
        ("INSERT INTO computed VALUES (1)", "delete secret"),
        ("SELECT by_row()", "delete secret"),
        ("SELECT by_variable()", "delete secret"),
        ("SELECT by_argument(1)", "delete secret"),
        ("DROP TABLE open CASCADE", "ddl on_view"),
        ("DROP TABLE open CASCADE", "ddl refers"),
        ("DROP VIEW on_open CASCADE", "ddl on_view"),
        ("ALTER TABLE open DROP COLUMN id CASCADE", "ddl on_view"),
        ("DROP SCHEMA side CASCADE", "ddl on_side"),
        ("DROP TYPE mood CASCADE", "ddl moody"),
        ("DROP DOMAIN checked_twice CASCADE", "ddl with_domain"),
    ],
)
def test_what_is_reached(place: Place, sql: str, reached: str) -> None:
    assert reached in place.told(sql)


@pytest.mark.parametrize(
    ("sql", "spared"),
    [
        ("UPDATE first SET other = 'y'", "second"),
        ("UPDATE stamped SET body = 'y'", "after_stamped"),
        ("UPDATE watched SET plain = 'y'", "secret"),
        ("SELECT 5::int", "secret"),
        ("SELECT * FROM open ORDER BY id", "secret"),
        ("SELECT * FROM open WHERE id BETWEEN 1 AND 2", "unknown"),
        ("SELECT * FROM computed", "secret"),
        ("DROP TABLE open", "on_open"),
        ("ALTER TABLE open ADD COLUMN more int", "on_open"),
        ("CREATE TABLE more (id int)", "secret"),
    ],
)
def test_what_is_not_reached(place: Place, sql: str, spared: str) -> None:
    assert not [each for each in place.told(sql) if spared in each and not each.startswith("ddl open")]


def test_event_triggers_fire_on_definitions(place: Place) -> None:
    place.connection.execute(
        "CREATE FUNCTION follows() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret; END $$;"
        "CREATE EVENT TRIGGER follows ON ddl_command_end EXECUTE FUNCTION follows()"
    )
    try:
        place.read()
        for sql in (
            "CREATE TABLE x (id int)",
            "COMMENT ON TABLE open IS 'x'",
            "DO $$ BEGIN CREATE TABLE y (); END $$",
            "DROP VIEW on_view",
        ):
            assert "delete secret" in place.told(sql), sql
        assert "delete secret" not in place.told("SELECT * FROM open")
    finally:
        place.connection.execute("DROP EVENT TRIGGER follows; DROP FUNCTION follows()")
        place.read()


def test_locks_of_a_transaction_do_not_keep_the_catalog_from_being_read(place: Place) -> None:
    async def read_twice() -> tuple[Snapshot, Snapshot]:
        catalog = Catalog(psycopg.conninfo.conninfo_to_dict(place.server.dsn(dbname="reach")))
        try:
            before = await catalog.refresh()
            with psycopg.connect(place.server.dsn(dbname="reach")) as busy:
                busy.execute("ALTER TABLE open RENAME TO shut")  # on_open, a view, is of it
                place.connection.execute("GRANT SELECT ON acl TO public; CREATE TABLE fresh (id int)")
                after = await asyncio.wait_for(catalog.refresh(), 5)
                busy.rollback()
            return before, after
        finally:
            await catalog.rest()

    before, after = asyncio.run(read_twice())
    assert after.version != before.version
    assert after.by_name["public", "fresh"]
    assert after.by_name["public", "on_open"].definition == before.by_name["public", "on_open"].definition != ""


def test_a_changed_text_that_is_locked_is_not_waited_for(place: Place) -> None:
    place.connection.execute("CREATE VIEW of_both AS SELECT open.id, acl.who FROM open JOIN acl USING (id)")

    async def read_twice() -> None:
        catalog = Catalog(psycopg.conninfo.conninfo_to_dict(place.server.dsn(dbname="reach")))
        try:
            await catalog.refresh()
            with psycopg.connect(place.server.dsn(dbname="reach")) as busy:
                busy.execute("LOCK TABLE open")
                place.connection.execute("ALTER TABLE acl RENAME COLUMN who TO whom")
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    await asyncio.wait_for(catalog.refresh(), 5)
                busy.rollback()
            assert "whom" in (await catalog.refresh()).by_name["public", "of_both"].definition
        finally:
            await catalog.rest()

    try:
        asyncio.run(read_twice())
    finally:
        place.connection.execute("DROP VIEW of_both; ALTER TABLE acl RENAME COLUMN whom TO who")


MASKS = """
version: 1
labels: {pay: [public.secret.up, public.told.salary]}
"""


def _masking(place: Place) -> Masking:
    policy = read_policy(MASKS, "masks")
    return Masking(policy, {"pay": Mask("pay", "null")}, place.snapshot)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM open WHERE reads_secret() > 5",
        "SELECT * FROM open ORDER BY id * reads_secret()",
        "SELECT id FROM open WHERE 1 ?? 2 > 5",
        "SELECT id FROM told WHERE hint = '5'",
        "SELECT id FROM open GROUP BY id HAVING max(reads_secret()) > 5",
    ],
)
def test_what_a_function_reads_does_not_decide_over_rows(place: Place, sql: str) -> None:
    (facts,) = read_facts(sql.encode(), None)
    reached = [touch.table for touch in place.reach.of(facts, PATHS, frozenset()).touches]
    assert forbidden_use(facts, place.snapshot, PATHS, _masking(place), reached) is not None


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT reads_secret()",
        "SELECT 1 ?? 2",
        "SELECT x FROM (SELECT 1 ?? 2 AS x) s",
        "SELECT hint FROM told",
        "SELECT 5 ?? ANY (ARRAY[1])",
    ],
)
def test_what_a_function_reads_does_not_come_out(place: Place, sql: str) -> None:
    (facts,) = read_facts(sql.encode(), None)
    for outputs in result_columns(facts, place.snapshot, PATHS, _masking(place)):
        assert outputs.masks and outputs.masks[0] is not None


@pytest.mark.parametrize(
    "sql", ["SELECT id FROM told WHERE id = 5", "SELECT body FROM open ORDER BY id", "SELECT id FROM open WHERE abs(id) > 5"]
)
def test_honest_conditions_are_kept(place: Place, sql: str) -> None:
    (facts,) = read_facts(sql.encode(), None)
    reached = [touch.table for touch in place.reach.of(facts, PATHS, frozenset()).touches]
    assert forbidden_use(facts, place.snapshot, PATHS, _masking(place), reached) is None

"""PostgreSQL's own functions: every one that may do more than compute is declared, on the oldest and the newest server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from control.policy.builtins import built_in_class
from control.policy.catalog import Catalog, Snapshot
from control.policy.effects import Reach
from control.policy.reading import read_facts
from kit.postgres import PostgresServer

# What a function is told of itself by: it takes SQL text or the name of a file, or tells of others.
_TELLING = r"_to_xml|^ts_stat$|^pg_(read_\w*file|ls_\w*dir|stat_file)|^lo_(import|export)$|^pg_stat_get_(activity|backend_activity)$"


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with PostgresServer(request.param) as started:
        yield started


def test_every_volatile_function_is_declared(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn()) as connection:
        rows = connection.execute(
            "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'"
            " AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)"
        ).fetchall()
        telling = connection.execute(
            "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ %s", (_TELLING,)
        ).fetchall()
    assert len(rows) > 200
    assert not sorted(name for (name,) in rows if not built_in_class(name))
    assert not sorted(name for (name,) in telling if built_in_class(name) != "closed")


def test_what_is_not_declared_is_unknown() -> None:
    reach = Reach(Snapshot(volatile=frozenset({"pg_made_up", "random"})))
    for sql, unknown in (("SELECT pg_made_up()", ["pg_catalog.pg_made_up"]), ("SELECT pg_catalog.random()", []), ("SELECT abs(1)", [])):
        (facts,) = read_facts(sql.encode(), None)
        assert list(reach.of(facts, (("public",),), frozenset()).unknown) == unknown


def test_functions_put_into_pg_catalog_are_seen(server: PostgresServer) -> None:
    parameters = psycopg.conninfo.conninfo_to_dict(server.dsn())
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("SET allow_system_table_mods = on")
        connection.execute(
            "CREATE FUNCTION pg_catalog.slips() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE current_setting('a.b'); RETURN 1; END $$"
        )
        connection.commit()

        async def read() -> Snapshot:
            catalog = Catalog(parameters)
            try:
                return await catalog.refresh()
            finally:
                await catalog.rest()

        (facts,) = read_facts(b"SELECT slips()", None)
        assert list(Reach(asyncio.run(read())).of(facts, (("public",),), frozenset()).unknown) == ["pg_catalog.slips"]

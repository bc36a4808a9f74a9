"""Ways to change a table behind a statement's back, from a real driver: each is held or denied, and honest ones pass."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import Stage

SCHEMA = """
CREATE TABLE victims (id int PRIMARY KEY, name text NOT NULL, gone timestamptz);
CREATE TABLE followers (id serial PRIMARY KEY, victim int REFERENCES victims ON DELETE CASCADE);
CREATE TABLE bait (id int PRIMARY KEY, body text);
CREATE TABLE soft (id int, body text);
CREATE TABLE log (what text);
INSERT INTO victims SELECT i, 'v' || i FROM generate_series(1, 50) i;
INSERT INTO followers (victim) SELECT i FROM generate_series(1, 50) i;
INSERT INTO bait SELECT i, 'b' FROM generate_series(1, 50) i;
CREATE TABLE parts (id int, body text) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (1000);
INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 50) i;
CREATE VIEW victims_view AS SELECT * FROM victims;
CREATE VIEW nested AS SELECT id, name FROM victims_view;
CREATE FUNCTION purge() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM victims';
CREATE FUNCTION purge_plain() RETURNS int LANGUAGE plpgsql AS $$ BEGIN UPDATE victims SET name = 'x'; RETURN 1; END $$;
CREATE FUNCTION purge_atomic() RETURNS void LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC DELETE FROM victims; END;
CREATE FUNCTION purge_deep() RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM purge(); RETURN 1; END $$;
CREATE FUNCTION runs(t text) RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE t; RETURN 1; END $$;
CREATE FUNCTION runs_fixed() RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE 'DELETE FROM victims'; RETURN 1; END $$;
CREATE FUNCTION of_row(b bait) RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN DELETE FROM victims; RETURN 1; END $$;
CREATE FUNCTION harms(int, int) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN DELETE FROM victims; RETURN true; END $$;
CREATE OPERATOR ?!? (leftarg = int, rightarg = int, function = harms);
CREATE FUNCTION step(int, int) RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN DELETE FROM victims; RETURN 1; END $$;
CREATE AGGREGATE odd_sum (int) (sfunc = step, stype = int, initcond = '0');
CREATE FUNCTION moves() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET search_path = pg_temp, public; END $$;
CREATE PROCEDURE clears() LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN TRUNCATE victims CASCADE; END $$;
CREATE FUNCTION on_bait() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN DELETE FROM victims; RETURN NEW; END $$;
CREATE TRIGGER on_bait BEFORE UPDATE ON bait FOR EACH ROW EXECUTE FUNCTION on_bait();
CREATE RULE on_soft AS ON INSERT TO soft DO ALSO DELETE FROM victims;
CREATE FUNCTION logs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER logs AFTER INSERT OR UPDATE OR DELETE ON followers FOR EACH ROW EXECUTE FUNCTION logs();
CREATE FUNCTION add_tax(n numeric) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN RETURN n * 1.2; END $$;
CREATE FUNCTION name_of(n int) RETURNS text LANGUAGE sql STABLE AS 'SELECT name FROM victims WHERE id = n';
CREATE FUNCTION rename_one(n int, t text) RETURNS void LANGUAGE sql AS 'UPDATE victims SET name = t WHERE id = n';
"""
ATTACKS = [
    "SELECT purge()",
    "SELECT public.purge()",
    'SELECT "purge"()',
    "SELECT * FROM purge()",
    "SELECT 1 FROM bait WHERE purge_plain() = 1",
    "SELECT purge_plain()",
    "SELECT purge_atomic()",
    "SELECT purge_deep()",
    "SELECT runs('DELETE FROM victims')",
    "SELECT runs_fixed()",
    "SELECT b.of_row FROM bait b",
    "SELECT (b).of_row FROM bait b",
    "SELECT of_row(b) FROM bait b",
    "SELECT bait.of_row FROM bait",
    "SELECT 1 ?!? 2",
    "SELECT 1 OPERATOR(public.?!?) 2",
    "SELECT 1 WHERE 1 ?!? ANY (ARRAY[2])",
    "SELECT odd_sum(id) FROM bait",
    "SELECT odd_sum(id) OVER () FROM bait",
    "CALL clears()",
    "UPDATE bait SET body = 'x' WHERE id = 1",
    "INSERT INTO soft VALUES (1)",
    "INSERT INTO bait VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET body = 'y'",
    "INSERT INTO followers (victim) SELECT purge_plain()",
    "WITH x AS (SELECT purge()) SELECT * FROM x",
    "EXPLAIN ANALYZE SELECT purge()",
    "COPY (SELECT purge()) TO STDOUT",
    "PREPARE p AS SELECT purge(); EXECUTE p",
    "BEGIN; DECLARE c CURSOR FOR SELECT purge(); FETCH c; COMMIT",
    "VALUES (purge_plain())",
    "SELECT CASE WHEN true THEN purge_plain() END",
    "SELECT coalesce(purge_plain(), 1)",
    "SELECT 1 ORDER BY purge_plain()",
    "SELECT 1 LIMIT purge_plain()",
    "SELECT * FROM generate_series(1, purge_plain())",
    "SELECT x FROM LATERAL purge_deep() x",
    "UPDATE followers SET id = purge_plain() WHERE id = 1",
    "DELETE FROM followers WHERE id = purge_plain()",
    "SELECT ARRAY[purge_plain()]",
    "DELETE FROM victims_view",
    "DELETE FROM nested",
    "UPDATE nested SET name = 'x'",
    "DELETE FROM nested WHERE id IS NOT NULL",
    "DELETE FROM parts_low",
    "UPDATE parts_low SET body = body",
    "DELETE FROM ONLY victims",
    "TRUNCATE victims CASCADE",
    "DELETE FROM victims WHERE id >= -2147483648",
    "DELETE FROM victims WHERE id IN (SELECT id FROM victims)",
    "SELECT moves()",
    "DELETE FROM victims USING followers",
    "DELETE FROM victims v USING victims w WHERE v.id = w.id",
    "DELETE FROM victims WHERE random() < 2",
    "DELETE FROM victims WHERE coalesce(true, id = 1)",
    "DELETE FROM victims WHERE EXISTS (SELECT 1 FROM victims w WHERE w.id = victims.id)",
    "MERGE INTO victims v USING victims w ON v.id = w.id WHEN MATCHED THEN DELETE",
    "DELETE FROM victims WHERE ctid IS NOT NULL",
    "WITH x AS (SELECT id FROM victims) DELETE FROM victims USING x WHERE x.id = victims.id",
    "DELETE FROM victims WHERE id + 0 = id",
    "DO $$ BEGIN DELETE FROM victims; END $$",
    "DO $$ BEGIN EXECUTE 'DELETE FROM victims'; END $$",
    "DELETE FROM victims WHERE name >= ''",
    "BEGIN; CREATE TEMP TABLE t AS SELECT purge(); COMMIT",
    "SELECT purge_plain() UNION SELECT 1",
    "SELECT 1 GROUP BY purge_plain()",
    "SELECT max(id) FILTER (WHERE purge_plain() = 1) FROM bait",
    "SELECT 1 FROM bait JOIN soft ON purge_plain() = 1",
]
HONEST = [
    "SELECT add_tax(10)",
    "SELECT name_of(3)",
    "SELECT rename_one(3, 'x')",
    "INSERT INTO followers (victim) VALUES (2)",
    "SELECT * FROM nested",
    "UPDATE followers SET victim = 3 WHERE id = 4",
    "UPDATE victims SET gone = now() WHERE gone IS NOT NULL",
    "SELECT body FROM parts_low",
    "UPDATE nested SET name = 'y' WHERE id = 9",
    "DELETE FROM parts WHERE id = 7",
    "DELETE FROM victims WHERE id = 49",
    "DELETE FROM followers USING victims WHERE victims.id = followers.victim AND victims.id = 48",
    "SELECT count(*), max(id) FROM bait",
    "DELETE FROM followers WHERE id IN (SELECT id FROM followers ORDER BY id LIMIT 1)",
    "INSERT INTO bait VALUES (99, 'x')",
]


@pytest.fixture(scope="module")
def baited() -> Iterator[Agent]:
    with Stage(customers=100) as stage:
        with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
            direct.execute("SET ROLE shop_owner")
            direct.execute(SCHEMA)
        yield Agent(stage)


def state(agent: Agent) -> tuple[object, ...] | None:
    with psycopg.connect(agent.stage.server.dsn("shop")) as direct:
        return direct.execute(
            "SELECT (SELECT count(*) FROM victims), (SELECT count(*) FROM victims WHERE name LIKE 'v%'),"
            " (SELECT count(*) FROM parts), (SELECT count(*) FROM bait), (SELECT count(*) FROM followers)"
        ).fetchone()


@pytest.mark.parametrize("statement", ATTACKS)
def test_nothing_is_changed_behind_a_statement(baited: Agent, statement: str) -> None:
    before = state(baited)
    with baited.connect(subject="prober-8") as connection:
        connection.add_notice_handler(lambda told: "held" in str(told.message_primary) and connection.cancel_safe())
        with pytest.raises(psycopg.Error) as caught:
            psycopg.ClientCursor(connection).execute(statement)
        assert caught.value.sqlstate in ("42501", "57014", "0A000")
    assert state(baited) == before


@pytest.mark.parametrize("statement", HONEST)
def test_what_is_honest_passes(baited: Agent, statement: str) -> None:
    with baited.connect(subject="prober-9") as connection:
        connection.add_notice_handler(lambda told: "held" in str(told.message_primary) and connection.cancel_safe())
        psycopg.ClientCursor(connection).execute(statement)

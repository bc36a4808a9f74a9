"""One table is denied and everything else allowed: no way behind a statement reads or changes it, and what only looks so passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import Stage

POLICY = """\
version: 1
rules:
  - {name: all, who: {groups: [agents]}, tables: ["*.*"], verbs: [select, insert, update, delete, truncate, ddl], effect: allow}
  - name: definitions
    who: {groups: [agents]}
    when: {kinds: [do, call, create_function, create_trigger, create_rule, create_cast, create_operator, create_policy, alter_function]}
    effect: allow
  - {name: hands-off, who: {groups: [agents]}, tables: [public.secret, public.secret_child, public.secret_part], effect: deny}
grants:
  - {who: {groups: [agents]}, database: shop, tables: ["*.*"], verbs: [select, insert, update, delete, truncate, ddl], duration: 900}
"""
ATTACKS = [
    "SELECT * FROM secret",
    "SELECT * FROM shown",
    "SELECT * FROM shown_again",
    "DELETE FROM shown_again WHERE id = 1",
    "TABLE secret",
    "SELECT looks()",
    "SELECT takes(1)",
    "SELECT takes_sql(1)",
    "SELECT takes_deep(1)",
    "SELECT takes_text('DELETE FROM secret')",
    "SELECT * FROM plain WHERE takes(plain.id) = 1",
    "INSERT INTO triggered VALUES (1)",
    "UPDATE triggered SET body = 'y'",
    "UPDATE triggered SET (other, body) = ('y', 'z')",
    "INSERT INTO ruled VALUES (1)",
    "SELECT * FROM family",
    "SELECT * FROM ONLY secret_child",
    "UPDATE family SET body = 'x' WHERE id = 1",
    "SELECT * FROM parts",
    "INSERT INTO parts VALUES (1, 'x')",
    "DELETE FROM parts WHERE id = 1",
    "TRUNCATE parts",
    "DELETE FROM target WHERE id = 1",
    "UPDATE target SET id = 100 WHERE id = 2",
    "TRUNCATE target CASCADE",
    "DROP TABLE target CASCADE",
    "DELETE FROM redirected WHERE id = 3",
    "SELECT 1 !!= 3",
    "SELECT 1 WHERE 3 !!= ANY (ARRAY[3])",
    "INSERT INTO plain (id) SELECT c FROM coins",
    "SELECT CAST(c AS int) FROM coins",
    "SELECT takes_all(id) FROM plain",
    "INSERT INTO by_default (id) VALUES (1)",
    "INSERT INTO generated VALUES (7)",
    "INSERT INTO by_domain VALUES (7)",
    "SELECT 7::checked",
    "INSERT INTO indexed VALUES (7)",
    "INSERT INTO constrained VALUES (7)",
    "SELECT * FROM guarded",
    "CALL proceeds(8)",
    "DO $$ BEGIN DELETE FROM secret; END $$",
    "DO $$ DECLARE n int := takes(9); BEGIN NULL; END $$",
    "EXPLAIN ANALYZE DELETE FROM secret WHERE id = 1",
    "EXPLAIN (ANALYZE) SELECT takes(1)",
    "PREPARE p AS DELETE FROM secret WHERE id = 1; EXECUTE p",
    "PREPARE p (int) AS SELECT takes($1); EXECUTE p (1)",
    "COPY (SELECT * FROM shown) TO STDOUT",
    "COPY (DELETE FROM secret RETURNING *) TO STDOUT",
    "COPY triggered FROM STDIN",
    "WITH x AS (DELETE FROM secret RETURNING *) SELECT * FROM x",
    "CREATE TABLE taken AS SELECT * FROM shown",
    "CREATE MATERIALIZED VIEW taken AS SELECT * FROM secret",
    "SELECT * INTO taken FROM secret",
    "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM shown",
    "MERGE INTO target t USING plain p ON t.id = p.id WHEN MATCHED THEN DELETE",
    "INSERT INTO target VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 700",
    "ALTER TABLE secret RENAME TO known",
    "ALTER TABLE secret ADD COLUMN more int DEFAULT takes(1)",
    "LOCK TABLE secret",
    "TRUNCATE secret",
    "ANALYZE secret",
    "SELECT s FROM shown_again s",
    "SELECT table_to_xml('secret', true, false, '')",
    "SELECT query_to_xml('SELECT * FROM secret', true, false, '')",
    "SELECT currtid2('secret', '(0,1)')",
    # what the transaction itself has defined
    "BEGIN; ALTER TABLE plain RENAME TO moved; ALTER TABLE shown RENAME TO plain; SELECT * FROM plain; COMMIT",
    "BEGIN; CREATE VIEW mine AS SELECT * FROM secret; SELECT * FROM mine; COMMIT",
    "BEGIN; CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'DELETE FROM secret RETURNING 1'; SELECT mine(); COMMIT",
    "BEGIN; CREATE OR REPLACE FUNCTION add_one(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT takes(1)'; SELECT add_one(1); COMMIT",
    "BEGIN; CREATE TRIGGER t AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION fires(); INSERT INTO plain VALUES (1001); COMMIT",
    "BEGIN; CREATE RULE r AS ON INSERT TO plain DO ALSO DELETE FROM secret; INSERT INTO plain VALUES (1002); COMMIT",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'DELETE FROM secret RETURNING 1'; SELECT pg_temp.mine()",
    "CREATE TEMP VIEW mine AS SELECT * FROM secret; SELECT * FROM mine",
    "BEGIN; CREATE TABLE more () INHERITS (secret); COMMIT",
    "SET search_path = pg_temp, public; SELECT * FROM shown",
]
HONEST = [
    "SELECT * FROM open",
    "SELECT add_one(4)",
    "SELECT counts(4)",
    "UPDATE open SET body = 'x' WHERE id = 2",
    "UPDATE triggered SET other = 'z'",
    "UPDATE target SET body = 'u' WHERE id = 3",
    "SELECT * FROM target",
    "SELECT id FROM redirected",
    "SELECT 1 + 2, 3 <> 4, 7::int, '5'::numeric",
    "SELECT max(id), count(*) FROM plain",
    "SELECT * FROM generated",
    "SELECT nextval('customers_id_seq'), random(), clock_timestamp()",
    "TRUNCATE generated",
    "EXPLAIN SELECT * FROM open",
    "PREPARE q (int) AS SELECT * FROM open WHERE id = $1; EXECUTE q (1)",
    "COPY (SELECT * FROM open) TO STDOUT",
    "BEGIN; CREATE TABLE fresh (id int); INSERT INTO fresh VALUES (1); SELECT * FROM fresh; ROLLBACK",
    "BEGIN; ALTER TABLE plain ADD COLUMN more int; UPDATE plain SET more = 1 WHERE id = 1; ROLLBACK",
    "DO $$ BEGIN UPDATE plain SET body = 'q' WHERE id = 1; END $$",
    "SELECT 'SELECT * FROM secret' AS text",
    'SELECT id AS "secret" FROM plain',
    "WITH secret AS (SELECT * FROM plain) SELECT * FROM secret",
    "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'secret'",
]


@pytest.fixture(scope="module")
def secretive() -> Iterator[Agent]:
    with Stage(customers=100, policy=POLICY) as stage:
        with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
            direct.execute("SET ROLE shop_owner")
            direct.execute(Path(__file__).with_name("secret_schema.sql").read_text())
        yield Agent(stage)


def _state(agent: Agent) -> list[tuple[object, ...]]:
    with psycopg.connect(agent.stage.server.dsn("shop")) as direct:
        return direct.execute("SELECT id, what, of_open FROM secret UNION ALL SELECT id, body, 0 FROM parts ORDER BY 1, 2").fetchall()


def _run(connection: psycopg.Connection[object], statement: str) -> None:
    """Run each part of a transaction as a message of its own, as drivers do."""
    cursor = psycopg.ClientCursor(connection)
    for part in statement.split("; ") if statement.startswith("BEGIN") else [statement]:
        if part.startswith("COPY"):
            with cursor.copy(part) as copying:
                if "STDIN" in part:
                    copying.write(b"1\tx\ty\n")
                else:
                    assert b"".join(copying)
        else:
            cursor.execute(part)


@pytest.mark.parametrize("statement", ATTACKS)
def test_no_way_leads_to_it(secretive: Agent, statement: str) -> None:
    before = _state(secretive)
    with secretive.connect(subject="prober-1") as connection:
        with pytest.raises(psycopg.Error) as caught:
            _run(connection, statement)
        assert caught.value.sqlstate in ("42501", "0A000"), caught.value
        assert str(caught.value).startswith("pgleash: ")
    assert _state(secretive) == before


@pytest.mark.parametrize("statement", [each for each in ATTACKS if each.startswith("BEGIN")])
def test_no_way_leads_to_it_in_one_text(secretive: Agent, statement: str) -> None:
    before = _state(secretive)
    with secretive.connect(subject="prober-2") as connection:
        with pytest.raises(psycopg.Error) as caught:
            psycopg.ClientCursor(connection).execute(statement)
        assert caught.value.sqlstate in ("42501", "0A000"), caught.value
    assert _state(secretive) == before


@pytest.mark.parametrize("statement", HONEST)
def test_what_only_looks_so_passes(secretive: Agent, statement: str) -> None:
    with secretive.connect(subject="prober-3") as connection:
        _run(connection, statement)

"""Facts of statements: what they touch, whatever way they are written."""

from __future__ import annotations

import pytest

from control.policy.facts import Facts, Unreadable
from control.policy.reading import read_facts


def facts_of(sql: str) -> tuple[Facts, ...]:
    return read_facts(sql.encode(), {})


def touched(facts: Facts) -> set[str]:
    return {f"{access.verb} {access.schema + '.' if access.schema else ''}{access.name}" for access in facts.accesses}


@pytest.mark.parametrize(
    ("sql", "kinds", "tables"),
    [
        ("SELECT * FROM a JOIN s.b USING (id)", {"select"}, {"select a", "select s.b"}),
        ("/* SELECT 1; */ DELETE /**/ FROM -- x\n a WHERE id = 1", {"delete"}, {"delete a"}),
        ('SELECT * FROM "A b"', {"select"}, {"select A b"}),
        ('SELECT * FROM U&"cust\\006fmers"', {"select"}, {"select customers"}),
        ("select * from CuStOmErS", {"select"}, {"select customers"}),
        ("WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x", {"select", "delete"}, {"delete a", "select a"}),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a", {"select"}, {"select a"}),
        ("WITH RECURSIVE a AS (SELECT 1 UNION SELECT * FROM a) SELECT * FROM a, b", {"select"}, {"select b"}),
        ("INSERT INTO a VALUES (1)", {"insert"}, {"insert a"}),
        ("INSERT INTO a SELECT * FROM b", {"insert", "select"}, {"insert a", "select b"}),
        ("INSERT INTO a VALUES (1) ON CONFLICT (i) DO UPDATE SET x = 1", {"insert", "update"}, {"insert a", "update a"}),
        ("WITH a AS (SELECT 1) DELETE FROM a USING b WHERE b.i = a.i", {"delete", "select"}, {"delete a", "select b"}),
        ("MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN DELETE", {"merge", "delete"}, {"delete a", "select a", "select b"}),
        ("EXPLAIN ANALYZE DELETE FROM a", {"explain", "delete"}, {"delete a"}),
        ("EXPLAIN (COSTS off, ANALYZE) DELETE FROM a", {"explain", "delete"}, {"delete a"}),
        ("EXPLAIN DELETE FROM a", {"explain", "select"}, {"select a"}),
        ("EXPLAIN (ANALYZE off) DELETE FROM a", {"explain", "select"}, {"select a"}),
        ("EXPLAIN (ANALYZE, VERBOSE, ANALYZE 'False') DELETE FROM a", {"explain", "select"}, {"select a"}),
        ("EXPLAIN (ANALYZE 0) DELETE FROM a", {"explain", "select"}, {"select a"}),
        ("EXPLAIN (ANALYZE off, ANALYZE on) DELETE FROM a", {"explain", "delete"}, {"delete a"}),
        ("EXPLAIN (ANALYZE 1) DELETE FROM a", {"explain", "delete"}, {"delete a"}),
        ("EXPLAIN (ANALYZE maybe) DELETE FROM a", {"explain", "delete"}, {"delete a"}),
        ("CREATE TEMP TABLE t (LIKE a INCLUDING ALL, x int)", {"create_table"}, {"ddl t", "select a"}),
        ("DECLARE c CURSOR FOR SELECT * FROM a", {"declare", "select"}, {"select a"}),
        ("COPY a TO STDOUT", {"copy_to"}, {"select a"}),
        ("COPY a FROM STDIN", {"copy_from"}, {"insert a"}),
        ("COPY (DELETE FROM a RETURNING *) TO STDOUT", {"copy_to", "delete"}, {"delete a", "select a"}),
        ("CREATE TABLE b AS SELECT * FROM a", {"create_table_as", "select"}, {"ddl b", "select a"}),
        ("SELECT * INTO b FROM a", {"select", "select_into"}, {"ddl b", "select a"}),
        ("CREATE VIEW v AS SELECT * FROM a", {"create_view", "select"}, {"ddl v", "select a"}),
        ("ALTER TABLE a ADD COLUMN x int", {"alter_table"}, {"ddl a"}),
        ("DROP TABLE a, s.b", {"drop_table"}, {"ddl a", "ddl s.b"}),
        ("TRUNCATE a, b", {"truncate"}, {"truncate a", "truncate b"}),
        ("SELECT * FROM a x FOR UPDATE OF x", {"select"}, {"select a"}),
        ("SELECT (SELECT max(i) FROM b) FROM a WHERE EXISTS (SELECT FROM c)", {"select"}, {"select a", "select b", "select c"}),
        ("TABLE a", {"select"}, {"select a"}),
        ("(SELECT 1) UNION (WITH q AS (TABLE a) TABLE q)", {"select"}, {"select a"}),
        ("LOCK TABLE a", {"lock"}, {"select a"}),
        ("GRANT SELECT ON a TO b", {"grant"}, {"ddl a"}),
    ],
)
def test_kinds_and_tables(sql: str, kinds: set[str], tables: set[str]) -> None:
    (facts,) = facts_of(sql)
    assert set(facts.kinds) == kinds
    assert touched(facts) == tables


@pytest.mark.parametrize(
    "where",
    ["", "WHERE true", "WHERE 1=1", "WHERE 1 = 1 AND 't'", "WHERE id = id", "WHERE a.id = id", "WHERE id = 3 OR true", "WHERE NOT false",
     "WHERE id IS NOT NULL", "WHERE name LIKE '%'", "WHERE id = 1 OR id <> 1", "WHERE id > 5 OR id <= 5", "WHERE id IS NULL OR id IS NOT NULL",  # noqa: E501
     "WHERE id = 1 OR NOT id = 1", "WHERE id IN (1, id)", "WHERE (id = id) IS TRUE", "WHERE $1", "WHERE EXISTS (SELECT 1)", "WHERE 2 > 1",
     "WHERE id IS NOT DISTINCT FROM id", "WHERE 'true'::bool"],
)  # fmt: skip
def test_a_where_that_does_not_narrow(where: str) -> None:
    assert facts_of(f"DELETE FROM a {where}")[0].wide
    assert facts_of(f"UPDATE a SET x = 1 {where}")[0].wide


@pytest.mark.parametrize(
    "where",
    ["id = 1", "id = $1", "id = 1 AND true", "false", "1 = 0", "id IN (1, 2)", "id = other", "name LIKE 'a%'", "CURRENT OF c", "id IS NULL",
     "EXISTS (SELECT 1 FROM b WHERE b.id = a.id)", "id = 1 OR id = 2", "NOT id = 3", "NULL"],
)  # fmt: skip
def test_a_where_that_narrows(where: str) -> None:
    assert not facts_of(f"DELETE FROM a WHERE {where}")[0].wide


def test_prepare_and_execute_in_one_text() -> None:
    prepare, execute = facts_of("PREPARE p (int) AS DELETE FROM a; EXECUTE p(1)")
    assert not prepare.executes and prepare.names[0].text == b"DELETE FROM a"
    assert execute.wide and "delete" in execute.kinds


def test_execute_of_an_unknown_name_is_told() -> None:
    assert facts_of("EXECUTE p")[0].unknown_name == "p"
    assert facts_of("EXPLAIN ANALYZE EXECUTE p")[0].unknown_name == "p"
    assert facts_of("CREATE TABLE x AS EXECUTE p")[0].unknown_name == "p"


def test_every_statement_of_a_text_is_read() -> None:
    assert [facts.kind for facts in facts_of("SELECT 'é'; ; BEGIN; DROP TABLE a; COMMIT")] == ["select", "begin", "drop_table", "commit"]
    assert facts_of("")[0].kind == "empty"
    assert facts_of(" -- nothing\n")[0].kind == "empty"


@pytest.mark.parametrize(
    "sql",
    ["SET ROLE x", "SET SESSION AUTHORIZATION x", "RESET ROLE", "SET LOCAL role = 'x'", "SET row_security = off", "RESET SESSION AUTHORIZATION",  # noqa: E501
     "SET standard_conforming_strings = off", "SET client_encoding = 'latin1'", "SELECT set_config('role', 'x', false)",
     "SELECT pg_catalog.set_config('Sea' || 'rch_path', 'x', false)", "SELECT pg_read_file('/etc/passwd')", "SELECT lo_import('/x')",
     "SELECT * FROM dblink('x', 'y') AS t(a int)", "SELECT query_to_xml('select 1', true, true, '')", "COPY a TO '/tmp/x'",
     "COPY a TO PROGRAM 'sh'", "COPY a FROM PROGRAM 'sh'", "COPY (SELECT 1) TO '/tmp/x'",
     "SELECT 1 WHERE pg_terminate_backend(1)", "SET TRANSACTION SNAPSHOT 'x'", "EXPLAIN ANALYZE SELECT PG_READ_FILE('x')"],
)  # fmt: skip
def test_what_no_rule_can_allow(sql: str) -> None:
    assert facts_of(sql)[0].refusals


def settings_of(sql: str) -> list[tuple[str, tuple[str, ...] | None, bool]]:
    return [(each.name, each.values, each.local) for each in read_facts(sql.encode(), {})[0].settings]


def test_a_plain_select_of_set_config_is_the_set_that_it_stands_for() -> None:
    for sql, settings in (
        ("SELECT pg_catalog.set_config('search_path', '', false)", [("search_path", (), False)]),
        (
            "SELECT pg_catalog.set_config('Search_Path', ' Public, \"$user\", \"A b\"', true)",
            [("search_path", ("public", "$user", "A b"), True)],
        ),
        (
            "SELECT pg_catalog.set_config('search_path', 'a', false), pg_catalog.set_config('x.y', 'b', true)",
            [("search_path", ("a",), False), ("x.y", ("b",), True)],
        ),
    ):
        assert settings_of(sql) == settings
        assert not read_facts(sql.encode(), {})[0].refusals


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT {} FROM a", "SELECT {} WHERE false", "SELECT {} LIMIT 0", "SELECT {} OFFSET 1", "SELECT {} UNION SELECT 'x'",
        "WITH x AS (SELECT 1) SELECT {}", "SELECT DISTINCT {}", "SELECT coalesce({}, '')", "SELECT {}, x FROM generate_series(1, 2) x",
        "EXPLAIN ANALYZE SELECT {}", "PREPARE p AS SELECT {}", "DECLARE c CURSOR FOR SELECT {}", "COPY (SELECT {}) TO STDOUT",
        "CREATE TEMP TABLE x AS SELECT {}", "SELECT {} INTO TEMP x", "VALUES ({})", "SELECT {}, set_config(x, 'x', false)",
    ],
)  # fmt: skip
def test_any_other_set_config_of_the_search_path_is_refused(sql: str) -> None:
    call = "pg_catalog.set_config('search_path', 'b', false)"
    assert read_facts(sql.format(call).encode(), {})[0].refusals
    assert not settings_of(sql.format(call))


@pytest.mark.parametrize(
    "call",
    [
        "set_config('search_path', 'b', false)", "pg_catalog.set_config('search_path', $1, false)",
        "pg_catalog.set_config('search_path', NULL, false)", "pg_catalog.set_config('search_path', 'a b', false)",
        "pg_catalog.set_config('search_path', 'a,', false)", "pg_catalog.set_config('search_path', 'é', false)",
        "pg_catalog.set_config('role', 'x', false)", "pg_catalog.set_config('standard_conforming_strings', 'off', false)",
        "pg_catalog.set_config('client_encoding', 'SJIS', false)", "pg_catalog.set_config('search_path', 'b', 1 = 1)",
        "pg_catalog.set_config(is_local => false, setting_name => 'search_path', new_value => 'b')",
    ],
)  # fmt: skip
def test_what_set_config_may_not_set_or_does_not_show_is_refused(call: str) -> None:
    assert read_facts(f"SELECT {call}".encode(), {})[0].refusals


def test_bodies_and_views_get_no_word_of_set_config() -> None:
    assert read_facts(b"SELECT pg_catalog.set_config('search_path', 'b', false)", None)[0].refusals


@pytest.mark.parametrize(
    "sql",
    ["SET statement_timeout = 5", "SET client_encoding TO 'UTF8'", "SET datestyle = iso", "SELECT set_config('myapp.user', 'x', true)"],
)
def test_harmless_settings(sql: str) -> None:
    assert not facts_of(sql)[0].refusals


@pytest.mark.parametrize(("text", "state"), [(b"SELEC 1", "42601"), (b"SELECT '\xff'", "22021"), (b"SELECT " + b"(" * 20000, "42601")])
def test_what_can_not_be_read(text: bytes, state: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_facts(text, {})
    assert caught.value.sqlstate in (state, "54001")

"""Verdicts that hold whatever the literals are: the same for any others, and never said where one matters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

from control.policy.catalog import Relation, Snapshot
from control.policy.engine import PolicyEngine, SessionJudge
from control.policy.facts import Unreadable
from control.policy.lineage import trace
from control.policy.reading import read_facts
from kit.literals import with_other_literals
from pgwire.hot.canonical import canonical
from pgwire.ports import Effect, MaskRule, Principal, Scope, Statement, Verdict

POLICY = """\
version: 1
labels:
  pii.email: ["public.customers.email"]
  pii.ssn: ["public.customers.ssn"]
rules:
  - {name: work, effect: allow, tables: ["public.*"], verbs: [select, insert, update, delete]}
  - {name: wide, effect: hold, approvers: [dba], when: {kinds: [update, delete], without_where: true}}
  - {name: secrets, effect: deny, tables: ["public.secrets"]}
masks:
  - {label: pii.email, action: email, predicates: allow}
  - {label: pii.ssn, action: keep_last, argument: 4}
"""
RELATIONS = (
    Relation(1, "public", "customers", "r", {1: "id", 2: "name", 3: "email", 4: "ssn", 5: "region", 6: "balance", 7: "since", 8: "data"}),
    Relation(2, "public", "orders", "r", {1: "id", 2: "customer_id", 3: "total", 4: "status", 5: "placed", 6: "tags"}),
    Relation(3, "public", "secrets", "r", {1: "id", 2: "value"}),
    Relation(4, "public", "people", "v", {1: "id", 2: "mail"}, " SELECT id, email AS mail FROM public.customers WHERE region <> 'x'"),
)
SNAPSHOT = Snapshot(
    {relation.oid: relation for relation in RELATIONS},
    {(relation.schema, relation.name): relation for relation in RELATIONS},
    functions=frozenset({"public.risky", "public.tidy"}),
    opaque=frozenset({"public.risky"}),
    version=1,
)
SCOPE = Scope("shop", ("*.*",), frozenset({"select", "insert", "update", "delete", "truncate", "ddl"}))


class Fixed:
    """A catalog that never changes."""

    present = SNAPSHOT

    async def snapshot(self) -> Snapshot:
        return SNAPSHOT

    async def refresh(self) -> Snapshot:
        return SNAPSHOT


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> PolicyEngine:
    file = tmp_path_factory.mktemp("policy") / "policy.yaml"
    file.write_text(POLICY)
    return PolicyEngine(file, {"shop": Fixed()})


def judged(engine: PolicyEngine, sql: str, protocol: str = "simple") -> tuple[Verdict, tuple[MaskRule | None, ...]]:
    """The verdict, and the masks of the columns."""
    judge = SessionJudge(engine, Fixed(), SNAPSHOT, Principal("agent"), SCOPE, "agent", None)
    statement = Statement(sql.encode(), protocol)
    return asyncio.run(judge.judge(statement)), judge.output_masks(statement)


SHARED = [
    "SELECT abalance FROM orders WHERE id = 12345",
    "SELECT * FROM customers WHERE id = 1",
    "SELECT email, ssn FROM customers WHERE id IN (1, 2, 3) AND region = 'north'",
    "SELECT name FROM customers WHERE email = 'ada@example.com'",
    "SELECT name AS n, 'x' AS kind, 5, NULL, true, -7, - -7 FROM customers LIMIT 10 OFFSET 20",
    "SELECT 1",
    "VALUES (1, 'a'), (2, 'b')",
    "SELECT lower(name) || ' (' || region || ')' FROM customers WHERE name ILIKE '%ad%' OR region = 'x'",
    "SELECT coalesce(region, 'none'), CASE region WHEN 'n' THEN 'north' ELSE 'other' END, nullif(region, '') FROM customers",
    "SELECT CASE WHEN balance > 100 THEN email ELSE 'none' END FROM customers",
    "SELECT substr(email, 1, 3) FROM customers WHERE id BETWEEN 5 AND 10",
    "SELECT id FROM orders WHERE placed > now() - interval '7 days' AND placed < date '2024-01-01'",
    "SELECT date_trunc('month', placed), sum(total) FROM orders WHERE status <> 'void' GROUP BY date_trunc('month', placed)",
    "SELECT extract(year FROM placed), count(*) FILTER (WHERE total < 5) FROM orders GROUP BY extract(year FROM placed)",
    "SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id AND c.region = 'n' WHERE (o.total, o.id) > (10.5, 3) ORDER BY o.id",
    "SELECT id FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE region = 'n') AND EXISTS (SELECT 1 FROM people WHERE id=2)",
    "WITH x AS (SELECT id, email FROM customers WHERE id > 3) SELECT email FROM x WHERE id < 9",
    "SELECT mail FROM people WHERE id = 3 UNION ALL SELECT 'none'",
    "SELECT count(*) FROM orders HAVING count(*) > 3",
    "SELECT id FROM orders WHERE id = ANY(ARRAY[1, 2, 3]) OR id = ANY('{4,5}'::int[])",
    "SELECT id FROM orders WHERE total * 1.19 > 100 AND id % 2 = 0 AND customer_id = $1",
    "SELECT placed AT TIME ZONE 'UTC' FROM orders WHERE tags ~ '^a' AND status IS DISTINCT FROM 'x'",
    'SELECT "orders"."id" FROM "orders" WHERE "orders"."status" = \'open\' LIMIT 21 /* from \'a view\' */',
    "SELECT (SELECT max(total) FROM orders WHERE customer_id = 5) FROM customers WHERE id = 5 FOR UPDATE",
    "INSERT INTO orders (id, status, placed) VALUES (1, 'open', now()), (2, E'it\\'s', '2024-01-01'::timestamptz)",
    "INSERT INTO orders (id, total) VALUES (1, 10.5) ON CONFLICT (id) DO UPDATE SET total = orders.total + 1 RETURNING id, 'x'",
    "INSERT INTO orders (id) SELECT id FROM customers WHERE region = 'n'",
    "UPDATE orders SET total = total + 5, status = 'x' WHERE id = 7",
    "UPDATE orders SET status = 'x' FROM customers c WHERE c.id = orders.customer_id AND c.region = 'n' AND orders.id IN (1, 2)",
    "UPDATE customers SET name = 'Ada' WHERE id = 3 RETURNING id, email",
    "DELETE FROM orders WHERE id = 7 AND status <> 'x'",
    "DELETE FROM orders WHERE id IN (1, 5) AND customer_id = 7",
    "DELETE FROM orders WHERE 5 = id",
    "DELETE FROM orders WHERE id = ANY(ARRAY[1, 2])",
]


@pytest.mark.parametrize("sql", SHARED)
def test_a_statement_of_this_shape_is_judged_once(engine: PolicyEngine, sql: str) -> None:
    verdict, _ = judged(engine, sql)
    assert verdict.effect is Effect.ALLOW and verdict.cacheable and verdict.any_literals
    assert canonical(sql.encode()) is not None


def consequences(sql: str) -> list[Any]:
    """Everything that facts and lineage say of a text, without its parse tree."""
    told: list[Any] = []
    for facts in read_facts(sql.encode(), {}):
        told.append(replace(facts, tree=None))
        told.append(trace(facts.tree, SNAPSHOT, ("public",)) if facts.tree else None)
    return told


def same_for_others(engine: PolicyEngine, sql: str, other: str) -> None:
    """Held for two texts of one form, the first of which is shared."""
    note(other)
    assert canonical(other.encode()) == canonical(sql.encode())
    assert judged(engine, other) == judged(engine, sql)
    assert judged(engine, other, "parse") == judged(engine, sql, "parse")
    assert consequences(other) == consequences(sql)


@given(data=st.data(), sql=st.sampled_from(SHARED))
def test_other_literals_change_nothing(engine: PolicyEngine, data: st.DataObject, sql: str) -> None:
    other = data.draw(with_other_literals(sql))
    assert other is not None
    same_for_others(engine, sql, other)


NOT_SHARED = {
    "SELECT name FROM customers ORDER BY 1": "a number in ORDER BY is a column, and deciding by one may be denied",
    "SELECT name, ssn FROM customers ORDER BY name, 2": "the second column decides over rows",
    "SELECT region, 5 FROM customers GROUP BY 1": "a number in GROUP BY is a column",
    "SELECT DISTINCT ON (1) name, region FROM customers": "a number in DISTINCT ON is a column",
    "SELECT name FROM customers ORDER BY region = 'x'": "sort keys are looked at only where they are calls",
    "SELECT row_number() OVER (ORDER BY id = 5) FROM orders": "windows are not looked into",
    "SELECT sum(total) OVER (ORDER BY id ROWS 2 PRECEDING) FROM orders": "nor are frames",
    "SELECT string_agg(name, ',' ORDER BY id = 5) FROM customers": "nor is an aggregate's order",
    "SELECT 'orders'::regclass": "names a table",
    "SELECT 'pg_authid'::regclass::oid": "names a table",
    "SELECT regclass 'orders'": "names a table",
    "SELECT CAST('agent' AS regrole)": "names a role",
    "SELECT 'risky'::regproc": "names a function",
    "SELECT 16384::oid::regclass": "a number names a table",
    "SELECT 'x'::mood": "a type of the users' own",
    "SELECT 'x'::public.text": "a type of the users' own by a built-in name",
    "SELECT '$.a'::jsonpath": "a path",
    "SELECT '<a/>'::xml": "a document with references",
    "SELECT '{\"a\": 1}'::jsonb": "not a plain value",
    "SELECT total::float(24) FROM orders": "the number chooses the type",
    "SELECT total::numeric(10, 2) FROM orders": "the numbers belong to the type",
    "SELECT interval(3) '1 second'": "the number belongs to the type",
    "SELECT ('x' || region)::regclass FROM customers": "a computed name",
    "SELECT data -> 'email' FROM customers": "a path into JSON",
    "SELECT data ->> 'email' FROM customers": "a path into JSON",
    "SELECT data #> '{a,b}' FROM customers": "a path into JSON",
    "SELECT data #>> '{a,b}' FROM customers": "a path into JSON",
    "SELECT id FROM customers WHERE data @> '{}'": "JSON containment",
    "SELECT id FROM customers WHERE data ? 'email'": "a key of JSON",
    "SELECT id FROM customers WHERE data @? '$.a'": "a path into JSON",
    "SELECT id FROM customers WHERE data @@ '$.a == 1'": "a path into JSON",
    "SELECT jsonb_path_query(data, '$.email') FROM customers": "a path into JSON",
    "SELECT jsonb_extract_path_text(data, 'email') FROM customers": "a path into JSON",
    "SELECT json_value(data, '$.email') FROM customers": "a path into JSON",
    "SELECT data['email'] FROM customers": "a subscript is a path into JSON",
    "UPDATE customers SET data['email'] = name WHERE id = 5": "a subscript that is assigned to",
    "SELECT * FROM generate_series(1, 10)": "a function in FROM",
    "SELECT * FROM json_to_recordset('[]') AS x(a int)": "a function in FROM",
    "SELECT * FROM customers TABLESAMPLE SYSTEM (5)": "a sample's arguments",
    "SELECT nextval('orders_id_seq')": "names a sequence",
    "SELECT currval('orders_id_seq'), setval('orders_id_seq', 5)": "names a sequence",
    "SELECT to_regclass('orders')": "names a table",
    "SELECT set_config('a.b', 'c', false)": "names a setting",
    "SELECT current_setting('search_path')": "names a setting",
    "SELECT has_table_privilege('orders', 'select')": "names a table",
    "SELECT pg_relation_size('orders')": "names a table",
    "SELECT pg_notify('channel', 'x')": "carries values away",
    "SELECT pg_advisory_lock(5)": "takes a lock by number",
    "SELECT pg_sleep(5)": "may hold a connection as long as it likes",
    "SELECT query_to_xml('SELECT 1', true, false, '')": "runs SQL that nobody has judged",
    "SELECT dblink('', 'SELECT 1')": "runs SQL elsewhere",
    "SELECT pg_read_file('/etc/passwd')": "reads a file",
    "SELECT tidy('x') FROM customers": "a function of the users' own",
    "SELECT risky(5)": "a function that may do anything",
    "SELECT public.lower('X')": "a function of the users' own by a built-in name",
    "SELECT id OPERATOR(public.=) 5 FROM orders": "an operator of the users' own",
    "SELECT id <-> 5 FROM orders": "an operator that is not listed",
    "SELECT 1 + 1": "constants on both sides",
    "SELECT id FROM orders WHERE 1 = 1": "constants on both sides",
    "SELECT id FROM orders WHERE 'x' LIKE 'y'": "constants on both sides",
    "SELECT id FROM orders WHERE 't'": "a constant is the condition",
    "SELECT id FROM orders WHERE id = 5 AND 'false'": "a constant is half of the condition",
    "SELECT id FROM orders WHERE status LIKE 'a!%' ESCAPE '!'": "ESCAPE makes a call of it",
    "SELECT id FROM orders WHERE status SIMILAR TO 'a%'": "SIMILAR TO makes a call of it",
    "DELETE FROM orders WHERE 5 = 5": "true or not by the values: narrowing looks at them",
    "DELETE FROM orders WHERE 'false'": "narrowing reads the text",
    "DELETE FROM orders WHERE id = 5 AND 1 = 0": "narrowing compares the numbers",
    "DELETE FROM orders WHERE status LIKE 'a%'": "a pattern of % alone narrows nothing",
    "DELETE FROM orders WHERE id = 5 OR id <> 6": "with equal numbers it would narrow nothing",
    "DELETE FROM orders WHERE id > 5 OR id <= 4": "with other numbers it would narrow nothing",
    "DELETE FROM orders WHERE id = 5 OR NOT id = 6": "with equal numbers it would narrow nothing",
    "DELETE FROM orders WHERE id + 1 = id + 2": "with equal numbers it would narrow nothing",
    "DELETE FROM orders WHERE id + 1 IN (id + 2)": "with equal numbers it would narrow nothing",
    "UPDATE orders SET status = 'x' WHERE coalesce(id, 1) = coalesce(id, 2)": "with equal numbers it would narrow nothing",
    "UPDATE orders SET status = 'x' WHERE (status = 'y') IS TRUE": "narrowing looks through it",
    "UPDATE orders SET (status, total) = ('x', 5) WHERE id = 5": "one source for several columns",
    "MERGE INTO orders o USING customers c ON o.id = 5 WHEN MATCHED THEN DELETE": "MERGE is not looked into",
    "DELETE FROM orders": "it is held",
    "UPDATE orders SET status = 'x'": "it is held",
    "SELECT * FROM secrets WHERE id = 5": "it is denied",
    "SELECT name FROM customers WHERE ssn = '1'": "it is denied: the column is masked",
    "SELECT * INTO TEMP loot FROM orders WHERE id = 5": "it makes a table",
    "SELECT 1; SELECT 2": "two statements",
    "SET work_mem = '64MB'": "a setting's value is the point",
    "SET search_path = 'public'": "later names depend on it",
    "PREPARE p AS SELECT 1": "a name is made",
    "EXECUTE p(5)": "what runs is elsewhere",
    "DECLARE c CURSOR FOR SELECT 5": "a name is made",
    "EXPLAIN SELECT 5": "it stands for another statement",
    "COPY (SELECT 5) TO STDOUT": "COPY",
    "DO $$BEGIN END$$": "the text is code",
    "CALL risky(5)": "a procedure",
    "NOTIFY channel, 'x'": "carries values away",
    "CREATE TABLE x AS SELECT 5": "it makes a table",
    "SELECT 5 +": "it is not a statement",
}


@pytest.mark.parametrize("sql", NOT_SHARED)
def test_where_a_literal_may_matter_each_text_is_judged(engine: PolicyEngine, sql: str) -> None:
    for protocol in ("simple", "parse"):
        verdict, _ = judged(engine, sql, protocol)
        assert not verdict.any_literals, NOT_SHARED[sql]


@pytest.mark.parametrize(
    ("sql", "other"),
    [
        ("SELECT name, ssn FROM customers ORDER BY 1", "SELECT name, ssn FROM customers ORDER BY 2"),
        ("DELETE FROM orders WHERE 1 = 2", "DELETE FROM orders WHERE 1 = 1"),
        ("DELETE FROM orders WHERE status LIKE 'a'", "DELETE FROM orders WHERE status LIKE '%'"),
        ("DELETE FROM orders WHERE id = 1 OR id <> 2", "DELETE FROM orders WHERE id = 1 OR id <> 1"),
        ("DELETE FROM orders WHERE id + 1 = id + 2", "DELETE FROM orders WHERE id + 1 = id + 1"),
        ("DELETE FROM orders WHERE id < 5", "DELETE FROM orders WHERE id < 2147483647"),
        ("DELETE FROM orders WHERE status >= 'x'", "DELETE FROM orders WHERE status >= ''"),
        (
            "DELETE FROM orders WHERE id IN (SELECT id FROM orders WHERE total < 5)",
            "DELETE FROM orders WHERE id IN (SELECT id FROM orders WHERE total < 2147483647)",
        ),
        ("DELETE FROM orders WHERE 'f'", "DELETE FROM orders WHERE 't'"),
        ("SELECT set_config('a.b', 'x', true)", "SELECT set_config('role', 'x', true)"),
    ],
)
def test_a_literal_that_decides(engine: PolicyEngine, sql: str, other: str) -> None:
    """Pairs of one form with two verdicts: were any of them shared, one would be a way around the other."""
    assert canonical(sql.encode()) == canonical(other.encode())
    assert judged(engine, sql)[0].effect is not judged(engine, other)[0].effect
    assert not judged(engine, sql)[0].any_literals and not judged(engine, other)[0].any_literals


def test_a_limit_per_minute_keeps_no_form_from_being_shared(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY + "limits:\n  - {who: {subjects: [agent]}, statements_per_minute: 600}\n")
    limited = PolicyEngine(file, {"shop": Fixed()})
    for protocol in ("simple", "parse", "execute"):
        verdict, _ = judged(limited, "SELECT id FROM orders WHERE id = 5", protocol)
        assert verdict.effect is Effect.ALLOW and verdict.cacheable and verdict.any_literals


NAMES = st.sampled_from(["id", "o.id", "total", "status", "region", "email", "ssn", "name", "data", "c.name"])
CONSTANTS = st.sampled_from(
    ["1", "2", "-3", "3000000000", "1.5", "'a'", "'%'", "'f'", "E'b'", "$$c$$", "'{1}'", "NULL", "true", "date '2024-01-01'"]
)
TYPES = st.sampled_from(["text", "int", "numeric", "regclass", "float(3)", "varchar(5)", "jsonb", "int[]", "mood", "bit(3)"])
OPERATORS = st.sampled_from(
    ["=", "<>", "<", ">=", "+", "-", "||", "~", "->", "->>", "@>", "OPERATOR(pg_catalog.=)", "OPERATOR(public.=)", "<->"]
)
FUNCTIONS = st.sampled_from(
    ["lower", "coalesce", "substr", "nextval", "risky", "tidy", "count", "greatest", "to_regclass", "set_config", "round"]
)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Larger expressions from smaller ones."""
    two = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(inner, OPERATORS, inner).map(lambda each: f"{each[0]} {each[1]} {each[2]}"),
        st.tuples(inner, OPERATORS, inner).map(lambda each: f"({each[0]} {each[1]} {each[2]})"),
        st.tuples(inner, TYPES).map(lambda each: f"({each[0]})::{each[1]}"),
        st.tuples(FUNCTIONS, st.lists(inner, min_size=1, max_size=3)).map(lambda each: f"{each[0]}({', '.join(each[1])})"),
        st.tuples(inner, st.lists(inner, min_size=1, max_size=3)).map(lambda each: f"{each[0]} IN ({', '.join(each[1])})"),
        st.tuples(
            inner, st.sampled_from(["LIKE", "ILIKE", "NOT LIKE", "IS DISTINCT FROM", "IS NOT DISTINCT FROM", "AND", "OR"]), inner
        ).map(" ".join),
        st.tuples(inner, inner, inner).map(lambda each: f"{each[0]} BETWEEN {each[1]} AND {each[2]}"),
        inner.map(lambda each: f"NOT {each}"),
        inner.map(lambda each: f"({each}) IS NOT NULL"),
        inner.map(lambda each: f"({each}) IS TRUE"),
        two.map(lambda each: f"CASE WHEN {each[0]} THEN {each[1]} ELSE 0 END"),
        two.map(lambda each: f"CASE {each[0]} WHEN {each[1]} THEN 5 END"),
        two.map(lambda each: f"(SELECT {each[0]} FROM customers c WHERE {each[1]})"),
        two.map(lambda each: f"id IN (SELECT {each[0]} FROM people WHERE {each[1]})"),
        st.tuples(inner, inner).map(lambda each: f"({each[0]})[{each[1]}]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: f"ARRAY[{', '.join(each)}]"),
        inner.map(lambda each: f"id = ANY({each})"),
        inner.map(lambda each: f"extract(year FROM {each})"),
        two.map(lambda each: f"count({each[0]}) FILTER (WHERE {each[1]})"),
        two.map(lambda each: f"max({each[0]}) OVER (ORDER BY {each[1]})"),
    )


EXPRESSIONS = st.recursive(NAMES | CONSTANTS, grown, max_leaves=6)


@st.composite
def statements(draw: st.DrawFn) -> str:
    """Statements of all kinds of parts, shared or not."""
    one, two, three = draw(EXPRESSIONS), draw(EXPRESSIONS), draw(EXPRESSIONS)
    number = draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [
                f"SELECT {one} AS x, {two} FROM orders o JOIN customers c ON {three}",
                f"SELECT {one}, id FROM orders o WHERE {two} LIMIT {number}",
                f"SELECT {one}, id FROM orders o ORDER BY {two}",
                f"SELECT id, {one} FROM customers c GROUP BY {two}, {number} HAVING {three}",
                f"SELECT DISTINCT ON ({one}) {two} FROM customers c",
                f"WITH x AS (SELECT {one} AS id FROM customers c WHERE {two}) SELECT {three} FROM x",
                f"SELECT {one} FROM customers c UNION SELECT {two} ORDER BY {number}",
                f"SELECT x FROM (SELECT {one} AS x FROM people) s, LATERAL generate_series(1, {number}) g WHERE {two}",
                f"INSERT INTO orders (id, total) VALUES ({one}, {two}) ON CONFLICT (id) DO UPDATE SET total = {three} RETURNING {one}",
                f"INSERT INTO orders SELECT {one}, {two} FROM customers c WHERE {three}",
                f"UPDATE orders o SET total = {one} WHERE {two} AND {three} RETURNING {one}",
                f"UPDATE orders o SET total = {one}, status = {two} WHERE {three}",
                f"DELETE FROM orders o WHERE {one} OR {two}",
                f"DELETE FROM orders o USING customers c WHERE {one} AND NOT {two}",
                f"WITH x AS (DELETE FROM orders o WHERE {one} RETURNING {two}) SELECT {three} FROM x",
            ]
        )
    )


@given(data=st.data(), sql=statements())
def test_whatever_is_shared_is_the_same_for_other_literals(engine: PolicyEngine, data: st.DataObject, sql: str) -> None:
    try:
        read_facts(sql.encode(), {})
    except Unreadable:
        assume(False)
    if not judged(engine, sql)[0].any_literals:
        return
    for _ in range(3):
        other = data.draw(with_other_literals(sql))
        if other is not None and canonical(other.encode()) == canonical(sql.encode()):
            same_for_others(engine, sql, other)

"""Conditions that narrow nothing, however they are dressed, and honest ones that look like them."""

from __future__ import annotations

import pytest

from control.policy.analysis import touches
from control.policy.catalog import Relation, Snapshot
from control.policy.reading import read_facts
from control.policy.schema import Behind

_T = Relation(20000, "public", "t", "r", {1: "id", 2: "name", 3: "gone_at", 4: "n"})
_B = Relation(20001, "public", "b", "r", {1: "id", 2: "x", 3: "t_id"})
SNAPSHOT = Snapshot(
    {each.oid: each for each in (_T, _B)},
    {("public", each.name): each for each in (_T, _B)},
    behind={20000: Behind(not_null=frozenset({"id", "name"})), 20001: Behind(not_null=frozenset({"id"}))},
)
WIDE = [
    "1=1",
    "true",
    "NOT false",
    "'t'",
    "2 > 1",
    "id = id",
    "t.id = id",
    "id = 3 OR true",
    "id IS NOT NULL",
    "NOT (id IS NULL)",
    "id IS DISTINCT FROM NULL",
    "NOT id IS NOT DISTINCT FROM NULL",
    "ctid IS NOT NULL",
    "xmin = xmin",
    "random() < 2",
    "now() > '2000-01-01'",
    "id >= -2147483648",
    "id > -9223372036854775809",
    "id <= 2147483647",
    "-2147483648 <= id",
    "NOT id < -2147483648 OR true",
    "id BETWEEN -2147483648 AND 2147483647",
    "name >= ''",
    "gone_at >= '-infinity' OR gone_at IS NULL OR true",
    "length(name) >= 0",
    "abs(id) > -1",
    "id + 0 = id",
    "id = id * 1",
    "id - id = 0",
    "id * 0 = 0",
    "id % 1 = 0",
    "name || '' = name",
    "id::text = id::text",
    "name LIKE '%'",
    "name ILIKE '%%'",
    "id IN (1, id)",
    "id = ANY (ARRAY(SELECT id FROM t))",
    "id IN (SELECT id FROM t)",
    "id IN (SELECT id FROM public.t WHERE true)",
    "id IN (SELECT x.id FROM t x)",
    "(id, name) IN (SELECT id, name FROM t)",
    "ctid IN (SELECT ctid FROM t)",
    "id IN (SELECT id FROM t UNION SELECT 5)",
    "id IN (SELECT id FROM (SELECT * FROM t) s)",
    "EXISTS (SELECT 1)",
    "EXISTS (SELECT 1 FROM b)",
    "EXISTS (SELECT 1 FROM b WHERE b.x > 3)",
    "EXISTS (SELECT 1 FROM b WHERE x > 3)",
    "EXISTS (SELECT 1 FROM t y WHERE y.id = t.id)",
    "(SELECT count(*) FROM b) > 0",
    "COALESCE(true, id = 1)",
    "COALESCE(id = id, true)",
    "COALESCE(id, 1) = COALESCE(id, 1)",
    "coalesce(gone_at, now()) IS NOT NULL",
    "CASE WHEN id = 1 THEN true ELSE true END",
    "id = 1 OR id <> 1",
    "id > 5 OR id <= 5",
    "gone_at IS NULL OR gone_at IS NOT NULL",
    "id = 1 OR NOT id = 1",
    "(id = id) IS TRUE",
    "(id = id) IS NOT FALSE",
    "id <> ALL ('{}')",
    "id <> ALL (ARRAY[]::int[])",
    "$1",
    "id = 1 OR $1",
    "true AND id = id AND 1 = 1",
    "id IS NOT DISTINCT FROM id",
    "NOT (id <> id AND false)",
    "(id = id)::bool",
    "id = 1 OR 1 = 1 OR name = 'x'",
    "t.id IS NOT NULL",
]
HONEST = [
    "id = 1",
    "id = $1",
    "id IN (1, 2)",
    "id IN ($1, $2)",
    "id = ANY ($1)",
    "id = n",
    "id <> 3",
    "id > 5",
    "id >= 0",
    "id BETWEEN 1 AND 9",
    "gone_at IS NOT NULL",
    "gone_at IS NULL",
    "NOT gone_at IS NULL",
    "n IS NOT NULL",
    "n IS DISTINCT FROM NULL",
    "name <> ''",
    "name > 'a'",
    "name LIKE 'a%'",
    "name ILIKE '%x%'",
    "name = ''",
    "gone_at < now()",
    "gone_at < now() - interval '1 day'",
    "n + 1 = id",
    "n - id = 0",
    "n * 2 = 4",
    "n % 2 = 0",
    "id % 10 = 3",
    "length(name) > 5",
    "length(name) >= 1",
    "abs(n) < 5",
    "lower(name) = 'x'",
    "coalesce(n, 0) = 0",
    "coalesce(n, id) = 5",
    "coalesce(n = 1, false)",
    "CASE WHEN n = 1 THEN true ELSE false END",
    "id IN (SELECT t_id FROM b)",
    "id IN (SELECT id FROM b WHERE x = 1)",
    "id IN (SELECT id FROM t WHERE n = 3)",
    "id IN (SELECT id FROM t ORDER BY id LIMIT 10)",
    "id IN (SELECT id FROM t WHERE gone_at IS NOT NULL)",
    "id NOT IN (SELECT t_id FROM b WHERE t_id IS NOT NULL)",
    "ctid IN (SELECT ctid FROM t LIMIT 5)",
    "EXISTS (SELECT 1 FROM b WHERE b.t_id = t.id)",
    "NOT EXISTS (SELECT 1 FROM b WHERE b.t_id = t.id)",
    "EXISTS (SELECT FROM b WHERE t_id = t.id AND x > 3)",
    "EXISTS (SELECT 1 FROM t y WHERE y.n = t.n AND y.id < t.id)",
    "EXISTS (SELECT 1 FROM b WHERE t_id = n)",
    "id = (SELECT max(id) FROM t)",
    "id = (SELECT t_id FROM b WHERE id = 3)",
    "id < (SELECT avg(id) FROM t)",
    "n = (SELECT min(x) FROM b WHERE b.t_id = t.id)",
    "id = 1 AND true",
    "1 = 1 AND id = 5",
    "false",
    "NULL",
    "1 = 0",
    "id = 1 OR id = 2",
    "id = 1 OR n IS NULL",
    "NOT id = 3",
    "NOT (n = 1 OR n = 2)",
    "(n = 1) IS TRUE",
    "(n = 1) IS NOT TRUE",
    "CURRENT OF c",
    "id::text = '5'",
    "n::text LIKE '1%'",
    "name ~ '^a'",
    "name SIMILAR TO 'a%'",
    "(id, n) = (1, 2)",
    "(id, n) IN ((1, 2))",
    "id <= 2147483646",
    "id > -5",
    "n IS NOT DISTINCT FROM 5",
    "gone_at BETWEEN '2020-01-01' AND '2021-01-01'",
    "gone_at > '-infinity' AND n = 1",
    "id = 1 AND id IS NOT NULL",
    "t.id = 7",
    "t.name = 'x'",
    "name IN ('a', 'b')",
    "n IN (SELECT x FROM b)",
    "random() < 0.1 AND id > 4",
    "id = ANY (ARRAY[1, 2])",
    "id = ANY (ARRAY(SELECT t_id FROM b))",
    "n > id",
    "id <> ALL (ARRAY[1, 2])",
    "n = 1 AND (id > 5 OR id <= 5)",
]


def wide(sql: str) -> bool:
    (facts,) = read_facts(sql.encode(), None)
    return any(touch.wide for touch in touches(facts, SNAPSHOT, (("public",),), frozenset()))


@pytest.mark.parametrize("where", WIDE)
def test_what_narrows_nothing(where: str) -> None:
    assert wide(f"DELETE FROM t WHERE {where}")
    assert wide(f"WITH x AS (UPDATE t SET n = 1 WHERE {where} RETURNING id) SELECT * FROM x")


@pytest.mark.parametrize("where", HONEST)
def test_what_narrows(where: str) -> None:
    assert not wide(f"DELETE FROM t WHERE {where}")
    assert not wide(f"UPDATE public.t SET n = 1 WHERE {where}")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t USING b",
        "DELETE FROM t USING b WHERE b.x = 1",
        "DELETE FROM t USING b WHERE x = 1",
        "DELETE FROM t a USING t c WHERE a.id = c.id",
        "UPDATE t SET n = 1 FROM b WHERE b.id = b.t_id",
        "UPDATE t SET n = 1 FROM b JOIN b c USING (id) WHERE b.x = c.x",
        "WITH x AS (SELECT id FROM t) DELETE FROM t USING x WHERE t.id = x.id",
        "WITH x AS (SELECT id FROM t) DELETE FROM t WHERE id IN (SELECT id FROM x)",
        "DELETE FROM t USING (SELECT id FROM t) s WHERE s.id = t.id",
        "WITH x AS (SELECT id FROM t), d AS (DELETE FROM t USING x WHERE x.id = t.id) SELECT 1",
        "MERGE INTO t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
        "MERGE INTO t USING t s ON t.id = s.id WHEN MATCHED THEN DELETE",
        "MERGE INTO t USING b ON b.x = 1 WHEN MATCHED THEN UPDATE SET n = 1",
        "MERGE INTO t USING b ON t.id = b.t_id WHEN NOT MATCHED BY SOURCE THEN DELETE",
        "DELETE FROM t WHERE true RETURNING *",
    ],
)
def test_joins_that_narrow_nothing(sql: str) -> None:
    assert wide(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t USING b WHERE b.t_id = t.id",
        "DELETE FROM t USING b WHERE t_id = t.id AND x = 1",
        "UPDATE t SET n = x FROM b WHERE t_id = t.id",
        "WITH x AS (SELECT id FROM t WHERE n = 1) DELETE FROM t USING x WHERE t.id = x.id",
        "DELETE FROM t a USING t c WHERE a.n = c.n AND a.id < c.id",
        "WITH x AS (SELECT id FROM t LIMIT 5) DELETE FROM t WHERE id IN (SELECT id FROM x)",
        "DELETE FROM t USING (SELECT t_id FROM b) s WHERE s.t_id = t.id",
        "MERGE INTO t USING b ON t.id = b.t_id WHEN MATCHED THEN UPDATE SET n = 1 WHEN NOT MATCHED THEN INSERT (id, name) VALUES (1, 'x')",
        "MERGE INTO t USING t s ON t.id = s.id WHEN MATCHED AND t.n = 5 THEN DELETE",
        "MERGE INTO t USING b ON t.id = b.t_id WHEN NOT MATCHED BY SOURCE AND t.n = 3 THEN DELETE",
        "INSERT INTO t VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET n = 1",
    ],
)
def test_joins_that_narrow(sql: str) -> None:
    assert not wide(sql)

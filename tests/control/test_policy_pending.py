"""What a transaction has defined and not committed is not guessed at; what a plain migration does passes."""

from __future__ import annotations

import pytest

from control.policy.catalog import Relation, Snapshot
from control.policy.effects import Reach
from control.policy.pending import hidden, unseen_after
from control.policy.reading import read_facts

_T = Relation(20000, "public", "t", "r", {1: "id"})
SNAPSHOT = Snapshot({20000: _T}, {("public", "t"): _T})
PATHS = (("public",),)


def refused(*statements: str) -> bool:
    reach, unseen = Reach(SNAPSHOT), frozenset[str]()
    for sql in statements[:-1]:
        (facts,) = read_facts(sql.encode(), None)
        unseen |= unseen_after(facts, reach.of(facts, PATHS, frozenset()), SNAPSHOT)
    (facts,) = read_facts(statements[-1].encode(), None)
    effects = reach.of(facts, PATHS, frozenset())
    return hidden(unseen, facts, effects, tuple(effects.touches)) is not None


@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE t RENAME TO u", "DELETE FROM u"),
        ("ALTER TABLE t RENAME TO u", "DROP TABLE u"),
        ("ALTER TABLE t SET SCHEMA s", "SELECT * FROM s.t"),
        ("CREATE VIEW v AS SELECT * FROM t", "DELETE FROM v"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'DELETE FROM t RETURNING 1'", "SELECT f()"),
        ("CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT s.f()"),
        ("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()", "INSERT INTO t VALUES (1)"),
        ("CREATE RULE r AS ON INSERT TO t DO ALSO DELETE FROM t", "INSERT INTO t VALUES (1)"),
        ("CREATE OPERATOR ?! (leftarg = int, rightarg = int, function = f)", "SELECT 1 ?! 2 FROM t"),
        ("CREATE TABLE s.t (id int)", "DELETE FROM t"),
        ("ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES b ON DELETE CASCADE", "DELETE FROM t WHERE id = 1"),
        ("ALTER TABLE p ATTACH PARTITION t FOR VALUES FROM (1) TO (2)", "DELETE FROM p WHERE id = 1"),
        ("DO $$ BEGIN EXECUTE current_setting('a.b'); END $$", "SELECT * FROM t"),
    ],
)
def test_what_can_not_be_seen_is_refused(statements: tuple[str, ...]) -> None:
    assert refused(*statements)


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE fresh (id int)", "INSERT INTO fresh VALUES (1)"),
        ("ALTER TABLE t ADD COLUMN x int DEFAULT 5", "UPDATE t SET x = 1 WHERE id = 2"),
        ("CREATE INDEX i ON t (id)", "SELECT * FROM t"),
        ("DROP TABLE t", "CREATE TABLE t (id int)"),
        ("CREATE VIEW v AS SELECT * FROM t", "SELECT * FROM t"),
        ("SET LOCAL statement_timeout = 5", "SELECT * FROM t"),
        ("INSERT INTO t VALUES (1)", "SELECT * FROM t"),
    ],
)
def test_an_ordinary_migration_passes(statements: tuple[str, ...]) -> None:
    assert not refused(*statements)

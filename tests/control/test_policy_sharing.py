"""What sessions share, and that one which only waits follows the catalog and the policy all the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from control.policy.catalog import Relation, Snapshot
from control.policy.engine import PolicyEngine, SessionJudge
from pgwire.ports import Effect, MaskRule, Principal, Scope, Statement, Verdict

POLICY = """
version: 1
labels:
  pii: ["public.people.mail"]
rules:
  - {name: all, tables: ["*.*"], effect: allow}
masks:
  - {label: pii, action: "null", who: {groups: [agents]}}
"""
SCOPE = Scope("shop", ("*.*",), frozenset({"select"}))
AGENT, OTHER = Principal("a", groups=frozenset({"agents"})), Principal("b", groups=frozenset({"agents"}))
CLERK = Principal("c")


def catalog(version: int, definition: str) -> Snapshot:
    people = Relation(20000, "public", "people", "r", {1: "id", 2: "mail"})
    view = Relation(20001, "public", "v", "v", {1: "x"}, definition)
    every = (people, view)
    return Snapshot({each.oid: each for each in every}, {(each.schema, each.name): each for each in every}, version=version)


class Changing:
    """A catalog that the test changes; it is read again behind the sessions' backs."""

    def __init__(self, present: Snapshot) -> None:
        self.present = present

    async def snapshot(self) -> Snapshot:
        return self.present

    async def refresh(self) -> Snapshot:
        return self.present


@dataclass
class JudgeOf:
    """A session, and what its name p stands for."""

    judge: SessionJudge
    text: bytes


@pytest.fixture
def engine(tmp_path: Path) -> PolicyEngine:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return PolicyEngine(file, {})


def judge(engine: PolicyEngine, source: Changing, who: Principal = AGENT) -> SessionJudge:
    return SessionJudge(engine, source, source.present, who, SCOPE, who.subject, None)


def verdict(session: SessionJudge, sql: str) -> Verdict:
    return asyncio.run(session.judge(Statement(sql.encode(), "simple")))


def test_an_idle_session_follows_the_catalog_without_asking(engine: PolicyEngine) -> None:
    source = Changing(catalog(1, " SELECT people.id AS x FROM public.people"))
    session = judge(engine, source)
    before = verdict(session, "SELECT x FROM v")
    key = session.key
    assert before.effect is Effect.ALLOW and session.key == key
    assert session.output_masks(Statement(b"SELECT x FROM v", "simple")) == (None,)
    source.present = catalog(2, " SELECT people.mail AS x FROM public.people")
    assert session.key != key, "verdicts and plans made under the old definition would still be used"
    verdict(session, "SELECT x FROM v")
    assert session.output_masks(Statement(b"SELECT x FROM v", "simple")) == (MaskRule("null", "pii"),)


def test_the_same_catalog_read_again_changes_nothing(engine: PolicyEngine) -> None:
    source = Changing(catalog(1, " SELECT people.id AS x FROM public.people"))
    session = judge(engine, source)
    key = session.key
    source.present = replace(source.present)
    assert session.key == key


def test_what_one_may_see_is_not_what_another_sees(engine: PolicyEngine) -> None:
    source = Changing(catalog(1, " SELECT people.id AS x FROM public.people"))
    sessions = [judge(engine, source, who) for who in (AGENT, OTHER, CLERK)]
    statement = Statement(b"SELECT mail FROM people", "simple")
    for session in sessions:
        verdict(session, "SELECT mail FROM people")
    masks = [session.output_masks(statement) for session in sessions]
    assert masks == [(MaskRule("null", "pii"),), (MaskRule("null", "pii"),), (None,)]
    assert [session.scrubs for session in sessions] == [True, True, False]
    assert len({session.key for session in sessions}) == 3


def test_names_of_one_session_mean_nothing_in_another(engine: PolicyEngine) -> None:
    source = Changing(catalog(1, " SELECT people.id AS x FROM public.people"))

    def execute(session: JudgeOf) -> Effect:
        statement = Statement(b"EXECUTE p", "simple", named=lambda cursor, name: (session.text, True) if session.text else None)
        return asyncio.run(session.judge.judge(statement)).effect

    reads, deletes, has_none = (
        JudgeOf(judge(engine, source), text) for text in (b"SELECT id FROM people", b"DELETE FROM people", b"")
    )  # fmt: skip
    for _ in range(2):
        assert execute(reads) is Effect.ALLOW
        assert execute(deletes) is Effect.DENY  # the grant has no delete
        assert execute(has_none) is Effect.DENY

"""The fuzzer at work for some seconds, and random sessions of legal messages against the server's own answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz import mutate
from fuzz.differential import Report, cases_of
from kit.sessions import CASES
from kit.twins import LINES, Twins, difference
from kit.wire import bind, close, describe, execute, message, parse, query, sync
from pgleash.demo.stage import Stage

NAMES = st.sampled_from(["", "a", "b", "n" * 64])
SQL = st.sampled_from(
    [
        "SELECT 1",
        "SELECT generate_series(1, 4)",
        "SELECT 1/0",
        "",
        "x",
        "SELECT 1; SELECT 2",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "ROLLBACK TO a",
        "INSERT INTO lines VALUES (1)",
        "TABLE lines",
        "COPY lines FROM STDIN",
        "COPY lines TO STDOUT",
        "PREPARE a AS SELECT 7",
        "EXECUTE a",
        "DEALLOCATE a",
        "DECLARE a CURSOR FOR SELECT generate_series(1, 4)",
        "DECLARE b CURSOR WITH HOLD FOR SELECT generate_series(1, 4)",
        "FETCH 1 FROM a",
        "FETCH 1 FROM b",
        "MOVE 1 IN a",
        "CLOSE a",
        "CLOSE ALL",
        "DEALLOCATE ALL",
        "SET work_mem = '4MB'",
        "SELECT $1::int",
    ]
)
MESSAGES = st.one_of(
    st.builds(query, SQL),
    st.builds(lambda sql, name: parse(sql, name) + bind(statement=name) + execute(), SQL, NAMES),
    st.builds(parse, SQL, NAMES),
    st.builds(lambda name, portal, value: bind([b"5"] if value else (), statement=name, portal=portal), NAMES, NAMES, st.booleans()),
    st.builds(execute, NAMES, st.sampled_from([0, 0, 1, 2])),
    st.builds(describe, st.sampled_from("SP"), NAMES),
    st.builds(close, st.sampled_from("SP"), NAMES),
    st.just(sync()),
    st.sampled_from([message(b"H"), message(b"c"), message(b"f", b"no\0"), message(b"d", b"7\tx\n"), message(b"d", b"x\tx\n")]),
)


@pytest.fixture(scope="module")
def side_by_side(open_gateway: Stage) -> Iterator[Twins]:
    """Two sessions that serve many cases."""
    with Twins(open_gateway, setup=LINES) as made:
        yield made


def compared(twins: Twins, data: bytes, cuts: tuple[int, ...] = ()) -> str:
    try:
        return difference(*twins.both(data, cuts=cuts))
    finally:
        if not twins.reset():
            twins.renew()


@settings(
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=250 if settings().max_examples < 1000 else settings().max_examples,
)
@given(st.lists(MESSAGES, max_size=14), st.lists(st.integers(1, 2000), max_size=3))
def test_any_messages_are_answered_as_the_server_does(side_by_side: Twins, messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(messages)
    assert compared(side_by_side, data, tuple(sorted({cut for cut in cuts if cut < len(data)}))) == ""


@pytest.mark.parametrize("name", sorted(CASES))
def test_corpus_in_random_pieces(side_by_side: Twins, name: str) -> None:
    data, rng = b"".join(CASES[name]), random.Random(name)
    for _ in range(2):
        cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.choice((1, 2, 8)))))
        assert compared(side_by_side, data, tuple(cuts)) == ""


@pytest.mark.parametrize("masked", [False, True])
def test_the_fuzzer_finds_nothing(open_gateway: Stage, masked_gateway: Stage, masked: bool, tmp_path: Path) -> None:
    report = Report(20261125, home=tmp_path)
    cases_of(masked_gateway if masked else open_gateway, report, range(160), 8.0, masked=masked)
    assert report.findings == [] and sum(report.cases.values()) > 10


def test_mutations_repeat() -> None:
    def made(seed: int) -> bytes:
        rng = random.Random(seed)
        return mutate.spoiled(rng, mutate.shuffled(rng, mutate.session(rng, False), False) or [sync()])

    assert [made(seed) for seed in range(50)] == [made(seed) for seed in range(50)]

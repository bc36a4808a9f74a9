"""A session as a state machine: whatever is sent in whatever state, the gateway answers as the server does.

Two sessions live through the same steps, one at the server and one behind the gateway, and are compared wherever the server has
said where it stands. State carries over from step to step: names, portals, transactions, a COPY under way.

Never add: a judgement of an answer by its content. The server's own answer is what is right.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from kit.sessions import BAD, COPY, DONE, FAIL, FLUSH, GOOD
from kit.twins import LINES, Answer, Twins, answer_until, difference
from kit.wire import bind, close, describe, execute, parse, query, sync
from pgleash.demo.stage import Stage

NAMES = st.sampled_from(["", "a", "b"])
ROWS = "SELECT generate_series(1, 4)"
SQL = st.sampled_from(
    [
        "SELECT 1", ROWS, "SELECT 1/0", "", "x", "SELECT $1::int", "SELECT 1; SELECT 2", "SELECT 1; SELECT 1/0; SELECT 2", "TABLE lines",
        "INSERT INTO lines VALUES (1)", "INSERT INTO lines VALUES ($1::int) RETURNING a", "COPY lines TO STDOUT", "SET work_mem = '4MB'",
        "PREPARE a AS SELECT 7", "EXECUTE a", "DEALLOCATE a", "DEALLOCATE ALL", "DISCARD PLANS",
    ]
)  # fmt: skip
TRANSACTION = st.sampled_from(
    ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s", "RELEASE s", "BEGIN; SELECT 1", "COMMIT; BEGIN", "COMMIT AND CHAIN"]
)
CURSOR = st.sampled_from(
    [
        f"DECLARE a CURSOR FOR {ROWS}", f"DECLARE b CURSOR WITH HOLD FOR {ROWS}", "FETCH 1 FROM a", "FETCH ALL FROM b", "MOVE 1 IN a",
        "CLOSE a", "CLOSE ALL",
    ]
)  # fmt: skip


class Session(RuleBasedStateMachine):
    """``stage`` is set by the test. ``copying``: 0 no COPY runs; else how many ReadyForQuery its end brings, the Sync's included."""

    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self.twins: Twins | None = None
        self.copying = 0
        self.over = False

    @initialize()
    def begin(self) -> None:
        self.twins = Twins(self.stage, setup=LINES)

    def teardown(self) -> None:
        if self.twins is not None:
            self.twins.__exit__(None, None, None)

    def send(self, data: bytes) -> None:
        """To both; nobody waits for an answer."""
        assert self.twins is not None
        for client in (self.twins.direct, self.twins.gateway):
            try:
                client.send(data)
            except OSError:
                self.over = True

    def compare(self, ready: int = 1) -> Answer:
        """Both answers up to the ``ready``-th ReadyForQuery, or to where a COPY wants rows; they must be alike."""
        assert self.twins is not None
        told, ours = answer_until(self.twins.direct, ready), answer_until(self.twins.gateway, ready)
        assert difference(told, ours) == ""
        self.over = self.over or "closed" in (told.end, ours.end) or any(one.kind == "E" and b"C0A000" in one.body for one in ours.messages)
        return told

    @precondition(lambda self: not self.over and not self.copying)
    @rule(sql=st.one_of(SQL, TRANSACTION, CURSOR), name=NAMES)
    def parses(self, sql: str, name: str) -> None:
        self.send(parse(sql, name))

    @precondition(lambda self: not self.over and not self.copying)
    @rule(statement=NAMES, portal=NAMES, value=st.sampled_from([(), (b"5",), (b"no number",), (None,)]))
    def binds(self, statement: str, portal: str, value: tuple[bytes | None, ...]) -> None:
        self.send(bind(value, statement=statement, portal=portal))

    @precondition(lambda self: not self.over and not self.copying)
    @rule(portal=NAMES, rows=st.sampled_from([0, 0, 1, 3]))
    def executes(self, portal: str, rows: int) -> None:
        self.send(execute(portal, rows))

    @precondition(lambda self: not self.over and not self.copying)
    @rule(what=st.sampled_from("SP"), name=NAMES)
    def describes(self, what: str, name: str) -> None:
        self.send(describe(what, name))

    @precondition(lambda self: not self.over and not self.copying)
    @rule(what=st.sampled_from("SP"), name=NAMES)
    def closes(self, what: str, name: str) -> None:
        self.send(close(what, name))

    @precondition(lambda self: not self.over and not self.copying)
    @rule(sql=st.one_of(SQL, TRANSACTION, CURSOR))
    def runs_whole(self, sql: str) -> None:
        self.send(parse(sql) + bind() + describe("P", "") + execute())

    @precondition(lambda self: not self.over and not self.copying)
    @rule()
    def flushes(self) -> None:
        self.send(FLUSH)

    @precondition(lambda self: not self.over and not self.copying)
    @rule(many=st.sampled_from([1, 1, 1, 2]))
    def syncs(self, many: int) -> None:
        self.send(sync() * many)
        self.compare(many)

    @precondition(lambda self: not self.over and not self.copying)
    @rule(sql=st.one_of(SQL, TRANSACTION, CURSOR))
    def queries(self, sql: str) -> None:
        self.send(sync() + query(sql))
        self.compare(2)

    @precondition(lambda self: not self.over and not self.copying)
    @rule(first=SQL, second=SQL)
    def queries_at_once(self, first: str, second: str) -> None:
        self.send(sync() + query(first) + query(second))
        self.compare(3)

    @precondition(lambda self: not self.over and not self.copying)
    @rule(simple=st.booleans())
    def begins_to_copy(self, simple: bool) -> None:
        self.send(sync())
        self.compare()
        self.send(query(COPY) if simple else parse(COPY) + bind() + execute() + FLUSH)
        # an error ends a simple query with a ReadyForQuery; the extended one waits for its Sync
        kinds = self.compare(1).kinds if simple else self._copy_or_error()
        self.copying = (2 if simple else 1) if "G" in kinds else 0

    def _copy_or_error(self) -> str:
        assert self.twins is not None
        told, ours = answer_until(self.twins.direct, 1, error=True), answer_until(self.twins.gateway, 1, error=True)
        assert difference(told, ours) == ""
        return told.kinds

    @precondition(lambda self: not self.over and self.copying)
    @rule(rows=st.lists(st.sampled_from([GOOD, BAD, FLUSH]), max_size=3))
    def copies(self, rows: list[bytes]) -> None:
        self.send(b"".join(rows))

    @precondition(lambda self: not self.over and self.copying)
    @rule(end=st.sampled_from([DONE, FAIL]))
    def ends_copy(self, end: bytes) -> None:
        self.send(end + sync())
        self.compare(self.copying)
        self.copying = 0

    @invariant()
    def lives(self) -> None:
        if self.over and self.twins is not None:
            self.twins.renew()
            self.over, self.copying = False, 0


def test_session_is_the_servers_own(open_gateway: Stage) -> None:
    """As many sessions as the profile asks for, each of some forty steps."""
    Session.stage = open_gateway
    many = settings().max_examples
    run_state_machine_as_test(
        Session,
        settings=settings(
            deadline=None,
            max_examples=60 if many < 1000 else many,
            stateful_step_count=40,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("simple", [True, False])
def test_machine_sees_a_copy(open_gateway: Stage, simple: bool) -> None:
    """The steps around COPY do what they say, so that the machine is not blind there."""
    Session.stage = open_gateway
    machine = Session()
    machine.begin()
    machine.begins_to_copy(simple)
    assert machine.copying == (2 if simple else 1)
    machine.copies([GOOD, BAD])
    machine.ends_copy(DONE)
    machine.queries("TABLE lines")
    machine.teardown()

"""The steady state: what is known by its form is not asked for again, is audited by its own text, and is masked all the same."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from control.audit.query import Entry, entries
from fixtures.gateway import Agent


def _session(agent: Agent, name: str) -> tuple[Entry, list[Entry]]:
    """The end of the session with this application name, and its statements."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = list(entries(agent.stage.audit_directory))
        numbers = [e.session for e in found if e.kind == "session.opened" and e.fields["application_name"] == name]
        ends = [e for e in found if e.kind == "session.closed" and e.session in numbers]
        if ends:
            return ends[0], [e for e in found if e.session == ends[0].session and e.kind == "statement"]
        time.sleep(0.05)
    raise AssertionError("the session's end is not in the audit log")


def _rounds(connection: psycopg.Connection[Any], mode: str, count: int) -> None:
    with connection.cursor() as cursor:
        for i in range(count):
            if mode == "literals":
                connection.pgconn.exec_(b"SELECT id, amount FROM orders WHERE id = %d" % (i + 1))
            elif mode == "simple":
                connection.pgconn.exec_(b"SELECT id, amount FROM orders WHERE id = 5")
            else:
                cursor.execute("SELECT id, amount FROM orders WHERE id = %s", (i + 1,), prepare=mode == "prepared")


@pytest.mark.parametrize("mode", ["simple", "literals", "extended", "prepared"])
def test_the_steady_state_asks_python_nothing(agent: Agent, mode: str) -> None:
    asked = []
    for count in (5, 205):
        with agent.connect(application_name=f"steady-{mode}-{count}") as connection:
            _rounds(connection, mode, count)
        end, statements = _session(agent, f"steady-{mode}-{count}")
        assert len(statements) >= count
        asked.append(end.fields["asked"])
    # The second session's verdicts are all known; a session's own beginning and end may ask a few times.
    assert asked[1] <= asked[0] <= 6


def test_statements_of_one_form_are_audited_by_their_own_text_and_masked(agent: Agent) -> None:
    with agent.connect(application_name="steady-texts") as connection:
        seen = [connection.pgconn.exec_(b"SELECT id, email FROM customers WHERE id = %d" % i).get_value(0, 1) for i in range(1, 21)]
        shown = [row for i in range(21, 31) for row in connection.execute(f"SELECT email FROM customers WHERE id = {i}", prepare=True)]
    _, statements = _session(agent, "steady-texts")
    texts = [e.fields["text"] for e in statements]
    assert [f"SELECT id, email FROM customers WHERE id = {i}" in texts for i in range(1, 21)] == [True] * 20
    assert [texts.count(f"SELECT email FROM customers WHERE id = {i}") >= 1 for i in range(21, 31)] == [True] * 10
    with agent.connect("analyst") as clear:
        real = {row[0].encode() for row in clear.execute("SELECT email FROM customers WHERE id <= 30")}
    assert real.isdisjoint(seen) and real.isdisjoint({row[0].encode() for row in shown})


def test_a_form_that_is_allowed_lets_no_other_statement_pass(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.execute("SELECT id FROM orders WHERE id = 7")
        for text in (
            "SELECT id FROM orders WHERE id = 7; SELECT pg_read_file('/etc/passwd')",
            "SELECT id FROM orders WHERE id = 7 UNION SELECT oid::int FROM pg_authid",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="pgleash"):
                connection.execute(text)


def test_a_cancel_meets_no_later_statement(agent: Agent) -> None:
    with agent.connect("analyst") as connection:
        for _ in range(20):
            # Cancel requests race with the end of short statements; the one that begins after the answer must never be hit.
            hit = threading.Thread(target=connection.cancel_safe)
            try:
                hit.start()
                connection.execute("SELECT count(*) FROM orders WHERE id < 3000")
            except psycopg.errors.QueryCanceled:
                pass
            hit.join()
            assert connection.execute("SELECT 1").fetchone() == (1,)

"""The contract of denials (docs/denials.md): for each class a driver gets SQLSTATE, one sentence, DETAIL as JSON and a HINT."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from fixtures.gateway import Agent
from pgleash.demo.stage import POLICY, Stage
from pgleash.v1 import approvals_pb2 as pb
from pgleash.v1 import audit_pb2, policy_pb2

DENYING = (
    POLICY.replace(
        "\nmasks:",
        """
  - name: no-staff
    who: {groups: [agents]}
    tables: [public.employees]
    effect: deny
    message: staff records are not for agents
    instead: the view public.staff_list
  - name: big-orders
    who: {groups: [agents]}
    tables: [public.orders]
    verbs: [update]
    when: {parameters: {position: 1, gt: 1000}}
    effect: deny
  - name: watched
    who: {groups: [agents]}
    tables: [public.orders]
    verbs: [select]
    effect: hold
    approvers: [dba]
    mode: observe
  - {name: slow, who: {groups: [agents]}, effect: allow, tables: [public.customers], verbs: [select], obligations: {statement_timeout: 0.5}}

masks:""",
        1,
    )
    + "\nlimits:\n  - {who: {subjects: [stormy]}, statements_per_minute: 3}\n"
)
KEYS = {"class", "rule", "reasons", "matched", "policy_version", "request_id"}


@pytest.fixture(scope="module")
def denying() -> Iterator[Stage]:
    with Stage(customers=500, policy=DENYING) as stage:
        yield stage


@pytest.fixture
def agent(denying: Stage) -> Agent:
    return Agent(denying)


def told(connection: psycopg.Connection[Any], statement: str | bytes, parameters: Any = None) -> tuple[str, str, dict[str, Any], str]:
    """(SQLSTATE, message, DETAIL, HINT) of a statement that fails."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(statement, parameters, prepare=False)  # type: ignore[arg-type]
    diag = caught.value.diag
    message = str(diag.message_primary)
    assert message.startswith("pgleash: ")
    assert "\n" not in message
    detail = json.loads(str(diag.message_detail))
    assert detail.keys() >= KEYS, detail
    assert detail["reasons"], detail
    assert diag.message_hint
    return str(diag.sqlstate), message, detail, str(diag.message_hint)


def test_a_rule(agent: Agent) -> None:
    with agent.connect() as connection:
        state, message, detail, hint = told(connection, "SELECT title FROM employees")
        assert (state, message) == ("42501", "pgleash: staff records are not for agents")
        assert (detail["class"], detail["rule"], detail["matched"]) == ("rule", "no-staff", ["select on public.employees"])
        assert hint == "Use the view public.staff_list instead."
        state, _, detail, _ = told(connection, "DO $$ BEGIN END $$")
        assert (state, detail["class"], detail["rule"]) == ("42501", "rule", "")
        session, _, receipt = str(detail["request_id"]).partition("/")
    with agent.api("auditor") as api:
        entries = [entry for entry in api.audit.Query(audit_pb2.QueryRequest(kinds=["statement.denied"])) if entry.sequence == int(receipt)]
        assert [entry.fields["session"] for entry in entries] == [session]
        assert entries[0].fields["matched"][0].startswith("DO ")


def test_a_grant_names_the_command_that_gives_more(agent: Agent) -> None:
    with agent.connect("analyst") as connection:
        state, _, detail, hint = told(connection, "DELETE FROM orders WHERE id = 1")
    assert (state, detail["class"], detail["matched"]) == ("42501", "grant", ["delete on public.orders"])
    assert "pgleash grants create analyst-1 shop --table 'public.orders' --verb delete --for 15m" in hint


def test_a_mask(agent: Agent) -> None:
    with agent.connect() as connection:
        state, _, detail, _ = told(connection, "SELECT id FROM customers WHERE email = 'x'")
    assert (state, detail["class"], detail["rule"]) == ("42501", "mask", "mask")
    assert "public.customers.email" in detail["reasons"][0]


def test_built_in_refusals(agent: Agent) -> None:
    with agent.connect() as connection:
        state, _, detail, _ = told(connection, "SELECT * FROM pg_authid")
        assert (state, detail["class"], detail["matched"]) == ("42501", "built-in", ["select on pg_catalog.pg_authid"])
        state, _, detail, _ = told(connection, "SET ROLE postgres")
        assert (state, detail["class"]) == ("42501", "built-in")


def test_a_budget(agent: Agent) -> None:
    with agent.connect(subject="stormy") as connection:
        for _ in range(3):
            connection.execute("SELECT 1")
        state, _, detail, hint = told(connection, "SELECT 1")
    assert (state, detail["class"], detail["allowed"]) == ("53400", "budget", 3)
    assert 0 < detail["retry_after"] <= 20
    assert hint.startswith("Wait ")


def test_what_can_not_be_read(agent: Agent) -> None:
    with agent.connect() as connection:
        state, _, detail, _ = told(connection, b"SELECT '\xff'")
        assert (state, detail["class"]) == ("22021", "unreadable")
        with pytest.raises(psycopg.errors.SyntaxError) as caught:  # as PostgreSQL itself says it
            connection.execute("SELEC 1")
        assert (caught.value.diag.message_primary, caught.value.diag.statement_position) == ('syntax error at or near "SELEC"', "1")


def test_bound_values(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.execute("UPDATE orders SET amount = %s WHERE id = 1", (900,))
        connection.execute("UPDATE orders SET amount = %b WHERE id = 1", (900,))
        for form in ("%s", "%b"):
            state, _, detail, _ = told(connection, f"UPDATE orders SET amount = {form} WHERE id = 1", (1001,))
            assert (state, detail["rule"]) == ("42501", "big-orders")
        state, message, detail, _ = told(connection, "UPDATE orders SET amount = 5 WHERE id = 1")
        assert "can't be evaluated" in message
        assert detail["matched"] == ["parameter $1 is not bound"]
        connection.execute("UPDATE orders SET amount = %s WHERE id = 1", (7,), prepare=True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE orders SET amount = %s WHERE id = 1", (7000,), prepare=True)
        connection.execute("UPDATE orders SET amount = %s WHERE id = 1", (8,), prepare=True)


def test_time(agent: Agent) -> None:
    with agent.connect() as connection:
        state, _, detail, _ = told_limit(connection, "SELECT pg_sleep(9), count(*) FROM customers")
    assert (state, detail["limit"], detail["allowed"]) == ("57014", "statement_timeout", 0.5)


def told_limit(connection: psycopg.Connection[Any], statement: str) -> tuple[str, str, dict[str, Any], str]:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)  # type: ignore[arg-type]
    diag = caught.value.diag
    detail = json.loads(str(diag.message_detail))
    assert detail.keys() >= KEYS - {"request_id"}
    assert diag.message_hint
    return str(diag.sqlstate), str(diag.message_primary), detail, str(diag.message_hint)


def test_an_approvers_denial_and_a_cancel(agent: Agent) -> None:
    def deny() -> None:
        with agent.api("bot") as api:
            for _ in range(100):
                found = api.approvals.List(pb.ApprovalServiceListRequest(state=pb.APPROVAL_STATE_PENDING)).approvals
                if found:
                    api.approvals.Deny(pb.DenyRequest(name=found[0].name, comment="not today"))
                    return
                time.sleep(0.1)

    thread = threading.Thread(target=deny)
    thread.start()
    with agent.connect() as connection:
        state, message, detail, hint = told(connection, "DELETE FROM orders")
        thread.join()
        assert (state, detail["class"], detail["state"], hint) == ("42501", "approval", "DENIED", "not today")
        assert "denied by" in message
        assert detail["rule"] == "wide-changes"
        connection.add_notice_handler(lambda notice: connection.cancel_safe())
        with pytest.raises(psycopg.errors.QueryCanceled) as caught:
            connection.execute("DELETE FROM orders")
        assert json.loads(str(caught.value.diag.message_detail))["state"] == "CANCELLED"


def test_an_observing_rule_is_recorded_and_lets_pass(agent: Agent) -> None:
    with agent.connect() as connection:
        for _ in range(3):
            assert connection.execute("SELECT count(*) FROM orders WHERE id < 3").fetchone() == (2,)
    with agent.api("auditor") as api:
        entries = list(api.audit.Query(audit_pb2.QueryRequest(kinds=["statement.observed"])))
        assert len(entries) == 3
        assert list(entries[-1].fields["reasons"]) == ["observe: rule watched would hold"]
        document = DENYING.replace("    mode: observe\n", "")
        said = api.policy.Diff(policy_pb2.DiffRequest(new_policy=document))
        changes = {change.statement: (change.before.effect, change.after.effect, change.count) for change in said.changes}
        assert changes["SELECT count(*) FROM orders WHERE id < 3"] == ("allow", "hold", 3)
        assert all(after == "hold" for _, after, _ in changes.values()), changes
        assert said.old_version != said.new_version


def test_a_wrong_policy_is_refused_by_every_way_in(denying: Stage) -> None:
    agent = Agent(denying)
    file = denying.home / "policy.yaml"
    text = file.read_text()
    with agent.connect() as connection, agent.api("operator") as api, agent.api("auditor") as audit:
        before = api.policy.Reload(policy_pb2.ReloadRequest()).policy_version
        try:
            file.write_text(text.replace("effect: deny", "effect: forbid"))
            with pytest.raises(Exception, match="effect must be allow, deny or hold"):
                api.policy.Reload(policy_pb2.ReloadRequest())
            time.sleep(0.6)
            assert told(connection, "SELECT title FROM employees")[2]["policy_version"] == before
            refused = list(audit.audit.Query(audit_pb2.QueryRequest(kinds=["policy.refused"])))
            assert "effect must be allow" in refused[-1].fields["problems"][0]
            file.write_text(text.replace("staff records are not for agents", "ask HR"))
            said = api.policy.Reload(policy_pb2.ReloadRequest())
            assert said.changed or said.policy_version != before  # the gateway looks at the file itself, too
            assert told(connection, "SELECT title FROM employees")[1] == "pgleash: ask HR"
        finally:
            file.write_text(text)
            api.policy.Reload(policy_pb2.ReloadRequest())

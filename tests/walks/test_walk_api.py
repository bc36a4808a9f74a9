"""The API and the command line as their users meet them: roles, own requests, repetition, streams, exit codes."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fixtures.gateway import Agent
from pgleash.client import Api, connect
from pgleash.demo.acts import Theatre
from pgleash.demo.stage import Stage
from pgleash.v1 import approvals_pb2, audit_pb2, grants_pb2, policy_pb2, sessions_pb2


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        found = call()
        if hasattr(found, "__iter__"):
            list(found)
    code: grpc.StatusCode = caught.value.code()
    return code


CALLS: dict[str, Callable[[Api], Any]] = {
    "approvals.List": lambda api: api.approvals.List(approvals_pb2.ApprovalServiceListRequest()),
    "approvals.Deny": lambda api: api.approvals.Deny(approvals_pb2.DenyRequest(name="approvals/none")),
    "grants.List": lambda api: api.grants.List(grants_pb2.GrantServiceListRequest()),
    "grants.Revoke": lambda api: api.grants.Revoke(grants_pb2.GrantServiceRevokeRequest(id="none")),
    "sessions.List": lambda api: api.sessions.List(sessions_pb2.SessionServiceListRequest()),
    "sessions.Terminate": lambda api: api.sessions.Terminate(sessions_pb2.TerminateRequest(id="none")),
    "sessions.Replay": lambda api: list(api.sessions.Replay(sessions_pb2.ReplayRequest(id="none"))),
    "audit.Verify": lambda api: api.audit.Verify(audit_pb2.VerifyRequest()),
    "audit.Query": lambda api: list(api.audit.Query(audit_pb2.QueryRequest(limit=1))),
    "policy.Explain": lambda api: api.policy.Explain(policy_pb2.ExplainRequest(subject="x", database="shop", statement="SELECT 1")),
}
MAY = {
    "agent": set(),
    "bot": {"approvals.List", "approvals.Deny", "policy.Explain"},
    "operator": {"approvals.List", "grants.List", "grants.Revoke", "sessions.List", "sessions.Terminate", "policy.Explain"},
    "auditor": {"approvals.List", "grants.List", "sessions.List", "sessions.Replay", "audit.Verify", "audit.Query", "policy.Explain"},
}


@pytest.mark.parametrize("who", sorted(MAY))
def test_roles(agent: Agent, who: str) -> None:
    allowed = set()
    with agent.api(who) as api:
        for name, call in CALLS.items():
            try:
                call(api)
                allowed.add(name)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    assert error.code() is grpc.StatusCode.NOT_FOUND
                    allowed.add(name)
    assert allowed == MAY[who]


def test_tokens_are_needed_and_checked(stage: Stage) -> None:
    ca = stage.certificates.ca
    for token in ("garbage", stage.token("bot", lifetime=-100), stage.token("bot", audience="other")):
        with connect(f"localhost:{stage.api_port}", token, ca) as api:
            assert code_of(lambda api=api: CALLS["approvals.List"](api)) is grpc.StatusCode.UNAUTHENTICATED
    channel = grpc.secure_channel(f"localhost:{stage.api_port}", grpc.ssl_channel_credentials(ca.read_bytes()))
    with channel:
        assert code_of(lambda: CALLS["approvals.List"](Api(channel))) is grpc.StatusCode.UNAUTHENTICATED


def held(agent: Agent, subject: str, act: Callable[[approvals_pb2.Approval], None]) -> str:
    """Run a DELETE that is held, call ``act`` with its approval, and say how it ended for the agent."""
    outcome: list[str] = []

    def work() -> None:
        try:
            with agent.connect(subject=subject) as connection:
                connection.execute("DELETE FROM employees")
                outcome.append("ran")
        except psycopg.Error as error:
            outcome.append(f"{error.sqlstate} {error}")

    thread = threading.Thread(target=work)
    with agent.api("bot") as api:
        watching = api.approvals.Watch(approvals_pb2.ApprovalServiceWatchRequest(database="shop"))
        thread.start()
        for told in watching:
            if told.approval.subject == subject and told.approval.state == approvals_pb2.APPROVAL_STATE_PENDING:
                act(told.approval)
                break
        watching.cancel()
    thread.join(20)
    return outcome[0]


def test_nobody_decides_on_their_own_request(agent: Agent) -> None:
    def act(one: approvals_pb2.Approval) -> None:
        request = approvals_pb2.ApproveRequest(name=one.name)
        for claims in ({"subject": "self-1"}, {"subject": "ada@example.com"}, {"subject": "x", "acts_for": "ada@example.com"}):
            with agent.api("bot", **claims) as api:
                assert code_of(lambda api=api: api.approvals.Approve(request)) is grpc.StatusCode.PERMISSION_DENIED
        with agent.api("bot") as api:
            api.approvals.Deny(approvals_pb2.DenyRequest(name=one.name, comment="no"))

    assert held(agent, "self-1", act).startswith("42501")


def test_a_decision_can_be_repeated_and_not_reversed(agent: Agent) -> None:
    def act(one: approvals_pb2.Approval) -> None:
        request = approvals_pb2.DenyRequest(name=one.name, comment="no", request_id="r1")
        with agent.api("bot") as api:
            first = api.approvals.Deny(request).approval
            assert api.approvals.Deny(request).approval == first
            other = approvals_pb2.DenyRequest(name=one.name, request_id="r2")
            assert code_of(lambda: api.approvals.Deny(other)) is grpc.StatusCode.FAILED_PRECONDITION
            approve = approvals_pb2.ApproveRequest(name=one.name, request_id="r1")
            assert code_of(lambda: api.approvals.Approve(approve)) is grpc.StatusCode.FAILED_PRECONDITION

    assert held(agent, "twice-1", act).startswith("42501")


def test_a_grant_is_made_once_per_request_id(agent: Agent) -> None:
    request = grants_pb2.GrantServiceCreateRequest(
        subject="once-1", database="shop", tables=["public.*"], verbs=["select"], request_id=secrets.token_hex(4)
    )
    request.duration.seconds = 60
    with agent.api("operator") as api:
        first = api.grants.Create(request).grant
        assert api.grants.Create(request).grant.id == first.id
        request.verbs.append("delete")
        assert code_of(lambda: api.grants.Create(request)) is grpc.StatusCode.INVALID_ARGUMENT
        for wrong in ({"tables": []}, {"verbs": ["fly"]}, {"database": "nope"}, {"subject": ""}):
            fields = {
                "subject": "a",
                "database": "shop",
                "tables": ["public.*"],
                "verbs": ["select"],
                "duration": request.duration,
                **wrong,
            }
            bad = grants_pb2.GrantServiceCreateRequest(**fields)  # type: ignore[arg-type]
            assert code_of(lambda bad=bad: api.grants.Create(bad)) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watch_ends_with_its_token(agent: Agent) -> None:
    # The issuer's leeway keeps a token good for a while after its exp; the stream ends at exp itself.
    with agent.api("bot", lifetime=2) as api:
        began = time.monotonic()
        assert code_of(lambda: api.approvals.Watch(approvals_pb2.ApprovalServiceWatchRequest())) is grpc.StatusCode.FAILED_PRECONDITION
        assert time.monotonic() - began < 5


def test_an_operator_ends_a_session(agent: Agent) -> None:
    with agent.connect(subject="ended-1") as connection, agent.api("operator") as api:
        live = api.sessions.List(sessions_pb2.SessionServiceListRequest(live_only=True, subject="ended-1")).sessions
        api.sessions.Terminate(sessions_pb2.TerminateRequest(id=live[0].id, reason="lunch"))
        with pytest.raises(psycopg.OperationalError, match="ended by ops: lunch"):
            connection.execute("SELECT 1")


def test_the_command_line(stage: Stage, agent: Agent) -> None:
    theatre = Theatre(stage)
    with agent.connect(subject="cli-1") as connection:
        connection.execute("SELECT name FROM customers LIMIT 1")
        listed = theatre.pgleash("sessions", "list", "--live", "--subject", "cli-1", "--output", "json", who="operator")
        assert listed.returncode == 0, listed.stderr
        sessions = json.loads(listed.stdout)["sessions"]
        assert [one["subject"] for one in sessions] == ["cli-1"]
        table = theatre.pgleash("sessions", "list", "--subject", "cli-1", who="operator")
        assert "cli-1" in table.stdout and "lives" in table.stdout
    explained = theatre.pgleash(
        "policy", "explain", "DELETE FROM orders", "--subject", "x", "--group", "agents", "--database", "shop", who="bot"
    )
    assert explained.stdout.startswith("HOLD by wide-changes")
    found = theatre.pgleash("audit", "query", "--subject", "cli-1", "--kind", "statement", "--output", "json")
    texts = [json.loads(line)["fields"]["text"] for line in found.stdout.splitlines()]
    assert texts == ["SELECT name FROM customers LIMIT 1"]
    refused = theatre.pgleash("audit", "verify", who="operator")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "pgleash: PERMISSION_DENIED: this needs the role auditor"
    assert theatre.pgleash("approvals", "get", "ap_none", who="bot").returncode == 2
    assert theatre.pgleash("approvals", "list", "--state", "odd", who="bot").returncode == 1
    assert theatre.pgleash("nonsense").returncode == 1
    shown = theatre.pgleash("token", "show", stage.token("bot"))
    assert shown.returncode == 0 and "approval-bot" in shown.stdout


def test_doctor_and_init(stage: Stage) -> None:
    theatre = Theatre(stage)
    healthy = theatre.pgleash("doctor", "--config", str(stage.config))
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    made = theatre.pgleash("init", str(stage.home / "fresh"))
    assert made.returncode == 0
    assert theatre.pgleash("init", str(stage.home / "fresh")).returncode == 1
    text = (stage.home / "fresh" / "pgleash.yaml").read_text()
    (stage.home / "fresh" / "wrong.yaml").write_text(text.replace("port: 6432", "port: many").replace("kind: minted", "kind: magic"))
    wrong = theatre.pgleash("serve", "--config", str(stage.home / "fresh" / "wrong.yaml"))
    assert wrong.returncode == 1
    assert "listen.port" in wrong.stderr and "many" in wrong.stderr and "Traceback" not in wrong.stderr


def test_health_and_reflection_need_no_token(stage: Stage) -> None:
    credentials = grpc.ssl_channel_credentials(stage.certificates.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{stage.api_port}", credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="pgleash.v1.ApprovalService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        names = {service.name for service in listed.list_services_response.service}
    assert {f"pgleash.v1.{name}Service" for name in ("Approval", "Grant", "Session", "Audit", "Policy")} <= names

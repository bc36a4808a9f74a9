"""What an approval is bound to, and what happens while a statement is held."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest

from fixtures.holds import POLICY, Desk, Running
from kit.wire import WireClient, bind, close, error_fields, execute, parse, query, sync
from pgleash.v1 import approvals_pb2 as pb
from pgleash.v1 import grants_pb2, sessions_pb2

Change = Callable[[psycopg.Connection[Any]], object]

# behind the gateway's back, while a statement on public.target is held
CHANGES: dict[str, Change] = {
    "another column": lambda owner: owner.execute("ALTER TABLE target ADD COLUMN more int"),
    "a renamed table in its place": lambda owner: owner.execute(
        "ALTER TABLE target RENAME TO target_old; CREATE TABLE target (id int, note text); ALTER TABLE target OWNER TO shop_owner"
    ),
    "a rule on it": lambda owner: owner.execute("CREATE RULE r AS ON DELETE TO target DO ALSO DELETE FROM orders"),
    "a trigger on it": lambda owner: owner.execute(
        "CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
        "CREATE TRIGGER t BEFORE DELETE ON target FOR EACH ROW EXECUTE FUNCTION hook()"
    ),
    "a table that cascades": lambda owner: owner.execute("CREATE TABLE target_of (id int REFERENCES target ON DELETE CASCADE)"),
    "row security": lambda owner: owner.execute("ALTER TABLE target ENABLE ROW LEVEL SECURITY"),
    "a child": lambda owner: owner.execute("CREATE TABLE target_child () INHERITS (target)"),
    "a table before it on the path": lambda owner: owner.execute(
        "CREATE SCHEMA IF NOT EXISTS early; GRANT ALL ON SCHEMA early TO PUBLIC; CREATE TABLE early.target (id int, note text)"
    ),
}


def void_by(desk: Desk, subject: str, change: Change, path: str = "early, public") -> tuple[Any, pb.Approval, Any]:
    with desk.table("target") as owner:
        with desk.connect(subject=subject) as connection:
            connection.execute(f"SET search_path = {path}")
            # in a simple Query: behind a Bind the server has locked the table, and nobody could change it
            running = Running(lambda: psycopg.ClientCursor(connection).execute("DELETE FROM target WHERE id < %s", (5,)).rowcount)
            held = desk.pending(subject)
            change(owner)
            refused: Any = None
            try:
                desk.approve(held.name)
            except grpc.RpcError as error:
                refused = error
            result = running.result()
            if isinstance(result, psycopg.Error):
                assert connection.execute("SELECT 1").fetchone() == (1,)
        rows = owner.execute("SELECT count(*) FROM public.target").fetchone()
        owner.execute(
            "DROP SCHEMA IF EXISTS early CASCADE; DROP TABLE IF EXISTS target_old, target_of; DROP FUNCTION IF EXISTS hook CASCADE"
        )
        return (result, rows), desk.get(held.name), refused


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_an_approval_is_void_when_the_catalog_changed(desk: Desk, name: str) -> None:
    (result, rows), approval, refused = void_by(desk, f"waits-{sorted(CHANGES).index(name)}", CHANGES[name])
    assert isinstance(result, psycopg.errors.QueryCanceled)
    assert "is void" in str(result) and '"state": "VOIDED"' in str(result.diag.message_detail)
    assert rows in ((10,), (0,))  # all of the old table, none in the new one's place
    assert approval.state == pb.APPROVAL_STATE_VOIDED and approval.comment
    assert refused is not None and refused.code() is grpc.StatusCode.FAILED_PRECONDITION and "VOIDED" in refused.details()


def test_an_approval_stands_when_something_else_changed(desk: Desk) -> None:
    def change(owner: psycopg.Connection[Any]) -> None:
        owner.execute("CREATE TABLE unrelated (a int); DROP TABLE unrelated; ANALYZE target; GRANT SELECT ON target TO PUBLIC")

    (result, rows), approval, refused = void_by(desk, "waits-other", change)
    assert (result, rows, refused) == (4, (6,), None)
    assert approval.state == pb.APPROVAL_STATE_APPROVED and approval.HasField("use_time")


def test_an_approval_is_void_when_the_policy_denies_by_now(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="waits-policy") as connection:
        running = Running(lambda: connection.execute("DELETE FROM target"))
        held = desk.pending("waits-policy")
        deny = '  - {name: never, tables: ["public.target"], verbs: [delete], effect: deny, message: not any more}\nmasks:'
        try:
            desk.stage.set_policy(POLICY.replace("masks:", deny))
            time.sleep(0.8)
            with pytest.raises(grpc.RpcError, match="VOIDED"):
                desk.approve(held.name)
        finally:
            desk.stage.set_policy(POLICY)
        result = running.result()
        assert isinstance(result, psycopg.errors.InsufficientPrivilege) and "not any more" in str(result)
        assert desk.get(held.name).state == pb.APPROVAL_STATE_VOIDED
        time.sleep(0.8)


def test_the_approval_shows_what_it_is_bound_to(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="waits-shown") as connection:
        running = Running(lambda: connection.execute("DELETE FROM target WHERE id = %b AND note = %t", (3, "note 3")).rowcount)
        held = desk.pending("waits-shown")
        assert held.statement == "DELETE FROM target WHERE id = $1 AND note = $2"
        assert list(held.parameters)[1] == "note 3" and str(next(iter(held.parameters))).startswith("base64:")
        assert len(held.digest) == 64 and held.transaction_status == "I" and held.mode == "wait" and held.needed == 1
        assert {"role", "search_path", "catalog"} <= set(held.standing)
        desk.approve(held.name)
        assert running.result() == 1
        found = desk.stage_audit("approval.asked", held.name)
        assert found["digest"] == held.digest
        assert desk.stage_audit("approval.used", held.name)


def test_a_transaction_has_the_shorter_time(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="quick-1") as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE target SET note = 'x' WHERE id = 1")
        began = time.monotonic()
        running = Running(lambda: connection.execute("DELETE FROM target"))
        held = desk.pending("quick-1")
        assert held.transaction_status == "T"
        assert held.expire_time.ToDatetime().timestamp() - held.create_time.ToDatetime().timestamp() == pytest.approx(1, abs=0.01)
        assert dict(held.evidence)["transaction"]["status"] == "T"
        assert isinstance(running.result(), psycopg.errors.QueryCanceled)
        assert 0.9 < time.monotonic() - began < 3
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.execute("COMMIT")
        assert connection.execute("SELECT note FROM target WHERE id = 1").fetchone() == ("note 1",)
        assert desk.get(held.name).state == pb.APPROVAL_STATE_EXPIRED


def test_notices_come_at_once_and_at_intervals(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="waits-told") as connection:
        at: list[float] = []
        connection.add_notice_handler(lambda told: at.append(time.monotonic()) if "held" in str(told.message_primary) else None)
        began = time.monotonic()
        running = Running(lambda: connection.execute("DELETE FROM target"))
        held = desk.pending("waits-told")
        time.sleep(1.8)
        desk.deny(held.name, comment="no")
        assert isinstance(running.result(), psycopg.errors.InsufficientPrivilege)
        assert at[0] - began < 0.5 and len(at) >= 4
        assert all(0.4 < later - earlier < 0.8 for earlier, later in itertools.pairwise(at))


def test_nothing_overtakes_and_memory_stays_bounded(desk: Desk) -> None:
    with desk.table("target") as owner, WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("waits-flood", "shop", desk.stage.token(subject="waits-flood"))
        assert desk.stage.process is not None
        before = desk.memory()
        client.send(query("DELETE FROM target WHERE id = 1"))
        held = desk.pending("waits-flood")
        block = b"".join(query("UPDATE target SET note = 'overtook' WHERE id = 2 -- " + "x" * 65000) for _ in range(16))
        flood = Running(lambda: [client.send(block) for _ in range(100)])
        time.sleep(1.5)
        assert not flood.over
        assert desk.memory() - before < 32 << 20
        assert owner.execute("SELECT note FROM target WHERE id = 2").fetchone() == ("note 2",)
        desk.approve(held.name)
        seen = client.until("Z")
        assert [one.kind for one in seen if one.kind != "N"] == ["C", "Z"]
        assert [one.kind for one in client.until("Z") if one.kind != "N"] == ["C", "Z"]
        client.socket.close()


@pytest.mark.parametrize("behind", [b"", query("SELECT 1"), query("SELECT '" + "x" * 3_000_000 + "'")])
def test_a_client_that_leaves_takes_its_request_back(desk: Desk, behind: bytes) -> None:
    subject = f"waits-gone-{len(behind)}"
    with desk.table("target") as owner:
        client = WireClient("127.0.0.1", desk.stage.port)
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login(subject, "shop", desk.stage.token(subject=subject))
        client.send(query("DELETE FROM target"))
        held = desk.pending(subject)
        client.socket.settimeout(1)
        try:
            client.send(behind)
        except TimeoutError:
            pass
        client.socket.close()
        gone = desk.pending(subject, state="CANCELLED", wait=3)
        assert gone.name == held.name and "lost" in gone.comment
        with pytest.raises(grpc.RpcError, match="CANCELLED already"):
            desk.approve(held.name)
        assert owner.execute("SELECT count(*) FROM target").fetchone() == (10,)


def test_the_end_of_a_grant_or_a_session_takes_a_request_back(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="waits-ended") as connection:
        running = Running(lambda: connection.execute("DELETE FROM target"))
        held = desk.pending("waits-ended")
        with desk.api("operator") as api:
            live = api.sessions.List(sessions_pb2.SessionServiceListRequest(live_only=True, subject="waits-ended")).sessions
            api.grants.Revoke(grants_pb2.GrantServiceRevokeRequest(id=live[0].grant, reason="over"))
        assert isinstance(running.result(), psycopg.OperationalError)
        gone = desk.pending("waits-ended", state="CANCELLED")
        assert gone.name == held.name and "revoked" in gone.comment


def test_a_cancel_takes_a_request_back_and_the_session_goes_on(desk: Desk) -> None:
    with desk.table("target"), desk.connect(subject="waits-cancel") as connection:
        running = Running(lambda: connection.execute("DELETE FROM target"))
        held = desk.pending("waits-cancel")
        connection.cancel_safe()
        assert isinstance(running.result(), psycopg.errors.QueryCanceled)
        assert connection.execute("SELECT count(*) FROM target").fetchone() == (10,)
        assert desk.get(held.name).comment == "cancelled by the client"


# -- the same messages as PostgreSQL's own at an error in that place ---------------------------------------------------

REFUSED_AT: dict[str, tuple[bytes, ...]] = {
    "simple": (query("{}"), query("SELECT 1")),
    "simple with several": (query("SELECT 1; {}; SELECT 2"),),
    "extended": (parse("{}") + bind() + execute() + sync(), query("SELECT 1")),
    "in a pipeline": (
        parse("SELECT 1") + bind() + execute() + parse("{}", "d") + bind(statement="d") + execute() + parse("SELECT 2") + bind() + execute()
        + sync(),
        query("SELECT 3"),
    ),
    "in a transaction": (query("BEGIN"), query("{}"), query("SELECT 1"), query("COMMIT"), query("SELECT 1")),
    "in a transaction, extended": (query("BEGIN"), parse("{}") + bind() + execute() + sync(), query("ROLLBACK"), query("SELECT 1")),
}  # fmt: skip


@pytest.mark.parametrize("subject", ["short-seq", "waits-seq"])
@pytest.mark.parametrize("name", sorted(REFUSED_AT))
def test_what_follows_a_refusal_is_what_follows_an_error(desk: Desk, name: str, subject: str) -> None:
    def kinds(client: WireClient, statement: str) -> list[list[tuple[str, bytes]]]:
        told = []
        for batch in REFUSED_AT[name]:
            client.send(_filled(batch, statement))
            told.append([(one.kind, one.body if one.kind == "Z" else b"") for one in client.until("Z") if one.kind != "N"])
        return told

    ca = str(desk.stage.certificates.ca)
    with desk.table("target"):
        with WireClient("127.0.0.1", desk.stage.port) as client:
            client.secure(ca, server_hostname="localhost")
            client.login("agent-7", "shop", desk.stage.token())
            # it fails when it runs: the row that it adds is there already
            expected = kinds(client, "INSERT INTO target VALUES (1)")
        with WireClient("127.0.0.1", desk.stage.port) as client:
            client.secure(ca, server_hostname="localhost")
            client.login(subject, "shop", desk.stage.token(subject=subject))
            running = Running(lambda: kinds(client, "DELETE FROM target"))
            if subject.startswith("waits"):
                desk.deny(desk.pending(subject).name)
            found = running.result(20)
    if name == "simple with several":
        # the text is held as one, so nothing of it has run
        assert [kind for kind, _ in found[0]] == ["E", "Z"]
    else:
        assert found == expected


def _filled(batch: bytes, statement: str) -> bytes:
    """The messages with ``{}`` replaced and their lengths put right."""
    made, at = b"", 0
    while at < len(batch):
        length = int.from_bytes(batch[at + 1 : at + 5], "big")
        body = batch[at + 5 : at + 1 + length].replace(b"{}", statement.encode())
        made += batch[at : at + 1] + (len(body) + 4).to_bytes(4, "big") + body
        at += 1 + length
    return made


def test_a_named_statement_is_held_at_each_execute_by_what_it_is_then(desk: Desk) -> None:
    with desk.table("target") as owner, WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("waits-named", "shop", desk.stage.token(subject="waits-named"))
        client.ask(parse("DELETE FROM target WHERE id = $1", "d"), sync())
        for number in (1, 2):
            client.send(bind((str(number).encode(),), statement="d") + execute() + sync())
            held = desk.pending("waits-named")
            assert list(held.parameters) == [str(number)]
            desk.approve(held.name)
            assert [one.kind for one in client.until("Z") if one.kind != "N"] == ["2", "C", "Z"]
        # the same name, parsed anew: what is held is the new text
        client.ask(close("S", "d") + parse("DELETE FROM target WHERE id = $1 OR true", "d"), sync())
        client.send(bind((b"3",), statement="d") + execute() + sync())
        held = desk.pending("waits-named")
        assert held.statement.endswith("OR true")
        desk.deny(held.name)
        assert [error_fields(one.body)["C"] for one in client.until("Z") if one.kind == "E"] == ["42501"]
        assert owner.execute("SELECT count(*) FROM target").fetchone() == (8,)


def test_a_portal_is_held_once_however_often_it_is_executed(desk: Desk) -> None:
    with desk.table("target"), WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("waits-rows", "shop", desk.stage.token(subject="waits-rows"))
        client.send(parse("DELETE FROM target WHERE id < 4 RETURNING id") + bind() + execute("", 2) + execute("", 2) + sync())
        # the second takes more rows of the same portal: it has been approved
        desk.approve(desk.pending("waits-rows").name)
        assert [one.kind for one in client.until("Z") if one.kind != "N"] == ["1", "2", "D", "D", "s", "D", "C", "Z"]

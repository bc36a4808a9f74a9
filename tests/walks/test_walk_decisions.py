"""Decisions on held statements: by how many, when they count, deferred ones, approved shapes, and watching them."""

from __future__ import annotations

import json
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest

from fixtures.holds import Desk, Running
from kit.wire import WireClient, bind, execute, parse, sync
from pgleash.v1 import approvals_pb2 as pb


def code(error: Any) -> Any:
    return error.value.code()


# -- by how many -------------------------------------------------------------------------------------------------------


def test_two_people_are_needed_and_each_counts_once(desk: Desk) -> None:
    with desk.table("paired") as owner, desk.connect(subject="pair-1") as connection:
        running = Running(lambda: connection.execute("DELETE FROM paired").rowcount)
        held = desk.pending("pair-1")
        assert (held.needed, list(held.approvers)) == (2, ["dba", "chiefs"])
        first = desk.approve(held.name, "dba-1", comment="fine", request_id="one")
        assert first.state == pb.APPROVAL_STATE_PENDING and [vote.subject for vote in first.votes] == ["dba-1"]
        assert desk.approve(held.name, "dba-1", request_id="one").votes == first.votes
        # the same person again, under another request, under another name, or by an agent of theirs
        with pytest.raises(grpc.RpcError, match="has this person's approval already; 1 more") as caught:
            desk.approve(held.name, "dba-1")
        assert code(caught) is grpc.StatusCode.FAILED_PRECONDITION
        with desk.api("bot", subject="helper", acts_for="dba-1") as api, pytest.raises(grpc.RpcError, match="this person's"):
            api.approvals.Approve(pb.ApproveRequest(name=held.name))
        with pytest.raises(grpc.RpcError) as caught:
            desk.approve(held.name, "ada@example.com")  # the human that the agent acts for
        assert code(caught) is grpc.StatusCode.PERMISSION_DENIED
        assert owner.execute("SELECT count(*) FROM paired").fetchone() == (10,)
        last = desk.approve(held.name, "chief-1", ("dba", "chiefs"))
        assert last.state == pb.APPROVAL_STATE_APPROVED and last.decided_by == "dba-1, chief-1"
        assert running.result() == 10


def test_one_no_is_enough(desk: Desk) -> None:
    with desk.table("paired"), desk.connect(subject="pair-2") as connection:
        running = Running(lambda: connection.execute("DELETE FROM paired"))
        held = desk.pending("pair-2")
        desk.approve(held.name, "dba-1")
        desk.deny(held.name, "dba-2", comment="not today")
        result = running.result()
        assert isinstance(result, psycopg.errors.InsufficientPrivilege) and result.diag.message_hint == "not today"
        with pytest.raises(grpc.RpcError, match="DENIED already"):
            desk.approve(held.name, "dba-3")


def test_of_many_decisions_at_once_one_counts(desk: Desk) -> None:
    with desk.table("raced") as owner, desk.connect(subject="waits-raced") as connection:
        running = Running(lambda: connection.execute("DELETE FROM raced").rowcount)
        held = desk.pending("waits-raced")

        def decide(number: int) -> str:
            try:
                (desk.approve if number % 2 else desk.deny)(held.name, f"dba-{number}")
                return "approved" if number % 2 else "denied"
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
                return ""

        with ThreadPoolExecutor(8) as pool:
            said = [word for word in pool.map(decide, range(8)) if word]
        result = running.result()
        assert len(said) == 1
        assert (result == 10) == (said == ["approved"])
        assert owner.execute("SELECT count(*) FROM raced").fetchone() == ((0,) if said == ["approved"] else (10,))


def test_an_approval_against_a_cancel_ends_in_one_of_the_two(desk: Desk) -> None:
    for attempt in range(12):
        with desk.table("raced") as owner, desk.connect(subject="waits-cancelled") as connection:
            running = Running(lambda made=connection: made.execute("DELETE FROM raced").rowcount)
            held = desk.pending("waits-cancelled")
            cancelling = Running(connection.cancel_safe)
            time.sleep(attempt * 0.002)
            try:
                desk.approve(held.name)
                approved = True
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
                approved = False
            cancelling.result()
            result = running.result()
            ran = owner.execute("SELECT count(*) FROM raced").fetchone() == (0,)
            assert ran == (result == 10)
            # who hears of success has let it go; the server may still have been cancelled behind it
            assert approved or not ran


# -- deferred ----------------------------------------------------------------------------------------------------------


def deferred(connection: psycopg.Connection[Any], sql: str, values: Any = None) -> dict[str, Any]:
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        connection.execute(sql, values)
    return dict(json.loads(str(caught.value.diag.message_detail)), hint=caught.value.diag.message_hint)


def test_a_deferred_statement_passes_once_on_any_connection(desk: Desk) -> None:
    with desk.table("later") as owner:
        with desk.connect(subject="later-1") as connection:
            told = deferred(connection, "DELETE FROM later WHERE id = %s", (3,))
            assert told["state"] == "PENDING" and told["approval"] in told["hint"]
            # asked again, it is the same request
            assert deferred(connection, "DELETE FROM later WHERE id = %s", (3,))["approval"] == told["approval"]
            other = deferred(connection, "DELETE FROM later WHERE id = %s", (4,))
            assert other["approval"] != told["approval"]
        approved = desk.approve(told["approval"])
        assert approved.state == pb.APPROVAL_STATE_APPROVED and approved.HasField("use_expire_time")
        with desk.connect(subject="later-2") as connection:
            assert deferred(connection, "DELETE FROM later WHERE id = %s", (3,))["approval"] != told["approval"]
        with desk.connect(subject="later-1") as connection:
            assert deferred(connection, "DELETE FROM later WHERE id = %s", (4,))["approval"] == other["approval"]
            assert connection.execute("DELETE FROM later WHERE id = %s", (3,)).rowcount == 1
            assert deferred(connection, "DELETE FROM later WHERE id = %s", (3,))["approval"] != told["approval"]
        assert owner.execute("SELECT count(*) FROM later").fetchone() == (9,)
        assert desk.get(told["approval"]).HasField("use_time")
        assert desk.stage_audit("approval.used", told["approval"])


def test_a_deferred_statement_is_used_once_by_many_at_once(desk: Desk) -> None:
    with desk.table("later") as owner:
        with desk.connect(subject="later-many") as connection:
            told = deferred(connection, "DELETE FROM later WHERE id = 1 OR note = 'x'")
        desk.approve(told["approval"])
        connections = [desk.connect(subject="later-many") for _ in range(10)]

        def run(connection: psycopg.Connection[Any]) -> int:
            try:
                return connection.execute("DELETE FROM later WHERE id = 1 OR note = 'x'").rowcount
            except psycopg.errors.InsufficientPrivilege:
                return -1

        with ThreadPoolExecutor(10) as pool:
            assert sorted(pool.map(run, connections)) == [-1] * 9 + [1]
        for connection in connections:
            connection.close()
        assert owner.execute("SELECT count(*) FROM later").fetchone() == (9,)


def test_a_deferred_statement_means_what_it_meant(desk: Desk) -> None:
    with desk.table("later") as owner:
        with desk.connect(subject="later-meant") as connection:
            told = deferred(connection, "DELETE FROM later WHERE note < 'x'")
        desk.approve(told["approval"])
        with desk.connect(subject="later-meant") as connection:
            connection.execute("SET search_path = pg_catalog, public")
            assert deferred(connection, "DELETE FROM later WHERE note < 'x'")["approval"] != told["approval"]
            connection.execute("SET search_path = public")
            connection.execute("SET transform_null_equals = on")
            assert deferred(connection, "DELETE FROM later WHERE note < 'x'")["approval"] != told["approval"]
        owner.execute("ALTER TABLE later ADD COLUMN more int")
        with desk.connect(subject="later-meant") as connection:
            assert deferred(connection, "DELETE FROM later WHERE note < 'x'")["approval"] != told["approval"]
        void = desk.get(told["approval"])
        assert void.state == pb.APPROVAL_STATE_VOIDED and "catalog" in void.comment


@pytest.mark.parametrize(
    ("call", "values", "same"),
    [
        ("SELECT set_config('app.tenant', '7', false)", None, False),
        ("SELECT set_config('app.tenant', %s, false)", ("7",), False),
        ("SELECT 1 FROM later WHERE set_config('app.tenant', '7', false) = '7'", None, False),
        ("EXPLAIN ANALYZE SELECT set_config('app.tenant', '7', false)", None, False),
        ("COPY (SELECT set_config('app.tenant', '7', false)) TO STDOUT", None, False),
        ("SELECT set_config('application_name', %s, false)", ("x",), True),
        ("SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new", None, True),
    ],
)
def test_a_setting_changed_by_a_call_is_a_changed_setting(desk: Desk, call: str, values: Any, same: bool) -> None:
    with desk.table("later"):
        with desk.connect(subject="later-calls") as connection:
            told = deferred(connection, "DELETE FROM later WHERE note > 'x'")
        desk.approve(told["approval"])
        with desk.connect(subject="later-calls") as connection:
            for _ in range(3):  # however often it was seen
                if call.startswith("COPY"):
                    with connection.cursor().copy(call) as copy:
                        list(copy)
                else:
                    connection.execute(call, values)
            if same:
                assert connection.execute("DELETE FROM later WHERE note > 'x'").rowcount == 0
            else:
                other = deferred(connection, "DELETE FROM later WHERE note > 'x'")["approval"]
                assert other != told["approval"]
                desk.deny(other)


def test_comments_and_blanks_do_not_make_another_statement(desk: Desk) -> None:
    with desk.table("later"), desk.connect(subject="later-blank") as connection:
        told = deferred(connection, "DELETE FROM later WHERE id = 2")
        desk.approve(told["approval"])
        for other in ("DELETE FROM later WHERE id = 22", "DELETE FROM later WHERE id = '2'", "DELETE FROM later WHERE id <= 2"):
            assert deferred(connection, other)["approval"] != told["approval"]
        assert connection.execute("/* again */ delete  from later\nWHERE id = 2 -- now").rowcount == 1


def test_a_denied_deferred_statement_is_told_so_for_its_time(desk: Desk) -> None:
    with desk.table("later"), desk.connect(subject="later-no") as connection:
        told = deferred(connection, "DELETE FROM later")
        desk.deny(told["approval"], comment="never all of them")
        again = deferred(connection, "DELETE FROM later")
        assert (again["approval"], again["state"], again["hint"]) == (told["approval"], "DENIED", "never all of them")


def test_deferred_statements_expire_undecided_and_unused(desk: Desk) -> None:
    with desk.table("later"), desk.connect(subject="brief-1") as connection:
        first = deferred(connection, "DELETE FROM later WHERE id = 1")
        second = deferred(connection, "DELETE FROM later WHERE id = 2")
        desk.approve(second["approval"])
        time.sleep(1.1)
        assert deferred(connection, "DELETE FROM later WHERE id = 2")["approval"] != second["approval"]
        time.sleep(1.2)
        assert desk.get(first["approval"]).state == pb.APPROVAL_STATE_EXPIRED
        assert desk.get(second["approval"]).state == pb.APPROVAL_STATE_EXPIRED


# -- shapes ------------------------------------------------------------------------------------------------------------


def shape_of(uses: int = 3, seconds: int = 60, group: str = "", **bounds: pb.ValueBound) -> pb.ShapeTerms:
    made = pb.ShapeTerms(uses=uses, group=group, bounds={place.replace("p", "$").replace("c", "#"): each for place, each in bounds.items()})
    made.duration.seconds = seconds
    return made


def test_an_approved_shape_is_used_so_often_and_within_its_bounds(desk: Desk) -> None:
    with desk.table("shaped", 40) as owner, desk.connect(subject="waits-shape") as connection:
        running = Running(lambda: connection.execute("DELETE FROM shaped WHERE id = %t", (5,)).rowcount)
        held = desk.pending("waits-shape")
        desk.approve(held.name, shape=shape_of(3, p1=pb.ValueBound(least="1", most="20")))
        assert running.result() == 1
        with desk.api("bot") as api:
            (shape,) = api.approvals.ListShapes(pb.ListShapesRequest(active_only=True, subject="waits-shape")).shapes
        assert (shape.uses, shape.most, shape.shape) == (0, 3, "delete from shaped where id = $1")
        for number in (6, 7, 20):
            assert connection.execute("DELETE FROM shaped WHERE id = %t", (number,)).rowcount == 1
        # the fourth, one out of bounds, another text: each is asked for
        for sql, number in (("DELETE FROM shaped WHERE id = %t", 8), ("DELETE FROM shaped WHERE id >= %t", 9)):
            running = Running(lambda sql=sql, number=number: connection.execute(sql, (number,)))
            desk.deny(desk.pending("waits-shape").name)
            assert isinstance(running.result(), psycopg.Error)
        with desk.api("bot") as api:
            (shape,) = api.approvals.ListShapes(pb.ListShapesRequest(subject="waits-shape")).shapes
        assert (shape.uses, shape.state) == (3, "SPENT")
        assert owner.execute("SELECT count(*) FROM shaped").fetchone() == (36,)


def test_a_shape_is_not_fooled_by_another_type_of_the_same_bytes(desk: Desk) -> None:
    with desk.table("shaped") as owner, WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("waits-types", "shop", desk.stage.token(subject="waits-types"))

        def ask(value: bytes, type_oid: int) -> bytes:
            return parse("DELETE FROM shaped WHERE id < $1", types=(type_oid,)) + bind((value,), formats=(1,)) + execute() + sync()

        client.send(ask((3).to_bytes(8, "big"), 20))
        held = desk.pending("waits-types")
        until = time.monotonic() + 5
        while "parameter_types" not in desk.get(held.name).evidence and time.monotonic() < until:
            time.sleep(0.05)
        desk.approve(held.name, shape=shape_of(9, p1=pb.ValueBound(least="-5", most="5")))
        assert [one.kind for one in client.until("Z") if one.kind != "N"] == ["1", "2", "C", "Z"]
        client.send(ask((4).to_bytes(8, "big"), 20))
        assert [one.kind for one in client.until("Z")] == ["1", "2", "C", "Z"]
        # -1 as int8 is NaN as float8, which is above everything
        client.send(ask(b"\xff" * 8, 701))
        desk.deny(desk.pending("waits-types").name)
        assert "E" in [one.kind for one in client.until("Z")]
        assert owner.execute("SELECT count(*) FROM shaped").fetchone() == (7,)


def test_a_shape_covers_a_pool_and_is_counted_exactly(desk: Desk) -> None:
    with desk.table("shaped", 60) as owner:
        with desk.connect(subject="waits-pool") as connection:
            running = Running(lambda: psycopg.ClientCursor(connection).execute("DELETE FROM shaped WHERE id = 60").rowcount)
            held = desk.pending("waits-pool")
            assert (held.shape, list(held.constants)) == ("delete from shaped where id = ?", ["60"])
            desk.approve(held.name, shape=shape_of(25, c1=pb.ValueBound(any=True)))
            assert running.result() == 1

        def some(worker: int) -> int:
            done = 0
            with desk.connect(subject="waits-pool") as connection:
                connection.add_notice_handler(lambda told: "held" in str(told.message_primary) and connection.cancel_safe())
                for number in range(worker * 5 + 1, worker * 5 + 6):
                    try:
                        done += psycopg.ClientCursor(connection).execute(f"DELETE FROM shaped WHERE id = {number}").rowcount
                    except psycopg.errors.QueryCanceled:
                        pass
            return done

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(some, range(8))) == 25
        assert owner.execute("SELECT count(*) FROM shaped").fetchone() == (34,)


def test_a_shape_ends_when_it_is_revoked(desk: Desk) -> None:
    with desk.table("shaped"), desk.connect(subject="waits-revoked") as connection:
        running = Running(lambda: connection.execute("DELETE FROM shaped WHERE id = %s", (1,)).rowcount)
        desk.approve(desk.pending("waits-revoked").name, shape=shape_of(9, p1=pb.ValueBound(any=True)))
        assert running.result() == 1
        assert connection.execute("DELETE FROM shaped WHERE id = %s", (2,)).rowcount == 1
        with desk.api("bot") as api:
            (shape,) = api.approvals.ListShapes(pb.ListShapesRequest(active_only=True, subject="waits-revoked")).shapes
            ended = api.approvals.RevokeShape(pb.RevokeShapeRequest(name=shape.name, reason="enough")).shape
            assert api.approvals.RevokeShape(pb.RevokeShapeRequest(name=shape.name)).shape == ended
        running = Running(lambda: connection.execute("DELETE FROM shaped WHERE id = %s", (3,)))
        desk.deny(desk.pending("waits-revoked").name)
        assert isinstance(running.result(), psycopg.Error)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (shape_of(0), "uses"),
        (shape_of(1, 0), "duration"),
        (shape_of(1, p2=pb.ValueBound(any=True)), "no place"),
        (shape_of(1, p1=pb.ValueBound()), "one of any"),
        (shape_of(1, p1=pb.ValueBound(least="1")), "both of them"),
        (shape_of(1, p1=pb.ValueBound(least="7", most="9")), "leave out the value"),
        (shape_of(1, group="chiefs", p1=pb.ValueBound(any=True)), "groups"),
    ],
)
def test_terms_that_make_no_sense_are_refused(desk: Desk, terms: pb.ShapeTerms, why: str) -> None:
    subject = "waits-" + secrets.token_hex(3)
    with desk.table("shaped"), desk.connect(subject=subject) as connection:
        running = Running(lambda: connection.execute("DELETE FROM shaped WHERE id = %s", ("1",)))
        held = desk.pending(subject)
        with pytest.raises(grpc.RpcError, match=why) as caught:
            desk.approve(held.name, shape=terms)
        assert code(caught) is grpc.StatusCode.INVALID_ARGUMENT
        assert not desk.get(held.name).votes
        desk.deny(held.name)
        running.result()


# -- watching ----------------------------------------------------------------------------------------------------------


def test_a_watch_goes_on_where_it_was_also_after_a_restart(desk: Desk) -> None:
    with desk.table("watched"):
        with desk.connect(subject="later-watched") as connection, desk.api("bot") as api:
            first = deferred(connection, "DELETE FROM watched WHERE id = 1")["approval"]
            watching = api.approvals.Watch(pb.ApprovalServiceWatchRequest())
            token = ""
            for told in watching:
                token = told.resume_token
                if told.approval.name == first:
                    break
            watching.cancel()
            second = deferred(connection, "DELETE FROM watched WHERE id = 2")["approval"]
            desk.approve(first)
        waiting = desk.connect(subject="waits-watched")
        running = Running(lambda: waiting.execute("DELETE FROM watched"))
        third = desk.pending("waits-watched").name
        desk.stage.stop_gateway(signal.SIGKILL)
        desk.stage.start_gateway()
        assert isinstance(running.result(), psycopg.OperationalError)
        with desk.api("bot") as api:
            seen: dict[str, list[int]] = {}
            watching = api.approvals.Watch(pb.ApprovalServiceWatchRequest(resume_token=token))
            for told in watching:
                seen.setdefault(told.approval.name, []).append(told.approval.state)
                if {first, second, third} <= set(seen):
                    break
            watching.cancel()
            assert seen[first] == [pb.APPROVAL_STATE_APPROVED] and seen[second] == [pb.APPROVAL_STATE_PENDING]
            assert seen[third] == [pb.APPROVAL_STATE_CANCELLED]
            assert "restarted" in desk.get(third).comment
            with pytest.raises(grpc.RpcError) as caught:
                list(api.approvals.Watch(pb.ApprovalServiceWatchRequest(resume_token="x")))
            assert code(caught) is grpc.StatusCode.INVALID_ARGUMENT
        # what was approved before the restart is still good for its one use
        with desk.connect(subject="later-watched") as connection:
            assert connection.execute("DELETE FROM watched WHERE id = 1").rowcount == 1

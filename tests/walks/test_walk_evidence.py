"""What approvers are shown of a held statement, and that nothing is executed to find it out."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from google.protobuf.json_format import MessageToDict

from fixtures.holds import Desk, Running
from kit.wire import WireClient, query
from pgleash.v1 import approvals_pb2 as pb


def evidence_of(desk: Desk, name: str, key: str = "recent_statements", wait: float = 5.0) -> dict[str, Any]:
    until = time.monotonic() + wait
    while time.monotonic() < until:
        found: dict[str, Any] = MessageToDict(desk.get(name).evidence)
        if key in found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{name} has no {key}: {found}")


def test_the_plan_the_tables_and_the_recent_statements(desk: Desk) -> None:
    with desk.table("shown", 500) as owner, desk.connect(subject="waits-plan") as connection:
        owner.execute("ANALYZE shown")
        connection.execute("SELECT 'earlier work'")
        running = Running(lambda: connection.execute("DELETE FROM shown WHERE id <= %t", (50,)).rowcount)
        held = desk.pending("waits-plan")
        found = evidence_of(desk, held.name)
        assert 40 < found["estimated_rows"] < 60 and found["plan"]["Node Type"] == "ModifyTable"
        assert found["relations"][0]["table"] == "public.shown" and found["relations"][0]["rows"] == 500
        assert found["identity"]["subject"] == "waits-plan" and found["identity"]["acts_for"] == "ada@example.com"
        assert "SELECT 'earlier work'" in found["recent_statements"]
        assert owner.execute("SELECT count(*) FROM shown").fetchone() == (500,)
        desk.approve(held.name)
        assert running.result() == 50


def test_the_locks_of_an_open_transaction(desk: Desk) -> None:
    with desk.table("locked"), WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("waits-locks", "shop", desk.stage.token(subject="waits-locks"))
        client.run("BEGIN")
        client.run("UPDATE locked SET note = 'x' WHERE id = 1")
        client.send(query("DELETE FROM locked"))
        held = desk.pending("waits-locks")
        found = evidence_of(desk, held.name, "locks_held")
        assert {"table": "public.locked", "mode": "RowExclusiveLock", "granted": True} in found["locks_held"]
        assert found["transaction"]["status"] == "T" and found["transaction"]["age"] >= 0
        desk.deny(held.name)
        client.until("Z")


def test_planning_never_evaluates_functions_of_the_database(desk: Desk) -> None:
    with desk.table("trap") as owner, desk.connect(subject="waits-trap") as connection:
        owner.execute(
            "CREATE FUNCTION trapped(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM pg_sleep(0); RETURN 1; END $$;"
            "CREATE VIEW trap_view AS SELECT id, trapped(1) AS t FROM trap; ALTER VIEW trap_view OWNER TO shop_owner"
        )
        try:
            for sql in ("DELETE FROM trap WHERE id = trapped(1)", "DELETE FROM trap USING trap_view v WHERE v.id = trap.id"):
                running = Running(lambda sql=sql: connection.execute(sql))
                held = desk.pending("waits-trap")
                found = evidence_of(desk, held.name)
                assert "trapped" in found["plan_refused"] and "plan" not in found
                desk.deny(held.name)
                assert isinstance(running.result(), psycopg.Error)
        finally:
            owner.execute("DROP FUNCTION trapped CASCADE")


def test_a_text_of_several_statements_is_not_planned(desk: Desk) -> None:
    with desk.table("several") as owner, desk.connect(subject="waits-several") as connection:
        running = Running(lambda: psycopg.ClientCursor(connection).execute("SELECT 1; DELETE FROM several; COMMIT"))
        held = desk.pending("waits-several")
        found = evidence_of(desk, held.name)
        assert "plan" not in found
        assert owner.execute("SELECT count(*) FROM several").fetchone() == (10,)
        desk.deny(held.name)
        running.result()
        assert desk.get(held.name).state == pb.APPROVAL_STATE_DENIED

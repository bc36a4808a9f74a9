"""Dry runs of held writes: what they tell, that they leave nothing behind, and what is not tried at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fixtures.holds import Desk, Running
from kit.wire import WireClient, query
from pgleash.v1 import approvals_pb2 as pb
from pgleash.v1 import audit_pb2

_WHO = "tried-one"
CLEAN = """
DROP SEQUENCE IF EXISTS tried_n CASCADE; DROP FUNCTION IF EXISTS tells CASCADE; DROP FOREIGN DATA WRAPPER IF EXISTS tried_away CASCADE
"""


def dry_run(desk: Desk, name: str, who: str = "approval-bot", groups: tuple[str, ...] = ("dba",)) -> pb.DryRunResponse:
    with desk.api("bot", subject=who, groups=list(groups)) as api:
        return api.approvals.DryRun(pb.DryRunRequest(name=name))


def refusal(desk: Desk, name: str, **who: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        dry_run(desk, name, **who)
    status = rpc_status.from_call(raised.value)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return raised.value.code(), info.reason, str(raised.value.details())


def tried(desk: Desk, work: Callable[[psycopg.Connection[Any]], Any], subject: str = _WHO) -> pb.DryRunResponse:
    """The dry run of what ``work`` makes wait; it is denied afterwards."""
    with desk.connect(subject=subject) as connection:
        running = Running(lambda: work(connection))
        held = desk.pending(subject)
        try:
            return dry_run(desk, held.name)
        finally:
            desk.deny(held.name)
            running.result()


def why_not(desk: Desk, statement: str, subject: str = _WHO) -> str:
    """Why the statement is not tried."""
    with desk.connect(subject=subject) as connection:
        running = Running(lambda: connection.execute(statement))
        held = desk.pending(subject)
        try:
            code, reason, details = refusal(desk, held.name)
        finally:
            desk.deny(held.name)
            running.result()
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DRY_RUN_REFUSED")
    return details


def rows(made: pb.DryRunResponse) -> list[tuple[Any, Any]]:
    found = [MessageToDict(row) for row in made.samples]
    return sorted(((row.get("before"), row.get("after")) for row in found), key=str)


def test_an_update_is_counted_shown_and_gone(desk: Desk) -> None:
    with desk.table("tried") as owner:
        before = owner.execute("SELECT ctid, xmin, * FROM tried ORDER BY id").fetchall()
        made = tried(desk, lambda c: c.execute("UPDATE tried SET note = %t WHERE id <= %b", ("new", 3)))
        assert made.affected_rows == 3 and not made.sqlstate
        assert [(each.table, each.inserted, each.updated, each.deleted) for each in made.tables] == [("public.tried", 0, 3, 0)]
        assert rows(made) == [({"id": str(i), "note": f"note {i}"}, {"id": str(i), "note": "new"}) for i in (1, 2, 3)]
        assert owner.execute("SELECT ctid, xmin, * FROM tried ORDER BY id").fetchall() == before
        locks = "SELECT count(*) FROM pg_locks WHERE relation = 'tried'::regclass AND pid <> pg_backend_pid()"
        assert owner.execute(locks).fetchone() == (0,)
        assert owner.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgleash dry run'").fetchone() == (0,)


def test_a_delete_shows_what_would_go_with_its_cascade(desk: Desk) -> None:
    with desk.table("tried") as owner, desk.table("below") as _:
        owner.execute("ALTER TABLE below ADD FOREIGN KEY (id) REFERENCES tried ON DELETE CASCADE")
        made = tried(desk, lambda c: c.execute("DELETE FROM tried WHERE id IN (4, 5)"))
        assert made.affected_rows == 2
        assert {each.table: each.deleted for each in made.tables} == {"public.tried": 2, "public.below": 2}
        assert rows(made) == [({"id": str(i), "note": f"note {i}"}, None) for i in (4, 5)]
        assert owner.execute("SELECT (SELECT count(*) FROM tried), (SELECT count(*) FROM below)").fetchone() == (10, 10)


def test_an_insert_shows_what_would_come_and_samples_are_few(desk: Desk) -> None:
    with desk.table("tried") as owner:
        made = tried(desk, lambda c: c.execute("INSERT INTO tried (id, note) SELECT i, 'x' FROM generate_series(100, 149) i RETURNING *"))
        assert made.affected_rows == 50 and len(made.samples) == 10
        assert all(row.HasField("after") and not row.HasField("before") for row in made.samples)
        upsert = "INSERT INTO tried (id, note) VALUES (1, 'x'), (200, 'y') ON CONFLICT (id) DO UPDATE SET note = excluded.note"
        made = tried(desk, lambda c: c.execute(upsert))
        assert made.affected_rows == 2
        assert rows(made) == [(None, {"id": "200", "note": "y"}), ({"id": "1", "note": "note 1"}, {"id": "1", "note": "x"})]
        assert owner.execute("SELECT count(*) FROM tried").fetchone() == (10,)


def test_labelled_values_are_never_shown(desk: Desk) -> None:
    made = tried(desk, lambda c: c.execute("UPDATE customers SET email = 'new@example.com' WHERE id = 7"))
    assert made.affected_rows == 1
    ((before, after),) = rows(made)
    assert before["email"] == after["email"] == "(masked: pii.email)" and before["id"] == "7"
    with desk.table("tried") as owner:
        email = owner.execute("SELECT email FROM customers WHERE id = 7").fetchone()[0]
        made = tried(desk, lambda c: c.execute("UPDATE tried SET note = email FROM customers WHERE tried.id = 7 AND customers.id = 7"))
        assert made.affected_rows == 1 and email not in str(made) and "pii.email" in rows(made)[0][1]["note"]
        made = tried(desk, lambda c: c.execute("INSERT INTO tried (id, note) SELECT 99, email FROM customers WHERE id = 7"))
        assert made.affected_rows == 1 and email not in str(made)


def test_an_error_is_told_without_values(desk: Desk) -> None:
    with desk.table("tried") as owner:
        made = tried(desk, lambda c: c.execute("INSERT INTO tried (id, note) VALUES (1, 'secret')"))
        assert (made.sqlstate, made.constraint) == ("23505", "tried_pkey") and not made.HasField("affected_rows")
        assert made.error == "duplicate key value violates a unique constraint"
        owner.execute("CREATE TABLE owing (id int REFERENCES tried DEFERRABLE INITIALLY DEFERRED)")
        owner.execute("INSERT INTO owing VALUES (2)")
        owner.execute("ALTER TABLE owing OWNER TO shop_owner")
        try:
            made = tried(desk, lambda c: c.execute("DELETE FROM tried WHERE id = 2"))
            assert made.sqlstate == "23503"
        finally:
            owner.execute("DROP TABLE owing")


REFUSED = {
    "serial": ("ALTER TABLE tried ADD n bigserial", "INSERT INTO tried (id, note) VALUES (50, 'x')", "sequence"),
    "serial by default": ("ALTER TABLE tried ADD n bigserial", "UPDATE tried SET n = DEFAULT WHERE id = 1", "sequence"),
    "identity": ("ALTER TABLE tried ADD n int GENERATED ALWAYS AS IDENTITY", "INSERT INTO tried (id, note) VALUES (50, 'x')", "sequence"),
    "own nextval": ("CREATE SEQUENCE tried_n", "UPDATE tried SET id = nextval('tried_n') WHERE id = 1", "nextval"),
    "notify": ("", "UPDATE tried SET note = pg_notify('a', 'b')::text WHERE id = 1", "pg_notify"),
    "session lock": ("", "UPDATE tried SET note = pg_advisory_lock(5)::text WHERE id = 1", "pg_advisory_lock"),
    "several": ("", "DELETE FROM tried WHERE id = 1; DELETE FROM tried WHERE id = 2", "single"),
    "notify in a trigger": (
        "CREATE FUNCTION tells() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY tried; RETURN NULL; END $$;"
        "CREATE TRIGGER tells AFTER UPDATE ON tried FOR EACH ROW EXECUTE FUNCTION tells()",
        "UPDATE tried SET note = 'x' WHERE id = 1",
        "notify",
    ),
    "nextval in a trigger": (
        "CREATE SEQUENCE tried_n; CREATE FUNCTION tells() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.note := nextval('tried_n'); RETURN NEW; END $$;"
        "CREATE TRIGGER tells BEFORE UPDATE ON tried FOR EACH ROW EXECUTE FUNCTION tells()",
        "UPDATE tried SET note = 'x' WHERE id = 1",
        "nextval",
    ),
    "nextval in a trigger's condition": (
        "CREATE SEQUENCE tried_n; CREATE FUNCTION tells() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
        "CREATE TRIGGER tells BEFORE UPDATE ON tried FOR EACH ROW WHEN (nextval('tried_n') > 0) EXECUTE FUNCTION tells()",
        "UPDATE tried SET note = 'x' WHERE id = 1",
        "nextval",
    ),
    "nextval in a check": (
        "CREATE SEQUENCE tried_n; ALTER TABLE tried ADD CHECK (nextval('tried_n') > 0) NOT VALID",
        "UPDATE tried SET note = 'x' WHERE id = 1",
        "nextval",
    ),
    "notify in a rule": (
        "CREATE RULE tells AS ON DELETE TO tried DO ALSO NOTIFY tried",
        "DELETE FROM tried WHERE id = 1",
        "notify",
    ),
    "nextval in an argument's default": (
        "CREATE SEQUENCE tried_n; CREATE FUNCTION tells(n bigint DEFAULT nextval('tried_n')) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
        "UPDATE tried SET note = tells() WHERE id = 1",
        "nextval",
    ),
    "nextval in a view": (
        "CREATE SEQUENCE tried_n; CREATE VIEW tried_v AS SELECT nextval('tried_n') AS n; ALTER VIEW tried_v OWNER TO shop_owner",
        "DELETE FROM tried USING tried_v v WHERE v.n = tried.id",
        "nextval",
    ),
    "nextval in a policy": (
        "CREATE SEQUENCE tried_n; ALTER TABLE tried ENABLE ROW LEVEL SECURITY;CREATE POLICY tells ON tried USING (nextval('tried_n') > 0)",
        "DELETE FROM tried WHERE id = 1",
        "nextval",
    ),
    "dblink": (
        "CREATE FUNCTION tells(text) RETURNS text LANGUAGE c STRICT AS '$libdir/plpgsql', 'plpgsql_call_handler'",
        "UPDATE tried SET note = tells('dbname=shop') WHERE id = 1",
        "not known",
    ),
    "another server": (
        "CREATE FOREIGN DATA WRAPPER tried_away; CREATE SERVER tried_away FOREIGN DATA WRAPPER tried_away;"
        "CREATE FOREIGN TABLE tried_there (id int) SERVER tried_away; ALTER FOREIGN TABLE tried_there OWNER TO shop_owner",
        "DELETE FROM tried USING tried_there t WHERE t.id = tried.id",
        "another server",
    ),
    "dynamic": (
        "CREATE FUNCTION tells() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE NEW.note; RETURN NEW; END $$;"
        "CREATE TRIGGER tells BEFORE UPDATE ON tried FOR EACH ROW EXECUTE FUNCTION tells()",
        "UPDATE tried SET note = 'x' WHERE id = 1",
        "not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_outlive_a_rollback_is_not_tried(desk: Desk, case: str) -> None:
    made, statement, said = REFUSED[case]
    with desk.table("tried") as owner:
        owner.execute(CLEAN)
        try:
            if made:
                owner.execute(made)
            assert said in why_not(desk, statement)
            for (name,) in owner.execute(
                "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind = 'S' AND relname ~ '^tried'"
            ).fetchall():
                assert owner.execute(f"SELECT is_called FROM {name}").fetchone() in (
                    (False,),
                    (made.count("bigserial") + made.count("IDENT") > 0,),
                )
        finally:
            owner.execute(CLEAN)


def test_a_serial_column_that_is_given_leaves_its_sequence_alone(desk: Desk) -> None:
    with desk.table("tried") as owner:
        owner.execute("ALTER TABLE tried ADD n bigserial")
        before = owner.execute("SELECT last_value, is_called FROM tried_n_seq").fetchone()
        made = tried(desk, lambda c: c.execute("INSERT INTO tried (id, note, n) VALUES (50, 'x', 5)"))
        assert made.affected_rows == 1
        made = tried(desk, lambda c: c.execute("UPDATE tried SET note = 'x' WHERE id = 1"))
        assert made.affected_rows == 1
        assert owner.execute("SELECT last_value, is_called FROM tried_n_seq").fetchone() == before


def test_a_trigger_that_stays_within_is_run(desk: Desk) -> None:
    with desk.table("tried") as owner, desk.table("noted") as _:
        owner.execute(
            "CREATE FUNCTION tells() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO noted (id, note) VALUES (1000 + NEW.id, NEW.note); RETURN NEW; END $$;"
            "CREATE TRIGGER tells AFTER UPDATE ON tried FOR EACH ROW EXECUTE FUNCTION tells()"
        )
        try:
            made = tried(desk, lambda c: c.execute("UPDATE tried SET note = 'x' WHERE id < 3"))
            assert {each.table: (each.inserted, each.updated) for each in made.tables} == {"public.tried": (0, 2), "public.noted": (2, 0)}
            assert owner.execute("SELECT count(*) FROM noted").fetchone() == (10,)
        finally:
            owner.execute("DROP FUNCTION tells CASCADE")


def test_partitions_and_tables_without_a_key(desk: Desk) -> None:
    with desk.table("tried") as owner:
        owner.execute(
            "CREATE TABLE parted (id bigserial, note text) PARTITION BY RANGE (id);"
            "CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);"
            "CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20);"
            "ALTER TABLE parted OWNER TO shop_owner; ALTER TABLE parted_low OWNER TO shop_owner;"
            "ALTER TABLE parted_high OWNER TO shop_owner;"
            "INSERT INTO parted VALUES (1, 'a'), (2, 'b'), (11, 'c')"
        )
        try:
            made = tried(desk, lambda c: c.execute("UPDATE parted SET id = id + 9 WHERE id = 1"))
            assert rows(made) == [(None, {"id": "10", "note": "a"}), ({"id": "1", "note": "a"}, None)]
            made = tried(desk, lambda c: c.execute("DELETE FROM parted"))
            assert made.affected_rows == 3 and len(made.samples) == 3
            assert {each.table: each.deleted for each in made.tables} == {"public.parted_low": 2, "public.parted_high": 1}
            assert owner.execute("SELECT string_agg(note, '') FROM parted").fetchone() == ("abc",)
        finally:
            owner.execute("DROP TABLE parted")


def test_a_lock_that_others_hold_is_told(desk: Desk) -> None:
    with desk.table("tried") as owner, WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("quick-locks", "shop", desk.stage.token(subject="quick-locks"))
        owner.execute("BEGIN")
        owner.execute("UPDATE tried SET note = 'mine' WHERE id = 1")
        made = tried(desk, lambda c: c.execute("UPDATE tried SET note = 'x' WHERE id = 1"))
        assert made.sqlstate == "55P03" and "lock" in made.error
        owner.execute("ROLLBACK")


def test_what_takes_too_long_is_cut_short(desk: Desk) -> None:
    with desk.table("tried") as owner:
        owner.execute("INSERT INTO tried SELECT i, '' FROM generate_series(1000, 30000) i")
        slow = "UPDATE tried SET note = (SELECT count(*) FROM tried a, tried b WHERE a.id + b.id > tried.id)::text"
        made = tried(desk, lambda c: c.execute(slow))
        assert made.sqlstate == "57014" and 4 <= made.duration.seconds < 8


def test_in_an_open_transaction_its_own_locks_are_told(desk: Desk) -> None:
    with desk.table("tried"), WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("tried-open", "shop", desk.stage.token(subject="tried-open"))
        client.run("BEGIN")
        client.send(query("LOCK TABLE tried IN SHARE ROW EXCLUSIVE MODE"))
        client.until("Z")
        client.send(query("DELETE FROM tried"))
        held = desk.pending("tried-open")
        made = dry_run(desk, held.name)
        assert made.sqlstate == "55P03" and "transaction" in made.notes[0]
        desk.deny(held.name)
        client.until("Z")


def test_who_may_and_when(desk: Desk) -> None:
    with desk.table("tried"), desk.connect(subject="tried-who") as connection, desk.connect(subject="waits-who") as other:
        running = Running(lambda: connection.execute("DELETE FROM tried WHERE id = 1").rowcount)
        held = desk.pending("tried-who")
        assert refusal(desk, held.name, groups=("chiefs",))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert refusal(desk, held.name, who="tried-who")[:2] == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        with desk.api("auditor") as api, pytest.raises(grpc.RpcError) as raised:
            api.approvals.DryRun(pb.DryRunRequest(name=held.name))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert dry_run(desk, held.name).affected_rows == 1
        desk.approve(held.name)
        assert running.result() == 1
        assert refusal(desk, held.name)[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
        assert refusal(desk, "approvals/ap_000000000000")[0] is grpc.StatusCode.NOT_FOUND
        told = desk.stage_audit("approval.dry_run", held.name)
        assert told["by"] == "approval-bot"
        assert MessageToDict(desk.get(held.name).evidence)["dry_run"]["affected_rows"] == 1
        waiting = Running(lambda: other.execute("DELETE FROM tried WHERE id = 2"))
        held = desk.pending("waits-who")
        code, reason, details = refusal(desk, held.name)
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DRY_RUN_REFUSED") and "waits" in details
        desk.deny(held.name)
        waiting.result()


def test_approved_while_it_runs(desk: Desk) -> None:
    with desk.table("tried", 1500) as owner, desk.connect(subject="tried-meanwhile") as connection:
        slow = "UPDATE tried SET note = (SELECT count(*) FROM tried a, tried b WHERE a.id + b.id > tried.id)::text WHERE id <= 6"
        running = Running(lambda: connection.execute(slow).rowcount)
        held = desk.pending("tried-meanwhile")
        dry = Running(lambda: dry_run(desk, held.name))
        until = time.monotonic() + 5
        active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgleash dry run' AND query LIKE 'UPDATE%'"
        while owner.execute(active).fetchone() == (0,) and time.monotonic() < until:
            time.sleep(0.01)
        assert refusal(desk, held.name)[1] == "WRONG_STATE"
        desk.approve(held.name)
        assert running.result(30) == 6
        told = dry.result(30)
        assert told.affected_rows == 6 or told.sqlstate == "55P03"  # whoever comes first to the rows has them
        assert owner.execute("SELECT count(*) FROM tried WHERE note NOT LIKE 'note%'").fetchone() == (6,)


def test_a_merge_and_a_view(desk: Desk) -> None:
    with desk.table("tried") as owner:
        merge = (
            "MERGE INTO tried t USING (VALUES (1, 'x'), (2, ''), (77, 'new')) v (id, note) ON t.id = v.id"
            " WHEN MATCHED AND v.note = '' THEN DELETE WHEN MATCHED THEN UPDATE SET note = v.note"
            " WHEN NOT MATCHED THEN INSERT (id, note) VALUES (v.id, v.note)"
        )
        made = tried(desk, lambda c: c.execute(merge))
        assert made.affected_rows == 3
        assert rows(made) == [
            (None, {"id": "77", "note": "new"}),
            ({"id": "1", "note": "note 1"}, {"id": "1", "note": "x"}),
            ({"id": "2", "note": "note 2"}, None),
        ]
        owner.execute("CREATE VIEW tried_v AS SELECT * FROM tried; ALTER VIEW tried_v OWNER TO shop_owner")
        made = tried(desk, lambda c: c.execute("DELETE FROM tried_v WHERE id < 4"))
        assert made.affected_rows == 3 and made.tables[0].table == "public.tried" and "view" in made.notes[0]
        assert owner.execute("SELECT count(*) FROM tried").fetchone() == (10,)


def test_settings_of_the_session_are_its_own(desk: Desk) -> None:
    with desk.table("tried"):

        def dated(connection: psycopg.Connection[Any]) -> None:
            connection.execute("SET TimeZone TO 'Asia/Tokyo'")
            connection.execute("UPDATE tried SET note = extract(hour FROM timestamptz '2026-01-01 00:00+00')::text WHERE id = 1")

        made = tried(desk, dated)
        assert rows(made)[0][1]["note"] == "9"

        def other(connection: psycopg.Connection[Any]) -> None:
            connection.execute("CREATE TEMPORARY TABLE tried (id int, note text)")
            connection.execute("DELETE FROM pg_temp.tried")

        with desk.connect(subject=_WHO) as connection:
            running = Running(lambda: other(connection))
            held = desk.pending(_WHO)
            assert "temporary" in refusal(desk, held.name)[2]
            desk.deny(held.name)
            running.result()


def test_the_command_line_and_the_audit_log(desk: Desk) -> None:
    with desk.table("tried"), desk.connect(subject=_WHO) as connection:
        running = Running(lambda: connection.execute("UPDATE tried SET note = 'new' WHERE id = 1"))
        held = desk.pending(_WHO)
        arguments = ["approvals", "dry-run", held.name.removeprefix("approvals/"), "--api", f"localhost:{desk.stage.api_port}"]
        environment = {**os.environ, "PGLEASH_TOKEN": desk.stage.token("bot"), "PGLEASH_CA": str(desk.stage.certificates.ca)}
        command = [sys.executable, "-m", "pgleash.cli", *arguments]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.splitlines() == [
            "dry run: 1 rows affected, and rolled back",
            "  public.tried: 0 inserted, 1 updated, 0 deleted",
            "  row: id=1",
            "    note: note 1 -> new",
        ]
        said = subprocess.run([*command, "-o", "json"], env=environment, capture_output=True, text=True, check=True).stdout
        assert json.loads(said)["affected_rows"] == "1"
        desk.deny(held.name)
        running.result()
        with desk.api("auditor") as api:
            entries = [
                MessageToDict(each.fields) for each in api.audit.Query(audit_pb2.QueryRequest(kinds=["approval.dry_run"], limit=1000))
            ]
        told = [each for each in entries if each["approval"] == held.name]
        assert sorted(each["outcome"] for each in told) == ["begun", "begun", "rolled back", "rolled back"]
        assert {each.get("affected_rows") for each in told} == {None, 1}

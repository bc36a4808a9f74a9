"""Diagnostics without values: what stays, what goes, and what can't be told apart."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.postgres import PostgresServer
from pgwire.diagnostics import KEEPS, KEEPS_PLACED, KEEPS_TOP, safe_message, scrub

CANARY = "4111000011112222"


def body(**fields: str) -> bytes:
    return b"".join(k.encode() + v.encode() + b"\0" for k, v in fields.items()) + b"\0"


def fields(raw: bytes) -> dict[str, str]:
    assert raw.endswith(b"\0\0") or raw == b"\0"
    return {part[:1].decode(): part[1:].decode() for part in raw[:-2].split(b"\0")}


def test_a_unique_violation_keeps_names_and_loses_values() -> None:
    raw = body(
        S="ERROR", V="ERROR", C="23505", M='duplicate key value violates unique constraint "k"', D=f"Key (card)=({CANARY}) already exists.",
        H=CANARY, W=CANARY, q=CANARY, p="3", s="public", t="customers", n="k", F="nbtinsert.c", L="1", R="_bt_check_unique",
    )  # fmt: skip
    assert fields(scrub(b"E", raw)) == {
        "S": "ERROR", "V": "ERROR", "C": "23505", "M": "duplicate key value violates a unique constraint",
        "s": "public", "t": "customers", "n": "k", "F": "nbtinsert.c", "L": "1", "R": "_bt_check_unique",
    }  # fmt: skip


def test_messages_that_point_into_the_clients_text_stay() -> None:
    placed = body(S="ERROR", C="42703", M='column "x" does not exist', P="8")
    assert fields(scrub(b"E", placed))["M"] == 'column "x" does not exist'
    assert fields(scrub(b"E", placed))["P"] == "8"
    unplaced = body(S="ERROR", C="42P01", M=f'relation "{CANARY}" does not exist')
    assert fields(scrub(b"E", unplaced))["M"] == "relation does not exist"
    internal = body(S="ERROR", C="42601", M=f'syntax error at or near "{CANARY}"', p="1", q=CANARY, P="8")
    assert fields(scrub(b"E", internal))["M"] == "syntax error"


def test_messages_without_data_stay() -> None:
    for state in ("42501", "25P02", "40P01", "57014", "25006", "57P01"):
        assert fields(scrub(b"E", body(S="ERROR", C=state, M="as the server says")))["M"] == "as the server says"
    assert fields(scrub(b"E", body(S="ERROR", C="26000", M="prepared")))["M"] == "prepared"
    assert fields(scrub(b"E", body(S="ERROR", C="26000", M=CANARY, W="PL/pgSQL function f()")))["M"] == safe_message("26000")


@pytest.mark.parametrize("state", sorted(KEEPS | KEEPS_PLACED | KEEPS_TOP | {"P0001", "ZZ999"}))
def test_what_a_function_raises_is_withheld_under_every_sqlstate(state: str) -> None:
    raw = body(S="ERROR", C=state, M=CANARY, s=CANARY, t=CANARY, c=CANARY, d=CANARY, n=CANARY, P="1", F="pl_exec.c", R="exec_stmt_raise")
    clean = scrub(b"E", raw)
    assert CANARY.encode() not in clean and fields(clean)["C"] == state and fields(clean)["M"]


def test_unknown_sqlstates_and_fields_are_not_trusted() -> None:
    assert fields(scrub(b"N", body(S="NOTICE", C="ZZ001", M=CANARY, x=CANARY))) == {"S": "NOTICE", "C": "ZZ001", "M": "error"}


@pytest.mark.parametrize("raw", [b"", b"SERROR", b"SERROR\0", b"\0\0", b"SERROR\0MX4111000011112222\0\0", b"CX\0M4111000011112222\0\0"])
def test_a_body_that_is_not_well_formed_is_replaced(raw: bytes) -> None:
    assert fields(scrub(b"E", raw)) == {"S": "ERROR", "V": "ERROR", "C": "XX000", "M": "internal error of the server"}


@given(st.binary(max_size=60))
def test_any_body_gives_a_whole_one_without_details(raw: bytes) -> None:
    clean = scrub(b"E", raw)
    assert clean[-1] == 0 and scrub(b"E", clean) == clean
    assert not {part[:1] for part in clean.split(b"\0")} & {b"D", b"H", b"W", b"q", b"p"}


def test_a_notification_keeps_its_channel() -> None:
    assert scrub(b"A", b"\0\0\0\7jobs\0" + CANARY.encode() + b"\0") == b"\0\0\0\7jobs\0\0"
    for bad in (b"", b"\0\0\0\7", b"\0\0\0\7jobs\0", b"\0\0\0\7jobs\0x", b"\0\0\0\7jobs\0x\0y\0"):
        with pytest.raises(ValueError):
            scrub(b"A", bad)
    with pytest.raises(ValueError):
        scrub(b"T", b"")


LEAKS = [
    "SELECT card::int FROM t",
    "SELECT card::date FROM t",
    "SELECT card::uuid FROM t",
    "SELECT card::inet FROM t",
    "SELECT card::regclass FROM t",
    "SELECT card::regrole FROM t",
    "SELECT card::regtype FROM t",
    "SELECT ('x' || card)::regproc FROM t",
    "SELECT ('x' || card)::regnamespace FROM t",
    "SELECT has_table_privilege(card, 'select') FROM t",
    "SELECT has_database_privilege(card, 'connect') FROM t",
    "SELECT set_config('a.b c' || card, 'x', false) FROM t",
    "SELECT set_config('role', card, false) FROM t",
    "SELECT set_config('work_mem', card || 'x', false) FROM t",
    "SELECT query_to_xml(card, false, false, '') FROM t",
    "SELECT cursor_to_xml(card::refcursor, 1, false, false, '') FROM t",
    "SELECT timezone(card, now()) FROM t",
    "SELECT to_timestamp(card, 'YYYY-MM') FROM t",
    "SELECT ('{' || card)::jsonb FROM t",
    "SELECT ('{' || card)::int[] FROM t",
    "SELECT regexp_replace('a', card || '(', '') FROM t",
    "SELECT convert_from('a', card) FROM t",
    "SELECT pg_read_file(card) FROM t",
    "SELECT currval(card) FROM t",
    "INSERT INTO t SELECT card FROM t",
    "INSERT INTO t SELECT card || '9' FROM t",
    "INSERT INTO n SELECT card FROM t",
    "DO $$ BEGIN RAISE EXCEPTION '%', (SELECT card FROM t); END $$",
    "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = (SELECT card FROM t), TABLE = (SELECT card FROM t); END $$",
    "DO $$ BEGIN EXECUTE (SELECT 'SELECT x' || card FROM t); END $$",
    "DO $$ BEGIN EXECUTE (SELECT card FROM t); END $$",
    "DO $$ BEGIN EXECUTE (SELECT 'DROP TABLE x' || card FROM t); END $$",
    "DO $$ BEGIN EXECUTE (SELECT 'SET ROLE x' || card FROM t); END $$",
    "DO $$ BEGIN EXECUTE (SELECT 'DEALLOCATE x' || card FROM t); END $$",
    "DO $$ BEGIN ASSERT false, (SELECT card FROM t); END $$",
]


def test_a_real_servers_errors_hold_no_values(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn()) as connection:
        connection.execute("CREATE TEMP TABLE t (card text PRIMARY KEY CHECK (length(card) < 17))")
        connection.execute("CREATE TEMP TABLE n (card text, other int NOT NULL)")
        connection.execute("INSERT INTO t VALUES (%s)", (CANARY,))
        connection.commit()
        quoted = 0
        for statement in LEAKS:
            result = connection.pgconn.exec_(statement.encode())
            assert result.status == psycopg.pq.ExecStatus.FATAL_ERROR, statement
            raw = b""
            for field in psycopg.pq.DiagnosticField:
                value = result.error_field(field)
                if value is not None:
                    raw += chr(int(field)).encode() + value + b"\0"
            raw += b"\0"
            quoted += CANARY.encode() in raw
            clean = scrub(b"E", raw)
            assert CANARY.encode() not in clean, statement
            assert fields(clean)["C"] == (result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"").decode()
        assert quoted > 20
        connection.rollback()

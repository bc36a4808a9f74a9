"""Which action fits which type: every combination decodes, and what can't be done is refused or NULL."""

from __future__ import annotations

import datetime
import struct
import uuid
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Transformer
from psycopg.pq import Format

from kit import oracle
from kit.postgres import PostgresServer
from pgwire.plans import ACTIONS, PlanRefused, compile_plan
from pgwire.ports import Column, MaskRule

SECRET = b"k" * 32

TYPES: dict[str, tuple[str, str, str, type]] = {
    "text": ("text", "'canary-7@example.com'", "x", str),
    "varchar": ("varchar(30)", "'canary-7@example.com'", "x", str),
    "bpchar": ("char(30)", "'canary-7@example.com'", "x", str),
    "name": ("name", "'canary-7@example.com'", "x", str),
    "int2": ("int2", "'-777'", "12", int),
    "int4": ("int4", "'-77777'", "-12", int),
    "int8": ("int8", "'777777777777'", "12", int),
    "numeric": ("numeric", "'-7777777.077'", "12.50", Decimal),
    "numeric(9,2)": ("numeric(9,2)", "'7777777.07'", "12.5", Decimal),
    "float4": ("float4", "'7.5'", "1.5", float),
    "float8": ("float8", "'-7.77e300'", "1.5", float),
    "bool": ("bool", "'t'", "false", bool),
    "date": ("date", "'2007-07-17'", "1970-01-01", datetime.date),
    "timestamp": ("timestamp", "'2007-07-17 07:07:07.7'", "1970-01-01", datetime.datetime),
    "timestamptz": ("timestamptz", "'2007-07-17 07:07:07.7+07'", "1970-01-01T00:00:00", datetime.datetime),
    "uuid": ("uuid", "'77777777-7777-4777-8777-777777777777'", "00000000-0000-0000-0000-000000000000", uuid.UUID),
    "json": ("json", "'{\"canary\": 7}'", "x", str),
    "jsonb": ("jsonb", "'{\"canary\": 7}'", 'quote " and \\', str),
    "bytea": ("bytea", "'\\x777777'", "x", bytes),
    "int4[]": ("int4[]", "'{7,77}'", "x", list),
    "int4range": ("int4range", "'[7,77)'", "x", object),
    "interval": ("interval", "'7 days'", "x", object),
    "inet": ("inet", "'7.7.7.7'", "x", object),
}


@pytest.mark.parametrize("name", TYPES)
def test_every_action_gives_a_value_that_drivers_and_the_server_decode(postgres: PostgresServer, name: str) -> None:
    declared, literal, fixed, kind = TYPES[name]
    with psycopg.connect(postgres.dsn()) as connection:
        connection.execute("SET timezone = 'UTC'")
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            cursor.execute(f"SELECT {literal}::{declared}")  # type: ignore[call-overload]
            result = cursor.pgresult
            assert result is not None
            oid = result.ftype(0)
            column = Column("c", 0, 0, oid, result.fmod(0), int(binary))
            raw = result.get_value(0, 0)
            assert raw is not None
            for action in sorted(ACTIONS):
                argument = {"fixed": fixed, "keep_first": 4, "keep_last": 3}.get(action)
                plan = compile_plan((column,), (MaskRule(action, "l", argument),), SECRET)
                assert plan is not None
                out = plan.run(oracle.row([raw]))[2]
                length = struct.unpack(">i", out[7:11])[0]
                if length < 0:
                    assert action == "null" or name not in ("text", "varchar", "bpchar", "name"), (name, action)
                    continue
                cell = out[11:]
                assert cell != raw and len(cell) == length
                value: Any = Transformer(connection).get_loader(oid, Format.BINARY if binary else Format.TEXT).load(cell)
                assert isinstance(value, kind), (name, action, cell)
                back = connection.pgconn.exec_params(
                    f"SELECT $1::{declared}".encode(), [cell], [oid], [int(binary)], int(binary)
                )  # fmt: skip
                assert back.error_message == b"", (name, action, cell)
                returned = back.get_value(0, 0)
                assert returned is not None
                if declared != "char(30)" and not (kind is float and not binary):
                    assert returned == cell, (name, action)


def fixed(oid: int, text: str | None, typmod: int = -1, fmt: int = 0) -> bytes | None:
    plan = compile_plan((Column("c", 0, 0, oid, typmod, fmt),), (MaskRule("fixed", "l", text),), SECRET)
    assert plan is not None
    out = plan.run(oracle.row([b"\1" * 4]))[2]
    return None if out[7:11] == b"\xff" * 4 else out[11:]


def test_fixed_texts_agree_in_text_and_binary() -> None:
    assert fixed(1700, "-12345.6700") == b"-12345.6700"
    assert oracle.numeric_value(fixed(1700, "-12345.6700", fmt=1) or b"") == Decimal("-12345.67")
    assert fixed(1700, "1e5") == b"100000"
    assert fixed(1700, "0.0001", fmt=1) == struct.pack(">HhHHH", 1, -1, 0, 4, 1)
    assert fixed(1700, "0", fmt=1) == bytes(8)
    assert fixed(1700, "1", (9 << 16 | 2) + 4) == b"1.00"
    assert fixed(16, "no") == b"f" and fixed(16, "true", fmt=1) == b"\1"
    assert fixed(1184, "2000-01-01T02:00:00+02:00", fmt=1) == bytes(8)
    assert fixed(1184, "2000-01-01T02:00:00+02:00") == b"2000-01-01 00:00:00+00"
    assert fixed(17, "ab") == b"\\x6162" and fixed(17, "ab", fmt=1) == b"ab"
    assert fixed(3802, 'a"b', fmt=1) == b'\1"a\\"b"'


def test_fixed_without_a_text_is_stars_or_null() -> None:
    assert fixed(25, None) == b"***"
    assert fixed(23, None) is None


@pytest.mark.parametrize(
    ("oid", "text", "typmod"),
    [
        (21, "40000", -1), (23, "abc", -1), (23, "1.5", -1), (20, str(2**63), -1), (700, "1e300", -1), (701, "x", -1), (1700, "x", -1),
        (1700, "NaN", -1), (1700, "1e99999", -1), (1700, "1000", (5 << 16 | 2) + 4), (1700, "1.005", (5 << 16 | 2) + 4), (16, "maybe", -1),
        (1082, "yesterday", -1), (1082, "2024-13-01", -1), (1114, "2024-01-01T00:00:00+01:00", -1), (2950, "1", -1), (25, "a\0b", -1),
    ],
)  # fmt: skip
def test_a_fixed_text_that_the_type_cannot_have_is_refused(oid: int, text: str, typmod: int) -> None:
    for fmt in (0, 1):
        with pytest.raises(PlanRefused) as caught:
            fixed(oid, text, typmod, fmt)
        assert caught.value.sqlstate == "42501" and caught.value.hint


@pytest.mark.parametrize(
    "rule", [MaskRule("shuffle", "l"), MaskRule("keep_last", "l"), MaskRule("keep_first", "l", "4"), MaskRule("keep_last", "l", -1)]
)
def test_a_wish_that_nobody_understands_is_refused(rule: MaskRule) -> None:
    with pytest.raises(PlanRefused):
        compile_plan((Column("c", 0, 0, 25),), (rule,), SECRET)


def test_no_wish_is_no_plan() -> None:
    assert compile_plan((), (), SECRET) is None
    assert compile_plan((Column("c", 0, 0, 25),), (None,), SECRET) is None
    with pytest.raises(ValueError):
        compile_plan((Column("c", 0, 0, 25),), (), SECRET)
    with pytest.raises(ValueError):
        compile_plan((Column("c", 0, 0, 25),), (MaskRule("pseudonym", "l"),), b"short")
    with pytest.raises(PlanRefused):
        compile_plan((Column("c", 0, 0, 25, -1, 7),), (MaskRule("null", "l"),), SECRET)


def test_types_made_by_users_are_masked_as_text_and_null_in_binary() -> None:
    for fmt, expected in ((0, b"a***@b***.de"), (1, None)):
        plan = compile_plan((Column("c", 0, 0, 50000, -1, fmt),), (MaskRule("email", "l"),), SECRET)
        assert plan is not None and plan.masked == (0,)
        assert plan.run(oracle.row([b"ab@bc.de"]))[2] == oracle.row([expected])

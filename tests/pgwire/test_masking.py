"""Masking in C against the plain-Python oracle, whole and in parts, and against rows that are not rows."""

from __future__ import annotations

import datetime
import struct
import uuid
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit import oracle
from pgwire.hot import masking as m
from pgwire.plans import compile_plan
from pgwire.ports import Column, MaskRule

SECRET = bytes(range(32))
EPOCH = datetime.datetime(2000, 1, 1)


def column(oid: int, fmt: int = 0, typmod: int = -1) -> Column:
    return Column("c", 0, 0, oid, typmod, fmt)


def masked(cell: bytes | None, oid: int, action: str, argument: str | int | None = None, fmt: int = 0, typmod: int = -1) -> bytes | None:
    plan = compile_plan((column(oid, fmt, typmod),), (MaskRule(action, "l", argument),), SECRET)
    assert plan is not None
    data = oracle.row([cell])
    status, used, out, rows = plan.run(data, plan.bound(len(data)))
    assert (status, used, rows) == (m.OK, len(data), 1)
    length = struct.unpack(">i", out[7:11])[0]
    assert len(out) == 11 + max(length, 0) and struct.unpack(">I", out[1:5])[0] == len(out) - 1
    return None if length < 0 else out[11:]


def test_siphash_matches_its_authors_vectors() -> None:
    key = bytes(range(16))
    assert m.siphash128(key, b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert m.siphash128(key, b"\0").hex() == "da87c1d86b99af44347659119b22fc45"


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=70))
def test_siphash_matches_the_oracle(key: bytes, data: bytes) -> None:
    assert m.siphash128(key, data) == oracle.siphash(key, data).to_bytes(16, "little")


@pytest.mark.parametrize(
    ("value", "action", "argument", "expected"),
    [
        ("4111 1111 1111 1234", "keep_last", 4, "**** **** **** 1234"),
        ("4111-1111-1111-1234", "keep_first", 6, "4111-11**-****-****"),
        ("+49 (30) 12-34", "keep_last", 2, "+** (**) **-34"),
        ("1234", "keep_last", 4, "****"),
        ("12 34", "keep_last", 4, "** **"),
        ("DE89 3704", "keep_last", 4, "*****3704"),
        ("secret", "keep_first", 2, "se****"),
        ("secret", "keep_last", 0, "******"),
        ("ab", "keep_first", 3, "**"),
        ("", "keep_first", 3, ""),
        ("ñandú", "keep_first", 1, "ñ****"),
        ("ñandú", "keep_last", 1, "****ú"),
        ("日本語", "keep_last", 3, "***"),
        ("- .", "keep_last", 1, "**."),
        ("ada@example.com", "email", None, "a***@e***.com"),
        ("ada@mail.example.co.uk", "email", None, "a***@m***.uk"),
        ("a@b.com", "email", None, "***@***.com"),
        ("ada@localhost", "email", None, "a***@l***"),
        ("ada@x1.secret99", "email", None, "a***@x***.***"),
        ("ada@example.toolongtld", "email", None, "a***@e***.***"),
        ("not an address", "email", None, "***"),
        ("a@b@c.de", "email", None, "***"),
        ("@b.de", "email", None, "***"),
        ("a@", "email", None, "***"),
        ("ada@.de", "email", None, "***"),
        ("ada@b.", "email", None, "***"),
        ("Ada <ada@b.de>", "email", None, "***"),
        ("ñu@éa.es", "email", None, "ñ***@é***.es"),
        ("", "email", None, "***"),
        ("anything", "fixed", "X", "X"),
        ("anything", "fixed", "", ""),
    ],
)
@pytest.mark.parametrize("fmt", [0, 1])
def test_text_actions(value: str, action: str, argument: str | int | None, expected: str, fmt: int) -> None:
    got = masked(value.encode(), 25, action, argument, fmt)
    assert got is not None and got.decode() == expected
    rule = MaskRule(action, "l", argument)
    assert oracle.mask_cell(value.encode(), column(25, fmt), rule, SECRET) == got


@pytest.mark.parametrize("action", ["keep_first", "keep_last", "email"])
def test_text_that_is_not_utf8_shows_nothing(action: str) -> None:
    for raw in (b"caf\xe9@example.com", b"\xc0\xaf", b"\xed\xa0\x80abc", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xff@b.de"):
        assert masked(raw, 25, action, 2) == b"***"


def test_blanks_that_fill_a_char_column_are_no_part_of_it() -> None:
    assert masked(b"abc   ", 1042, "keep_last", 2, typmod=10) == b"*bc   "
    assert masked(b"ab    ", 1042, "keep_last", 2, typmod=10) == b"**    "
    assert masked(b"abc   ", 1042, "pseudonym", typmod=34) == masked(b"abc", 25, "pseudonym")


def test_nothing_is_longer_than_its_column() -> None:
    assert masked(b"ab@cd.de", 1043, "email", typmod=12) == b"a***@c**"
    assert masked(b"x", 1043, "email", typmod=5) == b"*"
    assert masked(b"x", 1043, "fixed", "REDACTED", typmod=9) == b"REDAC"
    assert len(masked(b"x", 1043, "pseudonym", typmod=14) or b"") == 10


def numeric_values() -> st.SearchStrategy[Decimal]:
    special = st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"), Decimal(0), Decimal("0.00")])
    return special | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=7)


def numeric_wire(value: Decimal, fmt: int) -> bytes:
    if fmt == 0:
        return f"{value:f}".encode() if value.is_finite() else str(value).encode()
    if value.is_finite():
        return oracle.numeric_binary(value, 7)
    return struct.pack(">HhHH", 0, 0, 0xC000 if value.is_nan() else (0xD000 if value > 0 else 0xF000), 0)


def cells(oid: int, fmt: int) -> st.SearchStrategy[bytes]:
    ints = {21: ">h", 23: ">i", 20: ">q"}
    if oid in ints:
        bits = struct.calcsize(ints[oid]) * 8
        whole = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return whole.map(lambda v: struct.pack(ints[oid], v) if fmt else b"%d" % v)
    if oid in (700, 701):
        width = 32 if oid == 700 else 64
        return st.floats(width=width).map(lambda v: struct.pack(">f" if width == 32 else ">d", v) if fmt else repr(v).encode())
    if oid == 1700:
        return numeric_values().map(lambda v: numeric_wire(v, fmt))
    if oid == 2950:
        return st.uuids().map(lambda v: v.bytes if fmt else str(v).encode())
    if oid == 1082:
        return st.dates().map(lambda v: struct.pack(">i", (v - EPOCH.date()).days) if fmt else v.isoformat().encode())
    if oid in (1114, 1184):
        zone = b"+00" if oid == 1184 else b""
        micro = datetime.timedelta(microseconds=1)
        return st.datetimes().map(lambda v: struct.pack(">q", (v - EPOCH) // micro) if fmt else v.isoformat(" ").encode() + zone)
    if oid == 3802:
        return st.text(max_size=20).map(lambda v: (b"\1" if fmt else b"") + repr(v).encode("utf-8", "replace"))
    shaped = st.sampled_from(["4111 1111 1111 1234", "ada@example.com", "ñu@éa.es", "a", "+1 (2)"])
    return (st.text(max_size=20).map(lambda v: v.encode("utf-8", "replace"))) | shaped.map(str.encode) | st.binary(max_size=20)


OIDS = [16, 17, 19, 20, 21, 23, 25, 114, 700, 701, 705, 1000, 1042, 1043, 1082, 1114, 1184, 1700, 2950, 3802, 3904, 90001]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Column], list[MaskRule | None], list[list[bytes | None]]]:
    columns, rules = [], []
    for i in range(draw(st.integers(0, 6))):
        oid = draw(st.sampled_from(OIDS))
        typmod = draw(st.sampled_from([-1, 5, 12, 34])) if oid in (1042, 1043) else -1
        if oid == 1700:
            typmod = draw(st.sampled_from([-1, (5 << 16 | 2) + 4, (30 << 16 | 10) + 4, (3 << 16 | 3) + 4]))
        columns.append(Column(f"c{i}", 0, 0, oid, typmod, draw(st.sampled_from([0, 1]))))
        action = draw(st.sampled_from([None, "null", "fixed", "keep_first", "keep_last", "email", "pseudonym"]))
        if action == "fixed" and oid not in (25, 1043, 1042, 19, 705):
            action = "pseudonym"
        argument = draw(st.integers(0, 6)) if action in ("keep_first", "keep_last") else ("täxt" if action == "fixed" else None)
        rules.append(MaskRule(action, draw(st.sampled_from(["a", "b"])), argument) if action else None)
    if not any(rules):
        columns.append(column(25))
        rules.append(MaskRule("null", "n"))
    rows = [
        [draw(st.none() | cells(c.type_oid, c.format)) for c in columns]
        for _ in range(draw(st.integers(0, 4)))
    ]  # fmt: skip
    return columns, rules, rows


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tables(), st.data())
def test_rows_are_what_the_oracle_says_whole_and_in_parts(
    table: tuple[list[Column], list[MaskRule | None], list[list[bytes | None]]], data: st.DataObject
) -> None:
    columns, rules, rows = table
    plan = compile_plan(tuple(columns), tuple(rules), SECRET)
    assert plan is not None
    messages = [oracle.row(r) for r in rows]
    wire = b"".join(messages)
    expected = b"".join(oracle.mask_row(r, columns, rules, SECRET) for r in rows)
    tail = data.draw(st.sampled_from([b"", b"C\0\0\0\x0bSELECT\0", b"Z\0\0\0\5I"]))
    assert plan.run(wire + tail) == (m.OK, len(wire), expected, len(rows))
    # cut anywhere: the whole rows before the cut come out, the rest is left
    cut = data.draw(st.integers(0, len(wire)))
    status, used, out, done = plan.run(wire[:cut])
    assert used == sum(map(len, messages[:done])) <= cut and (status == m.NEED_MORE) == (used != cut)
    assert out == b"".join(oracle.mask_row(r, columns, rules, SECRET) for r in rows[:done])
    # little room: row by row, never past the bound
    rest, got = wire, b""
    while rest:
        size = struct.unpack(">I", rest[1:5])[0] + 1
        assert plan.run(rest, plan.bound(size) - 1)[:2] == (m.FULL, 0)
        status, used, out, done = plan.run(rest, plan.bound(size))
        assert done >= 1
        got += out
        rest = rest[used:]
    assert got == expected


@given(st.binary(max_size=80), st.integers(0, 4), st.booleans())
def test_malformed_rows_write_nothing_and_stop(body: bytes, count: int, framed: bool) -> None:
    plan = compile_plan(tuple(column(25) for _ in range(count + 1)), tuple(MaskRule("email", "e") for _ in range(count + 1)), SECRET)
    assert plan is not None
    data = (b"D" + struct.pack(">I", len(body) + 4) + body) if framed else b"D" + body
    status, used, out, rows = plan.run(data)
    if status != m.OK:
        assert (used, out, rows) == (0, b"", 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"D\0\0\0\0",
        b"D\0\0\0\5\0",
        b"D\0\0\0\6\0\1",
        b"D\0\0\0\6\0\2" + b"\xff" * 8,
        oracle.row([b"x"]),
        oracle.row([b"x", b"y", b"z"]),
        b"D\0\0\0\x10\0\2\0\0\0\1a\0\0\0\2b",
        b"D\0\0\0\x11\0\2\0\0\0\1a\0\0\0\1bc",
        b"D\0\0\0\x0e\0\2\xff\xff\xff\xfe\0\0\0\0",
        b"D\x7f\xff\xff\xff\0\2",
    ],
)
def test_a_row_that_does_not_fit_the_plan_is_bad(bad: bytes) -> None:
    plan = compile_plan((column(25), column(25)), (None, MaskRule("null", "n")), SECRET)
    assert plan is not None
    good = oracle.row([b"a", b"b"])
    masked_good = oracle.row([b"a", None])
    assert plan.run(good + bad) == (m.BAD, len(good), masked_good, 1)


@pytest.mark.parametrize("oid", [16, 17, 20, 21, 23, 114, 700, 701, 1082, 1114, 1184, 1700, 2950, 3802])
@given(raw=st.binary(max_size=24))
def test_cells_that_are_not_of_their_type_never_pass(oid: int, raw: bytes) -> None:
    for fmt in (0, 1):
        for action in ("pseudonym", "keep_first", "keep_last", "email"):
            got = masked(raw, oid, action, 4, fmt)
            if got is not None and got == raw:  # the very value that stands for all: nothing is told by it
                assert got == masked(raw[:-1] + bytes([raw[-1] ^ 1]), oid, action, 4, fmt)


@given(st.integers(-(2**31), 2**31 - 1), numeric_values(), st.uuids(), st.floats(width=32), st.floats())
def test_text_and_binary_get_one_pseudonym(i: int, n: Decimal, u: uuid.UUID, f4: float, f8: float) -> None:
    def both(oid: int, text: bytes, binary: bytes) -> tuple[bytes, bytes]:
        a, b = masked(text, oid, "pseudonym"), masked(binary, oid, "pseudonym", fmt=1)
        assert a is not None and b is not None
        return a, b

    a, b = both(23, b"%d" % i, struct.pack(">i", i))
    assert int(a) == struct.unpack(">i", b)[0]
    a, b = both(1700, numeric_wire(n, 0), numeric_wire(n, 1))
    assert Decimal(a.decode()) == oracle.numeric_value(b)
    a, b = both(2950, str(u).encode(), u.bytes)
    made = uuid.UUID(a.decode())
    assert made == uuid.UUID(bytes=b) and made.version == 8
    a, b = both(700, repr(f4).encode(), struct.pack(">f", f4))
    assert float(a) == struct.unpack(">f", b)[0]
    a, b = both(701, repr(f8).encode(), struct.pack(">d", f8))
    assert float(a) == struct.unpack(">d", b)[0]


def test_pseudonyms_depend_on_key_and_label() -> None:
    def one(label: str, key: bytes) -> bytes:
        plan = compile_plan((column(25),), (MaskRule("pseudonym", label),), key)
        assert plan is not None
        return plan.run(oracle.row([b"ada"]))[2]

    assert one("a", SECRET) == one("a", SECRET)
    assert len({one("a", SECRET), one("b", SECRET), one("a", bytes(32))}) == 3


def test_the_year_of_a_zoned_time_is_that_in_utc() -> None:
    assert masked(b"2024-12-31 23:30:00-02:30", 1184, "keep_first", 4) == b"2025-01-01 00:00:00+00"
    assert masked(b"2024-01-01 00:30:00.5+05:30", 1184, "keep_first", 4) == b"2023-01-01 00:00:00+00"
    for odd in (b"infinity", b"-infinity", b"0044-03-15 BC", b"10000-01-01", b"01/02/2024"):
        assert masked(odd, 1082, "keep_first", 4) is None
    for day in (2**31 - 1, -(2**31), 2921940, -730120):
        assert masked(struct.pack(">i", day), 1082, "keep_first", 4, fmt=1) is None


def test_plans_for_no_such_column_are_refused() -> None:
    for bad in [(99, 0, 0, False, b"", b""), (m.TOKEN, 0, 0, False, b"", b"short"), (m.INT_TEXT, 3, 0, False, b"", bytes(16))]:
        with pytest.raises(ValueError):
            m.MaskPlan([bad])

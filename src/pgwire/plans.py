"""From a row description and the policy's wishes to a compiled mask plan.

Here stands which action fits which type in which format. An action that has no sound result for a type becomes NULL;
a fixed text that the type can't have is refused, because the policy's author must hear of it. docs/masking.md has the
same table for readers.

Never add here: a path on which a column with a wish gets no mask.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import math
import struct
import uuid
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final

from pgwire.hot import masking as m
from pgwire.ports import Column, MaskRule, Refused

__all__ = ["ACTIONS", "PlanRefused", "compile_plan"]

ACTIONS: Final = frozenset({"null", "fixed", "keep_first", "keep_last", "email", "pseudonym"})

_Spec = tuple[int, int, int, bool, bytes, bytes]

_BOOL, _BYTEA, _NAME, _INT8, _INT2, _INT4, _TEXT, _JSON = 16, 17, 19, 20, 21, 23, 25, 114
_FLOAT4, _FLOAT8, _UNKNOWN, _BPCHAR, _VARCHAR = 700, 701, 705, 1042, 1043
_DATE, _TIMESTAMP, _TIMESTAMPTZ, _NUMERIC, _UUID, _JSONB = 1082, 1114, 1184, 1700, 2950, 3802
_INTS: Final = {_INT2: 2, _INT4: 4, _INT8: 8}
_FLOATS: Final = {_FLOAT4: 4, _FLOAT8: 8}
_TEXTS: Final = frozenset({_TEXT, _VARCHAR, _BPCHAR, _NAME, _UNKNOWN})
_FIRST_OWN_OID: Final = 16384  # PostgreSQL's FirstNormalObjectId: types that somebody made, such as citext
_NULL: Final[_Spec] = (m.NULL, 0, 0, False, b"", b"")
_PASS: Final[_Spec] = (m.PASS, 0, 0, False, b"", b"")
_DAY0: Final = datetime.date(2000, 1, 1)


class PlanRefused(Refused):
    """A wish that can't be made a plan (SQLSTATE 42501): no row of the statement may pass."""

    def __init__(self, column: Column, rule: MaskRule, why: str, hint: str) -> None:
        super().__init__(
            "42501", f'column "{column.name}" can\'t be masked: {why}', hint=hint, detail={"label": rule.label, "action": rule.action}
        )


def compile_plan(columns: tuple[Column, ...], rules: tuple[MaskRule | None, ...], key: bytes) -> m.MaskPlan | None:
    """The plan that masks ``columns`` by ``rules``, one wish or None each; None when no column has a wish.

    ``key`` (at least 16 bytes, 32 wanted) is the secret behind the pseudonyms. Raises :class:`PlanRefused` for a wish
    without a sound result and ``ValueError`` when ``rules`` are not one per column or ``key`` is too short.
    """
    if len(rules) != len(columns):
        raise ValueError(f"{len(rules)} mask wishes for {len(columns)} columns")
    if all(rule is None for rule in rules):
        return None
    return m.MaskPlan([_PASS if rule is None else _spec(column, rule, key) for column, rule in zip(columns, rules, strict=True)])


def _spec(column: Column, rule: MaskRule, key: bytes) -> _Spec:
    if rule.action not in ACTIONS:
        raise PlanRefused(column, rule, f'there is no mask action "{rule.action}"', f"Mask actions are {', '.join(sorted(ACTIONS))}.")
    if column.format not in (0, 1):
        raise PlanRefused(column, rule, f"format code {column.format} is not known", "Ask for text (0) or binary (1).")
    if rule.action == "null":
        return _NULL
    if rule.action == "fixed":
        return _fixed(column, rule)
    if rule.action == "email":
        return (m.EMAIL, 0, _limit(column), _blanks(column), b"", b"") if _is_text(column) else _NULL
    if rule.action == "pseudonym":
        return _pseudonym(column, rule, key)
    return _keep(column, rule)


def _is_text(column: Column) -> bool:
    return column.type_oid in _TEXTS or (column.type_oid >= _FIRST_OWN_OID and column.format == 0)


def _blanks(column: Column) -> bool:
    return column.type_oid == _BPCHAR


def _limit(column: Column) -> int:
    # Characters that the column may have, 0 for any; name has 63 bytes, and all that we write into it is shorter.
    if column.type_oid in (_VARCHAR, _BPCHAR) and column.type_modifier > 4:
        return column.type_modifier - 4
    return 63 if column.type_oid == _NAME else 0


def _keep(column: Column, rule: MaskRule) -> _Spec:
    kept = rule.argument
    if not isinstance(kept, int) or isinstance(kept, bool) or not 0 <= kept <= 0xFFFF:
        raise PlanRefused(column, rule, f"{rule.action} needs a number of characters", "Give an argument from 0 to 65535.")
    if _is_text(column):
        return (m.KEEP_FIRST if rule.action == "keep_first" else m.KEEP_LAST, kept, _limit(column), _blanks(column), b"", b"")
    if rule.action == "keep_first" and kept >= 4:
        years = {
            (_DATE, 0): m.YEAR_DATE_TEXT,
            (_DATE, 1): m.YEAR_DATE_BINARY,
            (_TIMESTAMP, 0): m.YEAR_TIME_TEXT,
            (_TIMESTAMP, 1): m.YEAR_TIME_BINARY,
            (_TIMESTAMPTZ, 0): m.YEAR_ZONED_TEXT,
            (_TIMESTAMPTZ, 1): m.YEAR_TIME_BINARY,
        }
        op = years.get((column.type_oid, column.format))
        if op is not None:
            return (op, 0, 0, False, b"", b"")
    return _NULL


def _pseudonym(column: Column, rule: MaskRule, key: bytes) -> _Spec:
    if len(key) < 16:
        raise ValueError("the pseudonym key has fewer than 16 bytes")
    binary = column.format == 1
    oid = column.type_oid

    def derived(domain: str) -> bytes:
        # One key per label and kind of value: equal values of different labels get unrelated pseudonyms.
        text = b"pgleash pseudonym 1\0" + domain.encode() + b"\0" + rule.label.encode()
        return hmac.new(key, text, hashlib.sha256).digest()[:16]

    if _is_text(column):
        return (m.TOKEN, 0, _limit(column), _blanks(column), b"", derived("text"))
    if oid in _INTS:
        return (m.INT_BINARY if binary else m.INT_TEXT, _INTS[oid], 0, False, b"", derived("int"))
    if oid in _FLOATS:
        return (m.FLOAT_BINARY if binary else m.FLOAT_TEXT, _FLOATS[oid], 0, False, b"", derived("float"))
    if oid == _NUMERIC:
        precision, scale = _numeric_shape(column)
        whole = 15 if precision is None else min(precision - scale, 15)
        if whole < 1 or scale < 0:
            return _NULL
        return (m.NUMERIC_BINARY if binary else m.NUMERIC_TEXT, whole, scale, False, b"", derived("numeric"))
    if oid == _UUID:
        return (m.UUID_BINARY if binary else m.UUID_TEXT, 0, 0, False, b"", derived("uuid"))
    if oid == _JSON or (oid == _JSONB and not binary):
        return (m.JSON_TOKEN, 0, 0, False, b"", derived("json"))
    if oid == _JSONB:
        return (m.JSONB_TOKEN, 0, 0, False, b"", derived("json"))
    return _NULL


def _numeric_shape(column: Column) -> tuple[int | None, int]:
    # (precision or None, scale) of numeric's type modifier; the scale has 11 bits with sign since PostgreSQL 15
    if column.type_modifier < 4:
        return None, 0
    packed = column.type_modifier - 4
    return (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024


def _fixed(column: Column, rule: MaskRule) -> _Spec:
    text = "***" if rule.argument is None else str(rule.argument)
    if "\0" in text:
        raise PlanRefused(column, rule, "a fixed text can't have a NUL character", "Take it out of the mask's argument.")
    if _is_text(column):
        limit = _limit(column)
        if limit:
            text = text[:limit]
        raw = text.encode()
        while column.type_oid == _NAME and len(raw) > 63:
            text = text[:-1]
            raw = text.encode()
        return (m.FIXED, 0, 0, False, raw, b"")
    encode = _FIXED.get(column.type_oid)
    if encode is None or (rule.argument is None and column.type_oid not in (_JSON, _JSONB, _BYTEA)):
        return _NULL
    try:
        pair = encode(text, column)
    except (ValueError, ArithmeticError, struct.error):
        hint = "Change the mask's argument to a value of the column's type, or the action to null."
        raise PlanRefused(column, rule, f"the mask's fixed text is no value of the column's type (OID {column.type_oid})", hint) from None
    return (m.FIXED, 0, 0, False, pair[column.format], b"")


def _fixed_int(text: str, column: Column) -> tuple[bytes, bytes]:
    value = int(text, 10)
    return str(value).encode(), struct.pack({_INT2: ">h", _INT4: ">i", _INT8: ">q"}[column.type_oid], value)


def _fixed_float(text: str, column: Column) -> tuple[bytes, bytes]:
    value = float(text)
    code = ">f" if column.type_oid == _FLOAT4 else ">d"
    raw = struct.pack(code, value)  # OverflowError, an ArithmeticError, when float4 can't have it
    if math.isinf(value) or math.isnan(value):
        return {math.inf: b"Infinity", -math.inf: b"-Infinity"}.get(value, b"NaN"), raw
    return repr(value).encode(), raw


def _fixed_numeric(text: str, column: Column) -> tuple[bytes, bytes]:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not value.is_finite() or abs(value.adjusted()) > 900 or len(value.as_tuple().digits) > 900:
        raise ValueError(text)
    precision, scale = _numeric_shape(column)
    if precision is not None:
        places = -int(value.as_tuple().exponent)
        if places > max(scale, 0) and value != round(value, max(scale, 0)):
            raise ValueError(text)
        if value and (value.adjusted() >= precision - scale or (scale < 0 and value % 10**-scale)):
            raise ValueError(text)
    sign, digits, exponent = value.as_tuple()
    plain = "".join(map(str, digits))
    places = max(-int(exponent), 0)
    plain += "0" * max(int(exponent), 0)
    plain = plain.rjust(places + 1, "0")
    whole, part = (plain[:-places], plain[-places:]) if places else (plain, "")
    whole = whole.lstrip("0") or "0"
    if precision is not None and scale >= 0:
        part = part[:scale].ljust(scale, "0")
    negative = bool(sign) and bool(value)
    shown = ("-" if negative else "") + whole + ("." + part if part else "")
    left = whole.rjust(-(-len(whole) // 4) * 4, "0")
    both = left + part.ljust(-(-len(part) // 4) * 4, "0")
    groups = [int(both[i : i + 4]) for i in range(0, len(both), 4)]
    weight = len(left) // 4 - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    if not groups:
        weight = 0
    return shown.encode(), struct.pack(f">HhHH{len(groups)}H", len(groups), weight, 0x4000 if negative else 0, len(part), *groups)


def _fixed_bool(text: str, _: Column) -> tuple[bytes, bytes]:
    word = text.strip().lower()
    if word in ("t", "true", "yes", "on", "1"):
        return b"t", b"\x01"
    if word in ("f", "false", "no", "off", "0"):
        return b"f", b"\x00"
    raise ValueError(text)


def _fixed_date(text: str, _: Column) -> tuple[bytes, bytes]:
    day = datetime.date.fromisoformat(text)
    return day.isoformat().encode(), struct.pack(">i", (day - _DAY0).days)


def _fixed_time(text: str, column: Column) -> tuple[bytes, bytes]:
    moment = datetime.datetime.fromisoformat(text)
    zoned = column.type_oid == _TIMESTAMPTZ
    if moment.tzinfo is not None:
        if not zoned:
            raise ValueError(text)
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    micros = (moment - datetime.datetime(2000, 1, 1)) // datetime.timedelta(microseconds=1)
    return moment.isoformat(" ").encode() + (b"+00" if zoned else b""), struct.pack(">q", micros)


def _fixed_uuid(text: str, _: Column) -> tuple[bytes, bytes]:
    value = uuid.UUID(text)
    return str(value).encode(), value.bytes


def _fixed_json(text: str, column: Column) -> tuple[bytes, bytes]:
    raw = json.dumps(text, ensure_ascii=False).encode()
    return raw, b"\x01" + raw if column.type_oid == _JSONB else raw


def _fixed_bytea(text: str, _: Column) -> tuple[bytes, bytes]:
    raw = text.encode()
    return b"\\x" + raw.hex().encode(), raw


_FIXED: Final[dict[int, Callable[[str, Column], tuple[bytes, bytes]]]] = {
    **dict.fromkeys(_INTS, _fixed_int),
    **dict.fromkeys(_FLOATS, _fixed_float),
    _NUMERIC: _fixed_numeric,
    _BOOL: _fixed_bool,
    _DATE: _fixed_date,
    _TIMESTAMP: _fixed_time,
    _TIMESTAMPTZ: _fixed_time,
    _UUID: _fixed_uuid,
    _JSON: _fixed_json,
    _JSONB: _fixed_json,
    _BYTEA: _fixed_bytea,
}

"""Values bound to parameters, in text and binary format, against a rule's conditions. What can't be decoded is an error.

Sources: PostgreSQL, "Bind" and the types' send functions (numeric_send, timestamp_send, date_send, uuid_send, jsonb_send).
Pure. Never add here: a guess. A value whose type is not certain is not decoded.
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from control.policy.rules import Bound, matches

__all__ = ["BoundValues", "Undecodable"]

Value = str | Decimal | datetime

_BOOL, _TEXTS = 16, frozenset({19, 25, 114, 142, 705, 1042, 1043, 3614})
_INTEGERS = {21: 2, 23: 4, 20: 8, 26: 4}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?")
_TRUE, _FALSE = ("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"), ("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0")
_Y2K = datetime(2000, 1, 1)


class Undecodable(ValueError):
    """The value can't be read, so nothing can be said of it."""


@dataclass(frozen=True, slots=True)
class BoundValues:
    """The values of one Bind: raw bytes (None for NULL), a format code for each (1: binary), and type OIDs (0: not known)."""

    values: tuple[bytes | None, ...]
    formats: tuple[int, ...] = ()
    types: tuple[int, ...] = ()

    def has(self, position: int) -> bool:
        """Whether there is a parameter ``position`` (from 1)."""
        return position <= len(self.values)

    def satisfy(self, condition: Bound) -> bool:
        """Whether the value meets the condition; as in SQL, NULL meets only ``null``. Raises ``Undecodable``."""
        index = condition.position - 1
        raw = self.values[index]
        if condition.operator == "null":
            return (raw is None) == bool(condition.operand)
        if raw is None:
            return False
        oid = self.types[index] if index < len(self.types) else 0
        binary = index < len(self.formats) and self.formats[index] == 1
        return _compare(_binary(raw, oid) if binary else _text(raw), oid, condition.operator, condition.operand)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Undecodable("it is not UTF-8 text") from None


def _binary(raw: bytes, oid: int) -> Value:
    try:
        return _decoded(raw, oid)
    except (struct.error, OverflowError, UnicodeDecodeError, IndexError, ValueError) as error:
        raise Undecodable(str(error) if isinstance(error, Undecodable) else f"{len(raw)} bytes are no value of type {oid}") from None


def _decoded(raw: bytes, oid: int) -> Value:
    if oid in _INTEGERS:
        if len(raw) != _INTEGERS[oid]:
            raise ValueError
        return Decimal(int.from_bytes(raw, "big", signed=oid != 26))
    if oid == _BOOL:
        return ("false", "true")[struct.unpack("!?", raw)[0]]
    if oid in _TEXTS:
        return raw.decode()
    if oid in (700, 701):
        value = Decimal(struct.unpack("!f" if oid == 700 else "!d", raw)[0])
        if not value.is_finite():
            raise Undecodable("it is not a finite number")
        return value
    if oid == 1700:
        return _numeric(raw)
    if oid in (1114, 1184):
        at = _Y2K + timedelta(microseconds=struct.unpack("!q", raw)[0])
        return at if oid == 1114 else at.replace(tzinfo=UTC)
    if oid == 1082:
        return _Y2K + timedelta(days=struct.unpack("!i", raw)[0])
    if oid == 2950:
        return str(uuid.UUID(bytes=raw))
    if oid == 3802 and raw[0] == 1:
        return raw[1:].decode()
    raise Undecodable(f"values of type {oid} in binary format are not read" if oid else "its type is not known, and it is binary")


def _numeric(raw: bytes) -> Decimal:
    """numeric_send: number of base-10000 digits, weight of the first, sign, display scale, digits."""
    count, weight, sign, _ = struct.unpack_from("!HhHH", raw)
    if sign not in (0x0000, 0x4000) or len(raw) != 8 + 2 * count:
        raise Undecodable("it is not a finite number")
    number = 0
    for digit in struct.unpack_from(f"!{count}H", raw, 8):
        if digit > 9999:
            raise ValueError
        number = number * 10000 + digit
    with localcontext() as context:
        context.prec = 4 * count + 8
        return Decimal(-number if sign else number).scaleb(4 * (weight - count + 1))


def _compare(value: Value, oid: int, operator: str, operand: Any) -> bool:
    if operator in ("in", "not_in"):
        return any(_compare(value, oid, "eq", each) for each in operand) == (operator == "in")
    if operator == "matches":
        if not isinstance(value, str):
            value = str(value)
        return matches((operand,), value)
    one, other = _alike(value, oid, operand)
    if operator in ("eq", "ne"):
        return bool(one == other) == (operator == "eq")
    if operator in ("lt", "gte"):
        return bool(one < other) == (operator == "lt")
    return bool(one > other) == (operator == "gt")


def _alike(value: Value, oid: int, operand: str | Decimal) -> tuple[Any, Any]:
    """Value and operand as things that compare: numbers, moments, or texts."""
    if isinstance(operand, Decimal):
        return (value if isinstance(value, Decimal) else _number(value)), operand
    moment = _moment(operand)
    if moment is not None or isinstance(value, datetime):
        if moment is None:
            raise Undecodable(f"it is a time, and {operand!r} is none")
        at = value if isinstance(value, datetime) else _moment(str(value).strip())
        if at is None or (at.tzinfo is None and moment.tzinfo is not None):
            raise Undecodable("it is no time in ISO form" if at is None else "its time has no zone")
        return at, moment if (at.tzinfo is None) == (moment.tzinfo is None) else moment.replace(tzinfo=UTC)
    if operand in ("true", "false") and oid in (0, _BOOL) and isinstance(value, str):
        plain = value.strip().lower()
        value = "true" if plain in _TRUE else "false" if plain in _FALSE else value
    if isinstance(value, Decimal):
        number = _NUMBER.fullmatch(operand)
        if number is None:
            raise Undecodable(f"it is a number, and {operand!r} is none")
        return value, Decimal(operand)
    return value, operand


def _number(value: str | datetime) -> Decimal:
    plain = str(value).strip()
    if isinstance(value, datetime) or _NUMBER.fullmatch(plain) is None:
        raise Undecodable("it is no plain number")
    return Decimal(plain)


def _moment(text: str) -> datetime | None:
    if len(text) < 10 or text[4:5] != "-":
        return None
    try:
        if len(text) == 10:
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day)
        return datetime.fromisoformat(text)
    except ValueError:
        return None

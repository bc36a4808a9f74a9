"""What masking must give, written a second time in plain Python: slow, simple, and without a look at the C.

Never add here: an import from pgwire.hot, or anything shared with pgwire.plans.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import math
import re
import struct
import uuid
from collections.abc import Sequence
from decimal import Decimal

from pgwire.ports import Column, MaskRule

_MASK64 = (1 << 64) - 1
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_EPOCH = datetime.datetime(2000, 1, 1)


def siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4-128 as its authors describe it; the first 8 bytes of output are the low half."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(times: int) -> None:
        def rot(x: int, b: int) -> int:
            return (x << b | x >> (64 - b)) & _MASK64

        for _ in range(times):
            v[0] = (v[0] + v[1]) & _MASK64
            v[2] = (v[2] + v[3]) & _MASK64
            v[1] = rot(v[1], 13) ^ v[0]
            v[3] = rot(v[3], 16) ^ v[2]
            v[0] = rot(v[0], 32)
            v[2] = (v[2] + v[1]) & _MASK64
            v[0] = (v[0] + v[3]) & _MASK64
            v[1] = rot(v[1], 17) ^ v[2]
            v[3] = rot(v[3], 21) ^ v[0]
            v[2] = rot(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        turn(2)
        v[0] ^= word
    v[2] ^= 0xEE
    turn(4)
    low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    turn(4)
    return low | (v[0] ^ v[1] ^ v[2] ^ v[3]) << 64


def _hash(secret: bytes, domain: str, label: str, data: bytes) -> int:
    key = hmac.new(secret, b"pgleash pseudonym 1\0" + domain.encode() + b"\0" + label.encode(), hashlib.sha256).digest()
    return siphash(key[:16], data)


def token(secret: bytes, domain: str, label: str, data: bytes) -> str:
    """The text pseudonym of ``data``: eight 5-bit letters of each 64-bit half, lowest bits first."""
    h = _hash(secret, domain, label, data)
    letters = [_ALPHABET[(half >> (5 * i)) & 31] for half in (h & _MASK64, h >> 64) for i in range(8)]
    return "p_" + "".join(letters)


def keep(text: str, n: int, last: bool) -> str:
    """The first or last ``n`` characters, the rest stars; digits with separators keep their separators."""
    if re.fullmatch(r"[0-9 ./()+-]*[0-9][0-9 ./()+-]*", text):
        places = [i for i, c in enumerate(text) if c in "0123456789"]
    else:
        places = list(range(len(text)))
    shown = set() if len(places) <= n or n == 0 else set(places[-n:] if last else places[:n])
    return "".join("*" if i in places and i not in shown else c for i, c in enumerate(text))


def email(text: str) -> str:
    """a***@e***.com, or *** for what isn't an address."""
    match = re.fullmatch(r"([^@\x00-\x20\x7f]+)@([^@\x00-\x20\x7f.]+)((?:\.[^@\x00-\x20\x7f]*)?)", text)
    if match is None or text.endswith("."):
        return "***"
    local, head, tail = match.groups()
    made = (local[0] if len(local) > 1 else "") + "***@" + (head[0] if len(head) > 1 else "") + "***"
    if tail:
        top = tail.rsplit(".", 1)[1]
        made += "." + (top if re.fullmatch("[A-Za-z]{2,6}", top) else "***")
    return made


def _text(raw: bytes, column: Column, rule: MaskRule, secret: bytes) -> bytes:
    limit = None
    if column.type_oid in (1042, 1043) and column.type_modifier > 4:
        limit = column.type_modifier - 4
    if rule.action == "fixed":
        return str("***" if rule.argument is None else rule.argument)[:limit].encode()
    blanks = b""
    if column.type_oid == 1042:
        blanks = raw[len(raw.rstrip(b" ")) :]
        raw = raw.rstrip(b" ")
    if rule.action == "pseudonym":
        return token(secret, "text", rule.label, raw)[:limit].encode()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return b"***"[:limit] + (blanks if rule.action != "email" else b"")
    if rule.action == "email":
        return email(text)[:limit].encode()
    assert isinstance(rule.argument, int)
    return keep(text, rule.argument, rule.action == "keep_last").encode() + blanks


def _numeric_key(value: Decimal) -> bytes:
    if value.is_nan():
        return b"N"
    if value.is_infinite():
        return b"I-" if value < 0 else b"I+"
    if not value:
        return b""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    number = int("".join(map(str, digits))) * 10 ** (exponent % 4)
    weight = exponent // 4
    while number % 10000 == 0:
        number //= 10000
        weight += 1
    groups = []
    while number:
        number, low = divmod(number, 10000)
        groups.append(low)
    return b"%c" % (b"-" if sign else b"+") + struct.pack(f">i{len(groups)}H", weight + len(groups) - 1, *reversed(groups))


def numeric_binary(value: Decimal, scale: int) -> bytes:
    """PostgreSQL's binary form of a finite number shown with ``scale`` digits."""
    key = _numeric_key(value)
    if not key:
        return struct.pack(">HhHH", 0, 0, 0, scale)
    return struct.pack(">HhHH", (len(key) - 5) // 2, struct.unpack(">i", key[1:5])[0], 0 if key[:1] == b"+" else 0x4000, scale) + key[5:]


def numeric_value(raw: bytes) -> Decimal:
    """The number behind PostgreSQL's binary form."""
    count, weight, sign, _ = struct.unpack(">HhHH", raw[:8])
    if sign not in (0, 0x4000):
        return Decimal({0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}[sign])
    value = Decimal(0)
    for i, group in enumerate(struct.unpack(f">{count}H", raw[8:])):
        value += Decimal(group).scaleb(4 * (weight - i))
    return -value if sign else value


def _pseudonym(raw: bytes, column: Column, rule: MaskRule, secret: bytes) -> bytes | None:
    binary, oid, label = column.format == 1, column.type_oid, rule.label
    if oid in (20, 21, 23):
        code = {21: ">h", 23: ">i", 20: ">q"}[oid]
        value = struct.unpack(code, raw)[0] if binary else int(raw)
        made = _hash(secret, "int", label, struct.pack("<q", value)) & {21: 2**15 - 1, 23: 2**31 - 1, 20: 2**53 - 1}[oid]
        return struct.pack(code, made) if binary else b"%d" % made
    if oid in (700, 701):
        code = ">f" if oid == 700 else ">d"
        number = struct.unpack(code, raw)[0] if binary else float(raw)
        if oid == 700 and not binary:
            number = struct.unpack(">f", struct.pack(">f", number))[0]
        key = struct.pack("<Q", 0x7FF8 << 48) if math.isnan(number) else struct.pack("<d", number + 0.0)
        made = (_hash(secret, "float", label, key) & _MASK64) % (10**6 if oid == 700 else 10**15)
        return struct.pack(code, made) if binary else b"%d" % made
    if oid == 1700:
        whole, scale = 15, 0
        if column.type_modifier >= 4:
            precision, scale = (column.type_modifier - 4) >> 16, (column.type_modifier - 4) & 0x7FF
            if scale > 1023 or precision <= scale:
                return None
            whole = min(15, precision - scale)
        number = numeric_value(raw) if binary else Decimal(raw.decode())
        made = (_hash(secret, "numeric", label, _numeric_key(number)) & _MASK64) % 10**whole
        return numeric_binary(Decimal(made), scale) if binary else b"%d" % made + (b"." + b"0" * scale if scale else b"")
    if oid == 2950:
        value = uuid.UUID(bytes=raw) if binary else uuid.UUID(raw.decode())
        made = bytearray(_hash(secret, "uuid", label, value.bytes).to_bytes(16, "little"))
        made[6] = made[6] & 15 | 0x80
        made[8] = made[8] & 63 | 0x80
        return bytes(made) if binary else str(uuid.UUID(bytes=bytes(made))).encode()
    if oid in (114, 3802):
        start = b"\1" if oid == 3802 and binary else b""
        return start + json.dumps(token(secret, "json", label, raw[len(start) :])).encode()
    return None


def _year(raw: bytes, column: Column) -> bytes | None:
    oid = column.type_oid
    try:
        if column.format == 1:
            unit = (
                datetime.timedelta(days=struct.unpack(">i", raw)[0])
                if oid == 1082
                else datetime.timedelta(microseconds=struct.unpack(">q", raw)[0])
            )
            moment = _EPOCH + unit
        else:
            moment = datetime.datetime.fromisoformat(raw.decode())
            if moment.tzinfo is not None:
                moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    start = datetime.datetime(moment.year, 1, 1)
    if column.format == 1:
        days = (start - _EPOCH).days
        return struct.pack(">i", days) if oid == 1082 else struct.pack(">q", days * 86_400_000_000)
    return f"{start.year:04}-01-01{'' if oid == 1082 else ' 00:00:00'}{'+00' if oid == 1184 else ''}".encode()


def mask_cell(raw: bytes | None, column: Column, rule: MaskRule | None, secret: bytes) -> bytes | None:
    """What the client must get for one well-formed cell; None is NULL. Fixed texts of text-like types only."""
    if raw is None or rule is None:
        return raw
    if column.type_oid in (25, 1043, 1042, 19, 705) or (column.type_oid >= 16384 and column.format == 0):
        return None if rule.action == "null" else _text(raw, column, rule, secret)
    if rule.action == "pseudonym":
        return _pseudonym(raw, column, rule, secret)
    if rule.action == "keep_first" and isinstance(rule.argument, int) and rule.argument >= 4 and column.type_oid in (1082, 1114, 1184):
        return _year(raw, column)
    return None


def row(cells: Sequence[bytes | None]) -> bytes:
    """A DataRow message."""
    body = struct.pack(">H", len(cells)) + b"".join(struct.pack(">i", -1) if c is None else struct.pack(">i", len(c)) + c for c in cells)
    return b"D" + struct.pack(">I", len(body) + 4) + body


def mask_row(cells: Sequence[bytes | None], columns: Sequence[Column], rules: Sequence[MaskRule | None], secret: bytes) -> bytes:
    """The DataRow message that the client must get."""
    return row([mask_cell(c, column, rule, secret) for c, column, rule in zip(cells, columns, rules, strict=True)])

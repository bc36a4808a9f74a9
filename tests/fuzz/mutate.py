"""Sessions made from the corpus, and what can be done to them: whole messages moved about, and single bytes spoiled.

Never add here: I/O, or a judgement.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from kit.sessions import BAD, CASES, DONE, FAIL, FLUSH, GOOD, LEAKS
from kit.wire import bind, close, describe, execute, message, parse, query, sync

__all__ = ["frames", "session", "shuffled", "spoiled", "startup"]

_STARS = (FLUSH, sync(), DONE, FAIL, GOOD, BAD, message(b"X"), query(""), query("BEGIN"), query("COMMIT"), query("ROLLBACK"))
_LENGTHS = (0, 1, 3, 4, 5, 6, 8, 100, 10_000, 10_001, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFB, 0xFFFFFFFF)
_BYTES = (
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x80" * 8,
    b"'",
    b'"',
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"n" * 70,
)
_NAMES = ("", "a", "s", "p", "c", "n" * 63, "n" * 64, "é" * 32, "x" * 5000)
_TEXTS = (
    "SELECT 1",
    "SELECT 1/0",
    "SELECT generate_series(1, 4)",
    "",
    ";",
    "x",
    "SELECT 1; SELECT 2",
    "SELECT $1::int + 1",
    "SHOW search_path",
    "INSERT INTO lines VALUES (1) RETURNING a",
    "TABLE lines",
    "COPY lines FROM STDIN",
    "COPY lines TO STDOUT",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "ROLLBACK TO a",
    "RELEASE a",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 4)",
    "FETCH 1 FROM c",
    "CLOSE c",
    "CLOSE ALL",
    "FETCH 2 FROM p",
    "MOVE 1 IN p",
    "PREPARE s AS SELECT 7",
    "EXECUTE s",
    "EXECUTE a",
    "DEALLOCATE s",
    "DEALLOCATE ALL",
    "SET work_mem = '4MB'",
    "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 4)",
    "DO $$ BEGIN END $$",
    "EXPLAIN (COSTS off) SELECT 1",
    "LISTEN x",
)
_MASKED = (
    "SELECT email FROM customers LIMIT 3",
    "TABLE customers",
    "SELECT ssn || phone FROM customers",
    "SELECT 1",
    "SELECT notes, card FROM customers",
    "EXECUTE s",
    "EXECUTE a",
    "PREPARE s AS SELECT email FROM customers",
    "PREPARE s AS SELECT 1",
    "DEALLOCATE s",
    "FETCH 3 FROM c",
    "FETCH 3 FROM p",
    "DECLARE c CURSOR FOR SELECT email FROM customers",
    "DECLARE c CURSOR WITH HOLD FOR SELECT id FROM customers",
    "BEGIN",
    "COMMIT",
    "CLOSE c",
    "SELECT 1 AS email; SELECT email FROM customers; SELECT 1",
    "COPY customers TO STDOUT",
    "SELECT lower(email) AS e FROM customers LIMIT 2",
    "UPDATE customers SET email = email WHERE id < 3 RETURNING email",
    "SELECT c FROM customers c LIMIT 2",
    "SELECT to_jsonb(c) FROM customers c LIMIT 2",
    "SET application_name = 'x'; SELECT email || '' FROM customers; SELECT 2",
    "COPY orders FROM STDIN",
    "SELECT email::int FROM customers",
    "WITH w AS (SELECT email e FROM customers) SELECT e FROM w LIMIT 2",
    "ROLLBACK",
    "SAVEPOINT a",
    "ROLLBACK TO a",
    "SELECT $1::text, email FROM customers",
)


def frames(data: bytes) -> list[bytes]:
    """The messages that ``data`` is made of."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("!I", data, at + 1)
        found.append(data[at : at + 1 + length])
        at += 1 + length
    return found


def _one(rng: random.Random, texts: Sequence[str]) -> bytes:
    name, other = rng.choice(_NAMES[:5]), rng.choice(_NAMES[:5])
    if rng.random() < 0.05:
        name = rng.choice(_NAMES)
    kind = rng.randrange(10)
    if kind < 3:
        return query(rng.choice(texts))
    if kind < 5:
        return parse(rng.choice(texts), name)
    if kind == 5:
        return bind([b"5"] if rng.random() < 0.3 else (), statement=name, portal=other, results=rng.choice(((), (0,), (1,))))
    if kind == 6:
        return execute(name, rng.choice((0, 0, 1, 2)))
    if kind == 7:
        return describe(rng.choice("SP"), name)
    if kind == 8:
        return close(rng.choice("SP"), name)
    return rng.choice((sync(), sync(), FLUSH, *_STARS[:5]))


def session(rng: random.Random, masked: bool) -> list[bytes]:
    """Messages of a session that the corpus has, or of one made up from the same words."""
    texts = _MASKED if masked else _TEXTS
    if rng.random() < 0.4:
        return frames(b"".join(rng.choice(list((LEAKS if masked else CASES).values()))))
    made: list[bytes] = []
    while len(made) < 3 or rng.random() < 0.85:
        if rng.random() < 0.35:
            name = rng.choice(_NAMES[:3])
            made += [
                parse(rng.choice(texts), name),
                bind(statement=name, results=rng.choice(((), (1,)))),
                execute("", rng.choice((0, 0, 2))),
            ]
            if rng.random() < 0.7:
                made.append(sync())
        else:
            made.append(_one(rng, texts))
    return made


def shuffled(rng: random.Random, made: list[bytes], masked: bool) -> list[bytes]:
    """Whole messages taken away, doubled, moved, put in: every message is one."""
    made = list(made)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        what = rng.randrange(5)
        if what == 0 and made:
            del made[at % len(made)]
        elif what == 1 and made:
            made.insert(at, rng.choice(made))
        elif what == 2 and made:
            made.insert(at % len(made), made.pop(rng.randrange(len(made))))
        elif what == 3:
            made.insert(at, rng.choice(_STARS))
        else:
            made[at:at] = session(rng, masked)[: rng.randrange(1, 6)]
    return made


def _length(rng: random.Random, data: bytes) -> bytes:
    (length,) = struct.unpack_from("!I", data, 1)
    value = rng.choice((*_LENGTHS, length - 1, length + 1, length + 5, rng.randrange(1 << 32)))
    return data[:1] + struct.pack("!I", value & 0xFFFFFFFF) + data[5:]


def _refit(data: bytes) -> bytes:
    return data[:1] + struct.pack("!I", len(data) - 1) + data[5:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(5, len(data) + 1)
    return _refit(data[:at] + rng.choice(_BYTES) + data[at:])


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _count(rng: random.Random, data: bytes) -> bytes:
    if len(data) < 8:
        return data
    at = rng.randrange(5, len(data) - 1)
    return data[:at] + struct.pack("!H", rng.choice((0, 1, 2, 255, 32767, 32768, 65535))) + data[at + 2 :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    kept = data[: rng.randrange(1, len(data) + 1)]
    return _refit(kept + b"\0" * max(0, 5 - len(kept))) if rng.random() < 0.5 else kept


def _kind(rng: random.Random, data: bytes) -> bytes:
    return bytes([rng.choice((rng.randrange(256), rng.choice(b"QPBDECHSXFdcfp"))) if data else 0]) + data[1:]


_SPOIL: tuple[Callable[[random.Random, bytes], bytes], ...] = (_length, _insert, _flip, _count, _cut, _kind)


def spoiled(rng: random.Random, made: list[bytes]) -> bytes:
    """The session with one or two messages spoiled."""
    made = list(made)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(made))
        made[at] = rng.choice(_SPOIL)(rng, made[at]) if len(made[at]) > 5 or rng.random() < 0.5 else _length(rng, made[at])
        if len(made[at]) < 5:
            made[at] = made[at].ljust(1, b"Q")
            return b"".join(made[: at + 1]) if rng.random() < 0.3 else b"".join(made)
    return b"".join(made)


def startup(rng: random.Random, user: bytes) -> bytes:
    """A startup packet, or what is none."""
    pairs = [b"user", user, b"database", b"shop"]
    if rng.random() < 0.3:
        pairs += rng.choice(
            ([b"options", b"-c x"], [b"_pq_.x", b"1"], [b"replication", b"true"], [b"client_encoding", b"LATIN1"], [b"user"], [b"", b""])
        )
    code = rng.choice(
        (196608, 196608, 196608, 196610, 196607, 2 << 16, 4 << 16, 80877102, 80877103, 80877104, 80877105, 0, 0xFFFFFFFF, 3 << 16 | 9999)
    )
    body = struct.pack("!I", code) + b"\0".join(pairs) + b"\0" + (b"\0" if rng.random() < 0.9 else b"")
    data = bytearray(struct.pack("!I", len(body) + 4) + body)
    what = rng.randrange(6)
    if what == 0:
        data[:4] = struct.pack("!I", rng.choice((*_LENGTHS, len(data) - 1, len(data) + 1)))
    elif what == 1:
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif what == 2:
        del data[rng.randrange(len(data)) :]
    elif what == 3:
        at = rng.randrange(8, len(data))
        data[at:at] = rng.choice(_BYTES)
        data[:4] = struct.pack("!I", len(data))
    return bytes(data)

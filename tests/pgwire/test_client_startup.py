"""The client's beginning, byte by byte: whole, split at every place, with a stranger's bytes behind; and the PROXY header."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwire import proxy_protocol
from pgwire.cancel import CancelKeys
from pgwire.client_startup import (
    AnswerTls,
    CancelRequested,
    ClientStartup,
    NeedMore,
    NotAnswered,
    PasswordGiven,
    SaslAnswered,
    SaslBegun,
    Started,
    read_boolean,
)
from pgwire.errors import GatewayError, ProtocolViolation

SSL = struct.pack("!ii", 8, 80877103)
GSS = struct.pack("!ii", 8, 80877104)


def startup(*pairs: str, version: int = 196608) -> bytes:
    body = b"".join(text.encode() + b"\0" for text in pairs) + b"\0"
    return struct.pack("!ii", len(body) + 8, version) + body


def machine(tls: bool = False, plaintext: bool = True) -> ClientStartup:
    return ClientStartup(tls_available=tls, plaintext_allowed=plaintext)


def events(pieces: list[bytes], *, ask: str = "password") -> list[object]:
    """Everything that comes out, with the password asked for as soon as the startup message is there."""
    door, seen = machine(), []
    for piece in pieces:
        door.receive(piece)
        while not isinstance(event := door.next_event(), NeedMore):
            seen.append(event)
            if isinstance(event, Started):
                door.ask_password() if ask == "password" else door.ask_sasl(["SCRAM-SHA-256"])
            if isinstance(event, PasswordGiven | SaslAnswered | CancelRequested):
                return [*seen, door.rest]
    return [*seen, door.rest]


def message(body: bytes) -> bytes:
    return b"p" + struct.pack("!i", len(body) + 4) + body


WHOLE = {
    "password": GSS + b"|" + startup("user", "a", "database", "b", "options", "-c x=1", "DateStyle", "ISO") + message(b"secret\0"),
    "sasl": startup("user", "a") + message(b"SCRAM-SHA-256\0" + struct.pack("!i", 3) + b"n,,") + message(b"c=biws"),
    "cancel": struct.pack("!iii", 12 + 32, 80877102, 7) + bytes(range(32)),
}


@pytest.mark.parametrize("kind", sorted(WHOLE))
def test_every_split_gives_the_same(kind: str) -> None:
    # The bar stands for a wait: nothing may come behind a request for encryption before it is answered.
    waits = WHOLE[kind].split(b"|")
    ask = "sasl" if kind == "sasl" else "password"
    expected = events(waits, ask=ask)
    assert len(expected) >= 2
    assert expected == events([part[at : at + 1] for part in waits for at in range(len(part))], ask=ask)
    for index, part in enumerate(waits):
        for cut in range(1, len(part)):
            assert events([*waits[:index], part[:cut], part[cut:], *waits[index + 1 :]], ask=ask) == expected
    assert events([*waits[:-1], waits[-1] + b"stranger"], ask=ask)[-1] == b"stranger"


@given(st.binary(max_size=64))
def test_no_bytes_crash_it(data: bytes) -> None:
    door = machine()
    door.receive(data)
    try:
        for _ in range(3):
            door.next_event()
    except GatewayError:
        pass


@pytest.mark.parametrize("length", [0, 1, 4, 7, 10005, 2**31 - 1, 2**31, 2**32 - 1])
def test_impossible_lengths_end_it_at_once_and_silently(length: int) -> None:
    door = machine()
    door.receive(struct.pack("!I", length))
    with pytest.raises(NotAnswered):
        door.next_event()


def test_a_password_has_sixteen_kilobytes_and_a_sasl_message_one() -> None:
    for ask, most in (("password", 16384), ("sasl", 1024)):
        for extra in (0, 1):
            door = machine()
            door.receive(startup("user", "a"))
            assert isinstance(door.next_event(), Started)
            door.ask_password() if ask == "password" else door.ask_sasl(["SCRAM-SHA-256"])
            door.receive(b"p" + struct.pack("!i", most + 4 + extra + (ask == "password")))
            if extra:
                with pytest.raises(NotAnswered):
                    door.next_event()
            else:
                assert isinstance(door.next_event(), NeedMore)


def test_what_is_behind_a_request_for_encryption_ends_it() -> None:
    for request in (SSL, GSS):
        door = machine(tls=True)
        door.receive(request + b"\0")
        with pytest.raises(ProtocolViolation, match="unencrypted"):
            door.next_event()


def test_tls_is_asked_for_once() -> None:
    door = machine(tls=True, plaintext=False)
    door.receive(SSL)
    assert isinstance(door.next_event(), AnswerTls)
    door.tls_started("")
    door.receive(SSL)
    with pytest.raises(GatewayError) as caught:
        door.next_event()
    assert caught.value.sqlstate == "0A000"


def test_direct_tls_needs_its_alpn() -> None:
    machine(tls=True).tls_started("postgresql", direct=True)
    with pytest.raises(NotAnswered):
        machine(tls=True).tls_started("", direct=True)


def test_the_last_of_two_counts() -> None:
    door = machine()
    door.receive(startup("user", "a", "database", "x", "user", "b", "options", "1", "options", "2", "TimeZone", "UTC", "timezone", "CET"))
    started = door.next_event()
    assert isinstance(started, Started)
    assert (started.user, started.database, started.options) == ("b", "x", "2")
    assert started.settings == (("TimeZone", "UTC"), ("timezone", "CET"))


@pytest.mark.parametrize("value", ["database", "true", "TRUE", "t", "tr", "on", "1", "yes", "Y"])
def test_replication_is_refused_with_a_hint(value: str) -> None:
    door = machine()
    door.receive(startup("user", "a", "replication", value))
    with pytest.raises(GatewayError) as caught:
        door.next_event()
    assert caught.value.sqlstate == "0A000" and caught.value.hint


def test_booleans_are_read_as_postgresql_does() -> None:
    for text in ("f", "fa", "FALSE", "off", "of", "oFf", "0", "n", "no"):
        assert read_boolean(text) is False
    for text in ("", "o", "2", "truex", "tfalse", "00", "on ", "\N{FULLWIDTH DIGIT ONE}", "Database"):
        assert read_boolean(text) is None


def test_a_cancel_request_has_a_key_of_1_to_256_bytes() -> None:
    for size in (1, 4, 32, 256):
        door = machine()
        door.receive(struct.pack("!iii", 12 + size, 80877102, 5) + bytes(size))
        assert door.next_event() == CancelRequested(5, bytes(size))
    for body in (b"", b"\0\0\0", b"\0\0\0\5", bytes(4 + 257)):
        door = machine()
        door.receive(struct.pack("!ii", 8 + len(body), 80877102) + body)
        with pytest.raises(NotAnswered):
            door.next_event()


def test_sasl_messages_that_lie_about_their_length() -> None:
    for body in (b"", b"SCRAM", b"SCRAM\0", b"SCRAM\0\0\0\0", b"SCRAM\0\0\0\0\5abcd", b"SCRAM\0\0\0\0\1ab", b"SCRAM\0\xff\xff\xff\xfe"):
        door = machine()
        door.receive(startup("user", "a"))
        door.next_event()
        door.ask_sasl(["SCRAM-SHA-256"])
        door.receive(message(body))
        with pytest.raises(ProtocolViolation):
            door.next_event()
    door = machine()
    door.receive(startup("user", "a"))
    door.next_event()
    door.ask_sasl(["SCRAM-SHA-256"])
    door.receive(message(b"SCRAM-SHA-256\0\xff\xff\xff\xff"))
    assert door.next_event() == SaslBegun("SCRAM-SHA-256", None)


def test_cancel_keys_match_in_full_or_not_at_all() -> None:
    class Session:
        def cancel(self) -> None: ...

    keys, first, second = CancelKeys(), Session(), Session()
    short, long = keys.issue(7, first), keys.issue(7, second, 32)
    assert (len(short), len(long)) == (4, 32)
    assert keys.find(7, short) is first and keys.find(7, long) is second
    for wrong in (short[:3], short + b"\0", long[:4], long[:31], long + b"\0", b"", bytes(4), bytes(32)):
        assert keys.find(7, wrong) is None
    assert keys.find(8, short) is None
    keys.withdraw(7, first)
    assert keys.find(7, short) is None and keys.find(7, long) is second


# -- the PROXY header ------------------------------------------------------------------------------------------------

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = bytes([10, 1, 2, 3, 127, 0, 0, 1]) + struct.pack("!HH", 4711, 6432)
V6 = bytes(15) + b"\1" + bytes(16) + struct.pack("!HH", 4711, 6432)


def header(command: int, family: int, rest: bytes) -> tuple[bytes, bytes]:
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(rest)), rest


def told(first: bytes, rest: bytes) -> tuple[str, int]:
    assert proxy_protocol.length(first) == len(rest)
    found = proxy_protocol.read(first, rest)
    return found.address, found.port


def test_proxy_headers_are_read() -> None:
    value = b"\xe0\0\3abc" + b"\x04\0\0"
    assert told(*header(1, 0x11, V4)) == ("10.1.2.3", 4711)
    assert told(*header(1, 0x11, V4 + value)) == ("10.1.2.3", 4711)
    assert told(*header(1, 0x21, V6 + value)) == ("::1", 4711)
    assert told(*header(1, 0x00, b"whatever")) == ("", 0)
    assert told(*header(0, 0x11, V4)) == ("", 0)
    assert told(*header(0, 0x00, b"")) == ("", 0)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        header(1, 0x11, V4[:11]),
        header(1, 0x21, V4),
        header(1, 0x11, V4 + b"\xe0\0"),
        header(1, 0x11, V4 + b"\xe0\0\4abc"),
        header(1, 0x12, V4),
        header(1, 0x31, bytes(216)),
        header(2, 0x11, V4),
        (b"PROXY TCP4 10.1.", b""),
        (SIGNATURE + b"\x11\x11\0\0", b""),
        (SIGNATURE + b"\x21\x11" + struct.pack("!H", 4097), bytes(4097)),
        (b"\0\0\0\x08\4\xd2\x16\x2f" + bytes(8), b""),
    ],
)
def test_proxy_headers_that_are_refused(first: bytes, rest: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        proxy_protocol.length(first)
        proxy_protocol.read(first, rest)

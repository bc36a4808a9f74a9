"""Messages that are built or read outside the hot path: startup, login, and the row description.

Source: PostgreSQL, "Message Formats" (protocol 3.0 and 3.2). Readers check every length and raise ``ProtocolViolation``.

Never add here: state, or a socket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from pgwire.errors import ProtocolViolation
from pgwire.ports import Column

__all__ = [
    "CANCEL_REQUEST",
    "GSSENC_REQUEST",
    "PROTOCOL_3_0",
    "PROTOCOL_3_2",
    "SSL_REQUEST",
    "authentication_ok",
    "authentication_sasl",
    "authentication_sasl_continue",
    "authentication_sasl_final",
    "backend_key_data",
    "cancel_request",
    "cleartext_password_request",
    "message",
    "negotiate_protocol_version",
    "password_message",
    "read_negotiation",
    "read_pair",
    "ready_for_query",
    "row_description",
    "sasl_initial_response",
    "sasl_response",
    "setting",
    "startup_message",
    "take",
    "whole",
]

PROTOCOL_3_0 = 3 << 16
PROTOCOL_3_2 = PROTOCOL_3_0 | 2
CANCEL_REQUEST = 80877102
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
_COLUMN = struct.Struct("!IhIhih")
_HEAD = struct.Struct("!cI")


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message: kind byte, length, body."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def startup_message(parameters: Mapping[str, str], version: int = PROTOCOL_3_2) -> bytes:
    """StartupMessage."""
    pairs = b"".join(_string(name) + _string(value) for name, value in parameters.items())
    return (len(pairs) + 9).to_bytes(4, "big") + version.to_bytes(4, "big") + pairs + b"\0"


def cancel_request(pid: int, key: bytes) -> bytes:
    """CancelRequest for a server process and its secret key."""
    return (12 + len(key)).to_bytes(4, "big") + struct.pack("!II", CANCEL_REQUEST, pid) + key


def cleartext_password_request() -> bytes:
    """AuthenticationCleartextPassword."""
    return message(b"R", b"\0\0\0\3")


def authentication_ok() -> bytes:
    """AuthenticationOk."""
    return message(b"R", b"\0\0\0\0")


def authentication_sasl(mechanisms: Sequence[str]) -> bytes:
    """AuthenticationSASL: the mechanisms, the preferred one first."""
    return message(b"R", b"\0\0\0\x0a" + b"".join(_string(name) for name in mechanisms) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    """AuthenticationSASLContinue."""
    return message(b"R", b"\0\0\0\x0b" + data)


def authentication_sasl_final(data: bytes) -> bytes:
    """AuthenticationSASLFinal."""
    return message(b"R", b"\0\0\0\x0c" + data)


def backend_key_data(pid: int, key: bytes) -> bytes:
    """BackendKeyData."""
    return message(b"K", pid.to_bytes(4, "big") + key)


def ready_for_query(status: str) -> bytes:
    """ReadyForQuery with status I, T or E."""
    return message(b"Z", status.encode("ascii"))


def negotiate_protocol_version(version: int, unknown: Sequence[str]) -> bytes:
    """NegotiateProtocolVersion: the version that is spoken from here on and the ``_pq_.`` options not known."""
    return message(b"v", struct.pack("!ii", version, len(unknown)) + b"".join(_string(name) for name in unknown))


def read_negotiation(body: bytes) -> tuple[int, int]:
    """The version of a NegotiateProtocolVersion and how many options are not known. Raises ``ProtocolViolation``."""
    if len(body) < 8:
        raise ProtocolViolation("malformed NegotiateProtocolVersion")
    version, unknown = struct.unpack_from("!Ii", body)
    if unknown < 0 or body.count(b"\0", 8) != unknown or (unknown and body[-1:] != b"\0") or (not unknown and len(body) != 8):
        raise ProtocolViolation("malformed NegotiateProtocolVersion")
    return version, unknown


def password_message(secret: str) -> bytes:
    """PasswordMessage."""
    return message(b"p", _string(secret))


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    """SASLInitialResponse."""
    return message(b"p", _string(mechanism) + len(data).to_bytes(4, "big") + data)


def sasl_response(data: bytes) -> bytes:
    """SASLResponse."""
    return message(b"p", data)


def setting(name: str, value: str) -> tuple[bytes, int]:
    """The messages that set a run-time setting, whatever else is prepared, and how many replies they get."""
    quoted = value.replace("\0", "").replace("'", "''")
    name = ".".join(f'"{part}"' for part in name.split("."))
    parts = (
        message(b"P", b"pgleash told\0" + _string(f"SET {name} = '{quoted}'") + b"\0\0"),
        message(b"B", b"pgleash told\0pgleash told\0\0\0\0\0\0\0"),
        message(b"E", b"pgleash told\0\0\0\0\0"),
        message(b"C", b"Ppgleash told\0"),
        message(b"C", b"Spgleash told\0"),
    )
    return b"".join(parts), len(parts)


def take(buffer: bytearray, limit: int) -> tuple[bytes, bytes] | None:
    """Remove the first message from ``buffer``: (kind, body); None while it is not whole."""
    if len(buffer) < 5:
        return None
    length = int.from_bytes(buffer[1:5], "big")
    if length < 4 or length > limit:
        raise ProtocolViolation("invalid message length")
    if len(buffer) < length + 1:
        return None
    kind, body = bytes(buffer[:1]), bytes(buffer[5 : length + 1])
    del buffer[: length + 1]
    return kind, body


def whole(buffer: bytes, at: int, limit: int) -> tuple[bytes, int] | None:
    """The message at ``at``: (kind, where it ends); its body begins five bytes behind ``at``. None while it is not whole."""
    if len(buffer) < at + 5:
        return None
    kind, length = _HEAD.unpack_from(buffer, at)
    if length < 4 or length > limit:
        raise ProtocolViolation("invalid message length")
    end: int = at + 1 + length
    return (kind, end) if len(buffer) >= end else None


def read_pair(body: bytes) -> tuple[str, str]:
    """Two NUL-terminated strings, as in ParameterStatus."""
    parts = body.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise ProtocolViolation("malformed ParameterStatus")
    return parts[0].decode("utf-8", "replace"), parts[1].decode("utf-8", "replace")


def row_description(body: bytes) -> tuple[Column, ...]:
    """The columns of a RowDescription body. Raises ``ProtocolViolation``."""
    if len(body) < 2:
        raise ProtocolViolation("malformed RowDescription")
    count = int.from_bytes(body[:2], "big")
    columns = []
    at = 2
    for _ in range(count):
        end = body.find(b"\0", at)
        if end < 0 or end + 19 > len(body):
            raise ProtocolViolation("malformed RowDescription")
        name = body[at:end].decode("utf-8", "replace")
        oid, attribute, type_oid, _size, modifier, code = _COLUMN.unpack_from(body, end + 1)
        columns.append(Column(name, oid, attribute, type_oid, modifier, code))
        at = end + 19
    if at != len(body):
        raise ProtocolViolation("malformed RowDescription")
    return tuple(columns)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    if b"\0" in data:
        raise ProtocolViolation("a NUL inside a string")
    return data + b"\0"

"""The agent's side of a connection's beginning, without I/O: bytes in, events out.

Source: PostgreSQL, "Start-up", "SASL Authentication" and "SSL Session Encryption"; what is answered, and what is not answered at
all, follows ProcessStartupPacket in src/backend/tcop/backend_startup.c. Bytes that came before TLS are never used after it
(CVE-2021-23214): a client that sends any is refused.

Never add here: authentication; the password is only handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pgwire import messages
from pgwire.errors import GatewayError, ProtocolViolation

__all__ = [
    "AnswerTls", "CancelRequested", "ClientStartup", "NeedMore", "NotAnswered", "PasswordGiven", "RefuseEncryption", "SaslAnswered",
    "SaslBegun", "Started", "read_boolean",
]  # fmt: skip

_LONGEST_STARTUP = 10000  # behind the length word, as PostgreSQL's MAX_STARTUP_PACKET_LENGTH
_LONGEST_PASSWORD = 16384 + 5  # with its length word: a token of 16 KiB
_LONGEST_SASL = 1024 + 4  # with its length word, as PostgreSQL's PG_MAX_SASL_MESSAGE_LENGTH
_LONGEST_KEY = 256
_NEWEST = messages.PROTOCOL_3_2


class NotAnswered(ProtocolViolation):
    """The connection ends without a word, as PostgreSQL ends it: what came is not a client that would understand one."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Nothing to say before more bytes have come."""


@dataclass(frozen=True, slots=True)
class AnswerTls:
    """Send ``reply``, do the handshake, then call ``tls_started``."""

    reply: bytes = b"S"


@dataclass(frozen=True, slots=True)
class RefuseEncryption:
    """Send ``reply``: this encryption is not offered; the client may go on without."""

    reply: bytes = b"N"


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The connection was only for this: cancel what process ``pid`` with ``key`` runs."""

    pid: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Started:
    """The startup message. ``settings`` are the parameters that name one, in order, ``options`` the parameter of that name.

    ``reply`` is sent first (NegotiateProtocolVersion, or nothing). ``key_length`` is that of a cancel key for this client.
    """

    user: str
    database: str
    options: str
    settings: tuple[tuple[str, str], ...]
    reply: bytes = b""
    key_length: int = 4


@dataclass(frozen=True, slots=True)
class PasswordGiven:
    """The answer to the request for a password."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SaslBegun:
    """SASLInitialResponse. ``data`` None: the client waits for an empty challenge first."""

    mechanism: str
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class SaslAnswered:
    """SASLResponse."""

    data: bytes = field(repr=False)


Event = NeedMore | AnswerTls | RefuseEncryption | CancelRequested | Started | PasswordGiven | SaslBegun | SaslAnswered


class ClientStartup:
    """States: before the startup message; asked for a password, a SASL beginning, a SASL answer. ``rest`` are bytes behind.

    ``tls_available``: SSLRequest is answered with yes. ``plaintext_allowed``: a session without TLS may begin.
    """

    def __init__(self, *, tls_available: bool, plaintext_allowed: bool) -> None:
        self._tls_available = tls_available
        self._plaintext_allowed = plaintext_allowed
        self._buffer = bytearray()
        self._encrypted = False
        self._asked_tls = False
        self._asked_gss = False
        self._awaited = "startup"

    def receive(self, data: bytes) -> None:
        """Bytes from the client."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """What the client sent behind its last message of the startup."""
        return bytes(self._buffer)

    def next_event(self) -> Event:
        """What has come. Raises ``GatewayError``."""
        if self._awaited == "startup":
            return self._startup()
        return self._password() if self._awaited == "password" else self._sasl()

    def tls_started(self, alpn: str, *, direct: bool = False) -> None:
        """The handshake is done; ``direct``: without an SSLRequest. Raises ``NotAnswered`` when ALPN had to be agreed and was not."""
        if direct and alpn != "postgresql":
            raise NotAnswered("direct TLS without the ALPN protocol postgresql")
        self._encrypted = True

    def ask_password(self) -> bytes:
        """The request for the token, which travels as a cleartext password."""
        self._awaited = "password"
        return messages.cleartext_password_request()

    def ask_sasl(self, mechanisms: Sequence[str]) -> bytes:
        """The request to prove the password by one of ``mechanisms``."""
        self._awaited = "sasl beginning"
        return messages.authentication_sasl(mechanisms)

    def challenge(self, data: bytes) -> bytes:
        """A SASL challenge; an answer is awaited."""
        self._awaited = "sasl answer"
        return messages.authentication_sasl_continue(data)

    def welcome(self, statuses: bytes, pid: int, key: bytes) -> bytes:
        """AuthenticationOk, the server's ParameterStatus messages, the cancel key, ReadyForQuery."""
        return messages.authentication_ok() + statuses + messages.backend_key_data(pid, key) + messages.ready_for_query("I")

    def _startup(self) -> Event:
        buffer = self._buffer
        if len(buffer) < 4:
            return NeedMore()
        length = int.from_bytes(buffer[:4], "big")
        if not 8 <= length <= _LONGEST_STARTUP + 4:
            raise NotAnswered("invalid length of startup packet")
        if len(buffer) < length:
            return NeedMore()
        code = int.from_bytes(buffer[4:8], "big")
        body = bytes(buffer[8:length])
        del buffer[:length]
        if code == messages.CANCEL_REQUEST:
            if not 4 < len(body) <= 4 + _LONGEST_KEY:
                raise NotAnswered("invalid length of cancel request packet")
            return CancelRequested(int.from_bytes(body[:4], "big"), body[4:])
        # A second request of either kind is read as a protocol version, which it is not.
        if code == messages.SSL_REQUEST and not self._asked_tls:
            self._asked_tls = True
            return self._encryption(self._tls_available and not self._encrypted)
        if code == messages.GSSENC_REQUEST and not self._asked_gss:
            self._asked_gss = True
            return self._encryption(False)
        return self._start(code, body)

    def _encryption(self, offered: bool) -> AnswerTls | RefuseEncryption:
        if self._buffer:
            raise ProtocolViolation("received unencrypted data after a request for encryption")
        return AnswerTls() if offered else RefuseEncryption()

    def _start(self, version: int, body: bytes) -> Started:
        if version >> 16 != 3:
            told = f"{version >> 16}.{version & 0xFFFF}"
            raise GatewayError("0A000", f"unsupported frontend protocol {told}: the gateway supports 3.0 to 3.2")
        own = {"user": "", "database": "", "options": ""}
        settings: list[tuple[str, str]] = []
        unknown: list[str] = []
        for name, value in _pairs(body):
            if name in own:
                own[name] = value
            elif name == "replication":
                _refuse_replication(value)
            elif name.startswith("_pq_."):
                unknown.append(name)
            else:
                settings.append((name, value))
        if not self._encrypted and not self._plaintext_allowed:
            raise GatewayError("28000", "this gateway is reached by TLS only", hint="Connect with sslmode=verify-full.")
        if not own["user"]:
            raise GatewayError("28000", "no PostgreSQL user name specified in startup packet")
        reply = messages.negotiate_protocol_version(min(version, _NEWEST), unknown) if version > _NEWEST or unknown else b""
        key_length = 32 if version >= messages.PROTOCOL_3_2 else 4
        return Started(own["user"], own["database"] or own["user"], own["options"], tuple(settings), reply, key_length)

    def _take(self, limit: int, what: str) -> bytes | None:
        if self._buffer and self._buffer[:1] != b"p":
            raise ProtocolViolation(f"expected {what} response, got another message")
        try:
            found = messages.take(self._buffer, limit)
        except ProtocolViolation:
            raise NotAnswered(f"invalid length of {what} response") from None
        return found[1] if found is not None else None

    def _password(self) -> NeedMore | PasswordGiven:
        body = self._take(_LONGEST_PASSWORD, "password")
        if body is None:
            return NeedMore()
        if body.find(b"\0") != len(body) - 1:
            raise ProtocolViolation("invalid password packet size")
        try:
            return PasswordGiven(body[:-1].decode("utf-8"))
        except UnicodeDecodeError:
            raise GatewayError("28P01", "the token is not text", hint="Give the token as the password.") from None

    def _sasl(self) -> NeedMore | SaslBegun | SaslAnswered:
        body = self._take(_LONGEST_SASL, "SASL")
        if body is None:
            return NeedMore()
        if self._awaited == "sasl answer":
            return SaslAnswered(body)
        mechanism, end, rest = body.partition(b"\0")
        length = int.from_bytes(rest[:4], "big", signed=True)
        if not end or len(rest) < 4 or length < -1 or len(rest) != 4 + max(length, 0):
            raise ProtocolViolation("invalid message format")
        self._awaited = "sasl answer"
        return SaslBegun(mechanism.decode("utf-8", "replace"), rest[4:] if length >= 0 else None)


def read_boolean(text: str) -> bool | None:
    """A boolean as parse_bool reads it: a prefix of true, false, yes or no, ``on``, ``of`` or ``off``, 1 or 0, in any case."""
    folded = text.lower() if text.isascii() else ""
    if folded and any(word.startswith(folded) for word in ("true", "yes")):
        return True
    if folded and any(word.startswith(folded) for word in ("false", "no")):
        return False
    return {"on": True, "of": False, "off": False, "1": True, "0": False}.get(folded)


def _pairs(body: bytes) -> Iterator[tuple[str, str]]:
    # As ProcessStartupPacket walks them: a name, a value, until the terminator, which must be the last byte.
    at, size = 0, len(body)
    while at < size and body[at]:
        end = body.find(b"\0", at)
        if end < 0 or end + 1 == size:
            break  # no value; one last byte that is no terminator passes there, and so does it here
        value_end = body.find(b"\0", end + 1)
        if value_end < 0:
            at = size
            break
        try:
            yield body[at:end].decode("utf-8"), body[end + 1 : value_end].decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolViolation("the startup packet is not UTF-8") from None
        at = value_end + 1
    if at != size - 1:
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")


def _refuse_replication(value: str) -> None:
    wanted = True if value == "database" else read_boolean(value)
    if wanted is None:
        raise GatewayError(
            "22023",
            f'invalid value for parameter "replication": "{value[:40]}"',
            hint='Valid values are: "false", 0, "true", 1, "database".',
        )
    if wanted:
        raise GatewayError(
            "0A000",
            "replication connections are not possible through this gateway",
            hint="Connect without the parameter replication; logical decoding and base backups need a way past the gateway.",
        )

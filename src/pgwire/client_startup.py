"""The agent's side of a connection's beginning, without I/O: bytes in, events out.

Source: PostgreSQL, "Start-up" and "SSL Session Encryption". Bytes that came before TLS are never used after it
(CVE-2021-23214): a client that sends any is refused.

Never add here: authentication; the password is only handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgwire import messages
from pgwire.errors import GatewayError, ProtocolViolation

__all__ = ["AnswerTls", "CancelRequested", "ClientStartup", "NeedMore", "PasswordGiven", "RefuseEncryption", "Started"]

_LONGEST_STARTUP = 10000  # as PostgreSQL's MAX_STARTUP_PACKET_LENGTH
_LONGEST_PASSWORD = 65535


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
    """The startup message. ``parameters`` as sent, with ``user`` and ``database`` taken out of them as well."""

    user: str
    database: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PasswordGiven:
    """The answer to the request for a password."""

    password: str = field(repr=False)


class ClientStartup:
    """States: before the startup message; asked for the password; done. ``rest`` are bytes that came behind."""

    def __init__(self, *, tls_available: bool, plaintext_allowed: bool) -> None:
        self._tls_available = tls_available
        self._plaintext_allowed = plaintext_allowed
        self._buffer = bytearray()
        self._encrypted = False
        self._asked_tls = False
        self._asked_gss = False
        self._started = False
        self._negotiate = b""

    def receive(self, data: bytes) -> None:
        """Bytes from the client."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """What the client sent behind its last message of the startup."""
        return bytes(self._buffer)

    def next_event(self) -> NeedMore | AnswerTls | RefuseEncryption | CancelRequested | Started | PasswordGiven:
        """What has come. Raises ``GatewayError``."""
        return self._password() if self._started else self._startup()

    def tls_started(self) -> None:
        """The handshake is done."""
        self._encrypted = True

    def ask_password(self) -> bytes:
        """The request for the token, which travels as a cleartext password inside TLS."""
        self._started = True
        return self._negotiate + messages.cleartext_password_request()

    def welcome(self, parameters: Mapping[str, str], pid: int, key: bytes) -> bytes:
        """AuthenticationOk, the server's parameters, the cancel key, ReadyForQuery."""
        statuses = b"".join(messages.parameter_status(name, value) for name, value in parameters.items())
        return messages.authentication_ok() + statuses + messages.backend_key_data(pid, key) + messages.ready_for_query("I")

    def _startup(self) -> NeedMore | AnswerTls | RefuseEncryption | CancelRequested | Started:
        buffer = self._buffer
        if len(buffer) < 4:
            return NeedMore()
        length = int.from_bytes(buffer[:4], "big")
        if length < 8 or length > _LONGEST_STARTUP:
            raise ProtocolViolation("invalid length of startup packet")
        if len(buffer) < length:
            return NeedMore()
        code = int.from_bytes(buffer[4:8], "big")
        body = bytes(buffer[8:length])
        del buffer[:length]
        if code == messages.SSL_REQUEST:
            return self._encryption(body, gss=False)
        if code == messages.GSSENC_REQUEST:
            return self._encryption(body, gss=True)
        if code == messages.CANCEL_REQUEST:
            if not 8 <= len(body) <= 260:
                raise ProtocolViolation("malformed CancelRequest")
            return CancelRequested(int.from_bytes(body[:4], "big"), body[4:])
        return self._start(code, body)

    def _encryption(self, body: bytes, *, gss: bool) -> AnswerTls | RefuseEncryption:
        if body or self._encrypted or (self._asked_gss if gss else self._asked_tls):
            raise ProtocolViolation("unexpected request for encryption")
        if gss:
            self._asked_gss = True
        else:
            self._asked_tls = True
        if self._buffer:
            raise ProtocolViolation("received unencrypted data after a request for encryption")
        return AnswerTls() if self._tls_available and not gss else RefuseEncryption()

    def _start(self, code: int, body: bytes) -> Started:
        if code >> 16 != 3:
            raise ProtocolViolation(f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: the gateway speaks 3.0")
        parameters = self._parameters(body)
        options = [name for name in parameters if name.startswith("_pq_.")]
        if code & 0xFFFF or options:
            self._negotiate = messages.negotiate_protocol_version(messages.PROTOCOL_3_0, options)
        if not self._encrypted and not self._plaintext_allowed:
            raise GatewayError("28000", "this gateway is reached by TLS only", hint="Connect with sslmode=verify-full.")
        user = parameters.get("user", "")
        if not user:
            raise GatewayError("28000", "no PostgreSQL user name specified in startup packet")
        if parameters.get("replication", "").lower() not in ("", "0", "off", "false", "no"):
            raise GatewayError("0A000", "replication connections are not possible through this gateway")
        return Started(user, parameters.get("database") or user, parameters)

    @staticmethod
    def _parameters(body: bytes) -> dict[str, str]:
        if body[-1:] != b"\0" or (len(body) > 1 and body[-2:] != b"\0\0"):
            raise ProtocolViolation("malformed startup packet")
        words = body[:-2].split(b"\0") if len(body) > 1 else []
        if len(words) % 2:
            raise ProtocolViolation("malformed startup packet")
        try:
            texts = [word.decode("utf-8") for word in words]
        except UnicodeDecodeError:
            raise ProtocolViolation("the startup packet is not UTF-8") from None
        names = texts[::2]
        if len(set(names)) != len(names) or "" in names:
            raise ProtocolViolation("malformed startup packet")
        return dict(zip(names, texts[1::2], strict=True))

    def _password(self) -> NeedMore | PasswordGiven:
        if self._buffer and self._buffer[:1] != b"p":
            raise ProtocolViolation("expected a password message")
        found = messages.take(self._buffer, _LONGEST_PASSWORD)
        if found is None:
            return NeedMore()
        _, body = found
        if body.find(b"\0") != len(body) - 1:
            raise ProtocolViolation("malformed password message")
        try:
            return PasswordGiven(body[:-1].decode("utf-8"))
        except UnicodeDecodeError:
            raise GatewayError("28P01", "the token is not text", hint="Give the token as the password.") from None

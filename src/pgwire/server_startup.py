"""The gateway's login at the database server, without I/O: bytes in, events out.

Source: PostgreSQL, "Start-up" and "SASL Authentication". Protocol 3.2 is asked for and what the server can is taken. A cleartext
password goes only through TLS that has been verified; where SCRAM begins it must be finished, the server's proof included.

Never add here: anything about the agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pgwire import messages
from pgwire.errors import GatewayError, ProtocolViolation, ServerUnavailable
from pgwire.scram import PLAIN, PLUS, ScramClient, ScramError, ScramKeys, end_point

__all__ = ["Derive", "NeedMore", "Ready", "Send", "ServerStartup", "VersionRefused", "ssl_request"]

_LONGEST = 65536  # bytes of one message
_MOST_PARAMETERS = 1000  # a server that tells more is no PostgreSQL
_INLINE = 20_000  # iterations that may be derived on the spot, about 7 ms; more belong into a thread
_CLIENTS = frozenset({"22023", "42704", "42602"})  # what is wrong with a client's own startup parameters
_HELP = {
    "53300": "The database server has no free connection; try again later.",
    "57P03": "The database server is starting up or shutting down; try again later.",
    "3D000": "The database behind this name does not exist on the server; ask the gateway's operator.",
}
_METHODS = {2: "Kerberos V5", 4: "crypt", 6: "SCM credentials", 7: "GSSAPI", 9: "SSPI"}
_OK, _CLEARTEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12


class VersionRefused(ServerUnavailable):
    """The server's first word to a startup message of 3.2 is that it can't read it: an old pooler, which may know 3.0."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Nothing to do before more bytes have come."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``data`` to the server."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Derive:
    """Call ``work`` in another thread, then ask for the next event: it takes long."""

    work: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ready:
    """Logged in. ``parameters`` are the ParameterStatus messages as they came, ``key`` the server's cancel key (b"": none)."""

    parameters: bytes
    pid: int
    key: bytes = field(repr=False)


def ssl_request() -> bytes:
    """SSLRequest."""
    return (8).to_bytes(4, "big") + messages.SSL_REQUEST.to_bytes(4, "big")


class ServerStartup:
    """``certificate`` is the server's, in DER, when TLS is on; SCRAM is then bound to it if the server can.

    ``verified``: the certificate has been checked against an authority. ``keys`` are those derived for earlier logins.
    """

    def __init__(
        self,
        user: str,
        password: str,
        dbname: str,
        parameters: Mapping[str, str],
        certificate: bytes | None = None,
        *,
        verified: bool = False,
        keys: ScramKeys | None = None,
        version: int = messages.PROTOCOL_3_2,
    ) -> None:
        self._user = user
        self._password = password
        self._certificate = certificate
        self._verified = verified
        self._keys = keys
        self._startup = {"user": user, "database": dbname, **parameters}
        self._buffer = b""
        self._at = 0
        self._scram: ScramClient | None = None
        self._deriving = False
        self._asked = False
        self._proven = False
        self._authenticated = False
        self._version = version
        self._negotiated = False
        self._parameters: dict[str, str] = {}
        self._told = b""
        self._pid = 0
        self._key = b""

    def start(self) -> bytes:
        """The startup message."""
        return messages.startup_message(self._startup, self._version)

    def receive(self, data: bytes) -> None:
        """Bytes from the server."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    @property
    def rest(self) -> bytes:
        """Bytes behind ReadyForQuery."""
        return self._buffer[self._at :]

    def next_event(self) -> NeedMore | Send | Derive | Ready:
        """What to do. Raises ``GatewayError``: the login failed."""
        if self._deriving:
            return self._prove()
        while (found := messages.whole(self._buffer, self._at, _LONGEST)) is not None:
            kind, end = found
            body = self._buffer[self._at + 5 : end]
            self._at = end
            if kind == b"R":
                event = self._authentication(body)
                if event is not None:
                    return event
            elif kind == b"E":
                untouched = not (self._asked or self._authenticated or self._negotiated)
                raise _refused(body, untouched and self._version > messages.PROTOCOL_3_0)
            elif kind == b"N":
                continue
            elif kind == b"v":
                self._negotiate(body)
            elif not self._authenticated:
                raise ProtocolViolation("the database server spoke out of turn during login")
            elif kind == b"S":
                self._learn(body)
                self._told += self._buffer[end - len(body) - 5 : end]
            elif kind == b"K":
                self._keep_key(body)
            elif kind == b"Z":
                return self._ready(body)
            else:
                raise ProtocolViolation("the database server sent an unexpected message during login")
        return NeedMore()

    def _negotiate(self, body: bytes) -> None:
        version, unknown = messages.read_negotiation(body)
        # We ask for no options, so none can be unknown; and an answer that changes nothing is none.
        if self._negotiated or self._asked or self._authenticated or unknown or not messages.PROTOCOL_3_0 <= version < self._version:
            raise ProtocolViolation("the database server answered with a protocol version that was not asked for")
        self._negotiated = True
        self._version = version

    def _learn(self, body: bytes) -> None:
        name, value = messages.read_pair(body)
        self._parameters[name] = value
        if len(self._parameters) > _MOST_PARAMETERS or len(self._told) > _LONGEST:
            raise ProtocolViolation("the database server told too many parameters during login")

    def _keep_key(self, body: bytes) -> None:
        short = self._version < messages.PROTOCOL_3_2
        if self._key or not 8 <= len(body) <= (8 if short else 260):
            raise ProtocolViolation("malformed BackendKeyData from the database server")
        self._pid = int.from_bytes(body[:4], "big")
        self._key = body[4:]

    def _ready(self, body: bytes) -> Ready:
        if body != b"I":
            raise ProtocolViolation("the database server sent an unexpected message during login")
        # What the gateway's reading of statements rests on.
        if self._parameters.get("client_encoding", "UTF8") != "UTF8" or self._parameters.get("standard_conforming_strings", "on") != "on":
            raise GatewayError(
                "0A000",
                "the database server's defaults for this login can't be used",
                hint="The gateway needs client_encoding UTF8 and standard_conforming_strings on.",
            )
        return Ready(self._told, self._pid, self._key)

    def _authentication(self, body: bytes) -> Send | Derive | None:
        if len(body) < 4 or self._authenticated:
            raise ProtocolViolation("malformed authentication request from the database server")
        code, rest = int.from_bytes(body[:4], "big"), body[4:]
        try:
            if code == _OK:
                if rest or (self._scram is not None and not self._proven):
                    raise ScramError("the server said that we are in before it proved that it knows the password")
                self._authenticated = True
                return None
            if code == _SASL_CONTINUE and self._scram is not None and not self._proven:
                self._scram.read(rest)
                if not self._scram.derived and self._scram.iterations > _INLINE:
                    self._deriving = True
                    return Derive(self._scram.derive)
                return self._prove()
            if code == _SASL_FINAL and self._scram is not None and not self._proven:
                self._scram.check(rest)
                self._proven = True
                return None
            if not self._asked:
                self._asked = True
                return Send(self._answer(code, rest))
            raise ScramError("the server asked for another proof than the one that had begun")
        except ScramError as error:
            raise GatewayError("08004", "the gateway could not log in at the database server", private=str(error)) from error

    def _prove(self) -> Send:
        assert self._scram is not None
        self._deriving = False
        return Send(messages.sasl_response(self._scram.final()))

    def _answer(self, code: int, rest: bytes) -> bytes:
        if code == _CLEARTEXT and not rest:
            if not self._verified:
                raise ScramError("the server wants the password in clear text outside verified TLS (verify-ca or verify-full)")
            return messages.password_message(self._password)
        if code == _MD5 and len(rest) == 4:
            inner = hashlib.md5((self._password + self._user).encode(), usedforsecurity=False).hexdigest()
            return messages.password_message("md5" + hashlib.md5(inner.encode() + rest, usedforsecurity=False).hexdigest())
        if code == _SASL:
            return self._begin(rest)
        raise ScramError(f"the server asks for {_METHODS.get(code, f'authentication method {code}')}, which is not spoken here")

    def _begin(self, offered: bytes) -> bytes:
        mechanisms = offered.split(b"\0")
        binding = end_point(self._certificate) if self._certificate is not None else None
        if PLUS.encode() in mechanisms and binding is not None:
            self._scram = ScramClient(self._password, binding, keys=self._keys)
        elif PLAIN.encode() in mechanisms:
            self._scram = ScramClient(self._password, binding, offered=False, keys=self._keys)
        else:
            raise ScramError("the server offers no SASL mechanism that is spoken here")
        return messages.sasl_initial_response(self._scram.mechanism, self._scram.first())


def _refused(body: bytes, first: bool) -> GatewayError:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    state = fields.get(b"C", "XX000")
    private = f"{state[:5]}: {' '.join(fields.get(b'M', '').split())[:500]}"
    if first and state in ("08P01", "0A000"):
        return VersionRefused("the database server refused the connection", private=private)
    if state in _HELP:
        return GatewayError(state, "the database server refused the connection", hint=_HELP[state], private=private)
    if state in _CLIENTS:
        return GatewayError(state, fields.get(b"M", "a startup parameter was refused"), private=private)
    if state[:2] == "28":
        return GatewayError("08004", "the database server refused the gateway's login", hint="Ask the gateway's operator.", private=private)
    return ServerUnavailable("the database server refused the connection", private=private)

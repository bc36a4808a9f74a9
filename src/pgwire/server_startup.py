"""The gateway's login at the database server, without I/O: bytes in, events out.

Source: PostgreSQL, "Start-up" and "SASL Authentication". Only SCRAM-SHA-256 answers to a server without TLS; MD5 is
never spoken, a cleartext password only inside TLS.

Never add here: anything about the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgwire import messages
from pgwire.errors import GatewayError, ProtocolViolation, ServerUnavailable
from pgwire.scram import PLAIN, PLUS, ScramClient, ScramError, end_point

__all__ = ["NeedMore", "Ready", "Send", "ServerStartup", "ssl_request"]

_LONGEST = 65536
_HELP = {
    "53300": "The database server has no free connection; try again later.",
    "57P03": "The database server is starting up or shutting down; try again later.",
    "3D000": "The database behind this name does not exist on the server; ask the gateway's operator.",
}


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Nothing to do before more bytes have come."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``data`` to the server."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """Logged in. ``parameters`` are the ParameterStatus values, ``key`` the server's cancel key."""

    parameters: Mapping[str, str]
    pid: int
    key: bytes = field(repr=False)


def ssl_request() -> bytes:
    """SSLRequest."""
    return (8).to_bytes(4, "big") + messages.SSL_REQUEST.to_bytes(4, "big")


class ServerStartup:
    """``certificate`` is the server's, in DER, when TLS is on; SCRAM is then bound to it if the server can."""

    def __init__(self, user: str, password: str, dbname: str, parameters: Mapping[str, str], certificate: bytes | None, tls: bool) -> None:
        self._password = password
        self._certificate = certificate
        self._tls = tls
        self._startup = {"user": user, "database": dbname, **parameters}
        self._buffer = bytearray()
        self._scram: ScramClient | None = None
        self._proven = False
        self._authenticated = False
        self._parameters: dict[str, str] = {}
        self._pid = 0
        self._key = b""

    def start(self) -> bytes:
        """The startup message."""
        return messages.startup_message(self._startup)

    def receive(self, data: bytes) -> None:
        """Bytes from the server."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """Bytes behind ReadyForQuery."""
        return bytes(self._buffer)

    def next_event(self) -> NeedMore | Send | Ready:
        """What to do. Raises ``GatewayError``: the login failed."""
        while (found := messages.take(self._buffer, _LONGEST)) is not None:
            kind, body = found
            if kind == b"R":
                answer = self._authentication(body)
                if answer is not None:
                    return Send(answer)
            elif kind == b"E":
                raise _refused(body)
            elif kind == b"N":
                continue
            elif not self._authenticated:
                raise ProtocolViolation("the database server spoke out of turn during login")
            elif kind == b"S":
                name, value = messages.read_pair(body)
                self._parameters[name] = value
            elif kind == b"K":
                if not 8 <= len(body) <= 260:
                    raise ProtocolViolation("malformed BackendKeyData from the database server")
                self._pid = int.from_bytes(body[:4], "big")
                self._key = body[4:]
            elif kind == b"Z":
                return self._ready()
            else:
                raise ProtocolViolation("the database server sent an unexpected message during login")
        return NeedMore()

    def _ready(self) -> Ready:
        # What the gateway's reading of statements rests on.
        if self._parameters.get("client_encoding", "UTF8") != "UTF8" or self._parameters.get("standard_conforming_strings", "on") != "on":
            raise GatewayError(
                "0A000",
                "the database server's defaults for this login can't be used",
                hint="The gateway needs client_encoding UTF8 and standard_conforming_strings on.",
            )
        return Ready(dict(self._parameters), self._pid, self._key)

    def _authentication(self, body: bytes) -> bytes | None:
        if len(body) < 4:
            raise ProtocolViolation("malformed authentication request from the database server")
        code, rest = int.from_bytes(body[:4], "big"), body[4:]
        try:
            if code == 0:
                if self._scram is not None and not self._proven:
                    raise ScramError("the server did not finish SCRAM")
                self._authenticated = True
                return None
            if code == 3:
                if not self._tls:
                    raise ScramError("the server wants the password in clear text outside TLS")
                return messages.password_message(self._password)
            if code == 10:
                return self._begin(rest)
            if code == 11 and self._scram is not None:
                return messages.sasl_response(self._scram.final(rest))
            if code == 12 and self._scram is not None:
                self._scram.check(rest)
                self._proven = True
                return None
        except ScramError as error:
            raise GatewayError("08004", "the gateway could not log in at the database server", private=str(error)) from error
        raise GatewayError(
            "08004", "the gateway could not log in at the database server", private=f"authentication method {code} is not spoken"
        )

    def _begin(self, offered: bytes) -> bytes:
        if self._scram is not None:
            raise ScramError("SCRAM began twice")
        mechanisms = offered.split(b"\0")
        if PLUS.encode() in mechanisms and self._certificate is not None:
            self._scram = ScramClient(self._password, end_point(self._certificate))
        elif PLAIN.encode() in mechanisms:
            self._scram = ScramClient(self._password)
        else:
            raise ScramError("the server offers no SASL mechanism that is spoken here")
        return messages.sasl_initial_response(self._scram.mechanism, self._scram.first())


def _refused(body: bytes) -> GatewayError:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    state = fields.get(b"C", "XX000")
    private = f"{state}: {fields.get(b'M', '')}"
    if state in _HELP:
        return GatewayError(state, "the database server refused the connection", hint=_HELP[state], private=private)
    if state[:2] == "28":
        return GatewayError("08004", "the database server refused the gateway's login", hint="Ask the gateway's operator.", private=private)
    return ServerUnavailable("the database server refused the connection", private=private)

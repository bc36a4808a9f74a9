"""An independent PostgreSQL wire client: struct, sockets and ssl, nothing of the code under test.

It says exactly the bytes it is told to and collects what comes back as ``(kind, body)`` pairs, so a test can
assert on the sequence of messages itself. Message layouts are PostgreSQL's "Message Formats" (protocol 3.0 and 3.2).

Never add here: an import from pgwire, recovery from errors, or anything that hides a message.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from typing import NamedTuple

import scramp

__all__ = [
    "Message",
    "WireClient",
    "bind",
    "close",
    "describe",
    "error_fields",
    "execute",
    "message",
    "parse",
    "query",
    "row_values",
    "sync",
]

PROTOCOL_3_0 = 196608
PROTOCOL_3_2 = 196610
SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102


class Message(NamedTuple):
    """One backend message: its kind as a one-character string and the body without the length word."""

    kind: str
    body: bytes


def message(kind: bytes, body: bytes = b"") -> bytes:
    """A frontend message: kind, length, body."""
    return kind + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    """Query ('Q')."""
    return message(b"Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    """Parse ('P') with parameter type OIDs."""
    return message(b"P", name.encode() + b"\0" + sql.encode() + b"\0" + struct.pack(f"!h{len(types)}I", len(types), *types))


def bind(
    values: Sequence[bytes | None] = (),
    *,
    statement: str = "",
    portal: str = "",
    formats: Sequence[int] = (),
    results: Sequence[int] = (),
) -> bytes:
    """Bind ('B'): raw parameter values, their format codes, and the result columns' format codes."""
    body = portal.encode() + b"\0" + statement.encode() + b"\0"
    body += struct.pack(f"!h{len(formats)}h", len(formats), *formats) + struct.pack("!h", len(values))
    for value in values:
        body += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return message(b"B", body + struct.pack(f"!h{len(results)}h", len(results), *results))


def describe(kind: str, name: str = "") -> bytes:
    """Describe ('D') a statement ("S") or a portal ("P")."""
    return message(b"D", kind.encode() + name.encode() + b"\0")


def execute(portal: str = "", limit: int = 0) -> bytes:
    """Execute ('E'), at most ``limit`` rows (0: all)."""
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", limit))


def close(kind: str, name: str = "") -> bytes:
    """Close ('C') a statement ("S") or a portal ("P")."""
    return message(b"C", kind.encode() + name.encode() + b"\0")


def sync() -> bytes:
    """Sync ('S')."""
    return message(b"S")


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse by their one-letter codes."""
    return {part[:1].decode(): part[1:].decode() for part in body.split(b"\0") if part}


def row_values(body: bytes) -> list[bytes | None]:
    """The values of a DataRow. Raises ``ValueError`` when the lengths do not add up."""
    (count,), at = struct.unpack_from("!h", body), 2
    values: list[bytes | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        if at + length > len(body):
            raise ValueError(f"a value of {length} bytes at {at} in a row of {len(body)}")
        values.append(body[at : at + length])
        at += length
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes behind the last value of a row")
    return values


class WireClient:
    """One connection. ``secure()`` for TLS, ``login()`` for startup and password, ``ask()`` for the rest.

    ``pid`` and ``key`` are the cancel key as told; ``parameters`` the ParameterStatus values seen so far.
    Socket errors pass through; an end of file in the middle of a message raises ``EOFError``.
    """

    def __init__(self, host: str, port: int, *, timeout: float = 20.0) -> None:
        self.host = host
        self.port = port
        self.socket: socket.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pid = 0
        self.key = b""
        self.parameters: dict[str, str] = {}
        self._pending = b""

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def secure(self, ca_file: str, *, server_hostname: str | None = None, direct: bool = False) -> None:
        """SSLRequest and a verified TLS handshake; ``direct`` starts TLS at once with ALPN, as libpq 17 can."""
        context = ssl.create_default_context(cafile=ca_file)
        if direct:
            context.set_alpn_protocols(["postgresql"])
        else:
            self.send(struct.pack("!ii", 8, SSL_REQUEST))
            answer = self.exactly(1)
            if answer != b"S":
                raise ConnectionError(f"the server answered {answer!r} to SSLRequest")
        self.socket = context.wrap_socket(self.socket, server_hostname=server_hostname or self.host)

    def send(self, data: bytes) -> None:
        """These bytes, as they are."""
        self.socket.sendall(data)

    def startup(self, user: str, database: str, version: int = PROTOCOL_3_0, **parameters: str) -> None:
        """StartupMessage."""
        pairs = {"user": user, "database": database, **parameters}
        body = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in pairs.items()) + b"\0"
        self.send(struct.pack("!ii", len(body) + 8, version) + body)

    def scram(self, user: str, password: str) -> list[Message]:
        """SCRAM-SHA-256 behind AuthenticationSASL, and everything until ReadyForQuery or ErrorResponse."""
        client = scramp.ScramClient(["SCRAM-SHA-256"], user, password)
        first = client.get_client_first().encode()
        self.send(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        challenge = self.receive()
        if challenge.kind != "R":
            return [challenge]
        client.set_server_first(challenge.body[4:].decode())
        self.send(message(b"p", client.get_client_final().encode()))
        final = self.receive()
        if final.kind != "R":
            return [challenge, final]
        client.set_server_final(final.body[4:].decode())
        return [challenge, final, *self.until("ZE")]

    def login(self, user: str, database: str, password: str, version: int = PROTOCOL_3_0, **parameters: str) -> list[Message]:
        """Startup, the password or SCRAM as it is asked for, and everything until ReadyForQuery or ErrorResponse."""
        self.startup(user, database, version, **parameters)
        first = self.receive()
        if first.kind == "v":
            first = self.receive()
        if first.kind == "R" and struct.unpack_from("!i", first.body)[0] == 10:
            return [first, *self.scram(user, password)]
        if first.kind == "R" and struct.unpack_from("!i", first.body)[0] == 3:
            self.send(message(b"p", password.encode() + b"\0"))
            return [first, *self.until("ZE")]
        return [first] if first.kind in "ZE" else [first, *self.until("ZE")]

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises ``EOFError`` when the connection ends before."""
        while len(self._pending) < size:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"connection closed with {len(self._pending)} of {size} bytes")
            self._pending += data
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    def receive(self) -> Message:
        """The next message, whatever it is."""
        kind, length = struct.unpack("!ci", self.exactly(5))
        got = Message(kind.decode(), self.exactly(length - 4))
        if got.kind == "S":
            name, value = got.body.split(b"\0")[:2]
            self.parameters[name.decode()] = value.decode()
        elif got.kind == "K":
            self.pid, self.key = struct.unpack_from("!i", got.body)[0], got.body[4:]
        return got

    def until(self, kinds: str) -> list[Message]:
        """Messages up to and with the first whose kind is in ``kinds``."""
        seen = [self.receive()]
        while seen[-1].kind not in kinds:
            seen.append(self.receive())
        return seen

    def ask(self, *messages: bytes) -> list[Message]:
        """Send, then collect until ReadyForQuery. The messages must contain exactly one sync point."""
        self.send(b"".join(messages))
        return self.until("Z")

    def run(self, sql: str) -> list[Message]:
        """One simple query, to ReadyForQuery."""
        return self.ask(query(sql))

    def prepared(
        self, sql: str, values: Sequence[bytes | None] = (), *, results: Sequence[int] = (), described: bool = True
    ) -> list[Message]:
        """One extended query through the unnamed statement, to ReadyForQuery; without Describe if ``described`` is false."""
        middle = [describe("P")] if described else []
        return self.ask(parse(sql), bind(values, results=results), *middle, execute(), sync())

    def cancel(self, *, ca_file: str | None = None, direct: bool = False, piecewise: bool = False) -> None:
        """A CancelRequest for this session on a connection of its own, as PQcancel does it; waits for the server to close it."""
        with WireClient(self.host, self.port) as other:
            if ca_file is not None:
                other.secure(ca_file, direct=direct)
            request = struct.pack("!iii", 12 + len(self.key), CANCEL_REQUEST, self.pid) + self.key
            for piece in [request[at : at + 1] for at in range(len(request))] if piecewise else [request]:
                other.send(piece)
            if other.socket.recv(1) != b"":
                raise ConnectionError("a CancelRequest was answered")

    def terminate(self) -> None:
        """Terminate ('X')."""
        self.send(message(b"X"))

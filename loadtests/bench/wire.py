"""A client that does as little as it can: it logs in, sends, and counts bytes until ReadyForQuery.

A driver that makes objects of rows would be the bottleneck of a bulk measure. ReadyForQuery is known by the last six
bytes of what has come; the benchmark's data has no NULs and no capital letters, so nothing in it looks like one.

Never add here: parsing of rows.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterable
from types import TracebackType

from loadtests.bench.stand import Target

_READY = {b"Z\0\0\0\5" + status for status in (b"I", b"T", b"E")}
_BUFFER = memoryview(bytearray(1 << 18))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


_TLS = _context()


def query(sql: str) -> bytes:
    """A Query message."""
    return b"Q" + struct.pack("!i", len(sql) + 5) + sql.encode() + b"\0"


class RawClient:
    """One connection, logged in. ``cipher`` is what TLS agreed on, or None."""

    def __init__(self, target: Target) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 60, 0))
        self.cipher: str | None = None
        if target.tls:
            self.socket.sendall(struct.pack("!ii", 8, 80877103))
            if self.socket.recv(1) != b"S":
                raise SystemExit(f"{target.name} speaks no TLS")
            secured = _TLS.wrap_socket(self.socket)
            agreed = secured.cipher()
            self.cipher = f"{agreed[1]} {agreed[0]}" if agreed else None
            self.socket = secured
        body = f"user\0{target.user}\0database\0shop\0\0".encode()
        self.socket.sendall(struct.pack("!ii", len(body) + 8, 196608) + body)
        begin = self.socket.recv(9, 0)
        if begin[:1] == b"R" and begin[5:9] == b"\0\0\0\3":
            secret = target.password.encode() + b"\0"
            self.socket.sendall(b"p" + struct.pack("!i", len(secret) + 4) + secret)
        self.until_ready()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye."""
        try:
            self.socket.sendall(b"X\0\0\0\4")
        except OSError:
            pass
        self.socket.close()

    def until_ready(self) -> int:
        """Count bytes up to ReadyForQuery. An error ends the program: no measure expects one."""
        total, tail, first = 0, b"", b""
        while True:
            got = self.socket.recv_into(_BUFFER)
            first = first or bytes(_BUFFER[: min(got, 200)])
            if not got or (total == 0 and first[:1] == b"E"):
                raise SystemExit(f"the connection ended or failed: {first!r}")
            total += got
            tail = (tail + bytes(_BUFFER[max(0, got - 6) : got]))[-6:]
            if tail in _READY:
                return total

    def run(self, sql: str) -> int:
        """One simple query; bytes of its answer."""
        self.socket.sendall(query(sql))
        return self.until_ready()

    def copy_in(self, sql: str, blocks: Iterable[bytes]) -> int:
        """COPY FROM STDIN of ready-made messages; bytes sent."""
        self.socket.sendall(query(sql))
        if self.socket.recv(4096)[:1] != b"G":
            raise SystemExit("COPY FROM STDIN was refused")
        total = 0
        for block in blocks:
            self.socket.sendall(block)
            total += len(block)
        self.socket.sendall(b"c\0\0\0\4")
        self.until_ready()
        return total

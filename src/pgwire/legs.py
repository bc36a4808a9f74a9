"""A leg while Python drives it: connecting, TLS, login. Awaitable calls over :class:`pgwire.hot.leg.Leg`.

Never add here: protocol knowledge beyond the one byte that answers an SSLRequest, or anything for the time after login.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import Any
from weakref import WeakKeyDictionary

from pgwire.errors import ServerUnavailable
from pgwire.hot.leg import Leg
from pgwire.hot.reactor import Reactor
from pgwire.hot.tls import TlsContext, TlsError, first_byte
from pgwire.ports import Lease, ServerTls
from pgwire.server_startup import ssl_request

__all__ = ["ColdLeg", "connect", "tune"]

_contexts: dict[ServerTls, TlsContext] = {}


def tune(sock: socket.socket, host: str = "") -> None:
    """Options of every socket: no delay, and keepalive that finds a dead peer within about two minutes (neither on a Unix socket).

    ``host`` is the address that it is bound or will be connected to: on this machine's own, where there is no congestion, the
    plainest congestion control serves, and costs the least.
    """
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    if host.startswith("127.") or host == "::1":
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


class _Edges:
    """Wakes those who wait for bytes: one edge-triggered set of all cold sockets inside the event loop's own.

    A socket is put in once for all the waits of a login; the event loop's own way costs some ten system calls for each wait.
    Who waits has read all there was, so the edge that it waits for is still to come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._set = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        loop.add_reader(self._set.fileno(), self._turn)

    def add(self, fd: int) -> None:
        self._set.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def remove(self, fd: int) -> None:
        self._set.unregister(fd)

    async def wait(self, fd: int) -> None:
        ready = self._waiting[fd] = asyncio.get_running_loop().create_future()
        try:
            await ready
        finally:
            del self._waiting[fd]

    def _turn(self) -> None:
        for fd, _ in self._set.poll(0):
            ready = self._waiting.get(fd)
            if ready is not None and not ready.done():
                ready.set_result(None)


_edges: WeakKeyDictionary[asyncio.AbstractEventLoop, _Edges] = WeakKeyDictionary()


def _edges_of(loop: asyncio.AbstractEventLoop) -> _Edges:
    found = _edges.get(loop)
    if found is None:
        found = _edges[loop] = _Edges(loop)
    return found


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class ColdLeg:
    """One socket with awaitable calls, until ``release``; closes the leg in ``close``."""

    __slots__ = ("_edges", "leg")

    def __init__(self, reactor: Reactor, fd: int) -> None:
        self.leg = Leg(reactor, fd)
        self._edges: _Edges | None = None  # which knows this socket

    async def _until(self, *, read: bool = False, write: bool = False) -> None:
        fd = self.leg.fileno()
        if fd < 0:
            raise ConnectionError("the connection is closed")
        if write:
            await _until_writable(fd)
            return
        if self._edges is None:
            self._edges = _edges_of(asyncio.get_running_loop())
            self._edges.add(fd)
        await self._edges.wait(fd)

    def release(self) -> None:
        """A link has the leg now: nothing here looks at its socket any more."""
        edges, self._edges = self._edges, None
        if edges is not None and not self.leg.closed:
            edges.remove(self.leg.fileno())

    async def receive(self) -> bytes:
        """Some bytes; b"" at the end. Raises ConnectionError."""
        while (data := self.leg.receive()) is None:
            await self._until(read=True)
        return data

    async def first_byte(self) -> int:
        """The first byte that has come, which is left where it is; -1 at the end. Raises ConnectionError."""
        while (byte := first_byte(self.leg.fileno())) is None:
            await self._until(read=True)
        return byte

    async def exactly(self, size: int) -> bytes:
        """Just so many bytes: what is behind them stays in the socket, where TLS may want it. Raises ConnectionError."""
        data = b""
        while len(data) < size:
            while (more := self.leg.receive(size - len(data))) is None:
                await self._until(read=True)
            if not more:
                raise ConnectionResetError(f"closed after {len(data)} of {size} bytes")
            data += more
        return data

    async def send(self, data: bytes) -> None:
        """Send all of ``data``. Raises ConnectionError."""
        self.leg.send(data)
        await self.flush()

    async def flush(self) -> None:
        """Wait until everything sent is in the socket. Raises ConnectionError."""
        while self.leg.pending:
            await self._until(write=True)
            self.leg.flush()

    async def start_tls(self, context: TlsContext, host: str = "") -> None:
        """Do the TLS handshake. Raises TlsError."""
        self.leg.start_tls(context, host)
        while state := self.leg.handshake():
            await self._until(read=state == 1, write=state == 2)

    def close(self) -> None:
        """Close at once."""
        self._edges = None  # what is closed leaves the set of itself
        self.leg.close()


def _client_context(tls: ServerTls) -> TlsContext:
    # One context per way to reach a server: making one reads the trust store.
    context = _contexts.get(tls)
    if context is None:
        context = _contexts[tls] = TlsContext.client(tls.mode, tls.ca_file, tls.certificate_file, tls.key_file)
    return context


async def _until_writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def connect(reactor: Reactor, lease: Lease, timeout: float = 10.0) -> ColdLeg:
    """A connection to the lease's server, with TLS as the lease asks for. Raises ``ServerUnavailable``."""
    where = f"{lease.host}:{lease.port}"
    try:
        async with asyncio.timeout(timeout):
            leg = ColdLeg(reactor, await _dial(lease.host, lease.port))
            try:
                if lease.tls.mode != "disable":
                    await _secure(leg, lease, where)
            except BaseException:
                leg.close()
                raise
            return leg
    except TimeoutError:
        raise ServerUnavailable("the database server does not answer", private=f"{where}: no answer in {timeout:g} s") from None
    except (OSError, TlsError) as error:
        raise ServerUnavailable("the database server can't be reached", private=f"{where}: {error}") from error


async def _dial(host: str, port: int) -> int:
    loop = asyncio.get_running_loop()
    problem: OSError = OSError("no address")
    for family, address in await _addresses(host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            tune(sock, str(address[0]))
            await loop.sock_connect(sock, address)
            return sock.detach()
        except OSError as error:
            problem = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise problem


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    # What needs no look-up gets none: that would be a hop into another thread.
    if host.startswith("/"):
        return [(socket.AF_UNIX, f"{host.rstrip('/')}/.s.PGSQL.{port}")]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _secure(leg: ColdLeg, lease: Lease, where: str) -> None:
    direct = lease.tls.negotiation == "direct"
    if not direct:
        await _ask_for_tls(leg, lease, where)
    await leg.start_tls(_client_context(lease.tls), lease.host)
    if direct and (leg.leg.tls is None or leg.leg.tls[1] != "postgresql"):
        raise ServerUnavailable(
            "the database server does not speak TLS from the first byte",
            hint="Direct TLS needs PostgreSQL 17 or newer: set tls.negotiation to postgres for this database.",
            private=f"{where}: the ALPN protocol postgresql was not agreed",
        )


async def _ask_for_tls(leg: ColdLeg, lease: Lease, where: str) -> None:
    await leg.send(ssl_request())
    answer = leg.leg.receive(2)
    while answer is None:
        await leg._until(read=True)
        answer = leg.leg.receive(2)
    if answer == b"S":
        return
    # Whatever else came is not protected, so it is neither used nor shown.
    if answer[:1] == b"S":
        raise ServerUnavailable(
            "the database server's answer can't be trusted", private=f"{where}: unencrypted bytes came behind the answer to SSLRequest"
        )
    raise ServerUnavailable(
        "the database server does not offer TLS",
        hint=f"The gateway asks for TLS mode {lease.tls.mode}: enable ssl on the server, or set tls.mode for this database.",
        private=f"{where}: answered {answer[:1]!r} to SSLRequest",
    )

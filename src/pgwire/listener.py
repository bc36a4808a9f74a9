"""The door: accepts connections and runs one session for each; closes in good order.

Never add here: what a session does.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import fcntl
import ipaddress
import itertools
import logging
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgwire.cancel import CancelKeys
from pgwire.hot.reactor import Reactor
from pgwire.legs import ColdLeg, tune
from pgwire.ports import Peer
from pgwire.session import Parts, Session

__all__ = ["Listener"]

_log = logging.getLogger(__name__)
_ACCEPTS = 64  # in a row before sessions get their turn
_REFUSALS = 64  # connections beyond the limit that are still told why


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Listener:
    """Listening sockets and their sessions: the event loop's until they are logged in, then one reactor's each.

    Connections from ``trusted_proxies`` must begin with a PROXY header, which is read from nobody else.
    """

    def __init__(self, parts: Parts, reactors: Sequence[Reactor], max_connections: int, trusted_proxies: Sequence[Network] = ()) -> None:
        self._parts = parts
        self._reactors = tuple(reactors)
        self._turn = itertools.cycle(self._reactors)
        self._max = max_connections
        self._trusted = tuple(trusted_proxies)
        self._unix: list[UnixPlace] = []
        self._keys = CancelKeys()
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._sockets: list[socket.socket] = []
        self._context = contextvars.copy_context()  # one for all sessions: they set nothing in it

    def listen(self, host: str, port: int) -> int:
        """Start accepting on every address of ``host``. Returns the port. Raises OSError when there is none."""
        problem: OSError = OSError(f"{host}: no address")
        bound = 0
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            try:
                sock = _bound(family, (*address[:1], bound or port, *address[2:]))
            except OSError as error:
                problem = error
                continue
            bound = int(sock.getsockname()[1])
            self._start(sock)
        if not bound:
            raise problem
        return bound

    def listen_unix(self, directory: Path, port: int, mode: int) -> Path:
        """Start accepting on the Unix socket for ``port`` in ``directory``. Returns its path. Raises OSError."""
        place = UnixPlace(directory, port)
        sock = place.open(mode)
        self._unix.append(place)
        self._start(sock)
        return place.path

    def _start(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._sockets.append(sock)
        if len(self._sockets) == 1:
            for reactor in self._reactors:
                reactor.start()
                loop.add_reader(reactor.fileno(), reactor.turn)
        loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                # Out of descriptors: without a pause the loop would spin on the same refusal.
                _log.error("can't accept connections: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening.fileno())
                loop.call_later(0.2, self._again, listening)
                return
            if len(self._sessions) >= self._max + _REFUSALS:
                sock.close()
                continue
            try:
                sock.setblocking(False)
                peer = _peer(sock, address)
            except OSError:
                sock.close()
                continue
            reactor = next(self._turn)
            leg = ColdLeg(reactor, sock.detach())
            session = Session(self._parts, reactor, leg, peer, self._keys, len(self._sessions) >= self._max, self._is_proxy(peer))
            task = asyncio.get_running_loop().create_task(session.run(), context=self._context)
            self._sessions[task] = session
            task.add_done_callback(self._done, context=self._context)

    def _is_proxy(self, peer: Peer) -> bool:
        if not self._trusted or peer.address == "local":
            return False
        address = ipaddress.ip_address(peer.address)
        return any(address in network for network in self._trusted)

    def _again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._sessions.pop(task, None)

    @property
    def sessions(self) -> Iterable[Session]:
        """The sessions that live now."""
        return list(self._sessions.values())

    def refresh(self) -> None:
        """The policy or a catalog has changed: every session follows it from its next statement on."""
        for session in self.sessions:
            session.refresh()

    async def close(self, grace: float = 5.0) -> None:
        """Accept nothing more, end every session with 57P01, wait at most ``grace`` seconds."""
        loop = asyncio.get_running_loop()
        if self._parts.warm is not None:
            self._parts.warm.stop()
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        for place in self._unix:
            place.close()
        self._unix.clear()
        for session in self.sessions:
            session.end("57P01", "the gateway is shutting down")
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*self._sessions, return_exceptions=True)
        for task in list(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        if self._parts.warm is not None:
            await self._parts.warm.close()
        if self._sockets:
            for reactor in self._reactors:
                loop.remove_reader(reactor.fileno())
                reactor.stop()
        self._sockets.clear()


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # As PostgreSQL: :: means IPv6 only, so that it and 0.0.0.0 can stand side by side.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(1024)
        tune(sock, str(address[0]))  # Linux hands these options on to every connection accepted here
    except BaseException:
        sock.close()
        raise
    return sock


def _peer(sock: socket.socket, address: tuple[str, int] | str | bytes) -> Peer:
    if sock.family != socket.AF_UNIX:
        return Peer(str(address[0]).partition("%")[0], int(address[1]), False)
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    account = f"uid={uid} gid={gid} pid={pid}"
    _log.info("connection on the Unix socket from %s", account)
    return Peer("local", 0, False, account=account)


class UnixPlace:
    """The path of a Unix socket and the lock that says it is ours: a socket left by a dead process is replaced, a live one never."""

    def __init__(self, directory: Path, port: int) -> None:
        self.path = directory / f".s.PGSQL.{port}"
        self._lock_path = directory / f".s.PGSQL.{port}.pgleash"
        self._lock = -1
        self._inode: tuple[int, int] | None = None

    def open(self, mode: int) -> socket.socket:
        """A listening socket at the path with these permissions from its first moment on. Raises OSError."""
        self._take_lock()
        fresh = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._check_stale()
            sock.bind(str(fresh))
            os.chmod(fresh, mode)
            sock.listen(1024)
            sock.setblocking(False)
            os.rename(fresh, self.path)
            status = os.lstat(self.path)
            self._inode = (status.st_dev, status.st_ino)
        except BaseException:
            sock.close()
            fresh.unlink(missing_ok=True)
            self.close()
            raise
        return sock

    def close(self) -> None:
        """Take the socket away, if it is still ours, and let go of the lock."""
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()
        if self._lock >= 0:
            # Removed while it is held; who waits for the old file sees that the path has another one.
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        for _ in range(10):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.stat(self._lock_path, follow_symlinks=False)
                if (status.st_dev, status.st_ino) == (os.fstat(lock).st_dev, os.fstat(lock).st_ino):
                    self._lock = lock
                    return
            except FileNotFoundError:
                pass
            except OSError:
                os.close(lock)
                raise OSError(f"{self.path}: another gateway listens there") from None
            os.close(lock)
        raise OSError(f"{self.path}: its lock can't be had")

    def _check_stale(self) -> None:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(f"{self.path}: something that is no socket lies there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return
        raise OSError(f"{self.path}: another server listens there")

"""The door: accepts connections and runs one session for each; closes in good order.

Never add here: what a session does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable

from pgwire.cancel import CancelKeys
from pgwire.hot.reactor import Reactor
from pgwire.legs import ColdLeg, tune
from pgwire.ports import Peer
from pgwire.session import Parts, Session

__all__ = ["Listener"]

_log = logging.getLogger(__name__)
_ACCEPTS = 64  # in a row before sessions get their turn
_REFUSALS = 64  # connections beyond the limit that are still told why


class Listener:
    """One listening socket and its sessions, all in the running event loop."""

    def __init__(self, parts: Parts, reactor: Reactor, max_connections: int) -> None:
        self._parts = parts
        self._reactor = reactor
        self._max = max_connections
        self._keys = CancelKeys()
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._sockets: list[socket.socket] = []

    def listen(self, host: str, port: int) -> int:
        """Start accepting. Returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(1024)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._sockets.append(sock)
        if len(self._sockets) == 1:
            self._reactor.start()
            loop.add_reader(self._reactor.fileno(), self._reactor.turn)
        loop.add_reader(sock.fileno(), self._accept, sock)
        return int(sock.getsockname()[1])

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
                tune(sock)
            except OSError:
                sock.close()
                continue
            leg = ColdLeg(self._reactor, sock.detach())
            session = Session(
                self._parts, self._reactor, leg, Peer(address[0], address[1], False), self._keys, len(self._sessions) >= self._max
            )
            task = asyncio.get_running_loop().create_task(session.run())
            self._sessions[task] = session
            task.add_done_callback(self._done)

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
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        for session in self.sessions:
            session.end("57P01", "the gateway is shutting down")
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*self._sessions, return_exceptions=True)
        for task in list(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        if self._sockets:
            loop.remove_reader(self._reactor.fileno())
            self._reactor.stop()
        self._sockets.clear()

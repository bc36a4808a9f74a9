"""A relay that passes one direction of a connection on in single bytes: the other side must not care how bytes come.

Never add here: knowledge of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

__all__ = ["Shredder"]


class Shredder:
    """``with Shredder(host, port) as relay``: connect to ``relay.port``; what ``host:port`` answers comes ``size`` bytes at a time.

    The first ``whole`` bytes of each connection's answers pass as they are (a login need not take long).
    """

    def __init__(self, host: str, port: int, *, size: int = 1, whole: int = 0) -> None:
        self.size = size
        self._target = (host, port)
        self._whole = whole
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Shredder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(each)
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, shreds: bool) -> None:
        left = self._whole if shreds else 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not shreds:
                    target.sendall(data)
                    continue
                target.sendall(data[:left])
                data, left = data[left:], max(0, left - len(data))
                for at in range(0, len(data), self.size):
                    target.sendall(data[at : at + self.size])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

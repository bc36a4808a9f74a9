"""Simple queries of our own on a server connection, without I/O: what is sent, and what alone may come back.

Never add here: what the queries are for.
"""

from __future__ import annotations

from collections import deque

from pgwire import messages
from pgwire.errors import ProtocolViolation

__all__ = ["Errand"]

_LONGEST = 16384  # bytes of one message of an answer
_IDLE = messages.ready_for_query("I")


class Errand:
    """``add`` gives the bytes to send, ``receive`` takes what comes.

    Each query must be answered by its command tags and ReadyForQuery (idle); ParameterStatus messages may come between them
    and are kept in ``told``, behind those given. Anything else raises ``ProtocolViolation``.
    """

    __slots__ = ("_buffer", "_expected", "told")

    def __init__(self, told: bytes = b"") -> None:
        self.told = told
        self._expected: deque[bytes] = deque()
        self._buffer = b""

    def add(self, text: str, *tags: str) -> bytes:
        """One more query, sent behind the others."""
        self._expected.extend(messages.message(b"C", tag.encode() + b"\0") for tag in tags)
        self._expected.append(_IDLE)
        return messages.message(b"Q", text.encode() + b"\0")

    def receive(self, data: bytes) -> bool:
        """Whether all has come."""
        buffer = self._buffer + data
        at = 0
        while (found := messages.whole(buffer, at, _LONGEST)) is not None:
            kind, end = found
            one = buffer[at:end]
            at = end
            if kind == b"S":
                self.told += one
            elif not self._expected or one != self._expected.popleft():
                raise ProtocolViolation(f"the database server answered with {kind!r} where it was not expected")
        self._buffer = buffer[at:]
        return not self._expected and not self._buffer

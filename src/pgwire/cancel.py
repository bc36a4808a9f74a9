"""Cancel keys: which session a CancelRequest means.

A key is random bytes beside the process number, 32 of them for a client that speaks protocol 3.2 and 4 for older ones; it is
given out by the gateway, and the server's own key never reaches a client. A request is looked up in time that does not depend
on what is right about its key.

Never add here: the act of cancelling, which is the session's.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Protocol

__all__ = ["CancelKeys"]


class Cancellable(Protocol):
    def cancel(self) -> None:
        """Stop what the session runs or waits for."""
        ...


class CancelKeys:
    """The keys of one gateway process."""

    def __init__(self) -> None:
        self._sessions: dict[int, list[tuple[bytes, Cancellable]]] = {}

    def issue(self, pid: int, session: Cancellable, length: int = 4) -> bytes:
        """A new key of ``length`` bytes for ``session`` under process number ``pid``; several sessions may share one number."""
        key = secrets.token_bytes(length)
        self._sessions.setdefault(pid, []).append((key, session))
        return key

    def withdraw(self, pid: int, session: Cancellable) -> None:
        """The session is over."""
        rest = [entry for entry in self._sessions.get(pid, ()) if entry[1] is not session]
        if rest:
            self._sessions[pid] = rest
        else:
            self._sessions.pop(pid, None)

    def find(self, pid: int, key: bytes) -> Cancellable | None:
        """The session behind a request, or None. The key must be the same to its last byte, in length too."""
        found = None
        for known, session in self._sessions.get(pid, ()):
            if hmac.compare_digest(known, key):
                found = session
        return found

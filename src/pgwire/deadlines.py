"""When sessions must end: one timer for all of them.

Never add here: why a session ends, or any other timer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Deadlines"]

_FAR = 86400.0  # seconds; a timer never waits longer, so that a clock that was set is noticed


class Ending(Protocol):
    def end(self, sqlstate: str, message: str) -> None:
        """End the session."""
        ...


class Deadlines:
    """The moments (Unix seconds) at which sessions of one event loop end because their grant or login does."""

    def __init__(self) -> None:
        self._ends: dict[Ending, float] = {}
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, session: Ending, when: float) -> None:
        """``session`` ends at ``when``, unless it is dropped before."""
        self._ends[session] = when
        if self._timer is None or when < self._next:
            self._wait(when)

    def drop(self, session: Ending) -> None:
        """The session is over."""
        self._ends.pop(session, None)

    def _wait(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = when
        self._timer = asyncio.get_running_loop().call_later(min(max(0.0, when - time.time()), _FAR), self._due)

    def _due(self) -> None:
        self._timer = None
        now = time.time()
        for session in [session for session, when in self._ends.items() if when <= now]:
            del self._ends[session]
            session.end("57P01", "the grant of this session has expired")
        if self._ends:
            self._wait(min(self._ends.values()))

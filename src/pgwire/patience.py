"""Time limits for many short waits of one length: one timer for all of them, where a timer each would cost more than the wait.

Never add here: what is waited for.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Patience"]


class Patience:
    """``with patience.limit():`` in a task; raises ``TimeoutError`` there after ``seconds``. Use it on one event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waits: dict[Limit, float] = {}  # loop time at which each is over; all are equally long, so the first ends first
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> Limit:
        """One wait, from its ``with`` on."""
        return Limit(self)

    def begin(self, limit: Limit) -> None:
        """It is waited for; ``Limit`` calls this."""
        loop = asyncio.get_running_loop()
        self._waits[limit] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._due)

    def end(self, limit: Limit) -> None:
        """It is not waited for any more; ``Limit`` calls this."""
        self._waits.pop(limit, None)

    def _due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for limit, when in list(self._waits.items()):
            if when > now:
                self._timer = loop.call_later(when - now, self._due)
                return
            del self._waits[limit]
            limit.run_out()


class Limit:
    """One wait; see ``Patience``. As ``asyncio.timeout``, an outer cancellation stays one."""

    __slots__ = ("_over", "_patience", "_task")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._task: asyncio.Task[object] | None = None
        self._over = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._patience.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._patience.end(self)
        task, self._task = self._task, None
        if self._over and task is not None and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def run_out(self) -> None:
        """The time is over."""
        if self._task is not None:
            self._over = True
            self._task.cancel()

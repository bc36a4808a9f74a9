"""How much one principal may do: statements per minute, counted over all its sessions.

Never add here: verdicts, or counting of anything that the gateway can't know before it sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budgets"]

_MOST = 4096  # principals remembered


class Budgets:
    """Token buckets: a minute's worth may be used at once, and they fill at the permitted rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, subject: str, database: str, per_minute: float) -> float:
        """Use one statement. 0.0 when it was there, else the seconds until the next one is."""
        now = self._clock()
        key = (subject, database)
        left, then = self._buckets.pop(key, (per_minute, now))
        left = min(per_minute, left + (now - then) * per_minute / 60)
        allowed = left >= 1
        self._buckets[key] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST:
            # The one unused for longest is full again or as good as.
            self._buckets.pop(next(iter(self._buckets)))
        return 0.0 if allowed else (1 - left) * 60 / per_minute

"""How much one principal may do: statements per minute, counted over all its sessions.

Never add here: verdicts, or counting of anything that the gateway can't know before it sends.
"""

from __future__ import annotations

from pgwire.ports import Budget

__all__ = ["Budgets"]

_MOST = 4096  # principals remembered


class Budgets:
    """One bucket per principal and database. The sessions take from it, most of the time without asking here."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Budget] = {}

    def of(self, subject: str, database: str, per_minute: float) -> Budget:
        """The bucket of a principal, at this rate from now on."""
        key = (subject, database)
        bucket = self._buckets.pop(key, None) or Budget(per_minute)
        self._buckets[key] = bucket
        if bucket.per_minute != per_minute:
            bucket.per_minute = per_minute
        if len(self._buckets) > _MOST:
            # The one asked for longest ago is full again or as good as.
            self._buckets.pop(next(iter(self._buckets)))
        return bucket

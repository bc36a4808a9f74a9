"""What an allowed statement must keep to while it runs: what C is told of it, and the clock that stops it when its time is up.

The clock looks now and then at what runs, since most statements run without Python being asked; so a statement may run over by
a quarter of its time, and by a second at most. It is stopped by a cancel request; what goes on regardless ends the session.

Never add here: a decision of what is to be kept; that is the policy's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pgwire.errors import from_refused
from pgwire.hot.relay import Link
from pgwire.ports import Refused, Verdict

__all__ = ["Clock", "kept"]

Kept = tuple[int | None, int | None, int | None, int | None, bool, bytes, bytes, bytes]

_NUMBER = "\ue000"  # where C writes how many there were
_READS = frozenset({"reads", "rows"})
_LONGEST_LOOK = 1.0  # seconds
_GRACE = 5.0  # seconds between the cancel request and the end of the session


def kept(verdict: Verdict) -> Kept | None:
    """What ``Link.admit`` takes as ``kept``; None: nothing is asked of this statement."""
    asked = verdict.obligations
    effects = frozenset(verdict.facts.get("effects", ()))
    rows = asked.max_rows if "rows" in effects or "copy_out" in effects else None
    affected = asked.max_affected if "writes" in effects or "copy_in" in effects else None
    if rows is None and affected is None and asked.statement_timeout is None and asked.record is None:
        return None
    detail = {"class": "limit", "rule": asked.rule, "policy_version": verdict.policy_version}
    return (
        rows,
        affected,
        None if asked.statement_timeout is None else max(1, round(asked.statement_timeout * 1000)),
        asked.record,
        bool(effects - _READS),
        _error(
            "53400",
            f"the result has more than the {rows} rows that rule {asked.rule} allows",
            "Ask for less: add a WHERE or a LIMIT, or let the database count and sum.",
            {**detail, "limit": "max_rows", "allowed": rows, "reasons": ["max_rows"], "matched": ["rows returned"]},
        ),
        _error(
            "53400",
            f"{_NUMBER} rows would be changed, and rule {asked.rule} allows {affected}; nothing was changed",
            "Narrow the WHERE, or change the rows in smaller steps.",
            {
                **detail, "limit": "max_affected", "allowed": affected, "found": _NUMBER, "reasons": ["max_affected"],
                "matched": ["rows affected"],
            },
        ),
        _error(
            "57014",
            f"the statement ran longer than the {asked.statement_timeout or 0:g} s that rule {asked.rule} allows, and was cancelled",
            "Ask for less, or use conditions that an index serves.",
            {
                **detail, "limit": "statement_timeout", "allowed": asked.statement_timeout, "reasons": ["statement_timeout"],
                "matched": ["time"],
            },
        ),
    )  # fmt: skip


def _error(sqlstate: str, message: str, hint: str, detail: dict[str, Any]) -> bytes:
    return from_refused(Refused(sqlstate, message, hint=hint, detail=detail), fatal=False)


class Clock:
    """The clock of one session whose statements may have to keep a time or a number of rows.

    ``interrupt`` sends the server a cancel request for what runs now; ``finish`` ends the session with a FATAL.
    """

    __slots__ = ("_every", "_finish", "_interrupt", "_link", "_looked", "_ordered", "_since", "_timer")

    def __init__(self, link: Link, interrupt: Callable[[], None], finish: Callable[[str, str], None]) -> None:
        self._link = link
        self._interrupt = interrupt
        self._finish = finish
        self._every = _LONGEST_LOOK  # seconds between two looks
        self._looked = asyncio.get_running_loop().time()
        self._since: tuple[int, float] = (0, 0.0)  # what ran at the last look, and since when at least
        self._ordered: tuple[int, float] = (0, 0.0)  # what was to be cancelled, and when
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, shortest: float) -> None:
        """From now on a statement may have as little time as this, in seconds."""
        self._every = min(_LONGEST_LOOK, shortest / 4)
        if self._timer is None:
            self._look()
        elif self._timer.when() > asyncio.get_running_loop().time() + self._every:
            self._timer.cancel()
            self._look()

    def stop(self) -> None:
        """The session is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, wait = loop.time(), self._every
        running = self._link.kept
        if running is not None:
            receipt, milliseconds, over = running
            if self._since[0] != receipt:
                self._since = (receipt, self._looked)
            left = self._since[1] + milliseconds / 1000 - now if milliseconds else float("inf")
            if over or left <= 0:
                self._end(receipt, now, over)
            else:
                wait = min(wait, max(0.001, left))
        self._looked = now
        self._timer = loop.call_later(wait, self._look)

    def _end(self, receipt: int, now: float, over: bool) -> None:
        if self._ordered[0] != receipt:
            self._ordered = (receipt, now)
        elif now - self._ordered[1] > _GRACE and not over:
            self._finish("57014", "a statement went on after its time was up and it had been cancelled; the session ends")
            return
        if over or self._link.time_up(receipt):
            self._interrupt()

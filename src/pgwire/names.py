"""The names that SQL gives and takes: prepared statements and cursors share their names with the protocol's.

The tables are the link's; here is what a statement that has succeeded does to them (PREPARE, DEALLOCATE, DECLARE, CLOSE,
DISCARD, and savepoints, whose rollback closes the cursors opened since). Where the gateway can't know what a name stands for
it forgets it: what is unknown is refused.

Never add here: a decision, or reading of SQL.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgwire.hot.relay import Link
from pgwire.ports import NameChange

__all__ = ["SessionNames"]


class SessionNames:
    """What one session's savepoints are, and the changes made to its link's names."""

    __slots__ = ("_savepoints",)

    def __init__(self) -> None:
        self._savepoints: list[tuple[str, int]] = []  # name, and the newest portal when it was set

    def change(self, link: Link, changes: Sequence[NameChange], results: int, succeeded: bool) -> None:
        """A text has ended with ``results`` of its statements done; what they did to names is true now."""
        ends = any(change.space in ("commit", "rollback", "rollback_to") for change in changes)
        for change in changes:
            if change.index < results:
                self._one(link, change, sure=succeeded and not ends)
        if link.status == "I":
            self._savepoints.clear()

    def _one(self, link: Link, change: NameChange, *, sure: bool) -> None:
        name = change.name.encode()
        if change.space == "statement":
            if change.text is not None:
                link.define_name(name, change.text)
            else:
                link.forget_name(name or None)
        elif change.space == "cursor":
            # Of one in a text that also ends transactions nobody here knows whether it is left.
            if change.text is None or not sure:
                link.forget_cursor(name or None)
            else:
                link.define_cursor(name, change.text, change.holds)
        else:
            self._savepoint(link, change)

    def _savepoint(self, link: Link, change: NameChange) -> None:
        if change.space == "savepoint":
            self._savepoints.append((change.name, link.mark()))
        elif change.space in ("release", "rollback_to"):
            at = next((at for at in reversed(range(len(self._savepoints))) if self._savepoints[at][0] == change.name), None)
            if change.space == "rollback_to":
                link.forget_since(0 if at is None else self._savepoints[at][1])
            if at is not None:
                del self._savepoints[at + (change.space == "rollback_to") :]

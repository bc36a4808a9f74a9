"""One timer ends all sessions, each at its own time."""

from __future__ import annotations

import asyncio
import time

from pgwire.deadlines import Deadlines


class Ended:
    """Notes when and how it was told to end."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def end(self, sqlstate: str, message: str) -> None:
        self.told.append((sqlstate, message))


async def test_each_session_ends_at_its_time_and_a_dropped_one_never() -> None:
    deadlines, now = Deadlines(), time.time()
    late, soon, gone, past = Ended(), Ended(), Ended(), Ended()
    deadlines.set(late, now + 0.30)
    deadlines.set(soon, now + 0.05)
    deadlines.set(gone, now + 0.06)
    deadlines.drop(gone)
    deadlines.drop(gone)
    await asyncio.sleep(0.15)
    assert [len(each.told) for each in (late, soon, gone)] == [0, 1, 0]
    assert soon.told == [("57P01", "the grant of this session has expired")]
    deadlines.set(past, now - 1)
    await asyncio.sleep(0.02)
    assert len(past.told) == 1
    await asyncio.sleep(0.25)
    assert [len(each.told) for each in (late, soon, gone, past)] == [1, 1, 0, 1]


async def test_an_earlier_deadline_does_not_wait_for_a_later_one() -> None:
    deadlines, now = Deadlines(), time.time()
    sessions = [Ended() for _ in range(20)]
    for i, session in enumerate(reversed(sessions)):
        deadlines.set(session, now + 0.02 + 0.2 * (20 - i) / 20)
    deadlines.drop(sessions[0])  # the one that the timer waits for
    await asyncio.sleep(0.4)
    assert [len(session.told) for session in sessions] == [0] + [1] * 19

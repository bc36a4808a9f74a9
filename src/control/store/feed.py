"""Telling watchers in this process that something changed.

Never add here: storage, or waiting for a slow watcher: one that falls too far behind is cut off and told so.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Feed", "Overrun", "Subscription"]

T = TypeVar("T")


class Overrun(Exception):
    """The watcher fell behind by more changes than the feed keeps for it; it must watch anew."""


class Feed(Generic[T]):
    """Changes, to everyone who subscribed before they were published. Use it on one event loop."""

    def __init__(self, backlog: int = 1024) -> None:
        """``backlog`` is how many unread changes a watcher may have."""
        self._backlog = backlog
        self._subscriptions: set[Subscription[T]] = set()

    def publish(self, change: T) -> None:
        """Tell every watcher. Never waits and never raises."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(change)

    def subscribe(self) -> Subscription[T]:
        """A watcher; it gets changes from now on. Use it as a context manager and iterate it."""
        subscription = Subscription(self._subscriptions, self._backlog)
        self._subscriptions.add(subscription)
        return subscription


class Subscription(Generic[T]):
    """One watcher's changes, in order. Iterating raises ``Overrun`` after the last change kept for it."""

    def __init__(self, subscriptions: set[Subscription[T]], backlog: int) -> None:
        self._subscriptions = subscriptions
        self._backlog = backlog
        self._changes: asyncio.Queue[T | None] = asyncio.Queue()

    def offer(self, change: T) -> None:
        """Put a change behind the others; the feed calls this."""
        if self._changes.qsize() < self._backlog:
            self._changes.put_nowait(change)
        else:
            self._subscriptions.discard(self)
            self._changes.put_nowait(None)

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._subscriptions.discard(self)

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        change = await self._changes.get()
        if change is None:
            raise Overrun("too many changes were not read in time; watch anew")
        return change

"""Server connections that sessions have left in good order, kept for the next session of the same principal and grant.

A connection is kept after ``DISCARD ALL`` and used again only by the same principal under the same grant with the same startup
parameters, after a round trip that sets ``application_name`` and the role anew. Both answers must be the expected ones, message
by message, and every reported parameter as it was at the login. What is not certain is closed.

Never add here: when a session's end is clean enough (its session says so), how a login is made, or state of a policy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pgwire import messages
from pgwire.errand import Errand
from pgwire.errors import ProtocolViolation
from pgwire.hot.reactor import Reactor
from pgwire.hot.tls import TlsError
from pgwire.patience import Patience
from pgwire.ports import Grant, Lease, Principal
from pgwire.server_login import ServerConnection

__all__ = ["WarmKey", "WarmLimits", "WarmServers", "warm_key"]

_log = logging.getLogger(__name__)
_ANSWER = 2.0  # seconds for a server's answer; one that takes longer is not used
_SWEEP = 1.0  # seconds between looks at what is kept
_MOST_ENDED = 4096  # grants that are remembered as ended
_MOST_TEXTS = 256
_NAME = "application_name"


class WarmKey(NamedTuple):
    """Who may use a connection: nobody but the same principal under the same grant, with the same startup parameters."""

    grant: str
    database: str
    issuer: str
    subject: str
    acts_for: str | None
    groups: frozenset[str]
    parameters: frozenset[tuple[str, str]]


def warm_key(principal: Principal, grant: Grant, parameters: Mapping[str, str]) -> WarmKey:
    """The key of a session. ``application_name`` is no part of it: it is set anew each time."""
    same = frozenset(pair for pair in parameters.items() if pair[0] != _NAME)
    return WarmKey(grant.id, grant.scope.database, principal.issuer, principal.subject, principal.acts_for, principal.groups, same)


@dataclass(frozen=True, slots=True)
class WarmLimits:
    """At most ``per_login`` connections are kept for one key and ``total`` in all; 0 keeps none.

    ``idle`` and ``age`` are the seconds after which one is closed, since its last session and since its login.
    """

    per_login: int = 4
    total: int = 32
    idle: float = 30.0
    age: float = 600.0


def pairs(statuses: bytes) -> dict[str, str]:
    """ParameterStatus messages as names and values; of a name told twice the last value."""
    found = {}
    at = 0
    while (one := messages.whole(statuses, at, len(statuses))) is not None:
        name, value = messages.read_pair(statuses[at + 5 : one[1]])
        found[name] = value
        at = one[1]
    return found


def with_name(statuses: bytes, name: str) -> bytes:
    """The ParameterStatus messages of a login, with another application_name."""
    return b"".join(
        messages.message(b"S", key.encode() + b"\0" + (name if key == _NAME else value).encode() + b"\0")
        for key, value in pairs(statuses).items()
    )


class WarmServers:
    """The connections that are kept, on one event loop. ``give_back`` is told of each lease that no connection has any more."""

    def __init__(self, limits: WarmLimits, give_back: Callable[[Lease], Awaitable[None]]) -> None:
        self._limits = limits if limits.per_login and limits.total else WarmLimits(0, 0)
        self._give_back = give_back
        self._kept: dict[ServerConnection, WarmKey] = {}  # the longest kept first
        self._by_key: dict[WarmKey, list[ServerConnection]] = {}
        self._ended: dict[str, None] = {}  # grants, the latest last
        self._texts: dict[bytes, bytes] = {}
        self._keys: dict[WarmKey, WarmKey] = {}
        self._leaving: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._patience = Patience(_ANSWER)

    def __len__(self) -> int:
        return len(self._kept)

    def shared(self, statuses: bytes) -> bytes:
        """The same bytes, once for all connections whose logins told the same: idle sessions keep them too."""
        if len(self._texts) >= _MOST_TEXTS:
            self._texts.clear()
        return self._texts.setdefault(statuses, statuses)

    def shared_key(self, key: WarmKey) -> WarmKey:
        """The same key, once for all sessions that have it."""
        if len(self._keys) >= _MOST_TEXTS:
            self._keys.clear()
        return self._keys.setdefault(key, key)

    def take(self, key: WarmKey, name: str | None, reactor: Reactor) -> ServerConnection | None:
        """One to be used with ``name`` as its ``application_name`` when ``confirm`` has said so; None: there is none.

        It is the caller's from now on, with its lease.
        """
        while (found := self._next(key, name)) is not None:
            self._forget(found)
            if self._asked(found, name, reactor):
                found.warm = True
                return found
            self._leave(found)
        return None

    async def confirm(self, one: ServerConnection) -> bool:
        """Whether the server has answered as it should, and everything is as it was at its login."""
        errand, one.errand = one.errand, None
        if errand is not None:
            try:
                with self._patience.limit():
                    while data := await one.leg.receive():
                        if errand.receive(data):
                            if _unchanged(one.statuses, errand.told):
                                return True
                            break
            except (ConnectionError, TlsError, TimeoutError, ProtocolViolation) as error:
                _log.info("a server connection is not used again: %s", error)
        # If one of them is dead the others are likely to be: its server may have been restarted.
        self.shrink(one.lease)
        return False

    def keep(self, key: WarmKey, one: ServerConnection, changes: bytes | None) -> bool:
        """Reset ``one`` and keep it; what the server answers is read before it is used. False: it stays the caller's.

        ``changes`` are the ParameterStatus messages of its session (None: nobody knows them).
        """
        if changes is None or not self._has_room(key, one):
            return False
        errand = one.errand = Errand(changes)
        try:
            one.leg.leg.send(errand.add("DISCARD ALL", "DISCARD ALL"))
        except ConnectionError:
            return False
        if len(self._kept) >= self._limits.total:
            self._drop(next(iter(self._kept)))
        one.idle_since = time.monotonic()
        self._kept[one] = key
        self._by_key.setdefault(key, []).append(one)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        return True

    def end_grant(self, grant_id: str) -> None:
        """The grant is over: its connections are closed now, and none of it is kept any more."""
        self._ended[grant_id] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self._drop_where(lambda one, key: key.grant == grant_id)

    def shrink(self, lease: Lease) -> bool:
        """Close what is kept of the lease's server: room is needed there. Whether there was any."""
        return self._drop_where(lambda one, key: (one.lease.host, one.lease.port) == (lease.host, lease.port))

    def clear(self) -> None:
        """Close everything that is kept."""
        self._drop_where(lambda one, key: True)

    def stop(self) -> None:
        """Close everything, and keep nothing from now on."""
        self._closed = True
        self.clear()

    async def close(self) -> None:
        """As ``stop``; the leases are given back on return."""
        self.stop()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    # -- one connection ------------------------------------------------------------------------------------------

    def _next(self, key: WarmKey, name: str | None) -> ServerConnection | None:
        """The one used last, if there is one with this name: RESET then gives the name that its client expects."""
        found = self._by_key.get(key)
        if not found:
            return None
        return next((one for one in reversed(found) if one.name == name), found[-1])

    def _asked(self, one: ServerConnection, name: str | None, reactor: Reactor) -> bool:
        """Whether the server could be asked to be ready for ``name``."""
        if not self._is_fresh(one, time.monotonic(), time.time()) or not one.leg.leg.move(reactor):
            return False
        if one.errand is None and not one.leg.leg.untouched():
            return False
        errand = one.errand = one.errand or Errand()
        # The role too: before PostgreSQL's releases of November 2024 DISCARD ALL lost one that ALTER ROLE ... SET role gives.
        if one.name == name:
            request = errand.add("RESET ROLE", "RESET")
        else:
            quoted = (name or "").replace("'", "''")
            request = errand.add(f"RESET ROLE; SET {_NAME} TO '{quoted}'", "RESET", "SET")
        try:
            one.leg.leg.send(request)
        except ConnectionError:
            return False
        return True

    def _has_come_to_rest(self, one: ServerConnection, now: float) -> bool:
        """Whether nothing is wrong with one that is kept; its reset's answer is read when it has come."""
        if one.errand is None:
            return one.leg.leg.untouched()
        try:
            data = one.leg.leg.receive()
            if data is None:
                return now - one.idle_since < _ANSWER
            if not one.errand.receive(data):
                return bool(data)
        except (ConnectionError, ProtocolViolation):
            return False
        told, one.errand = one.errand.told, None
        return _unchanged(one.statuses, told)

    def _has_room(self, key: WarmKey, one: ServerConnection) -> bool:
        return (
            not self._closed
            and key.grant not in self._ended
            and len(self._by_key.get(key, ())) < self._limits.per_login
            and self._is_fresh(one, time.monotonic(), time.time())
        )

    def _is_fresh(self, one: ServerConnection, now: float, wall: float) -> bool:
        return now - one.born < self._limits.age and one.lease.expires_at - wall > _SWEEP

    # -- those that are kept -------------------------------------------------------------------------------------

    def _forget(self, one: ServerConnection) -> None:
        key = self._kept.pop(one)
        rest = self._by_key[key]
        rest.remove(one)
        if not rest:
            del self._by_key[key]

    def _leave(self, one: ServerConnection) -> None:
        one.close()
        task = asyncio.ensure_future(self._give_back(one.lease))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _drop(self, one: ServerConnection) -> None:
        self._forget(one)
        self._leave(one)

    def _drop_where(self, over: Callable[[ServerConnection, WarmKey], bool]) -> bool:
        found = [one for one, key in self._kept.items() if over(one, key)]
        for one in found:
            self._drop(one)
        return bool(found)

    def _sweep(self) -> None:
        self._timer = None
        now, wall = time.monotonic(), time.time()
        self._drop_where(
            lambda one, key: (
                now - one.idle_since > min(self._limits.idle, one.lease.idle)
                or not self._is_fresh(one, now, wall)
                or not self._has_come_to_rest(one, now)
            )
        )
        if self._kept:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)


def _unchanged(statuses: bytes, told: bytes) -> bool:
    """Whether what was told last of each parameter is what the login told; application_name is set anew at each use."""
    if not told:
        return True
    was = pairs(statuses)
    return all(was.get(name) == value for name, value in pairs(told).items() if name != _NAME)

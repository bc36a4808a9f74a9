"""The credentials port: each database's grants go to its own source of logins.

Never add here: how a login is made.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from pgwire.ports import Grant, Lease, Refused

__all__ = ["LoginSource", "Logins"]

_log = logging.getLogger(__name__)


class LoginSource(Protocol):
    """One database's way to logins."""

    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """A login for ``grant``. Raises ``Refused``."""
        ...

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """See ``ports.Credentials``."""
        ...

    async def give_back(self, lease: Lease) -> None:
        """Nothing is connected with it any more. Never raises."""
        ...

    async def end_grant(self, grant_id: str) -> None:
        """The grant is over: its logins must stop working. Raises when that could not be done (it is tried again)."""
        ...

    async def start(self, active_grants: frozenset[str]) -> None:
        """Clear away what an earlier process left, but for the grants that still stand. Raises ``Refused``."""
        ...

    async def check(self) -> list[str]:
        """What stands in the way of making logins, one sentence each; empty when all is well."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Logins:
    """Implements ``pgwire.ports.Credentials`` over one ``LoginSource`` per database."""

    def __init__(self, sources: Mapping[str, LoginSource]) -> None:
        self._sources = dict(sources)
        self._by_lease: dict[str, LoginSource] = {}
        self._over: deque[str] = deque(maxlen=4096)  # grants that have ended lately

    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """A login for one session. Raises ``Refused``."""
        source = self._sources.get(grant.scope.database)
        if source is None:
            raise Refused("3D000", f'database "{grant.scope.database}" is not served here')
        lease = await source.lease(grant, session_id)
        if grant.id in self._over:
            # It ended while the login was being made, which may have been after its logins were taken away.
            await source.give_back(lease)
            await source.end_grant(grant.id)
            raise Refused("28000", "the grant has just ended", hint="Ask an operator for a new one: pgleash grants create.")
        self._by_lease[lease.id] = source
        return lease

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """See ``ports.Credentials``."""
        source = self._by_lease.get(lease.id)
        if source is None or grant.id in self._over:
            return None
        found = await source.again(lease, grant)
        # It may have ended meanwhile, as above.
        return found if grant.id not in self._over else None

    async def give_back(self, lease: Lease) -> None:
        """Nothing is connected with ``lease`` any more. Never raises."""
        source = self._by_lease.pop(lease.id, None)
        if source is None:
            return
        try:
            await source.give_back(lease)
        except Exception:
            _log.exception("a login could not be given back")

    async def end_grant(self, database: str, grant_id: str) -> None:
        """The logins of ``grant_id`` stop working. Raises when that could not be done."""
        if grant_id not in self._over:
            self._over.append(grant_id)
        source = self._sources.get(database)
        if source is not None:
            await source.end_grant(grant_id)

    async def start(self, active_grants: frozenset[str]) -> None:
        """Clear away leftovers everywhere; a database that is down now is logged, not fatal."""
        for name, source in self._sources.items():
            try:
                await source.start(active_grants)
            except Refused as refused:
                _log.warning("database %s: leftovers were not cleared: %s (%s)", name, refused, refused.private)

    async def close(self) -> None:
        """Let go of every source's connections."""
        for source in self._sources.values():
            await source.close()

"""One login for everybody: for trying out, and for servers where roles can't be made.

Never add here: more logins; what is granted to one agent only belongs to minted roles or Vault.
"""

from __future__ import annotations

from control.credentials.place import Place
from pgwire.ports import Grant, Lease

__all__ = ["FixedLogin"]


class FixedLogin:
    """Always the same user and password. Grants end with their sessions; the login stays."""

    def __init__(self, place: Place, user: str, password: str) -> None:
        self._place = place
        self._user = user
        self._password = password

    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """The login, until the grant ends."""
        place = self._place
        return Lease(session_id, place.host, place.port, place.dbname, self._user, self._password, place.tls, grant.expires_at)

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """The same."""
        return lease

    async def give_back(self, lease: Lease) -> None:
        """Nothing to do."""

    async def end_grant(self, grant_id: str) -> None:
        """Nothing to do."""

    async def start(self, active_grants: frozenset[str]) -> None:
        """Nothing to prepare."""

    async def check(self) -> list[str]:
        """No further requirements than a login that works, which the catalog shows."""
        return []

    async def close(self) -> None:
        """Nothing is held."""

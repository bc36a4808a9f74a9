"""Logins from Vault's database secrets engine: one lease per session, renewed while it lasts, revoked after it.

Source: Vault HTTP API, /v1/<mount>/creds/<role>, /v1/sys/leases/renew and /v1/sys/leases/revoke.

Never add here: what a login may do; Vault's creation statements say that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import hvac
import hvac.exceptions
import requests

from control.credentials.place import Place
from pgwire.ports import Grant, Lease, Refused

__all__ = ["VaultLeases"]

_log = logging.getLogger(__name__)
_TIMEOUT = 10.0  # seconds for one call
_MARGIN = 2.0  # seconds that a lease must have left to serve another session
_IDLE = 3.0  # seconds that a connection may wait for another session: a login that nobody uses is revoked soon
_LATER = "Try again shortly; if it persists, tell the gateway's operator."
T = TypeVar("T")


class VaultLeases:
    """Borrows logins of one Vault role. Authenticates with a token or an AppRole (role id, secret id)."""

    def __init__(
        self,
        place: Place,
        address: str,
        role: str,
        *,
        mount: str = "database",
        token: str | None = None,
        approle: tuple[str, str] | None = None,
    ) -> None:
        self._place = place
        self._role = role
        self._mount = mount
        self._token = token
        self._approle = approle
        self._client = hvac.Client(url=address, token=token, timeout=_TIMEOUT)
        self._token_seconds = 0.0
        self._token_keeper: asyncio.Task[None] | None = None
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._by_grant: dict[str, set[str]] = {}
        self._vault_id: dict[str, str] = {}

    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """A fresh login. Raises ``Refused``: 57P03 (Vault sealed or down), 08004 (it refuses us)."""
        answer = await self._call(lambda: self._client.secrets.database.generate_credentials(name=self._role, mount_point=self._mount))
        try:
            user, password = str(answer["data"]["username"]), str(answer["data"]["password"])
            vault_id, seconds = str(answer["lease_id"]), float(answer["lease_duration"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                "08004", "the credential store gave an unusable answer", hint=_LATER, private=f"vault: {type(error).__name__}: {error}"
            ) from error
        self._vault_id[session_id] = vault_id
        self._by_grant.setdefault(grant.id, set()).add(session_id)
        ends = grant.expires_at
        if answer.get("renewable"):
            self._renewals[session_id] = asyncio.create_task(self._renew(vault_id, seconds), name=f"renewal of {session_id}")
        elif seconds > 0:
            ends = min(ends, time.time() + seconds)
        place = self._place
        return Lease(session_id, place.host, place.port, place.dbname, user, password, place.tls, ends, idle=_IDLE)

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """The same login, if Vault renews its lease now: it may have been revoked there. Raises ``Refused`` 57P03 as ``lease``."""
        vault_id = self._vault_id.get(lease.id)
        if vault_id is None or lease.id not in self._renewals:
            return None
        try:
            answer = await self._call(lambda: self._client.sys.renew_lease(vault_id))
            return lease if float(answer["lease_duration"]) > _MARGIN else None
        except Refused as refused:
            if refused.sqlstate == "57P03":
                raise
            _log.info("a lease is not used again: %s", refused.private)
        except (KeyError, TypeError, ValueError):
            pass
        return None

    async def give_back(self, lease: Lease) -> None:
        """Revoke the session's lease, so that Vault drops the role now. Never raises."""
        await self._revoke(lease.id)

    async def end_grant(self, grant_id: str) -> None:
        """Revoke what is still borrowed for the grant."""
        for session_id in list(self._by_grant.get(grant_id, ())):
            await self._revoke(session_id)
        self._by_grant.pop(grant_id, None)

    async def start(self, active_grants: frozenset[str]) -> None:
        """Nothing to clear: leases that an earlier process did not revoke end by their own time."""

    async def check(self) -> list[str]:
        """Whether Vault answers and gives a login."""
        try:
            answer = await self._call(lambda: self._client.secrets.database.generate_credentials(name=self._role, mount_point=self._mount))
            await self._call(lambda: self._client.sys.revoke_lease(str(answer["lease_id"])))
        except Refused as refused:
            return [f"{refused.message}: {refused.private}"]
        except (KeyError, TypeError):
            return [f"Vault's role {self._role} under {self._mount} gives no login"]
        return []

    async def close(self) -> None:
        """Revoke every lease that is still out."""
        if self._token_keeper is not None:
            self._token_keeper.cancel()
        for session_id in list(self._vault_id):
            await self._revoke(session_id)

    async def _revoke(self, session_id: str) -> None:
        renewal = self._renewals.pop(session_id, None)
        if renewal is not None:
            renewal.cancel()
        for sessions in self._by_grant.values():
            sessions.discard(session_id)
        vault_id = self._vault_id.pop(session_id, None)
        if vault_id is None:
            return
        try:
            await self._call(lambda: self._client.sys.revoke_lease(vault_id))
        except Refused as refused:
            _log.error("a Vault lease was not revoked and ends by itself: %s", refused.private)

    async def _keep_token(self) -> None:
        # When a token ends, Vault revokes every lease that was taken with it: so it must not end.
        while self._token_seconds > 0:
            await asyncio.sleep(max(1.0, self._token_seconds * 2 / 3))
            try:
                answer = await self._call(lambda: self._client.auth.token.renew_self())
                self._token_seconds = float(answer["auth"]["lease_duration"])
            except (Refused, KeyError, TypeError, ValueError) as error:
                _log.warning("the Vault token was not renewed: %s", error)
                self._token_seconds = max(2.0, self._token_seconds / 3)

    async def _renew(self, vault_id: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(max(1.0, seconds * 2 / 3))
            with contextlib.suppress(KeyError, TypeError, ValueError):
                try:
                    answer = await self._call(lambda: self._client.sys.renew_lease(vault_id))
                    seconds = float(answer["lease_duration"])
                except Refused as refused:
                    _log.warning("a Vault lease was not renewed: %s", refused.private)
                    seconds = max(2.0, seconds / 3)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run one blocking call in a thread; log in again once when the token is no longer good."""
        try:
            if self._approle is not None and self._client.token is None:
                await asyncio.to_thread(self._log_in)
                if self._token_keeper is None:
                    self._token_keeper = asyncio.create_task(self._keep_token(), name="Vault token")
            try:
                return await asyncio.to_thread(work)
            except hvac.exceptions.Forbidden:
                if self._approle is None:
                    raise
                await asyncio.to_thread(self._log_in)
                return await asyncio.to_thread(work)
        except hvac.exceptions.VaultDown as error:
            sealed = "sealed" in str(error).lower()
            what = "is sealed" if sealed else "is not available"
            raise Refused("57P03", f"the credential store (Vault) {what}", hint=_LATER, private=_short(error)) from error
        except hvac.exceptions.VaultError as error:
            raise Refused(
                "08004", "the credential store (Vault) gives no login", hint="Tell the gateway's operator.", private=_short(error)
            ) from error
        except requests.RequestException as error:
            raise Refused("57P03", "the credential store (Vault) can't be reached", hint=_LATER, private=_short(error)) from error

    def _log_in(self) -> None:
        assert self._approle is not None
        role_id, secret_id = self._approle
        answer = self._client.auth.approle.login(role_id=role_id, secret_id=secret_id)
        self._token_seconds = float(answer["auth"]["lease_duration"])


def _short(error: Any) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

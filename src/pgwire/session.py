"""One session, read from top to bottom: greet, authenticate, lease, connect, welcome, serve, farewell.

While it serves, :class:`pgwire.hot.relay.Link` does the work in C and asks this object what C can't decide; the asking is
in :mod:`pgwire.serving`.

Never add here: reading of message bodies, or knowledge of what a policy or a credential is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pgwire.cancel import CancelKeys
from pgwire.client_startup import CancelRequested, NotAnswered, Started
from pgwire.deadlines import Deadlines
from pgwire.errors import GatewayError, TooManyConnections, error_response, from_refused
from pgwire.greeting import Greeting
from pgwire.hot.reactor import Reactor
from pgwire.hot.relay import Link
from pgwire.hot.tls import TlsContext, TlsError
from pgwire.legs import ColdLeg, connect
from pgwire.messages import cancel_request
from pgwire.parameters import as_statement, server_parameters
from pgwire.patience import Patience
from pgwire.ports import (
    Approvals,
    Audit,
    Credentials,
    Effect,
    Grant,
    Grants,
    Identity,
    Inquiries,
    Lease,
    Peer,
    Policy,
    Principal,
    Proof,
    Refused,
    SessionInfo,
    SessionPolicy,
    Sessions,
    Statement,
)
from pgwire.scram import ScramKeys
from pgwire.server_login import ServerConnection, log_in
from pgwire.serving import Serving
from pgwire.warm import WarmKey, WarmServers, warm_key, with_name

__all__ = ["Parts", "Session"]

_log = logging.getLogger(__name__)
_REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})  # RFC 7519 section 4.1; what of them counts is told by name
_FAREWELL = 5.0  # seconds for the last bytes to reach the client
_MAKING_ROOM = 4  # logins that are tried while a full server lets go of what was kept there
_ROOM_AFTER = 0.05  # seconds between them


@dataclass(frozen=True, slots=True)
class Parts:
    """What a session works with: the ports and the settings of the listener.

    ``login_timeout`` is seconds, ``max_statement`` and ``statement_bytes`` bytes (the latter: recorded of one statement's
    traffic, 0 for nothing). ``remind`` is seconds between notices while a statement is held. ``mask_key`` is 32 secret bytes for
    pseudonyms. ``new_number`` gives journal session numbers.
    """

    identity: Identity
    grants: Grants
    credentials: Credentials
    policy: Policy
    approvals: Approvals
    audit: Audit
    sessions: Sessions
    new_number: Callable[[], int]
    mask_key: bytes = field(repr=False)
    tls: TlsContext | None = None
    plaintext_on_loopback: bool = False
    login_timeout: float = 30.0
    max_statement: int = 16 * 1024 * 1024
    statement_bytes: int = 256 * 1024
    remind: float = 30.0
    inquiries: Inquiries | None = None
    scram_keys: ScramKeys = field(default_factory=ScramKeys, repr=False)
    old_servers: set[tuple[str, int]] = field(default_factory=set)
    warm: WarmServers | None = None
    deadlines: Deadlines = field(default_factory=Deadlines, repr=False)
    login_patience: Patience = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "login_patience", Patience(self.login_timeout))


@dataclass(slots=True)
class _Opened:
    # what has been opened on the way in, for the way out
    info: SessionInfo
    policy: SessionPolicy
    server: ServerConnection
    warm_key: WarmKey
    name: str | None
    key: bytes = b""


class Session:
    """One client connection. ``run`` never raises."""

    __slots__ = ("_canceller", "_client", "_ending", "_full", "_greeting", "_keys", "_opened", "_parts", "_reactor", "_serving", "_struck")

    def __init__(
        self, parts: Parts, reactor: Reactor, client: ColdLeg, peer: Peer, keys: CancelKeys, full: bool = False, proxied: bool = False
    ) -> None:
        self._parts = parts
        self._reactor = reactor
        self._client = client
        self._keys = keys
        self._full = full
        self._opened: _Opened | None = None
        self._serving: Serving | None = None
        self._ending: tuple[str, str] | None = None
        self._canceller: asyncio.Future[None] | None = None
        self._struck = False  # a cancel request was sent for it, and may hit what comes next on its server connection
        self._greeting = Greeting(client, peer, parts.tls, proxied=proxied, plaintext_on_loopback=parts.plaintext_on_loopback)

    async def run(self) -> None:
        """The whole session. Every failure is told to the client, as far as it may know it."""
        try:
            # While the session is idle this frame is all that waits: there may be many thousands of it.
            opened = self._opened = await self._enter()
            if opened is not None:
                reason = "the gateway failed"
                try:
                    reason = await self._serve(opened)
                except asyncio.CancelledError:
                    reason = "the gateway is shutting down"
                    self.end("57P01", reason)
                finally:
                    await self._farewell(opened, reason)
        except NotAnswered as error:
            # Not a client of ours: PostgreSQL hangs up without a word, so do we.
            _log.info("connection from %s ended: %s", _where(self._greeting.peer), error)
        except Refused as refused:
            if refused.private:
                _log.warning("session from %s refused: %s (%s)", _where(self._greeting.peer), refused, refused.private)
            await self._say(from_refused(refused, fatal=True))
        except (ConnectionError, TlsError) as error:
            _log.info("connection from %s ended: %s", _where(self._greeting.peer), error)
        except asyncio.CancelledError:
            await self._say(error_response("FATAL", "57P01", "the gateway is shutting down"))
        except Exception:
            _log.exception("session failed")
            await self._say(error_response("FATAL", "XX000", "internal error in the gateway; the session ends"))
        finally:
            self._client.close()

    async def _enter(self) -> _Opened | None:
        """Everything up to both logins. None: nothing is to be served."""
        try:
            with self._parts.login_patience.limit():
                started = await self._greet()
                return None if started is None else await self._log_in(started)
        except TimeoutError:
            raise GatewayError("08006", f"the login took longer than {self._parts.login_timeout:g} s") from None

    async def _greet(self) -> Started | None:
        """Up to the startup message. None: it was a cancel request and has been done."""
        started = await self._greeting.begin()
        if isinstance(started, CancelRequested):
            target = self._keys.find(started.pid, started.key)
            if target is not None:
                target.cancel()
            return None
        if self._full:
            raise TooManyConnections("the gateway has no free connection")
        return started

    async def _log_in(self, started: Started) -> _Opened:
        parts, peer = self._parts, self._greeting.peer
        principal: Principal | None = None
        try:
            parameters = server_parameters(started.options, started.settings)
            name = parameters.get("application_name", "")
            principal = await self._authenticate(started, peer, name)
            grant = await parts.grants.open(principal, started.database)
            return await self._open(started, principal, grant, peer, name, parameters)
        except Refused as refused:
            if not isinstance(refused, NotAnswered):
                self._note_refusal(started, principal, peer, refused)
            raise

    async def _authenticate(self, started: Started, peer: Peer, name: str) -> Principal:
        """Who has a verifier proves itself by SCRAM; everybody else's password is a token."""
        verifier = await self._parts.identity.challenge(started.user, started.database)
        if verifier is None:
            proof = Proof(started.user, started.database, await self._greeting.password(), peer, name)
        else:
            await self._greeting.scram(verifier)
            proof = Proof(started.user, started.database, "", peer, name, verifier)
        return await self._parts.identity.authenticate(proof)

    def _note_refusal(self, started: Started, principal: Principal | None, peer: Peer, refused: Refused) -> None:
        self._parts.audit.record(
            "session.refused",
            {
                "user": started.user,
                "subject": principal.subject if principal else None,
                "database": started.database,
                **_origin(peer),
                "sqlstate": refused.sqlstate,
                "message": refused.message,
            },
        )

    async def _open(
        self, started: Started, principal: Principal, grant: Grant, peer: Peer, name: str, parameters: dict[str, str]
    ) -> _Opened:
        parts = self._parts
        session_id = "ses_" + secrets.token_hex(10)
        key = warm_key(principal, grant, parameters)
        if parts.warm is not None:
            key = parts.warm.shared_key(key)
        server = await self._warm(key, grant, parameters)
        lease = server.lease if server is not None else await parts.credentials.lease(grant, session_id)
        try:
            policy = await parts.policy.open(principal, grant, replace(lease, parameters={**parameters, **lease.parameters}))
            await _judge_parameters(policy, parameters)
            if server is not None and not (server.settings == policy.settings and await self._confirmed(server)):
                # Its lease goes with it: the session begins anew with one of its own.
                await self._let_go(server)
                server = None
                lease = await parts.credentials.lease(grant, session_id)
                policy = await parts.policy.open(principal, grant, replace(lease, parameters={**parameters, **lease.parameters}))
            if server is None:
                settings = policy.settings
                server = await self._reach(replace(lease, parameters={**lease.parameters, **settings}) if settings else lease, parameters)
                server.lease, server.settings = lease, settings
            info = SessionInfo(
                session_id, parts.new_number(), principal, grant, started.database, peer, lease.user, name, time.time(), server.pid
            )
            self._note_opening(info, server)
            await parts.sessions.register(info, self.end)
            return _Opened(
                info, policy, server, key, parameters.get("application_name"), self._keys.issue(server.pid, self, started.key_length)
            )
        except BaseException:
            if server is not None:
                server.leg.close()
            await asyncio.shield(parts.credentials.give_back(lease))
            raise

    def _note_opening(self, info: SessionInfo, server: ServerConnection) -> None:
        principal = info.principal
        self._parts.audit.record(
            "session.opened",
            {
                "id": info.id,
                "number": info.number,
                "subject": principal.subject,
                "issuer": principal.issuer,
                "groups": sorted(principal.groups),
                "acts_for": principal.acts_for,
                "claims": {name: value for name, value in principal.claims.items() if name not in _REGISTERED},
                "token_id": principal.token_id,
                "grant": info.grant.id,
                "database": info.database,
                **_origin(info.peer),
                "tls": info.peer.tls,
                "server_user": info.server_user,
                "server_pid": server.pid,
                "warm": server.warm,
                "application_name": info.application_name,
            },
            info.number,
        )

    async def _warm(self, key: WarmKey, grant: Grant, parameters: dict[str, str]) -> ServerConnection | None:
        """A server connection that an earlier session of the same kind has left, if its login is still good."""
        warm, credentials = self._parts.warm, self._parts.credentials
        server = warm.take(key, parameters.get("application_name"), self._reactor) if warm is not None else None
        if server is None:
            return None
        lease: Lease | None = None
        try:
            lease = await credentials.again(server.lease, grant)
        finally:
            if lease != server.lease:
                await self._let_go(server)
        return server if lease == server.lease else None

    async def _confirmed(self, server: ServerConnection) -> bool:
        warm = self._parts.warm
        return warm is not None and await warm.confirm(server)

    async def _let_go(self, server: ServerConnection) -> None:
        """The server connection is closed and its lease given back."""
        server.close()
        await asyncio.shield(self._parts.credentials.give_back(server.lease))

    async def _reach(self, lease: Lease, parameters: dict[str, str]) -> ServerConnection:
        """A fresh server connection. Where the server has none free, what is kept there makes room."""
        parts = self._parts
        tries = _MAKING_ROOM
        while True:
            try:
                return await log_in(self._reactor, lease, parameters, parts.scram_keys, parts.old_servers)
            except Refused as refused:
                if refused.sqlstate != "53300" or parts.warm is None or not (parts.warm.shrink(lease) or 0 < tries < _MAKING_ROOM):
                    raise
            tries -= 1
            await asyncio.sleep(_ROOM_AFTER)

    def _serve(self, opened: _Opened) -> asyncio.Future[str]:
        """Join the legs. What is answered resolves to the reason when the session is to end."""
        parts = self._parts
        serving = Serving(parts.approvals, parts.audit, opened.policy, opened.info, parts.mask_key, parts.remind, parts.inquiries)
        link = Link(
            self._reactor,
            self._client.leg,
            opened.server.leg.leg,
            opened.info.number,
            serving.on_event,
            statement_bytes=parts.statement_bytes,
            max_statement=parts.max_statement,
        )
        serving.link = link
        serving.owner = self
        self._serving = serving
        server = opened.server
        statuses = server.statuses if server.name == opened.name else with_name(server.statuses, opened.name or "")
        self._client.leg.send(self._greeting.welcome(statuses, server.pid, opened.key))
        if self._greeting.rest:
            self._client.leg.unread(self._greeting.rest)
        self._greeting.forget()
        self._client.release()
        server.leg.release()
        server.statuses = parts.warm.shared(server.statuses) if parts.warm is not None else b""
        serving.follow_policy()
        link.start()
        if self._ending is not None:
            serving.finish(*self._ending)
        ends = min(opened.info.grant.expires_at, opened.server.lease.expires_at)
        if ends < time.time() + 86400 * 30:
            parts.deadlines.set(self, ends)
        return serving.over

    async def _farewell(self, opened: _Opened, reason: str) -> None:
        serving, parts, server = self._serving, self._parts, opened.server
        statements = asked = 0
        changes: bytes | None = None  # known only of a session that has ended in good order
        parts.deadlines.drop(self)
        self._keys.withdraw(server.pid, self)
        if serving is not None and serving.link is not None:
            link = serving.link
            busy = link.outstanding
            statements, asked = link.statements, link.asked
            await serving.stop()
            link.end(serving.last_words)
            if busy and not server.leg.leg.closed:
                await self._cancel_on_server(opened)
            elif link.quit and link.at_rest and self._ending is None and not self._struck:
                changes = link.changes
        if changes is None:
            server.close()
        try:
            await self._see_out()
            self._note_end(opened.info, {"reason": reason, "statements": statements, "asked": asked})
            await parts.sessions.closed(opened.info, reason, statements)
            if serving is not None:
                serving.link = None
        except BaseException:
            changes = None
            raise
        finally:
            # Kept for another session, with its lease; or closed, and the lease given back.
            if parts.warm is None or not parts.warm.keep(opened.warm_key, server, changes):
                await self._let_go(server)

    def _note_end(self, info: SessionInfo, outcome: dict[str, str | int]) -> None:
        try:
            self._parts.audit.record("session.closed", {"id": info.id, **outcome}, info.number)
        except Refused as refused:
            _log.error("the end of session %s could not be audited: %s", info.id, refused)

    async def _see_out(self) -> None:
        """The last bytes go to the client, who may be slow, and its leg is closed."""
        if self._client.leg.pending:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._client.flush()
        self._client.close()

    def end(self, sqlstate: str, message: str) -> None:
        """End the session with a FATAL, now. Safe to call at any time from the event loop."""
        self._ending = (sqlstate, message)
        if self._serving is not None:
            self._serving.finish(sqlstate, message)

    def refresh(self) -> None:
        """The policy or the catalog may have changed: verdicts made before are not used again."""
        if self._serving is not None:
            self._serving.follow_policy()

    def cancel(self) -> None:
        """Stop what runs on the server or waits for an approval."""
        if self._serving is not None and not self._serving.cancel_hold():
            self.interrupt()

    def interrupt(self) -> None:
        """Stop what runs on the server."""
        if self._serving is None or self._opened is None:
            return
        link = self._serving.link
        if link is not None and link.outstanding and self._canceller is None:
            self._canceller = asyncio.ensure_future(self._cancel_running(self._opened, link))

    async def _cancel_running(self, opened: _Opened, link: Link) -> None:
        # What the client sends meanwhile waits, so that the server's signal meets no later statement.
        running = link.running
        link.freeze()
        try:
            await self._cancel_on_server(opened, lambda: link.running == running)
        finally:
            self._canceller = None
            link.thaw()

    async def _cancel_on_server(self, opened: _Opened, still: Callable[[], bool] = lambda: True) -> None:
        server = opened.server
        if not server.key:
            return  # the server gave none
        self._struck = True
        try:
            leg = await connect(self._reactor, server.lease, timeout=5.0)
        except Refused as refused:
            _log.warning("cancel request not sent: %s", refused.private or refused)
            return
        try:
            if not still():
                return
            await leg.send(cancel_request(server.pid, server.key))
            async with asyncio.timeout(5.0):
                await leg.receive()
        except (ConnectionError, TimeoutError):
            pass
        finally:
            leg.close()

    async def _say(self, message: bytes) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._client.send(message)


def _where(peer: Peer) -> str:
    if peer.address == "local":
        return "the Unix socket"
    return f"[{peer.address}]:{peer.port}" if ":" in peer.address else f"{peer.address}:{peer.port}"


def _origin(peer: Peer) -> dict[str, str]:
    # for the audit: where the client is, and what tells more about it
    told = {"peer": "local" if peer.address == "local" else _where(peer)}
    if peer.via:
        told["proxy"] = peer.via
    if peer.account:
        told["account"] = peer.account
    return told


async def _judge_parameters(policy: SessionPolicy, parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        if (text := as_statement(name, value)) is not None:
            verdict = await policy.judge(Statement(text, "simple"))
            if verdict.effect is not Effect.ALLOW:
                raise GatewayError("0A000", f"the startup parameter {name} is not allowed: {verdict.message or 'it would be held'}")

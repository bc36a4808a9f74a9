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
from pgwire.errors import GatewayError, ServerUnavailable, TooManyConnections, error_response, from_refused
from pgwire.greeting import Greeting
from pgwire.hot.reactor import Reactor
from pgwire.hot.relay import Link
from pgwire.hot.tls import TlsContext, TlsError
from pgwire.legs import ColdLeg, connect
from pgwire.messages import PROTOCOL_3_0, PROTOCOL_3_2, cancel_request
from pgwire.parameters import as_statement, server_parameters
from pgwire.ports import (
    Approvals,
    Audit,
    Credentials,
    Effect,
    Grant,
    Grants,
    Identity,
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
from pgwire.server_startup import Derive, NeedMore, Ready, ServerStartup, VersionRefused
from pgwire.serving import Serving

__all__ = ["Parts", "Session"]

_log = logging.getLogger(__name__)
_REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})  # RFC 7519 section 4.1; what of them counts is told by name
_FAREWELL = 5.0  # seconds for the last bytes to reach the client


@dataclass(frozen=True, slots=True)
class Parts:
    """What a session works with: the ports and the settings of the listener.

    ``login_timeout`` is seconds, ``max_statement`` and ``statement_bytes`` bytes (the latter: recorded of one statement's
    traffic, 0 for nothing). ``mask_key`` is 32 secret bytes for pseudonyms. ``new_number`` gives journal session numbers.
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
    scram_keys: ScramKeys = field(default_factory=ScramKeys, repr=False)
    old_servers: set[tuple[str, int]] = field(default_factory=set)
    deadlines: Deadlines = field(default_factory=Deadlines, repr=False)


@dataclass(slots=True)
class _Opened:
    # what has been opened on the way in, for the way out
    info: SessionInfo
    lease: Lease
    policy: SessionPolicy
    server: ColdLeg
    ready: Ready
    key: bytes = b""


class Session:
    """One client connection. ``run`` never raises."""

    __slots__ = ("_canceller", "_client", "_ending", "_full", "_greeting", "_keys", "_opened", "_parts", "_reactor", "_serving")

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
            async with asyncio.timeout(self._parts.login_timeout):
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
        lease = await parts.credentials.lease(grant, session_id)
        server: ColdLeg | None = None
        try:
            policy = await parts.policy.open(principal, grant, _with_path(lease, parameters))
            await _judge_parameters(policy, parameters)
            if policy.settings:
                lease = replace(lease, parameters={**lease.parameters, **policy.settings})
            server, ready = await self._reach(lease, parameters)
            info = SessionInfo(session_id, parts.new_number(), principal, grant, started.database, peer, lease.user, name, time.time())
            parts.audit.record(
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
                    "grant": grant.id,
                    "database": started.database,
                    **_origin(peer),
                    "tls": peer.tls,
                    "server_user": lease.user,
                    "server_pid": ready.pid,
                    "application_name": name,
                },
                info.number,
            )
            await parts.sessions.register(info, self.end)
            opened = _Opened(info, lease, policy, server, ready)
            opened.key = self._keys.issue(ready.pid, self, started.key_length)
            return opened
        except BaseException:
            if server is not None:
                server.close()
            await asyncio.shield(parts.credentials.give_back(lease))
            raise

    async def _reach(self, lease: Lease, parameters: dict[str, str]) -> tuple[ColdLeg, Ready]:
        """A logged-in server leg. What can't read protocol 3.2, an old pooler, is asked for 3.0, from then on at once."""
        old, where = self._parts.old_servers, (lease.host, lease.port)
        if where not in old:
            try:
                return await self._connect(lease, parameters, PROTOCOL_3_2)
            except VersionRefused as refused:
                _log.info("the server of %s does not read protocol 3.2: %s", lease.dbname, refused.private)
        reached = await self._connect(lease, parameters, PROTOCOL_3_0)
        old.add(where)
        return reached

    async def _connect(self, lease: Lease, parameters: dict[str, str], version: int) -> tuple[ColdLeg, Ready]:
        server = await connect(self._reactor, lease)
        try:
            return server, await self._server_login(server, lease, parameters, version)
        except (ConnectionError, TlsError) as error:
            server.close()
            raise ServerUnavailable("the database server ended the connection during login", private=str(error)) from error
        except BaseException:
            server.close()
            raise

    async def _server_login(self, server: ColdLeg, lease: Lease, parameters: dict[str, str], version: int) -> Ready:
        startup = ServerStartup(
            lease.user,
            lease.password,
            lease.dbname,
            {**parameters, **lease.parameters},
            server.leg.peer_certificate(),
            verified=server.leg.encrypted and lease.tls.mode in ("verify-ca", "verify-full"),
            keys=self._parts.scram_keys,
            version=version,
        )
        await server.send(startup.start())
        while True:
            event = startup.next_event()
            if isinstance(event, Ready):
                if startup.rest:
                    server.leg.unread(startup.rest)
                return event
            if isinstance(event, NeedMore):
                data = await server.receive()
                if not data:
                    raise ServerUnavailable("the database server closed the connection during login")
                startup.receive(data)
            elif isinstance(event, Derive):
                await asyncio.to_thread(event.work)
            else:
                await server.send(event.data)

    def _serve(self, opened: _Opened) -> asyncio.Future[str]:
        """Join the legs. What is answered resolves to the reason when the session is to end."""
        parts = self._parts
        serving = Serving(parts.approvals, parts.audit, opened.policy, opened.info, parts.mask_key)
        link = Link(
            self._reactor,
            self._client.leg,
            opened.server.leg,
            opened.info.number,
            serving.on_event,
            statement_bytes=parts.statement_bytes,
            max_statement=parts.max_statement,
        )
        serving.link = link
        serving.interrupt = self.interrupt
        self._serving = serving
        self._client.leg.send(self._greeting.welcome(opened.ready.parameters, opened.ready.pid, opened.key))
        if self._greeting.rest:
            self._client.leg.unread(self._greeting.rest)
        self._greeting.forget()
        opened.ready = replace(opened.ready, parameters=b"")
        serving.follow_policy()
        link.start()
        if self._ending is not None:
            serving.finish(*self._ending)
        ends = min(opened.info.grant.expires_at, opened.lease.expires_at)
        if ends < time.time() + 86400 * 30:
            parts.deadlines.set(self, ends)
        return serving.over

    async def _farewell(self, opened: _Opened, reason: str) -> None:
        serving = self._serving
        parts = self._parts
        statements = asked = 0
        parts.deadlines.drop(self)
        self._keys.withdraw(opened.ready.pid, self)
        if serving is not None and serving.link is not None:
            busy = serving.link.outstanding
            statements, asked = serving.link.statements, serving.link.asked
            await serving.stop()
            serving.link.end(serving.last_words)
            if busy and not opened.server.leg.closed:
                await self._cancel_on_server(opened)
        with contextlib.suppress(ConnectionError):
            opened.server.leg.send(b"X\x00\x00\x00\x04")
        opened.server.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._client.flush()
        self._client.close()
        try:
            outcome = {"id": opened.info.id, "reason": reason, "statements": statements, "asked": asked}
            parts.audit.record("session.closed", outcome, opened.info.number)
        except Refused as refused:
            _log.error("the end of session %s could not be audited: %s", opened.info.id, refused)
        await parts.sessions.closed(opened.info, reason, statements)
        await parts.credentials.give_back(opened.lease)
        if serving is not None:
            serving.link = None

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
        if not opened.ready.key:
            return  # the server gave none
        try:
            leg = await connect(self._reactor, opened.lease, timeout=5.0)
        except Refused as refused:
            _log.warning("cancel request not sent: %s", refused.private or refused)
            return
        try:
            if not still():
                return
            await leg.send(cancel_request(opened.ready.pid, opened.ready.key))
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


def _with_path(lease: Lease, parameters: dict[str, str]) -> Lease:
    # The client's search path is the session's default from its start on, unless the lease has one.
    path = parameters.get("search_path")
    return lease if path is None else replace(lease, parameters={"search_path": path, **lease.parameters})


async def _judge_parameters(policy: SessionPolicy, parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        if (text := as_statement(name, value)) is not None:
            verdict = await policy.judge(Statement(text, "simple"))
            if verdict.effect is not Effect.ALLOW:
                raise GatewayError("0A000", f"the startup parameter {name} is not allowed: {verdict.message or 'it would be held'}")


def _plaintext(parts: Parts, peer: Peer) -> bool:
    return parts.plaintext_on_loopback and peer.address in ("127.0.0.1", "::1")

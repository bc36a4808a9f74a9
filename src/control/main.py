"""The composition root: reads the settings, makes every part, connects them, and runs until told to stop.

The one file that knows both planes. Never add here: behaviour of a part.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import itertools
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from control.audit.checkpoints import Checkpointer, load_or_create_key
from control.audit.events import AuditLog
from control.audit.query import recent_statements
from control.config import (
    ConfigurationError,
    DatabaseSettings,
    IssuerSettings,
    MintedCredentials,
    SecretRef,
    Settings,
    StaticCredentials,
    WebhookSettings,
    load,
)
from control.credentials.fixed import FixedLogin
from control.credentials.minted import MintedRoles
from control.credentials.place import Place
from control.credentials.routing import Logins, LoginSource
from control.credentials.vault import VaultLeases
from control.grants.answers import Answers
from control.grants.approvals import ApprovalDesk
from control.grants.dryrun import DryRunner
from control.grants.evidence import EvidenceGatherer
from control.grants.ledger import GrantLedger, GrantRecord
from control.grants.registry import SessionRegistry
from control.grants.webhooks import Hook, Webhooks
from control.identity.authenticate import Authenticator
from control.identity.passwords import ScramUser, ScramUsers
from control.identity.tokens import TokenVerifier, TrustedIssuer
from control.policy.catalog import Catalog
from control.policy.engine import PolicyEngine
from control.policy.inquiries import Inquiries
from control.policy.rules import PolicyError
from control.policy.trial import Trials
from control.rpc.server import ApiServer
from control.store.database import Store, StoreError
from control.store.feed import Overrun, Subscription
from pgwire.diagnostics import scrub
from pgwire.hot.journal import Journal, JournalDamaged, JournalLocked
from pgwire.hot.reactor import Reactor
from pgwire.hot.tls import TlsContext, TlsError
from pgwire.listener import Listener
from pgwire.ports import Principal, Refused, ServerTls
from pgwire.scram import read_verifier
from pgwire.session import Parts
from pgwire.warm import WarmLimits, WarmServers

__all__ = ["Finding", "Gateway", "doctor", "serve"]

_log = logging.getLogger(__name__)
_TICK = 0.25  # seconds between looks at expiring grants and the policy file
_CATALOG_AGE = 2.0  # seconds after which a catalog is read again while sessions use it
_RETRY = 5.0  # seconds between attempts to take an ended grant's logins away


class Gateway:
    """Everything that one process serves. ``start`` opens it, ``stop`` closes it in good order."""

    def __init__(self, settings: Settings) -> None:
        """Make the parts; touches files but no network. Raises ``ConfigurationError``, ``PolicyError``, ``StoreError``, ``OSError``."""
        self.settings = settings
        self.listen_port = 0
        self.api_port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._tls = _server_tls(settings)
        self._sources = {name: _login_source(name, entry) for name, entry in settings.databases.items()}
        self._catalogs = {name: Catalog(_catalog_login(name, entry)) for name, entry in settings.databases.items()}
        self._engine = PolicyEngine(settings.policy.file, self._catalogs, _servers(settings))
        mask_key = _mask_key(settings.policy.mask_key)
        signing_key = _signing_key(settings.audit.signing_key)
        self._journal = _journal(settings.audit.directory, settings.audit.segment_bytes, chain=True)
        self._recorder = _journal(settings.recording.directory, settings.recording.segment_bytes, chain=False)
        self._audit = AuditLog(self._journal)
        self._checkpointer = Checkpointer(self._journal, settings.audit.directory, signing_key)
        self._store = Store(settings.store.path)
        self._ledger = GrantLedger(self._store, self._audit, self._engine.auto_grant)
        self._webhooks = Webhooks(self._store, self._audit, [_hook(entry) for entry in settings.approvals.webhooks])
        self._desk = ApprovalDesk(self._store, self._audit, enqueue=self._webhooks.enqueue)
        own = {name: _catalog_login(name, entry) for name, entry in settings.databases.items()}
        self._dry_runs = DryRunner(self._desk, self._audit, Trials(self._engine), own, scrub)
        self._evidence = EvidenceGatherer(
            self._desk,
            own,
            functools.partial(recent_statements, settings.audit.directory),
        )
        self._registry = SessionRegistry(self._store, self._audit, self._engine.most_sessions)
        self._logins = Logins(self._sources)
        self._verifier = TokenVerifier([_issuer(entry) for entry in settings.identity.issuers])
        kept = settings.warm
        self._warm = WarmServers(WarmLimits(kept.per_login, kept.total, kept.idle, kept.age), self._logins.give_back)
        self._engine.aside = self._warm.clear
        # Numbers rise across restarts: seconds since 1970 in the upper bits, a counter in the lower 24.
        numbers = itertools.count(int(time.time()) << 24)
        parts = Parts(
            identity=Authenticator(self._verifier, settings.databases.keys(), _scram_users(settings)),
            grants=self._ledger,
            credentials=self._logins,
            policy=self._engine,
            approvals=self._desk,
            audit=self._audit,
            sessions=self._registry,
            new_number=lambda: next(numbers),
            mask_key=mask_key,
            tls=self._tls,
            plaintext_on_loopback=settings.listen.plaintext_on_loopback,
            login_timeout=settings.listen.login_timeout,
            max_statement=settings.listen.max_statement_bytes,
            statement_bytes=settings.recording.statement_bytes,
            warm=self._warm,
            remind=settings.approvals.notice_interval,
            inquiries=Inquiries(Answers(self._desk, lambda: self._engine.version).tell),
        )
        proxies = settings.listen.proxy_protocol
        reactors = [Reactor(self._journal, self._recorder) for _ in range(settings.listen.threads)]
        self._listener = Listener(parts, reactors, settings.listen.max_connections, proxies.trusted if proxies else ())
        api = settings.api
        self._api = ApiServer(
            verifier=self._verifier,
            roles={
                "approver": frozenset(api.roles.approver.groups),
                "operator": frozenset(api.roles.operator.groups),
                "auditor": frozenset(api.roles.auditor.groups),
            },
            databases=frozenset(settings.databases),
            ledger=self._ledger,
            desk=self._desk,
            dry_runs=self._dry_runs,
            registry=self._registry,
            engine=self._engine,
            reload=self.reload_policy,
            audit_directory=settings.audit.directory,
            recording_directory=settings.recording.directory,
            public_key=signing_key.public_key(),
            checkpoint=self._checkpoint,
            tls=(api.tls.certificate.read_bytes(), api.tls.key.read_bytes()) if api.tls else None,
            reflection=api.reflection,
        )

    async def start(self) -> None:
        """Begin to serve. Raises ``OSError`` when a port is taken."""
        await self._desk.start()
        await self._registry.start()
        await self._ledger.expire_due()
        await self._logins.start(await self._ledger.active())
        self._audit.record("gateway.started", {"pid": os.getpid(), "policy_version": self._engine.version})
        subscription = self._ledger.changes.subscribe()
        self._run(self._watch_grants(subscription), "grants")
        self._run(self._tick(), "tick")
        self._run(self._evidence.run(), "evidence")
        self._run(self._webhooks.run(), "webhooks")
        self._run(self._follow_catalogs(), "catalogs")
        self._run(self._prepare_segments(), "segments")
        self._run(self._checkpointer.run(self.settings.audit.checkpoint_interval), "checkpoints")
        listen = self.settings.listen
        self.listen_port = listen.port
        for host in listen.host:
            self.listen_port = self._listener.listen(host, self.listen_port)
        if listen.unix_socket is not None:
            self._listener.listen_unix(listen.unix_socket.directory, self.listen_port, listen.unix_socket.mode)
        self.api_port = await self._api.start(self.settings.api.host, self.settings.api.port)

    async def stop(self) -> None:
        """End sessions with 57P01, sign the end of the audit log, close everything."""
        await self._listener.close()
        await self._api.stop(1.0)
        await self._dry_runs.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._logins.close()
        for catalog in self._catalogs.values():
            await catalog.rest()
        await self._verifier.close()
        with contextlib.suppress(Refused):
            self._audit.record("gateway.stopped", {"pid": os.getpid()})
        await self._checkpoint()
        await self._registry.flush()
        await self._desk.stop()
        await self._store.close()
        self._journal.close()
        self._recorder.close()

    def reload(self) -> None:
        """Read policy and certificate again. What is wrong is logged and audited, and the old one stays in force."""
        with contextlib.suppress(PolicyError, Refused):
            self.reload_policy()
        self._renew_certificate()

    def _renew_certificate(self) -> None:
        files = self.settings.listen.tls
        if self._tls is None or files is None:
            return
        before = self._tls.certificate
        try:
            self._tls.renew(str(files.certificate), str(files.key))
        except TlsError as error:
            _log.error("the certificate is not changed: %s", error)
            return
        now = self._tls.certificate
        if now is not None and now != before:
            digest = hashlib.sha256(now).hexdigest()
            _log.info("certificate %s is shown from now on", digest)
            with contextlib.suppress(Refused):
                self._audit.record("certificate.loaded", {"sha256": digest})

    def reload_policy(self) -> bool:
        """Read the policy again; whether it has changed. Raises ``PolicyError``, and ``Refused`` when it can't be audited."""
        try:
            changed = self._engine.reload(lambda version: self._audit.record("policy.loaded", {"policy_version": version}))
        except PolicyError as error:
            _log.error("the policy is not changed: %s", error)
            self._audit.record("policy.refused", {"policy_version": self._engine.version, "problems": str(error).splitlines()[:100]})
            raise
        except Refused as refused:
            _log.error("the policy is not changed, since the audit log can't be written: %s", refused)
            raise
        if changed:
            _log.info("policy %s is in force", self._engine.version)
        self._warm.clear()
        self._listener.refresh()
        return changed

    # -- what runs beside the sessions ---------------------------------------------------------------------------

    def _run(self, work: Awaitable[None], name: str) -> None:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception:
                _log.exception("the gateway stops: its task %s failed", name)
                os.kill(os.getpid(), signal.SIGTERM)

        self._tasks.append(asyncio.create_task(guarded(), name=name))

    async def _checkpoint(self) -> None:
        await asyncio.to_thread(self._checkpointer.write)

    async def _watch_grants(self, subscription: Subscription[GrantRecord]) -> None:
        pending: set[asyncio.Task[None]] = set()
        while True:
            try:
                with subscription:
                    async for record in subscription:
                        if record.state != "ACTIVE":
                            message = (
                                f"the grant {record.id} was revoked" if record.state == "REVOKED" else f"the grant {record.id} has expired"
                            )
                            self._registry.end_grant(record.id, message)
                            self._warm.end_grant(record.id)
                            task = asyncio.create_task(self._take_logins_away(record))
                            pending.add(task)
                            task.add_done_callback(pending.discard)
            except Overrun:
                subscription = self._ledger.changes.subscribe()
                await self._logins.start(await self._ledger.active())

    async def _take_logins_away(self, record: GrantRecord) -> None:
        while True:
            try:
                await self._logins.end_grant(record.scope.database, record.id)
                return
            except Refused as refused:
                _log.error("the logins of grant %s were not taken away, trying again: %s", record.id, refused.private or refused)
            await asyncio.sleep(_RETRY)

    async def _tick(self) -> None:
        files = self.settings.listen.tls
        watched = [self.settings.policy.file, *((files.certificate, files.key) if files else ())]
        changed = [_changed(file) for file in watched]
        while True:
            await asyncio.sleep(min(_TICK, self._engine.next_turn()))
            await self._ledger.expire_due()
            await self._desk.expire_due()
            now = [_changed(file) for file in watched]
            if now != changed:
                changed = now
                self.reload()
            elif self._engine.turned():
                self._listener.refresh()  # a time that rules look at has begun or ended

    async def _follow_catalogs(self) -> None:
        while True:
            await asyncio.sleep(_CATALOG_AGE)
            for name in self._registry.databases():
                try:
                    await self._catalogs[name].refresh()
                except (psycopg.Error, OSError) as error:
                    _log.warning("the catalog of %s was not read: %s", name, " ".join(str(error).split()))
            self._listener.refresh()

    async def _prepare_segments(self) -> None:
        while True:
            for journal in (self._journal, self._recorder):
                if journal.wants:
                    await asyncio.to_thread(journal.prepare)
            await asyncio.sleep(0.2)


def _servers(settings: Settings) -> dict[str, str]:
    return {name: f"{entry.server.host}:{entry.server.port}" for name, entry in settings.databases.items()}


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


# -- making parts from settings --------------------------------------------------------------------------------------


def _server_tls(settings: Settings) -> TlsContext | None:
    files = settings.listen.tls
    if files is None:
        return None
    try:
        return TlsContext.server(str(files.certificate), str(files.key))
    except TlsError as error:
        raise ConfigurationError([f"listen.tls: {error}: a PEM certificate chain and its private key"]) from None


def _scram_users(settings: Settings) -> ScramUsers:
    users: list[ScramUser] = []
    problems: list[str] = []
    for index, entry in enumerate(settings.identity.scram_users):
        principal = Principal(
            entry.subject or entry.user, issuer="scram", groups=frozenset(entry.groups), acts_for=entry.acts_for, token_id=None
        )
        try:
            verifier = read_verifier(entry.user, entry.verifier.resolve())
        except ValueError as error:
            problems.append(f"identity.scram_users[{index}].verifier: value (hidden): {error}; `pgleash token scram` makes one")
            continue
        users.append(ScramUser(verifier, principal, frozenset(entry.databases) if entry.databases is not None else None))
    if problems:
        raise ConfigurationError(problems)
    return ScramUsers(users, only=not settings.identity.issuers)


def _issuer(entry: IssuerSettings) -> TrustedIssuer:
    return TrustedIssuer(
        issuer=entry.issuer,
        audience=entry.audience,
        jwks_uri=entry.jwks_uri,
        algorithms=tuple(entry.algorithms),
        groups_claim=entry.groups_claim,
        subject_claim=entry.subject_claim,
        acts_for_claim=entry.acts_for_claim,
        max_lifetime=entry.max_lifetime,
        leeway=entry.leeway,
    )


def _place(name: str, entry: DatabaseSettings) -> Place:
    server = entry.server
    ca = str(server.tls.ca) if server.tls.ca else None
    certificate, key = (str(server.tls.certificate), str(server.tls.key)) if server.tls.certificate else (None, None)
    tls = ServerTls(server.tls.mode, ca, server.tls.negotiation, certificate, key)
    return Place(name, server.host, server.port, server.dbname, tls)


def _login_source(name: str, entry: DatabaseSettings) -> LoginSource:
    place, credentials = _place(name, entry), entry.credentials
    if isinstance(credentials, MintedCredentials):
        return MintedRoles(place, credentials.user, credentials.password.resolve())
    if isinstance(credentials, StaticCredentials):
        return FixedLogin(place, credentials.user, credentials.password.resolve())
    return VaultLeases(
        place,
        credentials.address,
        credentials.role,
        mount=credentials.mount,
        token=credentials.token.resolve() if credentials.token else None,
        approle=(credentials.approle.role_id.resolve(), credentials.approle.secret_id.resolve()) if credentials.approle else None,
    )


def _catalog_login(name: str, entry: DatabaseSettings) -> dict[str, str | int]:
    credentials = entry.credentials
    if isinstance(credentials, (MintedCredentials, StaticCredentials)):
        return _place(name, entry).libpq(credentials.user, credentials.password.resolve())
    return _place(name, entry).libpq(credentials.catalog_user, credentials.catalog_password.resolve())


def _hook(entry: WebhookSettings) -> Hook:
    return Hook(
        name=entry.name,
        url=entry.url,
        secret=entry.secret.resolve(),
        format=entry.format,
        states=frozenset(entry.states),
        databases=frozenset(entry.databases),
        timeout=entry.timeout,
        give_up_after=entry.give_up_after,
    )


def _mask_key(reference: SecretRef) -> bytes:
    path = reference.path
    if path is not None and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    try:
        key = bytes.fromhex(reference.resolve())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigurationError([f"policy.mask_key: {reference.reference}: 64 hexadecimal digits (32 secret bytes)"])
    return key


def _signing_key(reference: SecretRef) -> Ed25519PrivateKey:
    if reference.path is not None:
        return load_or_create_key(reference.path)
    try:
        key = load_pem_private_key(reference.resolve().encode(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError([f"audit.signing_key: {reference.reference}: an Ed25519 private key in PEM, without a passphrase"])
    return key


def _journal(directory: Path, segment_bytes: int, *, chain: bool) -> Journal:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Journal(str(directory), segment_bytes, chain)


# -- the two commands ------------------------------------------------------------------------------------------------


def serve(config: Path) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0, or 1 when it could not begin (told on stderr)."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A question of the wire must not wait 5 ms for a worker thread to let go of the interpreter.
    sys.setswitchinterval(0.0005)
    try:
        gateway = Gateway(load(config))
    except (ConfigurationError, PolicyError, StoreError, JournalLocked, JournalDamaged, OSError, ValueError) as error:
        print(f"pgleash: {error}", file=sys.stderr)
        return 1
    return uvloop.run(_serve(gateway))


async def _serve(gateway: Gateway) -> int:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    try:
        await gateway.start()
    except OSError as error:
        print(f"pgleash: {error}", file=sys.stderr)
        await gateway.stop()
        return 1
    settings = gateway.settings
    # What lives as long as the process is not looked through again at every collection.
    gc.collect()
    gc.freeze()
    print(f"pgleash ready listen={settings.listen.host[0]}:{gateway.listen_port} api={settings.api.host}:{gateway.api_port}", flush=True)
    await over.wait()
    await gateway.stop()
    return 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``pgleash doctor`` looked at; ``fix`` says what to do when it is not ``ok``."""

    ok: bool
    what: str
    fix: str = ""


def doctor(config: Path) -> list[Finding]:
    """Look at everything that ``serve`` needs, without changing anything. Never raises."""
    try:
        settings = load(config)
    except ConfigurationError as error:
        return [Finding(False, f"configuration {config}", problem) for problem in error.problems]
    return [Finding(True, f"configuration {config}"), *uvloop.run(_examine(settings))]


async def _examine(settings: Settings) -> list[Finding]:
    found: list[Finding] = []

    async def look(what: str, work: Callable[[], Awaitable[list[str]]]) -> None:
        try:
            problems = await work()
        except Exception as error:
            problems = [getattr(error, "private", "") or " ".join(str(error).split()) or type(error).__name__]
        found.extend([Finding(False, what, problem) for problem in problems] or [Finding(True, what)])

    async def tls() -> list[str]:
        _server_tls(settings)
        return []

    async def policy() -> list[str]:
        PolicyEngine(settings.policy.file, {})
        return []

    async def passwords() -> list[str]:
        _scram_users(settings)
        return []

    await look("TLS certificate for agents", tls)
    if settings.identity.scram_users:
        await look("verifiers of SCRAM users", passwords)
    await look(f"policy {settings.policy.file}", policy)
    for issuer in settings.identity.issuers:

        async def keys(entry: IssuerSettings = issuer) -> list[str]:
            verifier = TokenVerifier([_issuer(entry)])
            try:
                await verifier.probe(entry.issuer)
            finally:
                await verifier.close()
            return []

        await look(f"keys of issuer {issuer.issuer}", keys)
    for name, entry in settings.databases.items():

        async def catalog(name: str = name, entry: DatabaseSettings = entry) -> list[str]:
            await Catalog(_catalog_login(name, entry)).snapshot()
            return []

        async def logins(name: str = name, entry: DatabaseSettings = entry) -> list[str]:
            source = _login_source(name, entry)
            try:
                return await source.check()
            finally:
                await source.close()

        await look(f"database {name}: reading its catalog", catalog)
        await look(f"database {name}: making logins", logins)
    for what, directory in (
        ("audit", settings.audit.directory),
        ("recording", settings.recording.directory),
        ("store", settings.store.path.parent),
    ):

        async def writable(directory: Path = directory) -> list[str]:
            there = directory
            while not there.exists():
                there = there.parent
            return [] if os.access(there, os.W_OK) else [f"{there} can't be written by this user"]

        await look(f"{what} directory {directory}", writable)
    return found

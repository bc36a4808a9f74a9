"""What the data plane asks of the world.

Every question that a session has for policy, identity, credentials, approvals or audit stands in this
file, as a Protocol with one verb, together with the values that travel with it. The data plane imports
nothing else of the control plane, and the control plane imports nothing of the data plane but this.

Never add here: behaviour, I/O, or a type that only one side uses.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pgwire.hot.budget import Budget as Budget


@dataclass(frozen=True, slots=True)
class Peer:
    """The client's end of the connection: numeric address, port, and whether TLS protects it.

    ``address`` is ``local`` on a Unix socket; ``account`` then tells the process at the other end (``uid=1000 gid=1000 pid=77``).
    ``via`` is the address of the trusted proxy that told us the client's, empty when there is none.
    """

    address: str
    port: int
    tls: bool
    via: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What a password is checked with when nobody but its owner knows it (RFC 5802).

    ``doomed``: made up for a user that can't log in; the exchange takes its course and fails at the end.
    """

    user: str
    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    doomed: bool = False


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client offers to prove who it is.

    ``password`` is the secret the client sent (a JWT or a ticket); it never appears in ``repr``. ``proven`` is the verifier
    against which the client has just proven, by SCRAM, that it knows the password; ``password`` is empty then.
    """

    user: str
    database: str
    password: str = field(repr=False)
    peer: Peer
    application_name: str = ""
    proven: ScramVerifier | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts. ``subject`` is the agent, ``acts_for`` the human it acts for, if the token names one.

    ``expires_at`` is Unix time in seconds: the end of the token's validity. ``claims`` is what else the token says.
    """

    subject: str
    issuer: str = ""
    groups: frozenset[str] = frozenset()
    acts_for: str | None = None
    token_id: str | None = None
    expires_at: float = float("inf")
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a grant covers: one database, table patterns (``schema.table``, ``*`` allowed) and verbs.

    Verbs: select, insert, update, delete, truncate, ddl.
    """

    database: str
    tables: tuple[str, ...] = ("*.*",)
    verbs: frozenset[str] = frozenset({"select"})


@dataclass(frozen=True, slots=True)
class Grant:
    """Standing permission of one principal on one database, until ``expires_at`` (Unix seconds)."""

    id: str
    subject: str
    scope: Scope
    expires_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How the server leg is protected. ``mode``: disable, require, verify-ca or verify-full.

    ``negotiation``: ``postgres`` asks by SSLRequest, ``direct`` begins with TLS. ``certificate_file`` and ``key_file`` (PEM)
    are shown to a server that wants them.
    """

    mode: str = "verify-full"
    ca_file: str | None = None
    negotiation: str = "postgres"
    certificate_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A borrowed server login. Ends at ``expires_at`` (Unix seconds); ``parameters`` go into the startup message.

    ``idle`` is for how many seconds a connection may be kept with it while no session uses it.

    A ``host`` that begins with a slash is the directory of the server's Unix socket.
    """

    id: str
    host: str
    port: int
    dbname: str
    user: str
    password: str = field(repr=False)
    tls: ServerTls
    expires_at: float = float("inf")
    parameters: Mapping[str, str] = field(default_factory=dict)
    idle: float = float("inf")


class Effect(enum.Enum):
    """The three answers of a verdict."""

    ALLOW = "allow"
    DENY = "deny"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Statement:
    """One request to run something, as the server would get it.

    ``text`` is the exact SQL (bytes as received, without the terminating NUL). ``protocol`` is ``simple``,
    ``parse`` (prepare only), ``execute`` or ``function``. ``parameters`` are the raw Bind values (None for NULL) and
    ``parameter_formats`` their format codes, one each; ``parameter_types`` are the type OIDs that Parse told, as far as it told
    any (0: not this one). ``status`` is the transaction status last told: I, T or E.
    ``counted``: it has been judged before (and was held), so it is not taken from a budget again.
    ``fresh``: it is judged by the catalog as it is now, which is read again for it.
    ``named`` tells what a name of the session stands for now: a statement's (False) or a cursor's (True), as its text and
    whether SQL declared it (a cursor that has been judged as run); None: nothing that is known.
    """

    text: bytes
    protocol: str
    name: str = ""
    portal: str = ""
    parameters: tuple[bytes | None, ...] = ()
    parameter_formats: tuple[int, ...] = ()
    status: str = "I"
    counted: bool = False
    parameter_types: tuple[int, ...] = ()
    fresh: bool = False
    named: Callable[[bool, bytes], tuple[bytes, bool] | None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NameChange:
    """What the ``index``-th statement of a text does to the session's names, once it has succeeded.

    ``space``: statement or cursor (``text`` is what the name stands for; None drops it, and all if ``name`` is empty), or what
    decides which cursors live on: savepoint, release, rollback_to, commit, rollback. ``holds``: the cursor outlives a commit.
    """

    index: int
    space: str
    name: str
    text: bytes | None = None
    holds: bool = False


@dataclass(frozen=True, slots=True)
class HoldTerms:
    """Who may approve, how many of them must, and for how long the statement waits, in seconds.

    ``transaction_timeout`` is for a statement inside an open transaction, whose locks others wait for; None: ``timeout``.
    ``defer``: it is denied at once with the approval's name, and passes once when it has been approved. ``dry_run``: an
    approver may have it run and rolled back first.
    """

    approvers: tuple[str, ...] = ()
    timeout: float = 300.0
    needed: int = 1
    transaction_timeout: float | None = None
    defer: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Obligations:
    """What an allow is conditional on; None and False: nothing. Timeouts are seconds.

    ``max_rows`` is how many rows one result may have, ``max_affected`` how many one statement may insert, update, delete or
    merge: with more it fails. ``record`` is how many bytes of the result are recorded. ``rule`` names who asks for it.
    """

    max_rows: int | None = None
    max_affected: int | None = None
    read_only: bool = False
    statement_timeout: float | None = None
    lock_timeout: float | None = None
    record: int | None = None
    rule: str = ""


NO_OBLIGATIONS = Obligations()


@dataclass(frozen=True, slots=True)
class Binding:
    """What a held statement means: its approval stands only as long as all of it stays as it was.

    ``canonical`` is the text without comments and with single blanks, ``shape`` the same with its constants taken out, and
    ``constants`` are those, in order. ``standing`` has what else its meaning depends on, by name: search_path, role, catalog …
    """

    canonical: str = ""
    shape: str = ""
    constants: tuple[str, ...] = ()
    standing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policy's answer to one statement, with its reasons.

    ``masks``: rows of this statement need a mask plan before they may pass. ``cacheable``: the same text under the
    same policy key gets the same verdict, and running it changes nothing that later verdicts depend on.
    ``any_literals``: the same verdict, masks included, holds for every text that differs only in literals of the same class
    (``hot.canonical``); only ever true together with ``cacheable``.
    ``settles``: the judge wants to be told how it ended (it changes the session or the catalog).
    ``sqlstate``, ``message``, ``detail``, ``hint`` describe a denial; ``detail`` is a JSON-able mapping.
    ``position``, if not 0, is where in the text PostgreSQL's grammar stopped: the message is then PostgreSQL's own.
    ``facts`` is a short JSON-able summary for audit and approvers.
    ``obligations`` are what the gateway keeps while it runs. ``observed`` are the rules that would have said otherwise if they
    were enforced. ``names`` tells what the statements do to names that later ones use (SQL's PREPARE, DEALLOCATE, DECLARE, CLOSE, DISCARD,
    and the transaction's). ``copies_in``: it reads rows from the client (COPY FROM STDIN).
    ``binding`` comes with a hold: what its approval is bound to.
    """

    effect: Effect
    reasons: tuple[str, ...] = ()
    rule: str = ""
    policy_version: str = ""
    masks: bool = False
    cacheable: bool = False
    any_literals: bool = False
    settles: bool = False
    hold: HoldTerms | None = None
    sqlstate: str = "42501"
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""
    position: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[NameChange, ...] = ()
    copies_in: bool = False
    obligations: Obligations = NO_OBLIGATIONS
    observed: tuple[str, ...] = ()
    binding: Binding | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a row description: name, origin (table OID and attribute number, 0 if none), type, format."""

    name: str
    table_oid: int
    attribute: int
    type_oid: int
    type_modifier: int = -1
    format: int = 0


@dataclass(frozen=True, slots=True)
class MaskRule:
    """The policy's wish for one output column.

    ``action``: null, fixed, keep_first, keep_last, email or pseudonym. ``argument`` is the fixed text or the number
    kept. ``label`` names what is protected, for example ``pii.email``.
    """

    action: str
    label: str
    argument: str | int | None = None


class SessionPolicy(Protocol):
    """The policy as it applies to one session; it follows what the session's statements change."""

    @property
    def key(self) -> int:
        """Identifies everything cacheable verdicts depend on; a new value empties the session's cached verdicts."""
        ...

    @property
    def scrubs(self) -> bool:
        """Whether error and notice fields that may quote values must be removed for this session."""
        ...

    @property
    def shortest(self) -> float | None:
        """The shortest time in seconds that a statement of this session may be given; None: as long as they take."""
        ...

    @property
    def typed(self) -> bool:
        """Whether verdicts look at bound values, so that the types which Parse tells are wanted."""
        ...

    @property
    def settings(self) -> Mapping[str, str]:
        """Run-time settings that the session on the server begins with, whatever the client asks for."""
        ...

    @property
    def budget(self) -> Budget | None:
        """What statements that run on a known verdict are taken from; None: they are not counted."""
        ...

    async def judge(self, statement: Statement) -> Verdict:
        """Decide one statement. An exception means deny."""
        ...

    async def columns(self, statement: Statement, index: int, columns: tuple[Column, ...]) -> tuple[MaskRule | None, ...]:
        """The mask wish per output column of the ``index``-th result of ``statement`` (0 for the first)."""
        ...

    def settled(self, statement: Statement, succeeded: bool) -> None:
        """The server has run a statement whose verdict said ``settles`` (False: it failed or was skipped)."""
        ...

    def transaction_status(self, status: str) -> None:
        """ReadyForQuery's status byte, told after each statement that settles."""
        ...


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What the world may know of a session. ``number`` is the journal's 64-bit session number, ``server_pid`` the server process."""

    id: str
    number: int
    principal: Principal
    grant: Grant
    database: str
    peer: Peer
    server_user: str
    application_name: str
    started_at: float
    server_pid: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's or bot's answer. ``state``: APPROVED, DENIED, EXPIRED, CANCELLED or VOIDED (``comment`` says why)."""

    state: str
    approver: str = ""
    comment: str = ""


class PendingApproval(Protocol):
    """One statement before the approvers. ``name`` is like ``approvals/ap_1x``; ``expires_at`` Unix seconds.

    ``state`` is what it was when it was asked for: PENDING, or DENIED when the same deferred statement has been denied.
    """

    name: str
    expires_at: float
    state: str
    comment: str

    async def wait(self) -> Decision:
        """The decision; EXPIRED when nobody decided in time."""
        ...

    async def use(self) -> bool:
        """The approved statement goes to the server now: its one use. False: it has been used or withdrawn meanwhile."""
        ...

    async def void(self, reason: str) -> None:
        """What was approved is not what would run any more."""
        ...

    async def withdraw(self, reason: str) -> None:
        """The client cancelled, left or was ended: nobody can approve it any more."""
        ...


class Identity(Protocol):
    async def challenge(self, user: str, database: str) -> ScramVerifier | None:
        """The verifier that ``user`` is asked to prove itself against; None: its password is a token. Never raises for a name."""
        ...

    async def authenticate(self, proof: Proof) -> Principal:
        """The principal behind a proof. Raises ``Refused`` (28000, 28P01 or 3D000)."""
        ...


class Grants(Protocol):
    async def open(self, principal: Principal, database: str) -> Grant:
        """The active grant for this principal on this database. Raises ``Refused``."""
        ...


class Credentials(Protocol):
    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """A server login for this grant. Raises ``Refused`` (08004, 57P03, 53300)."""
        ...

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """A connection that was made with ``lease`` is to serve another session of ``grant``: the login as it is now.

        None: it has ended, or its connections should not be used any more. Raises ``Refused`` as ``lease``.
        """
        ...

    async def give_back(self, lease: Lease) -> None:
        """Nothing is connected with the lease any more. Never raises."""
        ...


class Policy(Protocol):
    async def open(self, principal: Principal, grant: Grant, lease: Lease) -> SessionPolicy:
        """The policy for one session. Raises ``Refused``."""
        ...


class Approvals(Protocol):
    async def take(self, session: SessionInfo, statement: Statement, verdict: Verdict) -> str:
        """The name of what has approved this statement beforehand, with one use of it taken; empty: nothing has."""
        ...

    async def ask(self, session: SessionInfo, statement: Statement, verdict: Verdict, since: float | None = None) -> PendingApproval:
        """Put a held statement before the approvers. ``since``: when its transaction began (Unix seconds), if it is in one."""
        ...


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A text that asks the gateway itself. ``text`` is what the server gets for it, ``names`` what it must be told before.

    ``shown``: the answer is shown as a setting (SHOW) and told as one line.
    """

    text: bytes
    names: frozenset[str]
    shown: bool = False


class Inquiries(Protocol):
    def read(self, text: bytes) -> Inquiry | None:
        """What a text asks of the gateway; None: nothing."""
        ...

    async def answer(self, session: SessionInfo, inquiry: Inquiry) -> Mapping[str, str]:
        """The settings that the server is told before the inquiry runs, by name."""
        ...


class Audit(Protocol):
    def record(self, kind: str, fields: Mapping[str, Any], session: int = 0) -> int:
        """Append one event to the journal and return its sequence number (the receipt). Raises ``Refused`` 58030."""
        ...


class Sessions(Protocol):
    async def register(self, session: SessionInfo, end: Callable[[str, str], None]) -> None:
        """A session begins. ``end(sqlstate, message)`` may be called at any time to end it with a FATAL."""
        ...

    async def closed(self, session: SessionInfo, reason: str, statements: int) -> None:
        """A session is over. Never raises."""
        ...


class Refused(Exception):
    """A port's refusal with what the client may be told and what only the log may know."""

    def __init__(self, sqlstate: str, message: str, *, hint: str = "", private: str = "", detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint
        self.private = private
        self.detail = dict(detail or {})

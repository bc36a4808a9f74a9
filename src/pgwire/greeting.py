"""The client's way in: PROXY header, TLS in either form, startup message, proof by password or SCRAM.

What the bytes mean is said by :mod:`pgwire.client_startup`, :mod:`pgwire.proxy_protocol` and :mod:`pgwire.scram`; here they are
read and written. Never add here: who the client is, or what it may do.
"""

from __future__ import annotations

from pgwire import messages, proxy_protocol
from pgwire.client_startup import (
    AnswerTls,
    CancelRequested,
    ClientStartup,
    Event,
    NeedMore,
    NotAnswered,
    PasswordGiven,
    RefuseEncryption,
    SaslAnswered,
    SaslBegun,
    Started,
)
from pgwire.errors import GatewayError, ProtocolViolation
from pgwire.hot.tls import TlsContext
from pgwire.legs import ColdLeg
from pgwire.ports import Peer, ScramVerifier
from pgwire.scram import ScramError, ScramRefused, ScramServer, end_point

__all__ = ["Greeting"]

_TLS_HANDSHAKE = 0x16  # TLS record type; no startup packet begins with it
_LOOPBACK = ("127.0.0.1", "::1")


class Greeting:
    """``await begin()``, then ``password()`` or ``scram(verifier)``, then ``welcome()``. ``peer`` is true once ``begin`` is over.

    ``proxied``: the connection comes from a trusted proxy, so it must begin with a PROXY header, and is never a local one.
    """

    __slots__ = ("_clear_password", "_client", "_proxied", "_startup", "_tls", "_unix", "peer")

    def __init__(self, client: ColdLeg, peer: Peer, tls: TlsContext | None, *, proxied: bool, plaintext_on_loopback: bool) -> None:
        self.peer = peer
        self._client = client
        self._proxied = proxied
        self._unix = peer.address == "local"
        self._tls = None if self._unix else tls
        self._clear_password = plaintext_on_loopback and (self._unix or (peer.address in _LOOPBACK and not proxied))
        # A Unix socket is as good as TLS for statements; whether a password may cross it in clear text is asked for separately.
        self._startup = ClientStartup(tls_available=self._tls is not None, plaintext_allowed=self._unix or self._clear_password)

    async def begin(self) -> Started | CancelRequested:
        """Up to the startup message or a cancel request. Raises ``GatewayError``, ConnectionError, TlsError."""
        client = self._client
        if self._proxied:
            await self._read_proxy_header()
        first = await client.first_byte()
        if first < 0:
            raise ConnectionResetError("closed before the startup message")
        if first == _TLS_HANDSHAKE:
            if self._tls is None:
                raise NotAnswered("direct TLS is not offered here")
            await self._start_tls(self._tls, direct=True)
        while True:
            event = await self._next("closed before the startup message")
            if isinstance(event, AnswerTls):
                assert self._tls is not None
                await client.send(event.reply)
                await self._start_tls(self._tls, direct=False)
            elif isinstance(event, RefuseEncryption):
                await client.send(event.reply)
            elif isinstance(event, CancelRequested):
                return event
            elif isinstance(event, Started):
                if event.reply:
                    await client.send(event.reply)
                return event
            else:
                raise ProtocolViolation("unexpected message during startup")

    async def password(self) -> str:
        """What the client gives as its password. Raises ``GatewayError``, ConnectionError."""
        if not self._client.leg.encrypted and not self._clear_password:
            raise GatewayError(
                "28000",
                "a token is taken by TLS only",
                hint="Connect by TCP with sslmode=verify-full, or as a user that proves itself by SCRAM.",
            )
        await self._client.send(self._startup.ask_password())
        event = await self._next("closed during authentication")
        if not isinstance(event, PasswordGiven):
            raise ProtocolViolation("unexpected message during authentication")
        return event.password

    async def scram(self, verifier: ScramVerifier) -> None:
        """Let the client prove that it knows the password; returns when it has. Raises ``GatewayError``, ConnectionError."""
        try:
            await self._scram(verifier)
        except ScramRefused as refused:
            # One text for every cause: who there is, and what was wrong, is for the log.
            raise GatewayError(
                refused.sqlstate,
                f'password authentication failed for user "{verifier.user}"' if refused.sqlstate == "28P01" else str(refused),
                private=f"user={verifier.user!r}: {refused}",
            ) from None
        except ScramError as error:
            raise ProtocolViolation("malformed SCRAM message", private=f"user={verifier.user!r}: {error}") from None

    async def _scram(self, verifier: ScramVerifier) -> None:
        client, startup = self._client, self._startup
        exchange = ScramServer(verifier, self._binding())
        await client.send(startup.ask_sasl(exchange.mechanisms))
        begun = await self._next("closed during authentication")
        if not isinstance(begun, SaslBegun):
            raise ProtocolViolation("unexpected message during authentication")
        exchange.choose(begun.mechanism)
        data = begun.data
        if data is None:
            await client.send(startup.challenge(b""))
            data = await self._sasl_answer()
        await client.send(startup.challenge(exchange.first(data)))
        # Sent in one piece with what follows a good login.
        final = exchange.final(await self._sasl_answer())
        client.leg.send(messages.authentication_sasl_final(final))

    def welcome(self, statuses: bytes, pid: int, key: bytes) -> bytes:
        """The messages that end a login."""
        return self._startup.welcome(statuses, pid, key)

    @property
    def rest(self) -> bytes:
        """What the client has sent behind its login."""
        return self._startup.rest

    def forget(self) -> None:
        """The client has been welcomed: of the greeting only ``peer`` is kept."""
        del self._startup

    def _binding(self) -> bytes | None:
        certificate = self._tls.certificate if self._tls is not None and self._client.leg.encrypted else None
        return end_point(certificate) if certificate is not None else None

    async def _sasl_answer(self) -> bytes:
        event = await self._next("closed during authentication")
        if not isinstance(event, SaslAnswered):
            raise ProtocolViolation("unexpected message during authentication")
        return event.data

    async def _next(self, closed: str) -> Event:
        startup, client = self._startup, self._client
        while isinstance(event := startup.next_event(), NeedMore):
            data = await client.receive()
            if not data:
                raise ConnectionResetError(closed)
            startup.receive(data)
        return event

    async def _start_tls(self, tls: TlsContext, *, direct: bool) -> None:
        await self._client.start_tls(tls)
        agreed = self._client.leg.tls
        self._startup.tls_started(agreed[1] if agreed is not None else "", direct=direct)
        self.peer = Peer(self.peer.address, self.peer.port, True, self.peer.via, self.peer.account)

    async def _read_proxy_header(self) -> None:
        try:
            first = await self._client.exactly(proxy_protocol.FIRST)
            header = proxy_protocol.read(first, await self._client.exactly(proxy_protocol.length(first)))
        except ProtocolViolation as error:
            raise NotAnswered(f"from the proxy {self.peer.address}: {error}") from None
        if header.address:
            self.peer = Peer(header.address, header.port, False, via=self.peer.address)

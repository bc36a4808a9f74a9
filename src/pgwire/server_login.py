"""A logged-in connection to the server of a lease: dialled, secured, and through the login of :mod:`pgwire.server_startup`.

Never add here: what becomes of the connection, or whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pgwire.errand import Errand
from pgwire.errors import ServerUnavailable
from pgwire.hot.reactor import Reactor
from pgwire.hot.tls import TlsError
from pgwire.legs import ColdLeg, connect
from pgwire.messages import PROTOCOL_3_0, PROTOCOL_3_2, message
from pgwire.ports import Lease
from pgwire.scram import ScramKeys
from pgwire.server_startup import Derive, NeedMore, Ready, ServerStartup, VersionRefused

__all__ = ["ServerConnection", "log_in"]

_log = logging.getLogger(__name__)
_GOODBYE = message(b"X")


@dataclass(slots=True, eq=False)
class ServerConnection:
    """A logged-in server leg. ``statuses`` are the ParameterStatus messages of its login, ``key`` the server's cancel key.

    ``name`` is the application_name of its login (None: none was given), ``born`` and ``idle_since`` are monotonic seconds.
    """

    leg: ColdLeg
    lease: Lease
    statuses: bytes
    pid: int
    key: bytes = field(repr=False)
    name: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)  # what the policy has set at its login
    born: float = 0.0
    idle_since: float = 0.0
    warm: bool = False
    errand: Errand | None = None  # what the server has still to answer

    def close(self) -> None:
        """Say goodbye to the server and close."""
        if not self.leg.leg.closed:
            with contextlib.suppress(ConnectionError):
                self.leg.leg.send(_GOODBYE)
        self.leg.close()


async def log_in(
    reactor: Reactor, lease: Lease, parameters: Mapping[str, str], keys: ScramKeys, old: set[tuple[str, int]]
) -> ServerConnection:
    """A fresh connection. What can't read protocol 3.2, an old pooler, is asked for 3.0, from then on at once. Raises ``Refused``.

    ``keys`` are those derived for earlier logins, ``old`` the servers (host, port) known not to read protocol 3.2.
    """
    where = (lease.host, lease.port)
    if where not in old:
        try:
            return await _connect(reactor, lease, parameters, keys, PROTOCOL_3_2)
        except VersionRefused as refused:
            _log.info("the server of %s does not read protocol 3.2: %s", lease.dbname, refused.private)
    made = await _connect(reactor, lease, parameters, keys, PROTOCOL_3_0)
    old.add(where)
    return made


async def _connect(reactor: Reactor, lease: Lease, parameters: Mapping[str, str], keys: ScramKeys, version: int) -> ServerConnection:
    leg = await connect(reactor, lease)
    startup = ServerStartup(
        lease.user,
        lease.password,
        lease.dbname,
        {**parameters, **lease.parameters},
        leg.leg.peer_certificate(),
        verified=leg.leg.encrypted and lease.tls.mode in ("verify-ca", "verify-full"),
        keys=keys,
        version=version,
    )
    try:
        ready = await _talk(leg, startup)
    except (ConnectionError, TlsError) as error:
        leg.close()
        raise ServerUnavailable("the database server ended the connection during login", private=str(error)) from error
    except BaseException:
        leg.close()
        raise
    return ServerConnection(leg, lease, ready.parameters, ready.pid, ready.key, parameters.get("application_name"), born=time.monotonic())


async def _talk(leg: ColdLeg, startup: ServerStartup) -> Ready:
    await leg.send(startup.start())
    while True:
        event = startup.next_event()
        if isinstance(event, Ready):
            if startup.rest:
                leg.leg.unread(startup.rest)
            return event
        if isinstance(event, NeedMore):
            data = await leg.receive()
            if not data:
                raise ServerUnavailable("the database server closed the connection during login")
            startup.receive(data)
        elif isinstance(event, Derive):
            await asyncio.to_thread(event.work)
        else:
            await leg.send(event.data)

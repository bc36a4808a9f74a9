"""The same bytes to PostgreSQL and to the gateway in front of it, and what each answers.

Both sessions are of the same database role, so that an answer differs only if the gateway makes the difference. What two
sessions of PostgreSQL itself don't have in common is left out: process ids, keys, source lines, and the wording of errors
that the gateway finds first (SQLSTATE and severity stay).

Never add here: an import from pgwire, or a judgement of one case; that is the test's.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psycopg

from kit.shredder import Shredder
from kit.wire import Message, WireClient, error_fields, query, sync
from pgleash.demo.postgres import PostgresServer
from pgleash.demo.stage import POLICY, Stage

__all__ = [
    "CANARIES",
    "DIRECT",
    "LINES",
    "OPEN_POLICY",
    "ROLE",
    "Answer",
    "Twins",
    "answer_of",
    "answer_until",
    "difference",
    "ending",
    "open_stage",
]

ROLE = "wire"
DIRECT = "wire_direct"  # the same rights; its password goes in the clear, which the wire client can say
PASSWORD = "wire"
LINES = ("CREATE TEMP TABLE lines (a int PRIMARY KEY, b text)",)
CANARIES = """
UPDATE customers SET email = 'x.CANARY' || id || '@example.com', ssn = 'CANARY-' || lpad(id::text, 4, '0'),
       phone = 'CANARY' || id || '00', notes = to_jsonb('CANARY' || id), card = 'CANARY' || lpad(id::text, 10, '0')
"""
THE_END = "the end of the case"

OPEN_POLICY = """\
version: 1
rules:
  - {name: everything, effect: allow, tables: ["*.*"], verbs: [select, insert, update, delete, truncate, ddl]}
  - name: by-name
    effect: allow
    when: {kinds: ["do", "call", "create_function", "drop_function"]}
  - {name: any-function, effect: allow, when: {functions: ["*"]}}
grants:
  - {who: {groups: [agents]}, database: shop, tables: ["*.*"], verbs: [select, insert, update, delete, truncate, ddl], duration: 3600}
"""


Relay = Callable[[str, int], Shredder]


@contextmanager
def open_stage(*, masked: bool = False, customers: int = 200, relay: Relay | None = None, policy: str | None = None) -> Iterator[Stage]:
    """A stage whose sessions all are of one database role; ``masked`` keeps the demo's policy, otherwise everything is
    allowed; ``policy`` is another one than either.

    ``relay`` makes what stands between the gateway and the server's host and port.
    """
    with PostgresServer(18) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for role in (ROLE, DIRECT):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            hba = server.data_directory / "pg_hba.conf"
            hba.write_text(f"host all {DIRECT} 127.0.0.1/32 password\n" + hba.read_text())
            connection.execute("SELECT pg_reload_conf()")
        settings: dict[str, Any] = {
            "listen": {"plaintext_on_loopback": True, "max_connections": 400},
            "databases": {"shop": {"credentials": {"kind": "static", "user": ROLE, "password": "file:wire.password"}}},
            "audit": {"checkpoint_interval": 5.0},
        }
        stage = Stage(customers=customers, policy=policy or (POLICY if masked else OPEN_POLICY), settings=settings, server=server)
        (stage.home / "wire.password").write_text(PASSWORD)
        (stage.home / "wire.password").chmod(0o600)
        with ExitStack() as opened:
            if relay is not None:
                port = opened.enter_context(relay(server.host, server.port)).port
                settings["databases"]["shop"]["server"] = {"host": "127.0.0.1", "port": port}
                stage._settings = settings
            opened.enter_context(stage)
            with psycopg.connect(server.dsn("shop"), autocommit=True) as connection:
                connection.execute(f"GRANT shop_owner TO {ROLE}, {DIRECT}")
            yield stage


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: messages, and how it ended: ready (the case's end was reached), closed, or quiet."""

    messages: tuple[Message, ...]
    end: str
    rest: bytes = b""

    @property
    def kinds(self) -> str:
        """The kinds in order, asynchronous ones left out."""
        return "".join(one.kind for one in self.messages if one.kind not in "NSA")


def difference(server: Answer, gateway: Answer) -> str:
    """What the gateway answers differently; empty: nothing. Asynchronous messages are left out."""
    first = [one for one in server.messages if one.kind not in "NSAK"]
    second = [one for one in gateway.messages if one.kind not in "NSAK"]
    for at, (told, ours) in enumerate(zip(first, second, strict=False)):
        fields = error_fields(ours.body) if ours.kind == "E" else {}
        if fields.get("C") == "0A000" and "F" not in fields:
            return ""  # not available, and said so; from here on the sessions are two
        if told.kind != ours.kind or (told != ours and not _alike(told, ours)):
            return f"message {at}: the server says {told}, the gateway {ours}"
    if server.end == gateway.end == "closed" and not {one.kind for one in second[len(first) :]} - set("123TDCnIstHdc"):
        return "" if len(second) >= len(first) else f"mute where the server says {first[len(second)]}"  # the server had not flushed them
    if len(first) != len(second):
        return f"the server says {server.kinds} ({server.end}), the gateway {gateway.kinds} ({gateway.end})"
    return "" if server.end == gateway.end else f"the server's session is {server.end}, the gateway's {gateway.end}"


def _alike(server: Message, gateway: Message) -> bool:
    if server.kind == "T":
        return _columns(server.body) == _columns(gateway.body)
    if server.kind != "E":
        return False
    told, ours = error_fields(server.body), error_fields(gateway.body)
    # Only the server names its source: an error that the gateway finds first has the same code in its own words.
    if "F" not in ours and told.get("C") in ("25P02", "XX000"):
        return True  # in a failed transaction the server looks no further (or stumbles over its own state); both refuse
    keys = set("SVC") if "F" not in ours else (set(told) | set(ours)) - set("FLR")
    if told.get("s", "").startswith("pg_temp"):
        keys.discard("s")
    return all(told.get(key) == ours.get(key) for key in keys)


def _columns(body: bytes) -> list[tuple[bytes, bool, bytes]]:
    # each session's temporary table has another OID
    columns, at = [], 2
    while at < len(body):
        end = body.index(b"\0", at)
        columns.append((body[at:end], body[end + 1 : end + 5] == bytes(4), body[end + 5 : end + 19]))
        at = end + 19
    return columns


def answer_of(client: WireClient, *, patience: float = 5.0, quiet: float = 0.0) -> Answer:
    """Everything until the case's end, the connection's, or ``quiet`` seconds without a byte (0: until patience ends)."""
    messages: list[Message] = []
    buffer = client._pending
    until = time.monotonic() + patience
    ended = False
    try:
        while True:
            while len(buffer) >= 5:
                (length,) = struct.unpack_from("!i", buffer, 1)
                if length < 4 or len(buffer) < length + 1:
                    break
                messages.append(Message(chr(buffer[0]), buffer[5 : length + 1]))
                buffer = buffer[length + 1 :]
                ended = ended or (messages[-1].kind == "D" and THE_END.encode() in messages[-1].body)
                if ended and messages[-1].kind == "Z":
                    client._pending = buffer
                    return Answer(tuple(messages), "ready", buffer)
            left = until - time.monotonic()
            if quiet:
                left = min(left, quiet)
            data = _receive(client.socket, left)
            if data is None:
                client._pending = buffer
                return Answer(tuple(messages), "quiet", buffer)
            if not data:
                return Answer(tuple(messages), "closed", buffer)
            buffer += data
    except (ConnectionError, ssl.SSLError):
        return Answer(tuple(messages), "closed", buffer)


def answer_until(client: WireClient, ready: int, *, error: bool = False, patience: float = 10.0) -> Answer:
    """Everything up to the ``ready``-th ReadyForQuery, or to CopyInResponse (``error``: or to an ErrorResponse)."""
    messages: list[Message] = []
    until = time.monotonic() + patience
    while True:
        while (one := _first(client)) is not None:
            messages.append(one)
            ready -= one.kind == "Z"
            if ready == 0 or one.kind == "G" or (error and one.kind == "E"):
                return Answer(tuple(messages), "ready")
        try:
            data = _receive(client.socket, until - time.monotonic())
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            return Answer(tuple(messages), "quiet" if data is None else "closed")
        client._pending += data


def _first(client: WireClient) -> Message | None:
    buffer = client._pending
    if len(buffer) < 5 or len(buffer) < (length := struct.unpack_from("!i", buffer, 1)[0]) + 1:
        return None
    client._pending = buffer[length + 1 :]
    return Message(chr(buffer[0]), bytes(buffer[5 : length + 1]))


def _receive(sock: socket.socket, left: float) -> bytes | None:
    pending = isinstance(sock, ssl.SSLSocket) and sock.pending()
    if not pending and not (left > 0 and select.select([sock], [], [], left)[0]):
        return None
    return sock.recv(1 << 16)


class Twins:
    """A session at the server and one at the gateway. ``setup`` runs first in each; ``renew`` begins both anew."""

    def __init__(self, stage: Stage, *, who: str = "agent", tls: bool = False, setup: tuple[str, ...] = (), port: int = 0) -> None:
        self.stage = stage
        self._who = who
        self._tls = tls
        self._setup = setup
        self._port = port
        self.direct = self._direct()
        self.gateway = self._gateway()

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.direct.socket.close()
        self.gateway.socket.close()

    def _direct(self) -> WireClient:
        client = WireClient(self.stage.server.host, self.stage.server.port)
        return self._ready(client, DIRECT, PASSWORD)

    def _gateway(self) -> WireClient:
        client = WireClient("127.0.0.1", self._port or self.stage.port)
        if self._tls:
            client.secure(str(self.stage.certificates.ca))
        name = {"agent": "agent-7", "analyst": "analyst-1"}[self._who]
        return self._ready(client, name, self.stage.token(self._who))

    def _ready(self, client: WireClient, user: str, password: str) -> WireClient:
        told = client.login(user, "shop", password)
        if told[-1].kind != "Z":
            raise ConnectionError(f"no session: {told[-1]}")
        for statement in self._setup:
            client.run(statement)
        return client

    def renew(self) -> None:
        """New sessions on both sides."""
        self.__exit__(None, None, None)
        self.direct, self.gateway = self._direct(), self._gateway()

    def both(self, data: bytes, *, cuts: tuple[int, ...] = (), patience: float = 10.0) -> tuple[Answer, Answer]:
        """The answers to ``data`` and the end of the case: the server's and the gateway's. ``cuts`` part it for the gateway."""
        whole = data + ending()
        self.direct.send(whole)
        at = 0
        for cut in (*cuts, len(whole)):
            try:
                self.gateway.send(whole[at:cut])
            except OSError:
                break  # what it said before it closed is what counts
            at = cut
        return answer_of(self.direct, patience=patience), answer_of(self.gateway, patience=patience)

    def reset(self) -> bool:
        """Back to a fresh session's state on both sides; False: one of them has ended."""
        data = query("ROLLBACK; CLOSE ALL; DEALLOCATE ALL; UNLISTEN *" + ("; DELETE FROM lines" if self._setup else ""))
        return all(one.end == "ready" for one in self.both(data))


def ending() -> bytes:
    """What ends a case: whatever state the session is in, the server answers, or has gone."""
    return sync() + query("ROLLBACK") + query(f"SELECT '{THE_END}'")

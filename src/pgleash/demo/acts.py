"""The seven acts of the demo. Each prints what the agent sent, what it saw and what the approver saw, and checks it.

Never add here: anything an agent could not do itself; the drivers are unmodified.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

from pgleash.client import Api, connect
from pgleash.demo.stage import Stage
from pgleash.v1 import approvals_pb2, grants_pb2, sessions_pb2

__all__ = ["ACTS", "Theatre"]


@dataclass
class Theatre:
    """What the acts share: the stage, how to print, and what did not come true."""

    stage: Stage
    failures: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of explanation."""
        print(f"  {text}", flush=True)

    def agent(self, text: str) -> None:
        """What the agent sent."""
        print(f"  agent     > {text}", flush=True)

    def saw(self, text: str) -> None:
        """What the agent saw."""
        for line in text.splitlines():
            print(f"            < {line}", flush=True)

    def approver(self, text: str) -> None:
        """What the approver saw or did."""
        print(f"  approver  | {text}", flush=True)

    def check(self, holds: object, what: str) -> None:
        """A promise of the product, kept or not."""
        print(f"  {'✓' if holds else '✗ NOT TRUE:'} {what}", flush=True)
        if not holds:
            self.failures.append(what)

    @contextmanager
    def api(self, who: str) -> Iterator[Api]:
        """The API as one of the story's people."""
        with connect(f"localhost:{self.stage.api_port}", self.stage.token(who), self.stage.certificates.ca) as api:
            yield api

    def connect(self, who: str = "agent", **more: str) -> psycopg.Connection[Any]:
        """An ordinary psycopg connection with a fresh token as the password."""
        subject = {"agent": "agent-7", "analyst": "analyst-1"}[who]
        return psycopg.connect(self.stage.dsn(subject, self.stage.token(who), **more), autocommit=True)

    def pgleash(self, *arguments: str, who: str = "auditor") -> subprocess.CompletedProcess[str]:
        """Run the command line as one of the story's people."""
        environment = {
            "PGLEASH_API": f"localhost:{self.stage.api_port}",
            "PGLEASH_TOKEN": self.stage.token(who),
            "PGLEASH_CA": str(self.stage.certificates.ca),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
        }
        return subprocess.run(
            [sys.executable, "-m", "pgleash.cli", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def server_value(self, query: str, *values: object) -> Any:
        """What the database says, asked directly and not through the gateway."""
        assert self.stage.shop is not None
        with psycopg.connect(self.stage.server.dsn(self.stage.shop.dbname)) as connection:
            row = connection.execute(query, values).fetchone()
        return row[0] if row is not None else None


def act_connect(theatre: Theatre) -> None:
    """2. An agent connects with its token; the server login behind it is minted for its grant alone."""
    stage = theatre.stage
    token = stage.token()
    theatre.agent(f"psycopg.connect(host=localhost, dbname=shop, user=agent-7, password={token[:14]}…, sslmode=verify-full)")
    with psycopg.connect(stage.dsn("agent-7", token), autocommit=True) as connection:
        row = connection.execute("SELECT current_user, count(*) FROM customers").fetchone()
        assert row is not None
        role = str(row[0])
        theatre.saw(f"connected; the server knows it as {role}, and counts {row[1]} customers")
        until = theatre.server_value("SELECT rolvaliduntil FROM pg_roles WHERE rolname = %s", role)
        granted = theatre.server_value(
            "SELECT string_agg(DISTINCT privilege_type, ' ') FROM information_schema.role_table_grants WHERE grantee = %s", role
        )
        theatre.say(f"asked directly, PostgreSQL says: {role} VALID UNTIL {until:%H:%M:%S}, privileges {granted}")
        theatre.check(role.startswith("pgleash_gr_") and until is not None, "the login is a role of this grant alone, and it expires")
    value = asyncio.run(_asyncpg(stage))
    theatre.agent("asyncpg.connect(…the same…)")
    theatre.saw(f"SELECT 6 * 7 -> {value}")
    theatre.check(value == 42, "asyncpg works the same way")


async def _asyncpg(stage: Stage, query: str = "SELECT 6 * 7") -> Any:
    context = ssl.create_default_context(cafile=str(stage.certificates.ca))
    connection = await asyncpg.connect(
        host="localhost", port=stage.port, user="agent-7", password=stage.token(), database="shop", ssl=context
    )
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def act_mask(theatre: Theatre) -> None:
    """3. Reading works; sensitive columns arrive masked on every way."""
    real = theatre.server_value("SELECT email FROM customers WHERE id = 7")
    query = "SELECT * FROM customers WHERE id = 7"
    with theatre.connect(application_name="act 3") as connection:
        theatre.agent(query)
        row = connection.execute(query).fetchone()
        theatre.saw(str(row))
        ways = {
            "extended protocol, text": connection.execute("SELECT email FROM customers WHERE id = %s", (7,)).fetchone(),
            "extended protocol, binary": connection.execute("SELECT email FROM customers WHERE id = %s", (7,), binary=True).fetchone(),
            "simple protocol": psycopg.ClientCursor(connection).execute("SELECT email FROM customers WHERE id = 7").fetchone(),
            "through an alias": connection.execute("SELECT c.email AS harmless FROM customers c WHERE id = %s", (7,)).fetchone(),
            "SELECT *": (row[2],) if row is not None else None,
        }
        for way, seen in ways.items():
            theatre.saw(f"{way:<26} {seen}")
        theatre.check(
            all(seen is not None and seen[0] != real and "***" in str(seen[0]) for seen in ways.values()),
            "the email is masked on every way",
        )
        derived = connection.execute("SELECT upper(email) || card FROM customers WHERE id = 7").fetchone()
        theatre.agent("SELECT upper(email) || card FROM customers WHERE id = 7")
        theatre.saw(str(derived))
        theatre.check(derived == (None,), "what is computed from protected columns is protected too")
    with theatre.connect("analyst") as connection:
        seen = connection.execute("SELECT email FROM customers WHERE id = 7").fetchone()
        theatre.say(f"the analyst, whose policy does not mask, sees {seen}")
        theatre.check(seen == (real,), "the same query shows the values to whom they are shown")


def act_hold(theatre: Theatre) -> None:
    """4. ALTER TABLE and DELETE without WHERE wait on the wire for a decision."""
    before = theatre.server_value("SELECT count(*) FROM orders")
    with theatre.api("bot") as api, theatre.connect() as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda told: notices.append(told.message_primary or ""))
        stop = _bot(theatre, api)
        try:
            statement = "ALTER TABLE orders ADD COLUMN priority int"
            theatre.agent(statement)
            began = time.monotonic()
            connection.execute(statement)
            theatre.saw("".join(f"NOTICE: {text}\n" for text in notices) + f"ALTER TABLE, after {time.monotonic() - began:.1f} s")
            named = any(re.search(r"approvals/ap_\w+", text) for text in notices)
            theatre.check(named, "the agent was told the approval's name while it waited")
            added = theatre.server_value(
                "SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders' AND column_name = 'priority'"
            )
            theatre.check(added == 1, "approved, it ran")
            theatre.agent("DELETE FROM orders")
            try:
                connection.execute("DELETE FROM orders")
                theatre.check(False, "the denied DELETE was refused")
            except psycopg.errors.InsufficientPrivilege as error:
                theatre.saw(f"ERROR {error.sqlstate}: {error.diag.message_primary}\nHINT: {error.diag.message_hint}")
                theatre.check(error.sqlstate == "42501" and error.diag.message_hint, "denied, it arrives as 42501 with a hint")
            usable = connection.execute("SELECT 1").fetchone() == (1,)
            after = theatre.server_value("SELECT count(*) FROM orders")
            theatre.check(usable and after == before, f"the connection stays usable and all {after} orders are there")
        finally:
            stop()


def _bot(theatre: Theatre, api: Api) -> Callable[[], None]:
    """A bot that watches, approves ALTER and denies the rest; the returned call stops it."""
    stream = api.approvals.Watch(approvals_pb2.ApprovalServiceWatchRequest())

    def work() -> None:
        try:
            for told in stream:
                one = told.approval
                if one.state != approvals_pb2.APPROVAL_STATE_PENDING:
                    continue
                who = f"{one.subject} for {one.acts_for}"
                theatre.approver(f"{one.name}: {who} wants {one.statement!r} because of rule {one.rule}: {'; '.join(one.reasons)}")
                if one.statement.startswith("ALTER"):
                    api.approvals.Approve(approvals_pb2.ApproveRequest(name=one.name, comment="planned", request_id=one.name + "-yes"))
                    theatre.approver("approved")
                else:
                    hint = "Delete by id, or ask the data owner."
                    api.approvals.Deny(approvals_pb2.DenyRequest(name=one.name, comment=hint, request_id=one.name + "-no"))
                    theatre.approver("denied: " + hint)
        except Exception as error:
            if "ancel" not in str(error):
                theatre.check(False, f"the bot's stream goes on ({error})")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def stop() -> None:
        stream.cancel()
        thread.join(5)

    return stop


def act_revoke(theatre: Theatre) -> None:
    """5. The grant is revoked while the agent is connected."""
    with theatre.api("operator") as api, theatre.connect() as connection:
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        grant = str(row[0]).removeprefix("pgleash_")
        theatre.say(f"operator: pgleash grants revoke {grant}")
        began = time.monotonic()
        api.grants.Revoke(grants_pb2.GrantServiceRevokeRequest(id=grant, reason="the task is done", request_id=grant))
        told = ""
        try:
            for _ in range(200):
                connection.execute("SELECT 1")
                time.sleep(0.01)
        except psycopg.Error as error:
            told = str(error).strip()
        took = time.monotonic() - began
        theatre.saw(f"{told.splitlines()[0] if told else 'nothing'} (after {took * 1000:.0f} ms)")
        theatre.check("revoked" in told and took < 1.0, "its session ended with a clear FATAL within a second")
        gone = False
        for _ in range(100):
            gone = theatre.server_value("SELECT count(*) FROM pg_roles WHERE rolname = %s", str(row[0])) == 0
            if gone:
                break
            time.sleep(0.05)
        theatre.check(gone, f"the role {row[0]} is gone from pg_roles")


def act_prove(theatre: Theatre) -> None:
    """6. The audit log proves itself, and shows every tampering."""
    stage = theatre.stage
    whole = theatre.pgleash("audit", "verify")
    theatre.say("auditor: pgleash audit verify")
    theatre.saw(whole.stdout.strip() or whole.stderr.strip())
    theatre.check(whole.returncode == 0, "the chain and its signatures are whole")
    for what, tamper in (("one flipped byte", _flip), ("one removed record", _remove), ("a cut tail", _cut)):
        copy = stage.home / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(stage.audit_directory, copy)
        tamper(sorted(copy.glob("*.seg"))[-1])
        found = theatre.pgleash("audit", "verify", "--offline", str(copy), "--public-key", str(stage.public_key))
        theatre.say(f"{what} in a copy:")
        theatre.saw("\n".join(found.stdout.strip().splitlines()[:2]) or found.stderr.strip())
        theatre.check(found.returncode == 2 and "record" in found.stdout, f"{what} is found and named")
        shutil.rmtree(copy, ignore_errors=True)


def _records(data: bytes) -> list[tuple[int, int]]:
    # (offset, length) of every record: the length is each record's first word, see docs/audit-format.md.
    found, at = [], 96
    while at + 4 <= len(data) and (length := int.from_bytes(data[at : at + 4], "little")):
        found.append((at, length))
        at += length
    return found


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    offset, length = _records(bytes(data))[5]
    data[offset + length // 2] ^= 1
    path.write_bytes(data)


def _remove(path: Path) -> None:
    data = path.read_bytes()
    offset, length = _records(data)[5]
    path.write_bytes(data[:offset] + data[offset + length :] + bytes(length))


def _cut(path: Path) -> None:
    data = path.read_bytes()
    offset, _ = _records(data)[-3]
    path.write_bytes(data[:offset] + bytes(len(data) - offset))


def act_replay(theatre: Theatre) -> None:
    """7. Sessions are listed, and one is played back as the agent saw it."""
    listed = theatre.pgleash("sessions", "list")
    theatre.say("auditor: pgleash sessions list")
    theatre.saw(listed.stdout.strip() or listed.stderr.strip())
    with theatre.api("auditor") as api:
        sessions = list(api.sessions.List(sessions_pb2.SessionServiceListRequest(subject="agent-7")).sessions)
    theatre.check(listed.returncode == 0 and len(sessions) >= 4, "the agent's sessions are there")
    masked = next((one for one in sessions if one.application_name == "act 3"), sessions[-1])
    played = theatre.pgleash("sessions", "replay", masked.id, "--speed", "20")
    theatre.say(f"auditor: pgleash sessions replay {masked.id} --speed 20")
    lines = played.stdout.strip().splitlines()
    theatre.saw("\n".join(line[:150] for line in lines[:14]) + (f"\n… {len(lines) - 14} more lines" if len(lines) > 14 else ""))
    real = str(theatre.server_value("SELECT email FROM customers WHERE id = 7"))
    theatre.check(
        played.returncode == 0 and "***" in played.stdout and real not in played.stdout, "the replay shows what the agent saw: masked"
    )


ACTS: tuple[Callable[[Theatre], None], ...] = (act_connect, act_mask, act_hold, act_revoke, act_prove, act_replay)

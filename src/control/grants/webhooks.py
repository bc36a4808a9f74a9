"""Posts that tell approvers elsewhere of approvals: signed, kept until they are taken, at least once.

What is to be told is written in the transaction of the change itself, so that neither a crash nor a dead receiver loses it. A
redirect is a failure: what is signed for one address goes nowhere else. Signatures as in Standard Webhooks (headers webhook-id,
webhook-timestamp, webhook-signature). Never add here: secrets in a body, or a decision that comes back by the same way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hashlib
import hmac
import json
import logging
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from control.grants.records import ApprovalRecord
from control.store.database import Store
from pgwire.ports import Audit, Refused

__all__ = ["Hook", "Webhooks", "signature"]

_log = logging.getLogger(__name__)
_FIRST, _LONGEST = 1.0, 300.0  # seconds between attempts
_AT_ONCE = 8
_POLL = 30.0  # seconds between looks when nothing is known to be due
_MOST_TEXT = 4000  # characters of a statement that are told
_MOST_VALUE = 200


@dataclass(frozen=True, slots=True)
class Hook:
    """One receiver. ``format``: standard or slack; ``states`` and ``databases`` (empty: all) narrow what it is told. Times in seconds."""

    name: str
    url: str
    secret: str = field(repr=False)
    format: str = "standard"
    states: frozenset[str] = frozenset({"PENDING"})
    databases: frozenset[str] = frozenset()
    timeout: float = 10.0
    give_up_after: float = 86400.0


def signature(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``. A secret that begins with ``whsec_`` is base64 behind it."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret[6:], validate=True)
        except binascii.Error:
            pass
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class Webhooks:
    """The outbox and its delivery. ``enqueue`` is called in the store's thread, everything else on the event loop."""

    def __init__(self, store: Store, audit: Audit, hooks: Sequence[Hook], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._audit = audit
        self._hooks = {hook.name: hook for hook in hooks}
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._sending: dict[int, asyncio.Task[None]] = {}

    def enqueue(self, db: sqlite3.Connection, record: ApprovalRecord) -> None:
        """Write down, in the transaction of the change, who is to be told."""
        now = self._clock()
        rows = [
            (hook.name, "msg_" + secrets.token_hex(12), json.dumps(_body(hook, record, now), ensure_ascii=False), now, now)
            for hook in self._hooks.values()
            if record.state in hook.states and (not hook.databases or record.database in hook.databases)
        ]
        if rows:
            db.executemany("INSERT INTO outbox (hook, message, body, created_at, next_at) VALUES (?, ?, ?, ?, ?)", rows)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Deliver, until it is cancelled."""
        if not self._hooks:
            return
        self._loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(follow_redirects=False, trust_env=False) as client:
            try:
                while True:
                    self._wake.clear()
                    wait = await self._send_due(client)
                    try:
                        await asyncio.wait_for(self._wake.wait(), wait)
                    except TimeoutError:
                        pass
            finally:
                for task in self._sending.values():
                    task.cancel()

    async def _send_due(self, client: httpx.AsyncClient) -> float:
        """Begin to send what is due; seconds until something is."""
        now = self._clock()
        rows = await self._store.run(lambda db: db.execute("SELECT * FROM outbox ORDER BY next_at LIMIT 100").fetchall())
        waits = [_POLL]
        for row in rows:
            if row["id"] in self._sending:
                continue
            if row["next_at"] > now:
                waits.append(row["next_at"] - now)
            elif len(self._sending) < _AT_ONCE:
                task = asyncio.create_task(self._send(client, row))
                self._sending[row["id"]] = task
                task.add_done_callback(functools.partial(self._sent, row["id"]))
        return max(0.01, min(waits))

    def _sent(self, number: int, _: asyncio.Task[None]) -> None:
        self._sending.pop(number, None)
        self._wake.set()

    async def _send(self, client: httpx.AsyncClient, row: sqlite3.Row) -> None:
        hook = self._hooks.get(row["hook"])
        problem = "there is no such webhook any more" if hook is None else await self._post(client, hook, row)
        now = self._clock()
        if not problem:
            await self._store.run(lambda db: db.execute("DELETE FROM outbox WHERE id = ?", (row["id"],)))
            return
        if hook is None or now - row["created_at"] > hook.give_up_after:
            _log.error("webhook %s: message %s is given up: %s", row["hook"], row["message"], problem)
            try:
                told = {"hook": row["hook"], "message": row["message"], "attempts": row["attempts"] + 1, "problem": problem}
                self._audit.record("webhook.given_up", told)
            except Refused:
                return  # it stays until that can be audited
            await self._store.run(lambda db: db.execute("DELETE FROM outbox WHERE id = ?", (row["id"],)))
            return
        wait = min(_LONGEST, _FIRST * 2 ** min(row["attempts"], 10)) * random.uniform(0.8, 1.2)
        _log.warning("webhook %s: %s; trying again in %.0f s", row["hook"], problem, wait)
        sql = "UPDATE outbox SET attempts = attempts + 1, next_at = ?, last_error = ? WHERE id = ?"
        await self._store.run(lambda db: db.execute(sql, (now + wait, problem[:500], row["id"])))

    async def _post(self, client: httpx.AsyncClient, hook: Hook, row: sqlite3.Row) -> str:
        """What went wrong; empty: it was taken."""
        body = row["body"].encode()
        stamp = int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": "pgleash",
            "webhook-id": row["message"],
            "webhook-timestamp": str(stamp),
            "webhook-signature": signature(hook.secret, row["message"], stamp, body),
        }
        try:
            async with asyncio.timeout(hook.timeout):
                # the answer's body is nobody's business, and may be endless
                async with client.stream("POST", hook.url, content=body, headers=headers, timeout=hook.timeout) as response:
                    return "" if response.is_success else f"it answered {response.status_code}"
        except TimeoutError:
            return f"no answer in {hook.timeout:g} s"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"[:300]


def _body(hook: Hook, record: ApprovalRecord, now: float) -> dict[str, Any]:
    return _slack(record) if hook.format == "slack" else _standard(record, now)


def _standard(record: ApprovalRecord, now: float) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": record.name,
        "state": record.state,
        "mode": record.mode,
        "subject": record.subject,
        "acts_for": record.acts_for,
        "database": record.database,
        "statement": _cut(record.statement, _MOST_TEXT),
        "parameters": [None if value is None else _cut(value, _MOST_VALUE) for value in record.parameters[:50]],
        "facts": _small(record.facts),
        "rule": record.rule,
        "reasons": [_cut(reason, 500) for reason in record.reasons[:20]],
        "approvers": list(record.approvers[:50]),
        "needed": record.needed,
        "digest": record.digest,
        "expires_at": _time(record.expires_at),
        "decided_by": record.decided_by,
        "comment": record.comment,
    }
    return {"type": f"approval.{record.state.lower()}", "timestamp": _time(now), "data": data}


def _slack(record: ApprovalRecord) -> dict[str, Any]:
    who = record.subject + (f" for {record.acts_for}" if record.acts_for else "")
    heading = f"{record.state}: {who} on {record.database}" + (f", by {record.decided_by}" if record.decided_by else "")
    why = "; ".join(record.reasons) or record.rule
    lines = [f"*{_escaped(heading)}*", f"```{_escaped(_cut(record.statement, 2000))}```", _escaped(_cut(why, 500))]
    if record.state == "PENDING":
        until = datetime.fromtimestamp(record.expires_at, UTC)
        lines.append(f"until {until:%Y-%m-%d %H:%M:%S} UTC: `pgleash approvals approve {record.name}`, or deny")
    elif record.comment:
        lines.append(_escaped(_cut(record.comment, 500)))
    text = "\n".join(lines)
    return {"text": _escaped(heading), "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text[:2990]}}]}


def _escaped(text: str) -> str:
    # as Slack wants it; and no statement ends its own code block
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")


def _small(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return facts if len(json.dumps(facts, default=str)) <= 8000 else {"kinds": facts.get("kinds", []), "cut_off": True}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()

"""The services of grants, sessions and audit, each a thin layer over its part.

Never add here: decisions; access checks; anything that a part could do itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from control.audit.query import query
from control.audit.recording import replay
from control.audit.verify import verify
from control.grants.errors import InvalidArgument, WrongState
from control.grants.ledger import GrantLedger
from control.grants.registry import SessionRegistry
from control.rpc import messages
from control.rpc.access import caller, token_time_left
from control.store.feed import Overrun, Subscription
from pgleash.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    grants_pb2,
    grants_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)
from pgwire.ports import Scope

__all__ = ["Auditing", "Grants", "Sessions"]

T = TypeVar("T")
_BATCH = 64


class Grants(grants_pb2_grpc.GrantServiceServicer):
    """GrantService."""

    def __init__(self, ledger: GrantLedger, databases: frozenset[str]) -> None:
        self._ledger = ledger
        self._databases = databases

    async def Create(self, request: grants_pb2.GrantServiceCreateRequest, context: Any) -> grants_pb2.GrantServiceCreateResponse:
        if request.database not in self._databases:
            raise InvalidArgument(f"database: one of {', '.join(sorted(self._databases))}")
        record = await self._ledger.create(
            by=caller(),
            subject=request.subject,
            scope=Scope(request.database, tuple(request.tables), frozenset(request.verbs)),
            duration=request.duration.seconds + request.duration.nanos / 1e9,
            reason=request.reason,
            request_id=request.request_id or None,
        )
        return grants_pb2.GrantServiceCreateResponse(grant=messages.grant(record))

    async def Get(self, request: grants_pb2.GrantServiceGetRequest, context: Any) -> grants_pb2.GrantServiceGetResponse:
        return grants_pb2.GrantServiceGetResponse(grant=messages.grant(await self._ledger.get(request.id)))

    async def List(self, request: grants_pb2.GrantServiceListRequest, context: Any) -> grants_pb2.GrantServiceListResponse:
        limit, offset = messages.page(request.page_size, request.page_token)
        state = messages.state_name(grants_pb2.GrantState, request.state, "GRANT_STATE_")
        found = await self._ledger.list(
            subject=request.subject or None, database=request.database or None, state=state, limit=limit + 1, offset=offset
        )
        return grants_pb2.GrantServiceListResponse(
            grants=[messages.grant(record) for record in found[:limit]], next_page_token=messages.next_token(len(found), limit, offset)
        )

    async def Revoke(self, request: grants_pb2.GrantServiceRevokeRequest, context: Any) -> grants_pb2.GrantServiceRevokeResponse:
        record = await self._ledger.revoke(request.id, by=caller(), reason=request.reason, request_id=request.request_id or None)
        return grants_pb2.GrantServiceRevokeResponse(grant=messages.grant(record))


class Sessions(sessions_pb2_grpc.SessionServiceServicer):
    """SessionService."""

    def __init__(self, registry: SessionRegistry, audit_directory: Path, recording_directory: Path) -> None:
        self._registry = registry
        self._audit = audit_directory
        self._recording = recording_directory

    async def List(self, request: sessions_pb2.SessionServiceListRequest, context: Any) -> sessions_pb2.SessionServiceListResponse:
        limit, offset = messages.page(request.page_size, request.page_token)
        found = await self._registry.list(
            live=True if request.live_only else None,
            subject=request.subject or None,
            database=request.database or None,
            limit=limit + 1,
            offset=offset,
        )
        return sessions_pb2.SessionServiceListResponse(
            sessions=[messages.session(record) for record in found[:limit]], next_page_token=messages.next_token(len(found), limit, offset)
        )

    async def Get(self, request: sessions_pb2.SessionServiceGetRequest, context: Any) -> sessions_pb2.SessionServiceGetResponse:
        return sessions_pb2.SessionServiceGetResponse(session=messages.session(await self._registry.get(request.id)))

    async def Watch(
        self, request: sessions_pb2.SessionServiceWatchRequest, context: Any
    ) -> AsyncIterator[sessions_pb2.SessionServiceWatchResponse]:
        with self._registry.changes.subscribe() as changes:
            live = await self._registry.list(live=True, subject=request.subject or None, limit=1000)
            for record in reversed(live):
                yield sessions_pb2.SessionServiceWatchResponse(session=messages.session(record))
            async for record in _while_token_lasts(changes):
                if not request.subject or record.subject == request.subject:
                    yield sessions_pb2.SessionServiceWatchResponse(session=messages.session(record))

    async def Terminate(self, request: sessions_pb2.TerminateRequest, context: Any) -> sessions_pb2.TerminateResponse:
        record = await self._registry.terminate(request.id, by=caller(), reason=request.reason)
        return sessions_pb2.TerminateResponse(session=messages.session(record))

    async def Replay(self, request: sessions_pb2.ReplayRequest, context: Any) -> AsyncIterator[sessions_pb2.ReplayResponse]:
        record = await self._registry.get(request.id)
        async for made in _in_thread(replay(self._audit, self._recording, record.number)):
            yield messages.frame(made)


class Auditing(audit_pb2_grpc.AuditServiceServicer):
    """AuditService. ``checkpoint`` signs the log's end before it is verified."""

    def __init__(
        self, directory: Path, public_key: Ed25519PublicKey, checkpoint: Callable[[], Awaitable[None]], registry: SessionRegistry
    ) -> None:
        self._directory = directory
        self._public_key = public_key
        self._checkpoint = checkpoint
        self._registry = registry

    async def Query(self, request: audit_pb2.QueryRequest, context: Any) -> AsyncIterator[audit_pb2.QueryResponse]:
        number = (await self._registry.get(request.session)).number if request.session else None
        found = query(
            self._directory,
            kinds=frozenset(request.kinds),
            subject=request.subject or None,
            session=number,
            since=request.since.ToNanoseconds() / 1e9 if request.HasField("since") else None,
            until=request.until.ToNanoseconds() / 1e9 if request.HasField("until") else None,
            after=request.after,
            limit=request.limit if request.limit > 0 else 1000,
        )
        async for entry in _in_thread(found):
            yield messages.audit_entry(entry)

    async def Verify(self, request: audit_pb2.VerifyRequest, context: Any) -> audit_pb2.VerifyResponse:
        await self._checkpoint()
        report = await asyncio.to_thread(verify, self._directory, self._public_key)
        return audit_pb2.VerifyResponse(
            ok=report.ok,
            records=report.records,
            segments=report.segments,
            checkpoints=report.checkpoints,
            head_sequence=report.head[0],
            head_hash=report.head[1],
            problems=[
                audit_pb2.AuditProblem(file=problem.file, offset=problem.offset, sequence=problem.sequence, description=problem.what)
                for problem in report.problems[:1000]
            ],
            notes=report.notes,
        )


async def _while_token_lasts(changes: Subscription[T]) -> AsyncIterator[T]:
    """The changes, until the caller's token expires."""
    while (left := token_time_left()) > 0:
        try:
            yield await asyncio.wait_for(anext(changes), left)
        except TimeoutError:
            break
        except Overrun as error:
            raise WrongState(str(error)) from error
    raise WrongState("the token has expired; watch again with a new one")


async def _in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """A blocking iterator's items, fetched in batches by a thread."""

    def some() -> list[T]:
        batch: list[T] = []
        for item in items:
            batch.append(item)
            if len(batch) >= _BATCH:
                break
        return batch

    while batch := await asyncio.to_thread(some):
        for item in batch:
            yield item

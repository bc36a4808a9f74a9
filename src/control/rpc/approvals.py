"""ApprovalService: a thin layer over the approval desk, its shapes and dry runs.

Never add here: decisions; access checks; anything that a part could do itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from control.grants.approvals import ApprovalDesk
from control.grants.dryrun import DryRunner
from control.grants.errors import InvalidArgument, WrongState
from control.grants.records import ApprovalRecord
from control.grants.shapes import Bound, ShapeTerms
from control.rpc import messages
from control.rpc.access import caller, token_time_left
from control.store.feed import Overrun, Subscription
from pgleash.v1 import approvals_pb2 as pb
from pgleash.v1 import approvals_pb2_grpc

__all__ = ["Approvals"]


class Approvals(approvals_pb2_grpc.ApprovalServiceServicer):
    """ApprovalService."""

    def __init__(self, desk: ApprovalDesk, dry_runs: DryRunner) -> None:
        self._desk = desk
        self._dry_runs = dry_runs

    async def List(self, request: pb.ApprovalServiceListRequest, context: Any) -> pb.ApprovalServiceListResponse:
        limit, offset = messages.page(request.page_size, request.page_token)
        state = messages.state_name(pb.ApprovalState, request.state, "APPROVAL_STATE_")
        found = await self._desk.list(state=state, database=request.database or None, limit=limit + 1, offset=offset)
        return pb.ApprovalServiceListResponse(
            approvals=[messages.approval(record) for record in found[:limit]],
            next_page_token=messages.next_token(len(found), limit, offset),
        )

    async def Get(self, request: pb.ApprovalServiceGetRequest, context: Any) -> pb.ApprovalServiceGetResponse:
        return pb.ApprovalServiceGetResponse(approval=messages.approval(await self._desk.get(request.name)))

    async def Watch(self, request: pb.ApprovalServiceWatchRequest, context: Any) -> AsyncIterator[pb.ApprovalServiceWatchResponse]:
        if request.resume_token and not (
            request.resume_token.isascii() and request.resume_token.isdigit() and len(request.resume_token) < 19
        ):
            raise InvalidArgument("resume_token: one from an earlier response")
        # Each approval comes as it is now, so one that changed twice meanwhile comes once; its last state is never left out.
        seen: int | None = int(request.resume_token) if request.resume_token else None
        while True:
            with self._desk.changes.subscribe() as changes:
                async for record in self._missed(seen):
                    seen = record.sequence
                    if not request.database or record.database == request.database:
                        yield _told(record)
                if seen is None:
                    seen = 0
                try:
                    async for record in _while_token_lasts(changes):
                        if record.sequence <= seen:
                            continue
                        seen = record.sequence
                        if not request.database or record.database == request.database:
                            yield _told(record)
                except Overrun:
                    continue  # what it did not read in time is in the store

    async def _missed(self, seen: int | None) -> AsyncIterator[ApprovalRecord]:
        """What is pending, or, with a token, everything that changed behind it; in the order of the changes."""
        pending, after = seen is None, seen or 0
        while page := await self._desk.since(after, pending):
            for record in page:
                yield record
            after = page[-1].sequence

    async def Approve(self, request: pb.ApproveRequest, context: Any) -> pb.ApproveResponse:
        record = await self._desk.decide(
            request.name,
            approve=True,
            by=caller(),
            comment=request.comment,
            request_id=request.request_id or None,
            shape=_terms(request.shape) if request.HasField("shape") else None,
        )
        return pb.ApproveResponse(approval=messages.approval(record))

    async def Deny(self, request: pb.DenyRequest, context: Any) -> pb.DenyResponse:
        record = await self._desk.decide(
            request.name, approve=False, by=caller(), comment=request.comment, request_id=request.request_id or None
        )
        return pb.DenyResponse(approval=messages.approval(record))

    async def DryRun(self, request: pb.DryRunRequest, context: Any) -> pb.DryRunResponse:
        return messages.dry_run(await self._dry_runs.run(request.name, caller()))

    async def ListShapes(self, request: pb.ListShapesRequest, context: Any) -> pb.ListShapesResponse:
        limit, offset = messages.page(request.page_size, request.page_token)
        found = await self._desk.shapes.list(active=request.active_only, subject=request.subject or None, limit=limit + 1, offset=offset)
        return pb.ListShapesResponse(
            shapes=[messages.shape(record) for record in found[:limit]], next_page_token=messages.next_token(len(found), limit, offset)
        )

    async def RevokeShape(self, request: pb.RevokeShapeRequest, context: Any) -> pb.RevokeShapeResponse:
        record = await self._desk.shapes.revoke(request.name, by=caller(), reason=request.reason)
        return pb.RevokeShapeResponse(shape=messages.shape(record))


def _told(record: ApprovalRecord) -> pb.ApprovalServiceWatchResponse:
    return pb.ApprovalServiceWatchResponse(approval=messages.approval(record), resume_token=str(record.sequence))


def _terms(given: pb.ShapeTerms) -> ShapeTerms:
    bounds = {
        place: Bound(
            bound.any,
            tuple(bound.values),
            bound.least if bound.HasField("least") else None,
            bound.most if bound.HasField("most") else None,
        )
        for place, bound in given.bounds.items()
    }
    return ShapeTerms(bounds, given.uses, given.duration.seconds + given.duration.nanos / 1e9, given.group)


async def _while_token_lasts(changes: Subscription[ApprovalRecord]) -> AsyncIterator[ApprovalRecord]:
    """The changes, until the caller's token expires. Raises ``Overrun`` when some were lost."""
    while (left := token_time_left()) > 0:
        try:
            yield await asyncio.wait_for(anext(changes), left)
        except TimeoutError:
            break
    raise WrongState("the token has expired; watch again with a new one, from the last resume_token on")

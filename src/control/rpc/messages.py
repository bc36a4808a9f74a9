"""Records of the control plane as messages of the API, and back.

Never add here: calls to parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct
from google.protobuf.timestamp_pb2 import Timestamp

from control.audit.query import Entry
from control.audit.recording import Frame
from control.grants.dryrun import DryRun
from control.grants.errors import InvalidArgument
from control.grants.ledger import GrantRecord
from control.grants.records import ApprovalRecord
from control.grants.registry import SessionRecord
from control.grants.shapes import ShapeRecord
from pgleash.v1 import approvals_pb2, audit_pb2, grants_pb2, sessions_pb2

__all__ = ["approval", "audit_entry", "frame", "grant", "next_token", "page", "session", "shape", "state_name", "struct", "timestamp"]

_MOST = 1000
_DEFAULT = 100


def timestamp(seconds: float | None) -> Timestamp | None:
    """Unix seconds as a Timestamp; None stays unset."""
    if seconds is None:
        return None
    micros = round(min(seconds, 253402300799.0) * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def struct(value: Mapping[str, Any]) -> Struct:
    """Any mapping that JSON can carry."""
    made = Struct()
    made.update(json.loads(json.dumps(dict(value), default=str)))
    return made


def page(size: int, token: str) -> tuple[int, int]:
    """(limit, offset) of a list request. Raises ``InvalidArgument``."""
    if size < 0:
        raise InvalidArgument("page_size: 0 or more")
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidArgument("page_token: one from an earlier response")
    return min(size or _DEFAULT, _MOST), int(token or 0)


def next_token(found: int, limit: int, offset: int) -> str:
    """The token for more; empty when that was all."""
    return str(offset + limit) if found > limit else ""


def state_name(enum: Any, value: int, prefix: str) -> str | None:
    """An enum's value as the store has it; None for unspecified. Raises ``InvalidArgument``."""
    if value == 0:
        return None
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        raise InvalidArgument(f"state: {value} is not one of {prefix}*") from None


def approval(record: ApprovalRecord) -> approvals_pb2.Approval:
    """See protos."""
    parameters = ListValue()
    parameters.extend(list(record.parameters))
    return approvals_pb2.Approval(
        name=record.name,
        session=record.session_id,
        subject=record.subject,
        acts_for=record.acts_for or "",
        groups=record.groups,
        database=record.database,
        statement=record.statement,
        parameters=parameters,
        facts=struct(record.facts),
        reasons=record.reasons,
        rule=record.rule,
        approvers=record.approvers,
        state=f"APPROVAL_STATE_{record.state}",
        create_time=timestamp(record.created_at),
        expire_time=timestamp(record.expires_at),
        decide_time=timestamp(record.decided_at),
        decided_by=record.decided_by,
        comment=record.comment,
        needed=record.needed,
        votes=[
            approvals_pb2.Vote(
                subject=vote.subject, acts_for=vote.acts_for or "", approve=vote.approve, comment=vote.comment, time=timestamp(vote.at)
            )
            for vote in record.votes
        ],
        mode=record.mode,
        digest=record.digest,
        standing=struct(record.binding.get("standing", {})),
        transaction_status=record.binding.get("transaction", ""),
        shape=record.binding.get("shape", ""),
        constants=record.binding.get("constants", []),
        evidence=struct(record.evidence),
        use_expire_time=timestamp(record.use_before),
        use_time=timestamp(record.used_at),
    )


def dry_run(made: DryRun) -> approvals_pb2.DryRunResponse:
    """See protos."""
    told = approvals_pb2.DryRunResponse(
        affected_rows=made.affected,
        sqlstate=made.sqlstate,
        error=made.error,
        constraint=made.constraint,
        notes=made.notes,
        duration=Duration(seconds=int(made.seconds), nanos=int(made.seconds % 1 * 1e9)),
    )
    for change in made.tables:
        told.tables.add(table=change.table, inserted=change.inserted, updated=change.updated, deleted=change.deleted)
    for row in made.samples:
        sample = told.samples.add()
        for values, field in ((row.before, sample.before), (row.after, sample.after)):
            if values is not None:
                field.CopyFrom(struct(values))
    return told


def shape(record: ShapeRecord) -> approvals_pb2.Shape:
    """See protos."""
    return approvals_pb2.Shape(
        name=record.name,
        approval=record.approval,
        rule=record.rule,
        database=record.database,
        subject=record.subject,
        group=record.group,
        shape=record.shape,
        bounds={
            place: approvals_pb2.ValueBound(
                any=bound.get("any", False),
                values=["" if value is None else value for value in bound.get("values", [])],
                least=bound.get("least"),
                most=bound.get("most"),
            )
            for place, bound in record.bounds.items()
        },
        most=record.most,
        uses=record.uses,
        state=record.state,
        created_by=record.created_by,
        create_time=timestamp(record.created_at),
        expire_time=timestamp(record.expires_at),
        end_time=timestamp(record.ended_at),
        ended_by=record.ended_by,
        end_reason=record.end_reason,
    )


def grant(record: GrantRecord) -> grants_pb2.Grant:
    """See protos."""
    return grants_pb2.Grant(
        id=record.id,
        subject=record.subject,
        database=record.scope.database,
        tables=record.scope.tables,
        verbs=sorted(record.scope.verbs),
        reason=record.reason,
        state=f"GRANT_STATE_{record.state}",
        created_by=record.created_by,
        create_time=timestamp(record.created_at),
        expire_time=timestamp(record.expires_at),
        end_time=timestamp(record.ended_at),
        ended_by=record.ended_by,
        end_reason=record.end_reason,
    )


def session(record: SessionRecord) -> sessions_pb2.Session:
    """See protos."""
    return sessions_pb2.Session(
        id=record.id,
        number=record.number,
        subject=record.subject,
        acts_for=record.acts_for or "",
        groups=record.groups,
        grant=record.grant_id,
        database=record.database,
        peer=f"{record.peer}:{record.peer_port}",
        tls=record.tls,
        server_user=record.server_user,
        application_name=record.application_name,
        start_time=timestamp(record.started_at),
        end_time=timestamp(record.ended_at),
        end_reason=record.end_reason,
        statements=record.statements,
    )


def frame(made: Frame) -> sessions_pb2.ReplayResponse:
    """See protos."""
    rows = []
    for row in made.rows:
        values = ListValue()
        values.extend(list(row))
        rows.append(values)
    offset = Duration(seconds=made.offset_us // 1_000_000, nanos=made.offset_us % 1_000_000 * 1000)
    return sessions_pb2.ReplayResponse(
        offset=offset,
        kind=made.kind,
        text=made.text,
        columns=made.columns,
        rows=rows,
        row_count=made.row_count,
        tag=made.tag,
        truncated=made.truncated,
        fields=struct(made.fields),
    )


def audit_entry(entry: Entry) -> audit_pb2.QueryResponse:
    """See protos."""
    return audit_pb2.QueryResponse(
        sequence=entry.sequence,
        time=timestamp(entry.time_us / 1e6),
        session_number=entry.session,
        kind=entry.kind,
        subject=entry.subject,
        fields=struct(entry.fields),
    )

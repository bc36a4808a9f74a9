"""PolicyService: explaining, comparing and reading the policy, a thin layer over its parts.

Never add here: decisions; access checks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from control.audit.query import entries
from control.grants.errors import InvalidArgument
from control.policy.engine import PolicyEngine
from control.policy.explaining import Explanation, explain
from control.policy.replaying import Change, Sent, compare, sent
from control.policy.rules import PolicyError
from control.rpc import messages
from pgleash.v1 import policy_pb2, policy_pb2_grpc
from pgwire.ports import MaskRule, Obligations, Principal

__all__ = ["Policies"]

_STATEMENTS = 10_000


class Policies(policy_pb2_grpc.PolicyServiceServicer):
    """PolicyService. ``reload`` reads the file and says whether it has changed."""

    def __init__(self, engine: PolicyEngine, reload: Callable[[], bool], audit_directory: Path) -> None:
        self._engine = engine
        self._reload = reload
        self._audit = audit_directory

    async def Explain(self, request: policy_pb2.ExplainRequest, context: Any) -> policy_pb2.ExplainResponse:
        if not request.subject or not request.statement:
            raise InvalidArgument("subject and statement: both are needed")
        claims = MessageToDict(request.claims) if request.HasField("claims") else {}
        principal = Principal(request.subject, groups=frozenset(request.groups), acts_for=request.acts_for or None, claims=_whole(claims))
        engine = self._under(request.policy, "policy")
        if request.HasField("time"):
            moment = request.time.ToNanoseconds() / 1e9
            engine = engine.at(lambda: moment)
        bound = None
        if request.bound or request.parameters:
            values = tuple(None if value.null else value.text.encode() for value in request.parameters)
            bound = values, (0,) * len(values)
        return _explained(await explain(engine, principal, request.database, request.statement, bound=bound))

    async def Diff(self, request: policy_pb2.DiffRequest, context: Any) -> policy_pb2.DiffResponse:
        old, new = self._under(request.old_policy, "old"), self._under(request.new_policy, "new")
        values = any(rule.when.parameters for engine in (old, new) for rule in engine.policy.rules)

        def look() -> tuple[list[Sent], bool]:
            found = ((entry.time_us / 1e6, entry.session, entry.kind, entry.fields) for entry in entries(self._audit))
            return sent(
                found,
                values=values,
                database=request.database,
                subject=request.subject,
                since=request.since.ToNanoseconds() / 1e9 if request.HasField("since") else 0,
                until=request.until.ToNanoseconds() / 1e9 if request.HasField("until") else time.time(),
                limit=request.limit if request.limit > 0 else _STATEMENTS,
            )

        statements, cut_off = await asyncio.to_thread(look)
        changes = await compare(old, new, statements)
        return policy_pb2.DiffResponse(
            changes=[_change(change) for change in changes],
            statements=len(statements),
            cut_off=cut_off,
            old_version=old.version,
            new_version=new.version,
        )

    async def Reload(self, request: policy_pb2.ReloadRequest, context: Any) -> policy_pb2.ReloadResponse:
        try:
            changed = self._reload()
        except PolicyError as error:
            raise InvalidArgument(f"the policy is not changed: {error}") from None
        return policy_pb2.ReloadResponse(policy_version=self._engine.version, changed=changed)

    def _under(self, document: str, name: str) -> PolicyEngine:
        try:
            return self._engine.instead(document, name) if document else self._engine
        except PolicyError as error:
            raise InvalidArgument(str(error)) from None


def _whole(value: Any) -> Any:
    """JSON's numbers are floating; whole ones are whole again, as the token had them."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explained(made: Explanation) -> policy_pb2.ExplainResponse:
    response = policy_pb2.ExplainResponse(
        effect=made.effect,
        rule=made.rule,
        reasons=made.reasons,
        message=made.message,
        hint=made.hint,
        facts=messages.struct(made.facts),
        masks=_masks(made.masks),
        policy_version=made.policy_version,
        rules=[
            policy_pb2.RuleWord(name=word.name, effect=word.effect, observe=word.observe, outcome=word.outcome, why=word.why)
            for word in made.rules
        ],
        observed=made.observed,
        obligations=_obligations(made.obligations),
        sqlstate=made.sqlstate,
    )
    if made.hold is not None:
        terms = made.hold
        response.hold.CopyFrom(
            policy_pb2.HoldTerms(approvers=terms.approvers, needed=terms.needed, timeout=_duration(terms.timeout), defer=terms.defer)
        )
        if terms.transaction_timeout is not None:
            response.hold.transaction_timeout.CopyFrom(_duration(terms.transaction_timeout))
    return response


def _change(change: Change) -> policy_pb2.PolicyChange:
    return policy_pb2.PolicyChange(
        statement=change.sent.text,
        subject=change.sent.principal.subject,
        acts_for=change.sent.principal.acts_for or "",
        database=change.sent.database,
        count=change.sent.count,
        before=_answer(change.before),
        after=_answer(change.after),
    )


def _answer(made: Explanation) -> policy_pb2.PolicyAnswer:
    return policy_pb2.PolicyAnswer(
        effect=made.effect, rule=made.rule, reasons=made.reasons, masks=_masks(made.masks), obligations=_obligations(made.obligations)
    )


def _masks(masks: tuple[MaskRule | None, ...]) -> list[policy_pb2.ColumnMask]:
    return [policy_pb2.ColumnMask(action=mask.action if mask else "", label=mask.label if mask else "") for mask in masks]


def _obligations(asked: Obligations) -> policy_pb2.Obligations:
    return policy_pb2.Obligations(
        max_rows=asked.max_rows,
        max_affected=asked.max_affected,
        read_only=asked.read_only,
        statement_timeout=_duration(asked.statement_timeout) if asked.statement_timeout is not None else None,
        lock_timeout=_duration(asked.lock_timeout) if asked.lock_timeout is not None else None,
        record=asked.record,
    )


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))

"""The rows that agents get when they ask the gateway about themselves: their approvals, their grant, how they stand, and help.

Never add here: anything of another principal, or SQL that agents write.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from control.grants.approvals import ApprovalDesk
from control.grants.records import ApprovalRecord
from control.grants.votes import approvals_of
from pgwire.ports import SessionInfo

__all__ = ["Answers"]

_MOST = 200  # approvals, the newest first
_HELP = (
    ("held", "A held statement waits on the wire until an approver decides; notices tell its approval's name. Cancel takes it back."),
    ("deferred", "A deferred statement is denied with its approval's name. When that is APPROVED, the same statement passes once."),
    ("approvals", "SELECT name, state, comment FROM pgleash.approvals WHERE name = '…' tells where your requests stand."),
    ("grant", "SELECT * FROM pgleash.grant tells what your grant covers and until when."),
    ("status", "SHOW pgleash.status, or SELECT * FROM pgleash.status, tells who you are here."),
    ("denied", "A denial's DETAIL is JSON with the rule and the reasons; its HINT says how to go on."),
)


class Answers:
    """``policy_version`` tells the version of the policy in force."""

    def __init__(self, desk: ApprovalDesk, policy_version: Callable[[], str]) -> None:
        self._desk = desk
        self._policy_version = policy_version

    async def tell(self, session: SessionInfo, name: str) -> list[dict[str, Any]]:
        """The rows of ``approvals``, ``grant``, ``status`` or ``help`` as this session may see them."""
        if name == "approvals":
            return [_approval(record) for record in await self._own(session)]
        if name == "grant":
            return [_grant(session)]
        if name == "status":
            return await self._status(session)
        return [{"topic": topic, "text": text} for topic, text in _HELP]

    async def _own(self, session: SessionInfo) -> list[ApprovalRecord]:
        principal = session.principal
        found = await self._desk.list(subject=principal.subject, database=session.database, limit=_MOST)
        return [record for record in found if record.acts_for == principal.acts_for]

    async def _status(self, session: SessionInfo) -> list[dict[str, Any]]:
        pending = sum(record.state == "PENDING" for record in await self._own(session))
        facts = {
            "session": session.id,
            "subject": session.principal.subject,
            "acts_for": session.principal.acts_for or "nobody",
            "groups": ", ".join(sorted(session.principal.groups)),
            "database": session.database,
            "grant": f"{session.grant.id} until {_time(session.grant.expires_at)}",
            "approvals_pending": str(pending),
            "policy_version": self._policy_version(),
        }
        return [{"name": name, "value": value} for name, value in facts.items()]


def _approval(record: ApprovalRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": record.state,
        "mode": record.mode,
        "statement": record.statement,
        "parameters": list(record.parameters),
        "rule": record.rule,
        "reasons": "; ".join(record.reasons),
        "approvers": ", ".join(record.approvers),
        "needed": record.needed,
        "approved": len(approvals_of(record.votes)),
        "created_at": _time(record.created_at),
        "expires_at": _time(record.expires_at),
        "decided_at": _time(record.decided_at),
        "decided_by": record.decided_by or None,
        "comment": record.comment or None,
        "use_before": _time(record.use_before),
        "used_at": _time(record.used_at),
        "digest": record.digest,
    }


def _grant(session: SessionInfo) -> dict[str, Any]:
    grant = session.grant
    return {
        "id": grant.id,
        "subject": grant.subject,
        "acts_for": session.principal.acts_for,
        "database": grant.scope.database,
        "tables": ", ".join(grant.scope.tables),
        "verbs": ", ".join(sorted(grant.scope.verbs)),
        "reason": grant.reason,
        "expires_at": _time(grant.expires_at),
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return "infinity" if seconds > 253402300000 else datetime.fromtimestamp(seconds, UTC).isoformat()

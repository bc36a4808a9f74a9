"""What is kept of one held statement, how it is read from the store, and the digest over everything that is approved with it.

Never add here: SQL that changes anything, or an opinion on who may decide.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pgwire.ports import Binding, SessionInfo, Statement, Verdict

__all__ = ["ApprovalRecord", "Vote", "approval_record", "binding_of", "digest_of", "match_key", "next_sequence", "shown_parameters"]

_SESSION_BOUND = ("role",)  # part of what one session's approval is bound to, and different for the next one's


@dataclass(frozen=True, slots=True)
class Vote:
    """One approver's word. ``shape`` has the bounds within which they approve more of the kind, if they said any."""

    subject: str
    approve: bool
    at: float
    acts_for: str | None = None
    comment: str = ""
    request_id: str | None = None
    shape: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """One held statement. ``state``: PENDING, APPROVED, DENIED, EXPIRED, CANCELLED or VOIDED. Times are Unix seconds.

    ``sequence`` rises with every change of any approval. ``parameters`` are the bound values: text as it is, binary as
    ``base64:…``, None for NULL. ``digest`` is over everything that is approved with it, ``binding`` says what that is.
    ``mode``: wait (the client waits on the wire) or defer (it may come again until ``use_before``).
    """

    name: str
    sequence: int
    session_id: str
    session: int
    subject: str
    acts_for: str | None
    groups: tuple[str, ...]
    database: str
    statement: str
    parameters: tuple[str | None, ...]
    facts: Mapping[str, Any]
    reasons: tuple[str, ...]
    rule: str
    approvers: tuple[str, ...]
    needed: int
    votes: tuple[Vote, ...]
    mode: str
    dry_run: bool
    digest: str
    match_key: str
    binding: Mapping[str, Any]
    evidence: Mapping[str, Any]
    state: str
    created_at: float
    expires_at: float
    duration: float
    decided_at: float | None = None
    decided_by: str = ""
    comment: str = ""
    use_before: float | None = None
    used_at: float | None = None
    used_by: str = ""


_PLAIN = (
    "name", "sequence", "session_id", "session", "subject", "acts_for", "database", "statement", "rule", "needed", "mode", "digest",
    "match_key", "state", "created_at", "expires_at", "duration", "decided_at", "decided_by", "comment", "use_before", "used_at", "used_by",
)  # fmt: skip
_LISTS = ("groups", "parameters", "reasons", "approvers")
_MAPPINGS = ("facts", "binding", "evidence")


def approval_record(row: sqlite3.Row) -> ApprovalRecord:
    """A row of the table ``approvals``."""
    values: dict[str, Any] = {name: row[name] for name in _PLAIN}
    values |= {name: tuple(json.loads(row[name])) for name in _LISTS}
    values |= {name: json.loads(row[name]) for name in _MAPPINGS}
    votes = tuple(Vote(**vote) for vote in json.loads(row["votes"]))
    return ApprovalRecord(**values, votes=votes, dry_run=bool(row["dry_run"]))


def next_sequence(db: sqlite3.Connection) -> int:
    """The number of the next change."""
    row = db.execute(
        "INSERT INTO counters (name, value) VALUES ('approvals', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
    ).fetchone()
    return int(row["value"])


def binding_of(statement: Statement, verdict: Verdict) -> dict[str, Any]:
    """What an approval of this statement under this verdict is bound to, as it is kept."""
    bound = verdict.binding or Binding()
    return {
        **asdict(bound),
        "constants": list(bound.constants),
        "standing": dict(bound.standing),
        "transaction": statement.status,
        "parameter_formats": list(statement.parameter_formats),
        "parameter_types": list(statement.parameter_types),
    }


def digest_of(session: SessionInfo, statement: Statement, verdict: Verdict) -> str:
    """SHA-256 (hex) over exact bytes, values, principal, session, and everything that the meaning depends on."""
    principal = session.principal
    return _hashed(
        statement.text,
        session.id,
        principal.subject,
        principal.acts_for,
        principal.issuer,
        session.database,
        session.grant.id,
        statement.protocol,
        _values(statement),
        binding_of(statement, verdict),
    )


def match_key(session: SessionInfo, statement: Statement, verdict: Verdict) -> str:
    """What the same statement of the same principal has in common on any of its connections (SHA-256, hex)."""
    bound = verdict.binding or Binding()
    principal = session.principal
    standing = {name: value for name, value in bound.standing.items() if name not in (*_SESSION_BOUND, "catalog")}
    return _hashed(
        b"", principal.subject, principal.acts_for, principal.issuer, session.database, bound.canonical, _values(statement), standing
    )


def shown_parameters(statement: Statement) -> list[str | None]:
    """The values as people can read them."""
    shown: list[str | None] = []
    for index, value in enumerate(statement.parameters):
        binary = index < len(statement.parameter_formats) and statement.parameter_formats[index] != 0
        if value is None:
            shown.append(None)
        elif binary:
            shown.append("base64:" + base64.b64encode(value).decode())
        else:
            shown.append(value.decode("utf-8", "replace"))
    return shown


def _values(statement: Statement) -> list[Any]:
    # NULL, and the same bytes in another format or as another type, are other values
    types = [*statement.parameter_types, *(0 for _ in statement.parameters)]
    values = [None if value is None else value.hex() for value in statement.parameters]
    return [values, list(statement.parameter_formats), types[: len(values)]]


def _hashed(text: bytes, *parts: Any) -> str:
    told = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
    return hashlib.sha256(len(text).to_bytes(8, "big") + text + told).hexdigest()

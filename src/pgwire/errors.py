"""The one door through which errors and notices reach a client.

Source: PostgreSQL, "Error and Notice Message Fields". Every message that the gateway itself speaks is made here, so it
always has severity, SQLSTATE and text, never a NUL, and never more than a bounded length.

Never add here: anything a client may not know. What only the log may know travels in ``Refused.private``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pgwire.ports import Refused

__all__ = [
    "GatewayError",
    "ProtocolViolation",
    "ServerUnavailable",
    "TooManyConnections",
    "error_response",
    "from_refused",
    "notice_response",
    "syntax_error",
]

_LONGEST = 8000  # characters of one field


class GatewayError(Refused):
    """A refusal that the data plane itself makes."""


class ProtocolViolation(GatewayError):
    """The client or the server said what the protocol does not allow. SQLSTATE 08P01."""

    def __init__(self, message: str, *, private: str = "") -> None:
        super().__init__("08P01", message, private=private)


class ServerUnavailable(GatewayError):
    """The database server can't be reached or does not answer. SQLSTATE 08001."""

    def __init__(self, message: str, *, hint: str = "", private: str = "") -> None:
        super().__init__("08001", message, hint=hint or "Try again later; if it stays so, ask the gateway's operator.", private=private)


class TooManyConnections(GatewayError):
    """The gateway is full. SQLSTATE 53300."""

    def __init__(self, message: str) -> None:
        super().__init__("53300", message, hint="Close connections that are not used, or try again later.")


def error_response(severity: str, sqlstate: str, message: str, *, detail: str = "", hint: str = "") -> bytes:
    """An ErrorResponse message. ``severity``: ERROR, FATAL or PANIC."""
    return _message(b"E", severity, sqlstate, message, detail, hint)


def notice_response(sqlstate: str, message: str, *, detail: str = "", hint: str = "", severity: str = "NOTICE") -> bytes:
    """A NoticeResponse message."""
    return _message(b"N", severity, sqlstate, message, detail, hint)


def syntax_error(sqlstate: str, message: str, position: int) -> bytes:
    """The ErrorResponse for a text that PostgreSQL's grammar does not take, as PostgreSQL itself words it."""
    fields = [("S", "ERROR"), ("V", "ERROR"), ("C", sqlstate), ("M", message), ("P", str(position))]
    return _encoded(b"E", [*fields, ("F", "scan.l"), ("R", "scanner_yyerror")])


def from_refused(refused: Refused, *, fatal: bool) -> bytes:
    """The ErrorResponse for a refusal: its public part only. ``detail`` becomes JSON."""
    severity = "FATAL" if fatal else "ERROR"
    return error_response(severity, refused.sqlstate, refused.message, detail=_json(refused.detail), hint=refused.hint)


def _json(detail: Mapping[str, Any]) -> str:
    return json.dumps(detail, ensure_ascii=False, sort_keys=True, default=str) if detail else ""


def _message(kind: bytes, severity: str, sqlstate: str, message: str, detail: str, hint: str) -> bytes:
    code = sqlstate if len(sqlstate) == 5 and sqlstate.isascii() and sqlstate.isalnum() else "XX000"
    fields = [("S", severity), ("V", severity), ("C", code), ("M", f"pgleash: {message}")]
    if detail:
        fields.append(("D", detail))
    if hint:
        fields.append(("H", hint))
    return _encoded(kind, fields)


def _encoded(kind: bytes, fields: list[tuple[str, str]]) -> bytes:
    body = b"".join(name.encode() + _text(value) + b"\0" for name, value in fields) + b"\0"
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _text(value: str) -> bytes:
    shown = value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    return shown.replace("\0", "").encode("utf-8", "replace")

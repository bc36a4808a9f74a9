"""What agents ask of the gateway over their own connection: ``SELECT … FROM pgleash.approvals`` and the like.

Each such name stands for rows that the gateway tells the server just before the statement runs, in a setting of the session; in
the text it becomes a subquery over that setting. So the server itself does all else: WHERE, ORDER BY, joins, formats, cursors,
the order of replies. Never add here: whose rows they are (who tells them knows that), or a name that is not documented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from pglast import parser

from pgwire.ports import Inquiry, SessionInfo

__all__ = ["VIEWS", "Inquiries", "rewritten"]

VIEWS: Final[Mapping[str, Mapping[str, str]]] = {
    "approvals": {
        "name": "text", "state": "text", "mode": "text", "statement": "text", "parameters": "json", "rule": "text", "reasons": "text",
        "approvers": "text", "needed": "int4", "approved": "int4", "created_at": "timestamptz", "expires_at": "timestamptz",
        "decided_at": "timestamptz", "decided_by": "text", "comment": "text", "use_before": "timestamptz", "used_at": "timestamptz",
        "digest": "text",
    },
    "grant": {
        "id": "text", "subject": "text", "acts_for": "text", "database": "text", "tables": "text", "verbs": "text", "reason": "text",
        "expires_at": "timestamptz",
    },
    "status": {"name": "text", "value": "text"},
    "help": {"topic": "text", "text": "text"},
}  # fmt: skip
_FROM = frozenset({"fromClause", "larg", "rarg", "usingClause"})
_NAMED = re.compile(rb'(?:"pgleash"|(?i:pgleash))\s*\.\s*(?:"(\w+)"|(\w+))')
_SHOWN = re.compile(rb"\s*show\s+pgleash\s*\.\s*(\w+)\s*;?\s*", re.IGNORECASE)
_LONGEST = 65536  # bytes of a text that is looked through

Tell = Callable[[SessionInfo, str], Awaitable[Any]]


class Inquiries:
    """Implements ``ports.Inquiries``. ``tell(session, name)`` gives the rows of one name; ``status`` is also told as one line."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def read(self, text: bytes) -> Inquiry | None:
        """See ``ports.Inquiries``."""
        return rewritten(text) if len(text) <= _LONGEST and b"pgleash" in text.lower() else None

    async def answer(self, session: SessionInfo, inquiry: Inquiry) -> Mapping[str, str]:
        """See ``ports.Inquiries``."""
        told = {name: await self._tell(session, name) for name in sorted(inquiry.names)}
        if inquiry.shown:
            return {f"pgleash.{name}": "; ".join(f"{row['name']}: {row['value']}" for row in rows) for name, rows in told.items()}
        return {f"pgleash.{name}": json.dumps(rows, ensure_ascii=False, default=str) for name, rows in told.items()}


@lru_cache(maxsize=256)
def rewritten(text: bytes) -> Inquiry | None:
    """The text with the gateway's names replaced; None: it has none, or they stand where no rows can be read."""
    if (shown := _SHOWN.fullmatch(text)) is not None:
        return Inquiry(text, frozenset({"status"}), shown=True) if shown[1].lower() == b"status" else None
    try:
        tree = json.loads(parser.parse_sql_json(text.decode()))
    except (parser.ParseError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    names: set[str] = set()
    pieces: list[bytes] = []
    at = 0
    for place, relation in sorted(((each.get("location", 0), each) for each in _relations(tree, "")), key=lambda pair: pair[0]):
        match = _NAMED.match(text, place)
        if match is None or relation["relname"] not in VIEWS:
            return None
        names.add(relation["relname"])
        pieces += [text[at:place], _subquery(relation["relname"], "alias" not in relation)]
        at = match.end()
    return Inquiry(b"".join([*pieces, text[at:]]), frozenset(names)) if names else None


def _relations(node: Any, parent: str) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for each in node:
            yield from _relations(each, parent)
    elif isinstance(node, dict):
        for key, each in node.items():
            if key == "RangeVar" and parent in _FROM and each.get("schemaname") == "pgleash" and "catalogname" not in each:
                yield each
            else:
                yield from _relations(each, key if key[:1].islower() else parent)


def _subquery(name: str, unnamed: bool) -> bytes:
    columns = ", ".join(f'"{column}" pg_catalog.{kind}' for column, kind in VIEWS[name].items())
    source = f"pg_catalog.json_to_recordset(pg_catalog.current_setting('pgleash.{name}', true)::pg_catalog.json)"
    return f"(SELECT * FROM {source} AS told({columns})){f' AS {chr(34)}{name}{chr(34)}' if unnamed else ''}".encode()

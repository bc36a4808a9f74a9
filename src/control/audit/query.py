"""Asking the audit log: events and statements by kind, subject, session and time.

Blocking and streaming: run it in a thread. Never add here: verification, or an index that could disagree with the log.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.audit.format import BEGIN, END, EVENT, Begin, End, FormatError, Record, Segment, read_segment, segments

__all__ = ["Entry", "entries", "query", "recent_statements"]

_PROTOCOLS = {"Q": "simple", "E": "extended", "P": "parse", "F": "function"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One record for people. ``session`` is the session's number (0: none), ``subject`` who acted where that is known."""

    sequence: int
    time_us: int
    session: int
    kind: str
    subject: str
    fields: Mapping[str, Any]


def entries(directory: Path) -> Iterator[Entry]:
    """Every event and statement in order, up to the first damage. Raises ``OSError``."""
    subjects: dict[int, str] = {}
    for path in segments(directory):
        try:
            for item in read_segment(path):
                if isinstance(item, Segment):
                    continue
                entry = _entry(item, subjects)
                if entry is not None:
                    yield entry
        except FormatError:
            return


def query(
    directory: Path,
    *,
    kinds: Collection[str] = (),
    subject: str | None = None,
    session: int | None = None,
    since: float | None = None,
    until: float | None = None,
    after: int = 0,
    limit: int = 1000,
) -> Iterator[Entry]:
    """The first ``limit`` entries behind sequence number ``after`` that fit; times are Unix seconds. Raises ``OSError``."""
    found = 0
    for entry in entries(directory):
        if found >= limit:
            return
        if entry.sequence <= after or (kinds and entry.kind not in kinds):
            continue
        if (subject is not None and entry.subject != subject) or (session is not None and entry.session != session):
            continue
        if since is not None and entry.time_us < since * 1e6:
            continue
        if until is not None and entry.time_us >= until * 1e6:
            continue
        found += 1
        yield entry


def recent_statements(directory: Path, session: int, most: int, longest: int = 500) -> list[str]:
    """The latest statements of a session that are in the newest file, the newest last, each cut to ``longest`` characters."""
    found: deque[str] = deque(maxlen=most)
    for path in segments(directory)[-1:]:
        try:
            for item in read_segment(path):
                if isinstance(item, Record) and item.session == session and item.type == BEGIN:
                    text = Begin.parse(item.payload).text.decode("utf-8", "replace")
                    found.append(text if len(text) <= longest else text[:longest] + "…")
        except FormatError:
            break
    return list(found)


def _entry(record: Record, subjects: dict[int, str]) -> Entry | None:
    try:
        if record.type == EVENT:
            fields = json.loads(record.payload)
            kind = str(fields.pop("kind", "?"))
            subject = str(fields.get("subject") or "")
            if kind == "session.opened":
                subjects[record.session] = subject
            subject = subject or subjects.get(record.session, "")
            if kind == "session.closed":
                subjects.pop(record.session, None)
            return Entry(record.sequence, record.time_us, record.session, kind, subject, fields)
        if record.type == BEGIN:
            begin = Begin.parse(record.payload)
            fields = {"text": begin.text.decode("utf-8", "replace"), "protocol": _PROTOCOLS.get(begin.protocol, begin.protocol)}
            if begin.parameters:
                fields["parameters"] = begin.parameters.hex()
            return Entry(record.sequence, record.time_us, record.session, "statement", subjects.get(record.session, ""), fields)
        if record.type == END:
            end = End.parse(record.payload)
            fields = {
                "begin": end.begin,
                "rows": end.rows,
                "bytes": end.bytes,
                "duration_us": end.duration_us,
                "sqlstate": end.sqlstate,
                "masked": end.masked,
                "skipped": end.skipped,
                "cut_off": end.cut_off,
            }
            return Entry(record.sequence, record.time_us, record.session, "statement.ended", subjects.get(record.session, ""), fields)
    except (ValueError, AttributeError, RecursionError):
        return Entry(record.sequence, record.time_us, record.session, "unreadable", "", {})
    return None

"""A session played back: its statements from the audit log, and what the agent saw from the recording, in time order.

Recordings hold the bytes after masking, so a replay can show nothing that the agent did not see.
Source: PostgreSQL manual, chapter "Message Formats".

Never add here: waiting (whoever shows a replay keeps its time), or writing.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.audit.format import CHUNK, FormatError, Record, Segment, read_segment, segments
from control.audit.query import entries

__all__ = ["Frame", "replay"]

_MOST_ROWS = 200  # of one result in one frame


@dataclass(slots=True)
class Frame:
    """One moment. ``kind``: opened, statement, result, error, notice, ended, closed, or another audit event's kind.

    ``offset_us`` counts from the session's start. A result has ``columns``, ``rows`` (None for NULL; binary values as
    ``\\x…``), ``row_count`` and ``tag``; ``truncated`` says that the recording was cut short there.
    """

    offset_us: int
    kind: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: list[tuple[str | None, ...]] = field(default_factory=list)
    row_count: int = 0
    tag: str = ""
    truncated: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


def replay(audit_directory: Path, recording_directory: Path, session: int) -> Iterator[Frame]:
    """The session's frames in order. Blocking. Raises ``OSError``; yields nothing for a session that is not there."""
    start: int | None = None
    merged = heapq.merge(_said(audit_directory, session), _seen(recording_directory, session), key=lambda pair: pair[0])
    for time_us, frame in merged:
        if start is None:
            start = time_us
        frame.offset_us = max(0, time_us - start)
        yield frame


def _said(directory: Path, session: int) -> Iterator[tuple[int, Frame]]:
    for entry in entries(directory):
        if entry.session != session:
            continue
        text = str(entry.fields.get("text", "")) if entry.kind.startswith("statement") else str(entry.fields.get("reason", ""))
        kind = {"session.opened": "opened", "session.closed": "closed", "statement.ended": "ended"}.get(entry.kind, entry.kind)
        if entry.kind == "statement" and entry.fields.get("protocol") == "parse":
            kind = "parse"
        yield entry.time_us, Frame(0, kind, text, fields=dict(entry.fields))
        if entry.kind == "session.closed":
            return


def _seen(directory: Path, session: int) -> Iterator[tuple[int, Frame]]:
    decoder = _Decoder()
    if not directory.exists():
        return
    for path in segments(directory):
        try:
            for item in read_segment(path):
                if isinstance(item, Segment) or item.session != session or item.type != CHUNK:
                    continue
                for frame in _frames(decoder, item):
                    yield item.time_us, frame
        except FormatError:
            continue


def _frames(decoder: _Decoder, record: Record) -> Iterator[Frame]:
    payload = record.payload
    if len(payload) < 8 or payload[:1] != b"<":
        return
    yield from decoder.feed(payload[8:], bool(payload[1] & 1))


class _Decoder:
    # What one session's server messages mean, one after the other.
    def __init__(self) -> None:
        self._columns: tuple[str, ...] = ()
        self._formats: tuple[int, ...] = ()
        self._rows: list[tuple[str | None, ...]] = []
        self._count = 0
        self._cut = False

    def feed(self, data: bytes, cut: bool) -> Iterator[Frame]:
        self._cut = self._cut or cut
        at = 0
        while at + 5 <= len(data):
            length = int.from_bytes(data[at + 1 : at + 5], "big")
            if length < 4 or at + 1 + length > len(data):
                self._cut = True
                break
            kind, body = data[at : at + 1], data[at + 5 : at + 1 + length]
            at += 1 + length
            try:
                yield from self._message(kind, body)
            except (ValueError, struct.error, IndexError):
                self._cut = True
        if cut:
            yield self._result("")

    def _message(self, kind: bytes, body: bytes) -> Iterator[Frame]:
        if kind == b"T":
            self._columns, self._formats = _columns(body)
            self._rows, self._count, self._cut = [], 0, False
        elif kind == b"D":
            self._count += 1
            if len(self._rows) < _MOST_ROWS:
                self._rows.append(_row(body, self._formats))
        elif kind in (b"C", b"s"):
            yield self._result(body.rstrip(b"\0").decode("utf-8", "replace"))
        elif kind in (b"E", b"N"):
            told = {chr(part[0]): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
            self._rows, self._count = [], 0
            yield Frame(
                0,
                "error" if kind == b"E" else "notice",
                told.get("M", ""),
                fields={"sqlstate": told.get("C", ""), "hint": told.get("H", "")},
            )
        elif kind == b"d":
            self._count += 1
            if len(self._rows) < _MOST_ROWS:
                self._rows.append((body.decode("utf-8", "backslashreplace").rstrip("\n"),))

    def _result(self, tag: str) -> Frame:
        frame = Frame(0, "result", "", self._columns if self._rows else (), self._rows, self._count, tag, self._cut)
        self._rows, self._count, self._cut = [], 0, False
        return frame


def _columns(body: bytes) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names: list[str] = []
    formats: list[int] = []
    at = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        end = body.index(b"\0", at)
        names.append(body[at:end].decode("utf-8", "replace"))
        formats.append(struct.unpack_from("!IhIhih", body, end + 1)[5])
        at = end + 19
    return tuple(names), tuple(formats)


def _row(body: bytes, formats: tuple[int, ...]) -> tuple[str | None, ...]:
    values: list[str | None] = []
    at = 2
    for index in range(int.from_bytes(body[:2], "big")):
        (size,) = struct.unpack_from("!i", body, at)
        at += 4
        if size < 0:
            values.append(None)
            continue
        value = body[at : at + size]
        at += size
        binary = index < len(formats) and formats[index] == 1
        values.append("\\x" + value.hex() if binary else value.decode("utf-8", "backslashreplace"))
    return tuple(values)

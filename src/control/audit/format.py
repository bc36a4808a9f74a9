"""The bytes of a journal, read back. Written separately from the writer, from docs/audit-format.md.

Never add here: writing, or what to think of damage (``control.audit.verify`` says that).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["BEGIN", "CHUNK", "END", "EVENT", "SEAL", "Begin", "End", "FormatError", "Record", "Segment", "read_segment", "segments"]

EVENT: Final = 1
BEGIN: Final = 2
END: Final = 3
CHUNK: Final = 4
SEAL: Final = 5

_HEADER = struct.Struct("<IIBBHIQQQ")  # length, crc, version, type, flags, payload length, sequence, time, session
_SEGMENT = struct.Struct(
    "<8sIIQQ16s32sQII"
)  # magic, version, flags, number, first sequence, journal id, previous hash, time, reserved, crc
_BEGIN = struct.Struct("<BBHIII")
_END = struct.Struct("<QQQI5sBH")
_Bytes = bytes  # End has a field of that name
_NAME = re.compile(r"\d{8,20}\.seg")


class FormatError(Exception):
    """These bytes are no journal. ``offset`` is where, in bytes from the file's start."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what


class Record(NamedTuple):
    """One record. ``time_us`` is Unix time in microseconds; ``digest`` is the chain hash (empty without a chain)."""

    offset: int
    length: int
    type: int
    flags: int
    sequence: int
    time_us: int
    session: int
    payload: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's header. ``previous`` is the chain hash of the last record before it."""

    path: Path
    number: int
    first_sequence: int
    journal_id: bytes
    previous: bytes
    time_us: int
    chained: bool
    header: bytes


class Begin(NamedTuple):
    """The payload of a BEGIN record: a statement about to be sent. ``protocol``: Q, P, E or F."""

    protocol: str
    flags: int
    text: bytes
    parameters: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Begin:
        """Raises ``ValueError``."""
        if len(payload) < _BEGIN.size:
            raise ValueError("too short for a BEGIN record")
        protocol, _, flags, text, parameters, _ = _BEGIN.unpack_from(payload)
        if _BEGIN.size + text + parameters != len(payload):
            raise ValueError("lengths of a BEGIN record do not add up")
        start = _BEGIN.size
        return cls(chr(protocol), flags, payload[start : start + text], payload[start + text :])


class End(NamedTuple):
    """The payload of an END record: how the statement with sequence number ``begin`` went. Duration in microseconds."""

    begin: int
    rows: int
    bytes: int
    duration_us: int
    sqlstate: str
    masked: bool
    skipped: bool
    cut_off: bool

    @classmethod
    def parse(cls, payload: _Bytes) -> End:
        """Raises ``ValueError``."""
        if len(payload) != _END.size:
            raise ValueError("wrong length of an END record")
        begin, rows, size, duration, state, flags, _ = _END.unpack(payload)
        return cls(
            begin, rows, size, duration, state.rstrip(b"\0").decode("ascii", "replace"), bool(flags & 1), bool(flags & 2), bool(flags & 4)
        )


def segments(directory: Path) -> list[Path]:
    """The segment files of a journal in order. Raises ``OSError``."""
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=lambda path: int(path.stem))


def read_header(path: Path, data: bytes) -> Segment:
    """The header of a segment. Raises ``FormatError``."""
    if len(data) < _SEGMENT.size:
        raise FormatError(0, "the file is shorter than a segment's header")
    magic, version, flags, number, first, journal_id, previous, time_us, _, _ = _SEGMENT.unpack_from(data)
    if magic != b"PGLEASHJ":
        raise FormatError(0, "the segment's header is damaged (no magic)")
    if version != 1:
        raise FormatError(8, f"the segment has version {version}, this program reads 1")
    return Segment(path, number, first, journal_id, previous, time_us, bool(flags & 1), data[: _SEGMENT.size])


def read_segment(path: Path) -> Iterator[Segment | Record]:
    """The header, then every record. Ends at the unwritten rest of a live segment.

    Raises ``FormatError`` where something stands that is neither a record nor unwritten (zeros), and ``OSError``.
    The chain is followed: a record whose hash does not fit raises too.
    """
    with path.open("rb") as file:
        data = file.read(_SEGMENT.size)
        segment = read_header(path, data)
        yield segment
        link = hashlib.sha256(b"\x10" + segment.header).digest()
        offset = _SEGMENT.size
        extra = 32 if segment.chained else 0
        while True:
            head = file.read(_HEADER.size)
            if not head.strip(b"\0"):
                while rest := file.read(1 << 20):
                    if rest.strip(b"\0"):
                        raise FormatError(offset, "zeros stand where a record was: it was wiped out, records follow")
                return
            if len(head) < _HEADER.size:
                raise FormatError(offset, "the file ends in the middle of a record")
            length, _, version, kind, flags, size, sequence, time_us, session = _HEADER.unpack(head)
            covered = _HEADER.size + ((size + 7) & ~7)
            if length == 0:
                # Its length is stored last: the process died while writing it.
                rest = file.read(1)
                raise FormatError(offset, "an unfinished record")
            if version != 1 or size > 0x40000000 or length != covered + extra:
                raise FormatError(offset, "the record's header is damaged")
            body = file.read(length - _HEADER.size)
            if len(body) < length - _HEADER.size:
                raise FormatError(offset, "the file ends in the middle of a record")
            digest = b""
            if segment.chained:
                hashed = hashlib.sha256(b"\x11" + link + head[:4] + head[4:])
                hashed.update(body[: covered - _HEADER.size])
                digest = hashed.digest()
                if digest != body[-32:]:
                    raise FormatError(
                        offset, f"record {sequence} does not fit the chain: it was changed, or a record before it was removed"
                    )
                link = digest
            yield Record(offset, length, kind, flags, sequence, time_us, session, body[:size], digest)
            offset += length

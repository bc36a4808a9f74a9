"""Whether an audit log is whole: every record in its place in the chain, every signature good, nothing cut off.

Works on the files alone, so anyone with the public key can do it. Never add here: repair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from control.audit.checkpoints import FILE, signed_bytes
from control.audit.format import SEAL, FormatError, Record, Segment, read_segment, segments

__all__ = ["Problem", "Report", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: file name, byte offset, sequence number (0: not known), and what happened."""

    file: str
    offset: int
    sequence: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}, byte {self.offset}, record {self.sequence or '?'}: {self.what}"


@dataclass(slots=True)
class Report:
    """What was found. ``head`` is the last good record's (sequence number, chain hash). ``notes`` are no problems."""

    records: int = 0
    segments: int = 0
    checkpoints: int = 0
    head: tuple[int, str] = (0, "")
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems


@dataclass(slots=True)
class _Chain:
    # where the walk is
    sequence: int = 0
    digest: bytes = bytes(32)
    journal_id: bytes = b""
    segment: int = 0
    sealed: bool = True


def verify(directory: Path, public_key: Ed25519PublicKey | None) -> Report:
    """Read the whole log. Without a key, signatures are not checked (a note says so). Never raises for what it finds in files."""
    report = Report()
    try:
        files = segments(directory)
    except OSError as error:
        report.problems.append(Problem(str(directory), 0, 0, f"can't be read: {error.strerror}"))
        return report
    points = _checkpoints(directory, public_key, report)
    signed = {int(point["sequence"]): str(point["hash"]) for point in points}
    last_signed = max(signed, default=0)
    chain = _Chain()
    for index, path in enumerate(files):
        _walk(path, chain, signed, report, last=index == len(files) - 1, last_signed=last_signed)
    report.segments = len(files)
    report.head = (chain.sequence, chain.digest.hex())
    if last_signed > chain.sequence:
        name = files[-1].name if files else str(directory)
        what = f"the end is cut off: records {chain.sequence + 1} to {last_signed} are missing, which a signed checkpoint covers"
        report.problems.append(Problem(name, 0, chain.sequence + 1, what))
    if any(point["journal"] != chain.journal_id.hex() for point in points) and chain.journal_id:
        report.problems.append(Problem(FILE, 0, 0, "a checkpoint belongs to another log"))
    if not points and report.records:
        report.problems.append(Problem(FILE, 0, 0, "there is no signed checkpoint: a cut end could not be noticed"))
    elif chain.sequence > last_signed and report.ok:
        report.notes.append(f"records {last_signed + 1} to {chain.sequence} are chained but not signed yet")
    return report


def _walk(path: Path, chain: _Chain, signed: dict[int, str], report: Report, *, last: bool, last_signed: int) -> None:
    try:
        for item in read_segment(path):
            if isinstance(item, Segment):
                _enter(item, chain, report)
                continue
            _step(path, item, chain, signed, report)
    except FormatError as error:
        unsigned = chain.sequence >= last_signed
        if last and unsigned and error.what == "an unfinished record":
            report.notes.append(f"{path.name}, byte {error.offset}: an unfinished record that nobody got a receipt for")
        else:
            report.problems.append(Problem(path.name, error.offset, chain.sequence + 1, error.what))
    except OSError as error:
        report.problems.append(Problem(path.name, 0, chain.sequence + 1, f"can't be read: {error.strerror}"))


def _enter(segment: Segment, chain: _Chain, report: Report) -> None:
    def wrong(what: str) -> None:
        report.problems.append(Problem(segment.path.name, 0, segment.first_sequence, what))

    if not segment.chained:
        wrong("the segment claims to have no chain")
    if int(segment.path.stem) != segment.number:
        wrong(f"the file is segment {segment.number} under another name")
    if chain.journal_id and segment.journal_id != chain.journal_id:
        wrong("the segment belongs to another log")
    if segment.number != chain.segment + 1:
        wrong(f"segment {chain.segment + 1} is missing before it")
    elif segment.first_sequence != chain.sequence + 1:
        wrong(f"records {chain.sequence + 1} to {segment.first_sequence - 1} are missing before it")
    elif segment.previous != chain.digest:
        wrong("it does not continue the segment before it")
    elif not chain.sealed:
        wrong("the segment before it was not sealed: its end may be cut off")
    chain.journal_id = segment.journal_id
    chain.segment = segment.number
    chain.sequence = segment.first_sequence - 1
    chain.digest = segment.previous
    chain.sealed = False


def _step(path: Path, record: Record, chain: _Chain, signed: dict[int, str], report: Report) -> None:
    if record.sequence != chain.sequence + 1:
        report.problems.append(Problem(path.name, record.offset, record.sequence, f"record {chain.sequence + 1} is missing before it"))
    if chain.sealed:
        report.problems.append(Problem(path.name, record.offset, record.sequence, "a record behind the segment's seal"))
    chain.sequence = record.sequence
    chain.digest = record.digest
    chain.sealed = record.type == SEAL
    report.records += 1
    expected = signed.get(record.sequence)
    if expected is not None and expected != record.digest.hex():
        report.problems.append(
            Problem(path.name, record.offset, record.sequence, "the log was rewritten: a signed checkpoint has another hash for it")
        )


def _checkpoints(directory: Path, public_key: Ed25519PublicKey | None, report: Report) -> list[dict[str, Any]]:
    good: list[dict[str, Any]] = []
    try:
        lines = (directory / FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return good
    except OSError as error:
        report.problems.append(Problem(FILE, 0, 0, f"can't be read: {error.strerror}"))
        return good
    if public_key is None:
        report.notes.append("no public key was given: signatures were not checked")
    offset = 0
    for number, line in enumerate(lines):
        where, offset = offset, offset + len(line) + 1
        if not line:
            continue
        try:
            point = json.loads(line)
            sequence = int(point["sequence"])
            _ = str(point["hash"]), str(point["journal"])
            if public_key is not None:
                public_key.verify(bytes.fromhex(point["signature"]), signed_bytes(point))
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) - 1:
                report.notes.append("the last checkpoint is unfinished")
            else:
                report.problems.append(Problem(FILE, where, 0, "an unreadable checkpoint"))
            continue
        except InvalidSignature:
            report.problems.append(Problem(FILE, where, sequence, "a checkpoint's signature is wrong: it was forged or changed"))
            continue
        if good and sequence <= int(good[-1]["sequence"]):
            report.problems.append(Problem(FILE, where, sequence, "checkpoints are out of order"))
        report.checkpoints += 1
        good.append(point)
    return good

"""Writes what the runs found into docs/compatibility.md, between the marks that belong to each run.

Never add here: an outcome that no run has had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drivers.matrix import STEPS, Outcome

__all__ = ["Row", "SuiteRow", "write_drivers", "write_suites"]


@dataclass(frozen=True, slots=True)
class Row:
    """One driver on one server: its outcomes there, and by step what was different through the gateway."""

    label: str
    version: str
    major: int
    direct: Mapping[str, Outcome]
    different: Mapping[str, tuple[Outcome, Outcome]]


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """One driver's own test suite: (passed, failed, skipped) without and with the gateway, and the reasons of what differs."""

    label: str
    version: str
    direct: tuple[int, int, int]
    through: tuple[int, int, int]
    reasons: Mapping[str, int]


def _between(path: Path, mark: str, text: str) -> None:
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not found.search(document):
        raise ValueError(f"{path} has no place for {mark}")
    path.write_text(found.sub(lambda _: f"{begin}\n{text}\n{end}", document), encoding="utf-8")


def _cell(row: Row, step: str) -> str:
    if step in row.different:
        return "**different**"
    return {"ok": "ok", "absent": "–"}.get(row.direct[step].kind, "?")


def write_drivers(path: Path, rows: Sequence[Row]) -> None:
    """The table of drivers, steps across, and below it each difference in words."""
    lines = ["| Driver | Version | Server | " + " | ".join(STEPS) + " |", "| --- " * (len(STEPS) + 3) + "|"]
    for row in rows:
        lines.append(f"| {row.label} | {row.version} | {row.major} | " + " | ".join(_cell(row, step) for step in STEPS) + " |")
    for row in rows:
        for step, (before, after) in row.different.items():
            lines.append(f"\n{row.label}, {step}: PostgreSQL {_short(before)}; the gateway {_short(after)}.")
    _between(path, "drivers", "\n".join(lines))


def _short(outcome: Outcome) -> str:
    text = str(outcome.value).replace("|", "\\|")
    return f"{outcome.kind} `{text[:160]}`"


def _count(counts: tuple[int, int, int]) -> str:
    passed, failed, skipped = counts
    return f"{passed:,} passed, {failed:,} failed, {skipped:,} skipped"


def write_suites(path: Path, rows: Sequence[SuiteRow]) -> None:
    """The table of the drivers' own test suites."""
    lines = ["| Suite | Version | PostgreSQL alone | Through the gateway | Why the rest differs |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        why = "; ".join(f"{count} × {reason}" for reason, count in row.reasons.items()) or "nothing differs"
        lines.append(f"| {row.label} | {row.version} | {_count(row.direct)} | {_count(row.through)} | {why} |")
    _between(path, "suites", "\n".join(lines))

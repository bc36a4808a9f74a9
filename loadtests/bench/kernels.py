"""The kernels alone, and what a statement costs the gateway that it has seen, seen with other literals, or never seen.

Never add here: a kernel's own code.
"""

from __future__ import annotations

import itertools
import random
import struct
import tempfile
import time
from collections.abc import Callable
from typing import Any

from loadtests.bench import rounds
from loadtests.bench.proc import cpu
from loadtests.bench.stand import Stand
from loadtests.bench.wire import RawClient

from pgwire.hot import canonical, framing, masking
from pgwire.hot.journal import Journal
from pgwire.plans import compile_plan
from pgwire.ports import Column, MaskRule

_ROWS = 5000
_NAMES = ("id", "name", "email", "card", "city", "phone", "notes")
_RULES = {
    "email": MaskRule("pseudonym", "bench.email"),
    "card": MaskRule("keep_last", "bench.card", 4),
    "notes": MaskRule("fixed", "bench.notes", "***"),
}


def measure(stand: Stand, count: int) -> dict[str, Any]:
    """All of them: median, least and most over the rounds."""
    data = _rows()
    plan = compile_plan(tuple(Column(name, 0, 0, 25) for name in _NAMES), tuple(map(_RULES.get, _NAMES)), b"k" * 32)
    assert plan is not None
    found: dict[str, list[float]] = {}
    for _ in range(count):
        found.setdefault("masking, GB/s", []).append(len(data) * 100 / masking._bench(plan, data, 100) / 1e9)
        found.setdefault("framing, GB/s", []).append(len(data) * 200 / framing._bench(data, 200) / 1e9)
        found.setdefault("canonical form of a short statement, ns", []).append(_canonical())
        found.setdefault("audit append of 200 bytes, µs", []).append(_append())
        for label, used in _statements(stand).items():
            found.setdefault(label, []).append(used)
    result: dict[str, Any] = {label: {**rounds.spread(values), "rounds": values} for label, values in found.items()}
    for label, one in result.items():
        print(f"kernel {label:<36}" + " {median:8.2f} [{min:.2f}..{max:.2f}]".format(**one), flush=True)
    return result


def _rows() -> bytes:
    made = []
    for i in range(_ROWS):
        cells = [
            f"{i:09}",
            f"customer number {i:08}",
            f"someone.{i:08}@example.com",
            f"4111 1111 {i:04} 1234",
            f"a town called {i % 999:04}",
        ]
        cells += [f"+49 30 {i:08}", "called twice, called twice, called twice,"]
        body = struct.pack("!h", len(cells)) + b"".join(struct.pack("!i", len(cell)) + cell.encode() for cell in cells)
        made.append(b"D" + struct.pack("!i", len(body) + 4) + body)
    return b"".join(made)


def _canonical() -> float:
    began, loops = time.perf_counter(), 200_000
    canonical._bench(b"SELECT abalance FROM accounts WHERE aid = 4711;", loops)
    return (time.perf_counter() - began) / loops * 1e9


def _append() -> float:
    with tempfile.TemporaryDirectory(prefix="pgleash-bench-") as directory:
        journal = Journal(directory, 64 << 20)
        try:
            journal._bench(1000, 200)
            return journal._bench(100_000, 200) / 1000
        finally:
            journal.close()


def _statements(stand: Stand) -> dict[str, float]:
    """CPU µs of the gateway per simple query, everything included, on one connection."""
    pid = stand.pgleash.pid
    assert pid is not None
    serial = random.randrange(1 << 40)
    fresh = itertools.count(serial)
    kinds: dict[str, tuple[int, Callable[[], str]]] = {
        "statement seen before, µs": (3000, lambda: "SELECT abalance FROM accounts WHERE aid = 7"),
        "seen with other literals, µs": (
            3000,
            lambda: f"SELECT abalance FROM accounts WHERE aid = {next(fresh) % 99999} OR aid = {serial % 77777}",
        ),
        "never seen, µs": (500, lambda: f"SELECT abalance AS a{next(fresh)} FROM accounts WHERE aid = 7"),
    }
    result = {}
    with RawClient(stand.pgleash) as client:
        for label, (times, text) in kinds.items():
            client.run(text())
            before = cpu(pid)
            for _ in range(times):
                client.run(text())
            result[label] = (cpu(pid) - before) / times * 1e6
    return result

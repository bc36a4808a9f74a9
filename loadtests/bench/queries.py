"""CPU per query, throughput and latency under pgbench.

Never add here: another source of load.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.bench import rounds
from loadtests.bench.proc import cpu, wakeups
from loadtests.bench.stand import ACCOUNTS, Stand, Target

FIXED = "SELECT abalance FROM accounts WHERE aid = 7;\n"
POINT = f"\\set aid random(1, {ACCOUNTS})\nSELECT abalance FROM accounts WHERE aid = :aid;\n"
CASES = (
    ("simple, same text", "simple", FIXED),
    ("simple, new literals", "simple", POINT),
    ("extended", "extended", POINT),
    ("prepared", "prepared", POINT),
)
CLIENTS = (1, 8, 32)
_PROGRESS = re.compile(r"progress: ([\d.]+) s, ([\d.]+) tps")


def run(stand: Stand, target: Target, script: Path, mode: str, clients: int, seconds: int) -> rounds.Figures:
    """One run. CPU and transactions are counted between the first and the last progress line: no logins, warmed up.

    With one client, added to that: p50 and p99 of the latency in microseconds, from pgbench's log of every transaction.
    """
    log = stand.scratch / "latency"
    command = [str(stand.pgbench), "-n", "-M", mode, "-c", str(clients), "-j", "1", "-T", str(seconds), "-P", "1", "--progress-timestamp"]
    command += ["-f", str(script), *(["-l", f"--log-prefix={log}"] if clients == 1 else []), target.dsn()]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PGPASSWORD": target.password, "LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        seen, said = _watch(process, target)
    finally:
        process.kill()
        code = process.wait()
    if code or len(seen) < 2:  # the last second of a run has no line of its own
        raise SystemExit(f"pgbench failed on {target.name} ({mode}, {clients} clients): {said[-500:]}")
    count = sum(tps * (at - before) for (at, tps, *_), (before, *_) in zip(seen[1:], seen[:-1], strict=True))
    took, used = seen[-1][0] - seen[0][0], seen[-1][2] - seen[0][2]
    figures = {"tps": count / took, "cpu_us": used / count * 1e6, "wakeups": (seen[-1][3] - seen[0][3]) / count}
    return figures | (_latency(log) if clients == 1 else {})


def _watch(process: subprocess.Popen[str], target: Target) -> tuple[list[tuple[float, float, float, int]], str]:
    """At every progress line: its time, its rate, and what the proxy has used. And whatever else pgbench said."""
    assert process.stderr is not None
    seen: list[tuple[float, float, float, int]] = []
    said = ""
    with process.stderr as lines:
        for line in lines:
            match = _PROGRESS.match(line)
            if match is None:
                said += line
                continue
            used = (cpu(target.pid), wakeups(target.pid)) if target.pid else (0.0, 0)
            seen.append((float(match[1]), float(match[2]), *used))
    process.wait()
    return seen, said


def _latency(prefix: Path) -> rounds.Figures:
    """p50 and p99 of what pgbench logged, without its first second; the log is removed."""
    times: list[int] = []
    for file in prefix.parent.glob(prefix.name + ".*"):
        with file.open() as lines:
            first = 0.0
            for line in lines:
                words = line.split()
                at = int(words[4]) + int(words[5]) / 1e6
                first = first or at
                if at - first > 1.0:
                    times.append(int(words[2]))
        file.unlink()
    cuts = statistics.quantiles(times, n=100)
    return {"p50_us": cuts[49], "p99_us": cuts[98]}


def measure(stand: Stand, clients: Sequence[int], given: argparse.Namespace, *, tls: bool) -> list[dict[str, Any]]:
    """Every case at every number of clients. ``given`` has rounds, seconds and case."""
    result = []
    for label, mode, text in CASES:
        if given.case not in label:
            continue
        script = stand.scratch / f"{label.replace(', ', '-').replace(' ', '-')}.sql"
        script.write_text(text)
        for number in clients:
            once = functools.partial(run, stand, script=script, mode=mode, clients=number, seconds=given.seconds)
            found = rounds.alternate(stand.targets(tls=tls), given.rounds, once)
            result.append(rounds.row({"case": label, "clients": number, "tls": tls}, found, "cpu_us"))
            print(_line(result[-1]), flush=True)
    return result


def _line(row: dict[str, Any]) -> str:
    text = f"{row['case']:<21} {'TLS' if row['tls'] else '   '} {row['clients']:>2} clients "
    for name, found in row["summary"].items():
        text += f"  {name} {found['tps']['median']:>6.0f}/s"
        if name != "direct":
            text += " {median:6.1f} [{min:.1f}..{max:.1f}] µs".format(**found["cpu_us"])
    if row["ratio"]:
        text += "   ratio {median:.2f} [{min:.2f}..{max:.2f}]".format(**row["ratio"])
    return text

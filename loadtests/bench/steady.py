"""How often the data path asks Python in the steady state, by the gateway's own count.

A session's end in the audit log says how often it asked; the difference of a long and a short session leaves out what a
session's beginning and end take.

Never add here: a measure of time.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from loadtests.bench import queries
from loadtests.bench.stand import Stand

from control.audit.query import entries

_SHORT, _LONG = 200, 1200


def measure(stand: Stand) -> dict[str, float]:
    """Calls into Python per query, for each way of sending one. Best measured first: the audit log is read from its start."""
    names = {}
    for at, (label, mode, text) in enumerate(queries.CASES):
        script = stand.scratch / "steady.sql"
        script.write_text(text)
        for count in (_SHORT, _SHORT, _LONG):  # the first makes what is shared known
            name = f"steady-{at}-{count}"
            names[name] = (label, count)
            _run(stand, script, mode, count, name)
    asked = _asked(stand, set(names))
    result = {}
    for at, (label, _, _) in enumerate(queries.CASES):
        result[label] = (asked[f"steady-{at}-{_LONG}"] - asked[f"steady-{at}-{_SHORT}"]) / (_LONG - _SHORT)
        print(f"asked  {label:<36} {result[label]:8.4f} calls into Python per query", flush=True)
    return result


def _run(stand: Stand, script: Path, mode: str, count: int, name: str) -> None:
    target = stand.pgleash
    command = [str(stand.pgbench), "-n", "-M", mode, "-t", str(count), "-f", str(script), target.dsn(application_name=name)]
    environment = {**os.environ, "PGPASSWORD": target.password, "LC_ALL": "C"}
    subprocess.run(command, env=environment, capture_output=True, check=True, start_new_session=True, timeout=60)


def _asked(stand: Stand, names: set[str]) -> dict[str, int]:
    """By application name; of several sessions with one name the last."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        opened: dict[int, str] = {}
        found: dict[str, int] = {}
        open_ones = set()
        for entry in entries(stand.stage.audit_directory):
            if entry.kind == "session.opened" and entry.fields.get("application_name") in names:
                opened[entry.session] = entry.fields["application_name"]
                open_ones.add(entry.session)
            elif entry.kind == "session.closed" and entry.session in opened:
                found[opened[entry.session]] = int(entry.fields["asked"])
                open_ones.discard(entry.session)
        if not open_ones and len(found) == len(names):
            return found
        time.sleep(0.2)
    raise SystemExit("the ends of the steady sessions are not in the audit log")

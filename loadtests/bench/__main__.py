"""`python -m loadtests.bench`: measure, print, write loadtests/results.json and the figures of docs/performance.md.

Never add here: a measure; each kind has a file of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from loadtests.bench import bulk, connections, kernels, memory, queries, report, steady
from loadtests.bench.stand import WIDE, Stand, open_stand
from loadtests.bench.wire import RawClient

KINDS = ("asked", "kernels", "connections", "bulk", "queries", "tls", "memory")
HERE = Path(__file__).resolve().parents[1]
METHOD = (
    "One run on one machine; targets alternate within each round and ratios are medians of the rounds' own ratios. CPU is the scheduler's "
    "run time of the proxy's process tree, for queries between pgbench's first and last progress line. Every server and pgbench is in a "
    "session of its own."
)


def measure(stand: Stand, kinds: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """The kinds asked for."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = stand.machine() | {"load": f"{os.getloadavg()[0]:.1f}", "ciphers": {}}
    for target in stand.targets(tls=True):
        with RawClient(target) as client:
            machine["ciphers"][target.name] = client.cipher
    result: dict[str, Any] = {"date": now, "method": METHOD, "rounds": given.rounds, "seconds": given.seconds, "machine": machine}
    if "asked" in kinds:
        result["asked"] = steady.measure(stand)
    if "kernels" in kinds:
        result["kernels"] = kernels.measure(stand, given.rounds)
    if "connections" in kinds:
        result["connections"] = connections.measure(stand, given.rounds, 50 if given.quick else 200)
    if "bulk" in kinds:
        result["bulk"] = bulk.measure(stand, given.rounds)
    clients = (8,) if given.quick else queries.CLIENTS
    if "queries" in kinds:
        result["queries"] = queries.measure(stand, clients if not given.quick else (1, 8), given, tls=False)
    if "tls" in kinds and stand.client_tls:
        result["tls"] = queries.measure(stand, clients, given, tls=True)
    if "memory" in kinds:
        result["memory"] = memory.measure(stand, 200 if given.quick else 1000)
    return result


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every case; medians are reported")
    parser.add_argument("--seconds", type=int, default=3, help="of one pgbench run, at least 3; the first and the last are not counted")
    parser.add_argument("--only", default="", help=f"kinds, with commas: {','.join(KINDS)}")
    parser.add_argument("--case", default="", help="of the queries only those with this in their name")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement: 2 rounds, a smaller table, fewer clients")
    parser.add_argument(
        "--output", type=Path, help="default: loadtests/results.json, or results.part.json when not everything was measured"
    )
    given = parser.parse_args()
    given.seconds = max(given.seconds, 3)
    given.rounds = 2 if given.quick else given.rounds
    kinds = given.only.split(",") if given.only else list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}")
    whole = not (given.quick or given.only or given.case)
    with open_stand(wide=WIDE // 4 if given.quick else WIDE) as stand:
        result = measure(stand, kinds, given)
    output = given.output or HERE / ("results.json" if whole else "results.part.json")
    output.write_text(json.dumps(result, indent=1) + "\n")
    text = report.tables(result)
    print(f"\n{text}\n\nwritten to {output}")
    if whole and output == HERE / "results.json":
        report.replace_part("figures", text)
        print(f"and to {report.DOCUMENT}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

"""`python -m loadtests.bench`: measure, print, write loadtests/results.json.

Never add here: a measure; each kind has a file of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
from pathlib import Path
from typing import Any

from loadtests.bench import queries
from loadtests.bench.stand import WIDE, Stand, open_stand

KINDS = ("queries", "tls")


def measure(stand: Stand, kinds: list[str], rounds: int, seconds: int) -> dict[str, Any]:
    """The kinds asked for."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result: dict[str, Any] = {"date": now, "rounds": rounds, "seconds": seconds, "machine": stand.machine()}
    if "queries" in kinds:
        result["queries"] = queries.measure(stand, rounds, seconds, tls=False)
    if "tls" in kinds and stand.client_tls:
        result["tls"] = queries.measure(stand, rounds, seconds, tls=True)
    return result


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every case; medians are reported")
    parser.add_argument("--seconds", type=int, default=3, help="of one pgbench run, at least 3; the first and the last are not counted")
    parser.add_argument("--only", default="", help=f"kinds, with commas: {','.join(KINDS)}")
    parser.add_argument("--quick", action="store_true", help="2 rounds: a look, not a measurement")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results.json")
    given = parser.parse_args()
    rounds, seconds = 2 if given.quick else given.rounds, max(given.seconds, 3)
    with open_stand(wide=WIDE) as stand:
        result = measure(stand, given.only.split(",") if given.only else list(KINDS), rounds, seconds)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.output}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

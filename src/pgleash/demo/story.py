"""The demo: the whole main job, told and checked. ``python -m pgleash.demo.story``; exit code 0 only if every promise came true.

Never add here: an act; they are in acts.py.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from pgleash.demo.acts import ACTS, Theatre
from pgleash.demo.stage import Stage

__all__ = ["main"]


def main() -> int:
    """Play it. Returns the exit code."""
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()
    print("pgleash: the main job, on a PostgreSQL of its own\n", flush=True)
    print("1. PostgreSQL 18, a shop with 100,000 customers, a token issuer, the gateway with TLS and its gRPC API", flush=True)
    with Stage(customers=100_000) as stage:
        where = f"agents connect to localhost:{stage.port}, the API is on localhost:{stage.api_port}"
        print(f"  ready after {time.monotonic() - began:.1f} s: {where}")
        theatre = Theatre(stage)
        for act in ACTS:
            print(f"\n{(act.__doc__ or act.__name__).strip()}", flush=True)
            try:
                act(theatre)
            except Exception as error:
                theatre.check(False, f"{act.__name__} went through ({type(error).__name__}: {error})")
        if theatre.failures:
            print(f"\nthe gateway's log:\n{stage.log.read_text()[-4000:]}", file=sys.stderr)
    if theatre.failures:
        print(f"\n{len(theatre.failures)} promises were not kept:", *theatre.failures, sep="\n  ✗ ")
        return 1
    print(f"\nEvery promise was kept, in {time.monotonic() - began:.0f} s. Everything that was started has been stopped and removed.")
    return 0


def _end(signum: int, _: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())

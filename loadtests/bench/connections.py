"""New connections one after the other: CPU of the proxy for login, one query and goodbye, and the time to the first row.

Both hand out server connections that they have; pgleash resets each before. Cold is a connection whose startup parameters no
earlier one had: pgleash logs in at the server for it.

Never add here: connections side by side; the client's own key derivation would be measured.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

import psycopg
from loadtests.bench import rounds
from loadtests.bench.proc import cpu
from loadtests.bench.stand import LIFETIME, Stand, Target


def measure(stand: Stand, count: int, connections: int) -> dict[str, Any]:
    """PgBouncer with SCRAM over TLS; pgleash over TLS with a token that it has seen, with one that it has not, and cold."""
    seen = replace(stand.pgleash.over_tls(), name="pgleash, token seen")
    new = replace(stand.pgleash.over_tls(), name="pgleash, new token")
    cold = replace(stand.pgleash.over_tls(), name="pgleash, cold")
    timeouts = itertools.count(1_000_000)  # a statement_timeout that nobody has given yet, far away
    with stand.bouncer(scram=True) as bouncer:
        targets = [bouncer.over_tls()] if bouncer else []

        def once(target: Target) -> rounds.Figures:
            passwords = [target.password] * connections
            if target is new:
                passwords = [stand.stage.token(lifetime=LIFETIME) for _ in range(connections)]
            dsns = [target.dsn() for _ in passwords]
            if target is cold:
                dsns = [target.dsn(options=f"'-c statement_timeout={next(timeouts)}'") for _ in passwords]
            return _once(target, dsns, passwords)

        found = rounds.alternate([*targets, seen, new, cold], count, once)
    result: dict[str, Any] = {
        "connections": connections,
        "summary": rounds.summary(found),
        "ratio": {name: rounds.ratio(found, "cpu_us", under=name) for name in (seen.name, new.name, cold.name)},
        "rounds": found,
    }
    for name, one in result["summary"].items():
        cpu_us = "{median:6.0f} [{min:.0f}..{max:.0f}] µs CPU".format(**one["cpu_us"])
        rest = "  ".join(f"{key} {one[key]['median']:.2f}" for key in ("per_s", "p50_ms", "p99_ms"))
        print(f"connection {name:<22} {cpu_us}  {rest}", flush=True)
    return result


def _once(target: Target, dsns: list[str], passwords: list[str]) -> rounds.Figures:
    assert target.pid is not None
    waits = []
    before, began = cpu(target.pid), time.monotonic()
    for dsn, password in zip(dsns, passwords, strict=True):
        start = time.monotonic()
        with psycopg.connect(dsn, password=password, autocommit=True) as connection:
            connection.execute("SELECT 1").fetchone()
            waits.append(time.monotonic() - start)
    took = time.monotonic() - began
    cuts = statistics.quantiles(waits, n=100)
    return {
        "cpu_us": (cpu(target.pid) - before) / len(passwords) * 1e6,
        "per_s": len(passwords) / took,
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
    }

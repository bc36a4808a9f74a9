"""New connections one after the other: CPU of the proxy for login, one query and goodbye.

pgleash opens a server connection for each; PgBouncer hands out one that it has, which is what a pooler is for.

Never add here: connections side by side; the client's own key derivation would be measured.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import psycopg
from loadtests.bench import rounds
from loadtests.bench.proc import cpu
from loadtests.bench.stand import LIFETIME, Stand, Target


def measure(stand: Stand, count: int, connections: int) -> dict[str, Any]:
    """PgBouncer with SCRAM over TLS; pgleash over TLS with a token that it has seen, and with one that it has not."""
    seen = replace(stand.pgleash.over_tls(), name="pgleash, token seen")
    new = replace(stand.pgleash.over_tls(), name="pgleash, new token")
    with stand.bouncer(scram=True) as bouncer:
        targets = [bouncer.over_tls()] if bouncer else []

        def once(target: Target) -> rounds.Figures:
            passwords = [target.password] * connections
            if target is new:
                passwords = [stand.stage.token(lifetime=LIFETIME) for _ in range(connections)]
            return _once(target, passwords)

        found = rounds.alternate([*targets, seen, new], count, once)
    result: dict[str, Any] = {
        "connections": connections,
        "summary": rounds.summary(found),
        "ratio": {name: rounds.ratio(found, "cpu_us", under=name) for name in (seen.name, new.name)},
        "rounds": found,
    }
    for name, one in result["summary"].items():
        print(f"connection {name:<22}" + " {median:6.0f} [{min:.0f}..{max:.0f}] µs CPU".format(**one["cpu_us"]), flush=True)
    return result


def _once(target: Target, passwords: list[str]) -> rounds.Figures:
    assert target.pid is not None
    before, began = cpu(target.pid), time.monotonic()
    for password in passwords:
        with psycopg.connect(target.dsn(), password=password, autocommit=True) as connection:
            connection.execute("SELECT 1")
    took = time.monotonic() - began
    return {"cpu_us": (cpu(target.pid) - before) / len(passwords) * 1e6, "per_s": len(passwords) / took}

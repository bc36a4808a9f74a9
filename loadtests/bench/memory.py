"""Memory: of idle connections, and of a client that never reads.

Each measure has a fresh process: what an earlier load has freed would hide what the next one takes.

Never add here: kernel memory; only the process's own anonymous pages count.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from loadtests.bench.proc import anonymous
from loadtests.bench.stand import Stand, Target
from loadtests.bench.wire import RawClient, query

_WATCH = 4.0  # seconds, after which nothing grows any more


@contextlib.contextmanager
def _fresh(stand: Stand, name: str) -> Iterator[Target | None]:
    if name == "pgbouncer":
        with stand.bouncer() as bouncer:
            yield bouncer
    else:
        stand.restart_gateway()
        yield stand.masked if name == "pgleash, masked" else stand.pgleash
    _wait_for_backends(stand)


def _wait_for_backends(stand: Stand) -> None:
    with psycopg.connect(stand.stage.server.dsn(), autocommit=True) as connection:
        for _ in range(100):
            row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchone()
            if row is None or row[0] < 50:
                return
            time.sleep(0.1)


def measure(stand: Stand, connections: int) -> dict[str, Any]:
    """Both."""
    result: dict[str, Any] = {"connections": connections, "idle_kib": {}, "unread_mib": {}}
    for name in ("pgbouncer", "pgleash"):
        for tls in (False, True):
            with _fresh(stand, name) as target:
                if target is not None:
                    label = f"{name}{', TLS' if tls else ''}"
                    result["idle_kib"][label] = _idle(target.over_tls() if tls else target, connections)
                    print(f"idle   {label:<18} {result['idle_kib'][label]:6.1f} KiB per connection", flush=True)
    for name in ("pgbouncer", "pgleash", "pgleash, masked"):
        with _fresh(stand, name) as target:
            if target is not None:
                result["unread_mib"][name] = _unread(target, stand.wide)
                print(f"unread {name:<18} {result['unread_mib'][name]:6.1f} MiB", flush=True)
    return result


def _idle(target: Target, connections: int) -> float:
    """KiB per idle connection that has run one query."""
    assert target.pid is not None
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(RawClient(target)).run("SELECT 1")
        before = anonymous(target.pid)
        for _ in range(connections):
            stack.enter_context(RawClient(target)).run("SELECT 1")
        time.sleep(0.5)
        return (anonymous(target.pid) - before) / connections / 1024


def _unread(target: Target, wide: int) -> float:
    """MiB that the process grows by while a client asks for a gigabyte and reads nothing."""
    assert target.pid is not None
    with RawClient(target) as client:
        client.run("SELECT * FROM wide LIMIT 1")
        before = most = anonymous(target.pid)
        times = -(-5_500_000 // wide)
        client.socket.sendall(query(f"SELECT w.* FROM wide w, generate_series(1, {times})"))
        until = time.monotonic() + _WATCH
        while time.monotonic() < until:
            time.sleep(0.05)
            most = max(most, anonymous(target.pid))
        if len(client.socket.recv(1 << 16, socket.MSG_PEEK)) < 1000:
            raise SystemExit(f"{target.name} sent no rows: there was nothing to leave unread")
    return (most - before) / 1048576

"""Big results and big loads: CPU seconds of the proxy per gigabyte, and megabytes per second at the client.

Never add here: a client that looks at rows.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import psycopg
from loadtests.bench import rounds
from loadtests.bench.proc import cpu
from loadtests.bench.stand import Stand, Target
from loadtests.bench.wire import RawClient

CASES = {"select": "SELECT * FROM wide", "copy out": "COPY wide TO STDOUT", "copy in": "COPY sink FROM STDIN"}
_MESSAGE = 8192  # as psql's COPY sends it
_SEND = 8  # messages at once


def measure(stand: Stand, count: int) -> list[dict[str, Any]]:
    """Every case, plain and over TLS, and SELECT with three of seven columns masked beside PgBouncer's pass-through."""
    result = []
    blocks = _blocks(stand)
    for tls in (False, True):
        for label in CASES:
            result.append(_case(stand, label, label, stand.targets(tls=tls), count, blocks))
        masked = [target for target in stand.targets(tls=tls) if target.name != "pgleash"]
        masked.append(stand.masked.over_tls() if tls else stand.masked)
        result.append(_case(stand, "select, 3 of 7 columns masked", "select", masked, count, blocks))
    return result


def _case(stand: Stand, label: str, kind: str, targets: list[Target], count: int, blocks: list[bytes]) -> dict[str, Any]:
    found = rounds.alternate(targets, count, lambda target: _once(stand, target, kind, blocks))
    row = rounds.row({"case": label, "tls": targets[-1].tls}, found, "cpu_s_gb")
    text = f"{label:<30} {'TLS' if row['tls'] else '   '}"
    for name, one in row["summary"].items():
        text += f"  {name} {one['mb_s']['median']:4.0f} MB/s"
        if name != "direct":
            text += " {median:5.2f} [{min:.2f}..{max:.2f}] s/GB".format(**one["cpu_s_gb"])
    print(text + ("   ratio {median:.2f} [{min:.2f}..{max:.2f}]".format(**row["ratio"]) if row["ratio"] else ""), flush=True)
    return row


def _once(stand: Stand, target: Target, kind: str, blocks: list[bytes]) -> rounds.Figures:
    if kind == "copy in":
        with psycopg.connect(stand.stage.server.dsn("shop"), autocommit=True) as connection:
            connection.execute("TRUNCATE sink")
    with RawClient(target) as client:
        client.run("SELECT 1")
        before, began = (cpu(target.pid) if target.pid else 0.0), time.monotonic()
        size = client.copy_in(CASES[kind], blocks) if kind == "copy in" else client.run(CASES[kind])
        took = time.monotonic() - began
        used = cpu(target.pid) - before if target.pid else 0.0
    return {"mb_s": size / took / 1e6, "cpu_s_gb": used / size * 1e9, "bytes": float(size)}


def _blocks(stand: Stand) -> list[bytes]:
    """The whole table as CopyData messages."""
    with psycopg.connect(stand.stage.server.dsn("shop")) as connection, connection.cursor().copy("COPY wide TO STDOUT") as copy:
        data = b"".join(bytes(part) for part in copy)
    parts = [data[at : at + _MESSAGE] for at in range(0, len(data), _MESSAGE)]
    messages = [b"d" + struct.pack("!i", len(part) + 4) + part for part in parts]
    return [b"".join(messages[at : at + _SEND]) for at in range(0, len(messages), _SEND)]

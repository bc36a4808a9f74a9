"""CPU per query beside PgBouncer and a direct connection, in the same run. Prints a table and writes loadtests/results.json.

The load is pgbench's; CPU is user plus system time of the proxy's process from /proc, divided by the transactions pgbench
counted. Rounds of the three targets alternate, and medians are reported, because machines are noisy.

Never add here: an assertion; what is too slow is for people to say.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pwd
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgleash.demo.postgres import PostgresServer, free_port
from pgleash.demo.stage import Stage

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
POINT = "\\set id random(1, 40000)\nSELECT amount, status FROM orders WHERE id = :id;\n"
FIXED = "SELECT amount, status FROM orders WHERE id = 7;\n"


@dataclass(frozen=True)
class Target:
    """Where pgbench connects, and the process whose CPU counts (None: no proxy)."""

    name: str
    dsn: str
    password: str
    pid: int | None


def cpu(pid: int) -> float:
    """Seconds of CPU of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(pid: int) -> int:
    """Anonymous resident bytes of a process."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


@contextlib.contextmanager
def pgbouncer(stage: Stage) -> Iterator[Target | None]:
    """A PgBouncer in session mode in front of the stage's server, or None where it is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        yield None
        return
    account = None if os.geteuid() else next((name for name in ("postgres", "nobody") if _has(name)), None)
    home = Path(tempfile.mkdtemp(prefix="pgleash-bouncer-"))
    port = free_port()
    server = stage.server
    (home / "users.txt").write_text('"bench" ""\n')
    (home / "pgbouncer.ini").write_text(
        f"[databases]\nshop = host={server.host} port={server.port} dbname=shop user={server.superuser} password={server.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {home}/users.txt\n"
        "pool_mode = session\nmax_client_conn = 500\ndefault_pool_size = 150\nignore_startup_parameters = extra_float_digits\n"
        f"logfile = {home}/log\npidfile =\n"
    )
    if account is not None:
        shutil.chown(home, account)
        for path in home.iterdir():
            shutil.chown(path, account)
    process = subprocess.Popen(
        [program, "-q", str(home / "pgbouncer.ini")],
        user=account,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        dsn = f"host=127.0.0.1 port={port} dbname=shop user=bench sslmode=disable"
        for _ in range(50):
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(dsn).close()
                break
            time.sleep(0.1)
        yield Target("pgbouncer", dsn, "x", process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        shutil.rmtree(home, ignore_errors=True)


def _has(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def run_pgbench(stage: Stage, target: Target, script: Path, mode: str, clients: int, seconds: int) -> dict[str, float]:
    """One run: transactions per second, and CPU microseconds of the proxy per transaction."""
    before = cpu(target.pid) if target.pid else 0.0
    command = [
        str(stage.server.pgbench),
        "-n",
        "-M",
        mode,
        "-c",
        str(clients),
        "-j",
        "1",
        "-T",
        str(seconds),
        "-f",
        str(script),
        target.dsn,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PGPASSWORD": target.password, "LC_ALL": "C"},
        check=False,
        timeout=seconds + 60,
    )
    tps = re.search(r"tps = ([\d.]+)", done.stdout)
    count = re.search(r"number of transactions actually processed: (\d+)", done.stdout)
    if done.returncode != 0 or tps is None or count is None:
        raise SystemExit(f"pgbench failed on {target.name}: {done.stderr[-500:]}")
    used = cpu(target.pid) - before if target.pid else 0.0
    return {"tps": float(tps[1]), "cpu_us": used / max(1, int(count[1])) * 1e6}


def bulk(stage: Stage, target: Target, query: str) -> dict[str, float]:
    """One big result through psql: megabytes per second as psql wrote them, and CPU seconds of the proxy per gigabyte."""
    before, began = (cpu(target.pid) if target.pid else 0.0), time.monotonic()
    with tempfile.TemporaryFile() as out:
        subprocess.run(
            [str(stage.server.psql), "-qAtX", "-c", query, target.dsn],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PGPASSWORD": target.password},
            check=True,
            timeout=120,
        )
        size = out.tell() or os.fstat(out.fileno()).st_size
    took = time.monotonic() - began
    return {"mb_s": size / took / 1e6, "cpu_s_gb": ((cpu(target.pid) - before) if target.pid else 0.0) / size * 1e9}


def idle(target: Target, connections: int) -> float:
    """Kilobytes of the proxy's memory per idle connection that has run one query."""
    assert target.pid is not None
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(psycopg.connect(target.dsn, password=target.password, autocommit=True))
        first.execute("SELECT 1")
        before = rss(target.pid)
        for _ in range(connections):
            stack.enter_context(psycopg.connect(target.dsn, password=target.password, autocommit=True)).execute("SELECT 1")
        return (rss(target.pid) - before) / connections / 1024


def measure(seconds: int, rounds: int) -> dict[str, Any]:
    """Everything; see docs/performance.md."""
    settings = {"listen": {"plaintext_on_loopback": True}}
    database = PostgresServer(18, settings={"max_connections": "400"})
    with (
        database,
        Stage(customers=20_000, settings=settings, server=database) as stage,
        pgbouncer(stage) as bouncer,
        tempfile.TemporaryDirectory() as scratch,
    ):
        assert stage.process is not None
        where = f"host=127.0.0.1 port={stage.port} dbname=shop sslmode=disable"
        lifetime = 3600
        ours = Target("pgleash", f"{where} user=agent-7", stage.token(lifetime=lifetime), stage.process.pid)
        analyst = Target("pgleash", f"{where} user=analyst-1", stage.token("analyst", lifetime=lifetime), stage.process.pid)
        direct = Target("direct", stage.server.dsn("shop"), stage.server.password, None)
        targets = [target for target in (direct, bouncer, ours) if target is not None]
        point, fixed = Path(scratch) / "point.sql", Path(scratch) / "fixed.sql"
        point.write_text(POINT)
        fixed.write_text(FIXED)
        result: dict[str, Any] = {"machine": machine(stage), "queries": [], "bulk": [], "idle_kb": {}}
        # First, while the proxies are fresh: memory that a load has left free would hide what connections take.
        for target in targets:
            if target.pid is not None:
                result["idle_kb"][target.name] = idle(target, 100)
                print(f"idle  {target.name:<32} {result['idle_kb'][target.name]:8.1f} KiB per connection", flush=True)
        cases = [("simple, same text", "simple", fixed), ("simple, new literals", "simple", point)]
        cases += [("extended", "extended", point), ("prepared", "prepared", point)]
        for label, mode, script in cases:
            for clients in (1, 8, 32):
                runs: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
                for _ in range(rounds):
                    for target in targets:
                        runs[target.name].append(run_pgbench(stage, target, script, mode, clients, seconds))
                row = {"case": label, "clients": clients}
                row |= {
                    name: {key: statistics.median(run[key] for run in found) for key in ("tps", "cpu_us")} for name, found in runs.items()
                }
                result["queries"].append(row)
                print(_row(row), flush=True)
        query = "SELECT c.* FROM customers c, generate_series(1, 5)"
        for label, target in [
            ("direct", direct),
            ("pgbouncer", bouncer),
            ("pgleash, no masks", analyst),
            ("pgleash, 6 of 9 columns masked", ours),
        ]:
            if target is not None:
                found = [bulk(stage, target, query) for _ in range(rounds)]
                row = {"target": label} | {key: statistics.median(one[key] for one in found) for key in ("mb_s", "cpu_s_gb")}
                result["bulk"].append(row)
                print(f"bulk  {label:<32} {row['mb_s']:8.0f} MB/s  {row['cpu_s_gb']:8.2f} CPU s/GB", flush=True)
    return result


def _row(row: dict[str, Any]) -> str:
    text = f"{row['case']:<22} {row['clients']:>3} clients"
    for name in ("direct", "pgbouncer", "pgleash"):
        if name in row:
            text += f"   {name} {row[name]['tps']:>7.0f}/s" + (f" {row[name]['cpu_us']:>6.1f} µs" if name != "direct" else "")
    if "pgbouncer" in row and row["pgbouncer"]["cpu_us"]:
        text += f"   CPU ratio {row['pgleash']['cpu_us'] / row['pgbouncer']['cpu_us']:.2f}"
    return text


def machine(stage: Stage) -> dict[str, Any]:
    """What it ran on."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "model": model[1] if model else platform.machine(),
        "python": platform.python_version(),
        "postgresql": stage.server.major,
    }


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=2, help="of one run")
    parser.add_argument("--rounds", type=int, default=3, help="of every case; medians are reported")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    result = measure(given.seconds, given.rounds)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.output}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

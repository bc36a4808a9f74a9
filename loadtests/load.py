"""A storm of Locust users against a stage of its own: agents over PostgreSQL, approval bots over gRPC.

Prints a table, writes loadtests/storm.json, and at its full size the table's place in docs/performance.md.

Never add here: a user; they are in locustfile.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtests.bench import proc, report

from pgleash.demo.postgres import PostgresServer
from pgleash.demo.stage import Stage

HERE = Path(__file__).resolve().parent
AGENTS, BOTS, SECONDS = 200, 20, 60
_SPAWNED = 20  # a second: a new connection is a TLS handshake, a token, a role and a server process


def storm(agents: int, bots: int, seconds: int) -> dict[str, Any]:
    """Run it. What Locust counted, and what the gateway used meanwhile."""
    server = PostgresServer(18, settings={"max_connections": str(agents + 100), "shared_buffers": "128MB"})
    with server, Stage(customers=10_000, server=server) as stage, tempfile.TemporaryDirectory(prefix="pgleash-storm-") as scratch:
        assert stage.process is not None
        output = Path(scratch) / "storm.json"
        where = f"host=localhost hostaddr=127.0.0.1 port={stage.port} dbname=shop"
        tokens = [(f"agent-{number}", stage.token(subject=f"agent-{number}", lifetime=3600)) for number in range(agents)]
        environment = {
            **os.environ,
            "PGLEASH_DSN": f"{where} sslmode=verify-full sslrootcert={stage.certificates.ca}",
            "PGLEASH_AGENT_TOKENS": json.dumps(tokens),
            "PGLEASH_API": f"localhost:{stage.api_port}",
            "PGLEASH_CA": str(stage.certificates.ca),
            "PGLEASH_BOT_TOKENS": json.dumps([stage.token("bot", subject=f"bot-{number}", lifetime=3600) for number in range(bots)]),
            "PGLEASH_BOTS": str(bots),
            "PGLEASH_OUTPUT": str(output),
        }
        command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        command += ["-u", str(agents + bots), "-r", str(_SPAWNED), "-t", f"{seconds}s", "--stop-timeout", "5", "--exit-code-on-error", "0"]
        before, began = proc.cpu(stage.process.pid), time.monotonic()
        log = Path(scratch) / "locust.log"
        with log.open("wb") as file:
            locust = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            code = locust.wait(seconds + 120)
        finally:
            if locust.poll() is None:
                os.killpg(locust.pid, signal.SIGKILL)
                locust.wait()
        took, pid = time.monotonic() - began, stage.process.pid
        if code or stage.process.poll() is not None or not output.exists():
            raise SystemExit(f"the storm ended early (Locust {code}):\n{log.read_text()[-2000:]}\n{stage.log.read_text()[-2000:]}")
        result: dict[str, Any] = json.loads(output.read_text())
        result["gateway"] = {"cpu_share": (proc.cpu(pid) - before) / took, "anonymous_mib": proc.anonymous(pid) / 1048576}
        return result


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = ["| Kind of work | Requests | Failures | Median, ms | p95, ms | p99, ms |", "| --- | --- | --- | --- | --- | --- |"]
    for one in result["work"]:
        figures = [one["requests"], one["failures"], one["median"], one["p95"], one["p99"]]
        lines.append(f"| {one['kind']}: {one['name']} | {' | '.join(f'{figure:.0f}' for figure in figures)} |")
    gateway = result["gateway"]
    size = f"{result['agents']} agents, {result['bots']} approval bots, {result['seconds']} s, {result['date']}"
    machine = f"{os.cpu_count()} CPUs for all of it, load average {result['load']:.1f} before"
    used = f"the gateway used {gateway['cpu_share']:.2f} CPUs and {gateway['anonymous_mib']:.0f} MiB"
    return f"{size}; {machine}; {used}.\n\n" + "\n".join(lines)


def main() -> int:
    """Run, print, write. Returns 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="make load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--bots", type=int, default=BOTS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    given = parser.parse_args()
    size = {"agents": given.agents, "bots": given.bots, "seconds": given.seconds}
    before = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "load": os.getloadavg()[0]}
    result = {**size, **before, **storm(**size)}
    (HERE / "storm.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    for error in result["errors"]:
        print(f"{error['occurrences']} x {error['method']} {error['name']}: {error['error']}", file=sys.stderr)
    if (given.agents, given.bots, given.seconds) == (AGENTS, BOTS, SECONDS):
        report.replace_part("storm", table(result))
    return 1 if any(one["failures"] for one in result["work"]) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

"""CPU per login beside PgBouncer, in the same run: TLS (ECDSA P-256), SCRAM at the server, session mode. Prints a table.

A login is a new connection by psycopg with verify-full, closed at once. CPU is user plus system time of the proxy's process from
/proc, divided by the logins. Rounds alternate, medians are reported.

Never add here: an assertion; what is too slow is for people to say.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from bench import Target, _has, cpu

from pgleash.demo.postgres import PostgresServer, free_port
from pgleash.demo.stage import Stage

PASSWORD = "a password of the pooler"


@contextlib.contextmanager
def pgbouncer(stage: Stage, auth: str) -> Iterator[Target | None]:
    """A PgBouncer with TLS in front, SCRAM behind, session mode; None where it is not installed.

    ``auth`` is its auth_type: with scram-sha-256 it derives the keys anew at each login, trust shows what it costs without.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        yield None
        return
    account = None if os.geteuid() else next((name for name in ("postgres", "nobody") if _has(name)), None)
    home = Path(tempfile.mkdtemp(prefix="pgleash-bouncer-"))
    port, server = free_port(), stage.server
    shutil.copy(stage.certificates.certificate, home / "server.crt")
    shutil.copy(stage.certificates.key, home / "server.key")
    (home / "users.txt").write_text(f'"bench" "{PASSWORD}"\n')
    (home / "pgbouncer.ini").write_text(
        f"[databases]\nshop = host={server.host} port={server.port} dbname=shop user={server.superuser} password={server.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = {auth}\n"
        f"auth_file = {home}/users.txt\nclient_tls_sslmode = require\nclient_tls_cert_file = {home}/server.crt\n"
        f"client_tls_key_file = {home}/server.key\npool_mode = session\nmax_client_conn = 500\ndefault_pool_size = 20\n"
        f"ignore_startup_parameters = extra_float_digits\nlogfile = {home}/log\npidfile =\n"
    )
    for path in (home, *home.iterdir()):
        if account is not None:
            shutil.chown(path, account)
    process = subprocess.Popen(
        [program, "-q", str(home / "pgbouncer.ini")], user=account, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        dsn = (
            f"host=localhost hostaddr=127.0.0.1 port={port} dbname=shop user=bench sslmode=verify-full sslrootcert={stage.certificates.ca}"
        )
        for _ in range(50):
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(dsn, password=PASSWORD, connect_timeout=5).close()
                break
            time.sleep(0.1)
        yield Target(f"pgbouncer, {auth}", dsn, PASSWORD, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        shutil.rmtree(home, ignore_errors=True)


def log_in(target: Target, times: int) -> dict[str, float]:
    """So many logins, one after another: CPU microseconds of the proxy, and milliseconds as the client sees it."""
    assert target.pid is not None
    before, began = cpu(target.pid), time.monotonic()
    for _ in range(times):
        psycopg.connect(target.dsn, password=target.password).close()
    took = time.monotonic() - began
    time.sleep(0.2)
    return {"cpu_us": (cpu(target.pid) - before) / times * 1e6, "ms": took / times * 1e3}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--logins", type=int, default=300, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with (
        PostgresServer(18, settings={"max_connections": "300"}) as server,
        Stage(customers=1000, server=server) as stage,
        pgbouncer(stage, "scram-sha-256") as bouncer,
        pgbouncer(stage, "trust") as trusting,
    ):
        assert stage.process is not None
        dsn = stage.dsn("agent-7", "")
        ours = Target("pgleash", dsn.replace("password=''", ""), stage.token(), stage.process.pid)
        targets = [target for target in (bouncer, trusting, ours) if target is not None]
        runs: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
        for target in targets:
            log_in(target, 20)
        for _ in range(given.rounds):
            for target in targets:
                runs[target.name].append(log_in(target, given.logins))
        for name, found in runs.items():
            median = {key: statistics.median(run[key] for run in found) for key in ("cpu_us", "ms")}
            print(f"{name:<24} {median['cpu_us']:7.0f} µs CPU per login   {median['ms']:6.2f} ms for the client", flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

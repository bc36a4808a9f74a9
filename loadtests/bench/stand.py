"""The stand: one PostgreSQL, one gateway, one or more PgBouncers, and the tables that all of them read.

Every server is in a session of its own: with the scheduler's autogroups a session is one share of the CPU.

Never add here: a measure.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from pgleash.demo.postgres import PostgresServer, free_port
from pgleash.demo.stage import Stage

__all__ = ["ACCOUNTS", "WIDE", "Stand", "Target", "open_stand"]

ACCOUNTS = 100_000
WIDE = 1_000_000
LIFETIME = 3600

POLICY = """\
version: 1
labels:
  bench.email: ["public.wide.email"]
  bench.card: ["public.wide.card"]
  bench.notes: ["public.wide.notes"]
rules:
  - name: all
    who: {groups: [agents, masked]}
    database: shop
    tables: ["public.*"]
    verbs: [select, insert]
    effect: allow
masks:
  - {who: {groups: [masked]}, label: bench.email, action: pseudonym}
  - {who: {groups: [masked]}, label: bench.card, action: keep_last, argument: 4}
  - {who: {groups: [masked]}, label: bench.notes, action: fixed, argument: "***"}
grants:
  - {who: {groups: [agents, masked]}, database: shop, tables: ["public.*"], verbs: [select, insert], duration: 3600}
"""

# 7 columns, about 190 bytes a row as DataRow, 167 as COPY text; small letters only (see wire.py).
TABLES = f"""
CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
INSERT INTO accounts SELECT i, i % 10, 0, '' FROM generate_series(1, {ACCOUNTS}) i;
CREATE TABLE wide (id text, name text, email text, card text, city text, phone text, notes text);
INSERT INTO wide SELECT lpad(i::text, 9, '0'), 'customer number ' || lpad((i % 77777)::text, 8, '0'),
       'someone.' || lpad(i::text, 8, '0') || '@example.com', '4111 1111 ' || lpad((i % 9999)::text, 4, '0') || ' 1234',
       'a town called ' || lpad((i % 999)::text, 4, '0'), '+49 30 ' || lpad((i % 9999999)::text, 8, '0'),
       substr(repeat('called twice, ', 4), 1, 41)
  FROM generate_series(1, {{wide}}) i;
CREATE UNLOGGED TABLE sink (LIKE wide);
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client connects, and the process whose CPU counts (None: no proxy)."""

    name: str
    port: int
    user: str
    password: str
    pid: int | None
    tls: bool = False

    def dsn(self, **more: str) -> str:
        """A libpq connection string without the password: that goes by PGPASSWORD, for every target alike."""
        mode = "require" if self.tls else "disable"
        parts = {"host": "127.0.0.1", "port": str(self.port), "dbname": "shop", "user": self.user, "sslmode": mode, "gssencmode": "disable"}
        return " ".join(f"{key}={value}" for key, value in {**parts, **more}.items())

    def over_tls(self) -> Target:
        """The same, over TLS."""
        return replace(self, tls=True)


class BenchStage(Stage):
    """The demo's stage with the benchmark's tables in it and the gateway in a session of its own."""

    wide = WIDE
    _made = False

    def start_gateway(self, wait: float = 20.0) -> None:
        """Make the tables the first time, then start."""
        if not self._made:
            self._made = True
            self._make_tables()
        super().start_gateway(wait)

    def _make_tables(self) -> None:
        with psycopg.connect(self.server.dsn("shop"), autocommit=True) as connection:
            connection.execute("SET ROLE shop_owner")
            connection.execute(TABLES.format(wide=self.wide).encode())
            connection.execute("RESET ROLE")
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            connection.execute("CHECKPOINT")
            connection.execute("CREATE ROLE bench SUPERUSER LOGIN PASSWORD 'bench'")
        hba = self.server.data_directory / "pg_hba.conf"
        with hba.open("r+") as file:
            rest = file.read()
            file.seek(0)
            file.write("host all bench 127.0.0.1/32 trust\n" + rest)
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")


@dataclass(frozen=True, slots=True)
class Stand:
    """Everything that a measure needs."""

    stage: BenchStage
    direct: Target
    token: str
    masked_token: str
    pgbouncer: Target | None
    pgbench: Path
    scratch: Path
    wide: int
    client_tls: bool

    @property
    def pgleash(self) -> Target:
        """The gateway for an agent of whose columns none are masked."""
        return Target("pgleash", self.stage.port, "agent-7", self.token, self._pid)

    @property
    def masked(self) -> Target:
        """The gateway for an agent who sees three columns masked."""
        return Target("pgleash", self.stage.port, "masked-1", self.masked_token, self._pid)

    @property
    def _pid(self) -> int:
        assert self.stage.process is not None
        return self.stage.process.pid

    def restart_gateway(self) -> None:
        """A fresh process."""
        self.stage.stop_gateway()
        self.stage.start_gateway()

    def targets(self, *, tls: bool = False, direct: bool = True) -> list[Target]:
        """Those to compare, in order. The server itself speaks no TLS here, so over TLS there is no direct one."""
        found = [self.direct] if direct and not tls else []
        found += [target.over_tls() if tls else target for target in (self.pgbouncer, self.pgleash) if target is not None]
        return found

    def scram_secret(self) -> str:
        """What PostgreSQL keeps of the password 'bench'."""
        with psycopg.connect(self.stage.server.dsn()) as connection:
            row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'bench'").fetchone()
        assert row is not None
        return str(row[0])

    @contextlib.contextmanager
    def bouncer(self, *, scram: bool = False) -> Iterator[Target | None]:
        """One more PgBouncer, fresh."""
        with _bouncer(self.stage, self.scram_secret() if scram else None) as found:
            yield found

    def machine(self) -> dict[str, Any]:
        """What it ran on."""
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        with psycopg.connect(self.stage.server.dsn()) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return {
            "cpus": os.cpu_count(),
            "model": model[1] if model else platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "postgresql": row[0] if row else "",
            "pgbouncer": _said([_pgbouncer(), "--version"]) if _pgbouncer() else None,
            "pgbench": _said([str(self.pgbench), "--version"]),
            "revision": _said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
        }


def _said(command: list[str | None]) -> str:
    try:
        done = subprocess.run([word for word in command if word], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()


@contextlib.contextmanager
def open_stand(*, wide: int = WIDE) -> Iterator[Stand]:
    """Bring it up, and everything down again."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
    settings = {"listen": {"plaintext_on_loopback": True, "max_connections": 3000}}
    server_settings = {"max_connections": "1100", "shared_buffers": "256MB", "autovacuum": "off", "jit": "off"}
    database = PostgresServer(18, settings=server_settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(database)
        stage = BenchStage(customers=100, policy=POLICY, settings=settings, server=database)
        stage.wide = wide
        stack.enter_context(stage)
        pgbench, tls = _client(database)
        yield Stand(
            stage=stage,
            direct=Target("direct", database.port, "bench", "bench", None),
            token=stage.token(lifetime=LIFETIME),
            masked_token=stage.token(subject="masked-1", groups=["masked"], lifetime=LIFETIME),
            pgbouncer=stack.enter_context(_bouncer(stage, None)),
            pgbench=pgbench,
            scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgleash-bench-"))),
            wide=wide,
            client_tls=tls,
        )


def _client(server: PostgresServer) -> tuple[Path, bool]:
    """The pgbench to use for every target, and whether it speaks TLS: the packaged builds may not."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    found = system[-1] if system else server.pgbench
    said = subprocess.run(
        [str(found), "-n", "-t", "1", "sslmode=require host=127.0.0.1 port=1"],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        check=False,
    )
    return found, "sslmode value" not in said.stderr


def _pgbouncer() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextlib.contextmanager
def _bouncer(stage: Stage, scram_secret: str | None) -> Iterator[Target | None]:
    """A PgBouncer in session mode in front of the stage's server with the stage's certificate, or None where it is not installed."""
    program = _pgbouncer()
    if program is None:
        yield None
        return
    account = None if os.geteuid() else next((name for name in ("postgres", "nobody") if _has(name)), None)
    home = Path(tempfile.mkdtemp(prefix="pgleash-bouncer-"))
    port = free_port()
    for source, name in ((stage.certificates.certificate, "server.crt"), (stage.certificates.key, "server.key")):
        shutil.copyfile(source, home / name)
        (home / name).chmod(0o600)
    (home / "users.txt").write_text(f'"bench" "{scram_secret or ""}"\n')
    (home / "pgbouncer.ini").write_text(
        f"[databases]\nshop = host={stage.server.host} port={stage.server.port} dbname=shop user=bench\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = {'scram-sha-256' if scram_secret else 'trust'}\nauth_file = {home}/users.txt\n"
        "pool_mode = session\nmax_client_conn = 3000\ndefault_pool_size = 1050\nignore_startup_parameters = extra_float_digits\n"
        "server_tls_sslmode = disable\nclient_tls_sslmode = allow\n"
        f"client_tls_cert_file = {home}/server.crt\nclient_tls_key_file = {home}/server.key\n"
        f"logfile = {home}/log\npidfile =\nlog_connections = 0\nlog_disconnections = 0\n"
    )
    if account is not None:
        for path in (home, *home.iterdir()):
            shutil.chown(path, account)
    process = subprocess.Popen(
        [program, "-q", str(home / "pgbouncer.ini")],
        user=account,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        target = Target("pgbouncer", port, "bench", "bench", process.pid)
        for _ in range(50):
            with contextlib.suppress(psycopg.Error):
                psycopg.connect(target.dsn(), password=target.password).close()
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"PgBouncer did not come up: {(home / 'log').read_text()[-500:]}")
        yield target
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _has(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True

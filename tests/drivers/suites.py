"""Runs the drivers' own test suites against PostgreSQL and through the gateway, and writes the counts into the document.

``python tests/drivers/suites.py docs/compatibility.md``: fetches the source packages with pip, takes some ten minutes and is no
part of the test run. Never add here: a suite's text, or a failure counted as anything else than one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import psycopg  # noqa: E402

from drivers.permissive import administrator_token, permissive_stage  # noqa: E402
from drivers.report import SuiteRow, write_suites  # noqa: E402
from pgleash.demo.postgres import PostgresServer  # noqa: E402

DATABASES = ("shop", "postgres", "psycopg2_test", "testdb", "asyncpg_intro_test")
NEEDS = ("distro", "pytz")  # what the suites import besides the drivers


@dataclass(frozen=True, slots=True)
class Suite:
    """One package whose source carries tests: the folder, what to leave out, and the variables that name the database."""

    package: str
    tests: str
    ignore: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]


SUITES = (
    Suite("asyncpg", "tests", ("tests/test__environment.py", "tests/test__sourcecode.py"), (("PGDATABASE", "postgres"),)),
    Suite("psycopg2", "tests", (), (("PSYCOPG2_TESTDB", "psycopg2_test"),)),
    Suite("pg8000", "test", ("test/test_readme.py",), ()),
)
REASONS = (
    ("the function call message (large objects)", r"function call message"),
    ("another client_encoding than UTF8", r"client_encoding"),
    ("standard_conforming_strings off", r"standard_conforming_strings"),
    ("the session's role", r"session_authorization|setting role"),
    ("the server's own authentication", r"not a token|scram|password|is not served here|SCRAM"),
    ("a time limit", r"Timeout \(>"),
)


def fetch(suite: Suite, into: Path) -> tuple[Path, str]:
    """The unpacked tests of the package, and its version."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps", "-d", str(into), suite.package]
    subprocess.run(command, check=True)
    archive = next(into.glob(f"{suite.package}-[0-9]*.tar.gz"))
    with tarfile.open(archive) as source:
        source.extractall(into / "source", filter="data")
    home = into / suite.package
    home.mkdir()
    unpacked = into / "source" / archive.name.removesuffix(".tar.gz")
    (unpacked / suite.tests).rename(home / suite.tests)  # away from the package, which is installed already
    return home, archive.name.removesuffix(".tar.gz").rpartition("-")[2]


def run(suite: Suite, home: Path, port: int, password: str) -> dict[str, tuple[str, str]]:
    """By test: passed, failed or skipped, and what was said."""
    report = home / "report.xml"
    where = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": password, "PGSSLMODE": "disable"}
    environment = {**os.environ, **where, **dict(suite.variables), "PYTHONPATH": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--timeout", "60", "--tb", "native"]
    command += [f"--ignore={path}" for path in suite.ignore] + [f"--junitxml={report}", suite.tests]
    subprocess.run(command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, tuple[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        said = " ".join(f"{part.get('message') or ''} {part.text or ''}" for part in case)
        kinds = {part.tag for part in case}
        found[name] = ("failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed", said)
    return found


def counts(found: dict[str, tuple[str, str]]) -> tuple[int, int, int]:
    """(passed, failed, skipped)."""
    many = Counter(kind for kind, _ in found.values())
    return many["passed"], many["failed"], many["skipped"]


def reasons(direct: dict[str, tuple[str, str]], through: dict[str, tuple[str, str]]) -> Counter[str]:
    """Why tests fail only through the gateway; what no reason explains is printed and counted as unexplained."""
    why: Counter[str] = Counter()
    for name, (kind, said) in through.items():
        if kind == "failed" and direct.get(name, ("", ""))[0] != "failed":
            reason = next((text for text, pattern in REASONS if re.search(pattern, said)), "unexplained")
            if reason == "unexplained":
                print(f"{name}: {said[-600:]}")
            why[reason] += 1
    return why


def main(document: Path) -> None:
    """Fetch, run, write."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *NEEDS], check=True)
    settings = {"max_prepared_transactions": "10"}
    rows = []
    with tempfile.TemporaryDirectory(prefix="pgleash-suites-") as folder, PostgresServer(18, settings=settings) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE psycopg2_test")
        with permissive_stage(server, Path(folder), DATABASES) as stage:
            for suite in SUITES:
                home, version = fetch(suite, Path(folder))
                direct = run(suite, home, server.port, server.password)
                through = run(suite, home, stage.port, administrator_token(stage))
                rows.append(SuiteRow(suite.package, version, counts(direct), counts(through), reasons(direct, through)))
                print(suite.package, version, rows[-1].direct, rows[-1].through, dict(rows[-1].reasons))
    write_suites(document, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

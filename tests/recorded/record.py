"""Records what tools send: runs them on a PostgreSQL of its own, and keeps the statements of its log as one file per tool.

    python tests/recorded/record.py psql sqlalchemy asyncpg django ...

Those that can't be run here were written from their sources; they stand beside the recorded ones and say so. Never add here: a
statement of an application's own.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
import psycopg
import psycopg2.extras
import sqlalchemy

from pgleash.demo.postgres import PostgresServer
from pgleash.demo.shop import open_shop

HERE = Path(__file__).resolve().parent
PSQL = [
    r"\d", r"\d+",
    r"\d orders", r"\d+ orders", r"\d orders_pkey", r"\dt",
    r"\dt+ public.*", r"\dv", r"\di", r"\di+", r"\ds", r"\dm", r"\dE",
    r"\dn", r"\dn+", r"\df", r"\df+ public.*", r"\da", r"\do int4*", r"\dT", r"\dT+", r"\dD", r"\du", r"\du+", r"\dg",
    r"\dp", r"\dp orders",
    r"\z", r"\l", r"\l+", r"\dx", r"\dx+", r"\dc", r"\dC", r"\dd", r"\ddp", r"\drds", r"\dL", r"\des", r"\deu", r"\dew",
    r"\det", r"\dF",
    r"\dFd", r"\dFp", r"\dFt", r"\dO", r"\dy", r"\dRp", r"\dP", r"\dX", r"\dA", r"\dAc", r"\db", r"\db+", r"\dl",
    r"\dconfig", r"\dconfig work*",
    r"\sf pg_catalog.lower(text)", r"\encoding", r"\conninfo",
]  # fmt: skip
ENTRY = re.compile(r"^\d{4}-\d\d-\d\d [^\n]*? (LOG|DETAIL):  (.*?)(?=^\d{4}-\d\d-\d\d |\Z)", re.S | re.M)


def psql(dsn: str) -> None:
    for command in PSQL:
        subprocess.run(["psql", "-X", "-d", dsn, "-c", command], check=False, capture_output=True)


def sqlalchemy_reflection(dsn: str) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    inspector = sqlalchemy.inspect(engine)
    inspector.get_schema_names()
    inspector.get_view_names("public")
    inspector.get_materialized_view_names("public")
    inspector.get_sequence_names("public")
    inspector.get_enums("public")
    inspector.get_table_comment("orders")
    sqlalchemy.MetaData().reflect(engine, schema="public")
    sqlalchemy.MetaData().reflect(engine, views=True)


def asyncpg_introspection(dsn: str) -> None:
    async def run() -> None:
        made = await asyncpg.connect(**{("database" if key == "dbname" else key): value for key, value in parts(dsn).items()})
        await made.fetch("SELECT $1::int4[], '{}'::name[]", [1])
        await made.fetch("SELECT o FROM (SELECT 1 AS a, 'x'::text AS b) o")
        await made.fetch("SELECT oid, typname FROM pg_type WHERE typname = $1", "int4")
        async with made.transaction(isolation="serializable", readonly=True):
            await made.fetchval("SELECT 1")
        await made.reset()
        await made.close()

    asyncio.run(run())


def jdbc(dsn: str) -> None:
    told = parts(dsn)
    jars = sorted((Path.home() / ".m2").rglob("postgresql-*.jar"))
    url = f"jdbc:postgresql://{told['host']}:{told['port']}/{told['dbname']}"
    subprocess.run(["java", "-cp", str(jars[-1]), str(HERE / "Metadata.java"), url, told["user"], told.get("password") or "x"], check=True)


def parts(dsn: str) -> dict[str, Any]:
    return {
        key: value for key, value in psycopg.conninfo.conninfo_to_dict(dsn).items() if key in ("host", "port", "user", "password", "dbname")
    }


def psycopg_two(dsn: str) -> None:
    with psycopg2.connect(dsn) as made, made.cursor() as cursor:
        cursor.execute("SELECT 1")
        psycopg2.extras.HstoreAdapter.get_oids(made)
        made.rollback()
    made.set_session(isolation_level="SERIALIZABLE", readonly=True)


def pg_eight(dsn: str) -> None:
    told = parts(dsn)
    made = pg8000.dbapi.connect(
        user=told["user"],
        host=told.get("host", "localhost"),
        port=int(told["port"]),
        database=told["dbname"],
        password=told.get("password"),
    )
    made.cursor().execute("SELECT 1")
    made.commit()
    made.close()


TOOLS: dict[str, Callable[[str], None]] = {
    "psql": psql, "sqlalchemy": sqlalchemy_reflection, "asyncpg": asyncpg_introspection, "psycopg2": psycopg_two, "pg8000": pg_eight,
    "jdbc": jdbc,
}  # fmt: skip


def statements(log: str) -> list[dict[str, Any]]:
    """The different statements of a log in order, with the values that came with them."""
    found: dict[str, dict[str, Any]] = {}
    last: dict[str, Any] | None = None
    for entry in ENTRY.finditer(log):
        level, text = entry[1], entry[2].rstrip("\n").replace("\n\t", "\n")
        if level == "LOG" and (match := re.match(r"(?:statement|execute [^:]*): (.*)", text, re.S)):
            last = found.setdefault(match[1].strip(), {"sql": match[1].strip()})
        elif level == "DETAIL" and last is not None and (match := re.match(r"[Pp]arameters: (.*)", text, re.S)):
            values = re.findall(r"\$\d+ = (NULL|'(?:[^']|'')*')", match[1])
            last["parameters"] = [None if value == "NULL" else value[1:-1].replace("''", "'") for value in values]
            last = None
    return list(found.values())


def main(names: list[str]) -> None:
    """Record the tools named, or all."""
    for name in names or TOOLS:
        with PostgresServer(18, log_statements=True) as server:
            open_shop(server, customers=200)
            before = len(server.log_path.read_text())
            TOOLS[name](server.dsn("shop"))
            made = statements(server.log_path.read_text()[before:])
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made))
        print(f"{name}: {len(made)} statements")


if __name__ == "__main__":
    main(sys.argv[1:])

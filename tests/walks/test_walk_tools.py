"""Recorded sessions of drivers and tools, statement by statement: under the starter policy each answers as PostgreSQL itself does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from control.starter import starter_policy
from kit.twins import DIRECT, PASSWORD, open_stage
from pgleash.demo.stage import Stage

RECORDED = Path(__file__).resolve().parent.parent / "recorded"
SESSIONS = sorted(path.stem for path in RECORDED.glob("*.jsonl"))
# What two sessions of PostgreSQL itself answer differently: each sees its own role, transaction or statistics.
OWN = ("pg_stat", "current_user", "session_user", "pg_roles", "pg_my_temp_schema", "txid", "pg_settings", "acl", "privilege", "now()")
# Closed to agents, as docs/policy.md says: what other people do, and secrets.
CLOSED = re.compile(
    r"(?:FROM|JOIN)\s+(?:pg_catalog\.)?(?:pg_stat_activity|pg_user_mappings?|pg_subscription|pg_stat_ssl|pg_authid)\b", re.I
)


@pytest.fixture(scope="module")
def started() -> Iterator[Stage]:
    with open_stage(policy=starter_policy()) as stage:
        yield stage


def answer(connection: psycopg.Connection[Any], entry: dict[str, Any]) -> tuple[str, Any]:
    """(SQLSTATE or empty, the rows of the last result)."""
    raw = connection.pgconn
    text = entry["sql"].encode()
    if "parameters" in entry:
        result = raw.exec_params(text, [None if value is None else value.encode() for value in entry["parameters"]])
    else:
        result = raw.exec_(text)
    state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
    rows = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
    return (state or b"").decode() + ("" if state is None else f" {result.error_message.decode()}"), rows


@pytest.mark.parametrize("name", SESSIONS)
def test_every_statement_answers_as_without_the_gateway(started: Stage, name: str) -> None:
    entries = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]
    assert len(entries) >= 3
    wrong: list[str] = []
    where = started.server.dsn("shop", DIRECT, PASSWORD)
    with (
        psycopg.connect(where, autocommit=True) as direct,
        psycopg.connect(started.dsn("agent-7", started.token("agent", subject="agent-7")), autocommit=True) as through,
    ):
        for entry in entries:
            one, two = answer(direct, entry), answer(through, entry)
            shown = " ".join(entry["sql"].split())[:150]
            if CLOSED.search(entry["sql"]):
                if not two[0].startswith("42501"):
                    wrong.append(f"it should be closed: {shown}")
            elif one[0][:5] != two[0][:5]:
                wrong.append(f"{two[0] or 'no error'} instead of {one[0] or 'none'}: {shown}")
            elif one[1] != two[1] and not any(word in entry["sql"].lower() for word in OWN):
                wrong.append(f"other rows: {shown}")
    assert not wrong, "\n".join(wrong)

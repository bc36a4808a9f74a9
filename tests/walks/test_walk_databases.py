"""Whole databases made and dropped through the gateway, which has connections of its own there."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from drivers.permissive import ADMINISTRATOR, administrator_token, permissive_stage
from pgleash.demo.postgres import PostgresServer


@pytest.mark.parametrize("drop", ["DROP DATABASE passing", "ALTER DATABASE passing RENAME TO gone"])
def test_a_database_that_was_used_can_go(tmp_path: Path, drop: str) -> None:
    """Neither the catalog's connection nor one kept for the next session is in its way."""
    with PostgresServer(18) as server, permissive_stage(server, tmp_path, ("shop", "postgres", "passing")) as stage:
        token = administrator_token(stage)
        with psycopg.connect(stage.dsn(ADMINISTRATOR, token, dbname="postgres"), autocommit=True) as connection:
            for _ in range(2):
                connection.execute("CREATE DATABASE passing")
                with psycopg.connect(stage.dsn(ADMINISTRATOR, token, dbname="passing"), autocommit=True) as visit:
                    visit.execute("CREATE TABLE here (a int)")
                connection.execute(drop.encode())
                connection.execute("DROP DATABASE IF EXISTS gone")

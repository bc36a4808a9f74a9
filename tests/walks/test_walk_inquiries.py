"""What agents ask of the gateway over their own connection, in every way there is to ask PostgreSQL."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime
from typing import Any

import asyncpg
import psycopg
import pytest

from fixtures.holds import Desk, Running
from kit.wire import WireClient, bind, describe, execute, parse, query, sync


def name_of(connection: psycopg.Connection[Any], sql: str = "DELETE FROM asked") -> str:
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        connection.execute(sql)
    found = str(caught.value.diag.message_detail).partition('"approval": "')[2].partition('"')[0]
    assert found.startswith("approvals/")
    return found


@pytest.mark.parametrize("subject", ["later-ask", "masked-ask"])
@pytest.mark.parametrize("binary", [False, True])
def test_an_agent_sees_its_own_approvals(desk: Desk, binary: bool, subject: str) -> None:
    with desk.table("asked"), desk.connect(subject=subject) as connection, desk.connect(subject="later-other") as other:
        if subject.startswith("later"):
            name, state = name_of(connection), "PENDING"
        else:
            running = Running(lambda: connection.execute("DELETE FROM asked"))
            name, state = desk.pending(subject).name, "DENIED"
            desk.deny(name, comment="no")
            running.result()
        name_of(other)
        cursor = connection.cursor(binary=binary)
        rows = cursor.execute("SELECT * FROM pgleash.approvals").fetchall()
        names = [column.name for column in cursor.description or ()]
        mine = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
        assert mine[name]["state"] == state and isinstance(mine[name]["created_at"], datetime) and mine[name]["needed"] == 1
        (there,) = other.execute("SELECT count(*) FROM pgleash.approvals WHERE name = %s", (name,)).fetchone() or (None,)
        assert there == 0
        found = cursor.execute(
            "SELECT a.state, expires_at > now() FROM pgleash.approvals a WHERE a.name = %s ORDER BY a.created_at DESC LIMIT 1", (name,)
        ).fetchall()
        assert found == [(state, True)]
        text = psycopg.ClientCursor(connection).execute("SELECT state FROM PgLeash . approvals WHERE name = %s", (name,)).fetchall()
        assert text == [(state,)]


def test_what_was_prepared_before_tells_what_is_now(desk: Desk) -> None:
    async def ask() -> list[str]:
        token = desk.stage.token(subject="later-prepared")
        connection = await asyncpg.connect(
            host="localhost", port=desk.stage.port, user="later-prepared", password=token, database="shop",
            ssl=ssl.create_default_context(cafile=str(desk.stage.certificates.ca)),
        )  # fmt: skip
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
                await connection.execute("DELETE FROM asked WHERE id = 1")
            name = str(caught.value.detail).partition('"approval": "')[2].partition('"')[0]
            prepared = await connection.prepare("SELECT state FROM pgleash.approvals WHERE name = $1")
            seen = [await prepared.fetchval(name)]
            await asyncio.to_thread(desk.approve, name)
            seen.append(await prepared.fetchval(name))
            async with connection.transaction():
                async for row in connection.cursor("SELECT used_at IS NULL AS waits FROM pgleash.approvals WHERE name = $1", name):
                    seen.append(str(row["waits"]))
            await connection.execute("DELETE FROM asked WHERE id = 1")
            seen.append(str(await connection.fetchval("SELECT used_at IS NOT NULL FROM pgleash.approvals WHERE name = $1", name)))
            return seen
        finally:
            await connection.close()

    with desk.table("asked"):
        assert asyncio.run(ask()) == ["PENDING", "APPROVED", "True", "True"]


def test_grant_status_and_help(desk: Desk) -> None:
    with desk.connect(subject="later-status") as connection:
        grant = connection.execute('SELECT subject, database, tables, expires_at > now() FROM pgleash."grant"').fetchone()
        assert grant == ("later-status", "shop", "*.*", True)
        (line,) = connection.execute("SHOW pgleash.status").fetchone() or ("",)
        assert "subject: later-status" in line and "grant: gr_" in line
        assert psycopg.ClientCursor(connection).execute("SHOW pgleash.status").statusmessage == "SHOW"
        status = dict(connection.execute("SELECT name, value FROM pgleash.status").fetchall())
        assert status["acts_for"] == "ada@example.com"
        assert connection.execute("SELECT text FROM pgleash.help WHERE topic = 'deferred'").fetchone() is not None
        joined = connection.execute("SELECT count(*) FROM pgleash.help h CROSS JOIN pgleash.status s, generate_series(1, 2)").fetchone()
        assert joined == (6 * 8 * 2,)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM pgleash.approvals",
        "TRUNCATE pgleash.approvals",
        "UPDATE pgleash.approvals SET state = 'APPROVED'",
        "TABLE pgleash.secrets",
    ],
)
def test_nothing_else_bears_the_name(desk: Desk, sql: str) -> None:
    with desk.connect(subject="agent-7") as connection, pytest.raises(psycopg.Error):
        connection.execute(sql)
    with desk.connect(subject="agent-7") as connection:
        assert connection.execute("SELECT 'select * from pgleash.approvals'").fetchone() == ("select * from pgleash.approvals",)


def test_messages_are_those_of_any_select(desk: Desk) -> None:
    with WireClient("127.0.0.1", desk.stage.port) as client:
        client.secure(str(desk.stage.certificates.ca), server_hostname="localhost")
        client.login("agent-7", "shop", desk.stage.token())
        asks, plain = "SELECT topic FROM pgleash.help LIMIT 2", "SELECT generate_series(1, 2)::text"
        told = []
        for sql, name in ((plain, "n"), (asks, "m")):
            seen = client.ask(
                parse("SELECT 1"), bind(), execute(), parse(sql, name), describe("S", name), bind(statement=name, portal="p"),
                execute("p", 1), execute("p", 1), parse("SELECT 2"), bind(), execute(), sync(),
            )  # fmt: skip
            seen += client.ask(query("BEGIN")) + client.ask(query(sql)) + client.ask(query("SELECT 1/0")) + client.ask(query(sql))
            seen += client.ask(query("ROLLBACK")) + client.ask(query(f"SELECT 1; {sql}; SELECT 2"))
            seen += client.ask(parse(sql), bind(results=(1,)), describe("P"), execute(), sync())
            told.append([one.kind + (one.body.decode() if one.kind == "Z" else "") for one in seen])
        assert told[0] == told[1]

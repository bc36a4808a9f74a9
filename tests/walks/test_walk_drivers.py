"""What drivers do that a careful client would not: all of it as PostgreSQL takes it, through a whole gateway."""

from __future__ import annotations

import psycopg
import pytest

from fixtures.gateway import Agent
from kit.wire import WireClient, bind, execute, message, parse, query, sync
from pgleash.demo.stage import Stage


def wire(stage: Stage) -> WireClient:
    client = WireClient("127.0.0.1", stage.port)
    client.secure(str(stage.certificates.ca))
    client.login("agent-7", "shop", stage.token("agent"))
    return client


def test_copy_data_may_come_before_the_server_asks_for_it(stage: Stage) -> None:
    """asyncpg sends the rows right behind COPY FROM STDIN, without awaiting CopyInResponse."""
    copy = "COPY orders (customer_id, placed_at, amount, status) FROM STDIN"
    rows = [message(b"d", b"%d\t2026-01-01\t1.00\thasty\n" % number) for number in range(100)]
    wide = message(b"d", b"7\t2026-01-01\t1.00\t" + b"x" * 300_000 + b"\n")
    data = b"".join(rows) + message(b"c")
    with wire(stage) as client:
        client.send(query(copy) + data)
        assert [told.kind for told in client.until("Z")] == ["G", "C", "Z"]
        client.send(query("SELECT 1") + data + query("SELECT 2"))
        assert [told.kind for _ in "12" for told in client.until("Z")] == ["T", "D", "C", "Z"] * 2
        client.send(parse(copy) + bind() + execute() + wide + message(b"c") + sync())
        assert [told.kind for told in client.until("Z")] == ["1", "2", "G", "C", "Z"]
        client.send(query(copy) + rows[0] + message(b"f", b"no\0"))
        assert [told.kind for told in client.until("Z")] == ["G", "E", "Z"]
        # pg8000: Sync behind Execute, which the server drops while it copies, and the end of the data behind the error
        client.send(parse(copy) + bind() + execute() + sync())
        client.until("G")
        client.send(message(b"d", b"not a row\n"))
        client.until("E")
        client.send(message(b"c") + sync() + query("SELECT 4"))
        assert [told.kind for _ in "12" for told in client.until("Z")] == ["Z", "T", "D", "C", "Z"]
        client.send(query("COPY nowhere FROM STDIN") + data + query("SELECT 3"))
        assert [told.kind for _ in "12" for told in client.until("Z")] == ["E", "Z", "T", "D", "C", "Z"]
        assert client.run("DELETE FROM orders WHERE status = 'hasty' OR status LIKE 'xxx%'")[-2].body == b"DELETE 101\0"


def test_a_statement_of_eight_megabytes_in_one_message(stage: Stage, agent: Agent) -> None:
    """psycopg 2 writes parameters into the text; what the server's socket does not take at once has to follow."""
    with agent.connect() as connection:
        for _ in range(3):
            assert connection.execute("SELECT length('" + "x" * (8 << 20) + "')").fetchone() == (8388608,)


@pytest.mark.parametrize("text", ["SELEC 1", "SELECT 'ä', FROM x", "SELECT 1 +", "SELECT 1; SELECT (", "SELECT 'open"])
def test_a_syntax_error_is_postgresqls_own(stage: Stage, agent: Agent, text: str) -> None:
    told = []
    with agent.connect() as through, psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        for connection in (through, direct):
            with pytest.raises(psycopg.Error) as caught:
                connection.execute(text)
            diag = caught.value.diag
            told.append(
                (type(caught.value), diag.severity, diag.sqlstate, diag.message_primary, diag.statement_position, diag.message_detail)
            )
    assert told[0] == told[1]


def test_settings_of_the_startup_message_reach_the_server_and_the_policy(stage: Stage, agent: Agent) -> None:
    """JDBC's currentSchema, asyncpg's server_settings, libpq's options."""
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as direct:
        direct.execute(
            "CREATE SCHEMA IF NOT EXISTS hidden; CREATE TABLE IF NOT EXISTS hidden.employees (x int); GRANT ALL ON SCHEMA hidden TO PUBLIC"
        )
        direct.execute("GRANT ALL ON hidden.employees TO PUBLIC")
    options = r"-c work_mem=5MB --client-min-messages=error -csearch_path=hidden,\ public -c app.name=x\ y"
    with agent.connect(options=options) as connection:
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("work_mem", "client_min_messages", "search_path", "app.name")]
        assert shown == [("5MB",), ("error",), ("hidden, public",), ("x y",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"hidden\.employees"):
            connection.execute("SELECT * FROM employees")
        connection.execute("SET search_path TO public")
        connection.execute("SELECT count(*) FROM employees")
        connection.execute("RESET search_path")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"hidden\.employees"):
            connection.execute("SELECT * FROM employees")
    for refused in ("role=postgres", "session_authorization=postgres", "standard_conforming_strings=off", "client_encoding=latin1"):
        with pytest.raises(psycopg.OperationalError, match="not possible"):
            agent.connect(options=f"-c {refused}")
    with pytest.raises(psycopg.OperationalError, match='unrecognized configuration parameter "nonsense"'):
        agent.connect(options="-c nonsense=1")


def test_one_text_may_make_what_it_uses(stage: Stage) -> None:
    """A script in one message: each statement is judged by what those before it have changed."""
    with psycopg.connect(stage.dsn("analyst-1", stage.token("analyst")), autocommit=True) as connection:
        connection.execute("SET search_path TO public; SELECT count(*) FROM employees; RESET search_path")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"hidden\.employees"):
            connection.execute("SET search_path TO hidden; SELECT * FROM employees")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"hidden\.employees"):
            connection.execute("BEGIN; SET LOCAL search_path TO hidden; ROLLBACK; SELECT * FROM employees")


def test_two_phase_commit_waits_for_a_rule_that_names_it(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.execute("BEGIN")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="PREPARE TRANSACTION"):
            connection.execute("PREPARE TRANSACTION 'mine'")
        connection.execute("ROLLBACK")


def test_sqls_close_all_leaves_prepared_statements_alone(stage: Stage) -> None:
    """asyncpg's pools reset a connection with CLOSE ALL and go on with the statements prepared before."""
    with wire(stage) as client:
        client.send(parse("SELECT 1", "kept") + sync())
        client.until("Z")
        client.run("DECLARE kept CURSOR WITH HOLD FOR SELECT 2")
        client.run("CLOSE ALL")
        client.send(bind(statement="kept") + execute() + sync())
        assert [told.kind for told in client.until("Z")] == ["2", "D", "C", "Z"]


@pytest.mark.parametrize("name", ["UNICODE", "UTF8", "utf-8"])
def test_every_name_of_utf8_will_do(agent: Agent, name: str) -> None:
    with agent.connect() as connection:
        connection.execute(f"SET client_encoding TO '{name}'")
        assert connection.execute("SELECT 'ä☃'").fetchone() == ("ä☃",)

"""psycopg 2: the steps of the driver matrix."""

import datetime
import decimal
import io
import select
import sys
import threading
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import psycopg2
import psycopg2.extras
from recorder import BIG, SETUP, TYPES, absent, hang, libpq, step

psycopg2.extras.register_uuid()


def run(sql, values=None):
    cursor = connection.cursor()
    cursor.execute(sql, values)
    return cursor


@step("connect")
def _():
    global connection, other
    connection = psycopg2.connect(**libpq())
    connection.autocommit = True
    other = psycopg2.connect(**libpq())
    other.autocommit = True
    return [connection.encoding, connection.server_version, connection.info.user, connection.get_parameter_status("DateStyle")]


@step("simple query")
def _():
    run(SETUP)
    cursor = run("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x")
    return [cursor.description[0].name, cursor.fetchall(), cursor.statusmessage]


@step("parameters")
def _():
    changed = run("INSERT INTO person VALUES (%s, %s), (%s, %s)", (1, "Ada", 2, "Zoë"))
    return [changed.rowcount, run("SELECT * FROM person WHERE id > %(id)s", {"id": 1}).fetchall()]


@step("prepared statement")
def _():
    run("PREPARE double(int) AS SELECT $1 * 2")
    found = [run("EXECUTE double(%s)", (n,)).fetchone()[0] for n in range(10)]
    run("DEALLOCATE double")
    return found


@step("transaction")
def _():
    connection.autocommit = False
    found = []
    run("INSERT INTO person VALUES (3, 'Eve')")
    run("SAVEPOINT before")
    try:
        run("INSERT INTO person VALUES (4, 'Ada')")
    except psycopg2.errors.UniqueViolation as error:
        found += [error.pgcode, connection.info.transaction_status]
    run("ROLLBACK TO SAVEPOINT before")
    run("INSERT INTO person VALUES (5, 'Max')")
    connection.commit()
    connection.autocommit = True
    return [found, connection.info.transaction_status, run("SELECT id FROM person ORDER BY id").fetchall()]


@step("error fields")
def _():
    found = []
    for statement in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"):
        try:
            run(statement)
        except psycopg2.Error as error:
            names = ("message_primary", "message_detail", "statement_position", "table_name", "constraint_name", "source_function")
            found.append([type(error).__name__, error.pgcode, error.pgerror, *(getattr(error.diag, name) for name in names)])
    return found


@step("types")
def _():
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC)
    values = (7, 2**62, decimal.Decimal("12345.678901"), True, "Zoë ☃ 𝄞", moment, moment.date(), uuid.UUID(int=5), b"\0\xff\n")
    return run(TYPES, (*values, psycopg2.extras.Json({"a": [1]}), [1, 2, None], ["a", 'q"uote', None], None)).fetchone()


@step("100,000 rows")
def _():
    count = total = 0
    for number, text in run("SELECT i, 'row ' || i FROM generate_series(1, 100000) i"):
        count, total = count + 1, total + number + len(text)
    return [count, total]


@step("cursor")
def _():
    connection.autocommit = False
    cursor = connection.cursor("server_side", scrollable=True)
    cursor.itersize = 100
    cursor.execute("SELECT generate_series(1, 1000)")
    found = [cursor.fetchone(), sum(row[0] for row in cursor)]
    cursor.scroll(10, mode="absolute")
    found.append(cursor.fetchmany(2))
    cursor.close()
    connection.commit()
    connection.autocommit = True
    return found


@step("copy out")
def _():
    out = io.StringIO()
    connection.cursor().copy_expert("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT", out)
    return [len(out.getvalue()), out.getvalue()[:20]]


@step("copy in")
def _():
    cursor = connection.cursor()
    cursor.copy_from(io.StringIO("".join(f"{n}\tcopied {n}\n" for n in range(100, 1100))), "person")
    found = [cursor.rowcount, run("SELECT count(*) FROM person").fetchone()]
    try:
        cursor.copy_from(io.StringIO("100\tagain\n"), "person")
    except psycopg2.Error as error:
        found.append([error.pgcode, error.diag.context])
    return found


@step("notify")
def _():
    run("LISTEN news")
    other.cursor().execute("NOTIFY news, 'hello'")
    select.select([connection], [], [], 10)
    connection.poll()
    note = connection.notifies.pop()
    run("UNLISTEN *")
    return [note.channel, note.payload, note.pid == other.info.backend_pid]


@step("cancel")
def _():
    timer = threading.Timer(0.3, connection.cancel)
    timer.start()
    try:
        run("SELECT pg_sleep(30)")
    except psycopg2.errors.QueryCanceled as error:
        timer.join()
        return [error.pgcode, error.diag.message_primary, run("SELECT 1").fetchone()]


@step("8 MB parameter")
def _():
    return run("SELECT length(%s), octet_length(%s)", (BIG, BIG[:10])).fetchone()


absent("pipeline")
hang(connection.info.backend_pid, lambda: run("SELECT pg_sleep(60)"))

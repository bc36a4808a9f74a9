"""psycopg 3: the steps of the driver matrix."""

import datetime
import decimal
import sys
import threading
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import psycopg
from psycopg.types.json import Json
from recorder import BIG, SETUP, TYPES, hang, libpq, step

connection: psycopg.Connection
other: psycopg.Connection


@step("connect")
def _():
    global connection, other
    connection = psycopg.connect(**libpq(), autocommit=True)
    other = psycopg.connect(**libpq(), autocommit=True, options="-c TimeZone=UTC", application_name="other")
    info = connection.info
    return [info.encoding, info.server_version, info.user, info.dbname, other.execute("SHOW application_name").fetchone()]


@step("simple query")
def _():
    connection.execute(SETUP)
    cursor = connection.execute("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x; SELECT 3 WHERE false")
    found = []
    while True:
        found.append([cursor.description[0].name, cursor.fetchall(), cursor.statusmessage])
        if not cursor.nextset():
            return found


@step("parameters")
def _():
    changed = connection.execute("INSERT INTO person VALUES (%s, %s), (%s, %s)", (1, "Ada", 2, "Zoë"))
    return [changed.rowcount, connection.execute("SELECT * FROM person WHERE id > %(id)s", {"id": 1}).fetchall()]


@step("prepared statement")
def _():
    found = [connection.execute("SELECT %s::int * 2", (n,), prepare=True).fetchone()[0] for n in range(10)]
    connection.execute("DISCARD ALL")
    connection._prepared.clear()
    return [found, connection.execute("SELECT %s::int * 2", (21,), prepare=True).fetchone()[0]]


@step("transaction")
def _():
    found = []
    with connection.transaction():
        connection.execute("INSERT INTO person VALUES (3, 'Eve')")
        try:
            with connection.transaction():
                connection.execute("INSERT INTO person VALUES (4, 'Ada')")
        except psycopg.errors.UniqueViolation as error:
            found.append(error.sqlstate)
        found.append(connection.info.transaction_status.name)
        connection.execute("INSERT INTO person VALUES (5, 'Max')")
    return [found, connection.info.transaction_status.name, connection.execute("SELECT id FROM person ORDER BY id").fetchall()]


@step("error fields")
def _():
    found = []
    for statement in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC", "SELECT 'x'::int"):
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            names = (
                "severity", "sqlstate", "message_primary", "message_detail", "message_hint", "statement_position", "schema_name",
                "table_name", "column_name", "constraint_name", "source_function",
            )  # fmt: skip
            found.append([type(error).__name__, *(getattr(error.diag, name) for name in names)])
    return found


@step("types")
def _():
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC)
    values = (
        7,
        2**62,
        decimal.Decimal("12345.678901"),
        True,
        "Zoë ☃ 𝄞",
        moment,
        moment.date(),
        uuid.UUID(int=5),
        b"\0\xff\n",
        Json({"a": [1]}),
    )
    values = (*values, [1, 2, None], ["a", 'q"uote', None], None)
    return [connection.cursor(binary=binary).execute(TYPES, values).fetchone() for binary in (False, True)]


@step("100,000 rows")
def _():
    count = total = 0
    for number, text in connection.execute("SELECT i, 'row ' || i FROM generate_series(1, 100000) i"):
        count, total = count + 1, total + number + len(text)
    return [count, total]


@step("cursor")
def _():
    with connection.transaction(), connection.cursor("server_side") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1000)")
        return [cursor.fetchone(), sum(row[0] for row in cursor), cursor.description[0].name]


@step("copy out")
def _():
    with connection.cursor().copy("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT") as copy:
        text = b"".join(copy)
    with connection.cursor().copy("COPY (SELECT i FROM generate_series(1, 3) i) TO STDOUT (FORMAT binary)") as copy:
        copy.set_types(["int4"])
        return [len(text), text[:20], list(copy.rows())]


@step("copy in")
def _():
    with connection.cursor() as cursor:
        with cursor.copy("COPY person FROM STDIN") as copy:
            for number in range(100, 1100):
                copy.write_row((number, f"copied {number}"))
        found = [cursor.rowcount, connection.execute("SELECT count(*) FROM person").fetchone()]
    try:
        with connection.cursor().copy("COPY person FROM STDIN") as copy:
            copy.write_row((100, "again"))
    except psycopg.Error as error:
        found.append([error.sqlstate, error.diag.context])
    return found


@step("notify")
def _():
    connection.execute("LISTEN news")
    other.execute("NOTIFY news, 'hello'")
    note = next(connection.notifies(timeout=10))
    connection.execute("UNLISTEN *")
    return [note.channel, note.payload, note.pid == other.info.backend_pid]


@step("cancel")
def _():
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    try:
        connection.execute("SELECT pg_sleep(30)")
    except psycopg.errors.QueryCanceled as error:
        timer.join()
        return [error.sqlstate, error.diag.message_primary, connection.execute("SELECT 1").fetchone()]


@step("8 MB parameter")
def _():
    return connection.execute("SELECT length(%s), octet_length(%s::text)", (BIG, BIG[:10])).fetchone()


@step("pipeline")
def _():
    found = []
    with connection.pipeline() as pipeline:
        cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(50)]
        pipeline.sync()
        found.append(sum(cursor.fetchone()[0] for cursor in cursors))
    try:
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1/%s", (0,))
            connection.execute("SELECT 2")
    except psycopg.Error as error:
        found.append(error.sqlstate)
    return [*found, connection.info.transaction_status.name, connection.execute("SELECT 3").fetchone()]


hang(connection.info.backend_pid, lambda: connection.execute("SELECT pg_sleep(60)"))

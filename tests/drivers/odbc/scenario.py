"""ODBC (psqlodbc through unixODBC and pyodbc): the steps of the driver matrix."""

import datetime
import decimal
import sys
import threading
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import pyodbc
from recorder import BIG, CA, DATABASE, HOST, PASSWORD, PORT, SETUP, USER, absent, hang, step

pyodbc.pooling = False


def connect():
    # psqlodbc takes libpq's sslrootcert through pqopt.
    tls = f"SSLmode=verify-full;pqopt={{sslrootcert={CA}}}" if CA else "SSLmode=disable"
    where = f"DRIVER={{PostgreSQL Unicode}};SERVER={HOST};PORT={PORT};DATABASE={DATABASE};UID={USER};PWD={{{PASSWORD}}};{tls}"
    return pyodbc.connect(where, autocommit=True)


def rows(sql, *values):
    return [tuple(row) for row in connection.execute(sql, *values).fetchall()]


@step("connect")
def _():
    global connection
    connection = connect()
    return [connection.getinfo(pyodbc.SQL_DBMS_VER), connection.getinfo(pyodbc.SQL_USER_NAME), connection.getinfo(pyodbc.SQL_DATABASE_NAME)]


@step("simple query")
def _():
    connection.execute(SETUP)
    columns = [(row.column_name, row.type_name) for row in connection.cursor().columns(table="person")]
    return [rows("SELECT 2 AS two, 'x'::text AS x"), columns]


@step("parameters")
def _():
    count = connection.execute("INSERT INTO person VALUES (?, ?), (?, ?)", 1, "Ada", 2, "Zoë").rowcount
    return [count, rows("SELECT * FROM person WHERE id > ?", 1)]


@step("prepared statement")
def _():
    cursor = connection.cursor()
    return [cursor.execute("SELECT ?::int * 2", n).fetchval() for n in range(10)]


@step("transaction")
def _():
    found = []
    connection.autocommit = False
    connection.execute("INSERT INTO person VALUES (3, 'Eve')")
    try:
        connection.execute("INSERT INTO person VALUES (?, ?)", 4, "Ada")
    except pyodbc.Error as error:
        found.append(error.args)
    connection.rollback()
    connection.execute("INSERT INTO person VALUES (5, 'Max')")
    connection.commit()
    connection.autocommit = True
    return [found, rows("SELECT id FROM person ORDER BY id")]


@step("error fields")
def _():
    found = []
    for statement in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"):
        try:
            connection.execute(statement)
        except pyodbc.Error as error:
            found.append([type(error).__name__, *error.args])
    return found


@step("types")
def _():
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456)
    values = (
        7,
        2**62,
        decimal.Decimal("12345.678901"),
        "Zoë ☃",
        moment,
        moment.date(),
        uuid.UUID(int=5),
        b"\0\xff\n",
        '{"a": [1]}',
        "{1,2,NULL}",
        None,
    )
    sql = "SELECT ?::int, ?::bigint, ?::numeric, ?::text, ?::timestamptz, ?::date, ?::uuid, ?::bytea, ?::json, ?::int[], ?::text, true"
    return rows(sql, *values)


@step("100,000 rows")
def _():
    found = rows("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
    return [len(found), sum(number + len(text) for number, text in found)]


@step("cursor")
def _():
    cursor = connection.execute("SELECT generate_series(1, 1000)")
    return [len(cursor.fetchmany(100)) for _ in range(11)]


for name in ("copy out", "copy in", "notify"):
    absent(name)


@step("cancel")
def _():
    cursor = connection.cursor()
    timer = threading.Timer(0.3, cursor.cancel)
    timer.start()
    try:
        cursor.execute("SELECT pg_sleep(30)")
    except pyodbc.Error as error:
        timer.join()
        return [error.args, rows("SELECT 1")]


@step("8 MB parameter")
def _():
    return rows("SELECT length(?::text)", BIG)


absent("pipeline")
hang(rows("SELECT pg_backend_pid()")[0][0], lambda: connection.execute("SELECT pg_sleep(60)"))

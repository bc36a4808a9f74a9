"""pg8000, its native interface: the steps of the driver matrix."""

import datetime
import decimal
import io
import ssl
import sys
import time
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import pg8000.native
from recorder import BIG, CA, DATABASE, HOST, PASSWORD, PORT, SETUP, TYPES, USER, absent, hang, step


def connect():
    context = ssl.create_default_context(cafile=CA) if CA else False
    return pg8000.native.Connection(USER, host=HOST, port=PORT, password=PASSWORD, database=DATABASE, ssl_context=context)


@step("connect")
def _():
    global connection, other
    connection, other = connect(), connect()
    statuses = connection.parameter_statuses
    return [statuses["client_encoding"], statuses["server_version"], statuses["TimeZone"]]


@step("simple query")
def _():
    for statement in SETUP.split("; "):
        connection.run(statement)
    return [connection.run("SELECT 2 AS two, 'x'::text AS x"), [column["name"] for column in connection.columns], connection.row_count]


@step("parameters")
def _():
    connection.run("INSERT INTO person VALUES (:one, :ada), (:two, :zoe)", one=1, ada="Ada", two=2, zoe="Zoë")
    return [connection.row_count, connection.run("SELECT * FROM person WHERE id > :id", id=1)]


@step("prepared statement")
def _():
    prepared = connection.prepare("SELECT CAST(:n AS int) * 2")
    found = [prepared.run(n=n) for n in range(10)]
    prepared.close()
    return found


@step("transaction")
def _():
    found = []
    connection.run("BEGIN")
    connection.run("INSERT INTO person VALUES (3, 'Eve')")
    connection.run("SAVEPOINT before")
    try:
        connection.run("INSERT INTO person VALUES (4, 'Ada')")
    except pg8000.native.DatabaseError as error:
        found.append(error.args[0]["C"])
    connection.run("ROLLBACK TO SAVEPOINT before")
    connection.run("INSERT INTO person VALUES (5, 'Max')")
    connection.run("COMMIT")
    return [found, connection.run("SELECT id FROM person ORDER BY id")]


@step("error fields")
def _():
    found = []
    for statement in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"):
        try:
            connection.run(statement)
        except pg8000.native.DatabaseError as error:
            found.append({**error.args[0], "L": None})
    return found


@step("types")
def _():
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC)
    values = [
        7,
        2**62,
        decimal.Decimal("12345.678901"),
        True,
        "Zoë ☃ 𝄞",
        moment,
        moment.date(),
        uuid.UUID(int=5),
        b"\0\xff\n",
        '{"a": [1]}',
    ]
    values += [[1, 2, None], ["a", 'q"uote', None], None]
    sql = TYPES
    for position in range(len(values)):
        sql = sql.replace("%s", f":v{position}", 1)
    return connection.run(sql, **{f"v{position}": value for position, value in enumerate(values)})


@step("100,000 rows")
def _():
    rows = connection.run("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
    return [len(rows), sum(number + len(text) for number, text in rows)]


@step("cursor")
def _():
    connection.run("BEGIN")
    connection.run("DECLARE server_side CURSOR FOR SELECT generate_series(1, 1000)")
    found = [len(connection.run("FETCH 100 FROM server_side")) for _ in range(11)]
    connection.run("CLOSE server_side")
    connection.run("COMMIT")
    return found


@step("copy out")
def _():
    out = io.BytesIO()
    connection.run("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT", stream=out)
    return [len(out.getvalue()), out.getvalue()[:20]]


@step("copy in")
def _():
    connection.run("COPY person FROM STDIN", stream=io.StringIO("".join(f"{n}\tcopied {n}\n" for n in range(100, 1100))))
    found = [connection.row_count, connection.run("SELECT count(*) FROM person")]
    try:
        connection.run("COPY person FROM STDIN", stream=io.StringIO("100\tagain\n"))
    except pg8000.native.DatabaseError as error:
        found.append(error.args[0])
    return found


@step("notify")
def _():
    connection.run("LISTEN news")
    pid = other.run("SELECT pg_backend_pid()")[0][0]
    other.run("NOTIFY news, 'hello'")
    time.sleep(0.2)
    connection.run("UNLISTEN *")
    sender, channel, payload = connection.notifications.popleft()
    return [sender == pid, channel, payload]


absent("cancel")


@step("8 MB parameter")
def _():
    return connection.run("SELECT length(:big), octet_length(:ten)", big=BIG, ten=BIG[:10])


absent("pipeline")
hang(connection.run("SELECT pg_backend_pid()")[0][0], lambda: connection.run("SELECT pg_sleep(60)"))

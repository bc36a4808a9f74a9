"""asyncpg: the steps of the driver matrix."""

import asyncio
import datetime
import decimal
import io
import ssl
import sys
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import asyncpg
from recorder import BIG, CA, DATABASE, HOST, PASSWORD, PORT, SETUP, TYPES, USER, absent, hang, step

loop = asyncio.new_event_loop()


def connect():
    context = ssl.create_default_context(cafile=CA) if CA else False
    return asyncpg.connect(host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, ssl=context)


def astep(name):
    return lambda work: step(name)(lambda: loop.run_until_complete(work()))


@astep("connect")
async def _():
    global connection, other
    connection, other = await connect(), await connect()
    settings = connection.get_settings()
    return [connection.get_server_version(), settings.client_encoding, settings.TimeZone, connection.get_server_pid() > 0]


@astep("simple query")
async def _():
    return [await connection.execute(SETUP), await connection.execute("SELECT 1; SELECT 2, 'x'")]


@astep("parameters")
async def _():
    done = await connection.execute("INSERT INTO person VALUES ($1, $2), ($3, $4)", 1, "Ada", 2, "Zoë")
    await connection.executemany("INSERT INTO person VALUES ($1, $2)", [(n, f"many {n}") for n in range(50, 60)])
    return [done, [tuple(row) for row in await connection.fetch("SELECT * FROM person WHERE id > $1 ORDER BY id", 1)]]


@astep("prepared statement")
async def _():
    prepared = await connection.prepare("SELECT $1::int * 2 AS double")
    found = [await prepared.fetchval(n) for n in range(10)]
    await connection.reload_schema_state()
    return [found, prepared.get_attributes()[0].name, prepared.get_parameters()[0].name, await prepared.fetchval(21)]


@astep("transaction")
async def _():
    found = []
    async with connection.transaction():
        await connection.execute("INSERT INTO person VALUES (3, 'Eve')")
        try:
            async with connection.transaction():
                await connection.execute("INSERT INTO person VALUES (4, 'Ada')")
        except asyncpg.UniqueViolationError as error:
            found.append(error.sqlstate)
        found.append(connection.is_in_transaction())
        await connection.execute("INSERT INTO person VALUES (5, 'Max')")
    return [found, connection.is_in_transaction(), await connection.fetchval("SELECT sum(id) FROM person")]


@astep("error fields")
async def _():
    found = []
    for statement in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"):
        try:
            await connection.fetch(statement)
        except asyncpg.PostgresError as error:
            found.append([type(error).__name__, {**error.as_dict(), "server_source_line": None}])
    return found


@astep("types")
async def _():
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
        sql = sql.replace("%s", f"${position + 1}", 1)
    composite = await connection.fetchval("SELECT p FROM person p WHERE id = 1")
    return [tuple(await connection.fetchrow(sql, *values)), tuple(composite)]


@astep("100,000 rows")
async def _():
    rows = await connection.fetch("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
    return [len(rows), sum(number + len(text) for number, text in rows)]


@astep("cursor")
async def _():
    async with connection.transaction():
        found = [sum([row[0] async for row in connection.cursor("SELECT generate_series(1, 1000)", prefetch=100)])]
        cursor = await connection.cursor("SELECT generate_series(1, 1000)")
        await cursor.forward(10)
        found += [(await cursor.fetchrow())[0], len(await cursor.fetch(5))]
    return found


@astep("copy out")
async def _():
    out = io.BytesIO()
    done = await connection.copy_from_query("SELECT i, 'x' || i FROM generate_series(1, $1::int) i", 1000, output=out)
    return [done, len(out.getvalue()), out.getvalue()[:20]]


@astep("copy in")
async def _():
    done = await connection.copy_records_to_table("person", records=[(n, f"copied {n}") for n in range(100, 1100)])
    found = [done, await connection.fetchval("SELECT count(*) FROM person")]
    try:
        await connection.copy_records_to_table("person", records=[(100, "again")])
    except asyncpg.PostgresError as error:
        found.append(error.as_dict())
    return found


@astep("notify")
async def _():
    heard = asyncio.get_running_loop().create_future()
    await connection.add_listener("news", lambda _, pid, channel, payload: heard.set_result((pid, channel, payload)))
    await other.execute("NOTIFY news, 'hello'")
    pid, channel, payload = await asyncio.wait_for(heard, 10)
    await connection.reset()
    return [pid == other.get_server_pid(), channel, payload]


@astep("cancel")
async def _():
    try:
        await connection.execute("SELECT pg_sleep(30)", timeout=0.3)
    except TimeoutError:
        return ["TimeoutError", await connection.fetchval("SELECT 1")]


@astep("8 MB parameter")
async def _():
    return tuple(await connection.fetchrow("SELECT length($1), octet_length($2::text)", BIG, BIG[:10]))


absent("pipeline")
hang(connection.get_server_pid(), lambda: loop.run_until_complete(connection.execute("SELECT pg_sleep(60)")))

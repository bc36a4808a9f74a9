"""SQLAlchemy over the driver that the first argument names (psycopg or asyncpg): the steps of the driver matrix."""

import asyncio
import datetime
import decimal
import ssl
import sys
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import sqlalchemy as sa
from recorder import BIG, CA, DATABASE, HOST, PASSWORD, PORT, USER, absent, hang, libpq, step
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import create_async_engine

DRIVER = sys.argv[1]
URL = sa.URL.create(f"postgresql+{DRIVER}", USER, PASSWORD, HOST, PORT, DATABASE)
tables = sa.MetaData()
person = sa.Table("person", tables, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text), sa.UniqueConstraint("name"))
loop = asyncio.new_event_loop()

if DRIVER == "asyncpg":
    engine = create_async_engine(URL, connect_args={"ssl": ssl.create_default_context(cafile=CA) if CA else False})
else:
    tls = {key: value for key, value in libpq().items() if key.startswith("ssl")}
    engine = sa.create_engine(URL, connect_args=tls)


def within(work):
    """Run ``work(connection)`` in a transaction, on either kind of engine."""
    if DRIVER != "asyncpg":
        with engine.begin() as connection:
            return work(connection)

    async def run():
        async with engine.begin() as connection:
            return await connection.run_sync(work)

    return loop.run_until_complete(run())


def rows(result):
    return [tuple(row) for row in result]


@step("connect")
def _():
    return within(lambda c: [c.dialect.server_version_info, c.dialect.default_schema_name, c.scalar(sa.text("SHOW client_encoding"))])


@step("simple query")
def _():
    within(tables.drop_all)
    within(tables.create_all)
    return within(lambda c: [sa.inspect(c).get_columns("person")[1]["name"], sa.inspect(c).get_unique_constraints("person")])


@step("parameters")
def _():
    within(lambda c: c.execute(person.insert(), [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Zoë"}]))
    return within(lambda c: rows(c.execute(person.insert().values(id=6, name="Eva").returning(person.c.id, person.c.name))))


@step("prepared statement")
def _():
    return within(lambda c: [c.scalar(sa.select(sa.bindparam("n", n, sa.Integer) * 2)) for n in range(10)])


@step("transaction")
def _():
    def work(connection):
        found = []
        connection.execute(person.insert().values(id=3, name="Eve"))
        try:
            with connection.begin_nested():
                connection.execute(person.insert().values(id=4, name="Ada"))
        except sa.exc.IntegrityError as error:
            found.append(type(error).__name__)
        connection.execute(person.insert().values(id=5, name="Max"))
        return [found, rows(connection.execute(sa.select(person.c.id).order_by(person.c.id)))]

    return within(work)


@step("error fields")
def _():
    found = []
    for text in ("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"):
        try:
            within(lambda c, text=text: c.execute(sa.text(text)))
        except sa.exc.DBAPIError as error:
            found.append([type(error).__name__, error.orig.sqlstate, str(error.orig)])
    return found


@step("types")
def _():
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC)
    values = [
        (7, sa.Integer), (2**62, sa.BigInteger), (decimal.Decimal("12345.678901"), sa.Numeric), (True, sa.Boolean), ("Zoë ☃ 𝄞", sa.Text),
        (moment, sa.DateTime(True)), (moment.date(), sa.Date), (uuid.UUID(int=5), sa.Uuid), (b"\0\xff\n", sa.LargeBinary),
        ({"a": [1]}, pg.JSONB), ([1, 2, None], pg.ARRAY(sa.Integer)), (["a", 'q"uote', None], pg.ARRAY(sa.Text)), (None, sa.Text),
    ]  # fmt: skip
    return within(lambda c: rows(c.execute(sa.select(*(sa.cast(sa.literal(value, kind), kind) for value, kind in values)))))


@step("100,000 rows")
def _():
    def work(connection):
        found = rows(connection.execute(sa.text("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")))
        return [len(found), sum(number + len(text) for number, text in found)]

    return within(work)


async def stream():
    async with engine.connect() as connection:
        result = await connection.stream(sa.text("SELECT generate_series(1, 1000)"), execution_options={"yield_per": 100})
        return sum([row[0] async for row in result])


@step("cursor")
def _():
    def work(connection):
        result = connection.execution_options(yield_per=100).execute(sa.text("SELECT generate_series(1, 1000)"))
        return sum(row[0] for part in result.partitions() for row in part)

    return within(work) if DRIVER != "asyncpg" else loop.run_until_complete(stream())


for name in ("copy out", "copy in", "notify", "cancel"):
    absent(name)


@step("8 MB parameter")
def _():
    return within(lambda c: c.scalar(sa.select(sa.func.length(sa.literal(BIG, sa.Text)))))


absent("pipeline")


def leave(connection):
    hang(connection.scalar(sa.text("SELECT pg_backend_pid()")), lambda: connection.execute(sa.text("SELECT pg_sleep(60)")))


within(leave)

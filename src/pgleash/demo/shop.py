"""The demo's database: a shop with personal data, its owner, and the login that the gateway uses.

Never add here: what agents may see of it; that is the policy's to say.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from importlib.resources import files

import psycopg
from psycopg import sql

from pgleash.demo.postgres import PostgresServer

__all__ = ["OWNER", "SERVICE", "Shop", "open_shop"]

OWNER = "shop_owner"
SERVICE = "pgleash_service"


@dataclass(frozen=True, slots=True)
class Shop:
    """A loaded shop: its database's name, and the service login that mints roles in it."""

    dbname: str
    customers: int
    service_user: str
    service_password: str = field(repr=False)


def open_shop(server: PostgresServer, *, customers: int = 100_000, dbname: str = "shop") -> Shop:
    """Create the roles and the database and fill it (about two seconds for 100,000 customers).

    The service login may create roles (that is how a grant becomes a role of its own) and holds the owner role with
    ADMIN, so that it can pass on exactly what a grant names. It is no superuser and owns nothing.
    """
    password = secrets.token_urlsafe(18)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(OWNER)))
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}").format(sql.Identifier(SERVICE), sql.Literal(password)),
        )
        connection.execute(sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(sql.Identifier(OWNER), sql.Identifier(SERVICE)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(dbname), sql.Identifier(OWNER)))
    with psycopg.connect(server.dsn(dbname)) as connection:
        connection.execute("GRANT CREATE, USAGE ON SCHEMA public TO shop_owner")
        connection.execute("SET LOCAL ROLE shop_owner")
        connection.execute("SELECT set_config('shop.customers', %s, true)", (str(customers),))
        connection.execute(files("pgleash.demo").joinpath("shop.sql").read_bytes())
    return Shop(dbname=dbname, customers=customers, service_user=SERVICE, service_password=password)

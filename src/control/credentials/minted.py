"""A server role of its own for every grant: made when the grant is first used, gone when it ends.

The role can log in until the grant's end (``VALID UNTIL``), holds exactly the granted verbs on the granted tables that
exist, and its password is known to this process alone (the server gets the SCRAM verifier, so no log shows it).
The verb ``ddl`` needs ownership in PostgreSQL: such a role becomes a member of the owners of its tables.

Never add here: policy, or the agents' statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from control.credentials.place import Place, unreachable
from pgwire.ports import Grant, Lease, Refused

__all__ = ["MintedRoles"]

_log = logging.getLogger(__name__)
_PREFIX = "pgleash_"
_FRESH = 2.0  # seconds for which a role's privileges are taken as up to date
_PRIVILEGES = {"select": "SELECT", "insert": "INSERT", "update": "UPDATE", "delete": "DELETE", "truncate": "TRUNCATE"}

_RELATIONS = """
SELECT c.oid, n.nspname, c.relname, pg_get_userbyid(c.relowner) AS owner, pg_get_userbyid(n.nspowner) AS schema_owner
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
"""
_SEQUENCES = """
SELECT n.nspname, s.relname FROM pg_depend d
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' AND d.refobjid = ANY(%s)
"""


@dataclass(slots=True)
class _Minted:
    password: str = field(repr=False)
    granted_at: float = float("-inf")


class MintedRoles:
    """Mints roles in one database with a service login that has CREATEROLE and ADMIN on the tables' owner roles."""

    def __init__(self, place: Place, user: str, password: str) -> None:
        self._place = place
        self._user = user
        self._password = password
        self._roles: dict[str, _Minted] = {}
        self._lock = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    def role_of(self, grant_id: str) -> str:
        """The name of the role of ``grant_id``."""
        return _PREFIX + grant_id

    async def lease(self, grant: Grant, session_id: str) -> Lease:
        """The grant's login. Raises ``Refused``: 08001 (server down), 08004 (the service login may not do it)."""
        role = self.role_of(grant.id)
        async with self._lock:
            minted = self._roles.get(grant.id)
            if minted is None or time.monotonic() - minted.granted_at > _FRESH:
                async with self._work() as connection:
                    minted = await self._mint(connection, grant, role, minted)
                self._roles[grant.id] = minted
        place = self._place
        return Lease(session_id, place.host, place.port, place.dbname, role, minted.password, place.tls, grant.expires_at)

    async def again(self, lease: Lease, grant: Grant) -> Lease | None:
        """The grant's login, with its privileges brought up to date as for a new session."""
        return await self.lease(grant, lease.id)

    async def give_back(self, lease: Lease) -> None:
        """Nothing to do: the role serves all sessions of its grant."""

    async def end_grant(self, grant_id: str) -> None:
        """Disconnect and drop the grant's role; what it owns goes to the database's owner. Raises ``Refused``."""
        async with self._lock:
            self._roles.pop(grant_id, None)
            async with self._work() as connection:
                await self._drop(connection, self.role_of(grant_id))

    async def start(self, active_grants: frozenset[str]) -> None:
        """Drop roles that an earlier process of this service login left behind. Raises ``Refused``."""
        async with self._lock, self._work() as connection:
            rows = await connection.execute(
                "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s) AND shobj_description(oid, 'pg_authid') = %s",
                (_PREFIX, self._mark()),
            )
            for (name,) in await rows.fetchall():
                if str(name).removeprefix(_PREFIX) not in active_grants:
                    _log.info("dropping the role %s of a grant that is over", name)
                    await self._drop(connection, str(name))

    async def check(self) -> list[str]:
        """What the service login lacks, each with the SQL that a database administrator runs to give it."""
        try:
            async with self._lock, self._work() as connection:
                return await self._lacks(connection)
        except Refused as refused:
            return [f"{refused.message}: {refused.private}"]

    async def close(self) -> None:
        """Close the administrative connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # -- the work ------------------------------------------------------------------------------------------------

    def _mark(self) -> str:
        return f"pgleash: a grant's role, made by {self._user}"

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
        """One transaction on the administrative connection; a broken connection is replaced once."""
        connection = self._connection
        if connection is not None:
            try:
                await connection.execute("")
            except psycopg.Error:
                await connection.close()
                connection = None
        if connection is None or connection.closed:
            try:
                connection = await psycopg.AsyncConnection.connect(**self._place.libpq(self._user, self._password), autocommit=True)
            except psycopg.Error as error:
                self._connection = None
                raise unreachable(self._place, error) from error
            self._connection = connection
        try:
            async with connection.transaction():
                yield connection
        except psycopg.OperationalError as error:
            raise unreachable(self._place, error) from error
        except psycopg.Error as error:
            raise Refused(
                "08004",
                "the gateway could not prepare a login for this grant",
                hint="The gateway's operator finds what is missing with `pgleash doctor`.",
                private=f"{self._place.name}: {' '.join(str(error).split())}",
            ) from error

    async def _mint(
        self, connection: psycopg.AsyncConnection[tuple[object, ...]], grant: Grant, role: str, known: _Minted | None
    ) -> _Minted:
        exists = await (await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))).fetchone()
        # One that somebody else has dropped is made anew with another password: what was connected with it is not used again.
        minted = known if known is not None and exists is not None else _Minted(secrets.token_urlsafe(32))
        identifier = sql.Identifier(role)
        if known is None or exists is None:
            verifier = connection.pgconn.encrypt_password(minted.password.encode(), role.encode(), b"scram-sha-256").decode()
            until = datetime.datetime.fromtimestamp(min(grant.expires_at, 253402300799.0), datetime.UTC).isoformat()
            login = sql.SQL("PASSWORD {} VALID UNTIL {}").format(sql.Literal(verifier), sql.Literal(until))
            if exists is None:
                await connection.execute(sql.SQL("CREATE ROLE {} LOGIN {}").format(identifier, login))
                await connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(identifier, sql.Literal(self._mark())))
                # Needed to end its connections and to hand on what it owns.
                await connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(identifier))
            else:
                await connection.execute(sql.SQL("ALTER ROLE {} LOGIN {}").format(identifier, login))
        await self._grant(connection, grant, identifier)
        minted.granted_at = time.monotonic()
        return minted

    async def _grant(self, connection: psycopg.AsyncConnection[tuple[object, ...]], grant: Grant, role: sql.Identifier) -> None:
        patterns = [_pattern(entry) for entry in grant.scope.tables]
        found = await (await connection.execute(_RELATIONS)).fetchall()
        wanted = [row for row in found if any(p.fullmatch(f"{row[1]}.{row[2]}") for p in patterns)]
        if not wanted:
            return
        tables = sql.SQL(", ").join(sql.Identifier(str(row[1]), str(row[2])) for row in wanted)
        schemas = sql.SQL(", ").join(sql.Identifier(name) for name in sorted({str(row[1]) for row in wanted}))
        await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schemas, role))
        privileges = [_PRIVILEGES[verb] for verb in sorted(grant.scope.verbs) if verb in _PRIVILEGES]
        if privileges:
            await connection.execute(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(", ").join(map(sql.SQL, privileges)), tables, role))
        if "insert" in grant.scope.verbs:
            sequences = await (await connection.execute(_SEQUENCES, ([row[0] for row in wanted],))).fetchall()
            for schema, name in sequences:
                await connection.execute(sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.Identifier(str(schema), str(name)), role))
        if "ddl" in grant.scope.verbs:
            for owner in sorted({str(row[3]) for row in wanted}):
                await connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(owner), role))

    async def _drop(self, connection: psycopg.AsyncConnection[tuple[object, ...]], name: str) -> None:
        role = sql.Identifier(name)
        if await (await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))).fetchone() is None:
            return
        await connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(role))
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))
        row = await (
            await connection.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
        ).fetchone()
        owns = await (
            await connection.execute(
                "SELECT 1 FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o' AND refobjid ="
                " (SELECT oid FROM pg_roles WHERE rolname = %s) LIMIT 1",
                (name,),
            )
        ).fetchone()
        if owns is not None and row is not None:
            await connection.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(role, sql.Identifier(str(row[0]))))
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))

    async def _lacks(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> list[str]:
        problems: list[str] = []
        row = await (await connection.execute("SELECT rolcreaterole, rolsuper FROM pg_roles WHERE rolname = current_user")).fetchone()
        if row is not None and row[1]:
            problems.append(f"{self._user} is a superuser: give the gateway a login of its own with CREATEROLE instead")
        elif row is None or not row[0]:
            problems.append(f'{self._user} may not create roles: ALTER ROLE "{self._user}" CREATEROLE')
        owners = await (
            await connection.execute(f"SELECT DISTINCT owner FROM ({_RELATIONS}) t WHERE NOT pg_has_role(owner, 'USAGE')")
        ).fetchall()
        for (owner,) in owners:
            problems.append(f'{self._user} can\'t grant on tables of {owner}: GRANT "{owner}" TO "{self._user}" WITH ADMIN OPTION')
        return problems


def _pattern(entry: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in entry.split("*")), re.DOTALL)

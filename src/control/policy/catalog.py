"""What the database holds, read through the gateway's own login: relations, columns, views, inheritance, functions.

One immutable ``Snapshot`` at a time; a refresh makes the next. Never add here: what any of it means for a policy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psycopg
from psycopg.pq import ExecStatus

from control.policy.behind import BEHIND, found_behind, found_routines, grouped
from control.policy.deparsed import LOCK_TIMEOUT, Deparsed
from control.policy.schema import Relation, Snapshot

__all__ = ["Catalog", "CatalogSource", "Relation", "Snapshot"]


class CatalogSource(Protocol):
    """Where the engine gets its snapshots; one per database."""

    @property
    def present(self) -> Snapshot | None:
        """The present snapshot, if there is one yet."""
        ...

    async def snapshot(self) -> Snapshot:
        """The present snapshot, read when there is none yet. Raises ``psycopg.Error`` when the server can't be asked."""
        ...

    async def function(self, oid: int) -> tuple[str, str] | None:
        """Schema and name of a function, or None. Raises ``psycopg.Error`` when the server can't be asked."""
        ...

    async def parameter_types(self, text: bytes, told: tuple[int, ...], paths: tuple[tuple[str, ...], ...]) -> tuple[int, ...] | None:
        """The type OIDs that the server gives a statement's parameters; None when that can't be known for certain."""
        ...

    async def refresh(self) -> Snapshot:
        """Read the catalog again."""
        ...

    async def rest(self) -> None:
        """Hold no connection open until the next refresh."""
        ...

    async def guards(self, oids: Sequence[int]) -> str:
        """A digest of what runs along with changes of these relations (rules, triggers, constraints, policies, defaults), of those
        that refer to them too, and of every function, operator, cast and domain that is not built in."""
        ...


_RELATIONS = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
       a.numbers, a.names,
       (SELECT r.oid::int8 FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename = '_RETURN' AND c.relkind IN ('v', 'm')
        AND n.nspname NOT IN ('pg_catalog', 'information_schema'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN (SELECT attrelid, array_agg(attnum::int4 ORDER BY attnum) AS numbers, array_agg(attname::text ORDER BY attnum) AS names
           FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped GROUP BY attrelid) a ON a.attrelid = c.oid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname <> 'pg_toast'
"""
_FUNCTIONS = """
SELECT n.nspname::text, p.proname::text, (p.provolatile = 'v' OR p.prosecdef) AND l.lanname NOT IN ('c', 'internal')
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
"""


_FUNCTION = """
SELECT n.nspname::text, p.proname::text
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = %s
"""
_FIRST_NORMAL_OID = 16384  # FirstNormalObjectId: what is below came with the server

# Changes with every change of what is read below: a changed row has another xmin. Cheap beside reading it all.
_FINGERPRINT = """
SELECT pg_catalog.current_setting('search_path'), pg_catalog.sum(pg_catalog.hashint8extended(parts.id, parts.xmin::text::int8)),
       pg_catalog.count(*)
FROM (SELECT oid::int8 AS id, xmin FROM pg_catalog.pg_class UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_namespace
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_proc WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_rewrite
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_trigger
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_constraint WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_attrdef
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_policy
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_operator WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_cast WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_type WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_opclass WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_amproc WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_amop WHERE oid >= 16384
      UNION ALL SELECT oid::int8, xmin FROM pg_catalog.pg_event_trigger
      UNION ALL SELECT aggfnoid::oid::int8, xmin FROM pg_catalog.pg_aggregate WHERE aggfnoid::oid >= 16384
      UNION ALL SELECT inhrelid::int8 * 31 + inhparent::int8, xmin FROM pg_catalog.pg_inherits
      UNION ALL SELECT setdatabase::int8 * 31 + setrole::int8, xmin FROM pg_catalog.pg_db_role_setting
      UNION ALL SELECT attrelid::int8 * 4096 + attnum, xmin FROM pg_catalog.pg_attribute WHERE attrelid >= 16384) parts
"""


_MOST_TYPED = 1024  # statements whose parameters' types are remembered
# All that may change what a statement does while the relations that it names stay as they are.
_GUARDS = """
WITH RECURSIVE meant(oid) AS (
  SELECT pg_catalog.unnest(%s::oid[])
  UNION SELECT c.conrelid FROM pg_catalog.pg_constraint c JOIN meant m ON c.confrelid = m.oid AND c.contype = 'f'
)
SELECT pg_catalog.md5(every) FROM (SELECT coalesce(pg_catalog.string_agg(part, ',' ORDER BY part), '') AS every
FROM (
  SELECT 'trigger ' || t.oid || ' ' || t.xmin AS part FROM pg_catalog.pg_trigger t JOIN meant m ON t.tgrelid = m.oid
  UNION ALL SELECT 'rule ' || r.oid || ' ' || r.xmin FROM pg_catalog.pg_rewrite r JOIN meant m ON r.ev_class = m.oid
  UNION ALL SELECT 'constraint ' || c.oid || ' ' || c.xmin FROM pg_catalog.pg_constraint c
    WHERE c.contypid <> 0 OR c.conrelid IN (SELECT oid FROM meant) OR c.confrelid IN (SELECT oid FROM meant)
  UNION ALL SELECT 'policy ' || p.oid || ' ' || p.xmin FROM pg_catalog.pg_policy p JOIN meant m ON p.polrelid = m.oid
  UNION ALL SELECT 'default ' || d.oid || ' ' || d.xmin FROM pg_catalog.pg_attrdef d JOIN meant m ON d.adrelid = m.oid
  UNION ALL SELECT 'table ' || c.oid || ' ' || c.relrowsecurity || c.relforcerowsecurity || c.relkind::text || c.relhasrules || c.relowner
    FROM pg_catalog.pg_class c JOIN meant m USING (oid)
  UNION ALL SELECT 'function ' || oid || ' ' || xmin FROM pg_catalog.pg_proc WHERE oid >= 16384
  UNION ALL SELECT 'operator ' || oid || ' ' || xmin FROM pg_catalog.pg_operator WHERE oid >= 16384
  UNION ALL SELECT 'cast ' || oid || ' ' || xmin FROM pg_catalog.pg_cast WHERE oid >= 16384
  UNION ALL SELECT 'event ' || oid || ' ' || xmin FROM pg_catalog.pg_event_trigger
) parts) told
"""


class Catalog:
    """Reads one database's catalog with psycopg. ``parameters`` are libpq connection parameters (host, port, user …).

    Between reads one connection stays open, on which a refresh asks whether anything has changed at all.
    """

    def __init__(self, parameters: Mapping[str, str | int]) -> None:
        self._parameters = dict(parameters)
        self._snapshot: Snapshot | None = None
        self._lock = asyncio.Lock()
        self._deparsed = Deparsed()
        self._generation = 0
        self._built_in: dict[int, tuple[str, str]] = {}
        self._typed: dict[tuple[object, ...], tuple[int, ...] | None] = {}
        self._watch: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._fingerprint: tuple[Any, ...] | None = None

    async def rest(self) -> None:
        """See ``CatalogSource``."""
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.close()

    @property
    def present(self) -> Snapshot | None:
        """See ``CatalogSource``."""
        return self._snapshot

    async def snapshot(self) -> Snapshot:
        """See ``CatalogSource``."""
        return self._snapshot if self._snapshot is not None else await self.refresh()

    async def function(self, oid: int) -> tuple[str, str] | None:
        """See ``CatalogSource``. Built-in ones are remembered; others may be renamed."""
        if oid in self._built_in:
            return self._built_in[oid]
        async with await self._connect() as connection:
            row = await (await connection.execute(_FUNCTION, (oid,))).fetchone()
        if row is None:
            return None
        if oid < _FIRST_NORMAL_OID:
            self._built_in[oid] = (row[0], row[1])
        return row[0], row[1]

    async def parameter_types(self, text: bytes, told: tuple[int, ...], paths: tuple[tuple[str, ...], ...]) -> tuple[int, ...] | None:
        """See ``CatalogSource``. The statement is parsed by the server on a connection of ours, and not run."""
        if len(paths) != 1:
            return None
        key = (self._snapshot.version if self._snapshot is not None else 0, text, told, paths)
        if key not in self._typed:
            if len(self._typed) >= _MOST_TYPED:
                self._typed.clear()
            self._typed[key] = await asyncio.to_thread(self._parameter_types, text, told, paths[0])
        return self._typed[key]

    def _parameter_types(self, text: bytes, told: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...] | None:
        parameters: dict[str, Any] = {"connect_timeout": 10, "application_name": "pgleash catalog", **self._parameters}
        try:
            with psycopg.connect(autocommit=True, **parameters) as connection:
                quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in path)
                connection.execute("SELECT pg_catalog.set_config('search_path', %s, false)", (quoted,))
                connection.execute("SET statement_timeout = 5000")
                made = connection.pgconn.prepare(b"", text, told or None)
                if made.status != ExecStatus.COMMAND_OK:
                    return None
                described = connection.pgconn.describe_prepared(b"")
                return tuple(described.param_type(index) for index in range(described.nparams))
        except (psycopg.Error, ValueError):
            return None

    async def refresh(self) -> Snapshot:
        """See ``CatalogSource``. Callers that wait while one read runs get a read that began after they asked."""
        asked = self._generation
        async with self._lock:
            if self._generation > asked + 1 and self._snapshot is not None:
                return self._snapshot
            self._generation += 1
            fingerprint = await self._look()
            if self._snapshot is None or fingerprint is None or fingerprint != self._fingerprint:
                read = await self._read()
                if self._snapshot is None or read.version != self._snapshot.version:  # else: only privileges have changed
                    self._snapshot = read
                self._fingerprint = fingerprint
            return self._snapshot

    async def guards(self, oids: Sequence[int]) -> str:
        """See ``CatalogSource``. Raises ``psycopg.Error`` when the server can't be asked."""
        async with self._lock:
            for attempt in (True, False):
                try:
                    if self._watch is None or self._watch.closed:
                        self._watch = await self._connect()
                    row = await (await self._watch.execute(_GUARDS, (list(oids),))).fetchone()
                    return str(row[0]) if row is not None else ""
                except psycopg.OperationalError:
                    await self.rest()
                    if not attempt:
                        raise
        raise AssertionError

    async def _look(self) -> tuple[Any, ...] | None:
        """The fingerprint now; None: the connection was lost, so nothing is known."""
        try:
            if self._watch is None or self._watch.closed:
                self._watch = await self._connect()
            return await (await self._watch.execute(_FINGERPRINT)).fetchone()
        except psycopg.OperationalError:
            await self.rest()
            return None

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        parameters: dict[str, str | int] = {"connect_timeout": 10, "application_name": "pgleash catalog", **self._parameters}
        return await psycopg.AsyncConnection.connect(autocommit=True, **parameters)  # type: ignore[arg-type]

    async def _read(self) -> Snapshot:
        async with await self._connect() as connection:
            shown = await (await connection.execute("SHOW search_path")).fetchone()
            await connection.execute(f"SET search_path = ''; SET lock_timeout = {LOCK_TIMEOUT}")
            relations = await (await connection.execute(_RELATIONS)).fetchall()
            functions = await (await connection.execute(_FUNCTIONS)).fetchall()
            schemas = await (await connection.execute("SELECT nspname::text FROM pg_namespace")).fetchall()
            inherits = await (await connection.execute("SELECT inhrelid::int8, inhparent::int8 FROM pg_inherits")).fetchall()
            behind = {name: await (await connection.execute(query)).fetchall() for name, query in BEHIND.items()}
            texts = await self._deparsed.read(connection)
        by_oid = {
            oid: Relation(oid, schema, name, kind, dict(zip(numbers or (), columns or (), strict=True)), texts["views"].get(view, ""))
            for oid, schema, name, kind, numbers, columns, view in relations
        }
        names = frozenset(f"{schema}.{name}" for schema, name, _ in functions)
        opaque = frozenset(f"{schema}.{name}" for schema, name, unknown in functions if unknown)
        every = (sorted(relations), sorted(functions), sorted(inherits), sorted(schemas), shown, behind, texts)
        digest = hashlib.sha256(repr(every).encode()).digest()
        return Snapshot(
            by_oid,
            {(relation.schema, relation.name): relation for relation in by_oid.values()},
            names,
            opaque,
            _kin(inherits),
            str(shown[0]) if shown else '"$user", public',
            frozenset(name for (name,) in schemas),
            int.from_bytes(digest[:8], "big"),
            found_behind(inherits, behind, texts["rules"]),
            found_routines(behind, texts["bodies"]),
            grouped(behind["operators"]),
            grouped(behind["casts"]),
            grouped(behind["typed"]),
            frozenset(oid for (oid,) in behind["on_ddl"]),
            frozenset(name for (name,) in behind["volatile"]),
        )


def _kin(pairs: list[tuple[int, int]]) -> dict[int, frozenset[int]]:
    groups: dict[int, set[int]] = {}
    for child, parent in pairs:
        group = groups.setdefault(child, {child}) | groups.setdefault(parent, {parent})
        for member in group:
            groups[member] = group
    return {oid: frozenset(group) for oid, group in groups.items()}

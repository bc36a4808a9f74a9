"""What the database holds, read through the gateway's own login: relations, columns, views, inheritance, functions.

One immutable ``Snapshot`` at a time; a refresh makes the next. Never add here: what any of it means for a policy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import psycopg

__all__ = ["Catalog", "CatalogSource", "Relation", "Snapshot"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One table or view. ``columns`` is attribute number to name, in order; ``definition`` the query of a view, else empty."""

    oid: int
    schema: str
    name: str
    kind: str
    columns: Mapping[int, str]
    definition: str = ""

    @property
    def qualified(self) -> str:
        """``schema.name``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The catalog at one moment. ``version`` changes with its contents.

    ``functions``: names of functions outside pg_catalog; ``opaque``: those of them that may do anything (volatile or
    SECURITY DEFINER, not in C). ``schemas``: those there are. ``kin``: tables connected by inheritance or partitioning, by OID.
    """

    relations: Mapping[int, Relation] = field(default_factory=dict)
    by_name: Mapping[tuple[str, str], Relation] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    opaque: frozenset[str] = frozenset()
    kin: Mapping[int, frozenset[int]] = field(default_factory=dict)
    search_path: str = '"$user", public'
    schemas: frozenset[str] = frozenset({"public"})
    version: int = 0

    def resolve(self, schema: str, name: str, path: tuple[str, ...]) -> Relation | None:
        """The relation that a name means under ``path``, or None."""
        if schema:
            return self.by_name.get((schema, name))
        for place in path if "pg_catalog" in path else ("pg_catalog", *path):
            if (found := self.by_name.get((place, name))) is not None:
                return found
        return None


class CatalogSource(Protocol):
    """Where the engine gets its snapshots; one per database."""

    async def snapshot(self) -> Snapshot:
        """The present snapshot, read when there is none yet. Raises ``psycopg.Error`` when the server can't be asked."""
        ...

    async def refresh(self) -> Snapshot:
        """Read the catalog again."""
        ...


_RELATIONS = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
       a.numbers, a.names,
       CASE WHEN c.relkind IN ('v', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') THEN pg_get_viewdef(c.oid) ELSE '' END
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


class Catalog:
    """Reads one database's catalog with psycopg. ``parameters`` are libpq connection parameters (host, port, user …)."""

    def __init__(self, parameters: Mapping[str, str | int]) -> None:
        self._parameters = dict(parameters)
        self._snapshot: Snapshot | None = None
        self._lock = asyncio.Lock()
        self._generation = 0

    async def snapshot(self) -> Snapshot:
        """See ``CatalogSource``."""
        return self._snapshot if self._snapshot is not None else await self.refresh()

    async def refresh(self) -> Snapshot:
        """See ``CatalogSource``. Callers that wait while one read runs get a read that began after they asked."""
        asked = self._generation
        async with self._lock:
            if self._generation > asked + 1 and self._snapshot is not None:
                return self._snapshot
            self._generation += 1
            self._snapshot = await self._read()
            return self._snapshot

    async def _read(self) -> Snapshot:
        parameters: dict[str, str | int] = {"connect_timeout": 10, "application_name": "pgleash catalog", **self._parameters}
        async with await psycopg.AsyncConnection.connect(autocommit=True, **parameters) as connection:  # type: ignore[arg-type]
            shown = await (await connection.execute("SHOW search_path")).fetchone()
            await connection.execute("SET search_path = ''")
            relations = await (await connection.execute(_RELATIONS)).fetchall()
            functions = await (await connection.execute(_FUNCTIONS)).fetchall()
            schemas = await (await connection.execute("SELECT nspname::text FROM pg_namespace")).fetchall()
            inherits = await (await connection.execute("SELECT inhrelid::int8, inhparent::int8 FROM pg_inherits")).fetchall()
        by_oid = {
            row[0]: Relation(row[0], row[1], row[2], row[3], dict(zip(row[4] or (), row[5] or (), strict=True)), row[6] or "")
            for row in relations
        }
        names = frozenset(f"{schema}.{name}" for schema, name, _ in functions)
        opaque = frozenset(f"{schema}.{name}" for schema, name, unknown in functions if unknown)
        digest = hashlib.sha256(repr((sorted(relations), sorted(functions), sorted(inherits), sorted(schemas), shown)).encode()).digest()
        return Snapshot(
            by_oid,
            {(relation.schema, relation.name): relation for relation in by_oid.values()},
            names,
            opaque,
            _kin(inherits),
            str(shown[0]) if shown else '"$user", public',
            frozenset(name for (name,) in schemas),
            int.from_bytes(digest[:8], "big"),
        )


def _kin(pairs: list[tuple[int, int]]) -> dict[int, frozenset[int]]:
    groups: dict[int, set[int]] = {}
    for child, parent in pairs:
        group = groups.setdefault(child, {child}) | groups.setdefault(parent, {parent})
        for member in group:
            groups[member] = group
    return {oid: frozenset(group) for oid, group in groups.items()}

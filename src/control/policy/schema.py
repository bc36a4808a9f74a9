"""What a database holds, as values: relations, columns, views, what happens behind a relation, functions.

Never add here: how it is read (catalog.py), or what any of it means for a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Behind", "ForeignKey", "Relation", "Routine", "Snapshot", "Trigger"]


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
class Routine:
    """A function, procedure or aggregate outside pg_catalog. ``definition``: its CREATE statement, if its language is readable.

    ``volatility``: i, s or v. ``extension``: whose member it is. ``path``: its own search_path. ``calls``: OIDs of an
    aggregate's, and of what its arguments' and result's types run.
    """

    oid: int
    schema: str
    name: str
    language: str
    volatility: str = "v"
    definer: bool = False
    definition: str = ""
    extension: str = ""
    path: str | None = None
    calls: frozenset[int] = frozenset()

    @property
    def qualified(self) -> str:
        """``schema.name``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger that is on: its name, the verbs that fire it, the function's OID (and its name where that is built in).

    ``columns``: of ``UPDATE OF``; none: every update fires it. ``before``: it may change what is stored.
    """

    name: str
    verbs: frozenset[str]
    routine: int
    built_in: str = ""
    columns: frozenset[str] = frozenset()
    before: bool = False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """What refers to a table: the referring table's OID; ``on_delete``, ``on_update``: a, r, c, n, d as in pg_constraint.

    ``columns``: the names of the columns referred to.
    """

    referring: int
    on_delete: str
    on_update: str
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Behind:
    """What happens behind a relation. ``calls``: functions of its defaults, checks, indexes and rules when it is written, by OID.

    ``uses``: functions that any use of it may run: those of its policies, of virtual columns, and of its columns' types (casts
    that nobody writes, comparisons). ``looks``: relations that its policies read. ``dependents``: relations that ``DROP …
    CASCADE`` changes or takes along. ``generated``: the columns that each generated column is computed from.
    """

    parents: frozenset[int] = frozenset()
    children: frozenset[int] = frozenset()
    triggers: tuple[Trigger, ...] = ()
    rules: tuple[tuple[str, str], ...] = ()
    referred: tuple[ForeignKey, ...] = ()
    refers: frozenset[int] = frozenset()
    calls: frozenset[int] = frozenset()
    not_null: frozenset[str] = frozenset()
    uses: frozenset[int] = frozenset()
    looks: frozenset[int] = frozenset()
    dependents: frozenset[int] = frozenset()
    generated: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The catalog at one moment. ``version`` changes with its contents.

    ``functions``: names of functions outside pg_catalog; ``opaque``: those of them that are volatile or SECURITY DEFINER, not
    in C. ``schemas``: those there are. ``kin``: tables connected by inheritance or partitioning, by OID. ``behind``: what
    happens behind a relation. ``operators`` and ``casts``: the functions of those that are not built in, by operator and by type (of a
    domain: of its checks). ``typed``: relations with columns of a type, by its name. ``on_ddl``: functions of event triggers.
    ``volatile``: names of PostgreSQL's own functions that may do more than compute.
    """

    relations: Mapping[int, Relation] = field(default_factory=dict)
    by_name: Mapping[tuple[str, str], Relation] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    opaque: frozenset[str] = frozenset()
    kin: Mapping[int, frozenset[int]] = field(default_factory=dict)
    search_path: str = '"$user", public'
    schemas: frozenset[str] = frozenset({"public"})
    version: int = 0
    behind: Mapping[int, Behind] = field(default_factory=dict)
    routines: Mapping[int, Routine] = field(default_factory=dict)
    operators: Mapping[str, frozenset[int]] = field(default_factory=dict)
    casts: Mapping[str, frozenset[int]] = field(default_factory=dict)
    typed: Mapping[str, frozenset[int]] = field(default_factory=dict)
    on_ddl: frozenset[int] = frozenset()
    volatile: frozenset[str] = frozenset()

    def resolve(self, schema: str, name: str, path: tuple[str, ...]) -> Relation | None:
        """The relation that a name means under ``path``, or None."""
        if schema:
            return self.by_name.get((schema, name))
        for place in path if "pg_catalog" in path else ("pg_catalog", *path):
            if (found := self.by_name.get((place, name))) is not None:
                return found
        return None

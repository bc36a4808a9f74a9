"""What a statement is, as values: kinds, tables with their access, functions, settings, names.

Never add here: reading of text (reading.py), the catalog, or an opinion of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from control.policy.narrowing import Condition

__all__ = ["TOLD_KINDS", "Access", "Facts", "Name", "Names", "Node", "Refusal", "Setting", "Unreadable", "explicit_kinds"]

Node = dict[str, Any]


class Names(Protocol):
    """What names stand for: ``(space, name)`` to facts, where space is statement, cursor (of DECLARE) or portal (of Bind)."""

    def get(self, key: tuple[str, str], default: tuple[Facts, ...] = ..., /) -> tuple[Facts, ...]: ...


class Unreadable(Exception):
    """The text can't be understood, so it is not forwarded: SQLSTATE and what the client is told.

    ``position`` is the character, from 1, at which PostgreSQL's grammar stopped: then the message is PostgreSQL's own too.
    """

    def __init__(self, sqlstate: str, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.position = position


@dataclass(frozen=True, slots=True)
class Access:
    """One table as the statement names it (``schema`` empty when unqualified) and what is done to it.

    ``verb``: select, insert, update, delete, truncate or ddl. ``wide``: an update or delete that no WHERE narrows, as far as
    that can be told without the catalog; with it, every one of ``conditions`` is asked again (``is_wide`` in analysis.py).
    ``temporary``: the statement creates it as a temporary object. ``through``: reached by looking through a view.
    """

    schema: str
    name: str
    verb: str
    wide: bool = False
    temporary: bool = False
    through: bool = False
    conditions: tuple[Condition, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """A change of a run-time setting. ``values`` is None for RESET and DEFAULT; ``local`` ends with the transaction."""

    name: str
    values: tuple[str, ...] | None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that no general rule can allow, with what the client is told.

    ``function``: an allow rule may lift it by naming this function in full in ``when.functions``.
    """

    message: str
    hint: str = ""
    sqlstate: str = "42501"
    function: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the statement gives or takes away: ``space`` is statement or cursor; no ``facts`` means dropped, of all
    names if ``name`` is empty. Also what decides which cursors live on: savepoint, release, rollback_to, commit, rollback.
    """

    space: str
    name: str
    facts: Facts | None = None
    text: bytes | None = None
    holds: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """One statement. ``kinds[0]`` is the outermost kind, the rest what it contains.

    ``tree`` is what lineage reads (one node, JSON form); ``outputs`` whether its columns are the statement's own result.
    ``executes`` is False where the text is only kept for later (PREPARE). ``inner`` are the facts of what EXECUTE, FETCH,
    PREPARE or DECLARE stand for (several where the session can't tell which).
    """

    kinds: tuple[str, ...]
    accesses: tuple[Access, ...] = ()
    functions: frozenset[str] = frozenset()
    settings: tuple[Setting, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    names: tuple[Name, ...] = ()
    tree: Node | None = field(default=None, hash=False)
    rows: bool = False
    outputs: bool = False
    executes: bool = True
    copies_out: bool = False
    unknown_name: str = ""
    inner: tuple[Facts, ...] = ()

    @property
    def kind(self) -> str:
        """The outermost kind."""
        return self.kinds[0]

    @property
    def verbs(self) -> frozenset[str]:
        """What is done: the tables' verbs, ``ddl`` for other definitions, ``transaction`` or ``session``."""
        verbs = {access.verb for access in self.accesses}
        for kind in self.kinds:
            if kind in _TRANSACTION or kind in _TWO_PHASE:
                verbs.add("transaction")
            elif kind in _SESSION:
                verbs.add("session")
            elif kind in ("select", "insert", "update", "delete", "truncate"):
                verbs.add(kind)
            elif kind not in _DML and kind not in _LOOKED_THROUGH:
                verbs.add("ddl")
        return frozenset(verbs)

    @property
    def wide(self) -> bool:
        """Whether an update or delete in it has no WHERE that narrows."""
        return any(access.wide for access in self.accesses)


_TRANSACTION = frozenset({"begin", "commit", "rollback", "savepoint", "release", "rollback_to", "set_transaction", "set_constraints"})
# they outlive the session: a rule must name them
_TWO_PHASE = frozenset({"prepare_transaction", "commit_prepared", "rollback_prepared"})
_SESSION = frozenset({"set", "reset", "show", "deallocate", "fetch", "move", "close", "listen", "unlisten", "notify", "discard", "empty"})
_DML = frozenset({"select", "insert", "update", "delete", "merge", "truncate", "copy_to", "copy_from", "lock"})
_LOOKED_THROUGH = frozenset({"explain", "prepare", "execute", "declare", "call", "do"})
_ORDINARY_DDL = frozenset(
    {
        "create_table", "create_table_as", "create_view", "create_materialized_view", "create_index", "create_sequence", "create_schema",
        "create_type", "create_domain", "create_enum", "create_statistics", "alter_table", "alter_sequence", "alter_type", "alter_enum",
        "alter_domain", "rename", "alter_object_schema", "comment", "drop_table", "drop_view", "drop_materialized_view", "drop_index",
        "drop_sequence", "drop_schema", "drop_type", "drop_domain", "drop_statistics", "drop_constraint", "refresh_materialized_view",
        "vacuum", "analyze", "reindex", "cluster", "select_into", "alter_statistics",
    }
)  # fmt: skip


# those of them that the statement's node in the grammar does not name
TOLD_KINDS = _TRANSACTION | _TWO_PHASE | _SESSION | _DML | _LOOKED_THROUGH | _ORDINARY_DDL | {"set_transaction", "revoke"}


def explicit_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Those kinds that no general rule covers: an allow or hold rule must name them in ``when.kinds``."""
    ordinary = (_TRANSACTION, _SESSION, _DML, _LOOKED_THROUGH - {"do", "call"}, _ORDINARY_DDL)
    return tuple(kind for kind in kinds if not any(kind in group for group in ordinary))

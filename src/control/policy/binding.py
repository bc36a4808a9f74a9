"""What the approval of a held statement is bound to: its text in canonical form, and everything that its meaning depends on.

Two texts with the same canonical form are the same to PostgreSQL: only comments and white space between tokens differ. Never
add here: who approves, or how long anything stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pglast import parser

from control.policy.catalog import CatalogSource, Snapshot
from control.policy.decide import Touch
from control.policy.facts import Facts
from control.policy.standing import configured
from pgwire.ports import Binding

__all__ = ["SessionSettings", "bound"]

_CONSTANTS = frozenset({"ICONST", "FCONST", "SCONST", "BCONST", "XCONST", "USCONST"})
_COMMENTS = frozenset({"SQL_COMMENT", "C_COMMENT"})
# They change how long something may take, or how it is shown, and not what is done.
_HARMLESS = frozenset(
    {
        "application_name", "client_min_messages", "client_encoding", "statement_timeout", "lock_timeout", "transaction_timeout",
        "idle_in_transaction_session_timeout", "idle_session_timeout", "extra_float_digits", "bytea_output", "search_path", "jit",
        "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "log_min_messages",
    }
)  # fmt: skip
_NONE: Mapping[str, str] = MappingProxyType({})
_OF_RELATIONS = ("relations", "by_name", "kin", "schemas", "version")
_REMEMBERED = 8
_rests: dict[int, str] = {}  # the digest of what is not about relations, by the snapshot's version


async def bound(
    text: bytes,
    facts: tuple[Facts, ...],
    touched: tuple[Touch, ...],
    source: CatalogSource,
    snapshot: Snapshot,
    paths: tuple[tuple[str, ...], ...],
    standing: Mapping[str, str],
) -> Binding:
    """What a hold of ``text`` is bound to. ``standing`` is what the session knows of it; the catalog's part is added.

    Raises ``psycopg.Error`` when the server can't be asked.
    """
    canonical, shape, constants = _canonical(text)
    catalog, oids = _catalog(facts, touched, snapshot, paths)
    guards = await source.guards(oids)
    catalog = hashlib.sha256(f"{catalog} {guards}".encode()).hexdigest()[:16]
    return Binding(canonical, shape, constants, {**standing, "catalog": catalog})


def _canonical(text: bytes) -> tuple[str, str, tuple[str, ...]]:
    whole = text.decode("utf-8", "backslashreplace")
    try:
        tokens = parser.scan(whole)  # offsets in characters
    except parser.ParseError:
        return whole, whole, ()
    kept: list[str] = []
    shape: list[str] = []
    constants: list[str] = []
    for token in tokens:
        if token.name in _COMMENTS:
            continue
        piece = whole[token.start : token.end + 1]
        if token.kind != "NO_KEYWORD" and piece.isascii() and piece[:1].isalpha():
            piece = piece.lower()
        kept.append(piece)
        shape.append("?" if token.name in _CONSTANTS else piece)
        if token.name in _CONSTANTS:
            constants.append(piece)
    while kept and kept[-1] == ";":
        kept.pop()
        shape.pop()
    return " ".join(kept), " ".join(shape), tuple(constants)


def _catalog(
    facts: tuple[Facts, ...], touched: tuple[Touch, ...], snapshot: Snapshot, paths: tuple[tuple[str, ...], ...]
) -> tuple[str, list[int]]:
    """A digest of the part of the catalog that matters: the relations that are meant, and everything that is not a
    relation; and the OIDs of the former.

    Another table may come and go without a word; a name that now means another table, or a table that has another shape, not.
    """
    meant: dict[str, Any] = {}
    oids: set[int] = set()

    def add(name: str, relation: Any) -> None:
        meant[name] = None if relation is None else _plain(relation)
        if relation is not None:
            oids.update({relation.oid}, snapshot.kin.get(relation.oid, ()))

    for touch in touched:
        schema, _, name = touch.table.partition(".")
        add(touch.table, snapshot.by_name.get((schema, name)))
    for each in facts:
        for access in each.accesses:
            for path in paths:
                add(f"{access.schema}.{access.name} in {path}", snapshot.resolve(access.schema, access.name, path))
    for oid in sorted(oids):
        meant[f"oid {oid}"] = _plain(snapshot.relations[oid]) if oid in snapshot.relations else None
    of_relations = {
        field.name: [(key, _plain(value[key])) for key in sorted(oids) if key in value]
        for field in dataclasses.fields(snapshot)
        if field.name not in _OF_RELATIONS and _by_relation(value := getattr(snapshot, field.name), snapshot)
    }
    parts = (sorted(meant.items()), sorted(of_relations.items()), _rest(snapshot))
    return hashlib.sha256(repr(parts).encode()).hexdigest(), sorted(oids)


def _by_relation(value: Any, snapshot: Snapshot) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(key, int) and key in snapshot.relations for key in value)


def _rest(snapshot: Snapshot) -> str:
    known = _rests.get(snapshot.version) if snapshot.version else None
    if known is None:
        parts = [
            (field.name, _plain(value))
            for field in dataclasses.fields(snapshot)
            if field.name not in _OF_RELATIONS and not _by_relation(value := getattr(snapshot, field.name), snapshot)
        ]
        known = hashlib.sha256(repr(parts).encode()).hexdigest()
        while len(_rests) >= _REMEMBERED:
            del _rests[next(iter(_rests))]
        _rests[snapshot.version] = known
    return known


def _plain(value: Any) -> Any:
    """A value whose ``repr`` is the same whenever the value is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, _plain(getattr(value, field.name))) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return sorted(((repr(_plain(key)), _plain(each)) for key, each in value.items()), key=lambda pair: pair[0])
    if isinstance(value, frozenset | set):
        return sorted(repr(_plain(each)) for each in value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _may_configure(facts: Facts) -> Iterator[str]:
    """The names of the settings that calls of set_config may change; an empty one: it can't be told."""
    yield from (name for name, _ in configured(facts.tree))
    if facts.tree is None:
        yield ""


class SessionSettings:
    """The settings that a session has changed and that can change what a statement does. What is not sure matches nothing."""

    __slots__ = ("_known", "_unsettled")

    def __init__(self, began: Mapping[str, str]) -> None:
        """``began``: what the session began with."""
        known = {name.lower(): value for name, value in began.items() if name.lower() not in _HARMLESS}
        self._known: Mapping[str, str] = known or _NONE  # idle sessions keep none of their own
        self._unsettled: tuple[str, ...] = ()  # changed since the transaction began

    def follow(self, facts: Facts, status: str, succeeded: bool) -> None:
        """A statement has ended: what it set stands, or it is not known any more what does."""
        if facts.settings:
            self._set(facts, status, succeeded)
        elif "set_config" in facts.functions:
            self._doubt({name or "set_config" for name in _may_configure(facts)} - _HARMLESS)
        if facts.kind in ("commit", "rollback", "rollback_to", "prepare_transaction"):
            local = {name for name in self._unsettled if self._known.get(name, "").endswith(" local")}
            self._doubt(local if facts.kind == "commit" and succeeded and status == "T" else self._unsettled)
            if facts.kind != "rollback_to":
                self._unsettled = ()

    def _set(self, facts: Facts, status: str, succeeded: bool) -> None:
        known = dict(self._known)
        for setting in facts.settings:
            name = setting.name.lower()
            if name in _HARMLESS:
                continue
            if name == "*" and setting.values is None and succeeded and status == "I":
                known.clear()
            elif name == "*" or not succeeded:
                known.update(dict.fromkeys(known if name == "*" else (name,), f"not known {id(self)}"))
            elif setting.values is None and status == "I":
                known.pop(name, None)
            else:
                known[name] = ",".join(setting.values or ("default",)) + (" local" if setting.local else "")
            if status != "I":
                self._unsettled = (*self._unsettled, name)
        self._known = known

    def _doubt(self, names: Any) -> None:
        if names:
            self._known = {**self._known, **dict.fromkeys(names, f"not known {id(self)}")}

    def told(self) -> str:
        """All of them as one text."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self._known.items()))

"""Some of the rows that an open transaction has changed, as they were and as they are, with nothing labelled in the clear.

The new versions are those that the transaction itself made (xmin); the old ones are still seen by a second connection, with the
transaction as what ends them (xmax). Blocking. Never add here: anything that writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq, sql

__all__ = ["Row", "Sampling", "limit", "sampled"]

_MOST_ROWS = 10
_MOST_COLUMNS = 100
_LONGEST = 200  # characters of a value
_LARGEST = 4000  # bytes of a value that is fetched
_KEY = """
SELECT a.attname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = %s::pg_catalog.regclass AND i.indisprimary
"""

Connection = psycopg.Connection[tuple[Any, ...]]
Values = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row by column; None: there was none before, or is none after."""

    before: Values | None
    after: Values | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """What to look at: the table that a statement of ``kind`` has written, its columns, each with its label or an empty text.

    ``computed``: labels of what may have flowed into the values that were written. ``deadline``: in monotonic seconds.
    """

    kind: str
    schema: str
    table: str
    columns: tuple[tuple[str, str], ...]
    computed: tuple[str, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class _Found:
    # one version of a row: its key (None: the table has none), its values, None where they are labelled
    key: tuple[bytes | None, ...] | None
    values: Values


def limit(connection: Connection, deadline: float) -> None:
    """Let the next statement run until ``deadline`` (monotonic seconds) at most."""
    left = max(1, round((deadline - time.monotonic()) * 1000))
    connection.execute("SELECT pg_catalog.set_config('statement_timeout', %s, true)", (str(left),))


def sampled(connection: Connection, beside: Connection, wanted: Sampling) -> tuple[Row, ...]:
    """Ten rows or so. ``connection`` has the open transaction, ``beside`` none that has written. Raises ``psycopg.Error``."""
    for each in (connection, beside):
        each.execute("SELECT pg_catalog.set_config('search_path', '', true)")
        # Row security's expressions would run with the gateway's own privileges: an error instead.
        each.execute("SET LOCAL row_security = off")
    name = sql.Identifier(wanted.schema, wanted.table).as_string(connection)
    key = [str(row[0]) for row in connection.execute(_KEY, (name,)).fetchall()]
    row = connection.execute("SELECT pg_catalog.pg_current_xact_id()::pg_catalog.xid::text").fetchone()
    transaction = str(row[0]) if row is not None else "0"
    after = _versions(connection, wanted, key, f"t.xmin = '{transaction}'::xid") if wanted.kind != "delete" else []
    pairs: list[tuple[_Found | None, _Found | None]] = []
    for version in after:
        pairs.append((_earlier(beside, wanted, key, version, transaction), version))
    if (wanted.kind != "insert" and any(before is None for before, _ in pairs)) or not pairs:
        known = {before.key for before, _ in pairs if before is not None}
        others = _versions(beside, wanted, key, f"t.xmax = '{transaction}'::xid")
        pairs += [(each, None) for each in others if each.key is None or each.key not in known]
    return tuple(Row(_shown(wanted, before, None), _shown(wanted, after, before, True)) for before, after in pairs[: 2 * _MOST_ROWS])


def _earlier(beside: Connection, wanted: Sampling, key: Sequence[str], version: _Found, transaction: str) -> _Found | None:
    if version.key is None:
        return None
    same = " AND ".join(f"t.{_quoted(name)} = ${index}" for index, name in enumerate(key, 1))
    found = _versions(beside, wanted, key, f"t.xmax = '{transaction}'::xid AND {same}", version.key)
    return found[0] if found else None


def _versions(
    connection: Connection, wanted: Sampling, key: Sequence[str], condition: str, values: Sequence[bytes | None] = ()
) -> list[_Found]:
    columns = [name for name, label in wanted.columns[:_MOST_COLUMNS] if not label]
    parts = [f"t.{_quoted(name)}" for name in key]
    for name in columns:
        size = f"pg_catalog.pg_column_size(t.{_quoted(name)})"
        # As the type shows itself: a cast to text might be somebody's own function.
        shown = f"pg_catalog.left(pg_catalog.format('%s', t.{_quoted(name)}), {_LONGEST + 1})"
        parts += [f"CASE WHEN {size} <= {_LARGEST} THEN {shown} END", size]
    query = f"SELECT {', '.join(parts)} FROM {_quoted(wanted.schema)}.{_quoted(wanted.table)} t WHERE {condition} LIMIT {_MOST_ROWS}"
    limit(connection, wanted.deadline)
    result = connection.pgconn.exec_params(query.encode(), list(values))
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    found = []
    for row in range(result.ntuples):
        told: dict[str, str | None] = {}
        for place, name in enumerate(columns):
            at = len(key) + 2 * place
            told[name] = _text(result.get_value(row, at), result.get_value(row, at + 1))
        found.append(_Found(tuple(result.get_value(row, place) for place in range(len(key))) if key else None, told))
    return found


def _text(value: bytes | None, size: bytes | None) -> str | None:
    if value is None:
        return None if size is None else f"(too long to be shown: {size.decode()} bytes)"
    text = value.decode("utf-8", "replace")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _shown(wanted: Sampling, version: _Found | None, before: _Found | None, written: bool = False) -> Values | None:
    if version is None:
        return None
    told: dict[str, str | None] = {}
    for name, label in wanted.columns[:_MOST_COLUMNS]:
        if label:
            told[name] = f"(masked: {label})"
        elif written and wanted.computed and (before is None or before.values[name] != version.values[name]):
            told[name] = f"(masked: may come from {', '.join(wanted.computed)})"
        else:
            told[name] = version.values[name]
    return told


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

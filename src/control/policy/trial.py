"""Whether all that a held write does ends with a rollback, and what may be shown of the rows that it changes.

Sequences, notifications, other servers, files, session locks, and everything whose effects are not known do not go back with a
transaction, so a write that may reach them is not tried. Read in the catalog as it is now, by functions' bodies and by the
expressions of defaults, checks, policies, rules and triggers. Never add here: what executes anything.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pglast import parser

from control.policy.effects import Effects, Path, Reach
from control.policy.engine import PolicyEngine
from control.policy.facts import Facts, Unreadable
from control.policy.labels import labels_of_column
from control.policy.lineage import UNKNOWN, trace
from control.policy.reading import read_facts
from control.policy.rules import Policy
from control.policy.schema import Relation, Snapshot

__all__ = ["Fetch", "Trial", "Trials"]

Fetch = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
_WRITES = {"insert": "InsertStmt", "update": "UpdateStmt", "delete": "DeleteStmt", "merge": "MergeStmt"}
_PLAIN_KINDS = frozenset({*_WRITES, "select", "values"})
_SYSTEM = ("pg_catalog", "information_schema", "pg_toast")
_ROUNDS = 8  # what is found behind a statement may lead on; more than so often is not followed
_KIN = ("part of ", "parent of ")
# Volatile functions of the server's own that leave nothing behind a rollback. All others do, or may.
_HARMLESS = frozenset(
    {
        "random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "clock_timestamp", "timeofday", "txid_current",
        "pg_current_xact_id", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_try_advisory_xact_lock",
        "pg_try_advisory_xact_lock_shared",
    }
)  # fmt: skip
_WHY = (
    (("nextval", "setval", "currval", "lastval"), "a sequence does not go back"),
    (("pg_notify",), "a notification is not part of what may be tried"),
    (("pg_advisory", "pg_try_advisory"), "a session's advisory lock is not given back by a rollback"),
    (("lo_", "lowrite", "loread", "pg_read", "pg_ls", "pg_stat_file"), "large objects and files are out of a dry run's reach"),
    (("pg_logical", "pg_replication"), "replication does not go back"),
)
_RESETS = frozenset({"pg_stat_statements"})  # extensions whose functions in C act outside the transaction

_BUILT_IN = """
SELECT DISTINCT p.proname::text FROM pg_catalog.pg_proc p
WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.proname::text = ANY (%s)
  AND (p.provolatile = 'v' OR p.oid >= 16384)
"""
# What is evaluated along with a write (or, of policies, with a read too), by relation: part, column, text.
_EXPRESSIONS = """
WITH meant AS (SELECT pg_catalog.unnest(%s::oid[]) AS oid)
SELECT d.adrelid::int8, 'default', a.attname::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid)
  FROM pg_catalog.pg_attrdef d JOIN meant m ON m.oid = d.adrelid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
UNION ALL SELECT a.attrelid::int8, 'identity', a.attname::text, '' FROM pg_catalog.pg_attribute a JOIN meant m ON m.oid = a.attrelid
  WHERE a.attidentity <> '' AND NOT a.attisdropped
UNION ALL SELECT c.conrelid::int8, 'check', '', pg_catalog.pg_get_expr(c.conbin, c.conrelid)
  FROM pg_catalog.pg_constraint c JOIN meant m ON m.oid = c.conrelid WHERE c.contype = 'c'
UNION ALL SELECT p.polrelid::int8, 'policy', '', t.text FROM pg_catalog.pg_policy p JOIN meant m ON m.oid = p.polrelid,
  LATERAL (VALUES (pg_catalog.pg_get_expr(p.polqual, p.polrelid)), (pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))) AS t(text)
UNION ALL SELECT t.tgrelid::int8, 'trigger', '', pg_catalog.pg_get_triggerdef(t.oid)
  FROM pg_catalog.pg_trigger t JOIN meant m ON m.oid = t.tgrelid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
UNION ALL SELECT r.ev_class::int8, 'rule', '', pg_catalog.pg_get_ruledef(r.oid)
  FROM pg_catalog.pg_rewrite r JOIN meant m ON m.oid = r.ev_class WHERE r.rulename <> '_RETURN' AND r.ev_enabled <> 'D'
UNION ALL SELECT 0, 'domain', '', t.typdefault FROM pg_catalog.pg_type t WHERE t.typtype = 'd' AND t.oid >= 16384
UNION ALL SELECT 0, 'domain', '', pg_catalog.pg_get_expr(c.conbin, 0) FROM pg_catalog.pg_constraint c
  WHERE c.contypid >= 16384 AND c.contype = 'c'
UNION ALL SELECT 0, 'argument', '', pg_catalog.pg_get_expr(p.proargdefaults, 0) FROM pg_catalog.pg_proc p WHERE p.oid = ANY (%s::oid[])
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """``reasons``: why it is not tried; empty: it may be. ``schema``, ``table``: where its rows are, empty where none are shown.

    ``kind``: insert, update, delete or merge. ``columns``: each with its label, if it has one. ``computed``: the labels of what
    may have flowed into the values that it writes.
    """

    reasons: tuple[str, ...]
    kind: str = ""
    schema: str = ""
    table: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    computed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """What one look behind the statement has found."""

    effects: Effects
    relations: dict[int, Relation]
    called: set[str] = field(default_factory=set)
    reasons: dict[str, None] = field(default_factory=dict)


class Trials:
    """Examines statements by the policy in force and by the catalog of their database."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine

    def first_look(self, text: bytes) -> str:
        """Why it is nothing to be tried, as far as the text alone tells; empty: it may be."""
        read = _single(text)
        return read if isinstance(read, str) else ""

    async def examine(self, database: str, text: bytes, path: Path, fetch: Fetch) -> Trial:
        """All that the statement reaches. ``fetch`` asks the database, in threads. Raises ``psycopg.Error``, ``Refused``."""
        snapshot = await self._engine.catalog(database).refresh()
        try:
            return await asyncio.to_thread(_examined, self._engine.policy, self._engine.reach(snapshot), text, path, fetch)
        except RecursionError:
            return Trial(("it is nested too deeply to be looked through",))


def _single(text: bytes) -> Facts | str:
    try:
        facts = read_facts(text, None)
    except Unreadable as error:
        return error.message
    except RecursionError:
        return "it is nested too deeply to be looked through"
    if len(facts) != 1 or facts[0].kind not in _WRITES:
        return "only a single INSERT, UPDATE, DELETE or MERGE is tried"
    if facts[0].settings or facts[0].names or facts[0].refusals or facts[0].inner or facts[0].tree is None:
        return "it does more than to write rows"
    return facts[0]


def _examined(policy: Policy, reach: Reach, text: bytes, path: Path, fetch: Fetch) -> Trial:
    facts = _single(text)
    if isinstance(facts, str):
        return Trial((facts,))
    snapshot = reach.snapshot
    node = (facts.tree or {})[_WRITES[facts.kind]]
    target = snapshot.resolve(node["relation"].get("schemaname", ""), node["relation"]["relname"], path)
    if target is None or any(snapshot.resolve(access.schema, access.name, path) is None for access in facts.accesses):
        return Trial(("one of its tables is not there",))
    # Casts and operators may come into it without a word in the text.
    also = frozenset().union(*snapshot.casts.values(), *snapshot.operators.values())
    for _ in range(_ROUNDS):
        found = _look(reach, facts, node, target, path, also, fetch)
        more = also | _routines(reach, found)
        if more == also:
            break
        also = more
    else:
        found.reasons["what it reaches is not followed to its end"] = None
    reasons = (*found.reasons, *_kinds(facts, found.effects), *_tables(found), *_functions(snapshot, found, fetch))
    shown = target.kind in ("r", "p")
    columns = tuple((name, _label(policy, snapshot, (target.schema, target.name, name))) for name in target.columns.values())
    return Trial(
        tuple(dict.fromkeys(reasons)),
        facts.kind,
        target.schema if shown else "",
        target.name if shown else "",
        columns if shown else (),
        _computed(policy, snapshot, facts, path, found),
    )


def _look(reach: Reach, facts: Facts, node: dict[str, Any], target: Relation, path: Path, also: frozenset[int], fetch: Fetch) -> _Found:
    snapshot = reach.snapshot
    found = _Found(reach.of(facts, (path,), frozenset(), also), {})
    written = {target.oid}
    for access in facts.accesses:
        if (relation := snapshot.resolve(access.schema, access.name, path)) is not None:
            found.relations[relation.oid] = relation
            written |= {relation.oid} if access.verb != "select" else set()
    for touch in found.effects.touches:
        schema, _, name = touch.table.partition(".")
        if (relation := snapshot.by_name.get((schema, name))) is not None:
            found.relations[relation.oid] = relation
            written |= {relation.oid} if touch.verb != "select" else set()
        else:
            found.reasons[f"{touch.table} is not a table that is there now"] = None
    found.called |= found.effects.called.keys()
    defaulted = _defaulted(snapshot, facts, node, target, found, path)
    run = [routine.oid for routine in snapshot.routines.values() if routine.qualified in found.effects.routines]
    for oid, part, column, text in fetch(_EXPRESSIONS, (list(found.relations), run)):
        if part in ("default", "identity") and (oid not in defaulted or column in defaulted[oid]):
            continue
        if oid and part != "policy" and oid not in written:
            continue
        if part == "identity":
            found.reasons[f"{found.relations[oid].qualified}.{column} takes its values from a sequence, which does not go back"] = None
            continue
        try:
            found.called |= set(_called(part, text))
        except (parser.ParseError, RecursionError):
            found.reasons["an expression of one of its tables can't be read"] = None
    return found


def _defaulted(
    snapshot: Snapshot, facts: Facts, node: dict[str, Any], target: Relation, found: _Found, path: Path
) -> dict[int, frozenset[str]]:
    """The tables whose defaults may be evaluated, each with the columns that are given and so keep theirs unused."""
    said = found.effects.defaults or _says_default(facts.tree)
    kin = {target.oid, *snapshot.kin.get(target.oid, ())}
    cols = [each["ResTarget"].get("name", "") for each in node.get("cols", ())]
    given = frozenset() if said or node.get("override", "") == "OVERRIDING_USER_VALUE" else frozenset(cols)
    defaulted: dict[int, frozenset[str]] = {}
    inserts = facts.kind == "insert" or any(access.verb == "insert" for access in facts.accesses)
    if inserts or said:
        alone = facts.kind == "insert" and "withClause" not in node
        defaulted |= dict.fromkeys(kin, given if alone else frozenset())
    for access in facts.accesses:
        relation = snapshot.resolve(access.schema, access.name, path)
        if relation is not None and relation.oid not in kin and (access.verb == "insert" or (said and access.verb == "update")):
            defaulted[relation.oid] = frozenset()
    for touch in found.effects.touches:
        schema, _, name = touch.table.partition(".")
        relation = snapshot.by_name.get((schema, name))
        if relation is None or (relation.oid in kin and touch.via.startswith(_KIN)):
            continue
        by_key = touch.via.startswith("foreign key") and _keys_default(snapshot, relation.oid)
        ruled = any(snapshot.behind[oid].rules for oid in found.relations if oid in snapshot.behind)
        if touch.verb == "insert" or (touch.verb == "update" and (said or by_key or ruled)):
            defaulted[relation.oid] = frozenset()
    return defaulted


def _keys_default(snapshot: Snapshot, referring: int) -> bool:
    """Whether one of its foreign keys is set to its DEFAULT when what it refers to goes."""
    keys = (key for behind in snapshot.behind.values() for key in behind.referred if key.referring == referring)
    return any("d" in (key.on_delete, key.on_update) for key in keys)


def _says_default(node: Any) -> bool:
    todo = [node]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if "SetToDefault" in each:
                return True
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return False


def _called(part: str, text: str | None) -> Iterator[str]:
    """The functions that an expression, a trigger's condition or a rule calls."""
    if not text:
        return
    todo: list[Any] = [json.loads(parser.parse_sql_json(text if part in ("trigger", "rule") else f"SELECT ({text})"))]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if (call := each.get("FuncCall")) is not None:
                yield ".".join(name["String"]["sval"] for name in call["funcname"])
            todo += each.values()
        elif isinstance(each, list):
            todo += each


def _routines(reach: Reach, found: _Found) -> frozenset[int]:
    """The functions of this database that may run along and are looked into next."""
    snapshot = reach.snapshot
    schemas = tuple(snapshot.schemas)
    named = {routine.oid for name in found.called - found.effects.called.keys() for routine in reach.routines(name, schemas)}
    return frozenset(named.union(*(snapshot.behind[oid].calls for oid in found.relations if oid in snapshot.behind)))


def _kinds(facts: Facts, effects: Effects) -> Iterator[str]:
    for kind in dict.fromkeys((*facts.kinds, *effects.kinds)):
        if kind not in _PLAIN_KINDS:
            yield f"{kind.replace('_', ' ')} is not tried"
    for name in effects.unknown:
        yield f"what {name} does is not known"
    for refusal in effects.refusals:
        yield refusal.message


def _tables(found: _Found) -> Iterator[str]:
    for relation in found.relations.values():
        if relation.kind == "f":
            yield f"{relation.qualified} is on another server"
    for touch in found.effects.touches:
        if touch.verb not in ("select", "insert", "update", "delete"):
            yield f"{touch.verb} of {touch.table} is not tried"
        elif touch.verb != "select" and touch.table.startswith(tuple(f"{schema}." for schema in _SYSTEM)):
            yield f"{touch.table} belongs to the server"


def _functions(snapshot: Snapshot, found: _Found, fetch: Fetch) -> Iterator[str]:
    names = sorted({name.rpartition(".")[2] for name in found.called} - _HARMLESS)
    volatile = {name for (name,) in fetch(_BUILT_IN, (names,))}
    for name in names:
        if name in volatile or "_to_xml" in name:  # those run queries of any text
            why = next((why for starts, why in _WHY if name.startswith(starts)), "it may act outside the transaction")
            yield f"{name}: {why}"
    outside = {routine.qualified for routine in snapshot.routines.values() if routine.extension in _RESETS}
    for name in outside & found.effects.routines.keys():
        yield f"{name} acts outside the transaction"


def _label(policy: Policy, snapshot: Snapshot, column: tuple[str, str, str]) -> str:
    return ", ".join(sorted(labels_of_column(policy, snapshot, column)))


def _computed(policy: Policy, snapshot: Snapshot, facts: Facts, path: Path, found: _Found) -> tuple[str, ...]:
    """The labels of what may flow into the values written; what a function writes may come from anything that is touched."""
    every = {(each.schema, each.name, name) for each in found.relations.values() for name in each.columns.values()}
    lineage = trace(facts.tree or {}, snapshot, path)
    flows = {*lineage.writes, *lineage.sinks}
    if (
        UNKNOWN in flows
        or not lineage.exact
        or found.effects.routines
        or any(snapshot.behind[oid].rules for oid in found.relations if oid in snapshot.behind)
    ):
        flows |= every
    return tuple(sorted({label for column in flows - {UNKNOWN} for label in labels_of_column(policy, snapshot, column)}))

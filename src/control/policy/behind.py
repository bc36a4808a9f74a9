"""Reads what happens behind relations: triggers, rules, foreign keys, children, the functions of defaults and constraints.

Queries and the values made of their rows. Never add here: connections, or what any of it means for a policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from control.policy.schema import Behind, ForeignKey, Routine, Trigger

__all__ = ["BEHIND", "found_behind", "found_routines", "grouped"]

_FIRST_NORMAL_OID = 16384
# pg_trigger.tgtype, as in catalog/pg_trigger.h
_EVENTS = {4: "insert", 8: "delete", 16: "update", 32: "truncate"}

# All are run with an empty search_path, so that what the server deparses is qualified.
BEHIND = {
    "routines": """
SELECT p.oid::int8, n.nspname::text, p.proname::text, l.lanname::text, p.provolatile::text, p.prosecdef,
       CASE WHEN p.prokind <> 'a' AND l.lanname IN ('sql', 'plpgsql') THEN pg_get_functiondef(p.oid) ELSE '' END,
       coalesce((SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                 WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' LIMIT 1), ''),
       (SELECT substr(s, 13) FROM unnest(p.proconfig) s WHERE s LIKE 'search\\_path=%' LIMIT 1),
       CASE WHEN p.prokind = 'a' THEN (SELECT ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
           a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]::int8[] FROM pg_aggregate a WHERE a.aggfnoid = p.oid) END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1""",
    "triggers": """
SELECT t.tgrelid::int8, t.tgname::text, t.tgtype::int4, t.tgfoid::int8, p.proname::text
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY 1, 2""",
    "rules": """
SELECT ev_class::int8, CASE ev_type WHEN '2' THEN 'update' WHEN '3' THEN 'insert' WHEN '4' THEN 'delete' ELSE 'select' END,
       pg_get_ruledef(oid)
FROM pg_rewrite WHERE rulename <> '_RETURN' AND ev_enabled <> 'D' AND oid >= 16384 ORDER BY 1, 2, 3""",
    "keys": """
SELECT confrelid::int8, conrelid::int8, confdeltype::text, confupdtype::text,
       (SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = confrelid AND attnum = ANY (confkey))
FROM pg_constraint WHERE contype = 'f' ORDER BY 1, 2, 3, 4, 5""",
    # Defaults, checks, policies and rules depend on what they call; what is built in leaves no such trace.
    "calls": """
WITH functions AS (
  SELECT classid, objid, refobjid::int8 AS function FROM pg_depend WHERE refclassid = 'pg_proc'::regclass AND refobjid >= 16384
  UNION SELECT d.classid, d.objid, o.oprcode::oid::int8 FROM pg_depend d JOIN pg_operator o ON o.oid = d.refobjid
        WHERE d.refclassid = 'pg_operator'::regclass AND o.oid >= 16384)
SELECT adrelid::int8, function FROM functions JOIN pg_attrdef a ON a.oid = objid WHERE classid = 'pg_attrdef'::regclass
UNION SELECT conrelid::int8, function FROM functions JOIN pg_constraint c ON c.oid = objid
      WHERE classid = 'pg_constraint'::regclass AND conrelid <> 0
UNION SELECT polrelid::int8, function FROM functions JOIN pg_policy p ON p.oid = objid WHERE classid = 'pg_policy'::regclass
UNION SELECT ev_class::int8, function FROM functions JOIN pg_rewrite r ON r.oid = objid WHERE classid = 'pg_rewrite'::regclass
UNION SELECT indrelid::int8, function FROM functions JOIN pg_index i ON i.indexrelid = objid WHERE classid = 'pg_class'::regclass
UNION SELECT attrelid::int8, function FROM functions JOIN pg_constraint c ON c.oid = objid JOIN pg_attribute a ON a.atttypid = c.contypid
      WHERE classid = 'pg_constraint'::regclass AND c.contypid <> 0 AND a.attnum > 0
ORDER BY 1, 2""",
    "nulls": """
SELECT attrelid::int8, attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
WHERE attnum > 0 AND attnotnull AND NOT attisdropped AND attrelid >= 16384 AND c.relkind IN ('r', 'p') ORDER BY 1, 2""",
    "operators": "SELECT oprname::text, oprcode::oid::int8 FROM pg_operator WHERE oid >= 16384 ORDER BY 1, 2",
    "casts": """
SELECT t.typname::text, c.castfunc::int8 FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget
WHERE c.oid >= 16384 AND c.castfunc <> 0 ORDER BY 1, 2""",
}
Rows = Sequence[tuple[Any, ...]]


def found_behind(inherits: Rows, rows: Mapping[str, Rows]) -> dict[int, Behind]:
    """By relation's OID."""
    parents, children, refers, calls = (defaultdict[int, set[int]](set) for _ in range(4))
    triggers = defaultdict[int, list[Trigger]](list)
    rules = defaultdict[int, list[tuple[str, str]]](list)
    referred = defaultdict[int, list[ForeignKey]](list)
    nulls = defaultdict[int, set[str]](set)
    for child, parent in inherits:
        parents[child].add(parent)
        children[parent].add(child)
    for table, name, kind, routine, called in rows["triggers"]:
        verbs = frozenset(verb for bit, verb in _EVENTS.items() if kind & bit)
        triggers[table].append(Trigger(name, verbs, routine, called if routine < _FIRST_NORMAL_OID else ""))
    for table, verb, definition in rows["rules"]:
        rules[table].append((verb, definition))
    for table, referring, on_delete, on_update, columns in rows["keys"]:
        referred[table].append(ForeignKey(referring, on_delete, on_update, frozenset(columns or ())))
        refers[referring].add(table)
    for table, routine in rows["calls"]:
        calls[table].add(routine)
    for table, column in rows["nulls"]:
        nulls[table].add(column)
    every = {*parents, *children, *triggers, *rules, *referred, *refers, *calls, *nulls}
    return {
        oid: Behind(
            frozenset(parents[oid]), frozenset(children[oid]), tuple(triggers[oid]), tuple(rules[oid]), tuple(referred[oid]),
            frozenset(refers[oid]), frozenset(calls[oid]), frozenset(nulls[oid]),
        )
        for oid in every
    }  # fmt: skip


def found_routines(rows: Mapping[str, Rows]) -> dict[int, Routine]:
    """By OID."""
    found = {}
    for oid, schema, name, language, volatility, definer, text, extension, path, calls in rows["routines"]:
        called = frozenset(each for each in calls or () if each)
        found[oid] = Routine(oid, schema, name, language, volatility, definer, text or "", extension, path, called)
    return found


def grouped(rows: Iterable[tuple[Any, ...]]) -> dict[str, frozenset[int]]:
    """The OIDs by name."""
    found = defaultdict[str, set[int]](set)
    for name, oid in rows:
        found[name].add(oid)
    return {name: frozenset(oids) for name, oids in found.items()}

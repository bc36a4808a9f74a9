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

# ``parts``: each type with what it is made of (domains, arrays, composites, ranges). ``runs``: functions that come with a type
# and run without being called: casts that nobody writes, comparisons of its operator classes, checks of a domain.
_TYPES = """
WITH RECURSIVE parts(whole, part) AS (
  SELECT oid, oid FROM pg_type
  UNION SELECT parts.whole, next.part FROM parts JOIN (
    SELECT oid AS whole, typbasetype AS part FROM pg_type WHERE typbasetype <> 0
    UNION ALL SELECT oid, typelem FROM pg_type WHERE typelem >= 16384
    UNION ALL SELECT t.oid, a.atttypid FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
              WHERE t.typrelid >= 16384 AND a.atttypid >= 16384
    UNION ALL SELECT rngtypid, rngsubtype FROM pg_range WHERE rngsubtype >= 16384) next ON next.whole = parts.part),
coming(type, function) AS (
  SELECT unnest(ARRAY[castsource, casttarget]), castfunc FROM pg_cast WHERE oid >= 16384 AND castfunc >= 16384
        AND (castcontext <> 'e' OR casttarget < 16384)
  UNION SELECT unnest(ARRAY[amproclefttype, amprocrighttype]), amproc::oid FROM pg_amproc
        WHERE amproc::oid >= 16384 AND amprocfamily IN (SELECT opcfamily FROM pg_opclass WHERE opcdefault)
  UNION SELECT unnest(ARRAY[amoplefttype, amoprighttype]), o.oprcode::oid FROM pg_amop JOIN pg_operator o ON o.oid = amopopr
        WHERE o.oprcode::oid >= 16384 AND amopfamily IN (SELECT opcfamily FROM pg_opclass WHERE opcdefault)
  UNION SELECT rngtypid, unnest(ARRAY[rngcanonical::oid, rngsubdiff::oid]) FROM pg_range WHERE rngtypid >= 16384
  UNION SELECT c.contypid, d.refobjid FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid
        WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384 AND c.contypid <> 0
  UNION SELECT c.contypid, o.oprcode::oid FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid JOIN pg_operator o ON o.oid = d.refobjid
        WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_operator'::regclass AND d.refobjid >= 16384 AND c.contypid <> 0),
-- a built-in type comes with what belongs to no type of the users', which is there too where it runs
runs(type, function) AS (
  SELECT type, function FROM coming WHERE type >= 16384
  UNION SELECT type, function FROM coming WHERE NOT EXISTS (
    SELECT FROM coming other WHERE other.function = coming.function AND other.type >= 16384))
"""

# All are run with an empty search_path, so that what the server deparses is qualified.
BEHIND = {
    "routines": """
SELECT p.oid::int8, n.nspname::text, p.proname::text, l.lanname::text, p.provolatile::text, p.prosecdef,
       CASE WHEN p.prosqlbody IS NULL AND p.prokind <> 'a' AND l.lanname IN ('sql', 'plpgsql') THEN pg_get_functiondef(p.oid) ELSE '' END,
       coalesce((SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                 WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' LIMIT 1), ''),
       (SELECT substr(s, 13) FROM unnest(p.proconfig) s WHERE s LIKE 'search\\_path=%' LIMIT 1),
       CASE WHEN p.prokind = 'a' THEN (SELECT ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
           a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]::int8[] FROM pg_aggregate a WHERE a.aggfnoid = p.oid) END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384 ORDER BY 1""",
    "signatures": _TYPES
    + """
SELECT DISTINCT p.oid::int8, r.function::int8 FROM pg_proc p
JOIN LATERAL unnest(p.proallargtypes || p.proargtypes::oid[] || p.prorettype) AS named(type) ON true
JOIN parts ON parts.whole = named.type JOIN runs r ON r.type = parts.part WHERE p.oid >= 16384 ORDER BY 1, 2""",
    "triggers": """
SELECT t.tgrelid::int8, t.tgname::text, t.tgtype::int4, t.tgfoid::int8, p.proname::text,
       (SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute a WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr))
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY 1, 2""",
    "rules": """
SELECT ev_class::int8, CASE ev_type WHEN '2' THEN 'update' WHEN '3' THEN 'insert' WHEN '4' THEN 'delete' ELSE 'select' END,
       oid::int8
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
UNION SELECT ev_class::int8, function FROM functions JOIN pg_rewrite r ON r.oid = objid WHERE classid = 'pg_rewrite'::regclass
UNION SELECT indrelid::int8, function FROM functions JOIN pg_index i ON i.indexrelid = objid WHERE classid = 'pg_class'::regclass
ORDER BY 1, 2""",
    # What any use of a relation may run, and what its policies read.
    "uses": _TYPES
    + """
SELECT polrelid::int8, refobjid::int8 FROM pg_depend d JOIN pg_policy p ON p.oid = objid
WHERE classid = 'pg_policy'::regclass AND refclassid = 'pg_proc'::regclass AND refobjid >= 16384
UNION SELECT polrelid::int8, o.oprcode::oid::int8 FROM pg_depend d JOIN pg_policy p ON p.oid = objid JOIN pg_operator o ON o.oid = refobjid
      WHERE classid = 'pg_policy'::regclass AND refclassid = 'pg_operator'::regclass AND refobjid >= 16384
UNION SELECT i.indrelid::int8, m.amproc::oid::int8 FROM pg_index i JOIN pg_opclass o ON o.oid = ANY (i.indclass)
      JOIN pg_amproc m ON m.amprocfamily = o.opcfamily WHERE m.amproc::oid >= 16384
UNION SELECT adrelid::int8, refobjid::int8 FROM pg_depend d JOIN pg_attrdef a ON a.oid = objid
      JOIN pg_attribute c ON c.attrelid = a.adrelid AND c.attnum = a.adnum AND c.attgenerated = 'v'
      WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_proc'::regclass AND refobjid >= 16384
UNION SELECT a.attrelid::int8, r.function::int8 FROM pg_attribute a JOIN parts ON parts.whole = a.atttypid
      JOIN runs r ON r.type = parts.part
      WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid >= 16384
ORDER BY 1, 2""",
    "looks": """
SELECT DISTINCT polrelid::int8, refobjid::int8 FROM pg_depend d JOIN pg_policy p ON p.oid = objid
WHERE classid = 'pg_policy'::regclass AND refclassid = 'pg_class'::regclass AND refobjid <> polrelid ORDER BY 1, 2""",
    "generated": """
SELECT a.adrelid::int8, g.attname::text, array_agg(s.attname::text ORDER BY s.attname)
FROM pg_attrdef a JOIN pg_attribute g ON g.attrelid = a.adrelid AND g.attnum = a.adnum AND g.attgenerated <> ''
JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.adrelid AND d.refobjsubid <> a.adnum AND (
     (d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid)
     OR (d.classid = 'pg_class'::regclass AND d.objid = a.adrelid AND d.objsubid = a.adnum))
JOIN pg_attribute s ON s.attrelid = a.adrelid AND s.attnum = d.refobjsubid AND s.attnum > 0 GROUP BY 1, 2 ORDER BY 1, 2""",
    "dependents": """
SELECT DISTINCT coalesce(nullif(t.typrelid, 0), d.refobjid)::int8 AS of,
       coalesce(r.ev_class, c.conrelid, f.adrelid, p.polrelid, k.oid)::int8 AS dependent
FROM pg_depend d LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_constraint c ON d.classid = 'pg_constraint'::regclass AND c.oid = d.objid AND c.conrelid <> 0
LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
LEFT JOIN pg_class k ON d.classid = 'pg_class'::regclass AND k.oid = d.objid AND k.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
WHERE d.refobjid >= 16384 AND (d.refclassid = 'pg_class'::regclass OR t.typrelid <> 0)
  AND coalesce(r.ev_class, c.conrelid, f.adrelid, p.polrelid, k.oid) <> coalesce(nullif(t.typrelid, 0), d.refobjid) ORDER BY 1, 2""",
    "typed": _TYPES
    + """
SELECT DISTINCT t.typname::text, a.attrelid::int8 FROM pg_attribute a JOIN parts ON parts.whole = a.atttypid
JOIN pg_type t ON t.oid = parts.part
WHERE t.oid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2""",
    # what is refused without a word of it in builtins.py, on servers that are newer than it
    "volatile": """
SELECT DISTINCT proname::text FROM pg_proc
WHERE oid < 16384 AND provolatile = 'v' AND pronamespace = 'pg_catalog'::regnamespace ORDER BY 1""",
    "on_ddl": """
SELECT evtfoid::int8 FROM pg_event_trigger WHERE evtenabled <> 'D' AND evtevent <> 'login' ORDER BY 1""",
    "nulls": """
SELECT attrelid::int8, attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
WHERE attnum > 0 AND attnotnull AND NOT attisdropped AND attrelid >= 16384 AND c.relkind IN ('r', 'p') ORDER BY 1, 2""",
    "operators": "SELECT oprname::text, oprcode::oid::int8 FROM pg_operator WHERE oid >= 16384 ORDER BY 1, 2",
    "casts": _TYPES
    + """
SELECT t.typname::text, r.function::int8 FROM pg_type t JOIN parts ON parts.whole = t.oid JOIN runs r ON r.type = parts.part
      WHERE t.oid >= 16384
UNION SELECT t.typname::text, c.castfunc::int8 FROM pg_cast c JOIN pg_type t ON t.oid IN (c.castsource, c.casttarget)
      WHERE t.oid >= 16384 AND c.castfunc <> 0 ORDER BY 1, 2""",
}
_BEFORE = 2  # of tgtype
Rows = Sequence[tuple[Any, ...]]


def found_behind(inherits: Rows, rows: Mapping[str, Rows], rule_texts: Mapping[int, str]) -> dict[int, Behind]:
    """By relation's OID."""
    parents, children, refers, calls, uses, looks, dependents = (defaultdict[int, set[int]](set) for _ in range(7))
    triggers = defaultdict[int, list[Trigger]](list)
    rules = defaultdict[int, list[tuple[str, str]]](list)
    referred = defaultdict[int, list[ForeignKey]](list)
    nulls = defaultdict[int, set[str]](set)
    generated = defaultdict[int, dict[str, frozenset[str]]](dict)
    for child, parent in inherits:
        parents[child].add(parent)
        children[parent].add(child)
    for table, name, kind, routine, called, columns in rows["triggers"]:
        verbs = frozenset(verb for bit, verb in _EVENTS.items() if kind & bit)
        built_in = called if routine < _FIRST_NORMAL_OID else ""
        triggers[table].append(Trigger(name, verbs, routine, built_in, frozenset(columns or ()), bool(kind & _BEFORE)))
    for table, verb, rule in rows["rules"]:
        rules[table].append((verb, rule_texts.get(rule, "")))
    for table, referring, on_delete, on_update, columns in rows["keys"]:
        referred[table].append(ForeignKey(referring, on_delete, on_update, frozenset(columns or ())))
        refers[referring].add(table)
    for key, gathered in (("calls", calls), ("uses", uses), ("looks", looks), ("dependents", dependents)):
        for table, other in rows[key]:
            gathered[table].add(other)
    for table, column, sources in rows["generated"]:
        generated[table][column] = frozenset(sources)
    for table, column in rows["nulls"]:
        nulls[table].add(column)
    every = {*parents, *children, *triggers, *rules, *referred, *refers, *calls, *nulls, *uses, *looks, *dependents, *generated}
    return {
        oid: Behind(
            frozenset(parents[oid]), frozenset(children[oid]), tuple(triggers[oid]), tuple(rules[oid]), tuple(referred[oid]),
            frozenset(refers[oid]), frozenset(calls[oid]), frozenset(nulls[oid]), frozenset(uses[oid]), frozenset(looks[oid]),
            frozenset(dependents[oid]), generated[oid],
        )
        for oid in every
    }  # fmt: skip


def found_routines(rows: Mapping[str, Rows], bodies: Mapping[int, str]) -> dict[int, Routine]:
    """By OID."""
    found = dict[int, Routine]()
    coming = defaultdict[int, set[int]](set)
    for routine, function in rows["signatures"]:
        coming[routine].add(function)
    for oid, schema, name, language, volatility, definer, text, extension, path, calls in rows["routines"]:
        called = frozenset(each for each in calls or () if each) | coming[oid]
        found[oid] = Routine(oid, schema, name, language, volatility, definer, bodies.get(oid) or text or "", extension, path, called)
    return found


def grouped(rows: Iterable[tuple[Any, ...]]) -> dict[str, frozenset[int]]:
    """The OIDs by name."""
    found = defaultdict[str, set[int]](set)
    for name, oid in rows:
        found[name].add(oid)
    return {name: frozenset(oids) for name, oids in found.items()}

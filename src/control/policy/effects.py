"""What a statement does beyond what it says: views, children, triggers, rules, cascades, and the bodies of what it calls.

Resolved in one catalog snapshot; bodies are read once per snapshot, when first asked for. What can't be read is named as
unknown, never left out. Never add here: rules, sessions, or I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pglast import parser

from control.policy.analysis import is_wide
from control.policy.builtins import built_in_class
from control.policy.facts import Access, Facts, Node, Refusal, Unreadable
from control.policy.reading import read_facts, read_tree
from control.policy.routines import Body, read_block, read_body
from control.policy.schema import Behind, Relation, Routine, Snapshot, Trigger
from control.policy.weigh import Touch

__all__ = ["Effects", "Reach"]

Path = tuple[str, ...]
_NOTHING = Behind()
_ANY_COLUMN = Facts(("update",))  # an update of columns that are not known by name
_LIVE_KEYS = frozenset("cnd")  # cascade, set null, set default
# Extensions whose functions in C compute or tell something and do nothing else.
_PLAIN_EXTENSIONS = frozenset(
    {
        "btree_gin", "btree_gist", "citext", "cube", "dict_int", "dict_xsyn", "earthdistance", "fuzzystrmatch", "hstore", "intarray",
        "isn", "ltree", "pg_stat_statements", "pg_trgm", "pgcrypto", "postgis", "seg",
        "tsm_system_rows", "tsm_system_time", "unaccent", "uuid-ossp", "vector",
    }
)  # fmt: skip
# What a trigger function says that assigns columns without their names, or hides a name.
_WHOLE_ROW = re.compile(r'\bnew"?\s*:?=|\binto\s+(strict\s+)?"?new"?(?!\.)|u&"|""|return\s+(?!new\b|old\b|null\b|query)')
_SETTINGS = frozenset({"search_path", "*", "role", "session_authorization"})


@dataclass(slots=True)
class Effects:
    """``touches``: tables behind the statement; those that a called body writes are like the statement's own, all others are
    ``through``. ``checked``: tables looked into for integrity alone. ``unknown``: full names of functions that may do anything.
    ``called``: the names of all functions as they are written, in the statement and behind it.
    """

    touches: dict[Touch, None] = field(default_factory=dict)
    kinds: dict[str, None] = field(default_factory=dict)
    routines: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    checked: dict[str, None] = field(default_factory=dict)
    refusals: dict[Refusal, None] = field(default_factory=dict)
    called: dict[str, None] = field(default_factory=dict)
    dark: bool = False  # a DO block runs what its text does not show
    defaults: bool = False  # a column is set to its DEFAULT, as far as there are functions whose bodies could


class Reach:
    """The effects of statements under one snapshot."""

    __slots__ = ("__weakref__", "_bodies", "_named", "_rules", "_views", "opaque", "snapshot")

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._bodies: dict[int, Body] = {}
        self._views: dict[int, tuple[Facts, ...] | None] = {}
        self._rules: dict[str, tuple[Facts, ...] | None] = {}
        self._named: dict[str, list[Routine]] = {}
        for routine in snapshot.routines.values():
            self._named.setdefault(routine.name, []).append(routine)
        self.opaque = snapshot.opaque - {routine.qualified for routine in snapshot.routines.values()}

    def of(self, facts: Facts, paths: tuple[Path, ...], temporary: frozenset[str], also: frozenset[int] = frozenset()) -> Effects:
        """The effects of one statement under each search path that may hold, and of the routines ``also`` (OIDs)."""
        gathering = _Gathering(self, temporary)
        for path in paths:
            gathering.statement(facts, path)
            for oid in also:
                gathering.routine(oid, path, True)
        return gathering.effects

    def routines(self, name: str, path: Path) -> Iterator[Routine]:
        """Those that a call by this name may mean: every overload that can be seen."""
        schema, _, plain = name.rpartition(".")
        for routine in self._named.get(plain, ()):
            if routine.schema == schema if schema else routine.schema in (*path, "pg_catalog"):
                yield routine

    def body(self, routine: Routine) -> Body:
        """The statements of a function."""
        if routine.oid not in self._bodies:
            self._bodies[routine.oid] = read_body(routine.definition, routine.language)
        return self._bodies[routine.oid]

    def view(self, relation: Relation) -> tuple[Facts, ...] | None:
        """The query of a view; None: it can't be read."""
        if relation.oid not in self._views:
            try:
                self._views[relation.oid] = read_facts(relation.definition.encode(), None)
            except Unreadable:
                self._views[relation.oid] = None
        return self._views[relation.oid]

    def rule(self, definition: str) -> tuple[Facts, ...] | None:
        """The actions of a rule; None: they can't be read."""
        if definition not in self._rules:
            try:
                node = json.loads(parser.parse_sql_json(definition))["stmts"][0]["stmt"]["RuleStmt"]
                self._rules[definition] = tuple(read_tree(action) for action in node.get("actions", ()))
            except (parser.ParseError, Unreadable, RecursionError, KeyError):
                self._rules[definition] = None
        return self._rules[definition]


class _Gathering:
    """Walks from one statement to everything that it reaches; each place once."""

    def __init__(self, reach: Reach, temporary: frozenset[str]) -> None:
        self.reach, self.snapshot, self.temporary = reach, reach.snapshot, temporary
        self.effects = Effects()
        self.seen: set[tuple[Any, ...]] = set()

    def statement(self, facts: Facts, path: Path) -> None:
        """The statement itself: its own tables are known, what is behind them is not."""
        for access in facts.accesses:
            relation = self.snapshot.resolve(access.schema, access.name, path)
            if relation is not None:
                self.relation(relation, access.verb, is_wide(access, self.snapshot, path), path, facts)
        self.calls(facts, path, False)
        if facts.kind == "do" and facts.tree:
            block = read_block(facts.tree["DoStmt"])
            self.effects.dark = block.unknown
            self.unknown("DO", block.unknown)
            self.body(block, path, False, "DO")
        self.definitions(facts, path)

    def definitions(self, facts: Facts, path: Path) -> None:
        """What a definition takes along, and the event triggers that it fires."""
        if "ddl" not in facts.verbs:
            return
        for oid in self.snapshot.on_ddl:
            self.routine(oid, path, True)
        node = (facts.tree or {}).get("DropStmt", {})
        names = set(_last_names(node.get("objects", ())))
        if facts.kind == "drop_schema":
            for relation in self.snapshot.relations.values():
                if relation.schema in names:
                    self.touch(relation.qualified, "ddl", False, True, f"schema {relation.schema}")
                    self.dropped(relation)
        elif facts.kind in ("drop_type", "drop_domain") and node.get("behavior") == "DROP_CASCADE":
            for name in names:
                for relation in self.known(self.snapshot.typed.get(name, frozenset())):
                    self.touch(relation.qualified, "ddl", False, True, f"type {name}")
                    self.dropped(relation)
        elif "'DROP_CASCADE'" in repr(facts.tree):
            for access in facts.accesses:
                if access.verb == "ddl" and (found := self.snapshot.resolve(access.schema, access.name, path)) is not None:
                    self.dropped(found)

    def dropped(self, relation: Relation) -> None:
        """What goes with a relation, or loses something with it."""
        if (key := (relation.oid, "dropped")) in self.seen:
            return
        self.seen.add(key)
        for other in self.known(self.snapshot.behind.get(relation.oid, _NOTHING).dependents):
            self.touch(other.qualified, "ddl", False, True, f"depends on {relation.qualified}")
            self.dropped(other)

    def touch(self, table: str, verb: str, wide: bool, through: bool, via: str) -> None:
        self.effects.touches[Touch(table, verb, wide and verb in ("update", "delete"), through, via)] = None

    def calls(self, facts: Facts, path: Path, through: bool) -> None:
        self.effects.called |= dict.fromkeys(facts.functions)
        for name in facts.functions:
            if name in self.snapshot.volatile and not built_in_class(name):
                self.unknown(f"pg_catalog.{name}")
            for routine in self.reach.routines(name, path):
                self.routine(routine.oid, path, through)
            for opaque in self.reach.opaque:  # where there is only a word of it, as in a description without a server
                if opaque == name or ("." not in name and opaque.rpartition(".")[2] == name):
                    self.unknown(opaque)
        if self.snapshot.routines:
            for oid in self.symbols(list(_trees(facts)), path):
                self.routine(oid, path, through)

    def symbols(self, node: Any, path: Path) -> Iterator[int]:
        """The functions of operators, of casts, and of ``row.function``."""
        if isinstance(node, list):
            for item in node:
                yield from self.symbols(item, path)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("A_Expr", "SubLink", "SortBy"):
                    names = value.get("name") or value.get("operName") or value.get("useOp") or ()
                    operator = names[-1].get("String", {}).get("sval", "") if names else ""
                    for each in (">=", "<=") if "BETWEEN" in operator else (operator,):
                        yield from self.snapshot.operators.get(each, ())
                elif key == "TypeCast" and (names := value.get("typeName", {}).get("names")):
                    yield from self.snapshot.casts.get(names[-1].get("String", {}).get("sval", ""), ())
                elif key == "SetToDefault":
                    self.effects.defaults = True
                elif key in ("fields", "indirection") and isinstance(value, list) and value and (key == "indirection" or len(value) > 1):
                    last = value[-1].get("String", {}).get("sval", "")
                    yield from (routine.oid for routine in self.reach.routines(last, path) if last)
                if isinstance(value, dict | list):
                    yield from self.symbols(value, path)

    def relation(self, relation: Relation, verb: str, wide: bool, path: Path, facts: Facts, kin: str = "") -> None:
        """What is behind a relation that is used so. ``kin``: we came from its child (up) or its parent (down)."""
        if (key := (relation.oid, verb, wide, kin)) in self.seen:
            return
        self.seen.add(key)
        behind = self.snapshot.behind.get(relation.oid, _NOTHING)
        own = [trigger for trigger in behind.triggers if verb in trigger.verbs]
        if verb == "update" and any(trigger.columns for trigger in own):
            own = [each for each in own if not each.columns or kin or self.sets(facts, each.columns, behind)]
        rules = [definition for event, definition in behind.rules if event == verb]
        if relation.definition:
            self.view(relation, verb, wide, path, facts, bool(own or rules))
        for direction, oids in (("up", behind.parents), ("down", behind.children)):
            if kin in ("", direction):
                for other in self.known(oids):
                    self.touch(other.qualified, verb, wide, True, f"{'part' if direction == 'down' else 'parent'} of {relation.qualified}")
                    self.relation(other, verb, wide, path, facts, direction)
        for oid in behind.uses if verb != "ddl" else ():
            self.routine(oid, path, True)
        for other in self.known(behind.looks) if verb in ("select", "insert", "update", "delete") else ():
            self.touch(other.qualified, "select", False, True, f"policy of {relation.qualified}")
            self.relation(other, "select", False, path, facts)
        if kin == "up":
            return
        for trigger in own:
            self.routine(trigger.routine, path, True)
        for definition in rules:
            actions = self.reach.rule(definition)
            self.unknown(f"{relation.qualified}", actions is None)
            for action in actions or ():
                self.within(action, path, True, f"rule on {relation.qualified}", frozenset())
        if verb in ("insert", "update", "ddl") or relation.definition:
            for oid in behind.calls:
                self.routine(oid, path, True)
        self.keys(relation, behind, verb, wide, path, facts)

    def view(self, relation: Relation, verb: str, wide: bool, path: Path, facts: Facts, redirected: bool) -> None:
        query = self.reach.view(relation)
        self.unknown(relation.qualified, query is None)
        for each in query or ():
            if verb == "select" or verb == "ddl":
                if verb == "select" or facts.kind == "refresh_materialized_view":
                    self.within(each, path, True, f"view {relation.qualified}", frozenset())
                continue
            self.within(each, path, True, f"view {relation.qualified}", frozenset())
            source = (each.tree or {}).get("SelectStmt", {}).get("fromClause", [{}])[0].get("RangeVar")
            if source and not redirected:
                base = Access(source.get("schemaname", ""), source["relname"], verb, wide)
                self.access(base, path, _ANY_COLUMN, True, relation.qualified)

    def keys(self, relation: Relation, behind: Behind, verb: str, wide: bool, path: Path, facts: Facts) -> None:
        """Foreign keys, in both directions."""
        if verb in ("insert", "update"):
            self.effects.checked |= dict.fromkeys(other.qualified for other in self.known(behind.refers))
        cascades = verb == "truncate" and (facts.tree or {}).get("TruncateStmt", {}).get("behavior") == "DROP_CASCADE"
        for key in behind.referred if verb in ("delete", "update", "truncate") else ():
            for other in self.known({key.referring}):
                action = key.on_delete if verb == "delete" else key.on_update
                if cascades:
                    effect = "truncate"
                elif verb == "truncate" or action not in _LIVE_KEYS or (verb == "update" and not self.sets(facts, key.columns, behind)):
                    self.effects.checked[other.qualified] = None
                    continue
                else:
                    effect = "delete" if verb == "delete" and action == "c" else "update"
                self.touch(other.qualified, effect, wide, True, f"foreign key to {relation.qualified}")
                self.effects.kinds[effect] = None
                self.relation(other, effect, wide, path, facts if effect == "truncate" else _ANY_COLUMN)

    def sets(self, facts: Facts, columns: frozenset[str], behind: Behind) -> bool:
        """Whether the statement may assign one of these columns. What comes by a view or key has other names for them."""
        if facts.tree is None or behind.generated or not columns.isdisjoint(_targets(facts.tree)):
            return True
        return any(each.before and "update" in each.verbs and self.assigns(each, columns) for each in behind.triggers)

    def assigns(self, trigger: Trigger, columns: frozenset[str]) -> bool:
        """Whether a trigger may assign one of these columns, which the statement does not."""
        routine = self.snapshot.routines.get(trigger.routine)
        if routine is None or routine.language != "plpgsql":
            return routine is not None or not trigger.built_in
        text = routine.definition.lower()
        return _WHOLE_ROW.search(text) is not None or any(re.search(rf"\b{re.escape(column.lower())}\b", text) for column in columns)

    def known(self, oids: frozenset[int] | set[int]) -> Iterator[Relation]:
        return (self.snapshot.relations[oid] for oid in oids if oid in self.snapshot.relations)

    def unknown(self, name: str, really: bool = True) -> None:
        if really:
            self.effects.unknown[name] = None

    def routine(self, oid: int, path: Path, through: bool) -> None:
        """A function that runs. One of the server's own has no entry; what it does is told by its name."""
        routine = self.snapshot.routines.get(oid)
        if routine is None or (oid, path, through) in self.seen:
            return
        self.seen.add((oid, path, through))
        name = routine.qualified
        self.effects.routines[name] = None
        for each in routine.calls:
            self.routine(each, path, through)
        if routine.definition:
            inner = path if routine.path is None else tuple(part.strip().strip('"') for part in routine.path.split(","))
            body = self.reach.body(routine)
            self.unknown(name, body.unknown)
            self.body(body, inner, through, name, routine.path is not None)
        elif routine.language == "internal" and routine.calls:
            pass  # an aggregate: what it does is what these do
        elif routine.language not in ("c", "internal") or routine.extension not in _PLAIN_EXTENSIONS:
            self.unknown(name, routine.language not in ("c", "internal") or routine.volatility != "i" or routine.definer)

    def body(self, body: Body, path: Path, through: bool, via: str, restores: bool = False) -> None:
        made = {access.name for each in body.statements for access in each.accesses if access.verb == "ddl"}
        for each in body.statements:
            self.within(each, path, through, via, frozenset(made))
            if not restores and any(setting.name in _SETTINGS for setting in each.settings):
                hint = "Let it have a SET clause of its own, which ends with it."
                self.effects.refusals[Refusal(f"{via} changes search_path or role for what comes after it", hint)] = None

    def within(self, facts: Facts, path: Path, through: bool, via: str, made: frozenset[str]) -> None:
        """A statement behind the statement."""
        self.effects.kinds |= dict.fromkeys(facts.kinds)
        self.effects.refusals |= dict.fromkeys(facts.refusals)
        for access in facts.accesses:
            self.access(access, path, facts, through, via, access.name in made or access.name in self.temporary)
        self.calls(facts, path, through)
        self.definitions(facts, path)

    def access(self, access: Access, path: Path, facts: Facts, through: bool, via: str, made: bool = False) -> None:
        relation = self.snapshot.resolve(access.schema, access.name, path)
        wide = is_wide(access, self.snapshot, path)
        if relation is not None:
            self.touch(relation.qualified, access.verb, wide, through or access.verb == "select", via)
            self.relation(relation, access.verb, wide, path, facts)
        elif access.temporary or made:
            self.touch(f"pg_temp.{access.name}", access.verb, access.wide, through, via)
        elif access.verb != "select":
            self.unknown(via)  # it writes what is not there now


def _trees(facts: Facts) -> Iterator[Node]:
    """The trees of a statement and of those that it stands for; what FETCH reads was judged when it was declared."""
    if facts.tree is not None:
        yield facts.tree
    for inner in facts.inner if facts.kinds[0] not in ("fetch", "move") or facts.accesses or facts.functions else ():
        yield from _trees(inner)


def _last_names(objects: Any) -> Iterator[str]:
    """The unqualified names in the list of a DROP."""
    for item in objects:
        names = item.get("TypeName", {}).get("names") or item.get("List", {}).get("items") or [item]
        yield names[-1].get("String", {}).get("sval", "")


def _targets(node: Node) -> set[str]:
    """The names of what is assigned, wherever in the tree."""
    found, todo = set[str](), list[Any]([node])
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if "ResTarget" in each and "name" in each["ResTarget"]:
                found.add(each["ResTarget"]["name"])
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return found

"""Where output columns come from: for each, the base columns that can flow into it, and whether it is one of them bare.

Reads parse trees (JSON form) with a catalog snapshot. What can't be resolved is said to be ``UNKNOWN``, never left out.
Never add here: labels, masks or principals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pglast import parser

from control.policy.catalog import Relation, Snapshot

__all__ = ["UNKNOWN", "Column", "Flow", "Lineage", "trace"]

Node = dict[str, Any]
Column = tuple[str, str, str]
UNKNOWN: Column = ("", "", "")
_SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid"})
_SINKS = ("pg_notify", "set_config", "setval", "pg_advisory", "pg_try_advisory", "pg_logical_emit_message", "pg_sleep")
_DEEPEST_VIEW = 16


@dataclass(frozen=True, slots=True)
class Flow:
    """What flows into one value. ``bare``: it is exactly a column's value, not computed from it."""

    columns: frozenset[Column] = frozenset()
    bare: bool = False


_NOTHING = Flow()


@dataclass(slots=True)
class Lineage:
    """``outputs`` in order (``exact`` False: their number can't be told); ``predicates`` decide over rows;
    ``writes`` flow into other tables, ``sinks`` into functions that carry values away; ``reads`` are all that it names."""

    outputs: list[Flow] = field(default_factory=list)
    exact: bool = True
    predicates: set[Column] = field(default_factory=set)
    writes: set[Column] = field(default_factory=set)
    sinks: set[Column] = field(default_factory=set)
    touched: dict[str, None] = field(default_factory=dict)
    reads: set[Column] = field(default_factory=set)


@dataclass(slots=True)
class _Source:
    alias: str
    columns: dict[str, Flow]
    schema: str = ""
    open: bool = False  # may have columns that are not listed
    blank: bool = False  # has columns that are not listed, and nothing flows into them: a function of PostgreSQL's own

    @property
    def whole(self) -> Flow:
        return _derived(*self.columns.values(), Flow(frozenset((UNKNOWN,))) if self.open else _NOTHING)


@dataclass(slots=True)
class _Scope:
    parent: _Scope | None
    ctes: dict[str, _Source]
    sources: list[_Source] = field(default_factory=list)
    merged: dict[str, Flow] = field(default_factory=dict)  # USING columns

    def chain(self) -> Iterator[_Scope]:
        scope: _Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


def _derived(*flows: Flow) -> Flow:
    return Flow(frozenset().union(*(flow.columns for flow in flows)))


def trace(tree: Node, snapshot: Snapshot, path: tuple[str, ...], depth: int = 0) -> Lineage:
    """The lineage of one statement's tree under a search path."""
    tracer = _Tracer(snapshot, path, depth)
    (name, node), *_ = tree.items()
    scope = _Scope(None, {})
    outputs: list[tuple[str, Flow]] = []
    if name in ("CreateTableAsStmt", "ViewStmt"):
        for _, flow in tracer.query(node["query"], scope):
            tracer.result.writes |= flow.columns
    elif name in ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
        outputs = tracer.query(tree, scope)
    else:
        tracer.definition(node)
    tracer.result.outputs = [flow for _, flow in outputs]
    return tracer.result


class _Tracer:
    def __init__(self, snapshot: Snapshot, path: tuple[str, ...], depth: int) -> None:
        self.snapshot, self.path, self.depth = snapshot, path, depth
        self.result = Lineage()

    def query(self, tree: Node, parent: _Scope) -> list[tuple[str, Flow]]:
        (name, node), *_ = tree.items()
        scope = _Scope(parent, dict(parent.ctes))
        if clause := node.get("withClause"):
            self.ctes(clause, scope)
        if name == "SelectStmt":
            return self.select(node, scope)
        if name in ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
            return self.write(name, node, scope)
        self.result.exact = False
        return [("?column?", Flow(frozenset((UNKNOWN,))))]

    def ctes(self, clause: Node, scope: _Scope) -> None:
        for item in clause["ctes"]:
            cte = item["CommonTableExpr"]
            names = [each["String"]["sval"] for each in cte.get("aliascolnames", ())]
            if clause.get("recursive"):
                self.recursive(cte, names, scope)
            scope.ctes[cte["ctename"]] = self.named(cte["ctename"], self.query(cte["ctequery"], scope), names)
            for extra in ("search_clause", "cycle_clause"):
                if extra in cte:
                    scope.ctes[cte["ctename"]].open = True

    def recursive(self, cte: Node, names: list[str], scope: _Scope) -> None:
        # The recursive term sees what the first term gave and whatever it adds: iterate until nothing is added.
        body = cte["ctequery"].get("SelectStmt", {})
        first = body.get("larg", body)
        scope.ctes[cte["ctename"]] = _Source(cte["ctename"], {}, open=False)
        columns = self.named(cte["ctename"], self.query({"SelectStmt": first}, scope), names)
        for _ in range(len(columns.columns) + 1):
            scope.ctes[cte["ctename"]] = columns
            grown = self.named(cte["ctename"], self.query(cte["ctequery"], scope), names)
            if grown.columns == columns.columns:
                break
            columns = grown

    def named(self, alias: str, outputs: list[tuple[str, Flow]], names: list[str]) -> _Source:
        columns: dict[str, Flow] = {}
        for position, (name, flow) in enumerate(outputs):
            key = names[position] if position < len(names) else name
            columns[key if key not in columns else f"{key}\0{position}"] = flow
            if key in columns and f"{key}\0{position}" in columns:
                columns[key] = _derived(columns[key], flow)
        return _Source(alias, columns, open=not self.result.exact)

    def select(self, node: Node, scope: _Scope) -> list[tuple[str, Flow]]:
        if node.get("op", "SETOP_NONE") != "SETOP_NONE":
            left = self.query({"SelectStmt": node["larg"]}, scope)
            right = self.query({"SelectStmt": node["rarg"]}, scope)
            if len(left) != len(right):
                self.result.exact = False
                left = [(name, _derived(*(flow for _, flow in left + right))) for name, _ in left]
                right = left
            outputs = [(name, _either(one, two)) for (name, one), (_, two) in zip(left, right, strict=True)]
            if not (node["op"] == "SETOP_UNION" and node.get("all")):
                self.predicate(*(flow for _, flow in outputs))
            self.order(node, outputs, scope)
            return outputs
        if lists := node.get("valuesLists"):
            rows = [[self.value(item, scope) for item in row["List"]["items"]] for row in lists]
            return [(f"column{position + 1}", _either(*flows)) for position, flows in enumerate(zip(*rows, strict=False))]
        for item in node.get("fromClause", ()):
            self.source(item, scope)
        outputs = self.targets(node.get("targetList", []), scope)
        for key in ("whereClause", "havingClause"):
            if key in node:
                self.predicate(self.value(node[key], scope))
        for item in node.get("windowClause", ()):
            self.predicate(self.value(item, scope))
        for item in node.get("groupClause", ()):
            self.key(item, outputs, scope, group=True)
        if "distinctClause" in node:
            for item in node["distinctClause"]:
                if item:
                    self.key(item, outputs, scope)
                else:
                    self.predicate(*(flow for _, flow in outputs))
        self.order(node, outputs, scope)
        if "intoClause" in node:
            self.result.writes |= _derived(*(flow for _, flow in outputs)).columns
        return outputs

    def order(self, node: Node, outputs: list[tuple[str, Flow]], scope: _Scope) -> None:
        for item in node.get("sortClause", ()):
            self.key(item["SortBy"]["node"], outputs, scope)
        for part in ("limitCount", "limitOffset"):
            if part in node:
                self.predicate(self.value(node[part], scope))

    def key(self, node: Node, outputs: list[tuple[str, Flow]], scope: _Scope, group: bool = False) -> None:
        if "A_Const" in node and "ival" in node["A_Const"]:
            position = node["A_Const"]["ival"].get("ival", 0)
            flows = [outputs[position - 1][1]] if 0 < position <= len(outputs) else [flow for _, flow in outputs]
            return self.predicate(*flows)
        fields = node.get("ColumnRef", {}).get("fields", [])
        if len(fields) == 1 and "String" in fields[0]:
            self.predicate(*(flow for name, flow in outputs if name == fields[0]["String"]["sval"]))
            if not group and any(name == fields[0]["String"]["sval"] for name, _ in outputs):
                return None
            if group and not self.known(fields[0]["String"]["sval"], scope):
                return None
        return self.predicate(self.value(node, scope))

    def known(self, name: str, scope: _Scope) -> bool:
        return any(name in source.columns or source.alias == name for source in scope.sources)

    def predicate(self, *flows: Flow) -> None:
        for flow in flows:
            self.result.predicates |= flow.columns

    def targets(self, items: list[Node], scope: _Scope) -> list[tuple[str, Flow]]:
        outputs: list[tuple[str, Flow]] = []
        for item in items:
            target = item["ResTarget"]
            value = target["val"]
            star = self.star(value, scope)
            if star is not None:
                self.result.reads |= _derived(*(flow for _, flow in star)).columns
                outputs += star
                continue
            outputs.append((target.get("name") or _column_name(value), self.value(value, scope)))
        return outputs

    def star(self, value: Node, scope: _Scope) -> list[tuple[str, Flow]] | None:
        if "A_Indirection" in value and any("A_Star" in step for step in value["A_Indirection"]["indirection"]):
            inner = value["A_Indirection"]["arg"].get("ColumnRef")
            if inner and len(inner["fields"]) == 1 and not self.column_exists(inner["fields"][0], scope):
                value = {"ColumnRef": {"fields": [*inner["fields"], {"A_Star": {}}]}}
            else:
                self.result.exact = False
                return [("?column?", _derived(self.value(value["A_Indirection"]["arg"], scope)))]
        fields = value.get("ColumnRef", {}).get("fields", [])
        if not fields or "A_Star" not in fields[-1]:
            return None
        if len(fields) == 1:
            sources = scope.sources
            outputs = list(scope.merged.items())
        else:
            found = self.find(fields[:-1], scope)
            if found is None:
                self.result.exact = False
                return [("?column?", Flow(frozenset((UNKNOWN,))))]
            sources, outputs = [found], []
        skip = set(scope.merged) if len(fields) == 1 else set()
        for source in sources:
            if source.open:
                self.result.exact = False
                outputs.append(("?column?", source.whole))
            outputs += [(name.partition("\0")[0], flow) for name, flow in source.columns.items() if name not in skip]
        return outputs

    def column_exists(self, item: Node, scope: _Scope) -> bool:
        name = item.get("String", {}).get("sval")
        return any(name in source.columns for source in scope.sources)

    def find(self, fields: list[Node], scope: _Scope | None) -> _Source | None:
        parts = [item.get("String", {}).get("sval", "") for item in fields]
        while scope is not None:
            for source in scope.sources:
                if source.alias == parts[-1] and (len(parts) == 1 or source.schema == parts[-2]):
                    return source
            scope = scope.parent
        return None

    def source(self, item: Node, scope: _Scope) -> list[_Source]:
        (name, node), *_ = item.items()
        if name == "JoinExpr":
            left = self.source(node["larg"], scope)
            right = self.source(node["rarg"], scope)
            using = [each["String"]["sval"] for each in node.get("usingClause", ())]
            if node.get("isNatural"):
                using = [key for key in {k for s in left for k in s.columns} if any(key in source.columns for source in right)]
            for key in using:
                flows = [source.columns[key] for source in (*left, *right) if key in source.columns]
                self.predicate(*flows)
                scope.merged[key] = _either(*flows)
            if "quals" in node:
                self.predicate(self.value(node["quals"], scope))
            if node.get("alias"):
                columns = {key: flow for source in (*left, *right) for key, flow in source.columns.items()}
                joined = self.alias(node["alias"], _Source("", columns, open=any(s.open for s in (*left, *right))))
                scope.sources = [source for source in scope.sources if source not in (*left, *right)] + [joined]
                return [joined]
            if node.get("join_using_alias"):
                shared = {key: scope.merged[key] for key in using}
                scope.sources.append(_Source(node["join_using_alias"]["aliasname"], shared))
            return left + right
        if name == "RangeTableSample":
            self.predicate(*(self.value(argument, scope) for argument in node.get("args", ())))
            return self.source(node["relation"], scope)
        if name == "RangeVar":
            source = self.relation(node, scope)
        elif name == "RangeSubselect":
            source = self.named("", self.query(node["subquery"], scope), [])
        else:  # functions, JSON_TABLE, XMLTABLE: every column may carry every argument
            flow = self.value({key: value for key, value in node.items() if key != "alias"}, scope)
            names = [each["ColumnDef"]["colname"] for each in node.get("coldeflist", ())]
            names += [each["JsonTableColumn"].get("name", "") for each in node.get("columns", ()) if "JsonTableColumn" in each]
            source = _Source("", {each: _derived(flow) for each in names}, open=False)
            alias = node.get("alias", {})
            source.alias = alias.get("aliasname", "") or _function_name(node)
            for each in alias.get("colnames", ()):
                source.columns[each["String"]["sval"]] = _derived(flow)
            if not source.columns:
                source.columns = {source.alias: _derived(flow)}
            if flow.columns:
                source.open = True
            elif not names and not alias.get("colnames"):
                source.columns[source.alias] = flow
                source.blank = self.built_in(node)
            scope.sources.append(source)
            return [source]
        if node.get("alias"):
            source = self.alias(node["alias"], source)
        scope.sources.append(source)
        return [source]

    def built_in(self, node: Node) -> bool:
        """Whether a function in FROM is one of PostgreSQL's own: no other function has its name."""
        items = [item.get("List", {}).get("items", ()) for item in node.get("functions", ())]
        call = items[0][0].get("FuncCall", {}) if len(items) == 1 and items[0] else {}
        names = [part["String"]["sval"] for part in call.get("funcname", ())]
        if len(names) == 2:
            return bool(names[0] == "pg_catalog")
        return len(names) == 1 and not any(other.rpartition(".")[2] == names[0] for other in self.snapshot.functions)

    def alias(self, alias: Node, source: _Source) -> _Source:
        names = [each["String"]["sval"] for each in alias.get("colnames", ())]
        columns = {(names[i] if i < len(names) else key): flow for i, (key, flow) in enumerate(source.columns.items())}
        return _Source(alias["aliasname"], columns, "", source.open)

    def relation(self, node: Node, scope: _Scope) -> _Source:
        schema, name = node.get("schemaname", ""), node["relname"]
        if not schema and name in scope.ctes:
            cte = scope.ctes[name]
            return _Source(name, cte.columns, open=cte.open)
        relation = self.snapshot.resolve(schema, name, self.path)
        if relation is None:
            return _Source(name, {}, schema, open=True)
        self.result.touched[relation.qualified] = None
        return _Source(name, self.columns(relation), relation.schema)

    def columns(self, relation: Relation) -> dict[str, Flow]:
        own = {name: Flow(frozenset(((relation.schema, relation.name, name),)), True) for name in relation.columns.values()}
        behind = self.snapshot.behind.get(relation.oid)
        for name, sources in behind.generated.items() if behind is not None else ():
            if name in own:  # it tells what it is computed from
                own[name] = Flow(own[name].columns | {(relation.schema, relation.name, source) for source in sources})
        if not relation.definition:
            return own
        if self.depth >= _DEEPEST_VIEW:
            return {name: Flow(frozenset((UNKNOWN,))) for name in own}
        stmts = json.loads(parser.parse_sql_json(relation.definition))["stmts"]
        inner = trace(stmts[0]["stmt"], self.snapshot, ("pg_catalog",), self.depth + 1)
        self.result.touched.update(inner.touched)
        if not inner.exact or len(inner.outputs) != len(own):
            everything = _derived(*inner.outputs, Flow(frozenset((UNKNOWN,))))
            return {name: everything for name in own}
        return {name: Flow(flow.columns | own[name].columns, flow.bare) for name, flow in zip(own, inner.outputs, strict=True)}

    def write(self, name: str, node: Node, scope: _Scope) -> list[tuple[str, Flow]]:
        target = self.relation(node["relation"], _Scope(None, {}))
        if alias := node["relation"].get("alias"):
            target = self.alias(alias, target)
        if name == "InsertStmt":
            if "selectStmt" in node:
                for _, flow in self.query(node["selectStmt"], scope):
                    self.result.writes |= flow.columns
            scope.sources += [target, _Source("excluded", {key: _NOTHING for key in target.columns})]
            if clause := node.get("onConflictClause"):
                self.assignments(clause.get("targetList", []), scope)
                for part in (clause.get("whereClause"), clause.get("infer", {}).get("whereClause")):
                    if part:
                        self.predicate(self.value(part, scope))
            scope.sources.pop()
        else:
            scope.sources.append(target)
            for item in (*node.get("fromClause", ()), *node.get("usingClause", ())):
                self.source(item, scope)
            if "sourceRelation" in node:
                self.source(node["sourceRelation"], scope)
            for part in ("whereClause", "joinCondition"):
                if part in node:
                    self.predicate(self.value(node[part], scope))
            self.assignments(node.get("targetList", []), scope)
            for item in node.get("mergeWhenClauses", ()):
                clause = item["MergeWhenClause"]
                if "condition" in clause:
                    self.predicate(self.value(clause["condition"], scope))
                self.assignments(clause.get("targetList", []), scope)
                for value in clause.get("values", ()):
                    self.result.writes |= self.value(value, scope).columns
        if not (returning := node.get("returningClause")):
            return []
        olds = ["old", "new"]
        for option in returning.get("options", ()):
            olds.append(option["ReturningOption"]["value"])
        outputs_scope = _Scope(scope, scope.ctes, scope.sources, scope.merged)
        parent = _Scope(scope.parent, scope.ctes, [_Source(each, target.columns, open=target.open) for each in olds])
        outputs_scope.parent = parent
        return self.targets(returning["exprs"], outputs_scope)

    def assignments(self, items: list[Node], scope: _Scope) -> None:
        for item in items:
            if "val" in item.get("ResTarget", {}):
                self.result.writes |= self.value(item["ResTarget"]["val"], scope).columns

    def definition(self, node: Any) -> None:
        """Expressions in definitions (defaults, USING, generated columns, indexes): column names without a scope."""
        if isinstance(node, list):
            for item in node:
                self.definition(item)
        elif isinstance(node, dict):
            if "SelectStmt" in node:
                for _, flow in self.query({"SelectStmt": node["SelectStmt"]}, _Scope(None, {})):
                    self.result.writes |= flow.columns
                return
            if "relname" in node and "relpersistence" in node:
                source = self.relation(node, _Scope(None, {}))
                if source.open:
                    return
            if "ColumnRef" in node:
                fields = [each.get("String", {}).get("sval", "") for each in node["ColumnRef"]["fields"]]
                self.result.writes |= {(*name.split(".", 1), fields[-1]) for name in self.result.touched}
            for value in node.values():
                self.definition(value)

    def value(self, node: Any, scope: _Scope) -> Flow:
        """What flows into an expression, subqueries included."""
        if isinstance(node, list):
            return self.within(node, scope)
        if not isinstance(node, dict) or "A_Const" in node:
            return _NOTHING
        if "ColumnRef" in node:
            named = self.reference(node["ColumnRef"]["fields"], scope)
            self.result.reads |= named.columns
            return named
        if "FuncCall" in node:
            return self.call(node["FuncCall"], scope)
        if "A_Expr" in node and self.foreign(self.snapshot.operators, node["A_Expr"].get("name", ())):
            return self.given(self.within(node.values(), scope))
        if "SubLink" in node and self.foreign(self.snapshot.operators, node["SubLink"].get("operName", ())):
            compared = self.query(node["SubLink"]["subselect"], scope)
            return self.given(_derived(*(flow for _, flow in compared), self.value(node["SubLink"].get("testexpr"), scope)))
        if "SubLink" in node:
            link = node["SubLink"]
            outputs = self.query(link["subselect"], scope)
            if link["subLinkType"] == "EXISTS_SUBLINK":
                return _NOTHING
            if link["subLinkType"] == "EXPR_SUBLINK" and len(outputs) == 1:
                return outputs[0][1]
            return _derived(*(flow for _, flow in outputs), self.value(link.get("testexpr"), scope))
        if "TypeCast" in node and "arg" in node["TypeCast"]:
            cast = _derived(self.value(node["TypeCast"]["arg"], scope))
            return self.given(cast) if self.foreign(self.snapshot.casts, node["TypeCast"]["typeName"].get("names", ())) else cast
        if "RangeSubselect" in node or "SelectStmt" in node:
            tree = node.get("RangeSubselect", {}).get("subquery") or {"SelectStmt": node["SelectStmt"]}
            return _derived(*(flow for _, flow in self.query(tree, scope)))
        return self.within(node.values(), scope)

    def within(self, parts: Iterable[Any], scope: _Scope) -> Flow:
        """What flows into something computed from these parts."""
        flows = [flow for part in parts if isinstance(part, dict | list) and (flow := self.value(part, scope)).columns]
        return _derived(*flows) if flows else _NOTHING

    def foreign(self, functions: Mapping[str, frozenset[int]], names: Sequence[Node]) -> bool:
        """Whether an operator or type of this name calls a function that may read anything."""
        oids = functions.get(names[-1].get("String", {}).get("sval", ""), ()) if names and functions else ()
        return any(self.snapshot.routines[oid].language not in ("c", "internal") for oid in oids if oid in self.snapshot.routines)

    def given(self, flow: Flow) -> Flow:
        """What comes of values that are given to a function that may read anything and has effects of its own."""
        self.result.sinks |= flow.columns
        return _derived(flow, Flow(frozenset((UNKNOWN,))))

    def call(self, call: Node, scope: _Scope) -> Flow:
        parts = [each["String"]["sval"] for each in call.get("funcname", ())]
        arguments = [self.value(argument, scope) for argument in call.get("args", ())]
        rest = [self.value(call[key], scope) for key in ("agg_filter", "agg_order", "over") if key in call]
        flow = _derived(*arguments, *rest)
        if parts[-1] == "count" and len(arguments) == 1 and not rest and arguments[0].bare and not call.get("agg_distinct"):
            return _NOTHING
        users = parts[0] != "pg_catalog" and any(name.partition(".")[2] == parts[-1] for name in self.snapshot.functions)
        if users:
            return self.given(flow)
        if parts[-1].startswith(_SINKS):
            self.result.sinks |= flow.columns
        return flow

    def reference(self, fields: list[Node], scope: _Scope) -> Flow:
        if "A_Star" in fields[-1]:
            found = self.find(fields[:-1], scope) if len(fields) > 1 else None
            return found.whole if found else _derived(*(source.whole for source in scope.sources))
        name = fields[-1]["String"]["sval"]
        if len(fields) == 1:
            return self.plain(name, scope)
        source = self.find(fields[:-1], scope)
        if source is None:  # (column).field, or a table that is not in scope
            first = self.plain(fields[0]["String"]["sval"], scope)
            return _derived(first) if first.columns else Flow(frozenset((UNKNOWN,)))
        if name in source.columns:
            return source.columns[name]
        return _NOTHING if name in _SYSTEM else source.whole  # table.function is a function of the row

    def plain(self, name: str, scope: _Scope) -> Flow:
        place: _Scope | None = scope
        while place is not None:
            if name in place.merged:
                return place.merged[name]
            found = [source.columns[name] for source in place.sources if name in source.columns]
            if found:
                return found[0] if len(found) == 1 else _derived(*found)
            if any(source.open for source in place.sources):
                return Flow(frozenset((UNKNOWN,)))
            for source in place.sources:
                if source.alias == name:
                    return source.whole
            place = place.parent
        # Every other source is known with all its columns: it is the function's.
        if any(source.blank for place in scope.chain() for source in place.sources):
            return _NOTHING
        return _NOTHING if name in _SYSTEM else Flow(frozenset((UNKNOWN,)))


def _either(*flows: Flow) -> Flow:
    carrying = [flow for flow in flows if flow.columns]
    return Flow(_derived(*flows).columns, bool(carrying) and all(flow.bare for flow in carrying))


def _column_name(node: Node) -> str:
    if "ColumnRef" in node:
        return str(node["ColumnRef"]["fields"][-1].get("String", {}).get("sval", "?column?"))
    if "FuncCall" in node:
        return str(node["FuncCall"]["funcname"][-1]["String"]["sval"])
    if "TypeCast" in node:
        return _column_name(node["TypeCast"]["arg"])
    return "?column?"


def _function_name(node: Node) -> str:
    for item in node.get("functions", ()):
        for inner in item.get("List", {}).get("items", ()):
            if "FuncCall" in inner:
                return str(inner["FuncCall"]["funcname"][-1]["String"]["sval"])
    return ""

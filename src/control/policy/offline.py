"""Judging without a gateway: a policy document, and a schema written as SQL or JSON instead of a database.

Never add here: anything that connects. What the schema does not say can't be judged as in a database, and is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pglast import parser

from control.policy.catalog import Relation, Snapshot
from control.policy.engine import PolicyEngine
from control.policy.explaining import Explanation, explain
from control.policy.lineage import trace
from control.policy.rules import PolicyError
from pgwire.ports import Principal

__all__ = ["Offline", "check", "read_schema"]

Node = dict[str, Any]
_SYSTEM = Path(__file__).parent / "system_catalog.json"  # the relations of PostgreSQL 18's own schemas, with their columns
_OID = 20000  # of the first relation made up


def check(document: str, name: str) -> str:
    """The version of a document. Raises ``PolicyError`` with everything that is wrong with it."""
    return PolicyEngine(Path(name), {}, document=document).version


class Offline:
    """Explains statements under ``document`` on any database, each with the same ``schema``. Raises ``PolicyError``, ``ValueError``."""

    def __init__(self, document: str, name: str, schema: str) -> None:
        self._document, self._name, self._source = document, name, _Fixed(read_schema(schema))
        self.version = check(document, name)

    async def explain(
        self,
        principal: Principal,
        database: str,
        sql: str,
        *,
        clock: Callable[[], float] | None = None,
        bound: tuple[tuple[bytes | None, ...], tuple[int, ...]] | None = None,
    ) -> Explanation:
        """See ``explaining.explain``."""
        engine = PolicyEngine(Path(self._name), {database: self._source}, document=self._document)
        if clock is not None:
            engine = engine.at(clock)
        return await explain(engine, principal, database, sql, bound=bound)


class _Fixed:
    """A ``CatalogSource`` of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def present(self) -> Snapshot | None:
        return self._snapshot

    async def snapshot(self) -> Snapshot:
        return self._snapshot

    async def refresh(self) -> Snapshot:
        return self._snapshot

    async def rest(self) -> None:
        pass

    async def guards(self, oids: Sequence[int]) -> str:
        return ""

    async def function(self, oid: int) -> tuple[str, str] | None:
        return None

    async def parameter_types(self, text: bytes, told: tuple[int, ...], paths: tuple[tuple[str, ...], ...]) -> tuple[int, ...] | None:
        return None


def read_schema(text: str) -> Snapshot:
    """The catalog that a schema describes: SQL as of ``pg_dump --schema-only``, or JSON ``{"schema.table": ["column", …]}``.

    Raises ``ValueError`` when it can't be read.
    """
    if text.lstrip().startswith("{"):
        tables = json.loads(text)
        if not isinstance(tables, dict) or not all(isinstance(columns, list) for columns in tables.values()):
            raise ValueError('the schema must be {"schema.table": ["column", …], …}')
        made = _Schema()
        for name, columns in tables.items():
            schema, _, table = str(name).rpartition(".")
            made.add(schema or "public", table, [str(column) for column in columns], "r")
        return made.snapshot()
    plain = "\n".join("" if line.startswith("\\") else line for line in text.splitlines())  # psql's own commands
    try:
        statements = json.loads(parser.parse_sql_json(plain))["stmts"]
    except parser.ParseError as error:
        raise ValueError(f"the schema is not SQL that PostgreSQL reads: {error.args[0]}") from None
    made = _Schema()
    for statement in statements:
        made.statement(statement["stmt"], plain.encode(), statement)
    return made.snapshot()


class _Schema:
    """A catalog as its definitions come."""

    def __init__(self) -> None:
        self.relations: dict[int, Relation] = {}
        self.functions: dict[str, bool] = {}
        self.schemas = {"public", "pg_catalog", "information_schema"}
        self.parents: dict[int, set[int]] = {}
        for name, columns in json.loads(_SYSTEM.read_text(encoding="utf-8")).items():
            schema, _, table = name.partition(".")
            self.add(schema, table, columns, "r")

    def add(self, schema: str, name: str, columns: list[str], kind: str, definition: str = "") -> int:
        oid = _OID + len(self.relations)
        self.relations[oid] = Relation(oid, schema, name, kind, dict(enumerate(columns, start=1)), definition)
        self.schemas.add(schema)
        return oid

    def snapshot(self) -> Snapshot:
        kin: dict[int, frozenset[int]] = {}
        for child, parents in self.parents.items():
            family = {child, *parents}.union(*(kin.get(each, frozenset()) for each in (child, *parents)))
            kin.update(dict.fromkeys(family, frozenset(family)))
        return Snapshot(
            self.relations,
            {(relation.schema, relation.name): relation for relation in self.relations.values()},
            frozenset(self.functions),
            frozenset(name for name, opaque in self.functions.items() if opaque),
            kin,
            schemas=frozenset(self.schemas),
            version=1,
        )

    def find(self, var: Mapping[str, Any]) -> Relation | None:
        return self.snapshot().resolve(var.get("schemaname", ""), var["relname"], ("public",))

    def statement(self, node: Node, text: bytes, where: Mapping[str, int]) -> None:
        (name, body), *_ = node.items()
        if name in ("CreateStmt", "CreateForeignTableStmt"):
            self.table(body.get("base", body) if name == "CreateForeignTableStmt" else body)
        elif name == "ViewStmt":
            begin = where.get("stmt_location", 0)
            self.view(body["view"], body["query"], [each["String"]["sval"] for each in body.get("aliases", ())], "v", text, begin, where)
        elif name == "CreateTableAsStmt":
            into = body["into"]
            names = [each["String"]["sval"] for each in into.get("colNames", ())]
            self.view(into["rel"], body["query"], names, "m", text, where.get("stmt_location", 0), where)
        elif name == "CreateFunctionStmt":
            self.function(body)
        elif name == "CreateSchemaStmt" and body.get("schemaname"):
            self.schemas.add(body["schemaname"])
        elif name == "AlterTableStmt":
            self.alter(body)

    def table(self, body: Node) -> None:
        columns = [item["ColumnDef"]["colname"] for item in body.get("tableElts", ()) if "ColumnDef" in item]
        parents = [parent for item in body.get("inhRelations", ()) if (parent := self.find(item["RangeVar"])) is not None]
        inherited = [column for parent in parents for column in parent.columns.values() if column not in columns]
        var = body["relation"]
        oid = self.add(var.get("schemaname", "public"), var["relname"], list(dict.fromkeys([*inherited, *columns])), "r")
        if parents:
            self.parents[oid] = {parent.oid for parent in parents}

    def view(self, var: Node, query: Node, names: list[str], kind: str, text: bytes, begin: int, where: Mapping[str, int]) -> None:
        lineage = trace(query, self.snapshot(), ("public",))
        found = [_name_of(target) for target in query.get("SelectStmt", {}).get("targetList", ())]
        columns = names or (found if len(found) == len(lineage.outputs) else [])
        if len(columns) != len(lineage.outputs):
            columns = [f"column{number}" for number, _ in enumerate(lineage.outputs, start=1)]
        length = where.get("stmt_len") or len(text) - begin
        definition = self.qualified(_query_text(text[begin : begin + length].decode()))
        self.add(var.get("schemaname", "public"), var["relname"], columns, kind, definition)

    def qualified(self, query: str) -> str:
        """The query with the schema before every table, as the server gives the definitions of views."""
        snapshot, raw = self.snapshot(), query.encode()
        places: dict[int, str] = {}
        for var in _within(json.loads(parser.parse_sql_json(query))):
            relation = snapshot.resolve("", var["relname"], ("public",)) if not var.get("schemaname") else None
            if relation is not None:
                places[var.get("location", 0)] = relation.schema
        for place in sorted(places, reverse=True):
            raw = raw[:place] + f'"{places[place]}".'.encode() + raw[place:]
        return raw.decode()

    def function(self, body: Node) -> None:
        names = [each["String"]["sval"] for each in body["funcname"]]
        options = {item["DefElem"]["defname"]: item["DefElem"].get("arg", {}) for item in body.get("options", ())}
        language = options.get("language", {}).get("String", {}).get("sval", "sql")
        volatile = options.get("volatility", {}).get("String", {}).get("sval", "volatile") == "volatile"
        definer = bool(options.get("security", {}).get("Boolean", {}).get("boolval"))
        name = ".".join(names if len(names) > 1 else ["public", *names])
        self.functions[name] = (volatile or definer) and language not in ("c", "internal")

    def alter(self, body: Node) -> None:
        relation = self.find(body["relation"])
        for item in body.get("cmds", ()):
            command = item["AlterTableCmd"]
            column = command.get("def", {}).get("ColumnDef", {}).get("colname")
            if relation is not None and command.get("subtype") == "AT_AddColumn" and column:
                relation = replace(relation, columns={**relation.columns, max(relation.columns, default=0) + 1: column})
                self.relations[relation.oid] = relation
            partition = command.get("def", {}).get("PartitionCmd", {}).get("name")
            if relation is not None and partition and (child := self.find(partition)) is not None:
                self.parents[child.oid] = {relation.oid}


def _within(node: Any) -> Iterator[Node]:
    """The tables that a tree names."""
    if isinstance(node, list):
        for item in node:
            yield from _within(item)
    elif isinstance(node, dict):
        if "RangeVar" in node:
            yield node["RangeVar"]
        for value in node.values():
            yield from _within(value)


def _name_of(target: Node) -> str:
    body = target["ResTarget"]
    fields = body["val"].get("ColumnRef", {}).get("fields", [])
    call = body["val"].get("FuncCall", {}).get("funcname", [])
    named = (fields or call or [{}])[-1].get("String", {}).get("sval", "?column?")
    return str(body.get("name") or named)


def _query_text(statement: str) -> str:
    """What stands behind AS in the definition of a view."""
    for token in parser.scan(statement):
        if token.name == "AS":
            rest = statement[token.end + 1 :].rstrip().removesuffix(";")
            for tail in ("WITH NO DATA", "WITH DATA", "WITH CHECK OPTION", "WITH LOCAL CHECK OPTION", "WITH CASCADED CHECK OPTION"):
                if rest.upper().endswith(tail):
                    rest = rest[: -len(tail)].rstrip()
            try:
                parser.parse_sql_json(rest)
            except parser.ParseError:
                continue
            return rest
    raise PolicyError("a view's query can't be found")

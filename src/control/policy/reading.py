"""Reads the facts of a text from PostgreSQL's own grammar.

Purely syntactic: names stay as written, CTEs are told from tables, everything nested is walked (WITH, subqueries, EXPLAIN
ANALYZE, PREPARE and EXECUTE, cursors, COPY (query), CREATE TABLE AS). Never add here: the catalog, or an opinion of the policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pglast import parser

from control.policy.builtins import is_closed
from control.policy.facts import Access, Facts, Name, Names, Node, Refusal, Setting, Unreadable
from control.policy.narrowing import Condition, narrows

__all__ = ["DEFINED_KINDS", "defined", "object_kind", "read_facts", "read_tree", "string_list"]

_QUERIES = frozenset({"select", "insert", "update", "delete", "merge"})
_HOLD = 0x20  # CURSOR_OPT_HOLD
_KEEPERS = frozenset({"savepoint", "release", "rollback_to", "commit", "rollback"})
_DML_NODES = {"SelectStmt": "select", "InsertStmt": "insert", "UpdateStmt": "update", "DeleteStmt": "delete", "MergeStmt": "merge"}
# WITH is read before; FOR UPDATE OF names aliases, not tables; a constant has nothing in it
_NOT_WALKED = frozenset({"withClause", "lockedRels", "A_Const"})
_NODE_KINDS = {
    "CreateStmt": "create_table", "IndexStmt": "create_index", "ViewStmt": "create_view", "CreateSeqStmt": "create_sequence",
    "CreateSchemaStmt": "create_schema", "CompositeTypeStmt": "create_type",
    "CreateRangeStmt": "create_type", "CreateEnumStmt": "create_enum",
    "AlterSeqStmt": "alter_sequence", "RefreshMatViewStmt": "refresh_materialized_view", "RuleStmt": "create_rule", "ListenStmt": "listen",
    "CreateTrigStmt": "create_trigger", "GrantRoleStmt": "grant", "UnlistenStmt": "unlisten", "NotifyStmt": "notify",
    "ConstraintsSetStmt": "set_constraints", "CheckPointStmt": "checkpoint", "SecLabelStmt": "security_label", "LockStmt": "lock",
    "CreatedbStmt": "create_database", "DropdbStmt": "drop_database",
    "CreateStatsStmt": "create_statistics", "AlterStatsStmt": "alter_statistics",
}  # fmt: skip
_TRANSACTIONS = {
    "TRANS_STMT_BEGIN": "begin", "TRANS_STMT_START": "begin", "TRANS_STMT_COMMIT": "commit", "TRANS_STMT_ROLLBACK": "rollback",
    "TRANS_STMT_PREPARE": "prepare_transaction", "TRANS_STMT_COMMIT_PREPARED": "commit_prepared",
    "TRANS_STMT_ROLLBACK_PREPARED": "rollback_prepared", "TRANS_STMT_SAVEPOINT": "savepoint",
    "TRANS_STMT_RELEASE": "release", "TRANS_STMT_ROLLBACK_TO": "rollback_to",
}  # fmt: skip


DEFINED_KINDS = frozenset({*_NODE_KINDS.values(), *_TRANSACTIONS.values()})


def read_facts(text: bytes, names: Names | None) -> tuple[Facts, ...]:
    """The facts of every statement in ``text``. ``names`` are the session's prepared statements and cursors.

    Raises ``Unreadable``.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("22021", f"the statement is not valid UTF-8 at byte {error.start}") from None
    try:
        statements = json.loads(parser.parse_sql_json(decoded))["stmts"]
    except parser.ParseError as error:
        message, at, *_ = (*error.args, None, None)
        raise Unreadable("42601", str(message or "syntax error"), (len(decoded) if at is None else int(at)) + 1) from None
    except RecursionError:
        raise Unreadable("54001", "the statement is nested too deeply to be judged") from None
    known, found = _Known(names), list[Facts]()
    for item in statements:
        start = item.get("stmt_location", 0)
        end = start + item["stmt_len"] if item.get("stmt_len") else len(text)
        try:
            facts = _statement(item["stmt"], text[start:end], known)
        except RecursionError:
            raise Unreadable("54001", "the statement is nested too deeply to be judged") from None
        facts = facts if names is None else _configuring(facts)
        for change in facts.names:
            known.change(change)
        found.append(facts)
    return tuple(found) or (Facts(("empty",)),)


def read_tree(tree: Node) -> Facts:
    """The facts of one statement that has been parsed already and uses no name of a session's."""
    return _statement(tree, b"", _Known(None))


class _Known:
    """The session's names with what the statements of one text have changed of them until now."""

    def __init__(self, names: Names | None) -> None:
        self._names = names
        self._own: dict[tuple[str, str], tuple[Facts, ...]] = {}

    def change(self, change: Name) -> None:
        self._own[change.space, change.name] = (change.facts,) if change.facts is not None else ()

    def get(self, key: tuple[str, str], default: tuple[Facts, ...] = (), /) -> tuple[Facts, ...]:
        space, name = ("cursor" if key[0] == "portal" else key[0]), key[1]
        if (space, name) in self._own:
            return self._own[space, name] if key[0] == space else ()
        return default if (space, "") in self._own or self._names is None else self._names.get(key, default)


def string_list(items: list[Node]) -> list[str]:
    """The strings of a list of String nodes (a qualified name)."""
    return [item["String"].get("sval", "") for item in items if "String" in item]


def _statement(stmt: Node, text: bytes, names: Names) -> Facts:
    (node_name, node), *_ = stmt.items()
    if node_name in _DML_NODES:
        return _dml(node_name, node)
    read = _READERS.get(node_name)
    return _definition(node_name, node) if read is None else read(node, text, names)


class _Walk:
    """Collects tables and functions of one tree; CTE names in scope are not tables."""

    def __init__(self) -> None:
        self.accesses: dict[tuple[str, str, str], Access] = {}
        self.functions: set[str] = set()
        self.kinds: dict[str, None] = {}
        self.refusals: list[Refusal] = []
        self.queries: dict[str, Node] = {}  # of every WITH, by name

    def touch(self, relation: Node, verb: str, condition: Condition | None = None) -> None:
        wide, conditions = condition is not None and not narrows(condition), (condition,) if condition is not None else ()
        schema, name = relation.get("schemaname", ""), relation.get("relname", "")
        if (before := self.accesses.get((schema, name, verb))) is not None:
            wide, conditions = wide or before.wide, (*before.conditions, *conditions)
        temporary = relation.get("relpersistence") == "t" or (before is not None and before.temporary)
        self.accesses[schema, name, verb] = Access(schema, name, verb, wide, temporary, conditions=conditions)

    def walk(self, node: Any, ctes: frozenset[str] = frozenset(), verb: str = "select") -> None:
        if isinstance(node, list):
            for item in node:
                self.walk(item, ctes, verb)
            return
        if not isinstance(node, dict):
            return
        if "relname" in node and "relpersistence" in node:
            if node.get("schemaname") or node["relname"] not in ctes:
                self.touch(node, verb)
            return
        clause = node.get("withClause")
        if clause:
            ctes = self._with(clause, ctes, verb)
        for key, value in node.items():
            if not isinstance(value, dict | list) or key in _NOT_WALKED:
                continue
            if key in _DML_NODES and isinstance(value, dict):
                self.dml(key, value, ctes)
            elif key == "FuncCall" and isinstance(value, dict):
                self._function(value)
                self.walk(value, ctes, verb)
            elif key == "TableLikeClause":
                self.walk(value, ctes)  # what it is like is only looked at
            else:
                self.walk(value, ctes, verb)

    def _with(self, clause: Node, ctes: frozenset[str], verb: str) -> frozenset[str]:
        items = [item["CommonTableExpr"] for item in clause["ctes"]]
        if clause.get("recursive"):
            ctes |= {item["ctename"] for item in items}
        for item in items:
            self.walk(item["ctequery"], ctes, verb)
            ctes |= {item["ctename"]}
        return ctes

    def dml(self, name: str, node: Node, ctes: frozenset[str]) -> None:
        if clause := node.get("withClause"):
            self.queries |= {item["CommonTableExpr"]["ctename"]: item["CommonTableExpr"]["ctequery"] for item in clause["ctes"]}
            ctes = self._with(clause, ctes, "select")
            node = {key: value for key, value in node.items() if key != "withClause"}
        kind = _DML_NODES[name]
        if not (self.kinds and node.get("valuesLists")):
            self.kinds[kind] = None
        if name == "SelectStmt":
            if into := node.get("intoClause"):
                self.kinds["select_into"] = None
                self.touch(into["rel"], "ddl")
            self.walk({key: value for key, value in node.items() if key != "intoClause"}, ctes)
            return
        target = node["relation"]
        if name == "InsertStmt":
            self.touch(target, "insert")
            if node.get("onConflictClause", {}).get("action") == "ONCONFLICT_UPDATE":
                self.kinds["update"] = None
                self.touch(target, "update")
        elif name == "MergeStmt":
            for clause in node.get("mergeWhenClauses", ()):
                command = clause["MergeWhenClause"].get("commandType", "")
                if command in ("CMD_INSERT", "CMD_UPDATE", "CMD_DELETE"):
                    self.kinds[command[4:].lower()] = None
                    self.touch(target, command[4:].lower(), _merged(node, clause["MergeWhenClause"], self.queries))
        else:
            sources = (*node.get("fromClause", ()), *node.get("usingClause", ()))
            self.touch(target, kind, Condition(target, node.get("whereClause"), sources, self.queries))
        if node.get("returningClause") or name == "MergeStmt":
            self.touch(target, "select")
        self.walk({key: value for key, value in node.items() if key != "relation"}, ctes)

    def _function(self, call: Node) -> None:
        name = ".".join(string_list(call.get("funcname", [])))
        plain = name.removeprefix("pg_catalog.")
        self.functions.add(plain)
        if is_closed(plain.rpartition(".")[2]):
            what = f"function {plain} reaches files, other sessions or unjudged SQL and is not available"
            self.refusals.append(Refusal(what, "A rule may name it in when.functions.", function=plain.rpartition(".")[2].lower()))
        elif plain == "set_config":
            arguments = call.get("args", [])
            constant = arguments[0].get("A_Const", {}).get("sval", {}).get("sval") if arguments else None
            if constant is None or _watched(constant):
                what = constant or "a computed name"
                self.refusals.append(Refusal(f"set_config of {what} is not available", "Use a plain SET statement."))


_FIXED_SETTINGS = {
    "standard_conforming_strings": frozenset({"on", "true", "yes", "1"}),
    "client_encoding": frozenset({"utf8", "utf-8", "unicode"}),
    "backslash_quote": frozenset({"safe_encoding"}),
    "row_security": frozenset({"on", "true", "yes", "1"}),
}
_OWN_SETTINGS = frozenset({"role", "session_authorization", "session_replication_role", "local_preload_libraries"})


def _watched(name: str) -> bool:
    return name.lower() in _FIXED_SETTINGS or name.lower() in _OWN_SETTINGS or name.lower() in ("search_path", "is_superuser")


def _merged(node: Node, clause: Node, queries: dict[str, Node]) -> Condition | None:
    """What decides over which rows of its target one action of a MERGE works; INSERT works on none."""
    if clause.get("commandType") == "CMD_INSERT":
        return None
    matched = clause.get("matchKind", "") != "MERGE_WHEN_NOT_MATCHED_BY_SOURCE"
    join = node.get("joinCondition") if matched else None
    return Condition(node["relation"], join, (node["sourceRelation"],), queries, clause.get("condition"))


def _dml(name: str, node: Node) -> Facts:
    walk = _Walk()
    walk.dml(name, node, frozenset())
    rows = (name == "SelectStmt" and not node.get("intoClause")) or bool(node.get("returningClause"))
    return _facts(walk, (_DML_NODES[name],), tree={name: node}, rows=rows, outputs=rows)


def _facts(walk: _Walk, kinds: tuple[str, ...], **more: Any) -> Facts:
    ordered = dict.fromkeys((*kinds, *walk.kinds))
    return Facts(tuple(ordered), tuple(walk.accesses.values()), frozenset(walk.functions), refusals=tuple(walk.refusals), **more)


def _within(outer: str, inner: tuple[Facts, ...], **more: Any) -> Facts:
    """Facts of a statement that stands for others."""
    kinds = dict.fromkeys((outer, *(kind for facts in inner for kind in facts.kinds)))
    accesses = dict.fromkeys(access for facts in inner for access in facts.accesses)
    functions = frozenset().union(*(facts.functions for facts in inner))
    refusals = tuple(refusal for facts in inner for refusal in facts.refusals)
    return Facts(tuple(kinds), tuple(accesses), functions, refusals=refusals, inner=inner, **more)


def _explain(node: Node, text: bytes, names: Names) -> Facts:
    inner = _statement(node["query"], text, names)
    options = {name for name, on in _switches(node).items() if on}
    if "analyze" not in options:
        reads = dict.fromkeys(replace(access, verb="select", wide=False) for access in inner.accesses)
        inner = replace(inner, kinds=("select",), accesses=tuple(reads))
    return replace(_within("explain", (inner,)), rows=True, unknown_name=inner.unknown_name)


def _switches(node: Node) -> dict[str, bool]:
    """The options of an EXPLAIN, and whether they are on: the last of a name counts, and what is not plainly off is on."""
    switches: dict[str, bool] = {}
    for option in node.get("options", ()):
        given = option["DefElem"].get("arg", {})
        off = (
            given.get("Integer") == {} or given.get("Boolean") == {} or given.get("String", {}).get("sval", "").lower() in ("false", "off")
        )
        switches[option["DefElem"]["defname"].lower()] = not off
    return switches


def _prepare(node: Node, text: bytes, names: Names) -> Facts:
    body = _after(text, "AS")
    inner = _statement(node["query"], body, names)
    return _within("prepare", (inner,), executes=False, names=(Name("statement", node["name"], inner, body),))


def _execute(node: Node, _: bytes, names: Names) -> Facts:
    inner = names.get(("statement", node["name"]), ())
    facts = _within("execute", inner, rows=any(each.rows for each in inner), unknown_name="" if inner else node["name"])
    return _with_parameters(_plainly(facts), node)


def _plainly(facts: Facts) -> Facts:
    # Parse gives names to everything, PREPARE to queries only: what SET or DEALLOCATE change under a name is not followed.
    if all(each.kind in _QUERIES for each in facts.inner):
        return facts
    why = f"{facts.kind.upper()} of what is no query is not available"
    return replace(facts, refusals=(*facts.refusals, Refusal(why, "Execute it by the protocol.", "0A000")))


def _with_parameters(facts: Facts, node: Node) -> Facts:
    walk = _Walk()
    walk.walk(node.get("params", []))
    return replace(
        facts,
        accesses=tuple(dict.fromkeys((*facts.accesses, *walk.accesses.values()))),
        functions=facts.functions | walk.functions,
        refusals=(*facts.refusals, *walk.refusals),
        tree={"SelectStmt": {"targetList": [{"ResTarget": {"val": value}} for value in node["params"]]}} if node.get("params") else None,
    )


def _declare(node: Node, text: bytes, names: Names) -> Facts:
    body = _after(text, "FOR")
    inner = _statement(node["query"], body, names)
    holds = bool(node.get("options", 0) & _HOLD)
    return _within("declare", (inner,), names=(Name("cursor", node["portalname"], inner, body, holds),))


def _fetch(node: Node, _: bytes, names: Names) -> Facts:
    name, moves = node["portalname"], bool(node.get("ismove"))
    kind, bound = "move" if moves else "fetch", names.get(("portal", name), ())
    if bound:
        # Nobody has asked yet whether what is bound may run, and this runs it.
        return _plainly(_within(kind, bound, rows=not moves and any(each.rows for each in bound)))
    # What the cursor reads was judged when it was declared; only its columns matter now.
    inner = names.get(("cursor", name), ())
    return Facts((kind,), rows=not moves, inner=inner, unknown_name="" if inner else name)


def _after(text: bytes, keyword: str) -> bytes:
    decoded, depth = text.decode(), 0
    for token in parser.scan(decoded):
        if token.name == "ASCII_40":
            depth += 1
        elif token.name == "ASCII_41":
            depth -= 1
        elif depth == 0 and token.name == keyword:
            return decoded[token.end + 1 :].strip().encode()
    return text


def _copy(node: Node, _: bytes, __: Names) -> Facts:
    walk = _Walk()
    out = not node.get("is_from")
    kind = "copy_to" if out else "copy_from"
    tree: Node | None = None
    if node.get("is_program") or node.get("filename"):
        where = "a program" if node.get("is_program") else "a file"
        way = "Use COPY TO STDOUT." if out else "Use COPY FROM STDIN."
        walk.refusals.append(Refusal(f"COPY with {where} on the server is not available", way))
    if query := node.get("query"):
        walk.walk(query)
        tree = query
    else:
        walk.touch(node["relation"], "select" if out else "insert")
        walk.walk({key: value for key, value in node.items() if key not in ("relation", "query")})
        columns = string_list(node.get("attlist", []))
        fields = [{"String": {"sval": name}} for name in columns] or [{"A_Star": {}}]
        targets = [{"ResTarget": {"val": {"ColumnRef": {"fields": [each]}}}} for each in fields]
        source = {"fromClause": [{"RangeVar": node["relation"]}]}
        if out:
            tree = {"SelectStmt": {"targetList": targets, **source}}
        elif node.get("whereClause"):
            tree = {"SelectStmt": {**source, "whereClause": node["whereClause"]}}
    return _facts(walk, (kind,), tree=tree, copies_out=out)


def _create_as(node: Node, text: bytes, names: Names) -> Facts:
    inner = _statement(node["query"], text, names)
    kind = "create_materialized_view" if node.get("objtype") == "OBJECT_MATVIEW" else "create_table_as"
    walk = _Walk()
    walk.touch(node["into"]["rel"], "ddl")
    facts = _within(kind, (inner,), unknown_name=inner.unknown_name)
    return replace(facts, accesses=(*walk.accesses.values(), *facts.accesses), tree={"CreateTableAsStmt": node})


def _set(node: Node, _: bytes, __: Names) -> Facts:
    how, name, local = node["kind"], node.get("name", "").lower(), bool(node.get("is_local"))
    if how == "VAR_SET_MULTI":
        snapshot = name == "transaction snapshot"
        return Facts(("set_transaction",), refusals=(Refusal("SET TRANSACTION SNAPSHOT is not available"),) if snapshot else ())
    if how == "VAR_RESET_ALL":
        return Facts(("reset",), settings=(Setting("*", None),))
    values: tuple[str, ...] | None = None
    if how == "VAR_SET_VALUE":
        values = tuple(_constant(argument) for argument in node.get("args", ()))
    refusal = _setting_refusal(name, values, how)
    kind = "reset" if how == "VAR_RESET" else "set"
    return Facts((kind,), settings=(Setting(name, values, local),), refusals=(refusal,) if refusal else ())


def _setting_refusal(name: str, values: tuple[str, ...] | None, how: str) -> Refusal | None:
    if name in _OWN_SETTINGS:
        return Refusal(f"the setting {name} belongs to the gateway", "The session's role is the one that was minted for your grant.")
    if name in _FIXED_SETTINGS and values is not None and not {value.lower() for value in values} <= _FIXED_SETTINGS[name]:
        return Refusal(f"the setting {name} must stay as it is, since it changes what a statement means")
    if how == "VAR_SET_CURRENT" and name == "search_path":
        return Refusal("SET search_path FROM CURRENT is not available", "Name the schemas.")
    return None


def _configuring(facts: Facts) -> Facts:
    """A plain SELECT of ``pg_catalog.set_config`` with constants is the SET that it stands for: PostgreSQL's own tools send it so.

    For texts of a session alone, where what they set is followed.
    """
    select = facts.tree.get("SelectStmt", {}) if facts.tree is not None and facts.kind == "select" else {}
    if "set_config" not in facts.functions or "targetList" not in select or not select.keys() <= {"targetList", "limitOption", "op"}:
        return facts
    settings = [_configured(target["ResTarget"]["val"]) for target in select["targetList"]]
    told = tuple(setting for setting in settings if setting is not None)
    if len(told) < len(settings):
        return facts
    refusals = tuple(refusal for each in told if (refusal := _setting_refusal(each.name, each.values, "VAR_SET_VALUE")) is not None)
    return replace(facts, settings=told, refusals=refusals)


def _configured(node: Node) -> Setting | None:
    """What one call of set_config sets; None: it is another call, or what it sets is not plain to see."""
    call = node.get("FuncCall", {})
    arguments = [argument.get("A_Const", {}) for argument in call.get("args", ())]
    called = string_list(call.get("funcname", []))
    if called[-1:] != ["set_config"] or called[:-1] not in ([], ["pg_catalog"]) or len(arguments) != 3:
        return None
    name, value, local = arguments
    if "sval" not in name or "sval" not in value or "boolval" not in local:
        return None
    setting, text = name["sval"].get("sval", "").lower(), value["sval"].get("sval", "")
    if setting != "search_path":
        return Setting(setting, (text,), bool(local["boolval"].get("boolval")))
    if len(called) == 1 or not _PATH.fullmatch(text):
        return None  # by another path another function may go by this name
    schemas = tuple(quoted or plain.lower() for quoted, plain in _SCHEMA.findall(text))
    return Setting(setting, schemas, bool(local["boolval"].get("boolval")))


_SCHEMA = re.compile(r'"([^"\x80-\uffff]{1,63})"|([A-Za-z_][A-Za-z0-9_$]{0,62})')
_PATH = re.compile(rf"\s*(?:(?:{_SCHEMA.pattern})\s*(?:,\s*(?:{_SCHEMA.pattern})\s*)*)?", re.ASCII)


def _constant(node: Node) -> str:
    constant = node.get("A_Const", node.get("TypeCast", {}).get("arg", {}).get("A_Const", {}))
    for key in ("sval", "fval", "bsval"):
        if key in constant:
            return str(constant[key].get(key, ""))
    if "ival" in constant:
        return str(constant["ival"].get("ival", 0))
    if "boolval" in constant:
        return "on" if constant["boolval"].get("boolval") else "off"
    return ""


def _transaction(node: Node, _: bytes, __: Names) -> Facts:
    kind = _TRANSACTIONS[node["kind"]]
    return Facts((kind,), names=(Name(kind, node.get("savepoint_name", "")),) if kind in _KEEPERS else ())


def defined(name: str) -> str:
    """The kind of what a node of the grammar defines or changes."""
    return _NODE_KINDS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Stmt")).lower()


def _definition(name: str, node: Node) -> Facts:
    """Everything else: its tables are touched as ddl, contained queries as what they are."""
    kind = defined(name)
    walk = _Walk()
    if name == "DropStmt":
        kind = "drop_" + object_kind(node["removeType"])
        for schema, relation in _dropped(node):
            walk.touch({"schemaname": schema, "relname": relation}, "ddl")
    elif name in ("CommentStmt", "SecLabelStmt"):
        target = string_list(node.get("object", {}).get("List", {}).get("items", []))
        if node["objtype"] in ("OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE"):
            target = target[:-1]
        if node["objtype"] in _RELATIONS or (target and node["objtype"] not in _NOT_RELATIONS):
            walk.touch({"schemaname": target[-2] if len(target) > 1 else "", "relname": target[-1]}, "ddl")
    elif name == "VacuumStmt":
        kind = "vacuum" if node.get("is_vacuumcmd") else "analyze"
    elif name == "GrantStmt":
        kind = "grant" if node.get("is_grant") else "revoke"
    elif name == "DefineStmt":
        kind = "create_" + object_kind(node["kind"])
    if name == "TruncateStmt":
        walk.walk(node, verb="truncate")
    elif name == "LockStmt":
        walk.walk(node)
    elif name == "CallStmt":
        walk.walk({"FuncCall": node["funccall"]})
    else:
        walk.walk({key: value for key, value in node.items() if key not in ("query", "outargs")}, verb="ddl")
        walk.walk(node.get("query"))
    query = name in ("ViewStmt", "RuleStmt")
    wrapped = {name: node}
    return _facts(
        walk, (kind,), tree=wrapped if query or walk.accesses or walk.functions or name in _REMEMBERED else None, rows=name == "CallStmt"
    )


_REMEMBERED = frozenset({"DropStmt", "CreateFunctionStmt", "RenameStmt", "AlterObjectSchemaStmt", "AlterFunctionStmt", "CreateDomainStmt"})
_RELATIONS = frozenset({"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_INDEX", "OBJECT_SEQUENCE", "OBJECT_FOREIGN_TABLE"})
_NOT_RELATIONS = frozenset({"OBJECT_FUNCTION", "OBJECT_PROCEDURE", "OBJECT_AGGREGATE", "OBJECT_OPERATOR", "OBJECT_TYPE", "OBJECT_DOMAIN"})


def object_kind(name: str) -> str:
    """The word for an ObjectType in the names of kinds."""
    return name.removeprefix("OBJECT_").lower().replace("matview", "materialized_view")


def _dropped(node: Node) -> Iterator[tuple[str, str]]:
    owned = node["removeType"] in ("OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE")
    if node["removeType"] not in _RELATIONS and not owned:
        return
    for item in node["objects"]:
        parts = string_list(item.get("List", {}).get("items", []))
        parts = parts[:-1] if owned else parts
        if parts:
            yield (parts[-2] if len(parts) > 1 else "", parts[-1])


def _show(node: Node, _: bytes, __: Names) -> Facts:
    return Facts(("show",), rows=True)


def _deallocate(node: Node, _: bytes, __: Names) -> Facts:
    return Facts(("deallocate",), names=(Name("statement", node.get("name", "")),))


def _close(node: Node, _: bytes, __: Names) -> Facts:
    return Facts(("close",), names=(Name("cursor", node.get("portalname", "")),))


def _discard(node: Node, _: bytes, __: Names) -> Facts:
    if node.get("target") not in (None, "DISCARD_ALL"):
        return Facts(("discard",))
    return Facts(("discard",), settings=(Setting("*", None),), names=(Name("statement", ""), Name("cursor", "")))


def _do(node: Node, _: bytes, __: Names) -> Facts:
    return Facts(("do",), tree={"DoStmt": node})


_READERS = {
    "ExplainStmt": _explain, "PrepareStmt": _prepare, "ExecuteStmt": _execute, "DeclareCursorStmt": _declare, "FetchStmt": _fetch,
    "CopyStmt": _copy, "CreateTableAsStmt": _create_as, "VariableSetStmt": _set, "TransactionStmt": _transaction, "DoStmt": _do,
    "VariableShowStmt": _show, "DeallocateStmt": _deallocate, "ClosePortalStmt": _close, "DiscardStmt": _discard,
}  # fmt: skip

"""Whether a statement's literals can matter to what the policy says of it: if not, its verdict holds for others of its shape.

A closed list of positions in which the value of a literal changes no fact, lineage, mask or verdict. Every literal token of the
text must be a constant in one of them; whatever is not listed, or is not certain, matters. Positions are given up, never
guessed: sort and group keys (a number there is a column), arguments of unlisted functions, JSON operators and subscripts,
functions in FROM, casts to types that name objects, and where narrowing.py reads a value (both sides constant, LIKE, OR).

Pure, on parse trees in JSON form. Never add here: the catalog, rules, or a position that some judgement looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pglast import parser

__all__ = ["literals_are_free"]

Node = dict[str, Any]

# Types whose text form is data: it names no object and holds no path or code.
_PLAIN_TYPES = frozenset(
    {
        "bool", "int2", "int4", "int8", "numeric", "float4", "float8", "text", "varchar", "bpchar", "uuid", "bytea",
        "date", "time", "timetz", "timestamp", "timestamptz", "interval", "inet", "cidr",
        # spellings that the grammar leaves as they are when written with quotes or without their keyword
        "int", "integer", "smallint", "bigint", "decimal", "boolean",
    }
)  # fmt: skip
# Built-in operators on plain values. Not here: JSON paths and containment, text search, anything that a name is made of.
_OPERATORS = frozenset({"=", "<>", "!=", "<", ">", "<=", ">=", "+", "-", "*", "/", "%", "||", "~", "~*", "!~", "!~*"})
_LIKES = frozenset({"~~", "!~~", "~~*", "!~~*"})
# Functions that compute from plain values and nothing else.
_FUNCTIONS = frozenset(
    {
        "abs", "avg", "bool_and", "bool_or", "btrim", "ceil", "ceiling", "char_length", "concat", "concat_ws", "count", "date_bin",
        "date_part", "date_trunc", "extract", "floor", "greatest", "initcap", "least", "left", "length", "lower", "lpad", "ltrim", "max",
        "md5", "min", "mod", "octet_length", "position", "power", "replace", "right", "round", "rpad", "rtrim", "sign", "split_part",
        "sqrt", "starts_with", "strpos", "string_agg", "substr", "substring", "sum", "timezone", "to_char", "to_date", "to_number",
        "to_timestamp", "trunc", "upper", "width_bucket",
    }
)  # fmt: skip
_LITERAL_TOKENS = frozenset({"ICONST", "FCONST", "SCONST", "BCONST", "XCONST", "USCONST"})
_VARIABLES = frozenset({"ColumnRef", "ParamRef", "FuncCall", "SubLink", "SQLValueFunction"})


def literals_are_free(tree: Node, text: bytes) -> bool:
    """True when no judgement of ``tree``, the one statement of ``text``, can depend on the value of any literal."""
    free = _Free()
    try:
        free.statement(tree)
        tokens = parser.scan(text.decode())
    except (RecursionError, UnicodeDecodeError, parser.ParseError):
        return False
    return all(place in free.places for place in _literal_places(tokens, text, free.places))


def _literal_places(tokens: Iterable[Any], text: bytes, free: set[int]) -> Iterable[int]:
    # Where the grammar says that each literal is: a minus sign before a number is part of its constant.
    decoded = None if text.isascii() else text.decode()
    signs: list[int] = []
    for token in tokens:
        if token.name in ("SQL_COMMENT", "C_COMMENT"):
            continue
        start = token.start if decoded is None else len(decoded[: token.start].encode())
        if token.name == "ASCII_45":
            signs.append(start)
            continue
        if token.name in _LITERAL_TOKENS:
            yield next((sign for sign in signs if sign in free), start)
        signs = []


def _operator(node: Node) -> str:
    """The operator of an A_Expr where it is a built-in one: written plainly or as OPERATOR(pg_catalog.x)."""
    names = [item.get("String", {}).get("sval", "") for item in node.get("name", ())]
    if len(names) == 1 or (len(names) == 2 and names[0] == "pg_catalog"):
        return str(names[-1])
    return ""


def _listed(kind: Any, operator: str) -> bool:
    """IN or BETWEEN, or their opposites."""
    return (kind == "AEXPR_IN" and operator in ("=", "<>")) or kind in ("AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN")


def _items(right: Any) -> list[Node]:
    """The right side of IN or BETWEEN, where it is a list."""
    found = right.get("List", {}).get("items") if isinstance(right, dict) else None
    return found if isinstance(found, list) else []


def _plain_type(type_name: Node) -> bool:
    names = [item.get("String", {}).get("sval", "") for item in type_name.get("names", ())]
    if type_name.get("setof") or type_name.get("pct_type") or not names:
        return False
    return names[-1] in _PLAIN_TYPES and (len(names) == 1 or (len(names) == 2 and names[0] == "pg_catalog"))


def _has(node: Any, kinds: frozenset[str]) -> bool:
    """Whether any node of these kinds is within."""
    if isinstance(node, list):
        return any(_has(item, kinds) for item in node)
    if isinstance(node, dict):
        return not kinds.isdisjoint(node) or any(_has(value, kinds) for value in node.values() if isinstance(value, dict | list))
    return False


_COLUMNS = frozenset({"ColumnRef"})
_CONSTANTS = frozenset({"A_Const"})
_WRITES = frozenset({"UpdateStmt", "DeleteStmt", "MergeStmt"})


class _Free:
    """Walks what it knows and notes where the constants stand whose values are free; passes over everything else."""

    def __init__(self) -> None:
        self.places: set[int] = set()

    def statement(self, tree: Any) -> None:
        """One whole query, on any level."""
        if not isinstance(tree, dict) or len(tree) != 1:
            return
        ((kind, node),) = tree.items()
        if kind not in ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt"):
            return
        writes = kind in ("UpdateStmt", "DeleteStmt")
        if not writes and _has(node.get("withClause"), _WRITES):
            return  # narrowing.py looks into every query of a WITH for the sake of a write in another
        for item in () if writes else node.get("withClause", {}).get("ctes", ()):
            self.statement(item.get("CommonTableExpr", {}).get("ctequery"))
        if kind == "SelectStmt":
            self.select(node)
            return
        if kind == "InsertStmt":
            self.statement(node.get("selectStmt"))
            conflict = node.get("onConflictClause", {})
            self.targets(conflict.get("targetList"))
            self.inside(conflict.get("whereClause"))
        else:
            self.targets(node.get("targetList"))
            self.narrowing(node.get("whereClause"))
        self.targets(node.get("returningClause", {}).get("exprs"))

    def select(self, node: Node) -> None:
        """A SELECT; of what orders or groups only calls, since a number there is a column."""
        if "intoClause" in node:
            return
        for side in ("larg", "rarg"):
            if side in node:
                self.statement({"SelectStmt": node[side]})
        for row in node.get("valuesLists", ()):
            self.values(row.get("List", {}).get("items"))
        self.targets(node.get("targetList"))
        for item in node.get("fromClause", ()):
            self.source(item)
        self.inside(node.get("whereClause"))
        self.inside(node.get("havingClause"))
        keys = [*node.get("groupClause", ()), *(item.get("SortBy", {}).get("node", {}) for item in node.get("sortClause", ()))]
        self.each(key for key in keys if "FuncCall" in key)
        self.value(node.get("limitCount"))
        self.value(node.get("limitOffset"))

    def source(self, item: Node) -> None:
        """One item of FROM: tables, joins and subqueries, but no functions."""
        if "JoinExpr" in item:
            join = item["JoinExpr"]
            self.source(join["larg"])
            self.source(join["rarg"])
            self.inside(join.get("quals"))
        elif "RangeSubselect" in item:
            self.statement(item["RangeSubselect"].get("subquery"))

    def targets(self, items: Any) -> None:
        """Values of a target list, of SET or of RETURNING."""
        for item in items or ():
            self.value(item.get("ResTarget", {}).get("val"))

    def values(self, items: Any) -> None:
        """Expressions that may be plain constants."""
        for item in items or ():
            self.value(item)

    def each(self, items: Any) -> None:
        """Expressions that may contain constants but not be one."""
        for item in items or ():
            self.inside(item)

    def value(self, node: Any) -> None:
        """An expression that may be a plain constant."""
        if not self.constant(node):
            self.inside(node)

    def constant(self, node: Any) -> bool:
        """Whether it is a constant, perhaps cast to a plain type; notes it."""
        if not isinstance(node, dict):
            return False
        cast = node.get("TypeCast")
        if cast is not None:
            return _plain_type(cast.get("typeName", {})) and "A_Const" in cast.get("arg", {}) and self.constant(cast["arg"])
        if "A_Const" not in node:
            return False
        place = node["A_Const"].get("location")
        if isinstance(place, int) and place > 0:
            self.places.add(place)
        return True

    def inside(self, node: Any) -> None:
        """An expression in a place where a constant by itself would matter."""
        if isinstance(node, dict):
            for kind, inner in node.items():
                if (read := _READERS.get(kind)) is not None:
                    read(self, inner)

    def operation(self, node: Node) -> None:
        """An operator between values of which at least one is not constant."""
        kind, operator = node.get("kind"), _operator(node)
        left, right = node.get("lexpr"), node.get("rexpr")
        if kind in ("AEXPR_OP", "AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT", "AEXPR_NULLIF", "AEXPR_OP_ANY", "AEXPR_OP_ALL"):
            if operator not in _OPERATORS:
                return
            for one, other in ((left, right), (right, left)):
                if _has(other, _VARIABLES):
                    self.value(one)
                elif not _has(one, _CONSTANTS) or _has(one, _VARIABLES):
                    self.inside(one)
        elif kind in ("AEXPR_LIKE", "AEXPR_ILIKE") and operator in _LIKES and _has(left, _VARIABLES):
            self.inside(left)
            self.value(right)
        elif _listed(kind, operator) and _has(left, _VARIABLES):
            self.inside(left)
            self.values(_items(right))

    def cast(self, node: Node) -> None:
        """A cast of something that is not a constant itself."""
        if _plain_type(node.get("typeName", {})):
            self.inside(node.get("arg"))

    def call(self, node: Node) -> None:
        """A call of a listed function; its window and its order are left alone."""
        names = [item.get("String", {}).get("sval", "") for item in node.get("funcname", ())]
        if names and names[-1] in _FUNCTIONS and (len(names) == 1 or (len(names) == 2 and names[0] == "pg_catalog")):
            self.values(node.get("args"))
            self.inside(node.get("agg_filter"))

    def case(self, node: Node) -> None:
        """CASE; after CASE x, WHEN takes plain values."""
        subject = node.get("arg")
        self.inside(subject)
        for item in node.get("args", ()):
            when = item.get("CaseWhen", {})
            if subject is not None and _has(subject, _VARIABLES):
                self.value(when.get("expr"))
            else:
                self.inside(when.get("expr"))
            self.value(when.get("result"))
        self.value(node.get("defresult"))

    def sublink(self, node: Node) -> None:
        """EXISTS, IN (SELECT), ANY (SELECT), a scalar subquery."""
        self.inside(node.get("testexpr"))
        self.statement(node.get("subselect"))

    def narrowing(self, where: Any) -> None:
        """The WHERE of an UPDATE or DELETE. narrowing.py looks at values where both sides have some, in LIKE, under
        OR, in subqueries, and at the ends of what a comparison by order leaves out."""
        if not isinstance(where, dict):
            return
        if "BoolExpr" in where and where["BoolExpr"].get("boolop") in ("AND_EXPR", "NOT_EXPR"):
            for item in where["BoolExpr"].get("args", ()):
                self.narrowing(item)
        elif "A_Expr" in where:
            self.tells_apart(where["A_Expr"])

    def tells_apart(self, node: Node) -> None:
        """``column = constant``, ``column <> constant``, ``column IN (constants)``, each way round."""
        left, right = node.get("lexpr"), node.get("rexpr")
        kind, operator = node.get("kind"), _operator(node)
        if kind in ("AEXPR_OP", "AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT", "AEXPR_OP_ANY") and operator in ("=", "<>", "!="):
            for one, other in ((left, right), (right, left)):
                if _has(other, _COLUMNS) and not _has(other, _CONSTANTS):
                    self.literal_side(one)
        elif kind == "AEXPR_IN" and _listed(kind, operator) and _has(left, _COLUMNS) and not _has(left, _CONSTANTS):
            for item in _items(right):
                self.constant(item)

    def literal_side(self, node: Any) -> None:
        """A constant, or an array of constants."""
        if not self.constant(node) and isinstance(node, dict) and "A_ArrayExpr" in node:
            for item in node["A_ArrayExpr"].get("elements", ()):
                self.constant(item)


_READERS: dict[str, Callable[[_Free, Node], None]] = {
    "A_Expr": _Free.operation,
    "BoolExpr": lambda free, node: free.each(node.get("args")),
    "NullTest": lambda free, node: free.inside(node.get("arg")),
    "BooleanTest": lambda free, node: free.inside(node.get("arg")),
    "TypeCast": _Free.cast,
    "FuncCall": _Free.call,
    "CoalesceExpr": lambda free, node: free.values(node.get("args")),
    "MinMaxExpr": lambda free, node: free.values(node.get("args")),
    "CaseExpr": _Free.case,
    "A_ArrayExpr": lambda free, node: free.values(node.get("elements")),
    "RowExpr": lambda free, node: free.values(node.get("args")),
    "SubLink": _Free.sublink,
}

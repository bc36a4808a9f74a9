"""Whether the condition of an UPDATE, DELETE or MERGE really narrows: a constant, a tautology, a comparison of something with
itself, or a condition on everything but the target does not.

Pure, on parse trees in JSON form; what the catalog knows of a table is asked through ``Look``. Where it can't be told, a plain
comparison of the target's columns counts as narrowing. Never add here: the catalog itself, or rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Condition", "Look", "narrows"]

Node = dict[str, Any]
# (schema, table) to (its columns, those of them that are NOT NULL); None: it is not known
Look = Callable[[str, str], tuple[frozenset[str], frozenset[str]] | None]
_COMPLEMENTS = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_REFLEXIVE = frozenset({"=", ">=", "<=", "~~", "~~*"})
_SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_LEAST, _MOST = -2147483648, 2147483647
_NOT_NEGATIVE = frozenset({"abs", "length", "char_length", "octet_length", "character_length", "bit_length", "cardinality"})
_FILLED = frozenset({"now", "clock_timestamp", "statement_timestamp", "random", "gen_random_uuid", "txid_current", "version"})
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A condition on ``target`` (a RangeVar). ``sources``: what else is in FROM or USING; ``ctes``: queries by name.

    ``also``: a second condition that has to hold as well (of WHEN in MERGE).
    """

    target: Node
    where: Node | None
    sources: tuple[Node, ...] = ()
    ctes: Mapping[str, Node] = field(default_factory=dict)
    also: Node | None = None


def narrows(condition: Condition, look: Look | None = None) -> bool:
    """True when it can tell the target's rows apart; no condition does not."""
    judge = _Judge(condition, look)
    return any(part is not None and judge.always(part) is not True for part in (condition.where, condition.also))


class _Judge:
    def __init__(self, condition: Condition, look: Look | None) -> None:
        target = condition.target
        self.table, self.schema = target.get("relname", ""), target.get("schemaname", "")
        self.alias = target.get("alias", {}).get("aliasname", self.table)
        self.look, self.ctes = look, condition.ctes
        known = look(self.schema, self.table) if look is not None else None
        self.columns: frozenset[str] | None = known[0] if known is not None else None
        self.not_null: frozenset[str] | None = known[1] if known is not None else None
        self.same = {alias: source for item in condition.sources for alias, source in self.aliases(item)}

    def aliases(self, item: Node) -> Iterator[tuple[str, Node]]:
        """Every source of a FROM item by the name it goes by."""
        if join := item.get("JoinExpr"):
            yield from self.aliases(join["larg"])
            yield from self.aliases(join["rarg"])
        elif node := item.get("RangeVar") or item.get("RangeSubselect"):
            yield node.get("alias", {}).get("aliasname", node.get("relname", "")), item

    # -- what a column belongs to --

    def own(self, fields: list[Node]) -> str:
        """The target's column that is meant, or nothing."""
        names = [item.get("String", {}).get("sval", "") for item in fields]
        if len(names) > 1:
            if names[-2] != self.alias or names[-2] in self.same:
                # (row).field of the target, or a row of it as a whole, is told by its first name
                return names[-1] if names[0] in (self.alias, self.schema) and names[-2] == self.alias else ""
            return names[-1] or "*"
        name = names[0] or "*"
        if self.columns is None or name in self.columns or name in _SYSTEM or name in ("*", self.alias):
            return name
        return ""

    def tells_apart(self, node: Any, hidden: frozenset[str] = frozenset()) -> bool:
        """Whether a column of the target is in it. ``hidden``: names that an inner FROM gives to something else."""
        if isinstance(node, list):
            return any(self.tells_apart(item, hidden) for item in node)
        if not isinstance(node, dict):
            return False
        if "CurrentOfExpr" in node:
            return True
        if "ColumnRef" in node:
            fields = node["ColumnRef"]["fields"]
            own = self.own(fields)
            if len(fields) > 1:
                return bool(own) and self.alias not in hidden
            return bool(own) and own not in hidden
        if "SelectStmt" in node:
            hidden |= self.inner_names(node["SelectStmt"])
        return any(self.tells_apart(value, hidden) for value in node.values())

    def inner_names(self, select: Node) -> frozenset[str]:
        """The aliases and the columns that a subquery's FROM brings into sight before the target's."""
        found = set[str]()
        for item in select.get("fromClause", ()):
            for alias, source in self.aliases(item):
                found.add(alias)
                table = source.get("RangeVar")
                known = self.look(table.get("schemaname", ""), table["relname"]) if table and self.look else None
                if known is not None:
                    found |= known[0]
                elif table and table["relname"] == self.table:
                    found |= self.columns or frozenset()
        return frozenset(found)

    # -- conditions --

    def always(self, node: Node) -> bool | None:
        """True: holds for every row (nulls aside). False: for none. None: depends on the row."""
        if not self.tells_apart(node):
            return _constant(node) is not False
        (name, inner), *_ = node.items()
        if name == "BoolExpr":
            return self.boolean(inner)
        if name == "A_Expr":
            return self.comparison(inner)
        if name == "NullTest":
            filled = self.filled(inner["arg"])
            return filled if inner.get("nulltesttype") == "IS_NOT_NULL" or filled is None else not filled
        if name == "BooleanTest":
            value = self.always(inner["arg"])
            kind = inner.get("booltesttype")
            if kind in ("IS_TRUE", "IS_NOT_FALSE"):
                return value
            return None if value is None or kind not in ("IS_FALSE", "IS_NOT_TRUE") else not value
        if name == "TypeCast":
            return self.always(inner["arg"])
        if name == "CoalesceExpr":
            values = [self.always(each) for each in inner["args"]]
            return True if values[0] is True and (all(values) or not self.tells_apart(inner["args"][0])) else None
        if name == "CaseExpr":
            results = [each["CaseWhen"]["result"] for each in inner.get("args", ())] + [
                inner.get("defresult", {"A_Const": {"isnull": True}})
            ]
            return True if all(self.always(each) is True for each in results) else None
        if name == "SubLink":
            return self.subquery(inner)
        return None

    def boolean(self, node: Node) -> bool | None:
        values = [self.always(argument) for argument in node["args"]]
        if node["boolop"] == "NOT_EXPR":
            return None if values[0] is None else not values[0]
        if node["boolop"] == "OR_EXPR":
            if True in values or _complementary(node["args"]):
                return True
            return False if all(value is False for value in values) else None
        if False in values:
            return False
        return True if all(value is True for value in values) else None

    def filled(self, node: Node) -> bool | None:
        """Whether a value is never null; None: it may be."""
        node = _plain(node)
        if "ColumnRef" in node:
            own = self.own(node["ColumnRef"]["fields"])
            if own in _SYSTEM:
                return True
            return True if self.not_null is None or own in self.not_null else None
        if "A_Const" in node:
            return not node["A_Const"].get("isnull", False)
        if "SQLValueFunction" in node or _function(node) in _FILLED:
            return True
        if "CoalesceExpr" in node:
            return True if any(self.filled(each) for each in node["CoalesceExpr"]["args"]) else None
        if node.get("A_Expr", {}).get("kind") == "AEXPR_OP":
            sides = [node["A_Expr"].get(side) for side in ("lexpr", "rexpr")]
            return True if all(self.filled(side) for side in sides if side) else None
        return None

    def comparison(self, node: Node) -> bool | None:
        operator, kind = _operator(node), node.get("kind")
        left, right = _plain(node.get("lexpr")), _plain(node.get("rexpr"))
        if kind in ("AEXPR_LIKE", "AEXPR_ILIKE") and operator.startswith("~~"):
            pattern = right.get("A_Const", {}).get("sval", {}).get("sval")
            if pattern is not None and pattern and not pattern.strip("%"):
                return True
        if kind in ("AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT"):
            for one, other in ((left, right), (right, left)):
                if other.get("A_Const", {}).get("isnull"):
                    filled = self.filled(one)
                    return filled if kind == "AEXPR_DISTINCT" or filled is None else not filled
        if (kind == "AEXPR_NOT_DISTINCT" or (kind == "AEXPR_OP" and operator in _REFLEXIVE)) and self.equal(left, right):
            return True
        if kind == "AEXPR_OP":
            numbers = _number(left), _number(right)
            if numbers[0] is not None and numbers[1] is not None:
                return _compared(operator, numbers[0], numbers[1])
            return True if _covers(left, operator, right) or _covers(right, _FLIPPED.get(operator, ""), left) else None
        if kind == "AEXPR_IN" and operator == "=":
            return True if any(self.equal(left, _plain(item)) for item in _items(right)) else None
        if kind == "AEXPR_BETWEEN" and len(bounds := _items(right)) == 2:
            low, high = (_plain(bound) for bound in bounds)
            within = (self.equal(left, low) or _covers(left, ">=", low)) and (self.equal(left, high) or _covers(left, "<=", high))
            return True if within else None
        if kind == "AEXPR_OP_ANY" and operator == "=":
            return True if self.drawn(left, right.get("SubLink", {}).get("subselect")) else None
        if kind == "AEXPR_OP_ALL" and operator == "<>":
            empty = "A_ArrayExpr" in right and not right["A_ArrayExpr"].get("elements")
            return True if empty or right.get("A_Const", {}).get("sval", {}).get("sval") == "{}" else None
        return None

    def equal(self, left: Node, right: Node) -> bool:
        """Whether both are the same value in every row, also by way of the target joined with itself."""
        if "ColumnRef" in left and "ColumnRef" in right:
            one, two = (self.place(side["ColumnRef"]["fields"]) for side in (left, right))
            if one == two:
                return True
            for (alias, column), (other, same) in ((one, two), (two, one)):
                if alias == self.alias and column == same and other in self.same:
                    return self.all_of(self.same[other], column)
            return False
        return _same(left, right)

    def place(self, fields: list[Node]) -> tuple[str, str]:
        names = [item.get("String", {}).get("sval", "") for item in fields]
        return (names[-2] if len(names) > 1 else self.alias, names[-1])

    # -- the target seen through subqueries --

    def all_of(self, item: Node, column: str) -> bool:
        """Whether a source has this column of every row of the target."""
        if table := item.get("RangeVar"):
            if not table.get("schemaname") and table["relname"] in self.ctes:
                return self.whole(self.ctes[table["relname"]], column)
            return bool(table["relname"] == self.table and (not self.schema or table.get("schemaname", self.schema) == self.schema))
        return self.whole(item.get("RangeSubselect", {}).get("subquery"), column)

    def whole(self, query: Any, column: str) -> bool:
        """Whether a query yields this column of every row of the target."""
        select = query.get("SelectStmt") if isinstance(query, dict) else None
        if select is None or any(key in select for key in ("limitCount", "limitOffset", "havingClause")):
            return False
        if select.get("op", "SETOP_NONE") == "SETOP_UNION":
            return self.whole({"SelectStmt": select["larg"]}, column) or self.whole({"SelectStmt": select["rarg"]}, column)
        if len(select.get("fromClause", ())) != 1 or not self.all_of(select["fromClause"][0], column):
            return False
        if not self.everywhere(select):
            return False
        return any(_yields(target["ResTarget"], column) for target in select.get("targetList", ()))

    def everywhere(self, select: Node) -> bool:
        """Whether the WHERE of a query over the target again holds for every row, or just ties it to the outer row."""
        where = select.get("whereClause")
        if where is None:
            return True
        table = select["fromClause"][0].get("RangeVar")
        if table is None:
            return False
        inner = Condition(
            table, where, ({"RangeVar": {"relname": self.table, "schemaname": self.schema, "alias": {"aliasname": self.alias}}},)
        )
        return not narrows(inner, self.look)

    def drawn(self, left: Node, query: Any) -> bool:
        """``column IN (SELECT column FROM the target)``, for one column or a row of them."""
        sides = left.get("RowExpr", {}).get("args") or [left]
        fields = [side.get("ColumnRef", {}).get("fields") for side in sides]
        return all(bool(each) and (own := self.own(each)) != "" and self.whole(query, own) for each in fields)

    def subquery(self, node: Node) -> bool | None:
        query = node["subselect"]
        select = query.get("SelectStmt", {})
        if node["subLinkType"] == "EXISTS_SUBLINK":
            sources = select.get("fromClause", ())
            same = len(sources) == 1 and "limitOffset" not in select and "havingClause" not in select and self.all_of(sources[0], "")
            return True if same and self.everywhere(select) else None
        if node["subLinkType"] == "ANY_SUBLINK" and _operator({"name": node.get("operName", ())}) in ("", "="):
            return True if self.drawn(_plain(node.get("testexpr")), query) else None
        return None


def _yields(target: Node, column: str) -> bool:
    fields = _plain(target.get("val")).get("ColumnRef", {}).get("fields", [])
    return bool(fields) and (
        "A_Star" in fields[-1] or (fields[-1].get("String", {}).get("sval") == column and target.get("name", column) == column)
    )


def _plain(node: Any) -> Node:
    """An expression without what does not change its value: casts, + 0, * 1, || ''."""
    while isinstance(node, dict):
        if "TypeCast" in node:
            node = node["TypeCast"].get("arg")
        elif "CollateClause" in node:
            node = node["CollateClause"].get("arg")
        elif (inner := node.get("A_Expr", {})).get("kind") == "AEXPR_OP":
            operator, left, right = _operator(inner), inner.get("lexpr"), inner.get("rexpr")
            one, two = _number(left), _number(right)
            text = [
                (side or {}).get("A_Const", {}).get("sval", {}).get("sval", None if "sval" not in (side or {}).get("A_Const", {}) else "")
                for side in (left, right)
            ]
            if (operator in "+-" and two == 0 and left) or (operator in "*/" and two == 1) or (operator == "||" and text[1] == ""):
                node = left
            elif (operator == "+" and (one == 0 or left is None)) or (operator == "*" and one == 1) or (operator == "||" and text[0] == ""):
                node = right
            elif (
                (operator == "-" and left and _same(left, right))
                or (operator == "*" and 0 in (one, two))
                or (operator == "%" and two in (1, -1))
            ):
                node = {"A_Const": {"ival": {}}}
            else:
                return node
        else:
            return node
    return {}


def _covers(left: Node, operator: str, right: Node) -> bool:
    """Whether a comparison with a constant leaves nothing out: the ends of what a type holds."""
    bound, text = _number(right), right.get("A_Const", {}).get("sval")
    if bound is not None:
        if _function(left) in _NOT_NEGATIVE and ((operator == ">=" and bound <= 0) or (operator == ">" and bound < 0)):
            return True
        return (operator in (">=", ">") and bound <= _LEAST) or (operator in ("<=", "<") and bound >= _MOST)
    if text is not None:
        value = text.get("sval", "").strip().lower()
        return (
            (operator == ">=" and value == "")
            or (operator in (">=", ">") and value == "-infinity")
            or (operator in ("<=", "<") and value == "infinity")
        )
    return False


def _function(node: Node) -> str:
    return str(node.get("FuncCall", {}).get("funcname", [{}])[-1].get("String", {}).get("sval", ""))


def _items(right: Any) -> list[Node]:
    found = right.get("List", {}).get("items", []) if isinstance(right, dict) else []
    return found if isinstance(found, list) else []


def _complementary(arguments: list[Node]) -> bool:
    """Whether two of what is joined by OR leave nothing out between them. Linear: each is looked up by what it is about."""
    seen: set[tuple[str, str]] = set()  # what it is about, and how
    for argument in arguments:
        about, how, opposite = argument, "is", "not"
        if (inner := argument.get("BoolExpr", {})).get("boolop") == "NOT_EXPR":
            about, how, opposite = inner["args"][0], "not", "is"
        elif "NullTest" in argument:
            how = argument["NullTest"].get("nulltesttype", "")
            opposite = "IS_NULL" if how == "IS_NOT_NULL" else "IS_NOT_NULL"
            if (_shape(argument["NullTest"]["arg"]), opposite) in seen:
                return True
            seen.add((_shape(argument["NullTest"]["arg"]), how))
            how, opposite = "is", "not"
        elif (operation := argument.get("A_Expr")) is not None and (other := _COMPLEMENTS.get(_operator(operation))):
            sides = _shape([operation.get("lexpr"), operation.get("rexpr")])
            if (sides, other) in seen:
                return True
            seen.add((sides, _operator(operation)))
        shape = _shape(about)
        if (shape, opposite) in seen:
            return True
        seen.add((shape, how))
    return False


def _shape(node: Any) -> str:
    """An expression as a text that is the same wherever it stands and however its columns are qualified."""
    if isinstance(node, list):
        return "[" + ",".join(_shape(item) for item in node) + "]"
    if not isinstance(node, dict):
        return repr(node)
    if "ColumnRef" in node:
        return f"column {node['ColumnRef']['fields'][-1]}"
    return "{" + ",".join(f"{key}:{_shape(value)}" for key, value in node.items() if key != "location") + "}"


def _operator(node: Node) -> str:
    names = [item.get("String", {}).get("sval", "") for item in node.get("name", ())]
    operator = str(names[-1]) if names else ""
    return "<>" if operator == "!=" else operator


def _constant(node: Node) -> bool | None:
    """False for what is plainly false; None when it can't be told here."""
    if "A_Const" in node:
        constant = node["A_Const"]
        if constant.get("isnull"):
            return False
        if "boolval" in constant:
            return bool(constant["boolval"].get("boolval"))
        text = constant.get("sval", {}).get("sval")
        return text.strip().lower() not in ("f", "false", "n", "no", "off", "0") if isinstance(text, str) else None
    if "TypeCast" in node:
        return _constant(node["TypeCast"]["arg"])
    if "BoolExpr" in node:
        values = [_constant(argument) for argument in node["BoolExpr"]["args"]]
        operator = node["BoolExpr"]["boolop"]
        if operator == "NOT_EXPR":
            return None if values[0] is None else not values[0]
        if operator == "AND_EXPR":
            return False if False in values else None
        return False if all(value is False for value in values) else None
    expression = node.get("A_Expr", {})
    if expression.get("kind") == "AEXPR_OP":
        left, right = _number(expression.get("lexpr")), _number(expression.get("rexpr"))
        if left is not None and right is not None:
            return _compared(_operator(expression), left, right)
    return None


def _compared(operator: str, left: int, right: int) -> bool | None:
    compare = {"=": left == right, "<>": left != right, "<": left < right, ">": left > right}
    return (compare | {"<=": left <= right, ">=": left >= right}).get(operator)


def _number(node: Any) -> int | None:
    constant = node.get("A_Const", {}) if isinstance(node, dict) else {}
    if "fval" in constant:  # a whole number that int4 does not hold
        text = constant["fval"].get("fval", "")
        return int(text) if text.lstrip("-").isdigit() and len(text) < 40 else None
    if "ival" in constant:
        return int(constant["ival"].get("ival", 0))
    inner = node.get("A_Expr", {}) if isinstance(node, dict) else {}
    if inner.get("kind") == "AEXPR_OP" and _operator(inner) == "-" and not inner.get("lexpr"):
        value = _number(inner.get("rexpr"))
        return None if value is None else -value
    return None


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = (set(left) | set(right)) - {"location"}
        if {"ColumnRef"} == set(left) == set(right):
            one, two = left["ColumnRef"]["fields"], right["ColumnRef"]["fields"]
            return bool(one) and one[-1] == two[-1] and (len(one) == 1 or len(two) == 1 or one == two)
        return all(key in left and key in right and _same(left[key], right[key]) for key in keys)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(one, two) for one, two in zip(left, right, strict=True))
    return bool(left == right) and left is not None

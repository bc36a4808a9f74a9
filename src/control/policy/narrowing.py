"""Whether a WHERE clause really narrows: a constant, a tautology or a comparison of something with itself does not.

Pure, on parse trees in JSON form. Never add here: the catalog.
"""

from __future__ import annotations

from typing import Any

__all__ = ["narrows"]

Node = dict[str, Any]
_COMPLEMENTS = {frozenset(("=", "<>")), frozenset(("<", ">=")), frozenset((">", "<="))}
_REFLEXIVE = frozenset({"=", ">=", "<=", "~~", "~~*"})


def narrows(where: Node | None) -> bool:
    """True when the condition can tell rows apart; None (no WHERE) does not."""
    return where is not None and _always(where) is not True


def _always(node: Node) -> bool | None:
    """True: holds for every row (nulls aside). False: for none. None: depends on the row."""
    if not _tells_rows_apart(node):
        value = _constant(node)
        return value is not False
    (name, inner), *_ = node.items()
    if name == "BoolExpr":
        values = [_always(argument) for argument in inner["args"]]
        if inner["boolop"] == "NOT_EXPR":
            return None if values[0] is None else not values[0]
        if inner["boolop"] == "OR_EXPR":
            if True in values or _complementary(inner["args"]):
                return True
            return False if all(value is False for value in values) else None
        if False in values:
            return False
        return True if all(value is True for value in values) else None
    if name == "A_Expr":
        return _comparison(inner)
    if name == "NullTest" and inner.get("nulltesttype") == "IS_NOT_NULL":
        return True
    if name == "BooleanTest" and inner.get("booltesttype") in ("IS_TRUE", "IS_NOT_FALSE"):
        return _always(inner["arg"])
    if name == "TypeCast":
        return _always(inner["arg"])
    return None


def _comparison(node: Node) -> bool | None:
    operator = _operator(node)
    left, right = node.get("lexpr"), node.get("rexpr")
    kind = node.get("kind")
    if kind in ("AEXPR_LIKE", "AEXPR_ILIKE") and operator.startswith("~~"):
        pattern = (right or {}).get("A_Const", {}).get("sval", {}).get("sval")
        if pattern is not None and pattern and not pattern.strip("%"):
            return True
    if kind == "AEXPR_NOT_DISTINCT" or (kind == "AEXPR_OP" and operator in _REFLEXIVE):
        return True if _same(left, right) else None
    if kind == "AEXPR_IN" and operator == "=":
        items = right.get("List", {}).get("items", []) if isinstance(right, dict) else []
        return True if any(_same(left, item) for item in items) else None
    return None


def _complementary(arguments: list[Node]) -> bool:
    for position, first in enumerate(arguments):
        for second in arguments[position + 1 :]:
            if _negates(first, second) or _negates(second, first):
                return True
            one, two = first.get("A_Expr", {}), second.get("A_Expr", {})
            opposite = one and two and frozenset((_operator(one), _operator(two))) in _COMPLEMENTS
            if opposite and _same(one.get("lexpr"), two.get("lexpr")) and _same(one.get("rexpr"), two.get("rexpr")):
                return True
            null, other = first.get("NullTest"), second.get("NullTest")
            if null and other and _same(null["arg"], other["arg"]) and null.get("nulltesttype") != other.get("nulltesttype"):
                return True
    return False


def _negates(first: Node, second: Node) -> bool:
    inner = first.get("BoolExpr", {})
    return inner.get("boolop") == "NOT_EXPR" and _same(inner["args"][0], second)


def _operator(node: Node) -> str:
    names = [item.get("String", {}).get("sval", "") for item in node.get("name", ())]
    operator = str(names[-1]) if names else ""
    return "<>" if operator == "!=" else operator


def _tells_rows_apart(node: Any) -> bool:
    if isinstance(node, list):
        return any(_tells_rows_apart(item) for item in node)
    if isinstance(node, dict):
        return "ColumnRef" in node or "CurrentOfExpr" in node or any(_tells_rows_apart(value) for value in node.values())
    return False


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
            compare = {"=": left == right, "<>": left != right, "<": left < right, ">": left > right}
            compare |= {"<=": left <= right, ">=": left >= right}
            return compare.get(_operator(expression))
    return None


def _number(node: Any) -> int | None:
    constant = node.get("A_Const", {}) if isinstance(node, dict) else {}
    return int(constant["ival"].get("ival", 0)) if "ival" in constant else None


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

"""What the body of a function says: the statements in it, as facts, and whether some of it can't be known.

Bodies in SQL and PL/pgSQL are read with PostgreSQL's own grammars. Never add here: the catalog, or what a rule makes of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pglast import parser

from control.policy.facts import Facts, Node, Unreadable
from control.policy.reading import read_facts, read_tree

__all__ = ["Body", "read_block", "read_body"]

_EXPRESSION, _STATEMENT = 2, 0  # RawParseMode of the text in a PLpgSQL_expr; what is above are assignments
_DYNAMIC = frozenset({"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"})


@dataclass(frozen=True, slots=True)
class Body:
    """The statements of a body. ``unknown``: it also runs something that its text does not show."""

    statements: tuple[Facts, ...] = ()
    unknown: bool = False


_UNKNOWN = Body(unknown=True)


def read_body(definition: str, language: str) -> Body:
    """The body of a function from its full ``CREATE FUNCTION`` text, as ``pg_get_functiondef`` gives it."""
    try:
        if language == "plpgsql":
            return _plpgsql(re.sub(r"\bVARIADIC ", "", definition, count=1))
        if language != "sql":
            return _UNKNOWN
        ((_, node),) = json.loads(parser.parse_sql_json(definition))["stmts"][0]["stmt"].items()
        if body := node.get("sql_body"):
            return Body(tuple(read_tree(each) for each in _atomic(body)))
        text = next(option["DefElem"]["arg"] for option in node["options"] if option["DefElem"]["defname"] == "as")
        return Body(read_facts(text["List"]["items"][0]["String"]["sval"].encode(), None))
    except (parser.ParseError, Unreadable, RecursionError, KeyError, IndexError, StopIteration, ValueError):
        return _UNKNOWN


def read_block(node: Node) -> Body:
    """The body of a DO statement, from its node."""
    options = {option["DefElem"]["defname"]: option["DefElem"].get("arg", {}) for option in node.get("args", ())}
    text = options.get("as", {}).get("String", {}).get("sval", "")
    if options.get("language", {}).get("String", {}).get("sval", "plpgsql") != "plpgsql":
        return _UNKNOWN
    quote = "$pgleash$"
    while quote in text:
        quote = f"{quote[:-1]}x$"
    try:
        return _plpgsql(f"DO {quote}{text}{quote}")
    except (parser.ParseError, Unreadable, RecursionError, ValueError):
        return _UNKNOWN


def _atomic(body: Any) -> Iterator[Node]:
    """The statements of BEGIN ATOMIC or RETURN, however they are nested in lists."""
    if isinstance(body, list):
        for item in body:
            yield from _atomic(item)
    elif isinstance(body, dict):
        if "List" in body:
            yield from _atomic(body["List"].get("items", []))
        elif "ReturnStmt" in body:
            yield {"SelectStmt": {"targetList": [{"ResTarget": {"val": body["ReturnStmt"].get("returnval", {})}}]}}
        elif body:
            yield body


def _plpgsql(definition: str) -> Body:
    found: list[Facts] = []
    unknown = False
    tree = json.loads(parser.parse_plpgsql_json(definition))
    for text in _declared(tree, _source(definition)):
        try:
            found += read_facts(text.encode(), None)
        except Unreadable:
            unknown = True
    for text, dynamic in _texts(tree):
        if dynamic and (text := _constant(text)) == "":
            unknown = True
        found += read_facts(text.encode(), None) if text else ()
    return Body(tuple(found), unknown)


def _source(definition: str) -> str:
    """The text of a block itself."""
    ((_, node),) = json.loads(parser.parse_sql_json(definition))["stmts"][0]["stmt"].items()
    items = [item["DefElem"] for item in (*node.get("options", ()), *node.get("args", ())) if "DefElem" in item]
    text: Node = next((item.get("arg", {}) for item in items if item["defname"] == "as"), {})
    return str((text.get("List", {}).get("items") or [text])[0].get("String", {}).get("sval", ""))


def _declared(node: Any, source: str) -> Iterator[str]:
    """What declarations run: the types of variables, and what rows begin with, which PL/pgSQL's tree does not show."""
    if isinstance(node, list):
        for item in node:
            yield from _declared(item, source)
    elif isinstance(node, dict):
        if (row := node.get("PLpgSQL_rec")) is not None and row.get("lineno"):
            yield from _row(row, source)
        name = node.get("PLpgSQL_type", {}).get("typname", "")
        if name and "%" not in name and re.fullmatch(r"\w+", name) and name != "UNKNOWN":
            yield f'SELECT NULL::"{name}"'
        for value in node.values():
            yield from _declared(value, source)


def _row(row: Node, source: str) -> Iterator[str]:
    lines = source.split("\n")
    rest = "\n".join(lines[row["lineno"] - 1 :])
    for met in re.finditer(re.escape(row["refname"]), rest, re.IGNORECASE):
        if "\n" in rest[: met.start()]:
            return
        declared = rest[met.end() :].partition(";")[0]
        kind, assigned, value = [*re.split(r"(:=|=|\bdefault\b)", declared, maxsplit=1, flags=re.IGNORECASE), "", ""][:3]
        if assigned:
            yield f"SELECT ({value})"
        if re.fullmatch(r'"?\s+[\w."]+(\s*\[\])*\s*', kind) and kind.strip(' \n"').lower() != "record":
            yield f"SELECT NULL::{kind.removeprefix(chr(34))}"


def _texts(node: Any, dynamic: bool = False) -> Iterator[tuple[str, bool]]:
    """The SQL in a PL/pgSQL tree as statements, and whether what it yields is run as a statement again."""
    if isinstance(node, list):
        for item in node:
            yield from _texts(item)
        return
    if not isinstance(node, dict):
        return
    if (expression := node.get("PLpgSQL_expr")) is not None:
        text, mode = expression.get("query", ""), expression.get("parseMode", _STATEMENT)
        if mode > _EXPRESSION:
            target, value = re.split(r":=|=", text, maxsplit=1)
            text = f"SELECT {target}, ({value})"
        yield (text if mode in (_STATEMENT,) else f"SELECT ({text})" if mode == _EXPRESSION else text), dynamic
        if dynamic and mode == _EXPRESSION:
            yield f"SELECT ({text})", False
        return
    for key, value in node.items():
        if key in _DYNAMIC:
            yield from _texts(value.get("query"), True)
            yield from _texts({name: part for name, part in value.items() if name != "query"})
        elif key == "dynquery":
            yield from _texts(value, True)
        else:
            yield from _texts(value)


def _constant(text: str) -> str:
    """The statement in ``SELECT ('...')``: empty unless it is one plain string."""
    tree = json.loads(parser.parse_sql_json(text))["stmts"][0]["stmt"].get("SelectStmt", {})
    targets = tree.get("targetList", [])
    return str(targets[0]["ResTarget"]["val"].get("A_Const", {}).get("sval", {}).get("sval", "")) if len(targets) == 1 else ""

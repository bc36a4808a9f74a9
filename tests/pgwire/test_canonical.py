"""The canonical form against PostgreSQL's own scanner and grammar: which literals it finds, and that equal forms parse alike.

The expected form is made from the tokens that the scanner reports; the module may decline a text, but never differ.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pglast import parser

from kit.literals import INT4, INT8, NUMERIC, STRING, with_other_literals
from pgwire.hot.canonical import canonical

# What the scanner refuses though every literal is plain: such a text keeps its form, and its exact text is denied anyway.
NOT_ABOUT_LITERALS = ("zero-length delimited identifier", "parameter number too large", "operator too long")


def mark(name: str, text: str) -> str | None:
    """The marker that a scanner's token must become; None: the text must be declined."""
    if name == "SCONST":
        return STRING
    if name in ("ICONST", "FCONST"):
        if not text.isascii() or not text.isdigit():
            return NUMERIC if re.fullmatch(r"[0-9.]+([eE][-+]?[0-9]+)?", text) else None
        value = int(text)
        if value in (2**31, 2**63):
            return None
        return INT4 if value < 2**31 else INT8 if value < 2**63 else NUMERIC
    return None


def expected(sql: str) -> tuple[bool, str | None]:
    """Whether the scanner reads the text at all, and its form by the scanner's tokens (None where it has to be declined)."""
    try:
        tokens = parser.scan(sql)
    except parser.ParseError as error:
        return any(each in str(error) for each in NOT_ABOUT_LITERALS), None
    parts, at = [], 0
    for token in tokens:
        if token.name in ("ICONST", "FCONST", "SCONST", "BCONST", "XCONST", "USCONST"):
            marker = mark(token.name, sql[token.start : token.end + 1])
            if marker is None:
                return True, None
            parts += [sql[at : token.start], marker]
            at = token.end + 1
    return True, "".join((*parts, sql[at:]))


def check(sql: str) -> str | None:
    """The form of a text, after comparing it with the scanner's."""
    found = canonical(sql.encode())
    readable, wanted = expected(sql)
    if found is None:
        return None
    assert readable, f"has a form, but the scanner refuses it: {sql!r}"
    if wanted is not None:
        assert found.decode() == wanted, sql
    else:
        assert any(each in _refusal(sql) for each in NOT_ABOUT_LITERALS), f"must be declined: {sql!r}"
    return found.decode()


def _refusal(sql: str) -> str:
    try:
        parser.scan(sql)
    except parser.ParseError as error:
        return str(error)
    return ""


def blanked(node: Any) -> Any:
    """A parse tree without positions and without the values of constants."""
    if isinstance(node, list):
        return [blanked(item) for item in node]
    if isinstance(node, dict):
        if "A_Const" in node:
            return {"A_Const": sorted(set(node["A_Const"]) - {"location"})}
        if "Integer" in node:
            return "Integer"
        return {key: blanked(value) for key, value in node.items() if not key.endswith(("location", "_len", "_start", "_end"))}
    return node


def shape(sql: str) -> Any:
    try:
        return blanked(json.loads(parser.parse_sql_json(sql))["stmts"])
    except parser.ParseError:
        return None


@pytest.mark.parametrize(
    ("sql", "form"),
    [
        ("", ""),
        ("SELECT 1", "SELECT \1"),
        ("SELECT 2147483647, 2147483649, 9223372036854775807, 9223372036854775809", "SELECT \1, \2, \2, \3"),
        ("SELECT 00000000000000000000000012, 99999999999999999999, 18446744073709551617", "SELECT \1, \3, \3"),
        ("SELECT 1.5, 1., .5, 1e5, 1.e5, .5E-3, 1E+9", "SELECT \3, \3, \3, \3, \3, \3, \3"),
        ("SELECT a.1", "SELECT a\3"),
        ("SELECT a1, _1, a$1, é1 FROM t2", "SELECT a1, _1, a$1, é1 FROM t2"),
        ("SELECT 'a', '', '''', 'it''s', 'a\\', 'b'", "SELECT \4, \4, \4, \4, \4, \4"),
        ("SELECT E'a\\'b', e'\\\\', E'', E'''', e'\\n''\\''", "SELECT \4, \4, \4, \4, \4"),
        ("SELECT 'a'::text, date 'now', d'x'", "SELECT \4::text, date \4, d\4"),
        ("SELECT fooE'a', fe'b'", "SELECT fooE\4, fe\4"),
        ("SELECT $$a$$, $t$ $$ 'x $t$, $_1$ $_ $_1$, $é$x$é$", "SELECT \4, \4, \4, \4"),
        ("SELECT $a$ $b$a$, $$$a$$, $a$$aa$a$", "SELECT \4, \4, \4"),
        ("SELECT a$$b$$", "SELECT a$$b$$"),
        ("SELECT $1, $23+1", "SELECT $1, $23+\1"),
        ('SELECT "a 1", "1""2", "\'", "--", "$$"', 'SELECT "a 1", "1""2", "\'", "--", "$$"'),
        ("SELECT 1 -- 2 '\n, 3", "SELECT \1 -- 2 '\n, \1"),
        ("SELECT 1 -- 2 '\r, 3", "SELECT \1 -- 2 '\r, \1"),
        ("SELECT 1 --", "SELECT \1 --"),
        ("SELECT /* 1 /* ' */ 2 */ 3", "SELECT /* 1 /* ' */ 2 */ \1"),
        ("SELECT /**/1/***/2/*/**/*/+3", "SELECT /**/\1/***/\1/*/**/*/+\1"),
        ("SELECT 1+--2\n3", "SELECT \1+--2\n\1"),
        ("SELECT 1*/*2*/3", "SELECT \1*/*2*/\1"),
        ("SELECT 3-2, 3 -2, 3- -2, -2, @-5, 5!=-5", "SELECT \1-\1, \1 -\1, \1- -\1, -\1, @-\1, \1!=-\1"),
        ("SELECT x[1:2], a[3]", "SELECT x[\1:\1], a[\1]"),
        ("SELECT 1::int, :x", "SELECT \1::int, :x"),
        ("SELECT 'é', 'ü'", "SELECT \4, \4"),
        ("SELECT U & 'a', u, U&1", "SELECT U & \4, u, U&\1"),
        ("SELECT E 'a', N 'a', B 'a', X 'a'", "SELECT E \4, N \4, B \4, X \4"),
        ("SELECT 1\t\n\r\f\v,2", "SELECT \1\t\n\r\f\v,\1"),
        ("SELECT 'a';SELECT 'b'", "SELECT \4;SELECT \4"),
        ("SELECT 1'a'", "SELECT \1\4"),
        ('SELECT 1"a"', 'SELECT \1"a"'),
        ("SELECT '\x80\x81'", "SELECT \4"),
    ],
)
def test_form(sql: str, form: str) -> None:
    assert canonical(sql.encode()) == form.encode()
    check(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "'a", "'a''", "E'a\\'", "e'a\\", "$$a", "$a$ $b$", "$a", "$", "$ $", "$1a", "$1$1", "$1$$x$$", '"a', '"a""', "/* ", "/* /* */",
        "/*/", "1a", "1_000", "1_", "0x1F", "0b1", "0o7", "1e", "1e+", "1.5e", "1..2", "1...2", "1.5.2", "1.a", "1$", "1$$a$$", "1é",
        "1e5a", "1.5e5.", "'a'\n'b'", "'a' \n -- c\n 'b'", "'a' 'b'", "'a' /* c */ 'b'", "E'a'\n'b'", "$$a$$ 'b'", "U&'a'",
        "u&'a'", 'U&"a"', "B'1'", "b'1'", "X'1'", "x'ff'", "N'a'", "n'a'", "E'\\101'", "E'\\x41'", "E'\\u0041'", "E'\\U00000041'",
        "E'\\é'", "2147483648", "-2147483648", "9223372036854775808", "\0", "'\0'", "\x01", "'\x01'", '"\x02"', "-- \x03", "/* \x04 */",
        "\x7f", "'\x1f'", "$$\x08$$", "$\x01$a$\x01$",
    ],
)  # fmt: skip
def test_declined(sql: str) -> None:
    assert canonical(b"SELECT " + sql.encode()) is None
    if "\0" not in sql:
        check("SELECT " + sql)


@pytest.mark.parametrize(
    "text", [b"'\xff'", b"'\xc0\xa7'", b"\xed\xa0\x80", b"'\xc3'", b"/* \xe2\x82 */", b"\xf4\x90\x80\x80", b'"\x80"', b"'a\xc3"]
)
def test_text_that_is_not_utf8_is_declined(text: bytes) -> None:
    assert canonical(b"SELECT " + text) is None


def test_a_long_text_is_declined() -> None:
    assert canonical(b"SELECT " + b" " * (8192 - 8) + b"1") is not None
    assert canonical(b"SELECT " + b" " * (8192 - 7) + b"1") is None


@given(st.binary(max_size=200))
def test_any_bytes_are_safe(text: bytes) -> None:
    form = canonical(text)
    assert form is None or len(form) <= len(text)
    if form is not None:
        text.decode()


PIECES = [
    "'", "''", "'a'", "E'", "e'", "\\", "\\'", "\\\\", '"', '""', "$", "$$", "$a$", "$b$", "$1", "$1a", "U&", "U&'", 'u&"', "B'",
    "X'1'", "N'", "1", "12", "0", "007", "2147483647", "2147483648", "9223372036854775808", "99999999999999999999", ".", "..", "1.",
    ".5", "1.5", "e", "e5", "E+5", "_", "_1", "0x1f", "a", "b1", "é", "SELECT", "e", "n", "x", "u", " ", "  ", "\n", "\r", "\t", "\f",
    "\v", "-", "--", "--\n", "-- '\n", "/", "*", "/*", "*/", "/**/", "+", "=", "@", "!", "<", ">", "~", "&", "|", "%", "^", "`", "?",
    ":", "::", ":=", "=>", ",", ";", "(", ")", "[", "]", "{", "}", "\x7f", "\x01", "\x1f", "a.1", "1a", "t.c", "date '1'", "int4",
    "UESCAPE '!'", "\u2028", "\ufeff",
]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_pieces_of_anything_are_read_like_the_scanner_reads_them(sql: str) -> None:
    check(sql)


STATEMENTS = [
    "SELECT abalance FROM pgbench_accounts WHERE aid = 12345",
    "UPDATE t SET a = a + -5, b = 'x', c = $$y$$ WHERE d IN (1, 2, 3) AND e = E'a\\'b' RETURNING *",
    "INSERT INTO t (a, b) VALUES (1, 'a'), (2, 'it''s') ON CONFLICT (a) DO UPDATE SET b = excluded.b || '!'",
    "DELETE FROM t WHERE a BETWEEN 1 AND 10000000000 AND b LIKE '%x%' -- why 'not'\n AND c > 1.5e3",
    'WITH x AS (SELECT 1 AS n UNION ALL SELECT 2) SELECT n::numeric(10, 2), "q 1"."a""b" FROM x, y "q 1" /* 1 /* 2 */ */ LIMIT 5 OFFSET 3',
    "SELECT date '2024-01-01' + interval '1 day', a[1], b[1:2], j->'k'->>0, x #>> '{a,b}', CASE WHEN a > 1 THEN 'x' ELSE 'y' END FROM t",
    "SELECT count(*) FILTER (WHERE a <> 3), sum(b) OVER (ORDER BY c ROWS 2 PRECEDING) FROM t GROUP BY 1, d HAVING count(*) > 5 ORDER BY 1",
    "SELECT a FROM t WHERE b = $1 AND c = -7 AND d != 'x' AND e ~ '^a' FETCH FIRST 3 ROWS ONLY",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    sql = draw(st.sampled_from(STATEMENTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(sql)))
        end = min(len(sql), start + draw(st.integers(0, 3)))
        sql = sql[:start] + draw(st.sampled_from(PIECES)) + sql[end:]
    return sql


@given(mutated())
def test_mutated_statements_are_read_like_the_scanner_reads_them(sql: str) -> None:
    check(sql)


@st.composite
def substituted(draw: st.DrawFn) -> tuple[str, str]:
    """A statement, and the same with other literals of the same classes."""
    sql = draw(st.sampled_from(STATEMENTS) | mutated())
    other = draw(with_other_literals(sql))
    assume(other is not None)
    assert other is not None
    return sql, other


@given(substituted())
def test_other_literals_of_the_same_classes_have_the_same_form_and_parse_alike(pair: tuple[str, str]) -> None:
    sql, other = pair
    form = check(sql)
    again = check(other)
    if again is None or again != form:
        # Only where the new literal is glued to what stands beside it: E'' and $q$ behind a word, digits behind a word or number.
        assert re.search(r"[\w$.\x80-\U0010ffff][\1-\4]|[\1-\4][\w$.\1-\4]", form or ""), (sql, other)
        return
    assert shape(sql) == shape(other), (sql, other)


def test_every_literal_matters_to_the_form_by_its_class() -> None:
    forms = {canonical(f"SELECT {literal}".encode()) for literal in ("1", "3000000000", "1.5", "'1'")}
    assert len(forms) == 4

"""Literals of each class, and a statement's text with others in their place.

Never add here: what a literal may matter to.
"""

from __future__ import annotations

from hypothesis import strategies as st

from pgwire.hot.canonical import canonical

__all__ = ["INT4", "INT8", "LITERALS", "NUMERIC", "STRING", "with_other_literals"]

INT4, INT8, NUMERIC, STRING = "\1", "\2", "\3", "\4"

_CONTENT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("'\"\\$-/*\n"), max_size=12)
# What a careless judgement might look at.
_TELLING = st.sampled_from(
    [
        "",
        "t",
        "false",
        "%",
        "%%",
        "pg_authid",
        "public.customers",
        "email",
        "{email}",
        "$.email",
        "1",
        "0",
        "on",
        "search_path",
        "1 day",
        "a'b",
    ]
)
LITERALS = {
    INT4: st.integers(0, 2**31 - 1).map(str) | st.sampled_from(["0", "1", "2", "3", "4", "5", "00", "007", "2147483647"]),
    INT8: st.integers(2**31 + 1, 2**63 - 1).map(str),
    NUMERIC: (
        st.from_regex(r"[0-9]{1,5}\.[0-9]{0,5}([eE][-+]?[0-9]{1,2})?", fullmatch=True, alphabet="0123456789.eE+-")
        | st.from_regex(r"\.[0-9]{1,5}", fullmatch=True, alphabet="0123456789.")
        | st.integers(2**63 + 1, 10**30).map(str)
    ),
    STRING: (
        (_TELLING | _CONTENT).map(lambda text: "'" + text.replace("'", "''") + "'")
        | _CONTENT.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
        | _CONTENT.filter(lambda text: "$q$" not in text + "$q$"[:-1]).map(lambda text: f"$q${text}$q$")
    ),
}


@st.composite
def with_other_literals(draw: st.DrawFn, sql: str) -> str | None:
    """The same statement with other literals of the same classes; None where its form is declined."""
    form = canonical(sql.encode())
    if form is None:
        return None
    return "".join(draw(LITERALS[each]) if each in LITERALS else each for each in form.decode())

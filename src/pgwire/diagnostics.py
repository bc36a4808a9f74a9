"""Errors, notices and notifications without the values that the server quotes in them.

PostgreSQL quotes values in messages (casts, RAISE), in details (constraints, failing rows), in contexts and in the text
of internal queries. What stays is what programs act on: severity, SQLSTATE, position, and the names of schema, table,
column, type, constraint and server routine. The message stays where the server's texts can't hold data; every other
SQLSTATE gets a text of its own or of its class.

Never add here: a SQLSTATE to KEEPS that a cast, a catalog function or set_config can fill with data.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KEEPS", "KEEPS_PLACED", "KEEPS_TOP", "safe_message", "scrub"]

_FIELDS: Final = b"SVCPLFRstcdn"  # fields that go through as they are; M is judged; D, H, W, q, p and unknown ones go

KEEPS: Final = frozenset(
    {
        "08P01", "25001", "25006", "25P01", "25P02", "25P03", "25P04", "40001", "40P01", "42501", "53000", "53100", "53200",
        "53300", "53400", "54001", "55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05",
    }
)  # fmt: skip
"""SQLSTATEs whose message passes: the server's own texts under them name at most objects that exist."""

KEEPS_PLACED: Final = frozenset(
    {
        "42601", "42622", "42701", "42702", "42703", "42704", "42712", "42723", "42725", "42803", "42804", "42809", "42846",
        "42883", "42P01", "42P02", "42P08", "42P09", "42P10", "42P18", "42P19", "42P20", "0A000",
    }
)  # fmt: skip
"""SQLSTATEs whose message passes when it points into the client's own text (a position, no internal query).

Without a position the name may be data: ``SELECT card::regclass FROM customers`` fails with 42P01 and the card number.
"""

KEEPS_TOP: Final = frozenset({"26000", "42P05"})
"""SQLSTATEs whose message passes when no function was running: they name what the client itself named."""

_MESSAGES: Final = {
    "01000": "warning",
    "21000": "cardinality violation",
    "22001": "value too long for its type",
    "22003": "numeric value out of range",
    "22004": "null value not allowed",
    "22007": "invalid date or time",
    "22008": "date or time out of range",
    "2200L": "invalid XML document",
    "2200M": "invalid XML document",
    "22011": "substring error",
    "22012": "division by zero",
    "22021": "character not in the encoding's repertoire",
    "22023": "invalid parameter value",
    "22025": "invalid escape sequence",
    "22026": "string length mismatch",
    "22P01": "floating-point exception",
    "22P02": "invalid input syntax for the type",
    "22P03": "invalid binary representation",
    "22P04": "bad COPY file format",
    "22P05": "character can't be translated to the client's encoding",
    "2201B": "invalid regular expression",
    "2201E": "invalid argument for logarithm",
    "2201F": "invalid argument for power function",
    "2201W": "invalid row count in LIMIT",
    "2201X": "invalid row count in OFFSET",
    "22030": "duplicate JSON object key",
    "22032": "invalid JSON text",
    "2203F": "SQL/JSON scalar required",
    "23001": "restrict violation",
    "23502": "null value violates a not-null constraint",
    "23503": "foreign key constraint violated",
    "23505": "duplicate key value violates a unique constraint",
    "23514": "check constraint violated",
    "23P01": "exclusion constraint violated",
    "26000": "prepared statement does not exist",
    "2BP01": "other objects depend on this one",
    "34000": "cursor does not exist",
    "3D000": "database does not exist",
    "3F000": "schema does not exist",
    "42601": "syntax error",
    "42602": "invalid name",
    "42703": "column does not exist",
    "42704": "object does not exist",
    "42710": "object exists already",
    "42804": "types do not match",
    "42883": "function does not exist",
    "42P01": "relation does not exist",
    "42P05": "prepared statement exists already",
    "42P06": "schema exists already",
    "42P07": "relation exists already",
    "44000": "check option of the view violated",
    "54000": "a limit of the server was exceeded",
    "55000": "object not in the state that this needs",
    "P0001": "error raised by a function (its text is withheld)",
    "P0002": "a query returned no rows",
    "P0003": "a query returned more than one row",
    "P0004": "an assertion failed",
    "XX000": "internal error of the server",
    "XX001": "data corrupted",
    "XX002": "index corrupted",
}

_CLASSES: Final = {
    "00": "notice",
    "01": "warning",
    "02": "no data",
    "08": "connection error",
    "0A": "feature not supported",
    "21": "cardinality violation",
    "22": "invalid data",
    "23": "integrity constraint violated",
    "24": "invalid cursor state",
    "25": "invalid transaction state",
    "28": "authorization failed",
    "2B": "dependent objects exist",
    "2D": "invalid transaction termination",
    "2F": "SQL routine failed",
    "34": "invalid cursor name",
    "38": "external routine failed",
    "39": "external routine called wrongly",
    "3B": "savepoint error",
    "3D": "invalid database name",
    "3F": "invalid schema name",
    "40": "transaction rolled back",
    "42": "syntax error or access rule violation",
    "44": "check option of the view violated",
    "53": "insufficient resources",
    "54": "a limit of the server was exceeded",
    "55": "object not in the state that this needs",
    "57": "operator intervention",
    "58": "system error",
    "F0": "configuration file error",
    "HV": "foreign data wrapper error",
    "P0": "error in a PL/pgSQL function",
    "XX": "internal error of the server",
}

_INTERNAL: Final = "XX000"


def safe_message(sqlstate: str) -> str:
    """The message that stands for the server's own under this SQLSTATE."""
    return _MESSAGES.get(sqlstate) or _CLASSES.get(sqlstate[:2]) or "error"


def scrub(kind: bytes, body: bytes) -> bytes:
    """The body of an ErrorResponse (``E``), NoticeResponse (``N``) or NotificationResponse (``A``) without values.

    The channel of a notification stays, its payload becomes empty. A body that is not well formed is replaced by a whole
    one with SQLSTATE XX000 (errors, notices) or raises ``ValueError`` (notifications). Raises ``ValueError`` for other kinds.
    """
    if kind == b"A":
        return _notification(body)
    if kind not in (b"E", b"N"):
        raise ValueError(f"not a diagnostic message: {kind!r}")
    fields = _split(body)
    state = "" if fields is None else next((value.decode("ascii", "replace") for code, value in fields if code == ord("C")), "")
    if fields is None or len(state) != 5:
        severity = b"ERROR" if kind == b"E" else b"NOTICE"
        return b"S%s\0V%s\0C%s\0M%s\0\0" % (severity, severity, _INTERNAL.encode(), safe_message(_INTERNAL).encode())
    present = {code for code, _ in fields}
    raised = any((code == ord("F") and value.startswith(_RAISING_FILES)) for code, value in fields)
    keeps = not raised and not present & {ord("p"), ord("q")} and _keeps(state, present)
    out = bytearray()
    for code, value in fields:
        if code == ord("M"):
            if not keeps:
                value = safe_message(state).encode()
        elif code not in _FIELDS or (raised and code in b"stcdn"):
            continue
        out += bytes((code,)) + value + b"\0"
    return bytes(out) + b"\0"


_RAISING_FILES: Final = (b"pl_exec.c", b"plpy", b"plperl", b"SPI.xs", b"Util.xs", b"pltcl", b"plv8", b"dblink.c", b"connection.c")
# Sources in which a function or another server chooses message, SQLSTATE and object names: RAISE ... USING, plpy.error,
# and the errors that dblink and postgres_fdw (connection.c) hand on.


def _keeps(state: str, present: set[int]) -> bool:
    if state in KEEPS:
        return True
    if state in KEEPS_PLACED:
        return ord("P") in present
    return state in KEEPS_TOP and ord("W") not in present


def _split(body: bytes) -> list[tuple[int, bytes]] | None:
    # (code, value) of each field, or None if the body is not well formed
    fields: list[tuple[int, bytes]] = []
    at = 0
    while at < len(body):
        if body[at] == 0:
            return fields if at == len(body) - 1 else None
        end = body.find(b"\0", at + 1)
        if end < 0:
            return None
        fields.append((body[at], body[at + 1 : end]))
        at = end + 1
    return None


def _notification(body: bytes) -> bytes:
    end = body.find(b"\0", 4)
    if end < 0 or body.find(b"\0", end + 1) != len(body) - 1 or len(body) < 6:
        raise ValueError("not a notification")
    return body[: end + 1] + b"\0"

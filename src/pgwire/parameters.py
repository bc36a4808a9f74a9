"""Which of a client's startup parameters reach the server.

What changes how values look or when a client gives up passes. Everything else is what a SET would be and is judged as one
(``as_statement``); the session's identity and the reading of string literals stay as they are.

Never add here: a parameter that changes who runs statements, or how their text is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pgwire.errors import GatewayError

__all__ = ["as_statement", "server_parameters", "split_options"]

_FREE = {
    "application_name", "client_encoding", "DateStyle", "TimeZone", "IntervalStyle", "extra_float_digits", "bytea_output",
    "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "geqo", "jit",
}  # fmt: skip
_SPELLED = {"datestyle": "DateStyle", "timezone": "TimeZone", "intervalstyle": "IntervalStyle"}
_FIXED = {
    "standard_conforming_strings": {"on", "true", "yes", "1"},
    "backslash_quote": {"safe_encoding"},
    "row_security": {"on", "true", "yes", "1"},
}
_REFUSED = {
    "role", "session_authorization", "session_replication_role", "is_superuser", "local_preload_libraries", "session_preload_libraries",
    "dynamic_library_path", "allow_system_table_mods", "ignore_system_indexes", "user", "database", "replication", "options",
}  # fmt: skip
_WHY = {
    "role": "the server's role follows from the grant",
    "session_authorization": "the server's role follows from the grant",
}
_BLANKS = " \t\n\v\f\r"  # isspace() in the C locale
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def server_parameters(options: str, settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parameters for the server's startup message. Raises ``GatewayError`` 0A000, 42601 or 22023 for one that can't pass.

    ``options`` is the parameter of that name, ``settings`` the others that name a setting, in the order they were sent. As in
    PostgreSQL (process_startup_options) the options come first and of a setting given twice the last counts, but each is looked at.
    """
    passed = {"client_encoding": "UTF8"}
    for name, value in [*_options(options), *settings]:
        folded = name.lower()
        if folded == "client_encoding":
            if re.sub(r"[^A-Za-z0-9]", "", value).lower() not in ("utf8", "unicode"):
                raise GatewayError("0A000", f"client_encoding {value[:40]} is not possible through this gateway", hint="Use UTF8.")
        elif folded in _FIXED and value.strip("'\"").lower() not in _FIXED[folded]:
            raise GatewayError(
                "0A000", f"{folded} {value[:40]} is not possible through this gateway", hint="It changes what a statement means."
            )
        elif folded in _REFUSED or not _NAME.fullmatch(name):
            why = f": {_WHY[folded]}" if folded in _WHY else ""
            raise GatewayError(
                "0A000",
                f"the startup parameter {name[:63]} is not possible through this gateway{why}",
                hint="Connect without it.",
            )
        else:
            passed[_SPELLED.get(folded, folded)] = value
    return passed


def as_statement(name: str, value: str) -> bytes | None:
    """The SET that stands for a parameter, to be judged; None for one that needs no asking."""
    if name in _FREE:
        return None
    quoted = '"' + name.replace(".", '"."') + '"'
    return f"SET {quoted} TO '{value.replace(chr(39), chr(39) * 2)}'".encode()


def split_options(text: str) -> list[str]:
    """The words of ``options``: blanks part them, a backslash takes the next character as it is, quotes mean nothing.

    Source: pg_split_opts in PostgreSQL's src/backend/utils/init/postinit.c.
    """
    words: list[str] = []
    word: list[str] | None = None
    escaped = False
    for character in text:
        if word is None:
            if character in _BLANKS:
                continue
            word = []
        elif character in _BLANKS and not escaped:
            words.append("".join(word))
            word = None
            continue
        if character == "\\" and not escaped:
            escaped = True
        else:
            escaped = False
            word.append(character)
    if word is not None:
        words.append("".join(word))
    return words


def _options(text: str) -> list[tuple[str, str]]:
    # "-c name=value", "-cname=value" and "--name=value"; a dash in a name stands for an underscore (ParseLongOption)
    found = []
    words = split_options(text)
    words.reverse()
    while words:
        word = words.pop()
        if word == "-c" and words:
            setting = words.pop()
        elif word.startswith(("--", "-c")):
            setting = word[2:]
        else:
            raise GatewayError("42601", "invalid command-line argument for server process", hint="Write options as -c name=value.")
        name, equals, value = setting.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise GatewayError("42601", f"{word[:2]} {name[:63]} requires a value", hint="Write options as -c name=value.")
        if not _NAME.fullmatch(name):
            raise GatewayError("42704", "unrecognized configuration parameter in options", hint="Write options as -c name=value.")
        found.append((name, value))
    return found

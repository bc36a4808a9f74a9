"""Which of a client's startup parameters reach the server.

What changes how values look or when a client gives up passes. What changes what a statement means (search_path, role,
encodings) does not: the policy reads statements, so it has to know; such settings are made by SET, which is judged.

Never add here: a parameter that changes names, identities or the reading of string literals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pgwire.errors import GatewayError

__all__ = ["server_parameters", "split_options"]

_PASSED = {
    "application_name": "application_name",
    "datestyle": "DateStyle",
    "timezone": "TimeZone",
    "intervalstyle": "IntervalStyle",
    "extra_float_digits": "extra_float_digits",
    "bytea_output": "bytea_output",
    "statement_timeout": "statement_timeout",
    "lock_timeout": "lock_timeout",
    "idle_in_transaction_session_timeout": "idle_in_transaction_session_timeout",
    "idle_session_timeout": "idle_session_timeout",
    "geqo": "geqo",
    "jit": "jit",
}
_WHY = {
    "search_path": "names mean what the gateway's login makes them mean",
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
        elif folded in _PASSED:
            passed[_PASSED[folded]] = value
        else:
            why = f": {_WHY[folded]}" if folded in _WHY else ""
            raise GatewayError(
                "0A000",
                f"the startup parameter {name[:63]} is not possible through this gateway{why}",
                hint="Connect without it and use SET afterwards; it is judged like every statement.",
            )
    return passed


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

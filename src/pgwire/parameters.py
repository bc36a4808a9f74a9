"""Which of a client's startup parameters reach the server.

What changes how values look or when a client gives up passes. What changes what a statement means (search_path, role,
encodings) does not: the policy reads statements, so it has to know; such settings are made by SET, which is judged.

Never add here: a parameter that changes names, identities or the reading of string literals.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from pgwire.errors import GatewayError

__all__ = ["server_parameters"]

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
_OWN = {"user", "database", "replication", "options"}
_UTF8 = {"utf8", "unicode"}
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*$")


def server_parameters(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters for the server's startup message. Raises ``GatewayError`` 0A000 or 22023 for one that can't pass.

    Source: PostgreSQL, "Message Formats", StartupMessage; libpq's ``options``.
    """
    passed = {"client_encoding": "UTF8"}
    for name, value in [*_options(given.get("options", "")), *given.items()]:
        folded = name.lower()
        if name.startswith("_pq_.") or folded in _OWN:
            continue
        if folded == "client_encoding":
            if re.sub(r"[-_]", "", value.lower().strip("'\"")) not in _UTF8:
                raise GatewayError("0A000", f"client_encoding {value[:40]} is not possible through this gateway", hint="Use UTF8.")
        elif folded in _PASSED:
            passed[_PASSED[folded]] = value
        else:
            raise GatewayError(
                "0A000",
                f"the startup parameter {name[:63]} is not possible through this gateway",
                hint="Connect without it and use SET afterwards; it is judged like every statement.",
            )
    return passed


def _options(text: str) -> list[tuple[str, str]]:
    # "-c name=value", "-cname=value" and "--name=value", blanks escaped by a backslash
    try:
        words = shlex.split(text)
    except ValueError:
        words = ["?"]
    found = []
    words.reverse()
    while words:
        word = words.pop()
        if word == "-c" and words:
            setting = words.pop()
        elif word.startswith("--"):
            setting = word[2:].replace("-", "_")
        elif word.startswith("-c"):
            setting = word[2:]
        else:
            setting = ""
        name, equals, value = setting.partition("=")
        if not equals or not _NAME.match(name):
            raise GatewayError("22023", "the startup parameter options can't be read", hint="Write it as -c name=value.")
        found.append((name, value))
    return found

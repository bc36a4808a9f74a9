"""How a Python scenario is told where to connect and says what happened: one JSON line per step on standard output.

The scenarios in other languages read the same variables and write the same lines.
Never add here: a driver, or anything that makes two different outcomes look the same.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from typing import Any

__all__ = ["BIG", "CA", "DATABASE", "HOST", "PASSWORD", "PORT", "SETUP", "TYPES", "USER", "absent", "hang", "libpq", "step"]

HOST = os.environ["DRIVER_HOST"]
PORT = int(os.environ["DRIVER_PORT"])
USER = os.environ["DRIVER_USER"]
PASSWORD = os.environ["DRIVER_PASSWORD"]
DATABASE = os.environ["DRIVER_DATABASE"]
CA = os.environ.get("DRIVER_CA", "")  # empty: the server has no TLS

BIG = "ä" * (4 * 1024 * 1024)  # 8 MB in UTF-8
SETUP = "DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)"
TYPES = (
    "SELECT %s::int, %s::bigint, %s::numeric, %s::bool, %s::text, %s::timestamptz, %s::date, %s::uuid, %s::bytea, %s::json, %s::int[],"
    " %s::text[], %s::text"
)


def libpq() -> dict[str, Any]:
    """Connection parameters as libpq names them, with the certificate checked in full where there is one."""
    tls = {"sslmode": "verify-full", "sslrootcert": CA} if CA else {"sslmode": "disable"}
    return {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "dbname": DATABASE, **tls}


def step(name: str) -> Callable[[Callable[[], Any]], None]:
    """Run the decorated function now; what it returns is the outcome, and so is the error that it raises."""

    def run(work: Callable[[], Any]) -> None:
        try:
            _say(step=name, outcome="ok", value=_plain(work()))
        except Exception as error:
            _say(step=name, outcome="error", value=re.sub(r"0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}"))
            if name == "connect":
                raise SystemExit(1) from error

    return run


def absent(name: str) -> None:
    """The driver can't do this."""
    _say(step=name, outcome="absent", value=None)


def hang(pid: int, work: Callable[[], Any]) -> None:
    """The last step: say which server process serves us and run something long; whoever reads this kills us."""
    _say(step="disconnect", outcome="ok", value=pid)
    work()


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return f"{type(value).__name__} {value}"

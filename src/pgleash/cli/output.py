"""How results are shown: tables for people, JSON for machines; and how the API is reached.

Never add here: a command.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from pgleash.client import Api, connect

__all__ = [
    "ApiOption",
    "CaOption",
    "Output",
    "OutputOption",
    "TokenOption",
    "api",
    "duration",
    "emit",
    "remote_problem",
    "show",
    "state",
    "time",
]


class Output(enum.StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people, json for machines")]
ApiOption = Annotated[str, typer.Option("--api", envvar="PGLEASH_API", help="the gateway's API, HOST:PORT")]
TokenOption = Annotated[
    str, typer.Option("--token", envvar="PGLEASH_TOKEN", help="your token; better given as PGLEASH_TOKEN", show_default=False)
]
CaOption = Annotated[Path | None, typer.Option("--ca", envvar="PGLEASH_CA", help="PEM file of the authority behind the API's certificate")]


def api(address: str, token: str, ca: Path | None) -> Api:
    """The API. Raises ``typer.BadParameter`` without a token."""
    if not token:
        raise typer.BadParameter("no token: set PGLEASH_TOKEN, or give --token")
    return connect(address, token, ca)


def remote_problem(error: grpc.RpcError) -> str:
    """One line for what the gateway answered."""
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    name = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in str(details).lower():
        return "the gateway's API can't be reached: look at --api (PGLEASH_API) and --ca (PGLEASH_CA)"
    return f"{name}: {' '.join(str(details).split())}"


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it, every field there."""
    made: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return made


def emit(message: Message | Mapping[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(plain(message) if isinstance(message, Message) else dict(message), ensure_ascii=False), flush=True)


def show(output: Output, messages: Iterable[Message], columns: Sequence[tuple[str, Any]], key: str) -> None:
    """Messages as a table (``columns``: heading, function of a message) or as one JSON object with a list under ``key``."""
    found = list(messages)
    if output is Output.JSON:
        emit({key: [plain(message) for message in found]})
        return
    if not found:
        print(f"no {key}")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for message in found:
        table.add_row(*(_clean(str(value(message))) for _, value in columns))
    console().print(table, markup=False)


def details(output: Output, message: Message) -> None:
    """One message: a line per field, or JSON."""
    if output is Output.JSON:
        emit(message)
        return
    for name, value in plain(message).items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
        print(f"{name + ':':<18}{_clean(str(shown))}")


def console() -> Console:
    """Standard output; wide when it is no terminal, so that nothing is folded."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def _clean(text: str) -> str:
    # What agents write must not steer the terminal of who reads it.
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


clean = _clean


def time(stamp: Any) -> str:
    """A Timestamp as UTC text; empty when it is not set."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") if stamp.seconds else ""


def duration(value: Duration) -> float:
    """A Duration in seconds."""
    return value.seconds + value.nanos / 1e9


def state(enum_type: Any, value: int) -> str:
    """The last word of an enum's value."""
    return str(enum_type.Name(value)).rpartition("_STATE_")[2]

"""``pgleash sessions``: who is connected, who was, and what they did.

Never add here: other services.
"""

from __future__ import annotations

import time as clock
from typing import Annotated, Any

import typer
from rich.table import Table

from pgleash.cli.output import (
    ApiOption,
    CaOption,
    Output,
    OutputOption,
    TokenOption,
    api,
    clean,
    console,
    details,
    duration,
    emit,
    show,
    time,
)
from pgleash.v1 import sessions_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="Sessions of agents.", no_args_is_help=True)
_API = "localhost:6433"
_Id = Annotated[str, typer.Argument(help="like ses_…")]
_COLUMNS: list[tuple[str, Any]] = [
    ("ID", lambda s: s.id),
    ("AGENT", lambda s: s.subject + (f" for {s.acts_for}" if s.acts_for else "")),
    ("DATABASE", lambda s: s.database),
    ("SERVER LOGIN", lambda s: s.server_user),
    ("FROM", lambda s: s.peer),
    ("BEGAN", lambda s: time(s.start_time)),
    ("ENDED", lambda s: time(s.end_time) or "lives"),
    ("STATEMENTS", lambda s: s.statements if s.end_time.seconds else ""),
    ("WHY IT ENDED", lambda s: s.end_reason),
]


@app.command("list")
def list_(
    live: Annotated[bool, typer.Option("--live", help="only those that live")] = False,
    subject: str = "",
    database: str = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Sessions, newest first."""
    with api(address, token, ca) as gateway:
        found = gateway.sessions.List(pb.SessionServiceListRequest(live_only=live, subject=subject, database=database, page_size=limit))
    show(output, found.sessions, _COLUMNS, "sessions")


@app.command()
def get(session: _Id, output: OutputOption = Output.TABLE, address: ApiOption = _API, token: TokenOption = "", ca: CaOption = None) -> None:
    """One session with all that is known."""
    with api(address, token, ca) as gateway:
        details(output, gateway.sessions.Get(pb.SessionServiceGetRequest(id=session)).session)


@app.command()
def watch(
    subject: str = "", output: OutputOption = Output.TABLE, address: ApiOption = _API, token: TokenOption = "", ca: CaOption = None
) -> None:
    """Live sessions, then every begin and end, as they come."""
    with api(address, token, ca) as gateway:
        for told in gateway.sessions.Watch(pb.SessionServiceWatchRequest(subject=subject)):
            one = told.session
            if output is Output.JSON:
                emit(one)
            else:
                what = f"ended: {one.end_reason}" if one.end_time.seconds else "lives"
                print(clean(f"{one.id}  {one.subject}  {one.database}  {what}"), flush=True)


@app.command()
def terminate(
    session: _Id,
    reason: Annotated[str, typer.Option(help="told to the agent")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """End a live session."""
    with api(address, token, ca) as gateway:
        ended = gateway.sessions.Terminate(pb.TerminateRequest(id=session, reason=reason)).session
    if output is Output.JSON:
        emit(ended)
    else:
        print(f"{ended.id} is being ended")


@app.command()
def replay(
    session: _Id,
    speed: Annotated[float, typer.Option(min=0.01, help="1 is the original timing, 10 ten times as fast")] = 1.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="print at once")] = False,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Play a session back: what the agent sent and what it saw, when it did."""
    began = clock.monotonic()
    with api(address, token, ca) as gateway:
        for frame in gateway.sessions.Replay(pb.ReplayRequest(id=session)):
            offset = duration(frame.offset)
            if not no_wait:
                clock.sleep(max(0.0, offset / speed - (clock.monotonic() - began)))
            if output is Output.JSON:
                emit(frame)
            else:
                _print(frame, offset)


def _print(frame: pb.ReplayResponse, offset: float) -> None:
    head = f"{offset:9.3f} s  "
    fields = frame.fields
    if frame.kind == "ended":
        took = float(_field(fields, "duration_us") or 0) / 1e6
        failed = _field(fields, "sqlstate")
        rows = float(_field(fields, "rows") or 0)
        print(
            f"{head}  … {rows:.0f} rows in {took:.3f} s" + (f", {clean(str(failed))}" if failed and failed != "00000" else ""), flush=True
        )
    elif frame.kind == "result":
        print(f"{head}  = {clean(frame.tag)}" + (" (recording cut short)" if frame.truncated else ""), flush=True)
        if frame.columns:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for name in frame.columns:
                table.add_column(clean(name), overflow="fold")
            for row in frame.rows[:20]:
                table.add_row(*("NULL" if value is None else clean(str(value)) for value in row))
            console().print(table)
            if frame.row_count > 20:
                print(f"… {frame.row_count - 20} more rows")
    elif frame.kind in ("error", "notice"):
        hint = _field(fields, "hint")
        said = f"! {frame.kind.upper()} {_field(fields, 'sqlstate')} {frame.text}"
        print(clean(f"{head}  {said} ({hint})" if hint else f"{head}  {said}"), flush=True)
    elif frame.kind == "statement":
        print(clean(f"{head}> {frame.text}"), flush=True)
    else:
        print(clean(f"{head}{frame.kind} {frame.text}"), flush=True)


def _field(fields: Any, name: str) -> str:
    # A Struct has no get().
    return str(fields[name]) if name in fields else ""

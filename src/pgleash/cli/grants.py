"""``pgleash grants``: who may use which database.

Never add here: other services.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any

import typer
from google.protobuf.duration_pb2 import Duration

from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, details, emit, show, state, time
from pgleash.v1 import grants_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="Who may use which database, for what, until when.", no_args_is_help=True)
_API = "localhost:6433"
_COLUMNS: list[tuple[str, Any]] = [
    ("ID", lambda g: g.id),
    ("STATE", lambda g: state(pb.GrantState, g.state)),
    ("AGENT", lambda g: g.subject),
    ("DATABASE", lambda g: g.database),
    ("TABLES", lambda g: " ".join(g.tables)),
    ("VERBS", lambda g: " ".join(g.verbs)),
    ("UNTIL", lambda g: time(g.expire_time)),
    ("BY", lambda g: g.created_by),
]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def create(
    subject: Annotated[str, typer.Argument(help="the agent")],
    database: Annotated[str, typer.Argument(help="the database, as agents call it")],
    tables: Annotated[list[str], typer.Option("--table", help="pattern like public.orders or public.*; may be repeated")],
    verbs: Annotated[list[str], typer.Option("--verb", help="select, insert, update, delete, truncate or ddl; may be repeated")],
    duration: Annotated[str, typer.Option("--for", help="like 30m, 8h or 2d")] = "15m",
    reason: str = "",
    request_id: Annotated[str, typer.Option(help="makes repeating safe")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Make a grant."""
    match = re.fullmatch(r"(\d+)([smhd])", duration)
    if match is None:
        raise typer.BadParameter("--for: a number and s, m, h or d, like 15m")
    request = pb.GrantServiceCreateRequest(
        subject=subject,
        database=database,
        tables=tables,
        verbs=verbs,
        duration=Duration(seconds=int(match[1]) * _UNITS[match[2]]),
        reason=reason,
        request_id=request_id or secrets.token_hex(8),
    )
    with api(address, token, ca) as gateway:
        made = gateway.grants.Create(request).grant
    if output is Output.JSON:
        emit(made)
    else:
        print(f"{made.id} until {time(made.expire_time)} UTC")


@app.command()
def get(
    grant: Annotated[str, typer.Argument(help="like gr_…")],
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """One grant with all that is known."""
    with api(address, token, ca) as gateway:
        details(output, gateway.grants.Get(pb.GrantServiceGetRequest(id=grant)).grant)


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="active, revoked, expired or all")] = "active",
    subject: str = "",
    database: str = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Grants, newest first."""
    wanted = f"GRANT_STATE_{'unspecified' if state == 'all' else state}".upper()
    if wanted not in list(pb.GrantState.keys()):
        raise typer.BadParameter("--state: active, revoked, expired or all")
    with api(address, token, ca) as gateway:
        found = gateway.grants.List(pb.GrantServiceListRequest(subject=subject, database=database, state=wanted, page_size=limit))
    show(output, found.grants, _COLUMNS, "grants")


@app.command()
def revoke(
    grant: Annotated[str, typer.Argument(help="like gr_…")],
    reason: str = "",
    request_id: Annotated[str, typer.Option(help="makes repeating safe")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """End a grant now: its sessions end, its server login is gone."""
    request = pb.GrantServiceRevokeRequest(id=grant, reason=reason, request_id=request_id or secrets.token_hex(8))
    with api(address, token, ca) as gateway:
        ended = gateway.grants.Revoke(request).grant
    if output is Output.JSON:
        emit(ended)
    else:
        print(f"{ended.id} is {state(pb.GrantState, ended.state)}")

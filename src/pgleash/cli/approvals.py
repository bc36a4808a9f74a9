"""``pgleash approvals``: see held statements and decide.

Never add here: other services.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, clean, details, emit, show, state, time
from pgleash.v1 import approvals_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="Held statements.", no_args_is_help=True)
_API = "localhost:6433"
_Name = Annotated[str, typer.Argument(help="like approvals/ap_… or ap_…")]
_COLUMNS: list[tuple[str, Any]] = [
    ("NAME", lambda a: a.name),
    ("STATE", lambda a: state(pb.ApprovalState, a.state)),
    ("AGENT", lambda a: a.subject + (f" for {a.acts_for}" if a.acts_for else "")),
    ("DATABASE", lambda a: a.database),
    ("STATEMENT", lambda a: a.statement),
    ("WHY", lambda a: "; ".join(a.reasons) or a.rule),
    ("UNTIL", lambda a: time(a.expire_time)),
    ("BY", lambda a: a.decided_by),
]


def _full(name: str) -> str:
    return name if name.startswith("approvals/") else f"approvals/{name}"


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="pending, approved, denied, expired, cancelled or all")] = "pending",
    database: str = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Approvals, newest first."""
    wanted = f"APPROVAL_STATE_{'unspecified' if state == 'all' else state}".upper()
    if wanted not in list(pb.ApprovalState.keys()):
        raise typer.BadParameter("--state: pending, approved, denied, expired, cancelled or all")
    with api(address, token, ca) as gateway:
        found = gateway.approvals.List(pb.ApprovalServiceListRequest(state=wanted, database=database, page_size=limit))
    show(output, found.approvals, _COLUMNS, "approvals")


@app.command()
def get(name: _Name, output: OutputOption = Output.TABLE, address: ApiOption = _API, token: TokenOption = "", ca: CaOption = None) -> None:
    """One approval with all that is known."""
    with api(address, token, ca) as gateway:
        details(output, gateway.approvals.Get(pb.ApprovalServiceGetRequest(name=_full(name))).approval)


@app.command()
def watch(
    database: str = "", output: OutputOption = Output.TABLE, address: ApiOption = _API, token: TokenOption = "", ca: CaOption = None
) -> None:
    """Pending approvals and every change, as they come."""
    with api(address, token, ca) as gateway:
        for told in gateway.approvals.Watch(pb.ApprovalServiceWatchRequest(database=database)):
            if output is Output.JSON:
                emit(told.approval)
            else:
                one = told.approval
                who = one.subject + (f" for {one.acts_for}" if one.acts_for else "")
                print(clean(f"{state(pb.ApprovalState, one.state):<10}{one.name}  {who}  {one.statement}"), flush=True)


@app.command()
def approve(
    name: _Name,
    comment: str = "",
    request_id: Annotated[str, typer.Option(help="makes repeating safe")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Let a held statement run."""
    request = pb.ApproveRequest(name=_full(name), comment=comment, request_id=request_id or secrets.token_hex(8))
    with api(address, token, ca) as gateway:
        _decided(output, gateway.approvals.Approve(request).approval)


@app.command()
def deny(
    name: _Name,
    comment: Annotated[str, typer.Option(help="told to the agent as HINT")] = "",
    request_id: Annotated[str, typer.Option(help="makes repeating safe")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Refuse a held statement."""
    request = pb.DenyRequest(name=_full(name), comment=comment, request_id=request_id or secrets.token_hex(8))
    with api(address, token, ca) as gateway:
        _decided(output, gateway.approvals.Deny(request).approval)


def _decided(output: Output, approval: pb.Approval) -> None:
    if output is Output.JSON:
        emit(approval)
    else:
        print(f"{approval.name} is {state(pb.ApprovalState, approval.state)}")

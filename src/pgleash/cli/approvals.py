"""``pgleash approvals``: see held statements and decide.

Never add here: other services.
"""

from __future__ import annotations

import secrets
import sys
from typing import Annotated, Any

import typer

from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, clean, details, emit, show, state, time
from pgleash.cli.screen import Screen, tried
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


_SHAPES: list[tuple[str, Any]] = [
    ("NAME", lambda s: s.name),
    ("STATE", lambda s: s.state),
    ("AGENT", lambda s: s.group or s.subject),
    ("DATABASE", lambda s: s.database),
    ("SHAPE", lambda s: s.shape),
    ("USES", lambda s: f"{s.uses} of {s.most}"),
    ("UNTIL", lambda s: time(s.expire_time)),
    ("BY", lambda s: s.created_by),
]


def _full(name: str) -> str:
    return name if name.startswith("approvals/") else f"approvals/{name}"


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="pending, approved, denied, expired, cancelled, voided or all")] = "pending",
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
        raise typer.BadParameter("--state: pending, approved, denied, expired, cancelled, voided or all")
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
    """What waits, live: choose, read and decide with one key. Without a terminal, or with -o json, a line for every change."""
    with api(address, token, ca) as gateway:
        if output is Output.TABLE and sys.stdin.isatty() and sys.stdout.isatty():
            Screen(gateway, database).run()
            return
        for told in gateway.approvals.Watch(pb.ApprovalServiceWatchRequest(database=database)):
            if output is Output.JSON:
                emit(told.approval)
            else:
                one = told.approval
                who = one.subject + (f" for {one.acts_for}" if one.acts_for else "")
                print(clean(f"{state(pb.ApprovalState, one.state):<10}{one.name}  {who}  {one.statement}"), flush=True)


def _terms(uses: int, minutes: float, bounds: list[str], group: str) -> pb.ShapeTerms | None:
    """What is said of more uses; None: nothing. Raises ``typer.BadParameter``."""
    if not (uses or bounds or group):
        return None
    if not uses:
        raise typer.BadParameter("--uses: how often its like may pass")
    terms = pb.ShapeTerms(uses=uses, group=group)
    terms.duration.FromMilliseconds(round(minutes * 60_000))
    for bound in bounds:
        place, _, wish = bound.partition("=")
        if wish == "any":
            terms.bounds[place].any = True
        elif ".." in wish:
            terms.bounds[place].least, _, terms.bounds[place].most = wish.partition("..")
        elif wish:
            terms.bounds[place].values.extend(wish.split(","))
        else:
            raise typer.BadParameter(f"--bound {bound}: PLACE=any, PLACE=LEAST..MOST or PLACE=VALUE,VALUE; a place is $1 or #1")
    return terms


@app.command()
def shapes(
    active: Annotated[bool, typer.Option(help="only those that stand")] = True,
    subject: str = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Approved shapes: statements that need no asking within their bounds."""
    with api(address, token, ca) as gateway:
        found = gateway.approvals.ListShapes(pb.ListShapesRequest(active_only=active, subject=subject)).shapes
    show(output, found, _SHAPES, "shapes")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="like shapes/sh_…")],
    reason: str = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """End an approved shape: its like is asked for again."""
    with api(address, token, ca) as gateway:
        made = gateway.approvals.RevokeShape(pb.RevokeShapeRequest(name=name, reason=reason)).shape
    if output is Output.JSON:
        emit(made)
    else:
        print(f"{made.name} is {made.state} after {made.uses} of {made.most} uses")


@app.command("dry-run")
def dry_run(
    name: _Name, output: OutputOption = Output.TABLE, address: ApiOption = _API, token: TokenOption = "", ca: CaOption = None
) -> None:
    """Execute a held write and roll it back: how many rows it affects, and some of them. Its rows are locked meanwhile."""
    with api(address, token, ca) as gateway:
        made = gateway.approvals.DryRun(pb.DryRunRequest(name=_full(name)), timeout=60)
    if output is Output.JSON:
        emit(made)
        return
    for line in tried(made):
        print(clean(line))


@app.command()
def approve(
    name: _Name,
    comment: str = "",
    uses: Annotated[int, typer.Option(help="let its like pass so often as well, within --bound")] = 0,
    minutes: Annotated[float, typer.Option(help="for so long")] = 10.0,
    bound: Annotated[
        list[str] | None, typer.Option(help="PLACE=any, PLACE=LEAST..MOST or PLACE=VALUE,VALUE; $1 a parameter, #1 a constant")
    ] = None,
    group: Annotated[str, typer.Option(help="for every member of this group of the agent")] = "",
    request_id: Annotated[str, typer.Option(help="makes repeating safe")] = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Let a held statement run."""
    terms = _terms(uses, minutes, bound or [], group)
    request = pb.ApproveRequest(name=_full(name), comment=comment, request_id=request_id or secrets.token_hex(8), shape=terms)
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

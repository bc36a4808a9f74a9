"""``pgleash policy``: what the policy would say.

Never add here: other services.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, clean, emit
from pgleash.v1 import policy_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="The policy.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `explain` a word of its own."""


@app.command()
def explain(
    statement: Annotated[str, typer.Argument(help="the SQL; it is not run")],
    subject: Annotated[str, typer.Option(help="the agent")],
    database: Annotated[str, typer.Option(help="the database, as agents call it")],
    group: Annotated[list[str] | None, typer.Option(help="one of its groups; may be repeated")] = None,
    acts_for: str = "",
    output: OutputOption = Output.TABLE,
    address: ApiOption = "localhost:6433",
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """The verdict on a statement of somebody, and why."""
    request = pb.ExplainRequest(subject=subject, groups=group or [], acts_for=acts_for, database=database, statement=statement)
    with api(address, token, ca) as gateway:
        said = gateway.policy.Explain(request)
    if output is Output.JSON:
        emit(said)
        return
    print(f"{said.effect.upper()} by {said.rule or 'no rule'} (policy {said.policy_version})")
    for reason in said.reasons:
        print(f"  because {clean(reason)}")
    if said.message:
        print(f"  told: {clean(said.message)}")
    if said.hint:
        print(f"  hint: {clean(said.hint)}")
    for number, mask in enumerate(said.masks, start=1):
        if mask.action:
            print(f"  column {number}: {mask.action} ({mask.label})")

"""``pgleash token``: what a token says. Nothing is sent anywhere and nothing is verified.

Never add here: minting; tokens come from the identity provider.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Annotated, Any

import typer

from pgleash.cli.output import Output, OutputOption, clean, emit

__all__ = ["app"]

app = typer.Typer(help="Look at a token.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `show` a word of its own."""


@app.command()
def show(
    token: Annotated[str, typer.Argument(envvar="PGLEASH_TOKEN", help="the token; better given as PGLEASH_TOKEN", show_default=False)],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the claims of a token and how long it lasts. The signature is not checked."""
    claims = _claims(token)
    if output is Output.JSON:
        emit(claims)
    else:
        for name, value in claims.items():
            print(f"{clean(name) + ':':<12}{clean(json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)}")
        print(_lasts(claims))
    if _left(claims) <= 0:
        raise typer.Exit(1)


def _claims(token: str) -> dict[str, Any]:
    parts = token.strip().split(".")
    try:
        body = parts[1] if len(parts) == 3 else ""
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise typer.BadParameter("this is no JSON Web Token (three parts separated by dots)")
    return claims


def _left(claims: dict[str, Any]) -> float:
    expires = claims.get("exp")
    return float(expires) - time.time() if isinstance(expires, (int, float)) else 0.0


def _lasts(claims: dict[str, Any]) -> str:
    left = _left(claims)
    return f"expires in {left:.0f} s" if left > 0 else f"EXPIRED {-left:.0f} s ago" if "exp" in claims else "names no expiry: it is refused"

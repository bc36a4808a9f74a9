"""``pgleash token``: what a token says, and the verifier of a password. Nothing is sent anywhere and nothing is verified.

Never add here: minting; tokens come from the identity provider.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Annotated, Any

import typer

from pgleash.cli.output import Output, OutputOption, clean, emit
from pgwire.scram import make_verifier

__all__ = ["app"]

app = typer.Typer(help="Look at a token, make a verifier of a password.", no_args_is_help=True)


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


@app.command()
def scram(
    iterations: Annotated[int, typer.Option(min=4096, max=1_000_000, help="rounds of hashing; PostgreSQL's default is 4096")] = 4096,
) -> None:
    """Make the SCRAM-SHA-256 verifier of a password, typed or piped in, for identity.scram_users."""
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    if not password or "\0" in password:
        raise typer.BadParameter("the password is empty or has a NUL in it")
    print(make_verifier(password, iterations))


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

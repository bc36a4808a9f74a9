"""The command ``pgleash``. Exit codes: 0 done, 1 a mistake on this side, 2 the gateway refused or found something wrong.

Never add here: a command; each group has its file.
"""

from __future__ import annotations

import sys

import grpc
import typer

from pgleash.cli import approvals, audit, grants, local, policy, sessions, token
from pgleash.cli.output import remote_problem

__all__ = ["app", "main"]

# typer brings its own click in newer releases and uses the installed one in older ones; this is its ClickException in both.
_Mistake: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    help="PostgreSQL on a leash for autonomous agents.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
local.add_to(app)
app.add_typer(token.app, name="token")
app.add_typer(approvals.app, name="approvals")
app.add_typer(grants.app, name="grants")
app.add_typer(sessions.app, name="sessions")
app.add_typer(audit.app, name="audit")
app.add_typer(policy.app, name="policy")


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        print("pgleash: interrupted", file=sys.stderr)
        return 1
    except _Mistake as error:
        told = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"pgleash: {' '.join(told.split())}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"pgleash: {remote_problem(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (OSError, ValueError) as error:
        print(f"pgleash: {' '.join(str(error).split())}", file=sys.stderr)
        return 1

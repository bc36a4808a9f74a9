"""Commands on this machine: serve, init, doctor, demo. The only ones that load the gateway itself, and only when called.

Never add here: commands that ask a running gateway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgleash.cli.output import Output, OutputOption, emit

__all__ = ["add_to"]

_ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="the configuration file")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(serve)
    app.command()(init)
    app.command()(doctor)
    app.command()(demo)


def serve(config: _ConfigOption = Path("pgleash.yaml")) -> None:
    """Run the gateway until it is told to stop (SIGTERM, Ctrl-C). SIGHUP reads the policy again."""
    from control.main import serve as run

    raise typer.Exit(run(config))


def init(directory: Annotated[Path, typer.Argument(help="where to write")] = Path(".")) -> None:
    """Write a commented configuration and policy to start from. Never overwrites."""
    from control.starter import starter, starter_policy

    directory.mkdir(parents=True, exist_ok=True)
    files = {"pgleash.yaml": starter(), "policy.yaml": starter_policy()}
    there = [name for name in files if (directory / name).exists()]
    if there:
        raise typer.BadParameter(f"{directory / there[0]} is there already; it is left as it is")
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
        print(f"wrote {directory / name}")
    print(f"next: edit {directory / 'pgleash.yaml'}, then run: pgleash doctor --config {directory / 'pgleash.yaml'}")


def doctor(config: _ConfigOption = Path("pgleash.yaml"), output: OutputOption = Output.TABLE) -> None:
    """Look at everything that serve needs and say what is missing. Changes nothing."""
    from control.main import doctor as examine

    findings = examine(config)
    for finding in findings:
        if output is Output.JSON:
            emit({"ok": finding.ok, "what": finding.what, "fix": finding.fix})
        else:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}" + (f"\n      {finding.fix}" if finding.fix else ""))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def demo() -> None:
    """Play the whole story on a PostgreSQL of its own; everything is removed afterwards."""
    try:
        from pgleash.demo.story import main
    except ImportError as error:
        raise typer.BadParameter(f"the demo needs more: pip install 'pgleash[demo]' ({error})") from None

    raise typer.Exit(main())

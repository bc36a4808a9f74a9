"""``pgleash policy``: what the policy would say, here or on a running gateway.

Never add here: other services.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.struct_pb2 import Struct

from pgleash.cli.cases import Answer, Case, differences, read_cases
from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, clean, duration, emit
from pgleash.v1 import policy_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="The policy: check it, try it, compare it, have it read again.", no_args_is_help=True)
_API = "localhost:6433"


@app.command()
def explain(
    statement: Annotated[str, typer.Argument(help="the SQL; it is not run")],
    subject: Annotated[str, typer.Option(help="the agent")],
    database: Annotated[str, typer.Option(help="the database, as agents call it")],
    group: Annotated[list[str] | None, typer.Option(help="one of its groups; may be repeated")] = None,
    acts_for: Annotated[str, typer.Option(help="the human it acts for")] = "",
    claims: Annotated[str, typer.Option(help='what else its token says, as JSON: {"team": "data"}')] = "",
    time: Annotated[datetime | None, typer.Option(help="when, UTC; now if left out")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="value of $1, $2 …, in order; \\N is NULL")] = None,
    policy: Annotated[Path | None, typer.Option(help="judge by this file instead of the policy in force")] = None,
    every: Annotated[bool, typer.Option("--all", help="show also the rules for other people and databases")] = False,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """The verdict on a statement of somebody, and what every rule says of it."""
    values = None if parameter is None else tuple(None if value == "\\N" else value for value in parameter)
    moment = None if time is None else time.replace(tzinfo=UTC).timestamp()
    case = Case("", statement, subject, database, tuple(group or ()), acts_for, _json(claims), moment, values)
    request = _request(case, policy.read_text(encoding="utf-8") if policy else "")
    with api(address, token, ca) as gateway:
        said = gateway.policy.Explain(request)
    if output is Output.JSON:
        emit(said)
        return
    _print_verdict(said)
    _print_rules(said, every)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="the policy file")]) -> None:
    """Read a policy here, without a gateway: its version, or everything that is wrong with it (exit code 1)."""
    from control.policy.offline import check as read

    try:
        version = read(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        print(f"{file}: can't be read: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{file}: policy {version} is right")


@app.command()
def test(
    file: Annotated[Path, typer.Argument(help="the cases, YAML")],
    policy: Annotated[Path | None, typer.Option(help="judge by this file instead of the policy in force")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="with --policy: judge here, on the tables of this file (pg_dump -s, or JSON), without a gateway")
    ] = None,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Run a table of cases against the policy. Exit code 1 when any is answered otherwise than it expects."""
    if schema is not None and policy is None:
        raise typer.BadParameter("--schema goes with --policy FILE")
    cases = read_cases(file)
    document = policy.read_text(encoding="utf-8") if policy else ""
    failed = 0
    results: list[dict[str, Any]] = []
    with _answers(document, policy, schema, address, token, ca) as ask:
        for number, case in enumerate(cases, start=1):
            answer = ask(case)
            found = differences(case, answer)
            failed += bool(found)
            if output is Output.JSON:
                results.append({"case": case.name, "ok": not found, "differences": found, "effect": answer.effect, "rule": answer.rule})
                continue
            print(f"{'ok  ' if not found else 'FAIL'}  {number}. {clean(_line(case.name))}")
            for line in found:
                print(f"      {clean(line)}")
            if found:
                print(f"      sql: {clean(_line(case.sql))}")
                for reason in answer.reasons:
                    print(f"      because {clean(reason)}")
    if output is Output.JSON:
        emit({"cases": results, "failed": failed})
    else:
        print(f"{len(cases) - failed} of {len(cases)} cases are as expected")
    raise typer.Exit(1 if failed else 0)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="a policy file; - for the policy in force")],
    new: Annotated[Path, typer.Argument(help="the changed policy file")],
    database: Annotated[str, typer.Option(help="only statements on this database")] = "",
    subject: Annotated[str, typer.Option(help="only statements of this agent")] = "",
    since: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    until: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    limit: Annotated[int, typer.Option(min=1, help="different statements at most")] = 10_000,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Judge the audit log's statements by both and list what would change. Runs nothing. Exit code 0 whether or not any does."""
    request = pb.DiffRequest(
        old_policy="" if str(old) == "-" else old.read_text(encoding="utf-8"),
        new_policy=new.read_text(encoding="utf-8"),
        database=database,
        subject=subject,
        limit=limit,
    )
    if since is not None:
        request.since.FromDatetime(since.replace(tzinfo=UTC))
    if until is not None:
        request.until.FromDatetime(until.replace(tzinfo=UTC))
    with api(address, token, ca) as gateway:
        said = gateway.policy.Diff(request)
    if output is Output.JSON:
        emit(said)
        return
    for change in said.changes:
        who = change.subject + (f" for {change.acts_for}" if change.acts_for else "")
        effects = f"{change.before.effect.upper()} -> {change.after.effect.upper()}"
        print(f"{effects}  {change.count} x  {clean(who)} on {clean(change.database)}")
        print(f"    {clean(_line(change.statement, 200))}")
        for name, answer in (("old", change.before), ("new", change.after)):
            masks = ", ".join(f"column {n} {mask.action}" for n, mask in enumerate(answer.masks, start=1) if mask.action)
            told = "; ".join((*answer.reasons[:3], *([masks] if masks else []), *_obliged(answer.obligations)))
            print(f"    {name}: {clean(told)}")
    some = f"{len(said.changes)} of {said.statements} different statements would be answered otherwise"
    print(f"{some} (policy {said.old_version} -> {said.new_version}){'; there are more than the limit' if said.cut_off else ''}")


@app.command()
def reload(
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Have the gateway read its policy file now. A wrong one is refused, and the old one stays in force."""
    with api(address, token, ca) as gateway:
        said = gateway.policy.Reload(pb.ReloadRequest())
    if output is Output.JSON:
        emit(said)
    else:
        print(f"policy {said.policy_version} is in force{'' if said.changed else ', as before'}")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"--claims is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("--claims must be a JSON object")
    return value


def _line(text: str, width: int = 110) -> str:
    return textwrap.shorten(" ".join(text.split()), width, placeholder=" …")


def _request(case: Case, document: str) -> pb.ExplainRequest:
    request = pb.ExplainRequest(
        subject=case.subject,
        groups=case.groups,
        acts_for=case.acts_for,
        database=case.database,
        statement=case.sql,
        policy=document,
        bound=case.parameters is not None,
        parameters=[pb.BoundValue(null=value is None, text=value or "") for value in case.parameters or ()],
    )
    if case.claims:
        made = Struct()
        made.update(dict(case.claims))
        request.claims.CopyFrom(made)
    if case.time is not None:
        request.time.FromNanoseconds(int(case.time * 1e9))
    return request


@contextlib.contextmanager
def _answers(
    document: str, policy: Path | None, schema: Path | None, address: str, token: str, ca: Path | None
) -> Iterator[Callable[[Case], Answer]]:
    """How a case gets its answer: here, when there is a schema; otherwise from the gateway."""
    if schema is None:
        with api(address, token, ca) as gateway:
            yield lambda case: _answer(gateway.policy.Explain(_request(case, document)))
        return
    from control.policy.offline import Offline
    from pgwire.ports import Principal

    offline = Offline(document, str(policy), schema.read_text(encoding="utf-8"))

    def ask(case: Case) -> Answer:
        principal = Principal(case.subject, groups=frozenset(case.groups), acts_for=case.acts_for or None, claims=case.claims)
        moment = case.time
        values = case.parameters
        bound = None if values is None else (tuple(None if v is None else v.encode() for v in values), (0,) * len(values))
        made = asyncio.run(
            offline.explain(principal, case.database, case.sql, clock=None if moment is None else lambda: moment, bound=bound)
        )
        asked = made.obligations
        names = ("max_rows", "max_affected", "read_only", "statement_timeout", "lock_timeout", "record")
        return Answer(
            made.effect,
            made.rule,
            made.message,
            made.hint,
            made.sqlstate,
            made.reasons,
            tuple(mask.action if mask else "" for mask in made.masks),
            {name: getattr(asked, name) for name in names},
            made.hold.approvers if made.hold else (),
            made.hold.needed if made.hold else 0,
            made.observed,
        )

    yield ask


def _answer(said: pb.ExplainResponse) -> Answer:
    asked = said.obligations
    return Answer(
        said.effect,
        said.rule,
        said.message,
        said.hint,
        said.sqlstate,
        tuple(said.reasons),
        tuple(mask.action for mask in said.masks),
        {
            "max_rows": asked.max_rows if asked.HasField("max_rows") else None,
            "max_affected": asked.max_affected if asked.HasField("max_affected") else None,
            "read_only": asked.read_only,
            "statement_timeout": duration(asked.statement_timeout) if asked.HasField("statement_timeout") else None,
            "lock_timeout": duration(asked.lock_timeout) if asked.HasField("lock_timeout") else None,
            "record": asked.record if asked.HasField("record") else None,
        },
        tuple(said.hold.approvers),
        said.hold.needed,
        tuple(said.observed),
    )


def _obliged(asked: pb.Obligations) -> list[str]:
    told = [f"at most {asked.max_rows} rows"] if asked.HasField("max_rows") else []
    told += [f"at most {asked.max_affected} affected rows"] if asked.HasField("max_affected") else []
    told += ["read only"] if asked.read_only else []
    told += [f"at most {duration(asked.statement_timeout):g} s"] if asked.HasField("statement_timeout") else []
    told += [f"waits at most {duration(asked.lock_timeout):g} s for locks"] if asked.HasField("lock_timeout") else []
    return told + ([f"{asked.record} bytes of results recorded"] if asked.HasField("record") else [])


def _print_verdict(said: pb.ExplainResponse) -> None:
    print(f"{said.effect.upper()} by {said.rule or 'no rule'} (policy {said.policy_version})")
    for reason in said.reasons:
        print(f"  because {clean(reason)}")
    for word in said.observed:
        print(f"  {clean(word)}")
    if said.message:
        print(f"  told: {clean(said.message)}" + (f" (SQLSTATE {said.sqlstate})" if said.sqlstate else ""))
    if said.hint:
        print(f"  hint: {clean(said.hint)}")
    if said.HasField("hold"):
        terms = said.hold
        within = f", {duration(terms.transaction_timeout):g} s in a transaction" if terms.HasField("transaction_timeout") else ""
        how = "deferred" if terms.defer else f"waits up to {duration(terms.timeout):g} s{within}"
        print(f"  approvers: {max(1, terms.needed)} of {clean(', '.join(terms.approvers))}; {how}")
    for duty in _obliged(said.obligations):
        print(f"  on condition: {duty}")
    for number, mask in enumerate(said.masks, start=1):
        if mask.action:
            print(f"  column {number}: {mask.action} ({clean(mask.label)})")


def _print_rules(said: pb.ExplainResponse, every: bool) -> None:
    elsewhere = ("who: ", "database ", "server ")
    hidden = 0
    for word in said.rules:
        if word.outcome == "silent" and word.why.startswith(elsewhere) and not every:
            hidden += 1
            continue
        observed = ", observed" if word.observe else ""
        words = {"speaks": f"speaks of {word.why}", "error": f"can't be evaluated: {word.why}"}
        told = words.get(word.outcome, f"does not speak: {word.why}")
        print(f"  rule {clean(word.name)} ({word.effect}{observed}) {clean(told)}")
    if hidden:
        print(f"  {hidden} rule{'s are' if hidden > 1 else ' is'} for others (--all shows {'them' if hidden > 1 else 'it'})")

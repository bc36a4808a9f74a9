"""``pgleash audit``: ask the audit log, and prove it.

Never add here: other services.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pgleash.cli.output import ApiOption, CaOption, Output, OutputOption, TokenOption, api, clean, emit, plain, time
from pgleash.v1 import audit_pb2 as pb

__all__ = ["app"]

app = typer.Typer(help="The audit log.", no_args_is_help=True)
_API = "localhost:6433"


@app.command()
def query(
    kind: Annotated[list[str] | None, typer.Option(help="like statement or session.opened; may be repeated")] = None,
    subject: str = "",
    session: Annotated[str, typer.Option(help="like ses_…")] = "",
    since: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    until: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    after: Annotated[int, typer.Option(min=0, help="only behind this sequence number")] = 0,
    limit: Annotated[int, typer.Option(min=1)] = 1000,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Entries in order, one line each."""
    request = pb.QueryRequest(kinds=kind or [], subject=subject, session=session, after=after, limit=limit)
    if since is not None:
        request.since.FromDatetime(since.replace(tzinfo=UTC))
    if until is not None:
        request.until.FromDatetime(until.replace(tzinfo=UTC))
    with api(address, token, ca) as gateway:
        for entry in gateway.audit.Query(request):
            if output is Output.JSON:
                emit(entry)
            else:
                fields = plain(entry)["fields"]
                said = fields.pop("text", "") or " ".join(
                    f"{name}={value}" for name, value in fields.items() if value not in ("", None, [])
                )
                print(clean(f"{entry.sequence:>8}  {time(entry.time)}  {entry.kind:<18} {entry.subject:<12} {said}").replace("\n", " "))


@app.command()
def verify(
    offline: Annotated[Path | None, typer.Option(help="check this audit directory here, without a gateway")] = None,
    public_key: Annotated[Path | None, typer.Option(help="PEM of the public key, with --offline")] = None,
    output: OutputOption = Output.TABLE,
    address: ApiOption = _API,
    token: TokenOption = "",
    ca: CaOption = None,
) -> None:
    """Prove that the log is whole: every record in the chain, every signature good, nothing cut off. Exit code 2 if not."""
    if offline is not None:
        found = _offline(offline, public_key)
    else:
        with api(address, token, ca) as gateway:
            answer = gateway.audit.Verify(pb.VerifyRequest())
        found = plain(answer)
    if output is Output.JSON:
        emit(found)
    else:
        for problem in found["problems"]:
            print(f"{problem['file']}, byte {problem['offset']}, record {problem['sequence'] or '?'}: {problem['description']}")
        for note in found["notes"]:
            print(f"note: {note}")
        what = "the audit log is whole" if found["ok"] else "THE AUDIT LOG IS NOT WHOLE"
        signed = f"{found['checkpoints']} signatures, head {found['head_hash'][:16]}…"
        print(f"{what}: {found['records']} records in {found['segments']} files, {signed}")
    if not found["ok"]:
        raise typer.Exit(2)


def _offline(directory: Path, public_key: Path | None) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from control.audit.verify import verify as check

    key = None
    if public_key is not None:
        loaded = load_pem_public_key(public_key.read_bytes())
        if not isinstance(loaded, Ed25519PublicKey):
            raise typer.BadParameter(f"{public_key}: not an Ed25519 public key")
        key = loaded
    report = check(directory, key)
    return {
        "ok": report.ok,
        "records": report.records,
        "segments": report.segments,
        "checkpoints": report.checkpoints,
        "head_sequence": report.head[0],
        "head_hash": report.head[1],
        "problems": [{"file": p.file, "offset": p.offset, "sequence": p.sequence, "description": p.what} for p in report.problems],
        "notes": report.notes,
    }

"""``make fuzz-parsers``: framing, masking, the canonical form and the startup of clients, fed by atheris (libFuzzer).

Each target says what must hold of any bytes; a crash, a hang or another exception is a finding, and libFuzzer writes its input
to a file. ``--seconds S`` for each target; ``--only NAME`` for one.

Never add here: a target that needs a socket.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from kit.sessions import CASES

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["pgwire"]):
        from pgwire import client_startup, messages
        from pgwire.errors import GatewayError
        from pgwire.hot import canonical, framing, masking


def fuzz_framing(data: bytes) -> None:
    """Messages found are the bytes given, whatever follows them."""
    for client in (True, False):
        try:
            found, used = framing.frames(data, client)
        except ValueError:
            continue
        assert b"".join(kind + (len(body) + 4).to_bytes(4, "big") + body for kind, body in found) == data[:used]
        assert framing.frames(data[:used], client) == (found, used)


def fuzz_masking(data: bytes) -> None:
    """Rows out are rows, and of nothing more than went in."""
    if len(data) < 4:
        return
    columns = [(index, data[index] % 21, data[3] % 40, False, b"x" * (data[3] % 5), bytes(16)) for index in range(data[0] % 3 + 1)]
    try:
        plan = masking.MaskPlan(columns)
    except (ValueError, TypeError):
        return
    code, used, out, rows = plan.run(data[4:])
    assert used <= len(data) - 4 and rows >= 0 and code in (masking.OK, masking.NEED_MORE, masking.FULL, masking.BAD)
    if code == masking.OK:
        again, taken = framing.frames(out, False)
        assert taken == len(out) and all(kind == b"D" for kind, _ in again)


def fuzz_canonical(data: bytes) -> None:
    """The form of a text is the same each time."""
    assert canonical.canonical(data) == canonical.canonical(data)


def fuzz_startup(data: bytes) -> None:
    """Bytes before a session either make one, or are refused; what is refused is refused however it comes."""
    ends = []
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        startup = client_startup.ClientStartup(tls_available=False, plaintext_allowed=True)
        end = "waits"
        try:
            for piece in pieces:
                startup.receive(piece)
                while not isinstance(event := startup.next_event(), client_startup.NeedMore):
                    if isinstance(event, client_startup.RefuseEncryption):
                        continue
                    end = type(event).__name__
                    if not isinstance(event, client_startup.Started):
                        break
                    startup.ask_password()
        except GatewayError as error:
            end = error.sqlstate
        ends.append(end)
    assert ends[0] == ends[1] or "08P01" in ends, ends


def fuzz_messages(data: bytes) -> None:
    """A row description is read or refused."""
    try:
        messages.row_description(data)
    except (GatewayError, ValueError):
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "framing": fuzz_framing,
    "masking": fuzz_masking,
    "canonical": fuzz_canonical,
    "startup": fuzz_startup,
    "messages": fuzz_messages,
}


def main() -> int:
    """Each target in a process of its own: libFuzzer ends the one that it runs in."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if atheris is None:
        print("skipped: atheris is not installed, and could not be (it has wheels for few platforms)")
        return 0
    if chosen.inside:
        arguments = [
            sys.argv[0],
            f"-max_total_time={chosen.seconds}",
            f"-seed={chosen.seed}",
            "-max_len=4096",
            "-timeout=10",
            "-verbosity=0",
        ]
        atheris.Setup(arguments, TARGETS[chosen.only])
        for case in CASES.values():  # where to begin
            TARGETS[chosen.only](b"".join(case))
        atheris.Fuzz()
        return 0
    failed = []
    for name in [chosen.only] if chosen.only else sorted(TARGETS):
        command = [
            sys.executable,
            "-m",
            "fuzz.parsers",
            "--inside",
            "--only",
            name,
            "--seconds",
            str(chosen.seconds),
            "--seed",
            str(chosen.seed),
        ]
        print(f"{name}: {chosen.seconds} s", flush=True)
        if subprocess.run(command).returncode:
            failed.append(name)
    print(f"findings in {', '.join(failed)}" if failed else "no findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""``make fuzz``: spoiled sessions to PostgreSQL and to the gateway; the gateway must be neither laxer, nor mute, nor different.

Seeded and bounded: ``--seed N --cases M --seconds S``. ``--masked`` sends them to a gateway whose policy masks, and looks for
one masked value in what comes back. Each finding is written to a file that ``--again FILE`` sends once more. Exit code 1 with
findings. Beside the cases an honest session must be answered within a second, and in the end the gateway may have grown by 64 MB
and 4 descriptors and hold no session of the server.

Never add here: an import from pgwire.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from fuzz import mutate
from kit.twins import CANARIES, DIRECT, LINES, ROLE, Answer, Twins, answer_of, difference, ending, open_stage
from kit.wire import WireClient, error_fields, query
from pgleash.demo.stage import Stage

RESET = query("ROLLBACK") + query("DISCARD ALL")


@dataclass(slots=True)
class Report:
    """What was done and found."""

    seed: int
    cases: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    home: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def found(self, number: int, kind: str, data: bytes, why: str) -> None:
        """Keep the case so that it can be sent again."""
        path = self.home / f"pgleash-fuzz-{self.seed}-{number}.case"
        path.write_text(f"# {kind}: {why}\n{data.hex()}\n")
        self.findings.append(f"{kind} {number}: {why}\n    {path}")
        print(f"FINDING {self.findings[-1]}", flush=True)


def laxer(server: Answer, gateway: Answer) -> str:
    """Why the gateway's answer to a spoiled session is not as strict as the server's; empty: it is."""
    told = [one for one in server.messages if one.kind not in "NSA"]
    ours = [one for one in gateway.messages if one.kind not in "NSA"]
    for at, (first, second) in enumerate(zip(told, ours, strict=False)):
        fields = error_fields(second.body) if second.kind == "E" else {}
        if "F" not in fields and (fields.get("V") == "FATAL" or fields.get("C") == "0A000"):
            return ""  # ended, or not available, by the gateway's own word
        if not difference(Answer((first,), ""), Answer((second,), "")):
            if fields.get("C") == "22021" and "F" not in fields:
                return ""  # a text that is no UTF-8 fails the server before, and us after, the unnamed statement is dropped
            continue
        if fields and "F" not in fields:
            return ""  # refused by the gateway itself: from here on it is the stricter one
        return f"message {at}: the server says {first}, the gateway {second}"
    if len(ours) > len(told):
        if server.end in ("closed", "quiet") and not {one.kind for one in ours[len(told) :]} - set("123TDCnIstHdcE"):
            return "" if gateway.end in (server.end, "closed") else gateway.end  # what the server has not flushed
        extra = ours[len(told)]
        fields = error_fields(extra.body) if extra.kind == "E" else {}
        return "" if fields and "F" not in fields else f"the server ends ({server.end}) where the gateway says {extra}"
    if len(ours) < len(told):
        return f"mute ({gateway.end}) where the server says {told[len(ours)]}"
    if server.end == "closed" and gateway.end != "closed":
        return f"the server has closed, the gateway is {gateway.end}"
    return "" if gateway.end == server.end or gateway.end == "closed" else f"{gateway.end} where the server is {server.end}"


class Prober(threading.Thread):
    """An honest session beside. ``slowest`` is its longest answer in seconds."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self.slowest = 0.0
        self.problem = ""
        self._over = threading.Event()
        self._stage = stage

    def run(self) -> None:
        """Ask, ten times a second."""
        try:
            with WireClient("127.0.0.1", self._stage.port) as client:
                client.login("agent-7", "shop", self._stage.token())
                while not self._over.wait(0.1):
                    began = time.monotonic()
                    if "".join(one.kind for one in client.run("SELECT 1") if one.kind in "DEZ") != "DZ":
                        self.problem = "another answer"
                    self.slowest = max(self.slowest, time.monotonic() - began)
        except (OSError, EOFError) as error:
            self.problem = f"{type(error).__name__}: {error}"

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join(5)


class Fuzzer:
    """One run over a stage."""

    def __init__(self, stage: Stage, report: Report, *, masked: bool) -> None:
        self.stage, self.report, self.masked = stage, report, masked
        self.twins = {tls: Twins(stage, tls=tls, setup=LINES) for tls in (False, True)}
        self.alone: WireClient | None = None

    def close(self) -> None:
        """End the sessions."""
        for twins in self.twins.values():
            twins.__exit__(None, None, None)
        if self.alone is not None:
            self.alone.socket.close()

    def one(self, number: int) -> None:
        """The case of that number; it depends on nothing but seed and number."""
        rng = random.Random(f"{self.report.seed}/{number}")
        if self.masked:
            made = mutate.shuffled(rng, mutate.session(rng, True), True)
            data = mutate.spoiled(rng, made) if made and rng.random() < 0.25 else b"".join(made)
            self.report.cases["masked"] += 1
            return self._masked(number, data)
        choice = rng.random()
        if choice < 0.06:
            self.report.cases["startup"] += 1
            return self._startup(number, mutate.startup(rng, DIRECT.encode()))
        made = mutate.shuffled(rng, mutate.session(rng, False), False)
        legal = choice < 0.6 or not made
        data = b"".join(made) if legal else mutate.spoiled(rng, made)
        tls = rng.random() < 0.3
        self.report.cases[("legal" if legal else "spoiled") + (" in TLS" if tls else "")] += 1
        self.twice(
            number,
            data,
            legal=legal,
            tls=tls,
            cuts=tuple(sorted(rng.sample(range(1, len(data) + 1), min(len(data), rng.choice((0, 0, 1, 3)))))),
        )

    def twice(self, number: int, data: bytes, *, legal: bool, tls: bool = False, cuts: tuple[int, ...] = ()) -> None:
        """Send it to both; what looks like a finding is sent again to fresh sessions, with more patience."""
        judge: Callable[[Answer, Answer], str] = difference if legal else laxer
        twins = self.twins[tls]
        answers = _both(twins, data, cuts, 10.0 if legal else 0.15)
        if judge(*answers):
            twins.renew()
            answers = _both(twins, data, cuts, 10.0 if legal else 3.0)
            if why := judge(*answers):
                self.report.found(number, "legal" if legal else "spoiled", data, why)
        if any(answer.end != "ready" for answer in answers) or not twins.reset():
            twins.renew()

    def _masked(self, number: int, data: bytes) -> None:
        if self.alone is None:
            self.alone = WireClient("127.0.0.1", self.stage.port)
            self.alone.login("agent-7", "shop", self.stage.token())
        try:
            self.alone.send(data + ending() + RESET)
        except OSError:
            pass
        answer = answer_of(self.alone, patience=3.0, quiet=0.3)
        seen = b"".join(one.body for one in answer.messages) + answer.rest
        if b"CANARY" in seen:
            self.report.found(number, "masked", data, "a masked value came back")
        if answer.end != "ready":
            self.alone.socket.close()
            self.alone = None
            return
        try:
            for _ in range(RESET.count(b"Q\0\0\0")):
                self.alone.until("Z")
        except (OSError, EOFError):
            self.alone.socket.close()
            self.alone = None

    def _startup(self, number: int, data: bytes) -> None:
        def asked(host: str, port: int) -> tuple[str, bytes]:
            with WireClient(host, port) as client:
                client.send(data)
                answer = answer_of(client, patience=0.2)
                return (
                    ("".join(one.kind for one in answer.messages), answer.rest)
                    if answer.end != "quiet" or answer.messages
                    else ("quiet", answer.rest)
                )

        server, _ = asked(self.stage.server.host, self.stage.server.port)
        gateway, rest = asked("127.0.0.1", self.stage.port)
        if "R" in gateway and "R" not in server and server != "quiet":
            self.report.found(number, "startup", data, f"the server says {server!r}, the gateway {gateway!r} {rest!r}")


def _both(twins: Twins, data: bytes, cuts: tuple[int, ...], patience: float) -> tuple[Answer, Answer]:
    try:
        server, gateway = twins.both(data, cuts=cuts, patience=patience)
    except OSError:
        twins.renew()
        server, gateway = twins.both(data, cuts=cuts, patience=patience)
    return server, gateway


def _usage(stage: Stage) -> tuple[int, int]:
    assert stage.process is not None
    every = [psutil.Process(stage.process.pid), *psutil.Process(stage.process.pid).children(recursive=True)]
    return sum(one.memory_info().rss for one in every), sum(one.num_fds() for one in every)


def _backends(stage: Stage) -> int:
    with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (ROLE,)).fetchone()
    return int(row[0]) if row else 0


def run(seed: int, cases: int, seconds: float, *, masked: bool = False, first: int = 0) -> Report:
    """The whole run on a stage of its own."""
    with open_stage(masked=masked) as stage:
        if masked:
            with psycopg.connect(stage.server.dsn("shop"), autocommit=True) as connection:
                connection.execute(CANARIES)
        report = Report(seed)
        cases_of(stage, report, range(first, first + cases), seconds, masked=masked)
        return report


def cases_of(stage: Stage, report: Report, numbers: range, seconds: float, *, masked: bool = False) -> None:
    """The cases of these numbers, and what they cost the gateway: measured from when it has warmed up."""
    until = time.monotonic() + seconds
    prober = Prober(stage)
    prober.start()
    fuzzer = Fuzzer(stage, report, masked=masked)
    before, backends = (0, 0), 0
    for number in numbers:
        if number == numbers.start + min(200, len(numbers) // 4):
            fuzzer.close()
            time.sleep(0.5)
            before, backends = _usage(stage), _backends(stage)
            fuzzer = Fuzzer(stage, report, masked=masked)
        try:
            fuzzer.one(number)
        except OSError as error:
            ended = stage.process.poll() if stage.process is not None else None
            report.findings.append(f"case {number}: {error}; the gateway has ended with {ended}: {stage.log.read_text()[-3000:]}")
            return
        if number % 500 == 499:
            print(f"{number + 1} cases, {len(report.findings)} findings", flush=True)
        if time.monotonic() > until:
            break
    fuzzer.close()
    time.sleep(1.0)
    prober.stop()
    if prober.problem or prober.slowest > 1.0:
        report.findings.append(f"the session beside: {prober.problem or 'slow'} ({prober.slowest:.2f} s)")
    if before[0]:
        _costs(report, before, _usage(stage), _backends(stage) - backends)
    print(f"slowest honest answer {prober.slowest * 1000:.0f} ms")


def _costs(report: Report, before: tuple[int, int], after: tuple[int, int], sessions: int) -> None:
    grown, opened = (after[0] - before[0]) / (1 << 20), after[1] - before[1]
    print(f"grown {grown:.1f} MB, descriptors {opened:+d}, sessions of the server {sessions:+d}")
    if grown > 64:
        report.findings.append(f"memory grew by {grown:.0f} MB")
    if opened > 4:
        report.findings.append(f"{opened} descriptors are left open")
    if sessions > 0:
        report.findings.append(f"{sessions} sessions of the server are left")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Fuzz the gateway beside PostgreSQL.")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--masked", action="store_true", help="look for masked values instead")
    parser.add_argument("--again", type=Path, help="send the case in this file again")
    chosen = parser.parse_args()
    if chosen.again:
        data = bytes.fromhex(chosen.again.read_text().splitlines()[-1])
        with open_stage() as stage, Twins(stage, setup=LINES) as twins:
            answers = twins.both(data)
            print(*answers, sep="\n")
            print(difference(*answers) or "alike")
        return 0
    report = run(chosen.seed, chosen.cases, chosen.seconds, masked=chosen.masked, first=chosen.first)
    every = ", ".join(f"{number} {kind}" for kind, number in sorted(report.cases.items()))
    print(f"seed {report.seed}: {sum(report.cases.values())} cases ({every}), {len(report.findings)} findings")
    for finding in report.findings:
        print(f"  {finding}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

"""The live screen of ``pgleash approvals watch``: what waits, the whole statement, and one key to decide.

A statement can be approved only after its end has been on the screen. Never add here: anything that is not about a terminal.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import sys
import termios
import textwrap
import threading
import time
import tty
from collections.abc import Iterator

import grpc
from google.protobuf.json_format import MessageToDict

from pgleash.cli.output import clean, remote_problem, state
from pgleash.client import Api
from pgleash.v1 import approvals_pb2 as pb

__all__ = ["Screen", "tried"]

_KEYS = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[5~": "back", "\x1b[6~": "on", " ": "on", "k": "up", "j": "down", "b": "back"}
_HELP = "j/k choose  space/b scroll  t try  a approve  d deny  q leave"
_LIST = 6  # lines for the list of what waits


class Screen:
    """``run`` shows until the user leaves. ``database`` narrows what is watched."""

    def __init__(self, api: Api, database: str) -> None:
        self._api = api
        self._database = database
        self._pending: dict[str, pb.Approval] = {}
        self._chosen = ""
        self._top = 0
        self._seen: set[str] = set()  # statements whose end has been shown
        self._tried: dict[str, list[str]] = {}  # what dry runs have said
        self._said = ""
        self._typed = ""
        self._problem = ""
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()

    def run(self) -> None:
        """Show, read keys, decide. Raises ``grpc.RpcError`` when the watch can't begin or go on."""
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        with _raw_terminal():
            self._draw()
            while not self._problem:
                key = self._key()
                if key == "q" or key == "\x03":
                    return
                if key:
                    self._press(key)
                self._draw()
        print(self._problem, file=sys.stderr)

    def _watch(self) -> None:
        token, failures, problem = "", 0, ""
        while failures < 5:
            try:
                for told in self._api.approvals.Watch(pb.ApprovalServiceWatchRequest(database=self._database, resume_token=token)):
                    token, failures = told.resume_token, 0
                    with self._lock:
                        self._changed(told.approval)
                    os.write(self._wake_write, b"x")
            except grpc.RpcError as error:
                failures += 1
                problem = remote_problem(error)
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                    break
                time.sleep(min(failures, 5))
        self._problem = problem
        os.write(self._wake_write, b"x")

    def _changed(self, approval: pb.Approval) -> None:
        if approval.state == pb.APPROVAL_STATE_PENDING:
            self._pending[approval.name] = approval
        elif self._pending.pop(approval.name, None) is not None:
            self._said = f"{approval.name} is {state(pb.ApprovalState, approval.state)}" + (
                f" by {approval.decided_by}" if approval.decided_by else ""
            )
        if self._chosen not in self._pending:
            self._choose(next(iter(self._pending), ""))

    def _choose(self, name: str) -> None:
        self._chosen, self._top = name, 0

    def _key(self) -> str:
        if not self._typed:
            ready, _, _ = select.select([sys.stdin, self._wake_read], [], [], 1.0)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if sys.stdin in ready:
                self._typed = os.read(sys.stdin.fileno(), 64).decode("utf-8", "ignore")
        # Keys may come together; those of several characters come whole.
        key = next((each for each in _KEYS if self._typed.startswith(each)), self._typed[:1])
        self._typed = self._typed[len(key) :]
        return _KEYS.get(key, key)

    def _press(self, key: str) -> None:
        with self._lock:
            names, chosen = list(self._pending), self._pending.get(self._chosen)
        if chosen is None:
            return
        at = names.index(self._chosen)
        if key in ("up", "down"):
            self._choose(names[max(0, min(len(names) - 1, at + (1 if key == "down" else -1)))])
        elif key in ("on", "back"):
            page = max(1, self._room() - 1)
            self._top = max(0, self._top + (page if key == "on" else -page))
        elif key == "a" and chosen.name not in self._seen:
            self._said = "scroll to the end of the statement first (space)"
        elif key in ("a", "d"):
            self._decide(chosen.name, key == "a")
        elif key == "t":
            self._try(chosen.name)

    def _try(self, name: str) -> None:
        try:
            self._tried = {name: tried(self._api.approvals.DryRun(pb.DryRunRequest(name=name), timeout=20))}
            self._top, self._said = 0, ""
        except grpc.RpcError as error:
            self._said = remote_problem(error)

    def _decide(self, name: str, approve: bool) -> None:
        request_id = secrets.token_hex(8)
        try:
            if approve:
                made = self._api.approvals.Approve(pb.ApproveRequest(name=name, request_id=request_id), timeout=20).approval
            else:
                made = self._api.approvals.Deny(pb.DenyRequest(name=name, request_id=request_id), timeout=20).approval
            missing = made.needed - sum(vote.approve for vote in made.votes)
            more = f", {missing} more must approve" if made.state == pb.APPROVAL_STATE_PENDING else ""
            self._said = f"{name} is {state(pb.ApprovalState, made.state)}{more}"
        except grpc.RpcError as error:
            self._said = remote_problem(error)

    def _room(self) -> int:
        return max(3, shutil.get_terminal_size().lines - _LIST - 5)

    def _draw(self) -> None:
        width, room = shutil.get_terminal_size().columns, self._room()
        with self._lock:
            names, chosen = list(self._pending), self._pending.get(self._chosen)
            lines = [f"{len(names)} waiting   {_HELP}"]
            first = max(0, min(names.index(self._chosen) - _LIST // 2, len(names) - _LIST)) if chosen is not None else 0
            for name in names[first : first + _LIST]:
                one = self._pending[name]
                who = one.subject + (f" for {one.acts_for}" if one.acts_for else "")
                left = max(0, round(one.expire_time.seconds - time.time()))
                mark = ">" if name == self._chosen else " "
                lines.append(f"{mark} {name}  {who}  {one.database}  {left} s  {' '.join(one.statement.split())}")
        lines += [""] * (_LIST + 1 - len(lines))
        body = self._body(chosen, width)
        self._top = max(0, min(self._top, len(body) - room))
        if chosen is not None and self._top + room >= len(body):
            self._seen.add(chosen.name)
        shown = body[self._top : self._top + room]
        place = f"lines {self._top + 1} to {self._top + len(shown)} of {len(body)}" if body else ""
        lines += ["-" * width, *shown, *[""] * (room - len(shown)), place, self._said]
        # Cut to the screen, and home the cursor instead of clearing, so that nothing flickers.
        sys.stdout.write("\x1b[H" + "".join(clean(line)[:width] + "\x1b[K\r\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()

    def _body(self, chosen: pb.Approval | None, width: int) -> list[str]:
        if chosen is None:
            return ["nothing waits"]
        texts = chosen.statement.split("\n")
        values = [f"${index} = {value}" for index, value in enumerate(chosen.parameters, 1)]
        evidence = [f"{name}: {value}" for name, value in _evidence(chosen).items()]
        why = [f"why: {'; '.join(chosen.reasons) or chosen.rule}", f"approvers: {', '.join(chosen.approvers)} ({chosen.needed} needed)"]
        # The statement comes last: its end on the screen means that all of it has been there.
        every = [*self._tried.get(chosen.name, ()), *why, *evidence, *values, "statement:", *texts]
        return [piece for line in every for piece in (textwrap.wrap(clean(line), width, drop_whitespace=False) or [""])]


def tried(made: pb.DryRunResponse) -> list[str]:
    """What a dry run has said, in lines for people."""
    if made.sqlstate:
        on = f" ({made.constraint})" if made.constraint else ""
        lines = [f"dry run: it failed with {made.sqlstate}: {made.error}{on}"]
    else:
        lines = [f"dry run: {made.affected_rows} rows affected, and rolled back"]
    for each in made.tables:
        lines.append(f"  {each.table}: {each.inserted} inserted, {each.updated} updated, {each.deleted} deleted")
    for row in made.samples:
        before, after = MessageToDict(row).get("before"), MessageToDict(row).get("after")
        if before is not None and after is not None:
            lines.append(f"  row: {_row({name: value for name, value in before.items() if value == after[name]})}")
            lines += [f"    {name}: {_value(value)} -> {_value(after[name])}" for name, value in before.items() if value != after[name]]
        else:
            lines.append(f"  {'deleted' if after is None else 'inserted'}: {_row(before if before is not None else after or {})}")
    return [*lines, *(f"  {note}" for note in made.notes)]


def _row(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: object) -> str:
    return "NULL" if value is None else str(value)


def _evidence(approval: pb.Approval) -> dict[str, object]:
    known = dict(approval.evidence)
    wanted = ("estimated_rows", "plan_refused", "sessions_blocked")
    return {name: known[name] for name in wanted if name in known}


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()

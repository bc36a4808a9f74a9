"""``pgleash approvals watch`` on a terminal and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

from fixtures.holds import Desk, Running

TEXT = "DELETE FROM screened WHERE id = 1 -- " + "\n-- line ".join(f"{number}\x1b[31m" for number in range(60))


class Terminal:
    """A command on a terminal of 24 lines and 80 columns."""

    def __init__(self, desk: Desk, *arguments: str) -> None:
        self._fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        stage = desk.stage
        environment = {
            **os.environ,
            "PGLEASH_API": f"localhost:{stage.api_port}",
            "PGLEASH_TOKEN": stage.token("bot"),
            "PGLEASH_CA": str(stage.certificates.ca),
            "TERM": "xterm",
        }
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        command = [sys.executable, "-m", "pgleash.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True)
        os.close(other)
        self.shown = ""

    def until(self, text: str, wait: float = 20.0) -> str:
        until = time.monotonic() + wait
        while text not in self.shown:
            assert time.monotonic() < until, f"{text!r} is not shown: {self.shown[:1500]!r}"
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._fd, 65536).decode("utf-8", "replace")
                except OSError:
                    break
        found, self.shown = self.shown, ""
        return found

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def test_one_key_decides_once_the_whole_statement_was_shown(desk: Desk) -> None:
    with desk.table("screened") as owner, desk.connect(subject="waits-screen") as connection:
        terminal = Terminal(desk, "approvals", "watch")
        try:
            terminal.until(" waiting ")
            running = Running(lambda: connection.execute(TEXT).rowcount)
            name = desk.pending("waits-screen").name
            seen = terminal.until(name)
            for _ in range(60):  # other tests may have left deferred ones that wait
                terminal.press("j")
                time.sleep(0.01)
            seen += terminal.until(f"> {name}")
            assert "\x1b[31m" not in seen  # what agents write does not steer the terminal
            terminal.press("a")
            terminal.until("scroll to the end")
            assert owner.execute("SELECT count(*) FROM screened").fetchone() == (10,)
            for _ in range(12):
                terminal.press(" ")
                time.sleep(0.1)
            terminal.until("line 59")
            terminal.press("a")
            terminal.until(f"{name} is APPROVED")
            assert running.result() == 1
            terminal.press("q")
            assert terminal.process.wait(10) == 0
        finally:
            terminal.close()


def test_one_key_tries_it(desk: Desk) -> None:
    with desk.table("screened") as owner, desk.connect(subject="tried-screen") as connection:
        terminal = Terminal(desk, "approvals", "watch")
        try:
            terminal.until(" waiting ")
            running = Running(lambda: connection.execute("UPDATE screened SET note = 'new' WHERE id = 1"))
            name = desk.pending("tried-screen").name
            terminal.until(name)
            for _ in range(60):
                terminal.press("j")
                time.sleep(0.01)
            terminal.until(f"> {name}")
            terminal.press("t")
            terminal.until("note: note 1 -> new")
            assert owner.execute("SELECT note FROM screened WHERE id = 1").fetchone() == ("note 1",)
            desk.deny(name)
            running.result()
            terminal.press("q")
        finally:
            terminal.close()


def test_without_a_terminal_there_are_lines(desk: Desk) -> None:
    with desk.table("screened"), desk.connect(subject="waits-lines") as connection:
        running = Running(lambda: connection.execute("DELETE FROM screened"))
        name = desk.pending("waits-lines").name
        stage = desk.stage
        command = [sys.executable, "-m", "pgleash.cli", "approvals", "watch", "--api", f"localhost:{stage.api_port}"]
        environment = {**os.environ, "PGLEASH_TOKEN": stage.token("bot"), "PGLEASH_CA": str(stage.certificates.ca)}
        watching = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, text=True)
        assert watching.stdout is not None
        lines = []
        for line in watching.stdout:
            lines.append(line)
            if (name in line and len(lines) == 1) or ("PENDING" in line and name in line):
                desk.deny(name)
            if "DENIED" in line and name in line:
                break
        watching.kill()
        watching.wait()
        watching.stdout.close()
        assert any(re.match(rf"PENDING +{name}  waits-lines for ada@example.com  DELETE FROM screened", line) for line in lines)
        running.result()

"""What holds when the gateway is killed in the middle of a load, and when a client never reads."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest

from control.audit.format import BEGIN, Begin, FormatError, Record, read_segment, segments
from control.audit.verify import verify
from kit.wire import WireClient, query
from pgleash.demo.stage import Stage


def kept_statements(directory: Path) -> set[str]:
    found: set[str] = set()
    for path in segments(directory):
        try:
            for item in read_segment(path):
                if isinstance(item, Record) and item.type == BEGIN:
                    found.add(Begin.parse(item.payload).text.decode())
        except FormatError:
            break
    return found


def test_no_statement_reaches_the_server_without_its_record() -> None:
    with Stage(customers=1000, log_statements=True) as stage:
        stop = threading.Event()

        def load(number: int) -> None:
            try:
                with psycopg.connect(stage.dsn("agent-7", stage.token()), autocommit=True) as connection:
                    step = 0
                    while not stop.is_set():
                        step += 1
                        connection.execute(f"SELECT count(*) FROM orders WHERE id = {number * 1_000_000 + step}", prepare=False)
            except psycopg.Error:
                return

        threads = [threading.Thread(target=load, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        stage.stop_gateway(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join(10)
        kept = kept_statements(stage.audit_directory)
        log = stage.server.log_path.read_text(errors="replace")
        reached = set(re.findall(r"SELECT count\(\*\) FROM orders WHERE id = \d+", log))
        assert len(reached) > 200
        assert reached <= kept
        report = verify(stage.audit_directory, None)
        assert [problem for problem in report.problems if "checkpoint" not in problem.what] == []
        stage.start_gateway()
        with psycopg.connect(stage.dsn("agent-7", stage.token()), autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        stage.stop_gateway()
        assert verify(stage.audit_directory, None).problems == []


def rss(pid: int) -> int:
    """Resident bytes of a process, without file mappings (the journal's are shared with the page cache)."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.parametrize(
    ("who", "user", "text"),
    [
        ("analyst", "analyst-1", "SELECT repeat('x', 1000000) FROM generate_series(1, 1000)"),
        ("agent", "agent-7", "SELECT c.*, repeat('x', 100000) FROM customers c LIMIT 10000"),
    ],
    ids=["passed through", "masked"],
)
def test_a_client_that_never_reads_costs_no_memory(stage: Stage, who: str, user: str, text: str) -> None:
    assert stage.process is not None
    with psycopg.connect(stage.dsn(user, stage.token(who)), autocommit=True) as warm:
        warm.execute("SELECT repeat('x', 100000) FROM generate_series(1, 50)").fetchall()
    before = rss(stage.process.pid)
    with WireClient("127.0.0.1", stage.port) as client:
        client.secure(str(stage.certificates.ca))
        client.login(user, "shop", stage.token(who))
        client.send(query(text))
        most = 0
        for _ in range(30):
            time.sleep(0.1)
            most = max(most, rss(stage.process.pid) - before)
    assert most <= 8 * 1024 * 1024

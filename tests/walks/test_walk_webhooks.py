"""Webhooks against a real HTTP server that takes, fails, is slow, redirects, and comes back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest

from control.grants.webhooks import signature
from fixtures.holds import POLICY
from pgleash.demo.stage import Stage

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty two bytes, ok").decode()


class Receiver:
    """``behave(path)`` says what the next request to a path gets: a status, or seconds to wait."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.plans: dict[str, list[int | float]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                plan = receiver.plans.get(self.path) or [204]
                what = plan.pop(0) if len(plan) > 1 else plan[0]
                if isinstance(what, float):
                    time.sleep(what)
                    what = 204
                self.send_response(what)
                if 300 <= what < 400:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, path: str, count: int = 1, wait: float = 12.0) -> list[tuple[dict[str, str], bytes]]:
        until = time.monotonic() + wait
        while time.monotonic() < until:
            found = [(headers, body) for where, headers, body in list(self.seen) if where == path]
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{path} was asked {len(found)} times")


@pytest.fixture(scope="module")
def hooked() -> Iterator[tuple[Stage, Receiver]]:
    receiver = Receiver()
    port = receiver.server.server_address[1]
    receiver.plans = {"/failing": [500, 503, 204], "/slow": [3.0, 204], "/moved": [302]}
    made = [
        {"name": name, "url": f"http://127.0.0.1:{port}/{name}", "secret": "file:hook.secret", "timeout": 1, **more}
        for name, more in {
            "good": {"states": ["PENDING", "DENIED"]},
            "failing": {},
            "slow": {},
            "moved": {},
            "slack": {"format": "slack"},
            "other": {"databases": ["elsewhere"]},
        }.items()
    ]
    stage = Stage(customers=100, policy=POLICY, settings={"approvals": {"webhooks": made}})
    (stage.home / "hook.secret").write_text(SECRET)
    with stage:
        yield stage, receiver
    receiver.server.shutdown()


def ask(stage: Stage, sql: str) -> None:
    token = stage.token(subject="later-hooks")
    connection = psycopg.connect(stage.dsn("later-hooks", token), autocommit=True)
    with connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(sql)


def test_approvals_are_told_signed_and_until_they_are_taken(hooked: tuple[Stage, Receiver]) -> None:
    stage, receiver = hooked
    ask(stage, "DELETE FROM orders -- <!channel> ```")
    ((headers, body),) = receiver.of("/good")
    told = json.loads(body)
    assert told["type"] == "approval.pending" and told["data"]["subject"] == "later-hooks"
    assert told["data"]["statement"].startswith("DELETE FROM orders")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(base64.b64decode(SECRET[6:]), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 10
    failing = receiver.of("/failing", 3)
    assert len({headers["webhook-id"] for headers, _ in failing}) == 1 and len({body for _, body in failing}) == 1
    assert len({headers["webhook-signature"] for headers, _ in failing}) > 1  # each attempt has its own time
    assert len(receiver.of("/slow", 2)) == 2
    receiver.of("/moved", 2)
    assert not [path for path, _, _ in receiver.seen if path in ("/elsewhere", "/other")]
    ((_, slack),) = receiver.of("/slack")
    text = json.loads(slack)["blocks"][0]["text"]["text"]
    assert "&lt;!channel&gt;" in text and text.count("```") == 2


def test_a_long_statement_makes_a_short_message(hooked: tuple[Stage, Receiver]) -> None:
    stage, receiver = hooked
    before = len(receiver.of("/good"))
    ask(stage, "DELETE FROM orders WHERE id = 1 -- " + "x" * 200_000)
    assert len(receiver.of("/good", before + 1)[-1][1]) < 16_000


def test_what_was_not_taken_is_told_after_a_restart(hooked: tuple[Stage, Receiver]) -> None:
    stage, receiver = hooked
    receiver.plans["/good"] = [500]
    before = len(receiver.of("/good"))
    ask(stage, "DELETE FROM orders WHERE id = 2")
    failed = receiver.of("/good", before + 1)[before]
    stage.stop_gateway()
    receiver.plans["/good"] = [204]
    stage.start_gateway()
    again = receiver.of("/good", before + 2)[-1]
    assert again[0]["webhook-id"] == failed[0]["webhook-id"] and again[1] == failed[1]


def test_signatures_are_those_of_the_standard() -> None:
    # the example of the Standard Webhooks specification
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

"""Two users for Locust: an agent over PostgreSQL, and an approval bot over gRPC.

Where they connect is in the environment (loadtests/load.py sets it up): PGLEASH_DSN (a libpq connection string without
user and password), PGLEASH_AGENT_TOKENS (a JSON list of user and token), PGLEASH_API, PGLEASH_CA, PGLEASH_BOT_TOKENS (a
JSON list), PGLEASH_BOTS (how many), and PGLEASH_OUTPUT (the file for the figures at the end).

Never add here: starting of servers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent
import psycopg
from locust import User, between, constant, events, task
from locust.exception import StopUser

from pgleash.client import connect
from pgleash.v1 import approvals_pb2 as pb

# gRPC under gevent waits for each channel's completions in the hub's thread pool, which has ten threads: more bots than that would starve.
gevent.get_hub().threadpool.maxsize = 10 + 4 * int(os.environ.get("PGLEASH_BOTS", "1"))
grpc.experimental.gevent.init_gevent()
TOKENS = itertools.cycle(json.loads(os.environ.get("PGLEASH_AGENT_TOKENS", "[]")) or [["agent-0", ""]])
BOT_TOKENS = itertools.cycle(json.loads(os.environ.get("PGLEASH_BOT_TOKENS", "[]")) or [""])
DECIDED = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED}


@events.quitting.add_listener
def write_figures(environment: Any, **_: Any) -> None:
    """What was counted, for loadtests/load.py."""
    path = os.environ.get("PGLEASH_OUTPUT")
    if not path:
        return
    stats = environment.runner.stats
    work = [
        {
            "kind": entry.method,
            "name": entry.name,
            "requests": entry.num_requests,
            "failures": entry.num_failures,
            "median": entry.median_response_time,
            "p95": entry.get_response_time_percentile(0.95),
            "p99": entry.get_response_time_percentile(0.99),
            "most": entry.max_response_time,
        }
        for entry in sorted(stats.entries.values(), key=lambda entry: (entry.method, entry.name))
    ]
    exceptions = [
        {"occurrences": one["count"], "method": "python", "name": "", "error": one["msg"]} for one in environment.runner.exceptions.values()
    ]
    Path(path).write_text(json.dumps({"work": work, "errors": [error.to_dict() for error in stats.errors.values()] + exceptions}))


class Timed(User):
    """Tells Locust how long things took and whether they failed."""

    abstract = True

    @contextlib.contextmanager
    def timed(self, kind: str, name: str) -> Iterator[None]:
        """Report what happens inside as one request."""
        began = time.perf_counter()
        problem: Exception | None = None
        try:
            yield
        except (psycopg.Error, grpc.RpcError, AssertionError) as error:
            problem = error
        self.told(kind, name, began, problem)

    def told(self, kind: str, name: str, began: float, problem: Exception | None) -> None:
        """Report one request."""
        took = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(request_type=kind, name=name, response_time=took, response_length=0, exception=problem)


class Agent(Timed):
    """Reads masked customers, changes orders, and now and then asks for something that is held."""

    wait_time = between(0.1, 0.9)

    def on_start(self) -> None:
        """Log in with a token of its own."""
        subject, token = next(TOKENS)
        self.connection: psycopg.Connection[Any] | None = None
        with self.timed("agent", "connect"):
            self.connection = psycopg.connect(os.environ["PGLEASH_DSN"], user=subject, password=token, autocommit=True)
        if self.connection is None:
            raise StopUser

    def on_stop(self) -> None:
        """Say goodbye."""
        if self.connection is not None:
            self.connection.close()

    def run_sql(self, sql: str, *values: object) -> psycopg.Cursor[Any]:
        """One statement."""
        assert self.connection is not None
        return self.connection.execute(sql, values)

    @task(60)
    def read(self) -> None:
        """A masked point query."""
        with self.timed("agent", "SELECT one customer, masked"):
            row = self.run_sql("SELECT name, email FROM customers WHERE id = %s", random.randint(1, 10_000)).fetchone()
            assert row is not None and "***" in row[1], f"not masked: {row}"

    @task(20)
    def change(self) -> None:
        """A narrow change."""
        with self.timed("agent", "UPDATE one order"):
            self.run_sql("UPDATE orders SET status = 'seen' WHERE id = %s", random.randint(1, 20_000))

    @task(10)
    def list_many(self) -> None:
        """A bigger masked result."""
        with self.timed("agent", "SELECT 500 customers, masked"):
            self.run_sql("SELECT * FROM customers LIMIT 500").fetchall()

    @task(1)
    def ask(self) -> None:
        """A statement that is held; the bot denies it."""
        with self.timed("agent", "DELETE held, then denied"):
            try:
                self.run_sql("DELETE FROM orders")
            except psycopg.errors.InsufficientPrivilege:
                return
            raise AssertionError("a DELETE of everything went through")


class Approver(Timed):
    """Watches and denies. All of them see everything, so most come second: that is no failure."""

    fixed_count = int(os.environ.get("PGLEASH_BOTS", "1"))
    wait_time = constant(0.5)

    @task
    def watch(self) -> None:
        """One stream, until the run ends."""
        address, token, ca = os.environ["PGLEASH_API"], next(BOT_TOKENS), Path(os.environ["PGLEASH_CA"])
        with connect(address, token, ca) as api, self.timed("bot", "watch"):
            stream = api.approvals.Watch(pb.ApprovalServiceWatchRequest())
            self.follow(api, stream)

    def follow(self, api: Any, stream: Any) -> None:
        """Deny whatever is pending."""
        for told in stream:
            held = told.approval
            if held.state == pb.APPROVAL_STATE_PENDING:
                began, problem, name = time.perf_counter(), None, "deny"
                try:
                    api.approvals.Deny(pb.DenyRequest(name=held.name, comment="not in a load test"))
                except grpc.RpcError as error:
                    if error.code() in DECIDED:
                        name = "deny, another was first"
                    else:
                        problem = error
                self.told("bot", name, began, problem)

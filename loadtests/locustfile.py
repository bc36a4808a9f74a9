"""Two users for Locust: an agent over PostgreSQL, and an approval bot over gRPC.

Where they connect is in the environment (loadtests/load.py sets it up): PGLEASH_DSN (a libpq connection string without
user and password), PGLEASH_AGENT_TOKENS (a JSON list), PGLEASH_API, PGLEASH_CA and PGLEASH_BOT_TOKEN.

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

import grpc.experimental.gevent
import psycopg
from locust import User, between, constant, task

from pgleash.client import connect
from pgleash.v1 import approvals_pb2 as pb

grpc.experimental.gevent.init_gevent()
TOKENS = itertools.cycle(json.loads(os.environ.get("PGLEASH_AGENT_TOKENS", "[]")) or [["agent-0", ""]])


class Timed(User):
    """Tells Locust how long things took and whether they failed."""

    abstract = True

    @contextlib.contextmanager
    def timed(self, kind: str, name: str) -> Iterator[None]:
        """Report what happens inside as one request."""
        began, problem = time.perf_counter(), None
        try:
            yield
        except (psycopg.Error, grpc.RpcError, AssertionError) as error:
            problem = error
        took = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(request_type=kind, name=name, response_time=took, response_length=0, exception=problem)


class Agent(Timed):
    """Reads masked customers, changes orders, and now and then asks for something that is held."""

    weight = 8
    wait_time = between(0.0, 0.02)

    def on_start(self) -> None:
        """Log in with a token of its own."""
        subject, token = next(TOKENS)
        with self.timed("agent", "connect"):
            self.connection: psycopg.Connection[Any] = psycopg.connect(
                os.environ["PGLEASH_DSN"], user=subject, password=token, autocommit=True
            )

    def on_stop(self) -> None:
        """Say goodbye."""
        self.connection.close()

    @task(60)
    def read(self) -> None:
        """A masked point query."""
        with self.timed("agent", "SELECT one customer, masked"):
            row = self.connection.execute("SELECT name, email FROM customers WHERE id = %s", (random.randint(1, 10_000),)).fetchone()
            assert row is not None and "***" in row[1], f"not masked: {row}"

    @task(20)
    def change(self) -> None:
        """A narrow change."""
        with self.timed("agent", "UPDATE one order"):
            self.connection.execute("UPDATE orders SET status = 'seen' WHERE id = %s", (random.randint(1, 20_000),))

    @task(10)
    def list_many(self) -> None:
        """A bigger masked result."""
        with self.timed("agent", "SELECT 500 customers, masked"):
            self.connection.execute("SELECT * FROM customers LIMIT 500").fetchall()

    @task(1)
    def ask(self) -> None:
        """A statement that is held; the bot denies it."""
        with self.timed("agent", "DELETE held, then denied"):
            try:
                self.connection.execute("DELETE FROM orders")
            except psycopg.errors.InsufficientPrivilege:
                return
            raise AssertionError("a DELETE of everything went through")


class Approver(Timed):
    """Watches and denies."""

    fixed_count = 1
    wait_time = constant(0)

    @task
    def watch(self) -> None:
        """One stream, until the run ends."""
        address, token, ca = os.environ["PGLEASH_API"], os.environ["PGLEASH_BOT_TOKEN"], Path(os.environ["PGLEASH_CA"])
        with connect(address, token, ca) as api:
            for told in api.approvals.Watch(pb.ApprovalServiceWatchRequest()):
                held = told.approval
                if held.state == pb.APPROVAL_STATE_PENDING:
                    with self.timed("bot", "deny"), contextlib.suppress(grpc.RpcError):
                        api.approvals.Deny(pb.DenyRequest(name=held.name, comment="not in a load test", request_id=held.name))

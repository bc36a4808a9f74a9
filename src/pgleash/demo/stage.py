"""The stage of the demo, the tests and the load runs: PostgreSQL, the shop, an issuer, certificates and a gateway process.

Everything lives in one temporary directory and ends with the stage. Never add here: what happens on it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ruamel.yaml import YAML

from pgleash.demo.issuer import Issuer
from pgleash.demo.postgres import PostgresServer, ends_with_us
from pgleash.demo.shop import Shop, open_shop
from pgleash.demo.tls import Certificates, make_certificates

__all__ = ["POLICY", "Stage", "StageError"]

POLICY = """\
version: 1

labels:                          # what is sensitive, and where it is
  pii.email: ["public.customers.email", "public.employees.email"]
  pii.national_id: ["public.customers.ssn"]
  pii.phone: ["public.customers.phone"]
  pii.birth_date: ["public.customers.birth_date"]
  pii.notes: ["public.customers.notes"]
  pci.card: ["public.customers.card"]
  hr.salary: ["public.employees.salary"]

rules:
  - name: agents-work            # agents read the shop and change rows in it
    who: {groups: [agents]}
    database: shop
    tables: ["public.*"]
    verbs: [select, insert, update, delete]
    effect: allow

  - name: analysts-read          # analysts read everything, unmasked
    who: {groups: [analysts]}
    database: shop
    tables: ["public.*"]
    verbs: [select]
    effect: allow

  - name: wide-changes           # an UPDATE or DELETE of every row waits for a person
    who: {groups: [agents]}
    when: {kinds: [update, delete], without_where: true}
    effect: hold
    approvers: [dba]
    timeout: 60

  - name: schema-changes         # and so does DDL
    who: {groups: [agents]}
    database: shop
    tables: ["public.*"]
    verbs: [ddl, truncate]
    effect: hold
    approvers: [dba]
    timeout: 60

masks:
  - {who: {groups: [agents]}, label: pii.email, action: email}
  - {who: {groups: [agents]}, label: pii.national_id, action: keep_last, argument: 4}
  - {who: {groups: [agents]}, label: pii.phone, action: keep_last, argument: 2}
  - {who: {groups: [agents]}, label: pii.birth_date, action: "null"}
  - {who: {groups: [agents]}, label: pii.notes, action: "null"}
  - {who: {groups: [agents]}, label: pci.card, action: keep_last, argument: 4}
  - {who: {groups: [agents]}, label: hr.salary, action: "null"}

grants:                          # given at connect
  - {who: {groups: [agents]}, database: shop, tables: ["public.*"], verbs: [select, insert, update, delete, truncate, ddl], duration: 900}
  - {who: {groups: [analysts]}, database: shop, tables: ["public.*"], verbs: [select], duration: 900}
"""


class StageError(RuntimeError):
    """The gateway did not come up; the message ends with its log."""


class Stage:
    """``with Stage() as stage``: ``stage.dsn("agent-7", token)`` connects through the gateway.

    ``settings`` overrides entries of the configuration (merged by key, None removes one), ``policy`` is the policy document.
    """

    def __init__(
        self,
        *,
        customers: int = 100_000,
        policy: str = POLICY,
        settings: Mapping[str, Any] | None = None,
        server: PostgresServer | None = None,
        log_statements: bool = False,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pgleash-"))
        self.issuer = Issuer()
        self.certificates: Certificates = make_certificates(self.home / "tls")
        self.port = 0
        self.api_port = 0
        self._own_server = server is None
        self.server = server or PostgresServer(18, log_statements=log_statements, settings={"max_connections": "200"})
        self.shop: Shop | None = None
        self._customers = customers
        self._policy = policy
        self._settings = dict(settings or {})
        self.process: subprocess.Popen[str] | None = None

    @property
    def config(self) -> Path:
        """The gateway's configuration file."""
        return self.home / "pgleash.yaml"

    @property
    def log(self) -> Path:
        """The gateway's log."""
        return self.home / "gateway.log"

    @property
    def audit_directory(self) -> Path:
        """Where the audit log lies."""
        return self.home / "var" / "audit"

    @property
    def public_key(self) -> Path:
        """The public half of the key that signs the audit log."""
        return self.home / "keys" / "audit.key.pub"

    def __enter__(self) -> Stage:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Bring everything up. Raises ``StageError``."""
        if self._own_server:
            self.server.start()
        self.shop = open_shop(self.server, customers=self._customers)
        self.issuer.start()
        self.write_configuration()
        self.start_gateway()

    def write_configuration(self) -> None:
        """Write the configuration and the policy as they are now."""
        assert self.shop is not None
        (self.home / "service.password").write_text(self.shop.service_password)
        (self.home / "service.password").chmod(0o600)
        (self.home / "policy.yaml").write_text(self._policy)
        tls = {"certificate": "tls/server.crt", "key": "tls/server.key"}
        document: dict[str, Any] = {
            "listen": {"port": self.port, "tls": tls},
            "api": {
                "port": self.api_port,
                "tls": tls,
                "roles": {"approver": {"groups": ["dba"]}, "operator": {"groups": ["platform"]}, "auditor": {"groups": ["security"]}},
            },
            "identity": {"issuers": [{"issuer": self.issuer.url, "audience": self.issuer.audience}]},
            "databases": {
                "shop": {
                    "server": {"host": self.server.host, "port": self.server.port, "dbname": self.shop.dbname, "tls": {"mode": "disable"}},
                    "credentials": {"kind": "minted", "user": self.shop.service_user, "password": "file:service.password"},
                }
            },
            "audit": {"checkpoint_interval": 0.5},
        }
        with self.config.open("w") as file:
            YAML().dump(_merged(document, self._settings), file)

    def set_policy(self, policy: str) -> None:
        """Replace the policy document; the gateway notices within half a second."""
        self._policy = policy
        written = self.home / "policy.new"
        written.write_text(policy)
        written.replace(self.home / "policy.yaml")

    def start_gateway(self, wait: float = 20.0) -> None:
        """Start the gateway's process and wait until it says that it is ready. Raises ``StageError``."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgleash.cli", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a share of the scheduler of its own, as the server has one
                preexec_fn=ends_with_us(signal.SIGTERM),
            )
        assert self.process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        stdout = self.process.stdout

        def read() -> None:
            for line in stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if not line:
                break
            if line.startswith("pgleash ready"):
                ports = dict(part.split("=", 1) for part in line.split()[2:])
                self.port = int(ports["listen"].rpartition(":")[2])
                self.api_port = int(ports["api"].rpartition(":")[2])
                return
        raise StageError(f"the gateway did not start:\n{self.log.read_text()}")

    def stop_gateway(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the gateway's process."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def stop(self) -> None:
        """End everything and remove what was made."""
        self.stop_gateway()
        self.issuer.stop()
        if self._own_server:
            self.server.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def dsn(self, user: str, token: str, **more: str) -> str:
        """A libpq connection string through the gateway, with the certificate checked in full."""
        parts = {
            "host": "localhost",
            "hostaddr": "127.0.0.1",
            "port": str(self.port),
            "dbname": "shop",
            "user": user,
            "password": token,
            "sslmode": "verify-full",
            "sslrootcert": str(self.certificates.ca),
            **more,
        }
        return " ".join(f"{key}='{value}'" for key, value in parts.items())

    def token(self, who: str = "agent", **more: Any) -> str:
        """A token of one of the story's people: agent, bot, analyst, operator or auditor."""
        subject, groups, acts_for = {
            "agent": ("agent-7", ["agents"], "ada@example.com"),
            "bot": ("approval-bot", ["dba"], None),
            "analyst": ("analyst-1", ["analysts"], None),
            "operator": ("ops", ["platform"], None),
            "auditor": ("auditor", ["security"], None),
        }[who]
        return self.issuer.mint(**{"subject": subject, "groups": groups, "acts_for": acts_for, **more})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        if value is None:
            merged.pop(key, None)
            continue
        merged[key] = _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged

"""A double of Vault's database secrets engine over HTTP that creates and drops real roles in a real PostgreSQL.

Statuses and bodies are those of a real Vault for the same requests (ANSWERS holds the ones that tests compare).
Never add here: an endpoint that the gateway does not call.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
from psycopg import sql

ROLE_ID, SECRET_ID = "c1f6ed4e-f7f1-2536-d35f-ffb0f8d7e5b3", "8edb15b8-ec90-5fa0-3f7e-3ed5d44e1e1c"
ANSWERS: dict[str, tuple[int, dict[str, Any] | None]] = {
    "sealed": (503, {"errors": ["Vault is sealed"]}),
    "no token": (400, {"errors": ["missing client token"]}),
    "bad token": (403, {"errors": ["permission denied"]}),
    "bad secret": (400, {"errors": ["invalid secret id"]}),
    "unknown role": (400, {"errors": ["unknown role: missing"]}),
    "lease not found": (400, {"errors": ["lease not found"]}),
    "done": (204, None),
}


class Vault:
    """``with Vault(dsn, "GRANT …") as vault``: ``vault.url``, ``vault.seal()``, ``vault.leases`` (lease id to role name).

    ``dsn`` is a superuser's; ``grants`` is SQL run after each CREATE ROLE, with ``{name}`` for the quoted role.
    """

    def __init__(self, dsn: str, grants: str, *, ttl: int = 30, token_ttl: int = 60) -> None:
        self.dsn = dsn
        self.grants = grants
        self.ttl = ttl
        self.token_ttl = token_ttl
        self.sealed = False
        self.leases: dict[str, str] = {}
        self.calls: list[str] = []
        self._tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Vault:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def seal(self, sealed: bool = True) -> None:
        """Seal or unseal it."""
        self.sealed = sealed

    def forget_tokens(self) -> None:
        """Every token given so far has expired."""
        self._tokens.clear()

    def revoke_all(self) -> None:
        """As an operator's ``vault lease revoke -prefix database/``."""
        for lease in list(self.leases):
            self._drop(lease)

    def answer(self, method: str, path: str, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """Status and body for one request."""
        self.calls.append(f"{method} {path}")
        if self.sealed:
            return ANSWERS["sealed"]
        if path == "auth/approle/login":
            if (body.get("role_id"), body.get("secret_id")) != (ROLE_ID, SECRET_ID):
                return ANSWERS["bad secret"]
            made = "s." + secrets.token_urlsafe(18)
            self._tokens.add(made)
            return 200, _whole(
                auth={
                    "client_token": made,
                    "accessor": "a",
                    "policies": ["default", "gw"],
                    "lease_duration": self.token_ttl,
                    "renewable": True,
                }
            )
        if not token:
            return ANSWERS["no token"]
        if token not in self._tokens:
            return ANSWERS["bad token"]
        if path == "auth/token/renew-self":
            return 200, _whole(auth={"client_token": token, "lease_duration": self.token_ttl, "renewable": True})
        if path == "database/creds/ro":
            return self._mint()
        if path.startswith("database/creds/"):
            return 400, {"errors": ["unknown role: " + path.rpartition("/")[2]]}
        if path == "sys/leases/renew":
            if body.get("lease_id") not in self.leases:
                return ANSWERS["lease not found"]
            return 200, _whole(lease_id=body["lease_id"], renewable=True, lease_duration=self.ttl)
        if path == "sys/leases/revoke":
            self._drop(str(body.get("lease_id")))
            return ANSWERS["done"]
        return 404, {"errors": [f"no handler for route '{path}'"]}

    def _mint(self) -> tuple[int, dict[str, Any]]:
        name = f"v-approle-ro-{secrets.token_hex(10)}-{int(time.time())}"
        password = secrets.token_urlsafe(15)
        lease = "database/creds/ro/" + secrets.token_hex(12)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            role = sql.Identifier(name)
            connection.execute(sql.SQL("CREATE ROLE {} WITH LOGIN PASSWORD {}").format(role, sql.Literal(password)))
            connection.execute(sql.SQL(self.grants).format(name=role))  # type: ignore[arg-type]
        self.leases[lease] = name
        return 200, _whole(lease_id=lease, renewable=True, lease_duration=self.ttl, data={"password": password, "username": name})

    def _drop(self, lease: str) -> None:
        name = self.leases.pop(lease, None)
        if name is not None:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                role = sql.Identifier(name)
                connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
                connection.execute(sql.SQL("DROP ROLE {}").format(role))


def _whole(**fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"request_id": str(uuid.uuid4()), "lease_id": "", "renewable": False, "lease_duration": 0}
    return {**base, "data": None, "wrap_info": None, "warnings": None, "auth": None, **fields}


def _handler(vault: Vault) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(size) if size else b""
            try:
                body = json.loads(raw) if raw else {}
            except ValueError:
                body = {}
            path = self.path.split("?")[0].removeprefix("/v1/")
            status, answer = vault.answer(self.command, path, self.headers.get("X-Vault-Token", ""), body or {})
            data = json.dumps(answer).encode() if answer is not None else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler

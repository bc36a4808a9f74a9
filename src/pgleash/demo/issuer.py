"""A local OpenID Connect issuer that signs whatever it is asked to, for the demo and the tests.

It serves the discovery document and the key set on loopback and mints ES256 tokens in-process.

Never add here: an endpoint that hands tokens to callers over the network, or a key that outlives the process.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Issuer"]


class Issuer:
    """One issuer on a free loopback port: ``with Issuer() as issuer: issuer.mint("agent-7", ["agents"])``.

    ``requests`` lists the paths asked for, in order. Raises ``OSError`` when no port can be had.
    """

    def __init__(self, audience: str = "pgleash", *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.audience = audience
        self.requests: list[str] = []
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._current = ""
        self.rotate()
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True
        self._thread: threading.Thread | None = None
        self.url = f"http://{host}:{self._server.server_port}"

    def __enter__(self) -> Issuer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in a thread of its own. Starting twice does nothing."""
        if self._thread is None:
            serve = self._server.serve_forever
            self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.1}, name="demo-issuer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port. Tokens minted before stay verifiable by whoever holds the key set."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._server.shutdown()
            thread.join()
        self._server.server_close()

    def rotate(self, *, keep_old: bool = True) -> str:
        """Sign with a new key from now on and return its id; ``keep_old=False`` also unpublishes the earlier ones."""
        if not keep_old:
            self._keys.clear()
        self._current = secrets.token_hex(8)
        self._keys[self._current] = ec.generate_private_key(ec.SECP256R1())
        return self._current

    def mint(
        self,
        subject: str,
        groups: Iterable[str] = (),
        acts_for: str | None = None,
        audience: str | None = None,
        lifetime: float = 300,
        **claims: Any,
    ) -> str:
        """A signed token for ``subject``, valid for ``lifetime`` seconds from now (negative: expired already).

        ``acts_for`` becomes ``act.sub``. ``claims`` are added last; a claim given as None is left out.
        """
        now = int(time.time())
        issued = now if lifetime >= 0 else now + int(lifetime) - 60
        payload: dict[str, Any] = {
            "iss": self.url,
            "sub": subject,
            "aud": self.audience if audience is None else audience,
            "iat": issued,
            "exp": now + int(lifetime),
            "jti": secrets.token_hex(8),
            "groups": list(groups),
        }
        if acts_for is not None:
            payload["act"] = {"sub": acts_for}
        payload.update(claims)
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, self._keys[self._current], algorithm="ES256", headers={"kid": self._current})

    def discovery(self) -> dict[str, Any]:
        """The document at ``/.well-known/openid-configuration``."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "id_token_signing_alg_values_supported": ["ES256"],
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        }

    def key_set(self) -> dict[str, Any]:
        """The document at ``/jwks``: the public halves of every published key."""
        algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
        keys = []
        for name, key in list(self._keys.items()):
            public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append({**public, "kid": name, "use": "sig", "alg": "ES256"})
        return {"keys": keys}


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            if self.path == "/.well-known/openid-configuration":
                self._answer(200, issuer.discovery())
            elif self.path == "/jwks":
                self._answer(200, issuer.key_set())
            else:
                self._answer(404, {"error": "not_found"})

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler

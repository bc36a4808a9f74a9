"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the client's side (RFC 5802, RFC 7677, RFC 5929 tls-server-end-point).

Never add here: another mechanism, or a weaker check of the server's answer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata

from cryptography import x509

__all__ = ["PLAIN", "PLUS", "ScramClient", "ScramError", "end_point"]

PLAIN = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"
_MOST_ITERATIONS = 2_000_000


class ScramError(Exception):
    """The exchange failed: a malformed answer, or a server that does not know the password."""


def end_point(certificate: bytes) -> bytes:
    """The tls-server-end-point binding of a certificate in DER: its hash; MD5 and SHA-1 signatures count as SHA-256."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    name = algorithm.name if algorithm is not None else "sha256"
    return hashlib.new("sha256" if name in ("md5", "sha1") else name, certificate).digest()


class ScramClient:
    """One exchange: ``first()``, ``final(server_first)``, ``check(server_final)``."""

    def __init__(self, password: str, binding: bytes | None = None, *, nonce: str | None = None) -> None:
        self.mechanism = PLUS if binding is not None else PLAIN
        self._header = b"p=tls-server-end-point,," if binding is not None else b"n,,"
        self._binding = binding or b""
        self._password = _prepared(password)
        self._nonce = (nonce or base64.b64encode(secrets.token_bytes(18)).decode()).encode()
        self._bare = b"n=,r=" + self._nonce
        self._proof_base = b""
        self._server_key = b""

    def first(self) -> bytes:
        """client-first-message; the user name is the startup message's, so it is empty here."""
        return self._header + self._bare

    def final(self, server_first: bytes) -> bytes:
        """client-final-message. Raises ``ScramError``."""
        fields = _fields(server_first, "rsi")
        nonce = fields["r"]
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce):
            raise ScramError("the server's nonce does not continue ours")
        try:
            salt = base64.b64decode(fields["s"], validate=True)
            iterations = int(fields["i"])
        except (ValueError, binascii.Error):
            raise ScramError("malformed server-first-message") from None
        if not 1 <= iterations <= _MOST_ITERATIONS or not salt:
            raise ScramError("unacceptable salt or iteration count")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = b"c=" + base64.b64encode(self._header + self._binding) + b",r=" + nonce
        self._proof_base = self._bare + b"," + server_first + b"," + without_proof
        signature = hmac.digest(hashlib.sha256(client_key).digest(), self._proof_base, "sha256")
        self._server_key = hmac.digest(salted, b"Server Key", "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return without_proof + b",p=" + base64.b64encode(proof)

    def check(self, server_final: bytes) -> None:
        """The server must prove that it knows the password too. Raises ``ScramError``."""
        if not self._server_key or server_final.startswith(b"e="):
            raise ScramError("the server refused the exchange")
        expected = base64.b64encode(hmac.digest(self._server_key, self._proof_base, "sha256"))
        if not hmac.compare_digest(_fields(server_final, "v")["v"], expected):
            raise ScramError("the server's signature is wrong")


def _fields(text: bytes, names: str) -> dict[str, bytes]:
    parts = text.split(b",")
    if len(parts) < len(names) or any(parts[i][:2] != f"{name}=".encode() for i, name in enumerate(names)):
        raise ScramError("malformed message from the server")
    return {name: parts[i][2:] for i, name in enumerate(names)}


def _prepared(password: str) -> bytes:
    # SASLprep (RFC 4013) as PostgreSQL does it: what can't be prepared is used as it is.
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    text = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_a1, stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
        stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9,
    )  # fmt: skip
    if not text or any(test(c) for c in text for test in forbidden):
        return password.encode()
    right_to_left = any(stringprep.in_table_d1(c) for c in text)
    if right_to_left and (
        any(stringprep.in_table_d2(c) for c in text) or not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1]))
    ):
        return password.encode()
    return text.encode()

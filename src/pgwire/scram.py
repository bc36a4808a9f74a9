"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides (RFC 5802, RFC 7677, RFC 5929 tls-server-end-point), and PostgreSQL's verifiers.

Never add here: another mechanism, or a weaker check of the other side's answer.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from collections import OrderedDict

from cryptography import x509

from pgwire.ports import ScramVerifier

__all__ = [
    "PLAIN", "PLUS", "ScramClient", "ScramError", "ScramKeys", "ScramRefused", "ScramServer", "end_point", "make_verifier", "read_verifier",
]  # fmt: skip

PLAIN = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"
_BINDING = b"p=tls-server-end-point"
_MOST_ITERATIONS = 2_000_000
_DIGEST = 32
_PRINTABLE = re.compile(rb"[\x21-\x2b\x2d-\x7e]+")
_ATTRIBUTE = re.compile(rb"[A-Za-z]=[^,\0]*")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$([1-9][0-9]{0,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


class ScramError(Exception):
    """The exchange failed: a malformed message, or another side that does not know the password."""


class ScramRefused(ScramError):
    """A client's exchange is well formed and not good: ``sqlstate`` 28P01 for the proof, 28000 for its channel binding."""

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@functools.lru_cache(maxsize=64)
def end_point(certificate: bytes) -> bytes | None:
    """The tls-server-end-point binding of a certificate in DER: its hash; MD5 and SHA-1 signatures count as SHA-256.

    None where RFC 5929 defines none: the signature has no hash of its own (Ed25519).
    """
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    if algorithm is None:
        return None
    return hashlib.new("sha256" if algorithm.name in ("md5", "sha1") else algorithm.name, certificate).digest()


def read_verifier(user: str, text: str) -> ScramVerifier:
    """PostgreSQL's form, ``SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey``. Raises ``ValueError``."""
    found = _VERIFIER.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a verifier: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")
    salt, stored, server = (_decoded(part.encode()) for part in found.groups()[1:])
    iterations = int(found[1])
    if not salt or salt is None or stored is None or server is None or len(stored) != _DIGEST or len(server) != _DIGEST:
        raise ValueError("not a verifier: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")
    if iterations > _MOST_ITERATIONS:
        raise ValueError(f"a verifier with more than {_MOST_ITERATIONS} iterations")
    return ScramVerifier(user, iterations, salt, stored, server)


def make_verifier(password: str, iterations: int = 4096, salt: bytes | None = None) -> str:
    """A verifier of ``password`` in PostgreSQL's form, as its ``password_encryption`` would keep it."""
    salt = salt or secrets.token_bytes(16)
    _, stored_key, server_key = _derived(_prepared(password), salt, iterations)
    parts = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


class ScramKeys:
    """Keys derived for earlier logins, in memory only and at most ``most`` of them: a further login costs no PBKDF2.

    Passwords are held as keyed hashes whose key never leaves this object.
    """

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._secret = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[bytes, bytes, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def _name(self, password: str, salt: bytes, iterations: int) -> bytes:
        return hmac.digest(self._secret, b"%d:%d:%s%s" % (iterations, len(salt), salt, password.encode()), "sha256")

    def find(self, password: str, salt: bytes, iterations: int) -> tuple[bytes, bytes, bytes] | None:
        """ClientKey, StoredKey and ServerKey, if they have been derived before."""
        name = self._name(password, salt, iterations)
        found = self._known.get(name)
        if found is not None:
            self._known.move_to_end(name)
        return found

    def keep(self, password: str, salt: bytes, iterations: int, keys: tuple[bytes, bytes, bytes]) -> None:
        """Remember; the longest unused go."""
        self._known[self._name(password, salt, iterations)] = keys
        while len(self._known) > self._most:
            self._known.popitem(last=False)


class ScramClient:
    """One exchange: ``first()``, ``read(server_first)``, ``derive()`` unless ``derived``, ``final()``, ``check(server_final)``.

    ``binding`` is the server's end point under TLS. ``offered`` says that the server speaks PLUS; a server that is known to be
    able to and does not offer it is told so (``y``), which uncovers a stranger in between that took the offer away.
    """

    def __init__(
        self, password: str, binding: bytes | None = None, *, offered: bool = True, nonce: str | None = None, keys: ScramKeys | None = None
    ) -> None:
        bound = binding is not None and offered
        self.mechanism = PLUS if bound else PLAIN
        self.iterations = 0
        self._header = _BINDING + b",," if bound else b"n,," if binding is None else b"y,,"
        self._binding = (binding or b"") if bound else b""
        self._password = password
        self._keys = keys if keys is not None else ScramKeys(1)
        self._nonce = (nonce or base64.b64encode(secrets.token_bytes(18)).decode()).encode()
        self._bare = b"n=,r=" + self._nonce
        self._server_first = b""
        self._server_nonce = b""
        self._salt = b""
        self._derived: tuple[bytes, bytes, bytes] | None = None
        self._proof_base = b""

    def first(self) -> bytes:
        """client-first-message; the user name is the startup message's, so it is empty here."""
        return self._header + self._bare

    def read(self, server_first: bytes) -> None:
        """Take the server's challenge. Raises ``ScramError``."""
        if self._server_first:
            raise ScramError("the server challenged twice")
        fields = _fields(server_first, "rsi")
        nonce, salt, count = fields["r"], _decoded(fields["s"]), fields["i"]
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce) or not _PRINTABLE.fullmatch(nonce):
            raise ScramError("the server's nonce does not continue ours")
        if len(nonce) > 1024:
            raise ScramError("the server's nonce is too long")
        if not salt or not count.isdigit() or len(count) > 10 or not 1 <= int(count) <= _MOST_ITERATIONS:
            raise ScramError("unacceptable salt or iteration count")
        self._server_first, self._server_nonce, self._salt, self.iterations = server_first, nonce, salt, int(count)
        self._derived = self._keys.find(self._password, salt, self.iterations)

    @property
    def derived(self) -> bool:
        """Whether ``final`` will cost no PBKDF2."""
        return self._derived is not None

    def derive(self) -> None:
        """The costly step; may run in another thread."""
        self._derived = _derived(_prepared(self._password), self._salt, self.iterations)
        self._keys.keep(self._password, self._salt, self.iterations, self._derived)

    def final(self) -> bytes:
        """client-final-message."""
        if self._derived is None:
            self.derive()
        assert self._derived is not None
        client_key, stored_key, _ = self._derived
        without_proof = b"c=" + base64.b64encode(self._header + self._binding) + b",r=" + self._server_nonce
        self._proof_base = self._bare + b"," + self._server_first + b"," + without_proof
        signature = hmac.digest(stored_key, self._proof_base, "sha256")
        return without_proof + b",p=" + base64.b64encode(_xor(client_key, signature))

    def check(self, server_final: bytes) -> None:
        """The server must prove that it knows the password too. Raises ``ScramError``."""
        if not self._proof_base or self._derived is None or server_final.startswith(b"e="):
            raise ScramError("the server refused the exchange")
        expected = base64.b64encode(hmac.digest(self._derived[2], self._proof_base, "sha256"))
        if not hmac.compare_digest(_fields(server_final, "v")["v"], expected):
            raise ScramError("the server's signature is wrong")


class ScramServer:
    """One exchange against a verifier: ``choose(mechanism)``, ``first(client_first)``, ``final(client_final)``.

    ``binding`` is our own end point when the connection has TLS, else None. A doomed verifier costs the same time.
    """

    def __init__(self, verifier: ScramVerifier, binding: bytes | None, *, nonce: str | None = None) -> None:
        self._verifier = verifier
        self._binding = binding
        self._nonce = (nonce or base64.b64encode(secrets.token_bytes(18)).decode()).encode()
        self._plus = False
        self._header = b""
        self._bare = b""
        self._first = b""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What is offered, the preferred one first."""
        return (PLUS, PLAIN) if self._binding is not None else (PLAIN,)

    def choose(self, mechanism: str) -> None:
        """The client's choice. Raises ``ScramError``."""
        if mechanism not in self.mechanisms:
            raise ScramError("client selected an invalid SASL authentication mechanism")
        self._plus = mechanism == PLUS

    def first(self, client_first: bytes) -> bytes:
        """server-first-message. Raises ``ScramError``, ``ScramRefused`` for a downgrade."""
        parts = client_first.split(b",", 2)
        if len(parts) != 3 or b"\0" in client_first:
            raise ScramError("malformed SCRAM message")
        flag, identity, self._bare = parts
        self._check_flag(flag)
        if identity:
            raise ScramError("client uses authorization identity, but it is not supported")
        fields = self._bare.split(b",")
        if fields[0].startswith(b"m="):
            raise ScramError("client requires an unsupported SCRAM extension")
        if len(fields) < 2 or not fields[0].startswith(b"n=") or not fields[1].startswith(b"r="):
            raise ScramError("malformed SCRAM message")
        nonce = fields[1][2:]
        if not _PRINTABLE.fullmatch(nonce) or any(not _ATTRIBUTE.fullmatch(field) for field in fields[2:]):
            raise ScramError("malformed SCRAM message")
        self._header = flag + b",,"
        self._nonce = nonce + self._nonce
        salt = base64.b64encode(self._verifier.salt)
        self._first = b"r=" + self._nonce + b",s=" + salt + b",i=" + str(self._verifier.iterations).encode()
        return self._first

    def _check_flag(self, flag: bytes) -> None:
        if flag in (b"n", b"y"):
            if self._plus:
                raise ScramError("the client selected SCRAM-SHA-256-PLUS without channel binding data")
            if flag == b"y" and self._binding is not None:
                # It believes that we can't: somebody took PLUS out of our offer.
                raise ScramRefused("28000", "SCRAM channel binding negotiation error")
        elif flag.startswith(b"p="):
            if not self._plus:
                raise ScramError("the client selected SCRAM-SHA-256 with channel binding data")
            if flag != _BINDING:
                raise ScramError("unsupported SCRAM channel-binding type")
        else:
            raise ScramError("malformed SCRAM message")

    def final(self, client_final: bytes) -> bytes:
        """server-final-message: the client knows the password. Raises ``ScramError``, ``ScramRefused`` when it does not."""
        if not self._first:
            raise ScramError("malformed SCRAM message")
        without_proof, mark, proof_text = client_final.partition(b",p=")
        fields = without_proof.split(b",")
        proof = _decoded(proof_text)
        if not mark or len(fields) < 2 or not fields[0].startswith(b"c=") or not fields[1].startswith(b"r="):
            raise ScramError("malformed SCRAM message")
        if proof is None or len(proof) != _DIGEST or any(not _ATTRIBUTE.fullmatch(field) for field in fields[2:]):
            raise ScramError("malformed SCRAM message")
        bound = self._binding if self._plus and self._binding is not None else b""
        if not hmac.compare_digest(fields[0][2:], base64.b64encode(self._header + bound)):
            raise ScramRefused("28000", "SCRAM channel binding check failed")
        if not hmac.compare_digest(fields[1][2:], self._nonce):
            raise ScramError("malformed SCRAM message: the nonce does not match")
        base = self._bare + b"," + self._first + b"," + without_proof
        client_key = _xor(proof, hmac.digest(self._verifier.stored_key, base, "sha256"))
        good = hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key)
        answer = b"v=" + base64.b64encode(hmac.digest(self._verifier.server_key, base, "sha256"))
        if not good or self._verifier.doomed:
            raise ScramRefused("28P01", "the proof is wrong" if not self._verifier.doomed else "there is no such user")
        return answer


def _derived(password: bytes, salt: bytes, iterations: int) -> tuple[bytes, bytes, bytes]:
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return client_key, hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(_DIGEST, "big")


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None


def _fields(text: bytes, names: str) -> dict[str, bytes]:
    parts = text.split(b",")
    if len(parts) < len(names) or any(parts[i][:2] != f"{name}=".encode() for i, name in enumerate(names)):
        raise ScramError("malformed message from the server")
    return {name: parts[i][2:] for i, name in enumerate(names)}


def _prepared(password: str) -> bytes:
    # SASLprep (RFC 4013) as PostgreSQL does it: what can't be prepared is used as it is.
    if password.isascii() and password.isprintable():
        return password.encode()
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

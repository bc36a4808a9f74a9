"""Users that prove by SCRAM that they know a password, and the principals they are.

Only verifiers are kept, never passwords. A name that nobody has is challenged like one that somebody has: with a salt that stays
the same from one attempt to the next (PostgreSQL calls it mock authentication), so that asking does not tell who there is.

Never add here: the exchange itself, or where verifiers are stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from pgwire.ports import Principal, Proof, Refused, ScramVerifier

__all__ = ["ScramUser", "ScramUsers"]

_ITERATIONS = 4096  # PostgreSQL's default
_SALT = 16


@dataclass(frozen=True, slots=True)
class ScramUser:
    """One user: its verifier, who it is, and the databases it may name (None: all)."""

    verifier: ScramVerifier
    principal: Principal
    databases: frozenset[str] | None = None


class ScramUsers:
    """The users by name. ``only``: nobody comes with a token, so every other name is challenged too."""

    def __init__(self, users: Iterable[ScramUser], *, only: bool = False, secret: bytes | None = None) -> None:
        self._users = {user.verifier.user: user for user in users}
        self._only = only
        self._secret = secret or secrets.token_bytes(32)
        # A made-up challenge looks like a real one: the same length of salt and number of iterations.
        first = next(iter(self._users.values()), None)
        self._iterations = first.verifier.iterations if first is not None else _ITERATIONS
        self._salt = len(first.verifier.salt) if first is not None else _SALT

    def challenge(self, name: str) -> ScramVerifier | None:
        """The verifier of ``name``, a doomed one for a name that nobody has, or None: ``name`` comes with a token."""
        user = self._users.get(name)
        if user is not None:
            return user.verifier
        return self._doomed(name) if self._only else None

    def principal(self, proof: Proof) -> Principal:
        """Who has proven itself. Raises ``Refused`` 28000 for a database that is not the user's."""
        user = self._users.get(proof.user)
        if user is None or proof.proven is not user.verifier or proof.proven.doomed:
            raise Refused("28P01", f'password authentication failed for user "{proof.user}"', private="the proof is another user's")
        if user.databases is not None and proof.database not in user.databases:
            raise Refused("28000", f'user "{proof.user}" may not connect to database "{proof.database}"')
        return user.principal

    def _doomed(self, name: str) -> ScramVerifier:
        salt = hashlib.shake_256(hmac.digest(self._secret, name.encode(), "sha256")).digest(self._salt)
        keys = hashlib.shake_256(hmac.digest(self._secret, b"keys" + name.encode(), "sha256")).digest(64)
        return ScramVerifier(name, self._iterations, salt, keys[:32], keys[32:], doomed=True)

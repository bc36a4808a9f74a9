"""The identity port: a proof becomes a principal, for a database that exists here.

Never add here: token formats, grants, or anything that depends on what the principal may do.
"""

from __future__ import annotations

from collections.abc import Collection

from control.identity.passwords import ScramUsers
from control.identity.tokens import TokenVerifier
from pgwire.ports import Principal, Proof, Refused, ScramVerifier

__all__ = ["ANY_SUBJECT", "Authenticator"]

ANY_SUBJECT = "token"
"""A user name that stands for whatever subject the token names."""


class Authenticator:
    """Implements ``pgwire.ports.Identity``: tokens as passwords, and SCRAM for the users that have a verifier here.

    The startup message's user must be the token's subject, or ``token``: a mix-up of tokens is told, not acted on.
    """

    def __init__(self, verifier: TokenVerifier, databases: Collection[str], users: ScramUsers | None = None) -> None:
        self._verifier = verifier
        self._databases = frozenset(databases)
        self._users = users or ScramUsers(())

    async def challenge(self, user: str, database: str) -> ScramVerifier | None:
        """See ``ports.Identity``."""
        return self._users.challenge(user)

    async def authenticate(self, proof: Proof) -> Principal:
        """The principal behind ``proof``. Raises ``Refused`` (28000, 28P01, 08004, 3D000)."""
        principal = self._users.principal(proof) if proof.proven is not None else await self._by_token(proof)
        # Only who has proven an identity learns which databases there are.
        if proof.database not in self._databases:
            raise Refused(
                "3D000",
                f'database "{proof.database}" is not served here',
                hint=f"Served: {', '.join(sorted(self._databases))}.",
            )
        return principal

    async def _by_token(self, proof: Proof) -> Principal:
        if not proof.password:
            raise Refused("28P01", "no token was given", hint="Give a JSON Web Token (JWT) of your identity provider as the password.")
        principal = await self._verifier.verify(proof.password)
        if proof.user not in (principal.subject, ANY_SUBJECT):
            raise Refused(
                "28000",
                "the token was issued to someone else than the user who connects",
                hint=f"Connect as the token's subject or as user {ANY_SUBJECT!r}.",
                private=f"user={proof.user!r} subject={principal.subject!r}",
            )
        return principal

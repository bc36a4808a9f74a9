"""A JWT, checked whole: signature, issuer, audience, time and lifetime; then the principal it names.

Every refusal says what is wrong with the token and what to do, but never shows a part of it.
Sources: RFC 7519 (claims), RFC 8693 section 4.1 (``act``), RFC 8725 (best practice: one algorithm per key, no ``none``).

Never add here: how keys are fetched, or what a principal may do.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from control.identity.keys import KeySet, KeysUnavailable, http_client
from pgwire.ports import Principal, Refused

__all__ = ["TokenVerifier", "TrustedIssuer"]

_LONGEST_TOKEN = 16 * 1024  # characters
_MOST_KNOWN = 4096  # tokens whose check is remembered
_SIGN_IN_AGAIN = "Get a new token from your identity provider and connect again."


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """One issuer whose tokens are good. ``max_lifetime`` and ``leeway`` are seconds.

    Claim names may be a top-level name (also one with dots in it) or a path of names joined by dots.
    """

    issuer: str
    audience: str
    jwks_uri: str | None = None
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    groups_claim: str = "groups"
    subject_claim: str = "sub"
    acts_for_claim: str = "act.sub"
    max_lifetime: float = 3600.0
    leeway: float = 30.0


class TokenVerifier:
    """Checks tokens of the trusted issuers. One per process: it keeps the issuers' keys."""

    def __init__(self, issuers: Sequence[TrustedIssuer], clock: Callable[[], float] = time.time) -> None:
        self._issuers = {entry.issuer: entry for entry in issuers}
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._keys = {entry.issuer: KeySet(entry.issuer, entry.jwks_uri, self._http) for entry in issuers}
        # By the token's hash: the principal, when it stops to be good, and the version of the keys it was checked with.
        self._known: OrderedDict[bytes, tuple[Principal, float, int]] = OrderedDict()

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = http_client()
        return self._client

    async def close(self) -> None:
        """Stop fetching keys."""
        for keys in self._keys.values():
            await keys.close()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def probe(self, issuer: str) -> None:
        """Fetch the keys of ``issuer``. Raises ``KeysUnavailable``."""
        await self._keys[issuer].find("", "ES256")

    async def verify(self, token: str) -> Principal:
        """The principal that ``token`` names. Raises ``Refused`` with 28P01 (bad token), 28000 (not for us) or 08004 (keys).

        A token that was good is good until it expires or its issuer publishes other keys; it is then checked anew.
        """
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(name)
        if known is not None:
            principal, until, version = known
            if self._clock() < until and self._keys[principal.issuer].version == version:
                self._known.move_to_end(name)
                return principal
            del self._known[name]
        principal = await self._verify(token)
        checked = self._keys[principal.issuer].version
        if checked is not None:
            self._known[name] = (principal, principal.expires_at + self._issuers[principal.issuer].leeway, checked)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return principal

    async def _verify(self, token: str) -> Principal:
        header, claims = _unverified(token)
        named = claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise Refused(
                "28000",
                "the token comes from an issuer that is not trusted here",
                hint="Use a token of the identity provider that the gateway's operator has configured.",
                private=f"iss={claims.get('iss')!r}",
            )
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
            raise Refused(
                "28P01",
                "the token is signed with an algorithm that is not accepted",
                hint=f"Accepted: {', '.join(issuer.algorithms)}.",
                private=f"alg={algorithm!r}",
            )
        key_id = header.get("kid")
        try:
            key = await self._keys[issuer.issuer].find(key_id if isinstance(key_id, str) else None, algorithm)
        except KeysUnavailable as error:
            raise Refused(
                "08004",
                "the token can't be checked: the issuer's keys are not to be had now",
                hint="Try again shortly; if it persists, tell the gateway's operator.",
                private=str(error),
            ) from error
        if key is None:
            raise Refused(
                "28P01", "the token is signed with a key that its issuer does not publish", hint=_SIGN_IN_AGAIN, private=f"kid={key_id!r}"
            )
        return self._principal(issuer, self._checked(token, key, algorithm, issuer))

    def _checked(self, token: str, key: jwt.PyJWK, algorithm: str, issuer: TrustedIssuer) -> dict[str, Any]:
        options: Any = {"require": ["exp", "iat", "iss", "aud"], "verify_exp": False, "verify_iat": False, "verify_nbf": False}
        try:
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[algorithm], audience=issuer.audience, issuer=issuer.issuer, options=options
            )
        except jwt.InvalidAudienceError as error:
            raise Refused(
                "28000",
                "the token is meant for another audience",
                hint=f"Ask the identity provider for a token with audience {issuer.audience!r}.",
                private=str(error),
            ) from error
        except jwt.MissingRequiredClaimError as error:
            raise Refused(
                "28P01", f"the token lacks the claim {error.claim!r}", hint="The issuer must put exp, iat, iss and aud into it."
            ) from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise Refused("28P01", "the token's signature or form is wrong", hint=_SIGN_IN_AGAIN, private=str(error)) from error
        self._check_times(claims, issuer)
        return claims

    def _check_times(self, claims: Mapping[str, Any], issuer: TrustedIssuer) -> None:
        now, leeway = self._clock(), issuer.leeway
        times: dict[str, float] = {}
        for name in ("exp", "iat", "nbf"):
            value = claims.get(name, 0 if name == "nbf" else None)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
                raise Refused("28P01", f"the token's claim {name!r} is not a time", hint="It must be a NumericDate (RFC 7519).")
            times[name] = float(value)
        if times["exp"] + leeway <= now:
            raise Refused("28P01", "the token has expired", hint=_SIGN_IN_AGAIN, private=f"expired {now - times['exp']:.0f} s ago")
        if max(times["iat"], times["nbf"]) - leeway > now:
            raise Refused("28P01", "the token is not valid yet", hint="Compare the clocks of the issuer and the gateway.")
        if times["exp"] - times["iat"] > issuer.max_lifetime:
            raise Refused(
                "28P01",
                f"the token lives longer than the {issuer.max_lifetime:g} s that are accepted",
                hint="Ask the identity provider for a short-lived token.",
            )

    def _principal(self, issuer: TrustedIssuer, claims: Mapping[str, Any]) -> Principal:
        subject = _claim(claims, issuer.subject_claim)
        if not isinstance(subject, str) or not subject or len(subject) > 255 or not subject.isprintable():
            raise Refused(
                "28P01",
                f"the token names no subject in {issuer.subject_claim!r}",
                hint="It must be a printable text of at most 255 characters.",
            )
        acts_for = _claim(claims, issuer.acts_for_claim)
        token_id = claims.get("jti")
        return Principal(
            subject=subject,
            issuer=issuer.issuer,
            groups=_groups(_claim(claims, issuer.groups_claim)),
            acts_for=acts_for if isinstance(acts_for, str) and acts_for else None,
            token_id=token_id if isinstance(token_id, str) else None,
            expires_at=float(claims["exp"]),
            claims=claims,
        )


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        if len(token) > _LONGEST_TOKEN:
            raise ValueError("too long")
        found = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise Refused(
            "28P01",
            "the password is not a token that the gateway understands",
            hint="Give a JSON Web Token (JWT) of your identity provider as the password.",
            private=type(error).__name__,
        ) from error
    return found["header"], found["payload"]


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _groups(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list):
        return frozenset(entry for entry in value if isinstance(entry, str))
    return frozenset()

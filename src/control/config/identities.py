"""Whose tokens are believed, and who has a password instead.

Never add here: reading of a file, or checking of a token.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from control.config.values import Groups, Name, Secret, Section, Url

__all__ = ["IdentitySettings", "IssuerSettings", "ScramUserSettings"]

# RFC 8725 section 3.1: the algorithms are ours to choose; a shared secret (HS*) or "none" is never among them.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class IssuerSettings(Section):
    """One issuer of tokens. ``jwks_uri`` null means discovery at the issuer; times are seconds."""

    issuer: Url
    audience: Name
    jwks_uri: Url | None = None
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    groups_claim: Name = "groups"
    subject_claim: Name = "sub"
    acts_for_claim: Name = "act.sub"
    max_lifetime: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600.0
    leeway: Annotated[float, Field(ge=0, le=60)] = 30.0


class ScramUserSettings(Section):
    """A user that proves itself by SCRAM-SHA-256. ``subject`` null means the user's name; ``databases`` null means all."""

    user: Name
    verifier: Secret
    subject: Name | None = None
    groups: Groups = ()
    acts_for: Name | None = None
    databases: Groups | None = None


class IdentitySettings(Section):
    """Whose tokens are believed, and who proves itself by SCRAM instead."""

    issuers: tuple[IssuerSettings, ...] = ()
    scram_users: tuple[ScramUserSettings, ...] = ()

    @model_validator(mode="after")
    def _told_apart(self) -> IdentitySettings:
        if not self.issuers and not self.scram_users:
            raise ValueError("give issuers, scram_users or both")
        _once([entry.issuer for entry in self.issuers], "issuer")
        _once([entry.user for entry in self.scram_users], "user of scram_users")
        if any(entry.user == "token" for entry in self.scram_users):
            raise ValueError("the user name token stands for whoever a token names: give the SCRAM user another one")
        return self


def _once(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each {what} once; {name} stands here twice")

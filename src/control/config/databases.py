"""The databases that agents may name: the servers behind them and how logins to these are got.

Never add here: reading of a file, or connecting.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from control.config.values import ConfigPath, Name, Secret, Section, Url

__all__ = [
    "AppRole",
    "DatabaseSettings",
    "MintedCredentials",
    "ServerSettings",
    "ServerTlsSettings",
    "StaticCredentials",
    "VaultCredentials",
]


class ServerTlsSettings(Section):
    """How the leg to PostgreSQL is protected; modes as libpq's sslmode. ``ca`` null means the system's authorities."""

    mode: Literal["disable", "require", "verify-ca", "verify-full"] = "verify-full"
    ca: ConfigPath | None = None
    negotiation: Literal["postgres", "direct"] = "postgres"
    certificate: ConfigPath | None = None
    key: ConfigPath | None = None

    @model_validator(mode="after")
    def _whole(self) -> ServerTlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key together")
        if self.mode == "disable" and (self.negotiation == "direct" or self.certificate is not None):
            raise ValueError("negotiation direct and a client certificate need a mode that is not disable")
        return self


class ServerSettings(Section):
    """The PostgreSQL server behind a database name. ``dbname`` is the name that agents use unless told otherwise.

    A ``host`` that begins with a slash is the directory of the server's Unix socket.
    """

    host: Name
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    dbname: Name
    tls: ServerTlsSettings = ServerTlsSettings()

    @model_validator(mode="after")
    def _no_tls_on_unix_sockets(self) -> ServerSettings:
        if self.host.startswith("/") and self.tls.mode != "disable":
            raise ValueError("PostgreSQL has no TLS on a Unix socket: with a host that begins with / write tls: {mode: disable}")
        return self


class MintedCredentials(Section):
    """A role is made for each grant by this service login (CREATEROLE), which also reads the catalog."""

    kind: Literal["minted"]
    user: Name
    password: Secret


class StaticCredentials(Section):
    """One fixed login for every session, which also reads the catalog."""

    kind: Literal["static"]
    user: Name
    password: Secret


class AppRole(Section):
    """A Vault AppRole login (auth/approle)."""

    role_id: Secret
    secret_id: Secret


class VaultCredentials(Section):
    """Logins from Vault's database secrets engine; ``catalog_user`` reads the catalog. Exactly one of token and approle."""

    kind: Literal["vault"]
    address: Url
    mount: Name = "database"
    role: Name
    token: Secret | None = None
    approle: AppRole | None = None
    catalog_user: Name
    catalog_password: Secret

    @model_validator(mode="after")
    def _one_login(self) -> VaultCredentials:
        if (self.token is None) == (self.approle is None):
            raise ValueError("give exactly one of token and approle")
        return self


class DatabaseSettings(Section):
    """One database that agents may name, the server behind it and how logins to it are got."""

    server: ServerSettings
    credentials: Annotated[MintedCredentials | VaultCredentials | StaticCredentials, Field(discriminator="kind")]

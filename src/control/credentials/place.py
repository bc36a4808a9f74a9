"""Where a database is, and the failures that every way to a login shares.

Never add here: a way to a login.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pgwire.ports import Refused, ServerTls

__all__ = ["Place", "unreachable"]


@dataclass(frozen=True, slots=True)
class Place:
    """One database as the gateway reaches it: ``name`` is what agents call it, ``dbname`` what the server calls it."""

    name: str
    host: str
    port: int
    dbname: str
    tls: ServerTls = field(default_factory=ServerTls)

    def libpq(self, user: str, password: str) -> dict[str, Any]:
        """Connection parameters for the gateway's own, administrative connections."""
        parameters: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "user": user,
            "password": password,
            "sslmode": self.tls.mode,
            "gssencmode": "disable",
            "connect_timeout": 5,
            "application_name": "pgleash",
        }
        if self.tls.ca_file:
            parameters["sslrootcert"] = self.tls.ca_file
        elif self.tls.mode in ("verify-ca", "verify-full"):
            parameters["sslrootcert"] = "system"
        if self.tls.negotiation == "direct":
            parameters["sslnegotiation"] = "direct"
        if self.tls.certificate_file and self.tls.key_file:
            parameters["sslcert"] = self.tls.certificate_file
            parameters["sslkey"] = self.tls.key_file
        return parameters


def unreachable(place: Place, error: Exception) -> Refused:
    """The refusal for a server that does not answer; the address stays in the log."""
    return Refused(
        "08001",
        "the database server can't be reached",
        hint="Try again shortly; if it persists, tell the gateway's operator.",
        private=f"{place.name}: {' '.join(str(error).split())}",
    )

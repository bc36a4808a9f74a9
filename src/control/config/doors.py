"""Where the gateway listens: for agents, and for people and bots.

Never add here: reading of a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from control.config.values import ConfigPath, Groups, Hosts, Name, Network, Port, Section, is_loopback

__all__ = ["ApiSettings", "ListenSettings", "ProxyProtocolSettings", "RoleMembers", "RoleSettings", "TlsFiles", "UnixSocketSettings"]

_LONGEST_DIRECTORY = 80  # a socket's address has 107 bytes, and its name with a random ending takes up to 24 of them


def _mode(value: object) -> int:
    if isinstance(value, str) and len(value) in (3, 4) and set(value) <= set("01234567") and int(value, 8) <= 0o777:
        return int(value, 8)
    raise ValueError('write the permissions in quotes, as "0770"')


class TlsFiles(Section):
    """A certificate chain and its key, both PEM."""

    certificate: ConfigPath
    key: ConfigPath


class UnixSocketSettings(Section):
    """A Unix socket beside the TCP port, at ``.s.PGSQL.<port>`` in ``directory``, with the permissions ``mode``."""

    directory: ConfigPath
    mode: Annotated[int, PlainValidator(_mode)] = Field(default="0777", validate_default=True)


class ProxyProtocolSettings(Section):
    """Load balancers that tell the client's address by the PROXY protocol, version 2. From these addresses it is required."""

    trusted: Annotated[tuple[Network, ...], Field(min_length=1)]


def _directory(value: Any) -> Any:
    return {"directory": value} if isinstance(value, str) else value


class ListenSettings(Section):
    """Where agents connect. Times are seconds, sizes bytes; port 0 takes any free port. ``host`` may be a list."""

    host: Hosts = ("127.0.0.1",)
    port: Port = 6432
    unix_socket: Annotated[UnixSocketSettings | None, BeforeValidator(_directory)] = None
    proxy_protocol: ProxyProtocolSettings | None = None
    tls: TlsFiles | None = None
    plaintext_on_loopback: bool = False
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    login_timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0
    max_statement_bytes: Annotated[int, Field(ge=1024, le=0x3FFF_FFFF)] = 16 * 1024 * 1024

    @model_validator(mode="after")
    def _guarded(self) -> ListenSettings:
        _refuse_plaintext(self.host, self.tls, self.plaintext_on_loopback)
        if self.unix_socket is not None and len(os.fsencode(self.unix_socket.directory)) > _LONGEST_DIRECTORY:
            raise ValueError(f"the path of unix_socket.directory may have at most {_LONGEST_DIRECTORY} bytes")
        return self


class RoleMembers(Section):
    """Who holds a role in the API: every principal in one of these groups."""

    groups: Groups = ()


class RoleSettings(Section):
    """The API's roles. An empty role is nobody's."""

    approver: RoleMembers = RoleMembers()
    operator: RoleMembers = RoleMembers()
    auditor: RoleMembers = RoleMembers()


class ApiSettings(Section):
    """Where people and bots decide, grant and read: the gRPC interface."""

    host: Name = "127.0.0.1"
    port: Port = 6433
    tls: TlsFiles | None = None
    plaintext_on_loopback: bool = False
    roles: RoleSettings = RoleSettings()
    reflection: bool = True

    @model_validator(mode="after")
    def _guarded(self) -> ApiSettings:
        _refuse_plaintext((self.host,), self.tls, self.plaintext_on_loopback)
        return self


def _refuse_plaintext(hosts: Sequence[str], tls: TlsFiles | None, plaintext: bool) -> None:
    if plaintext and not all(is_loopback(host) for host in hosts):
        raise ValueError("plaintext_on_loopback only with a loopback host (127.0.0.1, ::1, localhost)")
    if tls is None and not plaintext:
        raise ValueError("give tls: {certificate: PATH, key: PATH}, or for a test on this machine plaintext_on_loopback: true")

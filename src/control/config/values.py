"""What the sections of the configuration are made of: secrets by reference, paths, addresses, and what all sections share.

Never add here: a section, or reading of a file.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationInfo

__all__ = [
    "SECRET_FORM",
    "ConfigPath",
    "ConfigurationError",
    "Groups",
    "Hosts",
    "Name",
    "Network",
    "Port",
    "Secret",
    "SecretRef",
    "Section",
    "Url",
    "is_loopback",
]

SECRET_FORM = "write env:NAME (an environment variable) or file:PATH (a file's content)"


class ConfigurationError(Exception):
    """A configuration can't be used. ``problems`` has one line each: ``path: value X: what would be right``."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a secret is kept. Holds the reference only, so neither ``repr`` nor a dump can show the secret."""

    reference: str

    @property
    def path(self) -> Path | None:
        """The file behind a ``file:`` reference, else None."""
        return Path(self.reference[5:]) if self.reference.startswith("file:") else None

    def resolve(self) -> str:
        """The secret itself, without a trailing newline. Read anew each time. Raises ``ConfigurationError``."""
        path = self.path
        if path is not None:
            try:
                value = path.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                raise ConfigurationError([f"{self.reference}: {reason}: a readable file that holds the secret"]) from None
        else:
            value = os.environ.get(self.reference[4:], "")
        if not value:
            raise ConfigurationError([f"{self.reference}: empty or not set: give it the secret before starting"])
        return value


def _secret(value: object, info: ValidationInfo) -> SecretRef:
    if isinstance(value, SecretRef):
        return value
    if isinstance(value, str):
        kind, _, name = value.partition(":")
        if kind == "env" and name and "=" not in name and "\0" not in name:
            return SecretRef(value)
        if kind == "file" and name:
            return SecretRef(f"file:{_resolved(Path(name), info)}")
    raise ValueError(SECRET_FORM)


def _resolved(path: Path, info: ValidationInfo) -> Path:
    directory = Path((info.context or {}).get("directory", "."))
    return Path(os.path.normpath(directory / path.expanduser()))


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "https" and parts.hostname:
        return value
    if parts.scheme == "http" and parts.hostname and is_loopback(parts.hostname):
        return value
    raise ValueError("write an https:// address (http:// only for this machine, 127.0.0.1)")


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("write an address or a network like 10.1.0.0/16 or fd00::/8, with no bits set behind its prefix") from None


Secret = Annotated[SecretRef, PlainValidator(_secret)]
ConfigPath = Annotated[Path, AfterValidator(_resolved)]
Url = Annotated[str, AfterValidator(_url)]
Name = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Groups = tuple[Name, ...]
Hosts = Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, PlainValidator(_network)]


class Section(BaseModel):
    """What all sections have in common: frozen, no unknown keys, defaults are checked and resolved too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True, allow_inf_nan=False)

"""The configuration: one frozen tree of settings, read from one YAML file.

An unknown key is an error, every problem of a file is told at once, and secrets stand in the file by
reference only (``env:NAME`` or ``file:PATH``), never by value. Relative paths are relative to the file.

Never add here: reading of the policy file, opening of sockets or databases, or a setting that nothing uses.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = [
    "ApiSettings",
    "AppRole",
    "AuditSettings",
    "ConfigurationError",
    "DatabaseSettings",
    "IdentitySettings",
    "IssuerSettings",
    "ListenSettings",
    "MintedCredentials",
    "PolicySettings",
    "ProxyProtocolSettings",
    "RecordingSettings",
    "RoleMembers",
    "RoleSettings",
    "ScramUserSettings",
    "SecretRef",
    "ServerSettings",
    "ServerTlsSettings",
    "Settings",
    "StaticCredentials",
    "StoreSettings",
    "TlsFiles",
    "UnixSocketSettings",
    "VaultCredentials",
    "load",
    "missing",
]

_SECRET_FORM = "write env:NAME (an environment variable) or file:PATH (a file's content)"
_HIDDEN = "(hidden)"
_SECRET_WORDS = ("pass", "secret", "token", "key", "verifier")
_LONGEST_DIRECTORY = 80  # a socket's address has 107 bytes, and its name with a random ending takes up to 24 of them
# RFC 8725 section 3.1: the algorithms are ours to choose; a shared secret (HS*) or "none" is never among them.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


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
    raise ValueError(_SECRET_FORM)


def _resolved(path: Path, info: ValidationInfo) -> Path:
    directory = Path((info.context or {}).get("directory", "."))
    return Path(os.path.normpath(directory / path.expanduser()))


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "https" and parts.hostname:
        return value
    if parts.scheme == "http" and parts.hostname and _loopback(parts.hostname):
        return value
    raise ValueError("write an https:// address (http:// only for this machine, 127.0.0.1)")


def _loopback(host: str) -> bool:
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


def _mode(value: object) -> int:
    if isinstance(value, str) and len(value) in (3, 4) and set(value) <= set("01234567") and int(value, 8) <= 0o777:
        return int(value, 8)
    raise ValueError('write the permissions in quotes, as "0770"')


Secret = Annotated[SecretRef, PlainValidator(_secret)]
ConfigPath = Annotated[Path, AfterValidator(_resolved)]
Url = Annotated[str, AfterValidator(_url)]
Name = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Groups = tuple[Name, ...]
Hosts = Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, PlainValidator(_network)]


class _Section(BaseModel):
    """What all sections have in common: frozen, no unknown keys, defaults are checked and resolved too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True, allow_inf_nan=False)


class TlsFiles(_Section):
    """A certificate chain and its key, both PEM."""

    certificate: ConfigPath
    key: ConfigPath


class UnixSocketSettings(_Section):
    """A Unix socket beside the TCP port, at ``.s.PGSQL.<port>`` in ``directory``, with the permissions ``mode``."""

    directory: ConfigPath
    mode: Annotated[int, PlainValidator(_mode)] = Field(default="0777", validate_default=True)


class ProxyProtocolSettings(_Section):
    """Load balancers that tell the client's address by the PROXY protocol, version 2. From these addresses it is required."""

    trusted: Annotated[tuple[Network, ...], Field(min_length=1)]


def _directory(value: Any) -> Any:
    return {"directory": value} if isinstance(value, str) else value


class ListenSettings(_Section):
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


class RoleMembers(_Section):
    """Who holds a role in the API: every principal in one of these groups."""

    groups: Groups = ()


class RoleSettings(_Section):
    """The API's roles. An empty role is nobody's."""

    approver: RoleMembers = RoleMembers()
    operator: RoleMembers = RoleMembers()
    auditor: RoleMembers = RoleMembers()


class ApiSettings(_Section):
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


class IssuerSettings(_Section):
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


class ScramUserSettings(_Section):
    """A user that proves itself by SCRAM-SHA-256. ``subject`` null means the user's name; ``databases`` null means all."""

    user: Name
    verifier: Secret
    subject: Name | None = None
    groups: Groups = ()
    acts_for: Name | None = None
    databases: Groups | None = None


class IdentitySettings(_Section):
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


class ServerTlsSettings(_Section):
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


class ServerSettings(_Section):
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


class MintedCredentials(_Section):
    """A role is made for each grant by this service login (CREATEROLE), which also reads the catalog."""

    kind: Literal["minted"]
    user: Name
    password: Secret


class StaticCredentials(_Section):
    """One fixed login for every session, which also reads the catalog."""

    kind: Literal["static"]
    user: Name
    password: Secret


class AppRole(_Section):
    """A Vault AppRole login (auth/approle)."""

    role_id: Secret
    secret_id: Secret


class VaultCredentials(_Section):
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


class DatabaseSettings(_Section):
    """One database that agents may name, the server behind it and how logins to it are got."""

    server: ServerSettings
    credentials: Annotated[MintedCredentials | VaultCredentials | StaticCredentials, Field(discriminator="kind")]


class PolicySettings(_Section):
    """The policy file."""

    file: ConfigPath = Path("policy.yaml")
    mask_key: Secret = SecretRef("file:keys/mask.key")

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, value: Any) -> Any:
        # As for the signing key: a relative default goes through the same resolution as a written one.
        return {"mask_key": "file:keys/mask.key", **value} if isinstance(value, Mapping) else value


class StoreSettings(_Section):
    """The SQLite file of grants, approvals and sessions."""

    path: ConfigPath = Path("var/pgleash.db")


class AuditSettings(_Section):
    """The journal: its directory, the size of a segment in bytes, seconds between checkpoints and their signing key."""

    directory: ConfigPath = Path("var/audit")
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 64 * 1024 * 1024
    checkpoint_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    signing_key: Secret = SecretRef("file:keys/audit.key")

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, value: Any) -> Any:
        # The default is a reference with a relative path: it goes through the same resolution as a written one.
        return {"signing_key": "file:keys/audit.key", **value} if isinstance(value, Mapping) else value


class RecordingSettings(_Section):
    """Recordings of what clients saw: directory, segment size in bytes, and most bytes kept of one statement's result."""

    directory: ConfigPath = Path("var/recordings")
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 64 * 1024 * 1024
    statement_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 256 * 1024


class Settings(_Section):
    """The whole configuration."""

    listen: ListenSettings
    api: ApiSettings
    identity: IdentitySettings
    databases: Annotated[dict[Name, DatabaseSettings], Field(min_length=1)]
    policy: PolicySettings = Field(default={}, validate_default=True)
    store: StoreSettings = Field(default={}, validate_default=True)
    audit: AuditSettings = Field(default={}, validate_default=True)
    recording: RecordingSettings = Field(default={}, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _default_dbnames(cls, value: Any) -> Any:
        databases = value.get("databases") if isinstance(value, Mapping) else None
        if not isinstance(databases, Mapping):
            return value
        return {**value, "databases": {name: _with_dbname(name, entry) for name, entry in databases.items()}}


def _with_dbname(name: Any, entry: Any) -> Any:
    if isinstance(entry, Mapping) and isinstance(entry.get("server"), Mapping):
        return {**entry, "server": {"dbname": name, **entry["server"]}}
    return entry


def _refuse_plaintext(hosts: Sequence[str], tls: TlsFiles | None, plaintext: bool) -> None:
    if plaintext and not all(_loopback(host) for host in hosts):
        raise ValueError("plaintext_on_loopback only with a loopback host (127.0.0.1, ::1, localhost)")
    if tls is None and not plaintext:
        raise ValueError("give tls: {certificate: PATH, key: PATH}, or for a test on this machine plaintext_on_loopback: true")


def load(path: str | Path) -> Settings:
    """Read and check the configuration at ``path``. Raises ``ConfigurationError`` with every problem found."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigurationError([f"{path}: {reason}: a readable YAML file; `pgleash init` writes one to start from"]) from None
    try:
        document = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigurationError([f"{path}:{where}: not YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}"]) from None
    if not isinstance(document, Mapping):
        raise ConfigurationError([f"{path}: value {_shown(document)}: a mapping with listen, api, identity and databases"])
    try:
        return Settings.model_validate(document, context={"directory": path.resolve().parent})
    except ValidationError as error:
        raise ConfigurationError([_problem(document, details) for details in _causes(error.errors())]) from None


def missing(settings: Settings) -> tuple[str, ...]:
    """What the configuration points at and isn't there: files and secrets, one line each. Empty when all is well."""
    problems: list[str] = []

    def look(value: Any, path: str) -> None:
        if isinstance(value, SecretRef):
            try:
                value.resolve()
            except ConfigurationError as error:
                problems.append(f"{path}: {error}")
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                look(getattr(value, name), f"{path}.{name}" if path else name)
        elif isinstance(value, dict):
            for name, entry in value.items():
                look(entry, f"{path}.{name}")
        elif isinstance(value, Path) and path.rpartition(".")[2] in {"certificate", "key", "ca", "file"} and not os.access(value, os.R_OK):
            problems.append(f"{path}: value {value}: an existing, readable file")

    look(settings, "")
    return tuple(problems)


def _causes(errors: Sequence[Any]) -> list[Any]:
    # A list whose only item is wrong is also reported as too short: that is no second problem.
    deeper = [tuple(details["loc"]) for details in errors]
    return [
        details
        for details in errors
        if details["type"] != "too_short"
        or not any(len(loc) > len(details["loc"]) and loc[: len(details["loc"])] == details["loc"] for loc in deeper)
    ]


def _problem(document: Any, details: Any) -> str:
    loc = [part for index, part in enumerate(details["loc"]) if not _is_tag(details["loc"], index)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    right = _what_would_be_right(details, loc)
    if details["type"] == "missing":
        return f"{path}: value missing: {right}"
    shown = _HIDDEN if right == _SECRET_FORM or _is_secret_name(loc) else _shown(_value_at(document, loc))
    return f"{path or 'configuration'}: value {shown}: {right}"


def _is_tag(loc: Sequence[str | int], index: int) -> bool:
    # pydantic puts the discriminator's value into the path: databases.shop.credentials.minted.user
    return index > 0 and loc[index - 1] == "credentials" and loc[index] in {"minted", "vault", "static"} and loc[0] == "databases"


def _is_secret_name(loc: Sequence[str | int]) -> bool:
    # An unknown key may hold a misspelled secret ("pasword: hunter2"): under credentials no value is shown.
    return "credentials" in loc or any(word in str(part).lower() for part in loc[-1:] for word in _SECRET_WORDS)


def _value_at(document: Any, loc: Sequence[str | int]) -> Any:
    value = document
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _shown(value: Any) -> str:
    text = "a section" if isinstance(value, Mapping) else "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _what_would_be_right(details: Any, loc: Sequence[str | int]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(_known_keys(loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        return f"unknown key, did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"
    if kind == "missing":
        return f"this key is required{_section_hint(loc)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return "kind must be minted, vault or static"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace("'", "")
    message = str(details["msg"])
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _section_hint(loc: Sequence[str | int]) -> str:
    keys = sorted(_known_keys(loc))
    return f" (a section with {', '.join(keys)})" if keys else ""


def _known_keys(loc: Sequence[str | int]) -> set[str]:
    """The keys that the section at ``loc`` may have; empty when it is not a section."""
    kinds: list[Any] = [Settings]
    for part in loc:
        found: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if part in kind.model_fields:
                    found += _alternatives(kind.model_fields[str(part)].annotation)
            else:
                found += [inner for argument in typing.get_args(kind)[-1:] for inner in _alternatives(argument)]
                if typing.get_origin(kind) is tuple:
                    found = [inner for inner in _alternatives(typing.get_args(kind)[0])]
        kinds = found
    return {name for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel) for name in kind.model_fields}


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for argument in typing.get_args(annotation) for inner in _alternatives(argument)]
    return [annotation]

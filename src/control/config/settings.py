"""The whole tree of settings, and the sections about what is kept: policy, store, audit, recordings.

Never add here: reading of a file, or a setting that nothing uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from control.config.approvals import ApprovalSettings
from control.config.databases import DatabaseSettings
from control.config.doors import ApiSettings, ListenSettings
from control.config.identities import IdentitySettings
from control.config.values import ConfigPath, Name, Secret, SecretRef, Section

__all__ = ["AuditSettings", "PolicySettings", "RecordingSettings", "Settings", "StoreSettings", "WarmSettings"]


class PolicySettings(Section):
    """The policy file."""

    file: ConfigPath = Path("policy.yaml")
    mask_key: Secret = SecretRef("file:keys/mask.key")

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, value: Any) -> Any:
        # As for the signing key: a relative default goes through the same resolution as a written one.
        return {"mask_key": "file:keys/mask.key", **value} if isinstance(value, Mapping) else value


class StoreSettings(Section):
    """The SQLite file of grants, approvals and sessions."""

    path: ConfigPath = Path("var/pgleash.db")


class AuditSettings(Section):
    """The journal: its directory, the size of a segment in bytes, seconds between checkpoints and their signing key."""

    directory: ConfigPath = Path("var/audit")
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 16 * 1024 * 1024
    checkpoint_interval: Annotated[float, Field(gt=0, le=3600)] = 1.0
    signing_key: Secret = SecretRef("file:keys/audit.key")

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, value: Any) -> Any:
        # The default is a reference with a relative path: it goes through the same resolution as a written one.
        return {"signing_key": "file:keys/audit.key", **value} if isinstance(value, Mapping) else value


class RecordingSettings(Section):
    """Recordings of what clients saw: directory, segment size in bytes, and most bytes kept of one statement's result."""

    directory: ConfigPath = Path("var/recordings")
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 16 * 1024 * 1024
    statement_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 256 * 1024


class WarmSettings(Section):
    """Server connections that are kept for the next session of the same grant: how many, and for how many seconds. 0: none."""

    per_login: Annotated[int, Field(ge=0, le=1000)] = 4
    total: Annotated[int, Field(ge=0, le=10_000)] = 32
    idle: Annotated[float, Field(gt=0, le=3600)] = 30.0
    age: Annotated[float, Field(gt=0, le=86400)] = 600.0


class Settings(Section):
    """The whole configuration."""

    listen: ListenSettings
    api: ApiSettings
    identity: IdentitySettings
    databases: Annotated[dict[Name, DatabaseSettings], Field(min_length=1)]
    warm: WarmSettings = Field(default={}, validate_default=True)
    policy: PolicySettings = Field(default={}, validate_default=True)
    store: StoreSettings = Field(default={}, validate_default=True)
    audit: AuditSettings = Field(default={}, validate_default=True)
    recording: RecordingSettings = Field(default={}, validate_default=True)
    approvals: ApprovalSettings = Field(default={}, validate_default=True)

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

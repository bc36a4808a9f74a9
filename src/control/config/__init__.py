"""The configuration: one frozen tree of settings, read from one YAML file.

An unknown key is an error, every problem of a file is told at once, and secrets stand in the file by
reference only (``env:NAME`` or ``file:PATH``), never by value. Relative paths are relative to the file.

Never add here: anything but the names that other rooms import.
"""

from control.config.approvals import ApprovalSettings, WebhookSettings
from control.config.databases import (
    AppRole,
    DatabaseSettings,
    MintedCredentials,
    ServerSettings,
    ServerTlsSettings,
    StaticCredentials,
    VaultCredentials,
)
from control.config.doors import (
    ApiSettings,
    ListenSettings,
    ProxyProtocolSettings,
    RoleMembers,
    RoleSettings,
    TlsFiles,
    UnixSocketSettings,
)
from control.config.identities import IdentitySettings, IssuerSettings, ScramUserSettings
from control.config.reading import load, missing
from control.config.settings import AuditSettings, PolicySettings, RecordingSettings, Settings, StoreSettings, WarmSettings
from control.config.values import ConfigurationError, SecretRef

__all__ = [
    "ApiSettings",
    "AppRole",
    "ApprovalSettings",
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
    "WarmSettings",
    "WebhookSettings",
    "load",
    "missing",
]

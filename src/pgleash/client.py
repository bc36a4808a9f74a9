"""A connection to a gateway's API, for the command line and for bots.

``with connect("localhost:6433", token, ca) as api: api.approvals.List(...)``.

Never add here: anything of the control plane; this file knows the protos only.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from pgleash.v1 import approvals_pb2_grpc, audit_pb2_grpc, grants_pb2_grpc, policy_pb2_grpc, sessions_pb2_grpc

__all__ = ["Api", "connect"]


class _WithToken(grpc.AuthMetadataPlugin):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, context: Any, callback: Any) -> None:
        callback((("authorization", f"Bearer {self._token}"),), None)


class Api:
    """The stubs of the five services over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.approvals = approvals_pb2_grpc.ApprovalServiceStub(channel)
        self.grants = grants_pb2_grpc.GrantServiceStub(channel)
        self.sessions = sessions_pb2_grpc.SessionServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)
        self.policy = policy_pb2_grpc.PolicyServiceStub(channel)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; streams end."""
        self.channel.close()


def connect(address: str, token: str, ca: Path | None = None) -> Api:
    """Connect with TLS, checked against ``ca`` (PEM; None: the system's authorities). Raises ``OSError`` when it can't be read.

    Nothing is sent before the first call. ``address`` is HOST:PORT; the certificate must name the host.
    """
    trusted = ca.read_bytes() if ca is not None else None
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(trusted), grpc.metadata_call_credentials(_WithToken(token))
    )
    return Api(grpc.secure_channel(address, credentials, options=[("grpc.max_receive_message_length", 64 << 20)]))

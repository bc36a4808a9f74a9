"""The API's server: the services behind access control, health and reflection, with TLS.

Never add here: what a service does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from control.grants.approvals import ApprovalDesk
from control.grants.dryrun import DryRunner
from control.grants.ledger import GrantLedger
from control.grants.registry import SessionRegistry
from control.identity.tokens import TokenVerifier
from control.policy.engine import PolicyEngine
from control.rpc.access import Access
from control.rpc.approvals import Approvals
from control.rpc.policies import Policies
from control.rpc.services import Auditing, Grants, Sessions
from pgleash.v1 import (
    approvals_pb2,
    approvals_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    grants_pb2,
    grants_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

__all__ = ["ApiServer"]

_OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
_SERVICES = (
    (approvals_pb2, "ApprovalService"),
    (grants_pb2, "GrantService"),
    (sessions_pb2, "SessionService"),
    (audit_pb2, "AuditService"),
    (policy_pb2, "PolicyService"),
)


class ApiServer:
    """The gRPC server. ``roles`` maps approver, operator and auditor to groups; ``tls`` is (certificate chain, key) in PEM."""

    def __init__(
        self,
        *,
        verifier: TokenVerifier,
        roles: Mapping[str, frozenset[str]],
        databases: frozenset[str],
        ledger: GrantLedger,
        desk: ApprovalDesk,
        dry_runs: DryRunner,
        registry: SessionRegistry,
        engine: PolicyEngine,
        reload: Callable[[], bool],
        audit_directory: Path,
        recording_directory: Path,
        public_key: Ed25519PublicKey,
        checkpoint: Callable[[], Awaitable[None]],
        tls: tuple[bytes, bytes] | None,
        reflection: bool,
    ) -> None:
        self._access = Access(verifier, roles)
        self._approvals = Approvals(desk, dry_runs)
        self._grants = Grants(ledger, databases)
        self._sessions = Sessions(registry, audit_directory, recording_directory)
        self._auditing = Auditing(audit_directory, public_key, checkpoint, registry)
        self._policies = Policies(engine, reload, audit_directory)
        self._tls = tls
        self._reflection = reflection
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def start(self, host: str, port: int) -> int:
        """Serve; returns the port. Raises ``OSError`` when it is taken."""
        server = grpc.aio.server(interceptors=[self._access], options=_OPTIONS)
        approvals_pb2_grpc.add_ApprovalServiceServicer_to_server(self._approvals, server)
        grants_pb2_grpc.add_GrantServiceServicer_to_server(self._grants, server)
        sessions_pb2_grpc.add_SessionServiceServicer_to_server(self._sessions, server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self._auditing, server)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._policies, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [module.DESCRIPTOR.services_by_name[name].full_name for module, name in _SERVICES]
        if self._reflection:
            grpc_reflection.enable_server_reflection([*names, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME], server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls is not None:
                certificate, key = self._tls
                bound = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"the API can't listen on {address}: {error}") from error
        await server.start()
        for name in ["", *names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return int(bound)

    async def stop(self, grace: float) -> None:
        """Stop; calls get ``grace`` seconds to end."""
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(grace)

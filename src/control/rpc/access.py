"""Who calls, and whether they may: bearer tokens, roles per method, and errors that tell no secrets.

Never add here: what a method does.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from control.grants.errors import DryRunRefused, InvalidArgument, NotAllowed, NotFound, WrongState
from control.identity.tokens import TokenVerifier
from pgwire.ports import Principal, Refused

__all__ = ["Access", "caller", "token_time_left"]

_log = logging.getLogger(__name__)
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")
_APPROVER, _OPERATOR, _AUDITOR = "approver", "operator", "auditor"
_ANY = frozenset({_APPROVER, _OPERATOR, _AUDITOR})
_READERS = frozenset({_OPERATOR, _AUDITOR})
ROLES: Mapping[str, frozenset[str]] = {
    "/pgleash.v1.ApprovalService/List": _ANY,
    "/pgleash.v1.ApprovalService/Get": _ANY,
    "/pgleash.v1.ApprovalService/Watch": _ANY,
    "/pgleash.v1.ApprovalService/Approve": frozenset({_APPROVER}),
    "/pgleash.v1.ApprovalService/Deny": frozenset({_APPROVER}),
    "/pgleash.v1.ApprovalService/DryRun": frozenset({_APPROVER}),
    "/pgleash.v1.ApprovalService/ListShapes": _ANY,
    "/pgleash.v1.ApprovalService/RevokeShape": frozenset({_APPROVER, _OPERATOR}),
    "/pgleash.v1.GrantService/Create": frozenset({_OPERATOR}),
    "/pgleash.v1.GrantService/Get": _READERS,
    "/pgleash.v1.GrantService/List": _READERS,
    "/pgleash.v1.GrantService/Revoke": frozenset({_OPERATOR}),
    "/pgleash.v1.SessionService/List": _READERS,
    "/pgleash.v1.SessionService/Get": _READERS,
    "/pgleash.v1.SessionService/Watch": _READERS,
    "/pgleash.v1.SessionService/Terminate": frozenset({_OPERATOR}),
    "/pgleash.v1.SessionService/Replay": frozenset({_AUDITOR}),
    "/pgleash.v1.AuditService/Query": frozenset({_AUDITOR}),
    "/pgleash.v1.AuditService/Verify": frozenset({_AUDITOR}),
    "/pgleash.v1.PolicyService/Explain": _ANY,
    "/pgleash.v1.PolicyService/Diff": frozenset({"auditor"}),
    "/pgleash.v1.PolicyService/Reload": frozenset({"operator"}),
}
_CODES: tuple[tuple[type[Exception], grpc.StatusCode, str], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    (DryRunRefused, grpc.StatusCode.FAILED_PRECONDITION, "DRY_RUN_REFUSED"),
    (WrongState, grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE"),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED"),
    (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
)
_principal: ContextVar[Principal] = ContextVar("principal")


def caller() -> Principal:
    """The principal of the call that runs."""
    return _principal.get()


def token_time_left() -> float:
    """Seconds until the caller's token expires."""
    return max(0.0, caller().expires_at - time.time())


class Access(grpc.aio.ServerInterceptor):
    """Lets a call through to its method when its token is good and one of its groups has a role for it."""

    def __init__(self, verifier: TokenVerifier, roles: Mapping[str, frozenset[str]]) -> None:
        self._verifier = verifier
        self._roles = roles

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        method = str(details.method)
        if handler is None or method.startswith(_OPEN):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._single(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _single(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            try:
                await self._admit(method, context)
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, method, error)

        return call

    def _streaming(self, method: str, behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                await self._admit(method, context)
                async for response in behaviour(request, context):
                    yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, method, error)

        return call

    async def _admit(self, method: str, context: Any) -> None:
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if len(given) != 1 or not isinstance(given[0], str) or not given[0].lower().startswith("bearer "):
            await _fail(context, grpc.StatusCode.UNAUTHENTICATED, "give a token as metadata: authorization: Bearer TOKEN", "NO_TOKEN")
        try:
            principal = await self._verifier.verify(str(given[0])[7:].strip())
        except Refused as refused:
            code = grpc.StatusCode.UNAVAILABLE if refused.sqlstate.startswith("08") else grpc.StatusCode.UNAUTHENTICATED
            await _fail(context, code, f"{refused.message}: {refused.hint}", "BAD_TOKEN")
            return
        needed = ROLES.get(method, frozenset())
        held = {role for role, groups in self._roles.items() if groups & principal.groups}
        if not needed & held:
            who = " or ".join(sorted(needed)) or "nobody"
            await _fail(context, grpc.StatusCode.PERMISSION_DENIED, f"this needs the role {who}", "NO_ROLE")
        _principal.set(principal)


async def _abort(context: Any, method: str, error: Exception) -> None:
    for kind, code, reason in _CODES:
        if isinstance(error, kind):
            await _fail(context, code, str(error), reason)
    if isinstance(error, Refused):
        code = grpc.StatusCode.UNAVAILABLE if error.sqlstate[:2] in ("08", "57", "58") else grpc.StatusCode.INVALID_ARGUMENT
        await _fail(context, code, error.message, error.sqlstate)
    number = secrets.token_hex(4)
    _log.error("%s failed (%s)", method, number, exc_info=error)
    await _fail(context, grpc.StatusCode.INTERNAL, f"the gateway failed; its log has the rest under {number}", "INTERNAL")


async def _fail(context: Any, code: grpc.StatusCode, message: str, reason: str) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="pgleash"))
    status = rpc_status.to_status(status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message, details=[detail]))
    await context.abort(code, message, trailing_metadata=status.trailing_metadata)

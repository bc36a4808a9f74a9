"""A held statement's way: asked for, waited for while its client is told so, and let go only as what was approved.

Its bytes stay where the client's message lies, in the leg's buffer; nothing behind it moves. Never add here: who approves, or
what makes a statement held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pgwire.errors import notice_response
from pgwire.hot.relay import Link
from pgwire.ports import Approvals, Decision, Effect, HoldTerms, PendingApproval, Refused, SessionInfo, SessionPolicy, Statement, Verdict

__all__ = ["Holding"]

_CANCELLED = "canceling statement due to user request; it was held and has not run"


class Holding:
    """One held statement of a session. ``remind`` is the time between notices in seconds, ``why_over`` tells why the session ends."""

    __slots__ = ("_approvals", "_cancelled", "_info", "_policy", "_remind", "_why_over")

    def __init__(
        self, approvals: Approvals, policy: SessionPolicy, info: SessionInfo, remind: float, why_over: Callable[[], str | None]
    ) -> None:
        self._approvals = approvals
        self._policy = policy
        self._info = info
        self._remind = remind
        self._why_over = why_over
        self._cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def cancel(self) -> bool:
        """The client cancels. False when it is too late: it has been cancelled, or is on its way."""
        if self._cancelled.done():
            return False
        self._cancelled.set_result("cancelled by the client")
        return True

    async def decide(self, link: Link, statement: Statement, since: float | None) -> Verdict:
        """The verdict by which the statement runs now, or a denial. ``since``: when its transaction began (Unix seconds).

        Raises ``Refused`` when it was not approved.
        """
        return await self._decide(link, replace(statement, counted=True, fresh=True), None if statement.status == "I" else since)

    async def _decide(self, link: Link, statement: Statement, since: float | None) -> Verdict:
        # The catalog is read again before anybody is asked, so that they decide on what is.
        verdict = await self._policy.judge(statement)
        if verdict.effect is not Effect.HOLD:
            return verdict
        if await self._approvals.take(self._info, statement, verdict):
            return verdict
        pending = await self._approvals.ask(self._info, statement, verdict, since)
        if (verdict.hold or HoldTerms()).defer:
            raise _deferred(pending, verdict, self._info.id)
        sent = False
        why = ""
        try:
            decision = await self._wait(link, pending, verdict)
            if decision.state != "APPROVED":
                why = "cancelled by the client"
                raise _not_approved(pending, decision, verdict, self._info.id)
            now = await self._policy.judge(statement)
            # From here on nothing waits for the network: what is as it was is sent.
            if why := _changed(verdict, now, statement, link):
                await pending.void(why)
                if now.effect is Effect.DENY:
                    return replace(now, detail={**now.detail, "approval": pending.name, "state": "VOIDED"})
                raise _void(pending, why, verdict, self._info.id)
            if self._cancelled.done():
                why = "cancelled by the client"
                raise _not_approved(pending, Decision("CANCELLED"), verdict, self._info.id)
            sent = await pending.use()
            if not sent:
                raise _not_approved(pending, Decision("CANCELLED"), verdict, self._info.id)
            return now
        finally:
            if not sent:
                over = self._why_over()
                reason = why or (f"the session ended: {over}" if over else "the session ended")
                await asyncio.shield(pending.withdraw(reason))

    async def _wait(self, link: Link, pending: PendingApproval, verdict: Verdict) -> Decision:
        waiting = asyncio.ensure_future(pending.wait())
        try:
            seconds = max(0, round(pending.expires_at - time.time()))
            link.tell_client(
                notice_response(
                    "01000",
                    f"statement held: waiting for {pending.name}",
                    detail="; ".join(verdict.reasons) or verdict.rule,
                    hint=f"It runs once approved; nobody deciding for {seconds} s refuses it.",
                )
            )
            either: set[asyncio.Future[Any]] = {waiting, self._cancelled}
            while True:
                done, _ = await asyncio.wait(either, timeout=self._remind, return_when=asyncio.FIRST_COMPLETED)
                if self._cancelled in done:
                    return Decision("CANCELLED")
                if waiting in done:
                    return waiting.result()
                left = max(0, round(pending.expires_at - time.time()))
                link.tell_client(notice_response("01000", f"statement still held: waiting for {pending.name}, {left} s more"))
        finally:
            waiting.cancel()


def _changed(asked: Verdict, now: Verdict, statement: Statement, link: Link) -> str:
    """Why what would run now is not what was approved; empty: it is."""
    if link.status != statement.status:
        return f"the transaction status has changed from {statement.status} to {link.status}"
    if now.effect is Effect.DENY:
        return f"the policy denies it now: {now.message or now.rule}"
    if now.effect is Effect.ALLOW:
        return ""
    if (now.rule, now.hold) != (asked.rule, asked.hold):
        return "the policy asks for another approval of it now"
    if now.facts != asked.facts:
        return "what it would do has changed"
    if asked.binding is None or now.binding is None:
        return "" if asked.binding is now.binding else "what it is bound to is not known"
    before, after = asked.binding.standing, now.binding.standing
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} changed since it was asked for" if names else ""


def _detail(pending: PendingApproval, verdict: Verdict, state: str, session: str) -> dict[str, Any]:
    return {
        "class": "approval",
        "approval": pending.name,
        "rule": verdict.rule,
        "reasons": list(verdict.reasons),
        "matched": verdict.detail.get("matched", []),
        "policy_version": verdict.policy_version,
        "request_id": f"{session}/{pending.name}",
        "state": state,
    }


def _deferred(pending: PendingApproval, verdict: Verdict, session: str) -> Refused:
    detail = {**_detail(pending, verdict, pending.state, session), "mode": "defer"}
    if pending.state == "DENIED":
        hint = pending.comment or "Ask the approver what would be acceptable."
        return Refused("42501", f"the statement was denied: {pending.name}", hint=hint, detail=detail)
    hint = (
        f"It was put before the approvers. Run the same statement again when it is approved: "
        f"SELECT state FROM pgleash.approvals WHERE name = '{pending.name}'."
    )
    detail["expires_at"] = round(pending.expires_at, 3)
    return Refused("42501", f"the statement needs an approval first: {pending.name}", hint=hint, detail=detail)


def _void(pending: PendingApproval, why: str, verdict: Verdict, session: str) -> Refused:
    detail = {**_detail(pending, verdict, "VOIDED", session), "reasons": [why]}
    hint = "Run the statement again; it is asked for anew."
    return Refused("57014", f"the approval {pending.name} is void: {why}", hint=hint, detail=detail)


def _not_approved(pending: PendingApproval, decision: Decision, verdict: Verdict, session: str) -> Refused:
    detail = _detail(pending, verdict, decision.state, session)
    if decision.state == "DENIED":
        if decision.approver:
            detail["approver"] = decision.approver
        hint = decision.comment or "Ask the approver what would be acceptable."
        return Refused("42501", f"the statement was denied by {decision.approver or 'an approver'}", hint=hint, detail=detail)
    if decision.state == "EXPIRED":
        hint = f"Ask an approver to look at {pending.name} sooner, then run the statement again."
        return Refused("57014", "nobody decided on the statement in time; it was not run", hint=hint, detail=detail)
    if decision.state == "VOIDED":
        return _void(pending, decision.comment or "it is not what was asked for any more", verdict, session)
    return Refused("57014", _CANCELLED, detail=detail)

"""What C asks while a session serves: verdicts, holds, mask plans, clean diagnostics, the end.

The event handler answers at once what needs no waiting, and starts one task for what does. There is at most one
statement under decision at a time: what stands behind it waits on the wire.

Never add here: socket calls, or opening and closing of the session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from pgwire.diagnostics import scrub
from pgwire.errors import error_response, from_refused, syntax_error
from pgwire.holding import Holding
from pgwire.hot.masking import MaskPlan
from pgwire.hot.relay import ADMIT, BROKEN, DESCRIBE, FILTER, GONE, SETTLED, Link
from pgwire.keeping import Clock, kept
from pgwire.messages import row_description, setting
from pgwire.names import SessionNames
from pgwire.plans import compile_plan
from pgwire.ports import Approvals, Audit, Effect, Inquiries, Inquiry, Refused, SessionInfo, SessionPolicy, Statement, Verdict

__all__ = ["Serving"]

_log = logging.getLogger(__name__)
_PROTOCOLS = {b"Q": "simple", b"P": "parse", b"E": "execute", b"F": "function"}
_UNAUDITED = "the audit log can't be written; the statement was not sent"


class Interrupts(Protocol):
    """The session that this one serves."""

    def interrupt(self) -> None:
        """Cancel what runs on the server."""
        ...


class Serving:
    """The answers to one link. ``over`` resolves to the reason when the session is to end."""

    __slots__ = (
        "_approvals", "_audit", "_clock", "_holding", "_info", "_inquiries", "_mask_key", "_names", "_policy", "_remind", "_settling",
        "_since", "_tasks", "last_words", "link", "over", "owner",
    )  # fmt: skip

    def __init__(
        self,
        approvals: Approvals,
        audit: Audit,
        policy: SessionPolicy,
        info: SessionInfo,
        mask_key: bytes,
        remind: float = 30.0,
        inquiries: Inquiries | None = None,
    ) -> None:
        self.link: Link | None = None
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.last_words = b""
        self._approvals = approvals
        self._audit = audit
        self._policy = policy
        self._info = info
        self._inquiries = inquiries
        self._mask_key = mask_key
        self._tasks: set[asyncio.Task[None]] | None = None  # made when there is one
        self._remind = remind
        self._holding: Holding | None = None  # while a statement is held
        self._since: float | None = None  # when the transaction began
        self._settling: tuple[Statement, Verdict] | None = None
        self._names = SessionNames()
        self._clock: Clock | None = None  # made when statements have to keep a time
        self.owner: Interrupts | None = None  # who cancels what runs on the server

    def _interrupt(self) -> None:
        if self.owner is not None:
            self.owner.interrupt()

    # -- called from the reactor ---------------------------------------------------------------------------------

    def on_event(self, bits: int, from_client: bool) -> None:
        """The link's handler. Must not wait."""
        link = self.link
        if link is None:
            return
        if bits & SETTLED:
            self._settled(link)
        if bits & FILTER:
            self._filter(link)
        if bits & ADMIT:
            self._start(self._decide(link))
        if bits & DESCRIBE:
            self._start(self._plan(link))
        if bits & BROKEN:
            sqlstate, why = link.problem or ("08P01", "protocol violation")
            self.finish(sqlstate, why)
        elif bits & GONE:
            self._gone(link, from_client)

    def _gone(self, link: Link, from_client: bool) -> None:
        if from_client and self._holding is None and link.goodbye:
            return  # what it sent before is done first
        if from_client:
            self._end("the client said goodbye" if link.quit else "the client's connection was lost", b"")
        elif link.quit:
            self._end("the client said goodbye", b"")
        elif link.told_why:
            self._end("the database server ended the session", b"")
        else:
            self.finish("08006", "the database server closed the connection unexpectedly")

    def _filter(self, link: Link) -> None:
        request = link.filter_request()
        if request is None:
            return
        kind, body = request
        try:
            clean = scrub(kind, body)
        except Exception:
            _log.exception("a diagnostic message could not be cleaned")
            self.finish("XX000", "internal error in the gateway; the session ends")
            return
        link.filtered(kind + (len(clean) + 4).to_bytes(4, "big") + clean)

    def _settled(self, link: Link) -> None:
        settling, self._settling = self._settling, None
        if settling is not None:
            statement, verdict = settling
            succeeded = link.settled()
            self._policy.settled(statement, succeeded)
            self._policy.transaction_status(link.status)
            self._since = None if link.status == "I" else self._since or time.time()
            self._names.change(link, verdict.names, link.settled_results(), succeeded)
            self.follow_policy()
        link.resume()

    def follow_policy(self) -> None:
        """Use the policy as it is now for what comes next."""
        if self.link is not None:
            if (shortest := self._policy.shortest) is not None:
                if self._clock is None:
                    self._clock = Clock(self.link, self._interrupt, self.finish)
                self._clock.expect(shortest)
            self.link.set_policy(self._policy.key, self._policy.scrubs, self._policy.budget, self._policy.typed)

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, sqlstate: str, message: str) -> None:
        """End the session with a FATAL."""
        self._end(message, error_response("FATAL", sqlstate, message))

    def _end(self, reason: str, last_words: bytes) -> None:
        if not self.over.done():
            self.last_words = last_words
            self.over.set_result(reason)

    async def stop(self) -> None:
        """Take back what is waited for: nobody can approve it any more."""
        if self._clock is not None:
            self._clock.stop()
        tasks = list(self._tasks or ())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cancel_hold(self) -> bool:
        """The client cancels. True when it was a held statement."""
        return self._holding is not None and self._holding.cancel()

    def _why_over(self) -> str | None:
        return self.over.result() if self.over.done() else None

    # -- what needs waiting --------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        assert self._tasks is not None
        self._tasks.discard(task)
        if not self._tasks:
            self._tasks = None

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("session %s failed", self._info.id)
            self.finish("XX000", "internal error in the gateway; the session ends")

    async def _decide(self, link: Link) -> None:
        request = link.request()
        if request is None:
            return
        kind, text, name, portal, parameters, formats, types, problem = request
        if problem == "audit":
            link.refuse(error_response("ERROR", "58030", _UNAUDITED, hint="Ask the gateway's operator."))
            return
        if problem == "name":
            link.refuse(error_response("ERROR", "22021", "a name is not valid UTF-8"))
            return
        if problem == "portal":
            link.refuse(error_response("ERROR", "34000", f'portal "{portal}" does not exist'))
            return
        statement = Statement(
            text, _PROTOCOLS[kind], name, portal, parameters, formats, link.status, parameter_types=types, named=link.named
        )
        # A text that asks the gateway itself is judged as what the server gets for it.
        inquiry = self._inquiries.read(text) if self._inquiries is not None and kind != b"F" else None
        if inquiry is not None:
            statement = replace(statement, text=inquiry.text)
        verdict = await self._judged(link, statement, self._policy.judge(statement))
        if verdict is None:
            return
        self.follow_policy()
        try:
            if verdict.observed and kind != b"P":
                self._note_observed(statement, verdict)
        except Refused as refused:
            _log.error("what was observed could not be audited: %s", refused)
            link.refuse(error_response("ERROR", "58030", _UNAUDITED, hint="Ask the gateway's operator."))
            return
        if verdict.effect is Effect.DENY:
            self._deny(link, statement, verdict)
        elif inquiry is not None:
            await self._inquire(link, text, statement, inquiry, verdict)
        elif kind == b"P":
            # A held statement may be prepared: nothing runs before it is executed, and then it is asked for.
            runs = verdict.effect is Effect.ALLOW and verdict.cacheable
            link.admit(text, runs, verdict.masks, runs, False, verdict.any_literals, False, kept(verdict))
        elif verdict.effect is Effect.ALLOW:
            self._admit(link, statement, verdict)
        else:
            await self._hold(link, statement)

    async def _inquire(self, link: Link, text: bytes, statement: Statement, inquiry: Inquiry, verdict: Verdict) -> None:
        """Let a text pass that asks the gateway: the server is told the answers before it runs."""
        assert self._inquiries is not None
        if verdict.effect is not Effect.ALLOW:
            hint = "Ask for it in a SELECT of its own."
            self._deny(link, statement, _unjudged("0A000", "what asks the gateway can't be part of a held statement", hint))
            return
        try:
            told = {"text": text.decode("utf-8", "replace"), "sent": inquiry.text.decode("utf-8", "replace"), "session": self._info.id}
            self._audit.record("statement.rewritten", told, self._info.number)
        except Refused:
            link.refuse(error_response("ERROR", "58030", _UNAUDITED, hint="Ask the gateway's operator."))
            return
        runs = statement.protocol != "parse"
        ahead, replies = b"", 0
        if runs and link.status != "E":
            for name, value in (await self._inquiries.answer(self._info, inquiry)).items():
                messages, count = setting(name, value)
                ahead, replies = ahead + messages, replies + count
        if runs and verdict.settles:
            self._settling = (statement, verdict)
        settles = runs and verdict.settles
        link.admit(text, runs, verdict.masks, False, settles, False, False, kept(verdict), inquiry.text, ahead, replies)

    def _admit(self, link: Link, statement: Statement, verdict: Verdict) -> None:
        if verdict.settles:
            self._settling = (statement, verdict)
        cacheable = verdict.effect is Effect.ALLOW and verdict.cacheable
        link.admit(
            statement.text, True, verdict.masks, cacheable, verdict.settles, verdict.any_literals, verdict.copies_in,
            kept(verdict),
        )  # fmt: skip

    def _deny(self, link: Link, statement: Statement, verdict: Verdict) -> None:
        receipt = self._note_denied(statement, verdict)
        if not receipt:
            link.refuse(error_response("ERROR", "58030", _UNAUDITED, hint="Ask the gateway's operator."))
            return
        reasons = {"class": "gateway", "rule": verdict.rule, "reasons": list(verdict.reasons), "matched": []}
        detail = {**reasons, **verdict.detail, "policy_version": verdict.policy_version, "request_id": f"{self._info.id}/{receipt}"}
        if verdict.position:
            link.refuse(syntax_error(verdict.sqlstate, verdict.message, verdict.position))
            return
        message = verdict.message or "the statement is denied by policy"
        link.refuse(from_refused(Refused(verdict.sqlstate, message, hint=verdict.hint, detail=detail), fatal=False))

    def _note_observed(self, statement: Statement, verdict: Verdict) -> None:
        """What rules in observe mode would have said. Raises ``Refused`` when it can't be audited: then nothing is sent."""
        fields = {
            "session": self._info.id,
            "subject": self._info.principal.subject,
            "text": statement.text.decode("utf-8", "replace"),
            "effect": verdict.effect.value,
            "rule": verdict.rule,
            "reasons": list(verdict.observed),
            "policy_version": verdict.policy_version,
        }
        self._audit.record("statement.observed", fields, self._info.number)

    def _note_denied(self, statement: Statement, verdict: Verdict) -> int:
        """The receipt; 0: it can't be audited."""
        try:
            return self._audit.record(
                "statement.denied",
                {
                    "session": self._info.id,
                    "subject": self._info.principal.subject,
                    "text": statement.text.decode("utf-8", "replace"),
                    "rule": verdict.rule,
                    "reasons": [*verdict.reasons, *(word for word in verdict.observed if word not in verdict.reasons)],
                    "matched": verdict.detail.get("matched", []),
                    "policy_version": verdict.policy_version,
                    "sqlstate": verdict.sqlstate,
                },
                self._info.number,
            )
        except Refused as refused:
            _log.error("a denial could not be audited: %s", refused)
            return 0

    async def _hold(self, link: Link, statement: Statement) -> None:
        self._holding = Holding(self._approvals, self._policy, self._info, self._remind, self._why_over)
        try:
            verdict = await self._judged(link, statement, self._holding.decide(link, statement, self._since), held=True)
        finally:
            self._holding = None
        if verdict is None:
            return
        self.follow_policy()
        if verdict.effect is Effect.DENY:
            self._deny(link, statement, verdict)
        else:
            self._admit(link, statement, verdict)

    async def _judged(self, link: Link, statement: Statement, judging: Awaitable[Verdict], held: bool = False) -> Verdict | None:
        """The verdict, or None: there is none, and the statement has been refused."""
        try:
            return await judging
        except Refused as refused:
            if held:  # what became of a hold is the approvals' to audit
                self.follow_policy()
                link.refuse(from_refused(refused, fatal=False))
            else:
                self._deny(link, statement, _unjudged(refused.sqlstate, refused.message, refused.hint))
        except Exception:
            _log.exception("a statement could not be judged")
            self._deny(
                link, statement, _unjudged("42501", "the statement could not be judged and is denied", "Ask the gateway's operator.")
            )
        return None

    async def _plan(self, link: Link) -> None:
        request = link.describe_request()
        if request is None:
            return
        text, index, body = request
        plan: MaskPlan | None
        try:
            columns = row_description(body)
            if self._inquiries is not None and (inquiry := self._inquiries.read(text)) is not None:
                text = inquiry.text
            rules = await self._policy.columns(Statement(text, "simple", status=link.status, named=link.named), index, columns)
            if len(rules) != len(columns):
                raise ValueError("the policy answered for another number of columns")
            plan = compile_plan(columns, rules, self._mask_key)
        except Refused as refused:
            self.finish(refused.sqlstate, refused.message)
            return
        link.set_plan(plan)


def _unjudged(sqlstate: str, message: str, hint: str) -> Verdict:
    detail = {"class": "gateway", "rule": "", "reasons": [message], "matched": []}
    return Verdict(Effect.DENY, (message,), sqlstate=sqlstate, message=message, hint=hint, detail=detail)

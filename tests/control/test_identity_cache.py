"""What is remembered of logins: tokens until they expire or their issuer's keys change, grants until one is made or ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest

from control.grants.ledger import GrantLedger
from control.identity.keys import KeySet
from control.identity.tokens import TokenVerifier, TrustedIssuer
from control.store.database import Store
from kit.issuer import Issuer
from pgwire.ports import Principal, Refused, Scope


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every token whose signature was checked."""
    seen: list[str] = []
    real = jwt.decode

    def counted(token: str, *rest: Any, **more: Any) -> Any:
        if rest:
            seen.append(token)
        return real(token, *rest, **more)

    monkeypatch.setattr(jwt, "decode", counted)
    return seen


def verifier(issuer: Issuer, clock: Clock) -> TokenVerifier:
    return TokenVerifier([TrustedIssuer(issuer.url, issuer.audience)], clock)


async def test_a_token_is_checked_once(issuer: Issuer, decoded: list[str]) -> None:
    checks = verifier(issuer, Clock())
    try:
        token, other = issuer.mint(subject="a", groups=["g"]), issuer.mint(subject="b", groups=["g"])
        first = await checks.verify(token)
        assert [await checks.verify(token) for _ in range(5)] == [first] * 5
        assert (await checks.verify(other)).subject == "b"
        assert decoded == [token, other]
        # One character more or less is another token.
        for changed in (token[:-1], token + "A", token[:-4] + "AAAA", " " + token):
            with pytest.raises(Refused):
                await checks.verify(changed)
    finally:
        await checks.close()


async def test_it_expires_all_the_same(issuer: Issuer, decoded: list[str]) -> None:
    clock = Clock()
    checks = verifier(issuer, clock)
    try:
        token = issuer.mint(subject="a", lifetime=100)
        await checks.verify(token)
        clock.ahead = 100 + 20
        await checks.verify(token)
        clock.ahead = 100 + 31
        for _ in range(2):
            with pytest.raises(Refused, match="expired"):
                await checks.verify(token)
    finally:
        await checks.close()


async def test_a_key_that_its_issuer_takes_back_is_good_no_more(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    published: dict[str, Any] = {}
    now = [0.0]
    real = KeySet._download

    async def download(self: KeySet) -> tuple[Mapping[str, Any], ...]:
        return published["keys"] if "keys" in published else await real(self)

    monkeypatch.setattr(KeySet, "_download", download)
    checks = verifier(issuer, Clock())
    checks._keys[issuer.url]._clock = lambda: now[0]
    try:
        token = issuer.mint(subject="a")
        await checks.verify(token)
        published["keys"] = ()
        # The set is renewed in the background at half its life: from then on the token is checked anew, and refused.
        now[0] = 301.0
        await checks.verify(token)
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match="does not publish"):
            await checks.verify(token)
    finally:
        await checks.close()


# -- grants ----------------------------------------------------------------------------------------------------------


class NoAudit:
    def record(self, kind: str, fields: Mapping[str, Any], session: int = 0) -> int:
        return 1


async def test_a_grant_is_looked_up_once_and_its_end_is_seen_at_once(tmp_path: Path) -> None:
    store, clock, runs = Store(tmp_path / "s.db"), Clock(), 0
    real = store.run

    async def counted(work: Any) -> Any:
        nonlocal runs
        runs += 1
        return await real(work)

    store.run = counted  # type: ignore[method-assign]
    ledger = GrantLedger(store, NoAudit(), lambda principal, database: None, clock)
    bob, boss = Principal("bob"), Principal("boss")
    try:
        with pytest.raises(Refused):
            await ledger.open(bob, "shop")
        first = await ledger.create(by=boss, subject="bob", scope=Scope("shop"), duration=60, reason="")
        runs = 0
        assert {(await ledger.open(bob, "shop")).id for _ in range(5)} == {first.id}
        assert runs == 1
        with pytest.raises(Refused):
            await ledger.open(bob, "other")
        with pytest.raises(Refused):
            await ledger.open(Principal("eve"), "shop")
        clock.ahead = 1
        second = await ledger.create(by=boss, subject="bob", scope=Scope("shop"), duration=60, reason="")
        assert (await ledger.open(bob, "shop")).id == second.id
        await ledger.revoke(second.id, by=boss)
        assert (await ledger.open(bob, "shop")).id == first.id
        clock.ahead = 61
        with pytest.raises(Refused):
            await ledger.open(bob, "shop")
    finally:
        await store.close()

"""An issuer's public keys: fetched over HTTP, kept, renewed ahead of time, and never fetched twice at once.

A key set is renewed in the background at half its life; when the issuer cannot be reached the last set is used for
a while longer. A key id that nobody has seen makes one fetch per ten seconds at most, however many callers ask.

Never add here: claims, audiences or anything else that tokens say; a blocking call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

__all__ = ["KeySet", "KeysUnavailable", "http_client", "is_acceptable_url"]

_LIFE = 600.0  # seconds a set is good without asking again
_STALE = 6 * 3600.0  # seconds a set is used while the issuer cannot be reached
_UNKNOWN_KEY_PAUSE = 10.0  # seconds between fetches caused by unknown key ids
_FAILURE_PAUSE = 2.0  # seconds during which a failure is remembered
_DEADLINE = 8.0  # seconds for one whole fetch, discovery included
_LARGEST_BODY = 256 * 1024  # bytes
_MOST_KEYS = 200
_KEY_TYPES = {"RS": ("RSA", None), "PS": ("RSA", None), "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521")}


class KeysUnavailable(Exception):
    """The issuer's keys could not be had; the text says why and is for the log."""


def http_client() -> httpx.AsyncClient:
    """A client with short timeouts that follows no redirects and goes straight to loopback addresses."""
    direct: dict[str, httpx.AsyncBaseTransport | None] = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}
    return httpx.AsyncClient(
        timeout=httpx.Timeout(5.0, connect=3.0),
        follow_redirects=False,
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=4),
        mounts=direct,
        headers={"Accept": "application/json"},
    )


def is_acceptable_url(url: str) -> bool:
    """Whether keys may be fetched from ``url``: https anywhere, plain http on loopback only."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    if parts.scheme != "http" or not parts.hostname:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(parts.hostname).is_loopback
    return parts.hostname == "localhost"


class KeySet:
    """The keys of one issuer. ``jwks_uri`` None means: ask the issuer's discovery document where they are."""

    def __init__(
        self, issuer: str, jwks_uri: str | None, client: Callable[[], httpx.AsyncClient], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._jwks_uri = jwks_uri
        self._client = client
        self._clock = clock
        self._keys: tuple[Mapping[str, Any], ...] = ()
        self._version = 0
        self._loaded_at = float("-inf")
        self._asked_at = float("-inf")
        self._failed_at = float("-inf")
        self._failure = ""
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key that may have signed with ``algorithm``; None when the issuer publishes no such key.

        Without a key id the answer is a key only if exactly one fits. Raises ``KeysUnavailable``.
        """
        age = self._clock() - self._loaded_at
        if age > _LIFE:
            try:
                await self._renew()
            except KeysUnavailable:
                if age > _STALE:
                    raise
        elif age > _LIFE / 2 and self._clock() - self._asked_at > _UNKNOWN_KEY_PAUSE:
            self._start()
        key = self._pick(key_id, algorithm)
        if key is None and (self._fetching is not None or self._clock() - self._asked_at > _UNKNOWN_KEY_PAUSE):
            with contextlib.suppress(KeysUnavailable):
                await self._renew()
            key = self._pick(key_id, algorithm)
        return key

    @property
    def version(self) -> int | None:
        """Rises when the issuer publishes other keys; None when the set has to be fetched before it may be relied on.

        What has been checked with a key of one version need not be checked again while the version stays.
        """
        now = self._clock()
        age = now - self._loaded_at
        if age > _LIFE:
            return None
        if age > _LIFE / 2 and now - self._asked_at > _UNKNOWN_KEY_PAUSE:
            self._start()
        return self._version

    async def close(self) -> None:
        """Give up a fetch that is under way."""
        task, self._fetching = self._fetching, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KeysUnavailable):
                await task

    def _pick(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if _fits(key, algorithm) and (key_id is None or key.get("kid") == key_id)]
        if len(fitting) != 1:
            return None
        try:
            return jwt.PyJWK(dict(fitting[0]), algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            return None

    async def _renew(self) -> None:
        if self._fetching is None and self._clock() - self._failed_at < _FAILURE_PAUSE:
            raise KeysUnavailable(self._failure)
        # Shielded: one caller that gives up must not take the fetch away from the others.
        await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(), name=f"keys of {self._issuer}")
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: asyncio.Task[None]) -> None:
        if self._fetching is task:
            self._fetching = None
        if not task.cancelled():
            task.exception()

    async def _fetch(self) -> None:
        self._asked_at = self._clock()
        try:
            async with asyncio.timeout(_DEADLINE):
                keys = await self._download()
        except KeysUnavailable as error:
            self._failure = str(error)
            self._failed_at = self._clock()
            raise
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            self._failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._failed_at = self._clock()
            raise KeysUnavailable(self._failure) from error
        if keys != self._keys:
            self._keys = keys
            self._version += 1
        self._loaded_at = self._clock()

    async def _download(self) -> tuple[Mapping[str, Any], ...]:
        uri = self._jwks_uri
        if uri is None:
            where = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
            document = await self._get(where)
            if document.get("issuer") != self._issuer:
                raise KeysUnavailable(f"{where} speaks for another issuer: {document.get('issuer')!r}")
            uri = document.get("jwks_uri")
        if not isinstance(uri, str) or not is_acceptable_url(uri):
            raise KeysUnavailable(f"keys are fetched by https (http on loopback only), not from {uri!r}")
        keys = (await self._get(uri)).get("keys")
        if not isinstance(keys, list) or len(keys) > _MOST_KEYS:
            raise KeysUnavailable(f"{uri} holds no list of at most {_MOST_KEYS} keys")
        return tuple(key for key in keys if isinstance(key, dict) and key.get("use", "sig") in ("sig", "jwt-svid"))

    async def _get(self, url: str) -> dict[str, Any]:
        if not is_acceptable_url(url):
            raise KeysUnavailable(f"keys are fetched by https (http on loopback only), not from {url}")
        body = bytearray()
        async with self._client().stream("GET", url) as answer:
            if answer.status_code != 200:
                raise KeysUnavailable(f"{url} answered {answer.status_code}")
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _LARGEST_BODY:
                    raise KeysUnavailable(f"{url} sent more than {_LARGEST_BODY} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise KeysUnavailable(f"{url} sent no JSON") from error
        if not isinstance(document, dict):
            raise KeysUnavailable(f"{url} sent no JSON object")
        return document


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    if key.get("alg") not in (None, algorithm):
        return False
    if algorithm == "EdDSA":
        return key.get("kty") == "OKP" and key.get("crv") in ("Ed25519", "Ed448")
    kind, curve = _KEY_TYPES.get(algorithm) or _KEY_TYPES.get(algorithm[:2], ("", None))
    return key.get("kty") == kind and (curve is None or key.get("crv") == curve)

"""Signed checkpoints: an Ed25519 signature over the head of the chain, once per interval, in ``checkpoints.jsonl``.

The chain alone proves order and wholeness up to any record; the newest checkpoint proves that nothing was cut off up to it.
Source of the signature: RFC 8032.

Never add here: reading of records.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key

__all__ = ["FILE", "Checkpointer", "load_or_create_key", "signed_bytes"]

FILE = "checkpoints.jsonl"


class _Journal(Protocol):
    @property
    def journal_id(self) -> bytes: ...
    def head(self) -> tuple[int, bytes, int, int]: ...
    def sync(self) -> int: ...


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """The key in ``path`` (PEM); made with mode 0600, its public half beside it as ``.pub``, when there is none.

    Raises ``ValueError`` when the file holds something else, ``OSError``.
    """
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            os.fsync(file.fileno())
        path.with_name(path.name + ".pub").write_bytes(public)
        return key
    loaded = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(loaded, Ed25519PrivateKey):
        raise ValueError(f"{path}: not an Ed25519 private key")
    return loaded


def signed_bytes(checkpoint: dict[str, Any]) -> bytes:
    """What is signed: the checkpoint without its signature, as JSON with sorted keys and no spaces."""
    return json.dumps({k: v for k, v in checkpoint.items() if k != "signature"}, sort_keys=True, separators=(",", ":")).encode()


class Checkpointer:
    """Signs the head of one journal."""

    def __init__(self, journal: _Journal, directory: Path, key: Ed25519PrivateKey) -> None:
        self._journal = journal
        self._path = directory / FILE
        self._key = key
        self._last = 0
        self._lock = threading.Lock()

    def write(self) -> None:
        """Make everything durable and sign it; nothing when nothing is new. Blocks for the disk. Raises ``OSError``."""
        with self._lock:
            sequence, digest, segment, offset = self._journal.head()
            if sequence == self._last:
                return
            self._journal.sync()
            checkpoint: dict[str, Any] = {
                "journal": self._journal.journal_id.hex(),
                "sequence": sequence,
                "hash": digest.hex(),
                "segment": segment,
                "offset": offset,
                "time_us": time.time_ns() // 1000,
            }
            checkpoint["signature"] = self._key.sign(signed_bytes(checkpoint)).hex()
            line = json.dumps(checkpoint, sort_keys=True, separators=(",", ":")) + "\n"
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._last = sequence

    async def run(self, interval: float) -> None:
        """Write one every ``interval`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await asyncio.to_thread(self.write)

"""The SQLite file behind grants, approvals and sessions.

All access runs on one thread, one transaction at a time, so a change is durable (WAL with synchronous=FULL)
before its caller goes on, and no caller ever meets a locked database. Never add here: SQL of the tables
(their owners have it) or a second connection.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from control.store.schema import STEPS

__all__ = ["Store", "StoreError"]

T = TypeVar("T")


class StoreError(Exception):
    """The file can't be opened or is from a newer release. The message names the file and what would help."""


class Store:
    """An open store. Opening makes the file (mode 0600, its directory 0700) and brings its tables up to date."""

    def __init__(self, path: str | Path) -> None:
        """Open ``path``. Blocks briefly, so call it before serving. Raises ``StoreError``."""
        self.path = Path(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._closed = False
        try:
            self._connection = self._thread.submit(_opened, self.path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` as one transaction and return its result once that is on disk.

        An exception rolls back and is raised here. Cancelling the caller does not undo a transaction: what was
        handed over is carried through.
        """
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work))

    async def close(self) -> None:
        """Wait for what is under way, then close the file. May be called more than once."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._thread.shutdown()

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result


def _opened(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of the main file, so making that one first is enough.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: {error}: store.path must be a file in a directory that the gateway may write") from error
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        _bring_up_to_date(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(f"{path}: {error}: store.path must be a store's file, used by one gateway") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(STEPS):
        raise StoreError(f"{path}: has shape {found}, this release knows {len(STEPS)}: run the newer release that wrote it")
    for number, step in enumerate(STEPS[found:], start=found + 1):
        # executescript commits on its own, so the step brings its own transaction and carries its number in it.
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{step}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

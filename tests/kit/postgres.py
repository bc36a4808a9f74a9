"""The tests' door to a real PostgreSQL server; the server itself is the demo's."""

from __future__ import annotations

from pgleash.demo.postgres import PostgresServer, binaries, free_port

__all__ = ["PostgresServer", "binaries", "free_port"]

"""A gateway that stands in nobody's way: one administrator, every rule open, and the server's superuser behind it.

What is left between a driver and PostgreSQL is then the wire and what the gateway refuses by design.
Never add here: a driver, or a rule that narrows something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgleash.demo.postgres import PostgresServer
from pgleash.demo.stage import Stage

__all__ = ["ADMINISTRATOR", "POLICY", "permissive_stage"]

ADMINISTRATOR = "postgres"
"""The subject of the token; the same as the server's login, since tests compare ``current_user`` with what they connect as."""

POLICY = """\
version: 1
rules:
  - name: everything
    who: {groups: [administrators]}
    tables: ["*"]
    effect: allow
  - name: every-kind             # the kinds that no general rule covers, by their first words
    who: {groups: [administrators]}
    tables: ["*"]
    when:
      kinds: ["alter_*", "c*_*", "call", "checkpoint", "create*", "do", "drop*", "grant*", "import_*", "load",
              "p*_*", "r*_*", "re*", "s*_*"]
    effect: allow
  - name: every-function
    who: {groups: [administrators]}
    tables: ["*"]
    when: {functions: ["*"]}
    effect: allow
  - name: closed-functions       # what is closed unless a rule names it in full
    who: {groups: [administrators]}
    tables: ["*"]
    when:
      functions: [pg_terminate_backend, pg_cancel_backend, lo_create, lo_creat, lo_unlink, lo_get, lo_put, lo_from_bytea,
                  lo_import, lo_export, lo_open, lo_close, loread, lowrite, lo_lseek, lo_lseek64, lo_tell, lo_tell64,
                  lo_truncate, lo_truncate64]
    effect: allow
  - name: closed-catalogs
    who: {groups: [administrators]}
    tables: [pg_catalog.pg_stat_activity, pg_catalog.pg_stats, pg_catalog.pg_statistic, pg_catalog.pg_largeobject,
             pg_catalog.pg_stat_ssl]
    verbs: [select]
    effect: allow
grants:
  - who: {groups: [administrators]}
    database: "*"
    tables: ["*"]
    verbs: [select, insert, update, delete, truncate, ddl]
    duration: 3600
"""


def permissive_stage(server: PostgresServer, home: Path, databases: Sequence[str] = ("shop",), policy: str = POLICY) -> Stage:
    """A stage (not started) on ``server`` (started) for ``databases``. The superuser's password is left for it in ``home``."""
    secret = home / "superuser.password"
    secret.write_text(server.password)
    secret.chmod(0o600)

    def entry(dbname: str) -> Mapping[str, Any]:
        return {
            "server": {"host": server.host, "port": server.port, "dbname": dbname, "tls": {"mode": "disable"}},
            "credentials": {"kind": "static", "user": server.superuser, "password": f"file:{secret}"},
        }

    settings = {
        "listen": {"plaintext_on_loopback": True, "max_statement_bytes": 64 * 1024 * 1024},
        "databases": {name: entry(name) for name in databases},
    }
    return Stage(customers=10, policy=policy, settings=settings, server=server)


def administrator_token(stage: Stage) -> str:
    """An hour's token for the administrator."""
    return stage.issuer.mint(subject=ADMINISTRATOR, groups=["administrators"], lifetime=3600)

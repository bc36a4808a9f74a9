"""The texts of views, rules and SQL bodies, which the server locks the tables in them for: asked again only when they changed.

A transaction that is being judged may hold those locks itself: what is not asked for can't wait for it. Never add here: what
the texts mean.
"""

from __future__ import annotations

from typing import Any

import psycopg

__all__ = ["LOCK_TIMEOUT", "Deparsed"]

LOCK_TIMEOUT = 1000  # ms: a text that can't be had by then fails the read
# Another text comes of another row, or of another name of anything in it.
_SIGNED = """
SELECT o.oid::int8, o.xmin::text || coalesce((
    SELECT md5(string_agg(pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), ',' ORDER BY refclassid, refobjid, refobjsubid))
    FROM pg_depend d WHERE d.classid = '{table}'::regclass AND d.objid = o.oid), '')
FROM {table} o WHERE o.oid >= 16384 AND {condition}
"""
_KINDS = {
    "views": ("pg_rewrite", "o.rulename = '_RETURN'", "SELECT oid::int8, pg_get_viewdef(ev_class) FROM pg_rewrite WHERE oid = ANY (%s)"),
    "rules": ("pg_rewrite", "o.rulename <> '_RETURN'", "SELECT oid::int8, pg_get_ruledef(oid) FROM pg_rewrite WHERE oid = ANY (%s)"),
    "bodies": ("pg_proc", "o.prosqlbody IS NOT NULL", "SELECT oid::int8, pg_get_functiondef(oid) FROM pg_proc WHERE oid = ANY (%s)"),
}


class Deparsed:
    """Remembers texts by what they are made of."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, tuple[str, str]]] = {kind: {} for kind in _KINDS}

    async def read(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> dict[str, dict[int, str]]:
        """The texts by kind (``views`` and ``rules`` by the rule's OID, ``bodies`` by the function's); search_path is empty.

        Raises ``psycopg.errors.LockNotAvailable``.
        """
        found: dict[str, dict[int, str]] = {}
        for kind, (table, condition, text) in _KINDS.items():
            signed = await (await connection.execute(_SIGNED.format(table=table, condition=condition).encode())).fetchall()
            known = {oid: self._known[kind][oid] for oid, sign in signed if self._known[kind].get(oid, ("", ""))[0] == sign}
            if changed := {oid: sign for oid, sign in signed if oid not in known}:
                rows = await (await connection.execute(text.encode(), (list(changed),))).fetchall()
                known |= {oid: (changed[oid], written or "") for oid, written in rows}
            self._known[kind] = known
            found[kind] = {oid: known[oid][1] for oid in sorted(known)}
        return found

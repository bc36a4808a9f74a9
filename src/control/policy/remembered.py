"""What a session's texts and names stand for, and what of a verdict may be kept for other texts.

Never add here: how statements change it (engine.py), or rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from control.policy.facts import Facts, Unreadable
from control.policy.literals import literals_are_free
from control.policy.reading import read_facts
from pgwire.ports import Effect, Statement, Verdict

__all__ = ["SessionNames", "SessionState", "shared", "split_path", "temporary_names"]


@dataclass(slots=True)
class SessionState:
    """What statements change for later ones. Several paths or candidates of a name: the session can't tell which holds."""

    paths: tuple[tuple[str, ...], ...]
    temporary: frozenset[str] = frozenset()
    unseen: frozenset[str] = frozenset()  # names that the transaction has defined, see pending.py


class SessionNames:
    """``facts.Names`` of a session, read from the texts that the session's names stand for now."""

    def __init__(self, statement: Statement) -> None:
        self._named = statement.named
        self.asked = False

    def get(self, key: tuple[str, str], default: tuple[Facts, ...] = (), /) -> tuple[Facts, ...]:
        self.asked = True
        space, name = key
        found = self._named(space != "statement", name.encode()) if self._named is not None else None
        if found is None or (space != "statement" and found[1] != (space == "cursor")):
            return default
        try:
            return read_facts(found[0], None)
        except Unreadable:
            return default


def shared(statement: Statement, facts: tuple[Facts, ...], verdict: Verdict) -> Verdict:
    """Say of a verdict that may be kept whether it holds whatever the literals are."""
    if not verdict.cacheable or verdict.effect is not Effect.ALLOW or len(facts) != 1:
        return verdict
    tree = facts[0].tree
    return replace(verdict, any_literals=True) if tree is not None and literals_are_free(tree, statement.text) else verdict


def temporary_names(facts: Facts) -> frozenset[str]:
    """The names of the temporary tables that a statement may have made."""
    if "ddl" not in facts.verbs:
        return frozenset()
    return frozenset(access.name for access in facts.accesses if access.temporary or access.schema.startswith("pg_temp"))


@lru_cache(maxsize=256)
def split_path(text: str) -> tuple[str, ...]:
    """The schemas that a search path names."""
    parts = re.findall(r'"((?:[^"]|"")*)"|([^\s,]+)', text)
    return tuple(quoted.replace('""', '"') if quoted else plain.lower() for quoted, plain in parts if quoted or plain)

"""The policy as values: rules and what they match, masks, grants, limits.

Never add here: reading of the document (document.py), or judging. What a rule means for a statement is in decide.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from pgwire.ports import NO_OBLIGATIONS, Effect, Obligations, Principal

__all__ = [
    "ACTIONS", "DAYS", "EFFECTS", "OPERATORS", "VERBS", "AutoGrant", "Bound", "Limit", "Mask", "Policy", "PolicyError", "Rule", "When",
    "Who", "Window", "claim_values", "matches", "next_turn",
]  # fmt: skip

VERBS = frozenset({"select", "insert", "update", "delete", "truncate", "ddl"})
ACTIONS = frozenset({"null", "fixed", "keep_first", "keep_last", "email", "pseudonym", "clear"})
# What a statement may do, as conditions name it (see decide.effects_of).
EFFECTS = frozenset({"reads", "writes", "ddl", "settings", "transaction", "locks", "notify", "copy_in", "copy_out", "rows", "unknown"})
OPERATORS = frozenset({"eq", "ne", "in", "not_in", "lt", "lte", "gt", "gte", "matches", "null"})
_LOOKED_AFTER = 4.0  # seconds: a result that is too long is stopped on the server within a part of it
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class PolicyError(ValueError):
    """The document is wrong. The message has one line per problem: ``FILE:LINE: what, and what would be right``."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whom an entry is for. Each list that is given must match (patterns with ``*``); nothing given matches everyone.

    ``claims`` has pairs of a claim's name or dotted path and patterns, of which one must match the claim (or one of its items).
    """

    subjects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    acts_for: tuple[str, ...] = ()
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def lacks(self, principal: Principal) -> str:
        """What of ``principal`` does not match, for people; empty: it is meant."""
        if self.subjects and not matches(self.subjects, principal.subject):
            return f"subject {principal.subject} is none of {', '.join(self.subjects)}"
        if self.groups and not any(matches(self.groups, group) for group in principal.groups):
            return f"no group is any of {', '.join(self.groups)}"
        if self.acts_for and (principal.acts_for is None or not matches(self.acts_for, principal.acts_for)):
            return f"it acts for {principal.acts_for or 'nobody'}, and not for {', '.join(self.acts_for)}"
        for path, patterns in self.claims:
            if not any(matches(patterns, value) for value in claim_values(principal.claims, path)):
                return f"claim {path} is none of {', '.join(patterns)}"
        return ""

    def covers(self, principal: Principal) -> bool:
        """Whether ``principal`` is meant."""
        return not self.lacks(principal)


@dataclass(frozen=True, slots=True)
class Window:
    """A recurring stretch of time: days of the week (0 is Monday) and hours, ``[begin, end)``, in a zone.

    A window whose end is not after its begin runs over midnight, and belongs to the day on which it begins.
    """

    days: frozenset[int] = frozenset(range(7))
    begin: time = time(0)
    end: time = time(0)
    zone: str = "UTC"

    def open(self, now: datetime) -> bool:
        """Whether it is open at ``now`` (with its zone)."""
        here = now.astimezone(ZoneInfo(self.zone))
        at, day = here.time(), here.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= at < self.end
        return (day in self.days and at >= self.begin) or ((day - 1) % 7 in self.days and at < self.end)


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition on the value bound to parameter ``position`` (from 1): ``operator`` (see ``OPERATORS``) and its operand."""

    position: int
    operator: str
    operand: str | bool | Decimal | tuple[str | Decimal, ...]


@dataclass(frozen=True, slots=True)
class When:
    """Further conditions; each that is given must hold.

    ``kinds`` of statements, ``without_where``: updates and deletes that nothing narrows, ``functions`` called (patterns),
    ``effects`` (one of them is enough), ``labels`` of columns read or written (patterns), ``times`` (one must be open),
    ``parameters`` (all must hold; several for one position too).
    """

    kinds: tuple[str, ...] = ()
    without_where: bool | None = None
    functions: tuple[str, ...] = ()
    effects: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    times: tuple[Window, ...] = ()
    parameters: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Timeouts are seconds. ``observe``: it is judged and recorded, and changes nothing.

    For hold: ``approvers``, how many of them are ``needed``, how long a statement waits (``transaction_timeout``: inside an
    open transaction), ``defer`` (deny at once, and let the approved statement pass once), ``dry_run`` (approvers may ask for one).
    """

    name: str
    effect: Effect
    who: Who = Who()
    database: tuple[str, ...] = ("*",)
    server: tuple[str, ...] = ("*",)
    tables: tuple[str, ...] = ("*",)
    verbs: frozenset[str] = VERBS
    when: When = When()
    observe: bool = False
    approvers: tuple[str, ...] = ()
    needed: int = 1
    timeout: float = 300.0
    transaction_timeout: float | None = None
    defer: bool = False
    dry_run: bool = False
    obligations: Obligations = NO_OBLIGATIONS
    message: str = ""
    hint: str = ""
    instead: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Mask:
    """What becomes of a label's values for some. ``clear`` shows them. ``predicates``: whether conditions may use them."""

    label: str
    action: str
    who: Who = Who()
    database: tuple[str, ...] = ("*",)
    argument: str | int | None = None
    predicates: bool = False


@dataclass(frozen=True, slots=True)
class AutoGrant:
    """A grant that is given at connect. ``duration`` in seconds."""

    database: str
    who: Who = Who()
    tables: tuple[str, ...] = ("*.*",)
    verbs: frozenset[str] = frozenset({"select"})
    duration: float = 900.0


@dataclass(frozen=True, slots=True)
class Limit:
    """How much some may do: sessions at a time, and statements per minute over all of them. None: no limit."""

    who: Who = Who()
    database: tuple[str, ...] = ("*",)
    sessions: int | None = None
    statements_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole document. ``version`` is the first 12 hex digits of the text's SHA-256."""

    version: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rules: tuple[Rule, ...] = ()
    masks: tuple[Mask, ...] = ()
    grants: tuple[AutoGrant, ...] = ()
    limits: tuple[Limit, ...] = ()

    def limits_for(self, principal: Principal, database: str) -> tuple[int | None, float | None]:
        """(sessions, statements per minute): the least of every entry that matches."""
        found = [limit for limit in self.limits if limit.who.covers(principal) and matches(limit.database, database)]
        sessions = [limit.sessions for limit in found if limit.sessions is not None]
        rates = [limit.statements_per_minute for limit in found if limit.statements_per_minute is not None]
        return min(sessions, default=None), min(rates, default=None)

    def labels_of(self, qualified: str) -> tuple[str, ...]:
        """The labels of ``schema.table.column``."""
        return tuple(label for label, patterns in self.labels if matches(patterns, qualified))

    def masks_for(self, principal: Principal, database: str) -> dict[str, Mask]:
        """By label, the mask that this principal sees there (the first entry that matches; ``clear`` ones left out)."""
        found: dict[str, Mask] = {}
        for mask in self.masks:
            if mask.label not in found and mask.who.covers(principal) and matches(mask.database, database):
                found[mask.label] = mask
        return {label: mask for label, mask in found.items() if mask.action != "clear"}

    def standing_for(self, principal: Principal, database: str) -> Obligations:
        """What is kept for a whole session: the least lock_timeout of all rules that may permit this principal something there,
        read only if all of them are, and the least statement_timeout, as how often to look (with max_rows a few seconds)."""
        allowing = [
            rule
            for rule in self.rules
            if rule.effect is not Effect.DENY and not rule.observe and rule.who.covers(principal) and matches(rule.database, database)
        ]
        locks = [rule.obligations.lock_timeout for rule in allowing if rule.obligations.lock_timeout is not None]
        read_only = bool(allowing) and all(rule.obligations.read_only for rule in allowing)
        times = [rule.obligations.statement_timeout for rule in allowing if rule.obligations.statement_timeout is not None]
        times += [_LOOKED_AFTER for rule in allowing if rule.obligations.max_rows is not None]
        return Obligations(lock_timeout=min(locks, default=None), read_only=read_only, statement_timeout=min(times, default=None))

    @property
    def claims(self) -> tuple[str, ...]:
        """The claims that anything in it looks at."""
        every = [rule.who for rule in self.rules] + [mask.who for mask in self.masks]
        every += [grant.who for grant in self.grants] + [limit.who for limit in self.limits]
        return tuple(sorted({path for who in every for path, _ in who.claims}))

    @property
    def windows(self) -> tuple[Window, ...]:
        """The times that any rule looks at."""
        return tuple(dict.fromkeys(window for rule in self.rules for window in rule.when.times))


def claim_values(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """A claim's value as texts: its items if it is a list; a name with dots in it is looked for before a path."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(_claim_text(item) for item in items if isinstance(item, str | int | float))


def _claim_text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def next_turn(windows: Iterable[Window], now: datetime) -> datetime | None:
    """When the first of the windows opens or closes next, at the latest in two days; None: there are none."""
    moments: list[datetime] = []
    for window in windows:
        here = now.astimezone(ZoneInfo(window.zone))
        for days in range(3):
            for at in (window.begin, window.end):
                moment = datetime.combine((here + timedelta(days=days)).date(), at, here.tzinfo)
                if moment > now:
                    moments.append(moment)
    return min(moments, default=None)


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def matches(patterns: Iterable[str], value: str) -> bool:
    """Whether one of the patterns (``*`` is any run of characters) is all of ``value``."""
    return any(_pattern(pattern).fullmatch(value) is not None for pattern in patterns)

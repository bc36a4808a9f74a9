"""The policy document: YAML to frozen dataclasses, every problem told with its line, unknown keys refused.

Never add here: judging. What a rule means is in decide.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pgwire.ports import Effect, Principal

__all__ = ["AutoGrant", "Limit", "Mask", "Policy", "PolicyError", "Rule", "When", "Who", "matches", "read_policy"]

VERBS = frozenset({"select", "insert", "update", "delete", "truncate", "ddl"})
ACTIONS = frozenset({"null", "fixed", "keep_first", "keep_last", "email", "pseudonym", "clear"})


class PolicyError(ValueError):
    """The document is wrong. The message has one line per problem: ``FILE:LINE: what, and what would be right``."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whom an entry is for. Each list that is given must match (patterns with ``*``); nothing given matches everyone."""

    subjects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    acts_for: tuple[str, ...] = ()

    def covers(self, principal: Principal) -> bool:
        """Whether ``principal`` is meant."""
        return (
            (not self.subjects or matches(self.subjects, principal.subject))
            and (not self.groups or any(matches(self.groups, group) for group in principal.groups))
            and (not self.acts_for or (principal.acts_for is not None and matches(self.acts_for, principal.acts_for)))
        )


@dataclass(frozen=True, slots=True)
class When:
    """Further conditions: statement kinds, updates and deletes that nothing narrows, functions called (patterns)."""

    kinds: tuple[str, ...] = ()
    without_where: bool | None = None
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``timeout`` is how long a held statement waits, in seconds."""

    name: str
    effect: Effect
    who: Who = Who()
    database: tuple[str, ...] = ("*",)
    tables: tuple[str, ...] = ("*",)
    verbs: frozenset[str] = VERBS
    when: When = When()
    approvers: tuple[str, ...] = ()
    timeout: float = 300.0
    message: str = ""
    hint: str = ""
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


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def matches(patterns: Iterable[str], value: str) -> bool:
    """Whether one of the patterns (``*`` is any run of characters) is all of ``value``."""
    return any(_pattern(pattern).fullmatch(value) is not None for pattern in patterns)


def read_policy(text: str, source: str = "policy") -> Policy:
    """The policy in ``text``. Raises ``PolicyError`` with every problem found."""
    try:
        document = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        raise PolicyError(f"{source}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    reader = _Reader(source)
    policy = reader.policy(document, hashlib.sha256(text.encode()).hexdigest()[:12])
    if reader.problems:
        raise PolicyError("\n".join(reader.problems))
    return policy


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []

    def problem(self, node: Any, key: Any, what: str) -> None:
        try:
            line = node.lc.data[key][0] + 1
        except (AttributeError, KeyError, TypeError, IndexError):
            line = node.lc.line + 1 if hasattr(node, "lc") else 1
        self.problems.append(f"{self.source}:{line}: {what}")

    def mapping(self, node: Any, parent: Any, key: Any, known: set[str], needed: set[str], what: str) -> bool:
        if not isinstance(node, dict):
            self.problem(parent, key, f"{what} must be a mapping with the keys {', '.join(sorted(known))}")
            return False
        for each in node:
            if each not in known:
                self.problem(node, each, f"unknown key {each!r} in {what}; it may have {', '.join(sorted(known))}")
        missing = needed - set(node)
        if missing:
            self.problem(node, None, f"{what} lacks {', '.join(sorted(missing))}")
        return not missing

    def entries(self, document: Any, section: str) -> list[Any]:
        items = document.get(section) or []
        if not isinstance(items, list):
            self.problem(document, section, f"{section} must be a list")
            return []
        return items

    def names(self, node: Any, key: str, default: tuple[str, ...] = (), of: frozenset[str] | None = None) -> tuple[str, ...]:
        if key not in node:
            return default
        value = node[key]
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
            self.problem(node, key, f"{key} must be a name or a list of names, not {value!r}")
            return default
        for item in items:
            if of is not None and item not in of:
                self.problem(node, key, f"{key} has {item!r}; it may be {', '.join(sorted(of))}")
        return tuple(str(item) for item in items)

    def value(self, node: Any, key: str, default: Any, right: Callable[[Any], bool], what: str) -> Any:
        value = node.get(key, default)
        if key in node and not right(value):
            self.problem(node, key, f"{key} must be {what}, not {value!r}")
            return default
        return value

    def seconds(self, node: Any, key: str, default: float) -> float:
        right = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0  # noqa: E731
        return float(self.value(node, key, default, right, "seconds above 0"))

    def text(self, node: Any, key: str) -> str:
        return str(self.value(node, key, "", lambda v: isinstance(v, str) and bool(v), "a text"))

    def who(self, node: Any) -> Who:
        if "who" not in node:
            return Who()
        keys = {"subjects", "groups", "acts_for"}
        who = node["who"]
        if not self.mapping(who, node, "who", keys, set(), "who"):
            return Who()
        return Who(self.names(who, "subjects"), self.names(who, "groups"), self.names(who, "acts_for"))

    def policy(self, document: Any, version: str) -> Policy:
        known = {"version", "labels", "rules", "masks", "grants", "limits"}
        if not self.mapping(document, None, None, known, {"version"}, "the policy"):
            return Policy(version)
        if document["version"] != 1:
            self.problem(document, "version", f"version must be 1, not {document['version']!r}")
        labels = document.get("labels") or {}
        if not isinstance(labels, dict):
            self.problem(document, "labels", "labels must be a mapping of label to column patterns")
            labels = {}
        read = tuple((str(label), self.columns(labels, label)) for label in labels)
        rules = [rule for index, item in enumerate(self.entries(document, "rules")) if (rule := self.rule(item, document["rules"], index))]
        names = [rule.name for rule in rules]
        for rule in rules:
            if names.count(rule.name) > 1:
                self.problems.append(f"{self.source}:{rule.line}: the rule name {rule.name!r} is used more than once")
        masks, grants = self.entries(document, "masks"), self.entries(document, "grants")
        masked = [mask for index, item in enumerate(masks) if (mask := self.mask(item, masks, index, labels))]
        granted = [grant for index, item in enumerate(grants) if (grant := self.grant(item, grants, index))]
        limits = self.entries(document, "limits")
        limited = [limit for index, item in enumerate(limits) if (limit := self.limit(item, limits, index))]
        return Policy(version, read, tuple(rules), tuple(masked), tuple(granted), tuple(limited))

    def limit(self, node: Any, parent: Any, index: int) -> Limit | None:
        if not self.mapping(node, parent, index, {"who", "database", "sessions", "statements_per_minute"}, set(), "a limit"):
            return None
        if "sessions" not in node and "statements_per_minute" not in node:
            self.problem(node, "who", "a limit must say sessions or statements_per_minute")
        whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1  # noqa: E731
        return Limit(
            self.who(node),
            self.names(node, "database", ("*",)),
            self.value(node, "sessions", None, whole, "a whole number from 1"),
            self.value(node, "statements_per_minute", None, whole, "a whole number from 1"),
        )

    def columns(self, labels: Any, label: Any) -> tuple[str, ...]:
        patterns = self.names(labels, label)
        for pattern in patterns:
            if pattern.count(".") != 2:
                self.problem(labels, label, f"label {label}: {pattern!r} must be schema.table.column (each may be *)")
        return patterns

    def rule(self, node: Any, parent: Any, index: int) -> Rule | None:
        known = {"name", "who", "database", "tables", "verbs", "when", "effect", "approvers", "timeout", "message", "hint"}
        if not self.mapping(node, parent, index, known, {"name", "effect"}, "a rule"):
            return None
        name = self.text(node, "name")
        effects = {effect.value: effect for effect in Effect}
        if node["effect"] not in effects:
            self.problem(node, "effect", f"effect must be allow, deny or hold, not {node['effect']!r}")
            return None
        effect = effects[node["effect"]]
        if effect is Effect.HOLD and "approvers" not in node:
            self.problem(node, "effect", f"rule {name!r} holds, so it must say who may approve (approvers)")
        for key in ("approvers", "timeout"):
            if key in node and effect is not Effect.HOLD:
                self.problem(node, key, f"{key} only goes with effect: hold")
        when = When()
        if "when" in node and self.mapping(node["when"], node, "when", {"kinds", "without_where", "functions"}, set(), "when"):
            where = self.value(node["when"], "without_where", None, lambda v: isinstance(v, bool), "true or false")
            when = When(self.names(node["when"], "kinds"), where, self.names(node["when"], "functions"))
        return Rule(
            name, effect, self.who(node), self.names(node, "database", ("*",)), self.tables(node, ("*",)),
            frozenset(self.names(node, "verbs", tuple(VERBS), VERBS)), when, self.names(node, "approvers"),
            self.seconds(node, "timeout", 300.0), self.text(node, "message"), self.text(node, "hint"), node.lc.line + 1,
        )  # fmt: skip

    def tables(self, node: Any, default: tuple[str, ...]) -> tuple[str, ...]:
        tables = self.names(node, "tables", default)
        for table in tables:
            if table != "*" and table.count(".") != 1:
                self.problem(node, "tables", f"tables has {table!r}; it must be schema.table (each may be *)")
        return tables

    def mask(self, node: Any, parent: Any, index: int, labels: Any) -> Mask | None:
        known = {"who", "database", "label", "action", "argument", "predicates"}
        if not self.mapping(node, parent, index, known, {"label", "action"}, "a mask"):
            return None
        # An unquoted null in YAML is the value null, and it is what the author means.
        action = "null" if node["action"] is None else node["action"]
        if action not in ACTIONS:
            self.problem(node, "action", f"action must be {', '.join(sorted(ACTIONS))}, not {action!r}")
        if node["label"] not in labels:
            self.problem(node, "label", f"there is no label {node['label']!r}; labels has {', '.join(map(str, labels)) or 'none'}")
        argument = node.get("argument")
        count = isinstance(argument, int) and not isinstance(argument, bool) and argument >= 0
        if action in ("keep_first", "keep_last") and not count:
            self.problem(node, "action", f"{action} needs argument: the number of characters kept")
        elif action == "fixed" and not isinstance(argument, str):
            self.problem(node, "action", "fixed needs argument: the text to show")
        elif action in ("null", "email", "clear", "pseudonym") and argument is not None:
            self.problem(node, "argument", f"{action} takes no argument")
        allow = self.value(node, "predicates", "deny", lambda v: v in ("allow", "deny"), "allow or deny") == "allow"
        return Mask(str(node["label"]), str(action), self.who(node), self.names(node, "database", ("*",)), argument, allow)

    def grant(self, node: Any, parent: Any, index: int) -> AutoGrant | None:
        if not self.mapping(node, parent, index, {"who", "database", "tables", "verbs", "duration"}, {"who", "database"}, "a grant"):
            return None
        verbs = frozenset(self.names(node, "verbs", ("select",), VERBS))
        duration = self.seconds(node, "duration", 900.0)
        return AutoGrant(self.text(node, "database"), self.who(node), self.tables(node, ("*.*",)), verbs, duration)

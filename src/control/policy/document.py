"""The policy document: YAML to the values of rules.py, every problem told with its line, unknown keys refused.

What is accepted here stands in docs/policy.schema.json too. Never add here: judging. What a rule means is in decide.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Set
from datetime import time
from decimal import Decimal
from difflib import get_close_matches
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from control.policy.kinds import KINDS
from control.policy.rules import (
    ACTIONS,
    DAYS,
    EFFECTS,
    OPERATORS,
    VERBS,
    AutoGrant,
    Bound,
    Limit,
    Mask,
    Policy,
    PolicyError,
    Rule,
    When,
    Who,
    Window,
    matches,
)  # fmt: skip
from pgwire.ports import NO_OBLIGATIONS, Effect, Obligations

__all__ = ["read_policy"]

_RULE_KEYS = frozenset(
    {"name", "who", "database", "server", "tables", "verbs", "when", "effect", "mode", "obligations", "message", "hint", "instead"}
)
_HOLD_KEYS = frozenset({"approvers", "needed", "timeout", "transaction_timeout", "dry_run"})
_HOURS = re.compile(r"((?:[01]\d|2[0-3]):[0-5]\d|24:00)-((?:[01]\d|2[0-3]):[0-5]\d|24:00)")
_LONGEST = 366 * 86400  # seconds


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _among(value: Any, names: Container[str]) -> bool:
    return isinstance(value, str) and value in names


def _scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _operand(value: Any) -> str | Decimal:
    """Numbers compare as numbers, everything else as text (true and false as PostgreSQL writes them)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return Decimal(str(value)) if isinstance(value, int | float) else str(value)


def _clock(text: str) -> time:
    return time(0) if text == "24:00" else time.fromisoformat(text)


def read_policy(text: str, source: str = "policy") -> Policy:
    """The policy in ``text``. Raises ``PolicyError`` with every problem found, and nothing else, whatever the text is."""
    reader = _Reader(source)
    try:
        policy = reader.policy(YAML(typ="rt").load(StringIO(text)), hashlib.sha256(text.encode()).hexdigest()[:12])
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise PolicyError(f"{source}:{mark.line + 1 if mark else 1}: {problem or 'not YAML'}") from None
    except RecursionError:
        raise PolicyError(f"{source}:1: it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # of a value, like a day that there is not
        raise PolicyError(f"{source}:1: a value in it can't be read: {error}") from None
    if reader.problems:
        raise PolicyError("\n".join(sorted(reader.problems, key=_line)))
    return policy


def _line(problem: str) -> int:
    found = re.search(r":(\d+): ", problem)
    return int(found[1]) if found else 0


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

    def mapping(self, node: Any, parent: Any, key: Any, known: Set[str], needed: Set[str], what: str) -> bool:
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
        items = document.get(section)
        if items is None:
            return []
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
        right = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= _LONGEST  # noqa: E731
        return float(self.value(node, key, default, right, "seconds above 0"))

    def text(self, node: Any, key: str) -> str:
        return str(self.value(node, key, "", lambda v: isinstance(v, str) and bool(v), "a text"))

    def who(self, node: Any) -> Who:
        if "who" not in node:
            return Who()
        keys = {"subjects", "groups", "acts_for", "claims"}
        who = node["who"]
        if not self.mapping(who, node, "who", keys, set(), "who"):
            return Who()
        claims = who.get("claims", {})
        if not isinstance(claims, dict) or not all(isinstance(path, str) and path for path in claims):
            self.problem(who, "claims", "claims must be a mapping of claim (or path with dots) to a pattern or a list of them")
            claims = {}
        wanted = tuple((str(path), self.names(claims, path)) for path in claims)
        return Who(self.names(who, "subjects"), self.names(who, "groups"), self.names(who, "acts_for"), wanted)

    def policy(self, document: Any, version: str) -> Policy:
        known = {"version", "labels", "rules", "masks", "grants", "limits"}
        if not self.mapping(document, None, None, known, {"version"}, "the policy"):
            return Policy(version)
        if document["version"] != 1 or isinstance(document["version"], bool):
            self.problem(document, "version", f"version must be 1, not {document['version']!r}")
        labels = document["labels"] if document.get("labels") is not None else {}
        if not isinstance(labels, dict):
            self.problem(document, "labels", "labels must be a mapping of label to column patterns")
            labels = {}
        read = tuple((str(label), self.columns(labels, label)) for label in labels)
        rules = [
            rule
            for index, item in enumerate(self.entries(document, "rules"))
            if (rule := self.rule(item, document["rules"], index, labels))
        ]
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
        return Limit(
            self.who(node),
            self.names(node, "database", ("*",)),
            self.value(node, "sessions", None, _whole(1), "a whole number from 1"),
            self.value(node, "statements_per_minute", None, _whole(1), "a whole number from 1"),
        )

    def columns(self, labels: Any, label: Any) -> tuple[str, ...]:
        patterns = self.names(labels, label)
        for pattern in patterns:
            if pattern.count(".") != 2:
                self.problem(labels, label, f"label {label}: {pattern!r} must be schema.table.column (each may be *)")
        return patterns

    def rule(self, node: Any, parent: Any, index: int, labels: Any) -> Rule | None:
        if not self.mapping(node, parent, index, _RULE_KEYS | _HOLD_KEYS, {"name", "effect"}, "a rule"):
            return None
        name = self.text(node, "name")
        effects = {effect.value: effect for effect in Effect}
        if not _among(node["effect"], effects):
            self.problem(node, "effect", f"effect must be allow, deny or hold, not {node['effect']!r}")
            return None
        effect = effects[node["effect"]]
        if effect is Effect.HOLD and "approvers" not in node:
            self.problem(node, "effect", f"rule {name!r} holds, so it must say who may approve (approvers)")
        for key in sorted(_HOLD_KEYS & set(node)):
            if effect is not Effect.HOLD:
                self.problem(node, key, f"{key} only goes with effect: hold")
        if effect is Effect.DENY and "obligations" in node:
            self.problem(node, "obligations", "obligations only go with effect: allow and effect: hold")
        modes = ("wait", "defer", "observe") if effect is Effect.HOLD else ("enforce", "observe")
        mode = self.value(node, "mode", modes[0], lambda v: v in modes, " or ".join(modes))
        within = self.seconds(node, "transaction_timeout", 0.0)
        return Rule(
            name, effect, self.who(node), self.names(node, "database", ("*",)), self.names(node, "server", ("*",)),
            self.tables(node, ("*",)), frozenset(self.names(node, "verbs", tuple(VERBS), VERBS)), self.when(node, labels),
            mode == "observe", self.names(node, "approvers"), self.value(node, "needed", 1, _whole(1), "a whole number from 1"),
            self.seconds(node, "timeout", 300.0), within or None, mode == "defer", self.flag(node, "dry_run", False),
            self.obligations(node, name), self.text(node, "message"), self.text(node, "hint"), self.text(node, "instead"),
            node.lc.line + 1,
        )  # fmt: skip

    def flag(self, node: Any, key: str, default: Any) -> Any:
        return self.value(node, key, default, lambda v: isinstance(v, bool), "true or false")

    def when(self, node: Any, labels: Any) -> When:
        if "when" not in node:
            return When()
        when = node["when"]
        keys = {"kinds", "without_where", "functions", "effects", "labels", "times", "parameters"}
        if not self.mapping(when, node, "when", keys, set(), "when"):
            return When()
        wanted = self.names(when, "labels")
        for pattern in wanted:
            if not any(matches((pattern,), str(label)) for label in labels):
                self.problem(when, "labels", f"there is no label {pattern!r}; labels has {', '.join(map(str, labels)) or 'none'}")
        kinds = self.names(when, "kinds")
        for pattern in kinds:
            if not any(matches((pattern,), kind) for kind in KINDS):
                near = get_close_matches(pattern, KINDS, 3)
                hint = f"is {' or '.join(map(repr, near))} meant?" if near else "they are like update, create_index or notify"
                self.problem(when, "kinds", f"there is no kind of statement {pattern!r}; {hint}")
        return When(
            kinds, self.flag(when, "without_where", None), self.names(when, "functions"),
            frozenset(self.names(when, "effects", (), EFFECTS)), wanted,
            tuple(self.window(item, parent, key) for item, parent, key in self.several(when, "times")),
            tuple(bound for item, parent, key in self.several(when, "parameters") for bound in self.bounds(item, parent, key)),
        )  # fmt: skip

    def several(self, node: Any, key: str) -> list[tuple[Any, Any, Any]]:
        """One mapping or a list of them, each with where it stands."""
        if key not in node:
            return []
        value = node[key]
        if isinstance(value, dict):
            return [(value, node, key)]
        if not isinstance(value, list) or not value:
            self.problem(node, key, f"{key} must be a mapping or a list of mappings")
            return []
        return [(item, value, index) for index, item in enumerate(value)]

    def window(self, node: Any, parent: Any, key: Any) -> Window:
        if not self.mapping(node, parent, key, {"days", "hours", "zone"}, set(), "an entry of times"):
            return Window()
        if not node:
            self.problem(parent, key, "an entry of times must say days, hours or both")
        zone = self.text(node, "zone") or "UTC"
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.problem(node, "zone", f"zone must be a name like Europe/Berlin or UTC, not {zone!r}")
            zone = "UTC"
        days: set[int] = set()
        for item in self.names(node, "days", DAYS):
            first, _, last = item.partition("-")
            if first not in DAYS or (last or first) not in DAYS:
                self.problem(node, "days", f"days has {item!r}; it may be {', '.join(DAYS)}, or two of them like mon-fri")
                continue
            start, length = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7 + 1
            days |= {(start + step) % 7 for step in range(length)}
        begin = end = time(0)
        if "hours" in node:
            read = _HOURS.fullmatch(node["hours"]) if isinstance(node["hours"], str) else None
            if read is None or read[1] == read[2]:
                self.problem(node, "hours", f'hours must be two times in quotes, like "08:00-18:00", not {node["hours"]!r}')
            else:
                begin, end = _clock(read[1]), _clock(read[2])
        return Window(frozenset(days), begin, end, zone)

    def bounds(self, node: Any, parent: Any, key: Any) -> list[Bound]:
        if not self.mapping(node, parent, key, OPERATORS | {"position"}, {"position"}, "an entry of parameters"):
            return []
        position = self.value(node, "position", 1, _whole(1, 65535), "a whole number from 1")
        if len(node) < 2:
            self.problem(parent, key, f"an entry of parameters must compare: with {', '.join(sorted(OPERATORS))}")
        return [Bound(position, operator, self.operand(node, operator)) for operator in node if operator in OPERATORS]

    def operand(self, node: Any, operator: str) -> Any:
        value = node[operator]
        if operator == "null":
            return self.flag(node, operator, True)
        if operator in ("in", "not_in"):
            if isinstance(value, list) and value and all(_scalar(item) for item in value):
                return tuple(_operand(item) for item in value)
            self.problem(node, operator, f"{operator} must be a list of numbers or texts, not {value!r}")
            return ()
        if operator == "matches":
            return self.text(node, operator)
        if not _scalar(value):
            self.problem(node, operator, f"{operator} must be a number or a text, not {value!r}")
            return ""
        return _operand(value)

    def obligations(self, node: Any, rule: str) -> Obligations:
        if "obligations" not in node:
            return NO_OBLIGATIONS
        asked = node["obligations"]
        keys = {"max_rows", "max_affected", "read_only", "statement_timeout", "lock_timeout", "record"}
        if not self.mapping(asked, node, "obligations", keys, set(), "obligations"):
            return NO_OBLIGATIONS
        depth = asked.get("record", "full")
        if depth not in ("none", "full") and not _whole(0)(depth):
            self.problem(asked, "record", f"record must be none, full or a number of bytes, not {depth!r}")
        return Obligations(
            self.value(asked, "max_rows", None, _whole(0), "a whole number"),
            self.value(asked, "max_affected", None, _whole(0), "a whole number"),
            self.flag(asked, "read_only", False),
            self.seconds(asked, "statement_timeout", 0.0) or None,
            self.seconds(asked, "lock_timeout", 0.0) or None,
            0 if depth == "none" else depth if isinstance(depth, int) else None,
            rule,
        )

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
        if not _among(action, ACTIONS):
            self.problem(node, "action", f"action must be {', '.join(sorted(ACTIONS))}, not {action!r}")
        if not _among(node["label"], labels):
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

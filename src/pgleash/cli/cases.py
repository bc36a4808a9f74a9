"""``pgleash policy test``: a table of cases, YAML, each a statement of somebody and what the policy is to say of it.

Never add here: how a verdict is got; that is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["Answer", "Case", "differences", "read_cases"]

_WHO = {"subject", "groups", "acts_for", "claims", "database", "time"}
_EXPECT = {"effect", "rule", "message", "hint", "sqlstate", "masks", "obligations", "approvers", "needed", "observed"}


@dataclass(frozen=True, slots=True)
class Case:
    """One statement of somebody. ``time`` is Unix seconds (None: now), ``parameters`` bound values as text (None: none bound)."""

    name: str
    sql: str
    subject: str
    database: str
    groups: tuple[str, ...] = ()
    acts_for: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None
    parameters: tuple[str | None, ...] | None = None
    expect: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy says. ``masks`` has an action (or empty) per column; ``rules`` the words of the rules that spoke."""

    effect: str
    rule: str
    message: str
    hint: str
    sqlstate: str
    reasons: tuple[str, ...]
    masks: tuple[str, ...]
    obligations: Mapping[str, Any]
    approvers: tuple[str, ...]
    needed: int
    observed: tuple[str, ...]


def read_cases(path: Path) -> list[Case]:
    """The cases of a file. Raises ``ValueError`` with every problem found, and ``OSError``."""
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML") from None
    if not isinstance(document, dict) or not isinstance(document.get("cases"), list):
        raise ValueError(f"{path}: a mapping with cases (a list) and, if you like, defaults")
    problems: list[str] = [f"{path}: unknown key {key!r}; it may be cases or defaults" for key in set(document) - {"cases", "defaults"}]
    defaults = document.get("defaults") or {}
    if not isinstance(defaults, dict) or set(defaults) - _WHO:
        problems.append(f"{path}: defaults may have {', '.join(sorted(_WHO))}")
        defaults = {}
    made = [_case(f"{path}: case {number}", item, defaults, problems) for number, item in enumerate(document["cases"], start=1)]
    if problems:
        raise ValueError("; ".join(problems))
    return [case for case in made if case is not None]


def _case(where: str, item: Any, defaults: Mapping[str, Any], problems: list[str]) -> Case | None:
    known = _WHO | {"name", "sql", "parameters", "expect"}
    if not isinstance(item, dict) or set(item) - known or not {"sql", "expect"} <= set(item):
        problems.append(f"{where}: it needs sql and expect, and may have {', '.join(sorted(known - {'sql', 'expect'}))}")
        return None
    told = {**defaults, **item}
    expect = {"effect": told["expect"]} if isinstance(told["expect"], str) else told["expect"]
    if not isinstance(expect, dict) or set(expect) - _EXPECT or expect.get("effect", "allow") not in ("allow", "deny", "hold"):
        problems.append(f"{where}: expect must be allow, deny or hold, or a mapping with {', '.join(sorted(_EXPECT))}")
        return None
    if not told.get("subject") or not told.get("database"):
        problems.append(f"{where}: it needs a subject and a database, here or in defaults")
        return None
    try:
        moment = _moment(told.get("time"))
    except ValueError:
        problems.append(f"{where}: time must be like 2026-03-01T09:00:00Z")
        return None
    groups = told.get("groups") or []
    parameters = told.get("parameters")
    return Case(
        str(item.get("name") or told["sql"]),
        str(told["sql"]),
        str(told["subject"]),
        str(told["database"]),
        tuple([groups] if isinstance(groups, str) else map(str, groups)),
        str(told.get("acts_for") or ""),
        told.get("claims") or {},
        moment,
        None if parameters is None else tuple(None if value is None else _text(value) for value in parameters),
        expect,
    )


def _moment(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def differences(case: Case, answer: Answer) -> list[str]:
    """What the answer has otherwise than expected, a line each: ``key: expected X, got Y``."""
    found: list[str] = []
    for key, wanted in case.expect.items():
        got: Any = getattr(answer, key)
        if key in ("message", "hint"):
            same = fnmatchcase(got, str(wanted).replace("[", "[[]"))
        elif key == "obligations":
            got = {name: got.get(name) for name in wanted}
            same = got == wanted
        elif key in ("masks", "approvers", "observed"):
            wanted = [str(item or "") for item in wanted or ()]
            same = list(got) == wanted
        else:
            same = got == wanted
        if not same:
            found.append(f"{key}: expected {_plain(wanted)}, got {_plain(list(got) if isinstance(got, tuple) else got)}")
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)

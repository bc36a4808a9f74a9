"""What holds for a whole session: settings that its server session begins with, and that the agent may not loosen.

Never add here: what is kept per statement (duties.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from control.policy.facts import Facts
from pgwire.ports import Obligations

__all__ = ["configured", "loosened", "pinned"]

_UNITS = {"": 1.0, "us": 0.001, "ms": 1.0, "s": 1000.0, "min": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0}
_TIME = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*")


def pinned(standing: Obligations) -> Mapping[str, str]:
    """The settings to begin with. RESET and DISCARD come back to them."""
    settings: dict[str, str] = {}
    if standing.lock_timeout is not None:
        settings["lock_timeout"] = f"{max(1, round(standing.lock_timeout * 1000))}ms"
    if standing.read_only:
        settings["default_transaction_read_only"] = "on"
    return settings


def loosened(standing: Obligations, facts: Facts) -> str:
    """What a statement would loosen, for people; empty: nothing."""
    changes = [(setting.name.lower(), setting.values) for setting in facts.settings if setting.values is not None]
    for name, values in (*changes, *configured(facts.tree)):
        if name == "lock_timeout" and standing.lock_timeout is not None:
            told = _milliseconds(values)
            if told is None or not 0 < told <= standing.lock_timeout * 1000:
                return f"lock_timeout may be at most {standing.lock_timeout:g} s, and not 0"
        on = [value.lower() for value in values] in (["on"], ["true"], ["yes"], ["1"])
        if standing.read_only and not on and name in ("default_transaction_read_only", "transaction_read_only"):
            return f"{name} must stay on"
    return ""


def configured(node: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The settings that calls of set_config change; a value that is no constant is the empty text, which is none."""
    if isinstance(node, list):
        for item in node:
            yield from configured(item)
    elif isinstance(node, dict):
        call = node.get("FuncCall")
        if call is not None and call["funcname"][-1].get("String", {}).get("sval") == "set_config":
            name, value, *_ = (*(_text(argument) for argument in call.get("args", ())), "", "")
            yield name.lower(), (value,)
        for item in node.values():
            yield from configured(item)


def _text(node: Any) -> str:
    return str(node.get("A_Const", {}).get("sval", {}).get("sval", ""))


def _milliseconds(values: tuple[str, ...]) -> float | None:
    read = _TIME.fullmatch(values[0]) if len(values) == 1 else None
    return float(read[1]) * _UNITS[read[2]] if read is not None and read[2] in _UNITS else None

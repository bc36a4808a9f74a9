"""Rounds: every target in turn, figures paired by round.

Never add here: what is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from loadtests.bench.stand import Target

Figures = dict[str, float]


def alternate(targets: Sequence[Target], rounds: int, measure: Callable[[Target], Figures]) -> dict[str, list[Figures]]:
    """``rounds`` times every target; each round begins with another one."""
    found: dict[str, list[Figures]] = {target.name: [] for target in targets}
    for number in range(rounds):
        at = number % len(targets)
        for target in (*targets[at:], *targets[:at]):
            found[target.name].append(measure(target))
    return found


def spread(values: Sequence[float]) -> Figures:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(found: dict[str, list[Figures]]) -> dict[str, dict[str, Figures]]:
    """Per target and figure: median, least and most over the rounds."""
    return {name: {key: spread([run[key] for run in runs]) for key in runs[0]} for name, runs in found.items()}


def ratio(found: dict[str, list[Figures]], key: str, over: str = "pgbouncer", under: str = "pgleash") -> Figures | None:
    """The ratios of each round: median, least and most. None without the other target."""
    if over not in found or under not in found:
        return None
    return spread(
        [mine[key] / other[key] for mine, other in zip(found[under], found[over], strict=True) if other[key] > 0] or [float("nan")]
    )


def row(case: dict[str, Any], found: dict[str, list[Figures]], key: str) -> dict[str, Any]:
    """One row of the results: what it is, its summary, its ratio, and every round as it was."""
    return {**case, "summary": summary(found), "ratio": ratio(found, key), "rounds": found}

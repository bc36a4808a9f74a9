"""From results to tables, to goals reached or not, and to the figures part of docs/performance.md.

Never add here: a measure, or prose that should stand in the document by hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["goals", "replace_part", "tables"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure beside what it should be."""

    what: str
    value: float | None
    limit: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "reached" if self.value <= self.limit else "not reached"


def goals(result: dict[str, Any]) -> list[Goal]:
    """Every goal whose kind was measured."""
    plain, tls, bulk = result.get("queries", []), result.get("tls", []), result.get("bulk", [])
    found: list[Goal] = []
    if plain:
        prepared = [row for row in plain if row["case"] == "prepared"]
        found += [
            Goal("CPU per query, plain, geometric mean of the ratios", _mean(plain), 1.0),
            Goal("CPU per query, plain, worst ratio", _worst(plain), 1.15),
        ]
        found.append(Goal("CPU per query, prepared, geometric mean", _mean(prepared), 0.95))
        for key in ("p50_us", "p99_us"):
            ours, theirs = _added(plain, "pgleash", key), _added(plain, "pgbouncer", key)
            if ours is not None and theirs is not None:
                found.append(Goal(f"added {key[:3]} at one client, mean of the cases, beside PgBouncer's", ours, theirs, " µs"))
    if "asked" in result:
        found.append(Goal("calls into Python per query in the steady state, worst case", max(result["asked"].values()), 0.0))
    if tls:
        found += [
            Goal("CPU per query, TLS, geometric mean of the ratios", _mean(tls), 0.95),
            Goal("CPU per query, TLS, worst ratio", _worst(tls), 1.1),
        ]
    for row in bulk:
        masked = "masked" in row["case"]
        limit = 1.0 if masked else 0.7 if row["tls"] else 0.6
        found.append(
            Goal(f"bulk, {row['case']}{', TLS' if row['tls'] else ''}, CPU ratio", row["ratio"]["median"] if row["ratio"] else None, limit)
        )
    if "kernels" in result:
        found.append(Goal("audit append of 200 bytes", result["kernels"]["audit append of 200 bytes, µs"]["median"], 0.6, " µs"))
    for name, value in result.get("memory", {}).get("unread_mib", {}).items():
        if name.startswith("pgleash"):
            found.append(Goal(f"growth while a client reads nothing of 1 GB, {name}", value, 8.0, " MiB"))
    return found


def _mean(rows: Sequence[dict[str, Any]]) -> float | None:
    ratios = [row["ratio"]["median"] for row in rows if row["ratio"]]
    return statistics.geometric_mean(ratios) if ratios else None


def _worst(rows: Sequence[dict[str, Any]]) -> float | None:
    return max((row["ratio"]["median"] for row in rows if row["ratio"]), default=None)


def _added(rows: Sequence[dict[str, Any]], name: str, key: str) -> float | None:
    """What a proxy adds to the direct latency at one client: the median of each case's rounds, the mean of the cases."""
    added = []
    for row in rows:
        if row["clients"] == 1 and name in row["rounds"] and "direct" in row["rounds"]:
            pairs = zip(row["rounds"][name], row["rounds"]["direct"], strict=True)
            added.append(statistics.median(mine[key] - other[key] for mine, other in pairs))
    return statistics.fmean(added) if added else None


def tables(result: dict[str, Any]) -> str:
    """Everything as Markdown, which is also how it is printed."""
    machine = result["machine"]
    parts = [
        f"{machine['cpus']} virtual CPUs ({machine['model']}), Linux {machine['kernel']}, load average {machine['load']} before the run; "
        f"PostgreSQL {machine['postgresql']}, {machine['pgbouncer'] or 'no PgBouncer'}, {machine['pgbench']}, Python {machine['python']}, "
        f"pgleash {machine['revision']}; {result['date']}; {result['rounds']} rounds, median [least..most]. "
        f"TLS: {' / '.join(f'{name} {cipher}' for name, cipher in machine['ciphers'].items()) or 'none'}."
    ]
    head = ["CPU per query", "Clients", "Direct, /s", "PgBouncer, /s", "pgleash, /s", "PgBouncer, µs", "pgleash, µs", "Ratio", "Wake-ups"]
    for title, key in (("", "queries"), (" over TLS", "tls")):
        if result.get(key):
            parts.append(_table([head[0] + title, *head[1:]], (_query(row) for row in result[key])))
    if result.get("queries"):
        names = ["direct", "pgbouncer", "pgleash"]
        rows = [row for row in result["queries"] if row["clients"] == 1]
        cells = ([row["case"], *(_figure(row, name, key, 0) for key in ("p50_us", "p99_us") for name in names)] for row in rows)
        parts.append(_table(["Latency, one client, µs", *(f"{name} {key}" for key in ("p50", "p99") for name in names)], cells))
    if "asked" in result:
        parts.append(
            _table(["Calls into Python per query", "pgleash"], ([name, f"{value:.4f}"] for name, value in result["asked"].items()))
        )
    if result.get("bulk"):
        head = ["Bulk", "Direct, MB/s", "PgBouncer, MB/s", "pgleash, MB/s", "PgBouncer, s/GB", "pgleash, s/GB", "Ratio"]
        parts.append(_table(head, (_bulk(row) for row in result["bulk"])))
    if "connections" in result:
        made = result["connections"]
        cells = ([name, _spread(one["cpu_us"], 0), _spread(made["ratio"].get(name), 2)] for name, one in made["summary"].items())
        parts.append(_table(["New connection over TLS with one query", "µs CPU", "Ratio"], cells))
    if "memory" in result:
        memory = result["memory"]
        parts.append(
            _table(
                [f"Idle connection ({memory['connections']})", "KiB"],
                ([name, f"{value:.1f}"] for name, value in memory["idle_kib"].items()),
            )
        )
        parts.append(
            _table(["A client that reads nothing of 1 GB", "MiB"], ([name, f"{value:.1f}"] for name, value in memory["unread_mib"].items()))
        )
    if "kernels" in result:
        parts.append(_table(["Kernels and statements", "Figure"], ([name, _spread(one, 2)] for name, one in result["kernels"].items())))
    cells = (
        [goal.what, "-" if goal.value is None else f"{goal.value:.2f}{goal.unit}", f"{goal.limit:.2f}{goal.unit}", goal.verdict]
        for goal in goals(result)
    )
    parts.append(_table(["Goal", "Figure", "At most", ""], cells))
    return "\n\n".join(parts)


def _query(row: dict[str, Any]) -> list[str]:
    rates = [_figure(row, name, "tps", 0, short=True) for name in ("direct", "pgbouncer", "pgleash")]
    wakeups = _figure(row, "pgleash", "wakeups", 2, short=True)
    return [
        row["case"],
        str(row["clients"]),
        *rates,
        _figure(row, "pgbouncer", "cpu_us", 1),
        _figure(row, "pgleash", "cpu_us", 1),
        _spread(row["ratio"], 2),
        wakeups,
    ]


def _bulk(row: dict[str, Any]) -> list[str]:
    rates = [_figure(row, name, "mb_s", 0, short=True) for name in ("direct", "pgbouncer", "pgleash")]
    costs = [_figure(row, name, "cpu_s_gb", 2) for name in ("pgbouncer", "pgleash")]
    return [row["case"] + (", TLS" if row["tls"] else ""), *rates, *costs, _spread(row["ratio"], 2)]


def _figure(row: dict[str, Any], name: str, key: str, digits: int, *, short: bool = False) -> str:
    one = row["summary"].get(name, {}).get(key)
    if one is None:
        return "-"
    return f"{one['median']:.{digits}f}" if short else _spread(one, digits)


def _spread(one: dict[str, float] | None, digits: int) -> str:
    return "-" if one is None else f"{one['median']:.{digits}f} [{one['min']:.{digits}f}..{one['max']:.{digits}f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    every = [list(head), *map(list, rows)]
    wide = [max(len(row[at]) for row in every) for at in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) + " |" for row in every]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in wide) + "|", *lines[1:]])


def replace_part(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Put ``text`` between the document's markers ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document} has no part {name}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")

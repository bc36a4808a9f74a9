"""The labels of the columns that a statement reads or writes, for conditions on labels.

What can't be traced may be anything of the tables touched, and what a function of unknown effects reads anything at all.
Never add here: masks, principals or rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from control.policy.catalog import Snapshot
from control.policy.facts import Facts, Node
from control.policy.lineage import UNKNOWN, Column, trace
from control.policy.rules import Policy

__all__ = ["labels_of_column", "labels_of_tables", "used_labels"]

_WRITES = ("InsertStmt", "UpdateStmt", "MergeStmt")


def used_labels(
    policy: Policy, facts: Facts, snapshot: Snapshot, paths: Iterable[tuple[str, ...]], opaque: Iterable[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """(labels that are certainly used, labels that may be)."""
    used: set[Column] = set()
    doubtful = facts.tree is None
    near: set[tuple[str, str]] = set()
    for path in paths:
        near |= {_place(snapshot, access.schema, access.name, path) for access in facts.accesses}
        if facts.tree is None:
            continue
        lineage = trace(facts.tree, snapshot, path)
        columns = set().union(lineage.reads, lineage.predicates, lineage.writes, lineage.sinks, *(flow.columns for flow in lineage.outputs))
        columns |= _written(facts.tree, snapshot, path)
        doubtful = doubtful or UNKNOWN in columns or not lineage.exact
        used |= columns - {UNKNOWN}
        near |= {(schema, name) for schema, _, name in (table.partition(".") for table in lineage.touched)}
    certain = frozenset(label for column in used for label in labels_of_column(policy, snapshot, column))
    possible: set[str] = set()
    if any(opaque):
        possible = {label for label, _ in policy.labels}
    elif doubtful:
        places = [relation for place in near if (relation := snapshot.by_name.get(place)) is not None]
        every = [(relation.schema, relation.name, name) for relation in places for name in relation.columns.values()]
        possible = {label for column in every for label in labels_of_column(policy, snapshot, column)}
    for inner in facts.inner:
        more, maybe = used_labels(policy, inner, snapshot, paths, ())
        certain, possible = certain | more, possible | maybe
    return certain, frozenset(possible)


def labels_of_tables(policy: Policy, snapshot: Snapshot, tables: Iterable[str]) -> frozenset[str]:
    """The labels of every column of these tables (``schema.name``), any of which may be used."""
    places = {(schema, name) for schema, _, name in (table.partition(".") for table in tables)}
    found = [relation for place in places if (relation := snapshot.by_name.get(place)) is not None]
    columns = ((each.schema, each.name, name) for each in found for name in each.columns.values())
    return frozenset(label for column in columns for label in labels_of_column(policy, snapshot, column))


def labels_of_column(policy: Policy, snapshot: Snapshot, column: Column) -> set[str]:
    """A column's labels; tables connected by inheritance or partitioning share theirs by the column's name."""
    schema, table, name = column
    places = {(schema, table)}
    if (relation := snapshot.by_name.get((schema, table))) is not None:
        kin = snapshot.kin.get(relation.oid, frozenset())
        places |= {(each.schema, each.name) for oid in kin if (each := snapshot.relations.get(oid)) is not None}
    return {label for place in places for label in policy.labels_of(".".join((*place, name)))}


def _place(snapshot: Snapshot, schema: str, name: str, path: tuple[str, ...]) -> tuple[str, str]:
    relation = snapshot.resolve(schema, name, path)
    return (relation.schema, relation.name) if relation is not None else (schema, name)


def _written(tree: Any, snapshot: Snapshot, path: tuple[str, ...]) -> set[Column]:
    """The columns that INSERT, UPDATE and MERGE anywhere in the tree write to, through views down to their tables."""
    found: set[Column] = set()
    if isinstance(tree, list):
        return found.union(*(_written(item, snapshot, path) for item in tree))
    if not isinstance(tree, dict):
        return found
    for name, node in tree.items():
        if name in _WRITES and isinstance(node, dict):
            found |= _targets(name, node, snapshot, path)
        found |= _written(node, snapshot, path)
    return found


def _targets(name: str, node: Node, snapshot: Snapshot, path: tuple[str, ...]) -> set[Column]:
    target = node["relation"]
    relation = snapshot.resolve(target.get("schemaname", ""), target["relname"], path)
    if relation is None:
        return {UNKNOWN}
    named = [*node.get("cols", ()), *(() if name == "InsertStmt" else node.get("targetList", ()))]
    named += node.get("onConflictClause", {}).get("targetList", ())
    everything = name == "InsertStmt" and "cols" not in node
    for item in node.get("mergeWhenClauses", ()):
        clause = item["MergeWhenClause"]
        named += clause.get("targetList", ())
        everything = everything or (clause.get("commandType") == "CMD_INSERT" and "targetList" not in clause)
    names = {each["ResTarget"].get("name", "") for each in named if "ResTarget" in each}
    if everything:
        names |= set(relation.columns.values())
    wanted = [{"ResTarget": {"val": {"ColumnRef": {"fields": [{"String": {"sval": each}}]}}}} for each in sorted(names) if each]
    place = {"RangeVar": {"schemaname": relation.schema, "relname": relation.name}}
    lineage = trace({"SelectStmt": {"targetList": wanted, "fromClause": [place]}}, snapshot, path)
    return set().union(*(flow.columns for flow in lineage.outputs))

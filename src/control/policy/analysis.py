"""One statement under one catalog and search path: its resolved tables, what it does with labelled columns, its masks.

Joins facts, lineage, catalog and the principal's masks. Never add here: rules, or anything that a session remembers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from control.policy.catalog import Relation, Snapshot
from control.policy.decide import Touch
from control.policy.facts import Access, Facts, Refusal
from control.policy.lineage import UNKNOWN, Column, Flow, Lineage, trace
from control.policy.narrowing import narrows
from control.policy.rules import Mask, Policy
from pgwire.ports import MaskRule

__all__ = ["Masking", "Outputs", "forbidden_use", "is_wide", "result_columns", "stricter", "touches"]

_KINSHIP = ("AddInherit", "DropInherit", "AttachPartition", "DetachPartition")
_STRICTNESS = ("null", "fixed", "pseudonym", "keep_last", "keep_first", "email")
Path = tuple[str, ...]


class Masking:
    """The masks that one principal sees in one database, asked by column. ``kin`` tables share their labels by column name."""

    __slots__ = ("__weakref__", "_known", "_masks", "_policy", "_snapshot", "_traced")

    def __init__(self, policy: Policy, masks: Mapping[str, Mask], snapshot: Snapshot) -> None:
        self._policy, self._masks, self._snapshot = policy, masks, snapshot
        self._known: dict[Column, Mask | None] = {}
        self._traced: tuple[Facts, tuple[Path, ...], list[Lineage]] | None = None

    def __bool__(self) -> bool:
        return bool(self._masks)

    def mask(self, column: Column) -> Mask | None:
        """The strictest mask on a base column; for ``UNKNOWN`` a nulling one, since it may be anything labelled."""
        if column not in self._known:
            self._known[column] = self._find(column)
        return self._known[column]

    def _find(self, column: Column) -> Mask | None:
        if not self._masks:
            return None
        if column == UNKNOWN:
            return Mask("unknown", "null")
        schema, table, name = column
        tables = {(schema, table)}
        if (relation := self._snapshot.by_name.get((schema, table))) is not None:
            relatives = self._snapshot.kin.get(relation.oid, frozenset())
            tables |= {(each.schema, each.name) for oid in relatives if (each := self._snapshot.relations.get(oid)) is not None}
        labels = {label for place in tables for label in self._policy.labels_of(".".join((*place, name)))}
        found = [mask for label, mask in self._masks.items() if label in labels]
        return min(found, key=lambda mask: _STRICTNESS.index(mask.action)) if found else None

    def traces(self, facts: Facts, snapshot: Snapshot, paths: tuple[Path, ...]) -> list[Lineage]:
        """The lineage under each search path. A statement is asked for twice in a row: what it may do, and its columns."""
        if facts.tree is None:
            return []
        last = self._traced
        if last is not None and last[0] is facts and last[1] == paths and snapshot is self._snapshot:
            return last[2]
        found = [trace(facts.tree, snapshot, path) for path in paths]
        if snapshot is self._snapshot:
            self._traced = (facts, paths, found)
        return found

    def sensitive(self, columns: Iterable[Column]) -> list[tuple[Column, Mask]]:
        """Those of ``columns`` that are masked, with their masks."""
        return [(column, mask) for column in sorted(columns) if (mask := self.mask(column)) is not None]

    def labelled(self, relation: Relation) -> bool:
        """Whether any column of a relation is masked."""
        return any(self.mask((relation.schema, relation.name, name)) for name in relation.columns.values())

    def of_flow(self, flow: Flow) -> MaskRule | None:
        """The mask of an output column: the label's own action for the bare column, null for anything computed from it."""
        found = self.sensitive(flow.columns)
        if not found:
            return None
        rules = {(mask.action, mask.label, mask.argument) for _, mask in found}
        if flow.bare and len(rules) == 1:
            return MaskRule(*next(iter(rules)))
        return MaskRule("null", found[0][1].label)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The masks of one result by position. ``exact`` False: their number is not known and ``rest`` holds for each."""

    masks: tuple[MaskRule | None, ...]
    exact: bool
    rest: MaskRule | None


def is_wide(access: Access, snapshot: Snapshot, path: Path) -> bool:
    """Whether an update or delete may change every row, as the catalog knows the table: its columns, and which are NOT NULL."""
    if not access.conditions:
        return access.wide

    def look(schema: str, name: str) -> tuple[frozenset[str], frozenset[str]] | None:
        relation = snapshot.resolve(schema, name, path)
        if relation is None or relation.kind not in ("r", "p") or not relation.columns:
            return None
        behind = snapshot.behind.get(relation.oid)
        return frozenset(relation.columns.values()), behind.not_null if behind is not None else frozenset()

    return any(not narrows(condition, look) for condition in access.conditions)


def touches(facts: Facts, snapshot: Snapshot, paths: tuple[Path, ...], temporary: frozenset[str]) -> tuple[Touch, ...]:
    """The tables a statement touches, resolved under each possible search path."""
    found: dict[Touch, None] = {}
    for access in facts.accesses:
        for path in paths:
            relation = snapshot.resolve(access.schema, access.name, path)
            if access.schema.startswith("pg_temp") or access.temporary or (not access.schema and access.name in temporary):
                table = f"pg_temp.{access.name}"
                if relation is not None and not access.temporary and not access.schema:
                    # The temporary table may be gone, or never have come about: then it is this one.
                    found[Touch(relation.qualified, access.verb, is_wide(access, snapshot, path))] = None
            elif relation is not None:
                table = relation.qualified
            else:
                home = next((place for place in path if place != "pg_catalog" and place in snapshot.schemas), "public")
                table = f"{access.schema or home}.{access.name}"
            found[Touch(table, access.verb, is_wide(access, snapshot, path))] = None
    return tuple(found)


def forbidden_use(
    facts: Facts, snapshot: Snapshot, paths: tuple[Path, ...], masking: Masking, behind: Sequence[str] = (), opaque: bool = False
) -> Refusal | None:
    """What a masked principal may not do with labelled columns: decide over rows by them, or carry them elsewhere.

    ``behind``: the tables that it reaches; ``opaque``: some of what it calls may read anything.
    """
    for inner in facts.inner:
        if facts.kind not in ("fetch", "move") and (refusal := forbidden_use(inner, snapshot, paths, masking, behind, opaque)) is not None:
            return refusal
    for lineage in masking.traces(facts, snapshot, paths):
        tried = [
            (lineage.predicates, "decide over rows (WHERE, JOIN, ORDER BY, GROUP BY, DISTINCT)", "Filter by columns that are not masked."),
            (lineage.writes, "be written elsewhere", "Leave the masked columns out."),
            (lineage.sinks, "be given to a function with effects of its own", "Leave the masked columns out."),
        ]
        if facts.copies_out:
            tried.append((frozenset().union(*(flow.columns for flow in lineage.outputs)), "leave by COPY", "Use SELECT; it is masked."))  # type: ignore[arg-type]
        for position, (columns, what, hint) in enumerate(tried):
            for column, mask in masking.sensitive(columns):
                if (
                    column == UNKNOWN
                    and (position == 0 or position == 1)
                    and not (opaque or _labels_near((*lineage.touched, *behind), snapshot, masking))
                ):
                    continue
                if position == 0 and mask.predicates:
                    continue
                name = ".".join(column) if column != UNKNOWN else "a value whose origin is not known"
                return Refusal(f"{name} is masked for you ({mask.label}) and can't {what}", hint)
    return _moves_labels(facts, snapshot, paths, masking)


def _labels_near(tables: Iterable[str], snapshot: Snapshot, masking: Masking) -> bool:
    """Whether anything labelled is in the statement's tables, so that an unknown value may be of it."""
    near = [snapshot.by_name.get((schema, name)) for schema, _, name in (table.partition(".") for table in tables)]
    return any(relation is not None and masking.labelled(relation) for relation in near)


def _moves_labels(facts: Facts, snapshot: Snapshot, paths: tuple[Path, ...], masking: Masking) -> Refusal | None:
    """Labels are by name: renaming, re-parenting or replacing what carries them would take them off."""
    if not facts.tree or facts.kind not in ("rename", "alter_object_schema", "alter_table", "create_table", "create_rule"):
        return None
    text = repr(facts.tree)
    if facts.kind == "alter_table" and not any(f"AT_{word}" in text for word in _KINSHIP):
        return None
    if facts.kind == "create_table" and "inhRelations" not in text:
        return None
    for access in facts.accesses:
        for path in paths:
            relation = snapshot.resolve(access.schema, access.name, path)
            if relation is not None and masking.labelled(relation):
                return Refusal(f"{relation.qualified} has columns that are masked for you and can't be renamed, moved or inherited from")
    return None


def result_columns(facts: Facts, snapshot: Snapshot, paths: tuple[Path, ...], masking: Masking) -> list[Outputs]:
    """The masks of the result that ``facts`` sends, one per way to read it (search paths, candidates of a name)."""
    if facts.inner:
        if facts.kind == "explain":
            return [Outputs((), False, None)]
        return [outputs for inner in facts.inner for outputs in result_columns(inner, snapshot, paths, masking)]
    if facts.kind in ("show", "explain"):
        return [Outputs((), False, None)]
    if not facts.outputs:
        return [Outputs((), False, MaskRule("null", "unknown"))]
    found = []
    for lineage in masking.traces(facts, snapshot, paths):
        everything = Flow(frozenset().union(*(flow.columns for flow in lineage.outputs)))
        masks = tuple(masking.of_flow(flow) for flow in lineage.outputs)
        found.append(Outputs(masks, lineage.exact, masking.of_flow(everything)))
    return found


def stricter(one: MaskRule | None, two: MaskRule | None) -> MaskRule | None:
    """The stricter of two mask rules."""
    if one is None or two is None:
        return one or two
    return min((one, two), key=lambda rule: _STRICTNESS.index(rule.action))

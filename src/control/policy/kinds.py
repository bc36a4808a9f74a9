"""The kinds of statements that there are, from PostgreSQL's grammar: what rules may name in ``when.kinds``.

Never add here: what a kind means.
"""

from __future__ import annotations

import pglast.ast
from pglast.enums import ObjectType

from control.policy.facts import TOLD_KINDS
from control.policy.reading import DEFINED_KINDS, defined, object_kind

__all__ = ["KINDS"]

# nodes whose statements have more telling kinds, or that are no statements
_OTHERWISE = frozenset(
    {
        "CopyStmt", "DeclareCursorStmt", "ClosePortalStmt", "VariableSetStmt", "VariableShowStmt", "TransactionStmt", "DropStmt",
        "DefineStmt", "RawStmt", "PLAssignStmt", "ReturnStmt", "SetOperationStmt", "ReplicaIdentityStmt",
    }
)  # fmt: skip


def _every() -> frozenset[str]:
    nodes = {defined(name) for name in vars(pglast.ast) if name.endswith("Stmt") and name not in _OTHERWISE}
    objects = {object_kind(each.name) for each in ObjectType}
    made = {f"{verb}_{each}" for verb in ("create", "drop") for each in objects}
    return frozenset(nodes | made | DEFINED_KINDS | TOLD_KINDS)


KINDS = _every()

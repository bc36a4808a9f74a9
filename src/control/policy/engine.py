"""The policy at work: implements the data plane's ``Policy`` and ``SessionPolicy`` with rules, catalogs and sessions' state.

Never add here: what a rule means (decide.py) or what a statement is (facts.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

import psycopg

from control.policy.analysis import Masking, forbidden_use, result_columns, stricter, touches
from control.policy.binding import SessionSettings, bound
from control.policy.bound import BoundValues
from control.policy.budgets import Budgets
from control.policy.catalog import CatalogSource, Snapshot
from control.policy.decide import Ruling, Touch, decide
from control.policy.document import read_policy
from control.policy.duties import mixed, strictest
from control.policy.effects import Effects, Reach
from control.policy.facts import Facts, Unreadable
from control.policy.labels import labels_of_tables, used_labels
from control.policy.pending import hidden, unseen_after, with_effects
from control.policy.reading import read_facts
from control.policy.remembered import SessionNames, SessionState, shared, split_path, temporary_names
from control.policy.rules import Policy, PolicyError, claim_values, matches, next_turn
from control.policy.standing import loosened, pinned
from control.policy.verdicts import too_deep, unreadable, used_up, verdict_of
from control.policy.weigh import Circumstances
from pgwire.ports import Binding, Budget, Column, Effect, Grant, Lease, MaskRule, Principal, Refused, Scope, Statement, Verdict

__all__ = ["GrantTemplate", "PolicyEngine", "SessionJudge"]

_OFF_LOOP_BYTES = 16384
_REMEMBERED = 512
_MOST_PATHS = 4
_ALONE = frozenset({"create_database", "drop_database", "alter_database", "rename"})  # the server wants a database without sessions for it
_SEVERITY = {Effect.ALLOW: 0, Effect.HOLD: 1, Effect.DENY: 2}


@dataclass(frozen=True, slots=True)
class GrantTemplate:
    """An automatic grant that the policy gives at connect. ``duration`` in seconds."""

    scope: Scope
    duration: float


class PolicyEngine:
    """Implements ``ports.Policy``. ``catalogs`` has one source per database name as clients know it, ``servers`` its HOST:PORT.

    ``document`` is a policy to judge by instead of the file's. ``clock`` gives Unix seconds, for rules that look at the time.
    """

    def __init__(
        self,
        policy_file: Path,
        catalogs: Mapping[str, CatalogSource],
        servers: Mapping[str, str] | None = None,
        *,
        document: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = policy_file
        self._document = document
        self._catalogs = dict(catalogs)
        self._servers = dict(servers or {})
        self._clock = clock
        self._open: tuple[bool, ...] = ()
        self.budgets = Budgets()
        self.aside: Callable[[], None] | None = None  # closes other connections that the gateway keeps
        self.texts: dict[bytes, tuple[Facts, ...]] = {}  # what was read of texts that use no name of a session's
        self._maskings: WeakValueDictionary[tuple[object, ...], Masking] = WeakValueDictionary()
        self._reaches: WeakValueDictionary[int, Reach] = WeakValueDictionary()
        self._policy = self._read()

    async def step_aside(self) -> None:
        """Close what the gateway itself has open on the databases: catalogs' connections come back when they are wanted."""
        for catalog in self._catalogs.values():
            await catalog.rest()
        if self.aside is not None:
            self.aside()

    @property
    def version(self) -> str:
        """The policy document's short SHA-256."""
        return self._policy.version

    @property
    def policy(self) -> Policy:
        """The document in force."""
        return self._policy

    def _read(self) -> Policy:
        if self._document is not None:
            return read_policy(self._document, str(self._file))
        try:
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"{self._file}: can't be read: {error}") from None
        return read_policy(text, str(self._file))

    def reload(self, note: Callable[[str], object]) -> bool:
        """Read the document again; open sessions follow at their next statement. Answers whether it is another one.

        ``note`` is told the version first; if it or the reading (``PolicyError``) raises, the old document stays.
        """
        read = self._read()
        changed = read.version != self._policy.version
        if changed:
            note(read.version)
            self._policy = read
        return changed

    def next_turn(self) -> float:
        """Seconds until a time that rules look at begins or ends; infinite: there is none."""
        windows = self._policy.windows
        turn = next_turn(windows, self.now()) if windows else None
        return float("inf") if turn is None else max(0.001, (turn - self.now()).total_seconds())

    def turned(self) -> bool:
        """Whether a time that rules look at has begun or ended since this was asked last."""
        windows = self._policy.windows
        now = self.now() if windows else None
        before, self._open = self._open, tuple(window.open(now) for window in windows) if now is not None else ()
        return before != self._open

    def instead(self, document: str, name: str, clock: Callable[[], float] | None = None) -> PolicyEngine:
        """An engine over the same databases that judges by another document. Raises ``PolicyError``."""
        return PolicyEngine(Path(name), self._catalogs, self._servers, document=document, clock=clock or self._clock)

    def at(self, clock: Callable[[], float]) -> PolicyEngine:
        """This one, at another time."""
        other = copy(self)
        other._clock = clock
        return other

    def now(self) -> datetime:
        """The time that rules look at."""
        return datetime.fromtimestamp(self._clock(), UTC)

    def server(self, database: str) -> str:
        """HOST:PORT of the server behind a database; empty when it is not known."""
        return self._servers.get(database, "")

    def auto_grant(self, principal: Principal, database: str) -> GrantTemplate | None:
        """The first automatic grant for this principal on this database, or None."""
        for grant in self._policy.grants:
            if matches((grant.database,), database) and grant.who.covers(principal):
                return GrantTemplate(Scope(database, grant.tables, grant.verbs), grant.duration)
        return None

    def masking(self, principal: Principal, database: str, snapshot: Snapshot) -> Masking:
        """What this principal sees there; one object for all sessions that see the same."""
        masks = self._policy.masks_for(principal, database)
        key = (self._policy.version, id(snapshot), frozenset(masks.items()))
        found = self._maskings.get(key)
        if found is None:
            found = self._maskings[key] = Masking(self._policy, masks, snapshot)
        return found

    def reach(self, snapshot: Snapshot) -> Reach:
        """The effects under a snapshot; one object for all sessions, so that a body is read once."""
        if (found := self._reaches.get(id(snapshot))) is None:
            found = self._reaches[id(snapshot)] = Reach(snapshot)  # it keeps the snapshot, and so its id
        return found

    def most_sessions(self, principal: Principal, database: str) -> int | None:
        """How many sessions this principal may have there at a time; None: no limit."""
        return self._policy.limits_for(principal, database)[0]

    def catalog(self, database: str) -> CatalogSource:
        """The database's catalog. Raises ``Refused`` 3D000."""
        try:
            return self._catalogs[database]
        except KeyError:
            raise Refused("3D000", f"there is no database {database!r} here") from None

    async def open(self, principal: Principal, grant: Grant, lease: Lease) -> SessionJudge:
        """See ``ports.Policy``."""
        source = self.catalog(grant.scope.database)
        path = lease.parameters.get("search_path")
        try:
            snapshot = await (source.snapshot() if path is None else source.refresh())
        except (psycopg.Error, OSError) as error:
            raise Refused("08006", "the database's catalog can't be read", private=str(error)) from error
        return SessionJudge(self, source, snapshot, principal, grant.scope, lease.user, path, lease.parameters)


class SessionJudge:
    """Implements ``ports.SessionPolicy`` for one session."""

    __slots__ = (
        "_before", "_bound", "_default", "_engine", "_key", "_labelling", "_local", "_masking", "_open", "_policy", "_principal",
        "_reach", "_scope", "_seen", "_snapshot", "_source", "_stale", "_standing", "_state", "_user", "changed", "explains",
    )  # fmt: skip

    def __init__(
        self,
        engine: PolicyEngine,
        source: CatalogSource,
        snapshot: Snapshot,
        principal: Principal,
        scope: Scope,
        user: str,
        path: str | None,
        began: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._engine, self._source, self._snapshot = engine, source, snapshot
        self._principal, self._scope, self._user = principal, scope, user
        self._default = self._path(split_path(path if path is not None else snapshot.search_path))
        self._state = SessionState((self._default,))
        self._before: tuple[tuple[str, ...], ...] | None = None  # the paths when the transaction began to change them
        self._local = False
        self._stale = False
        self._seen: dict[bytes, tuple[Facts, ...]] = engine.texts
        self._key: int | None = None
        self.explains: list[Ruling] | None = None  # a list: the rulings are added to it
        self._open: tuple[bool, ...] = ()  # which of the policy's times are, as far as the key knows
        self.changed = SessionSettings(began)
        self._refresh_masking()

    def _refresh_masking(self) -> None:
        self._policy = self._engine.policy
        self._standing = self._policy.standing_for(self._principal, self._scope.database)
        self._bound = any(rule.when.parameters for rule in self._policy.rules)
        self._labelling = any(rule.when.labels for rule in self._policy.rules)
        self._masking = self._engine.masking(self._principal, self._scope.database, self._snapshot)
        self._reach = self._engine.reach(self._snapshot)
        self._forget()

    def _forget(self) -> None:
        self._key = None

    def _path(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._user if name == "$user" else name for name in names)

    @property
    def key(self) -> int:
        """See ``ports.SessionPolicy``."""
        if self._source.present is not None:
            self._adopt(self._source.present)
        if self._policy is not self._engine.policy:
            self._refresh_masking()
        if self._policy.windows and (windows := self._windows()) != self._open:
            self._open, self._key = windows, None
        if self._key is None:
            state = self._state
            claims = [claim_values(self._principal.claims, path) for path in self._policy.claims]
            who = (self._principal.subject, self._principal.acts_for, sorted(self._principal.groups), claims, self._open)
            scope = (self._scope.database, self._scope.tables, sorted(self._scope.verbs))
            names = sorted(state.temporary), sorted(state.unseen)
            every = (self._policy.version, who, scope, state.paths, names, self._snapshot.version, self._stale)
            self._key = int.from_bytes(hashlib.blake2b(repr(every).encode(), digest_size=8).digest(), "big")
        return self._key

    def _windows(self) -> tuple[bool, ...]:
        now = self._engine.now()
        return tuple(window.open(now) for window in self._policy.windows)

    @property
    def shortest(self) -> float | None:
        """See ``ports.SessionPolicy``."""
        return self._standing.statement_timeout

    @property
    def typed(self) -> bool:
        """See ``ports.SessionPolicy``."""
        return self._bound or any(rule.effect is Effect.HOLD for rule in self._policy.rules)

    @property
    def settings(self) -> Mapping[str, str]:
        """See ``ports.SessionPolicy``."""
        return pinned(self._standing)

    @property
    def scrubs(self) -> bool:
        """See ``ports.SessionPolicy``."""
        return bool(self._masking)

    async def _fresh(self, facts: tuple[Facts, ...] = ()) -> None:
        if self._policy is not self._engine.policy:
            self._refresh_masking()
        missing = any(
            self._snapshot.resolve(access.schema, access.name, path) is None
            for each in facts
            for access in each.accesses
            for path in self._state.paths
            if access.verb != "ddl" and access.name not in self._state.temporary
        )
        if self._stale or missing:
            self._adopt(await self._source.refresh())
            self._stale = False
        else:
            self._adopt(await self._source.snapshot())

    def _adopt(self, snapshot: Snapshot) -> None:
        if snapshot.version != self._snapshot.version:
            self._snapshot = snapshot
            self._refresh_masking()

    async def _read(self, statement: Statement) -> tuple[Facts, ...]:
        text, names, seen = statement.text, SessionNames(statement), self._seen
        known = seen.get(text)
        if known is None:
            if len(text) > _OFF_LOOP_BYTES:
                known = await asyncio.to_thread(read_facts, text, names)
            else:
                known = read_facts(text, names)
            if len(seen) >= _REMEMBERED:
                seen.pop(next(iter(seen)))
            if not names.asked:  # what a name stands for may change
                seen[text] = known
        return known

    async def judge(self, statement: Statement) -> Verdict:
        """See ``ports.SessionPolicy``."""
        if statement.protocol == "function":
            return await self._judge_call(statement)
        self._stale = self._stale or statement.fresh
        try:
            await self._fresh()
            facts = await self._read(statement)
            self._stale = self._stale or (len(facts) > 1 and self._shifts(facts))  # names under paths that are not ours yet
            await self._fresh(facts)
            before = self._snapshot.version
        except Unreadable as error:
            return unreadable(self._engine.version, error)
        except psycopg.errors.LockNotAvailable:
            return unreadable(self._engine.version, Unreadable("55P03", "a definition that has changed is locked: it can't be judged yet"))
        values = await self._values(statement, facts)
        verdict, touched = await self._decided(statement, facts, values)
        if verdict.effect is Effect.HOLD and await self.renew() != before:
            # It is held, and judged again when it is approved, by the catalog of that moment.
            verdict, touched = await self._decided(statement, facts, values)
        if verdict.effect is not Effect.DENY and any(each.kind in _ALONE and not each.accesses for each in facts):
            await self._engine.step_aside()
            verdict = replace(verdict, cacheable=False)
        verdict = self._within_budget(statement, verdict)
        if verdict.effect is not Effect.HOLD or not statement.fresh:
            return shared(statement, facts, verdict)
        return replace(verdict, binding=await self._binding(statement, facts, touched))

    async def renew(self) -> int:
        """Look whether the catalog has changed behind us: the version judged by from now on. Raises ``psycopg.Error``."""
        self._adopt(await self._source.refresh())
        return self._snapshot.version

    async def _decided(
        self, statement: Statement, facts: tuple[Facts, ...], values: BoundValues | None
    ) -> tuple[Verdict, tuple[Touch, ...]]:
        """The verdict on what was read, and the tables touched. What is long is not judged on the loop of other sessions."""
        try:
            if len(statement.text) > _OFF_LOOP_BYTES:
                return await asyncio.to_thread(self._decide, statement, facts, values)
            return self._decide(statement, facts, values)
        except RecursionError:
            return too_deep(self._engine.version), ()

    def _decide(self, statement: Statement, facts: tuple[Facts, ...], values: BoundValues | None) -> tuple[Verdict, tuple[Touch, ...]]:
        found: list[tuple[Ruling, tuple[Touch, ...]]] = []
        behind: list[Effects] = []
        held = self._state.paths, self._state.temporary, self._state.unseen
        for position, each in enumerate(facts):
            behind.append(self._reach.of(each, self._state.paths, self._state.temporary))
            found.append(self._rule(each, statement, values, behind[-1]))
            if position < len(facts) - 1:
                self._state.unseen |= unseen_after(each, behind[-1], self._snapshot)
                if not self._masking:
                    self._foresee(each, facts)
        self._state.paths, self._state.temporary, self._state.unseen = held
        ruling = max((ruling for ruling, _ in found), key=lambda each: _SEVERITY[each.effect])
        touched = tuple(dict.fromkeys(touch for _, every in found for touch in every))
        # One text may SET and then use the names it changed. Masks are planned by what held before it: with them that is refused.
        if len(facts) > 1 and self._masking and self._shifts(facts):
            message = "a SET search_path or a temporary table and statements that come after it can't be sent as one text"
            ruling = Ruling(Effect.DENY, "built-in", (message,), message, "Send each statement in a message of its own.")
        if ruling.effect is not Effect.DENY and (why := mixed(facts, [each.obligations for each, _ in found])):
            ruling = Ruling(Effect.DENY, ruling.rule, (why,), why, "Send BEGIN, COMMIT and the like in messages of their own.")
        if self.explains is not None:
            self.explains += [each for each, _ in found]
        masks = bool(self._masking) and any(each.rows for each in facts) and self._rows_need_masks(facts)
        return verdict_of(self._policy.version, facts, ruling, found, touched, masks, behind), touched

    async def _binding(self, statement: Statement, facts: tuple[Facts, ...], touched: tuple[Touch, ...]) -> Binding:
        standing = {
            "role": self._user,
            "search_path": " | ".join(", ".join(path) for path in self._state.paths),
            "temporary": ", ".join(sorted(self._state.temporary)),
            "settings": self.changed.told(),
        }
        return await bound(statement.text, facts, touched, self._source, self._snapshot, self._state.paths, standing)

    async def _judge_call(self, statement: Statement) -> Verdict:
        """A function call message, as the SELECT of that function is judged. What it answers can't be masked, and it can't wait."""
        why, version = "built-in: function call message", self._engine.version
        await self._fresh()
        if not self._masking:
            name = await self._source.function(int(statement.text))
            if name is None:
                missing = f"function with OID {statement.text.decode()} does not exist"
                return Verdict(Effect.DENY, (missing,), "built-in", version, sqlstate="42883", message=missing)
            call = ".".join('"' + part.replace('"', '""') + '"' for part in name)
            verdict = await self.judge(replace(statement, text=f"SELECT {call}()".encode(), protocol="simple"))
            if verdict.effect is not Effect.HOLD:
                return replace(verdict, cacheable=False, any_literals=False)
            why = f"{verdict.rule}: it would be held, and a function call message can't wait"
        message = "the function call message is not available"
        return Verdict(Effect.DENY, (why,), "built-in", version, message=message, hint="Use SELECT.")

    @property
    def budget(self) -> Budget | None:
        """See ``ports.SessionPolicy``."""
        if self._policy is not self._engine.policy:
            self._refresh_masking()
        rate = self._policy.limits_for(self._principal, self._scope.database)[1]
        return None if rate is None else self._engine.budgets.of(self._principal.subject, self._scope.database, rate)

    def _within_budget(self, statement: Statement, verdict: Verdict) -> Verdict:
        budget = self.budget
        if budget is None or verdict.effect is Effect.DENY or statement.protocol == "parse" or statement.counted:
            return verdict
        wait = budget.take(time.monotonic())
        if wait == 0:
            return verdict
        return used_up(verdict.policy_version, budget.per_minute, wait)

    def _foresee(self, facts: Facts, every: tuple[Facts, ...]) -> None:
        """What the rest of one text meets after ``facts``: if they fail, the rest does not run."""
        state = self._state
        state.temporary |= temporary_names(facts)
        for setting in facts.settings:
            if setting.name in ("search_path", "*"):
                new = self._default if setting.values is None else self._path(setting.values)
                sure = not setting.local and not any("transaction" in each.verbs for each in every)
                state.paths = (new,) if sure else tuple(dict.fromkeys((*state.paths, new)))

    def _shifts(self, facts: tuple[Facts, ...]) -> bool:
        moved = False
        for each in facts:
            if moved and (each.accesses or each.inner):
                return True
            moved = moved or any(setting.name in ("search_path", "*") for setting in each.settings)
            moved = moved or any(access.temporary for access in each.accesses)
        return False

    def _rule(self, facts: Facts, statement: Statement, values: BoundValues | None, effects: Effects) -> tuple[Ruling, tuple[Touch, ...]]:
        state = self._state
        touched = tuple(dict.fromkeys((*touches(facts, self._snapshot, state.paths, state.temporary), *effects.touches)))
        facts = with_effects(facts, effects, hidden(state.unseen, facts, effects, touched))
        if statement.protocol == "parse" and facts.kind in ("execute", "fetch", "move"):
            # What the name stands for is asked when it is executed.
            facts = replace(facts, unknown_name="", refusals=tuple(each for each in facts.refusals if each.sqlstate != "0A000"))
        opaque = tuple(sorted(effects.unknown))
        around = Circumstances(
            self._engine.now(), self._engine.server(self._scope.database), values=values, preparing=statement.protocol == "parse"
        )
        if self._labelling:
            labels, possible = used_labels(self._policy, facts, self._snapshot, state.paths, opaque)
            behind = (touch.table for touch in effects.touches if not touch.via.startswith(("view ", "part of ", "parent of ")))
            around = replace(around, labels=labels, possible=possible | labels_of_tables(self._policy, self._snapshot, behind))
        ruling = decide(self._policy, self._principal, self._scope, facts, touched, opaque, around)
        if ruling.effect is not Effect.DENY and (why := loosened(self._standing, facts)):
            ruling = Ruling(Effect.DENY, "built-in", (why,), why, "Leave it as the policy has set it.", weighed=ruling.weighed)
        if facts.kind == "fetch" and ruling.effect is Effect.ALLOW:
            ruling = self._fetched(facts, statement, ruling)
        if statement.protocol == "parse" and ruling.hold is not None:
            # It may be prepared, and is asked for again when it is executed: the terms stay, so that no one keeps this verdict.
            prepared = decide(self._policy, self._principal, self._scope, replace(facts, executes=False), touched, opaque, around)
            ruling = replace(prepared, hold=ruling.hold)
        if ruling.effect is not Effect.DENY and self._masking:
            refusal = forbidden_use(facts, self._snapshot, state.paths, self._masking, [each.table for each in touched], bool(opaque))
            if refusal is not None:
                why = f"mask: {refusal.message}"
                return Ruling(Effect.DENY, "mask", (why,), f"{refusal.message}", refusal.hint, weighed=ruling.weighed), touched
        return ruling, touched

    def _fetched(self, facts: Facts, statement: Statement, ruling: Ruling) -> Ruling:
        """A FETCH is judged as the query of its cursor is now; what was held was asked for when the cursor was declared."""
        paths, temporary = self._state.paths, self._state.temporary
        inner = [self._rule(each, statement, None, self._reach.of(each, paths, temporary))[0] for each in facts.inner]
        denied = next((each for each in inner if each.effect is Effect.DENY and not any(word.error for word in each.weighed)), None)
        return denied or replace(ruling, obligations=strictest((ruling.obligations, *(each.obligations for each in inner))))

    async def _values(self, statement: Statement, facts: tuple[Facts, ...]) -> BoundValues | None:
        """The bound values, where a rule may look at them, with their types, where the format does not say them."""
        if not self._bound or statement.protocol != "execute":
            return None
        count = len(statement.parameters)
        types = (*statement.parameter_types, *(0,) * count)[:count]
        if any(code == 1 and not oid for code, oid in zip(statement.parameter_formats, types, strict=False)) and len(facts) == 1:
            types = await self._source.parameter_types(statement.text, statement.parameter_types, self._state.paths) or types
        return BoundValues(statement.parameters, statement.parameter_formats, types)

    def _rows_need_masks(self, facts: tuple[Facts, ...]) -> bool:
        for each in facts:
            if each.rows:
                for outputs in result_columns(each, self._snapshot, self._state.paths, self._masking):
                    if any(outputs.masks) or outputs.rest is not None:
                        return True
        return False

    async def columns(self, statement: Statement, index: int, columns: tuple[Column, ...]) -> tuple[MaskRule | None, ...]:
        """See ``ports.SessionPolicy``. Masked if origin or lineage says so; the stricter of the two."""
        if not self._masking:
            return (None,) * len(columns)
        if any(column.table_oid and column.table_oid not in self._snapshot.relations for column in columns):
            self._adopt(await self._source.refresh())
        facts = await self._read(statement)
        chosen = [each for each in (facts[index : index + 1] or facts) if each.rows]
        by_lineage: list[MaskRule | None] = [None] * len(columns)
        for each in chosen or ():
            for outputs in result_columns(each, self._snapshot, self._state.paths, self._masking):
                fits = outputs.exact and len(outputs.masks) == len(columns)
                for position in range(len(columns)):
                    wish = outputs.masks[position] if fits else outputs.rest
                    by_lineage[position] = stricter(by_lineage[position], wish)
        if not chosen:
            by_lineage = [MaskRule("null", "unknown")] * len(columns)
        return tuple(stricter(self._by_origin(column), wish) for column, wish in zip(columns, by_lineage, strict=True))

    def _by_origin(self, column: Column) -> MaskRule | None:
        if not column.table_oid or not column.attribute:
            return None
        relation = self._snapshot.relations.get(column.table_oid)
        if relation is None or column.attribute < 0:
            return None
        name = relation.columns.get(column.attribute)
        if name is None:  # a column that the catalog, as committed, does not have yet
            return MaskRule("null", "unknown") if self._masking.labelled(relation) else None
        mask = self._masking.mask((relation.schema, relation.name, name))
        return MaskRule(mask.action, mask.label, mask.argument) if mask is not None else None

    def output_masks(self, statement: Statement) -> tuple[MaskRule | None, ...]:
        """The masks of the last result's columns by lineage alone, for an explanation."""
        facts = [each for each in self._seen.get(statement.text, ()) if each.rows]
        outputs = result_columns(facts[-1], self._snapshot, self._state.paths, self._masking) if facts else []
        return outputs[0].masks if outputs else ()

    def settled(self, statement: Statement, succeeded: bool) -> None:
        """See ``ports.SessionPolicy``."""
        try:
            facts = self._seen.get(statement.text) or read_facts(statement.text, SessionNames(statement))
        except Unreadable:
            return
        for each in facts:
            self.changed.follow(each, statement.status, succeeded)
            effects = self._reach.of(each, self._state.paths, self._state.temporary)
            if statement.status != "I" or len(facts) > 1:
                self._state.unseen |= unseen_after(each, effects, self._snapshot)
            if {"ddl"} & each.verbs or each.kind in ("do", "call") or effects.unknown:
                self._stale = True
            self._state.temporary |= temporary_names(each)
            if each.kind in ("commit", "rollback", "rollback_to", "prepare_transaction"):
                self._ended(each.kind, statement.status, succeeded)
            self._stale = self._stale or each.kind == "commit_prepared"
            for setting in each.settings:
                if setting.name in ("search_path", "*"):
                    self._moved(setting.values, setting.local, succeeded, statement.status)
        self._forget()

    def _moved(self, values: tuple[str, ...] | None, local: bool, succeeded: bool, status: str) -> None:
        if local and status == "I":
            return  # outside a transaction it has no effect
        new = self._default if values is None else self._path(values)
        if status != "I" and self._before is None:
            self._before = self._state.paths
        self._local = self._local or local
        self._state.paths = (new,) if succeeded else tuple(dict.fromkeys((*self._state.paths, new)))[-_MOST_PATHS:]

    def _ended(self, kind: str, status: str, succeeded: bool) -> None:
        if kind == "rollback_to":
            if self._before is not None:
                self._state.paths = tuple(dict.fromkeys((*self._before, *self._state.paths)))[-_MOST_PATHS:]
            return
        if self._before is not None:
            if kind == "rollback" or status == "E" or not succeeded:
                self._state.paths = self._before
            elif self._local:
                self._state.paths = tuple(dict.fromkeys((*self._before, *self._state.paths)))[-_MOST_PATHS:]
        self._before, self._local, self._state.unseen = None, False, frozenset()
        self._stale = True  # definitions of the transaction are visible, or gone, only now

    def transaction_status(self, status: str) -> None:
        """See ``ports.SessionPolicy``."""
        if status == "I" and self._state.unseen:
            self._state.unseen, self._stale, self._key = frozenset(), True, None
        if status == "I" and self._before is not None:
            # It ended in a way that was not told (a failed COMMIT, an implicit transaction): either may hold.
            self._state.paths = tuple(dict.fromkeys((*self._before, *self._state.paths)))[-_MOST_PATHS:]
            self._before, self._local, self._key = None, False, None

"""What follows a report, a write, a lost connection, a person's word, or time: states, then triggers, then jobs.

All of it happens in the transaction that makes the cause known: the properties, their history, the
change of state, and what triggers make of it (`firing`). Deciding is `domain.states`; here it is read, and
written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection as DatabaseConnection

from iotjobs import clock
from iotjobs.domain import operators, states
from iotjobs.domain.entities import OwnerType, PropertyType
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.jobs import Cause, Ending
from iotjobs.domain.payloads import measure
from iotjobs.domain.rights import Caller
from iotjobs.domain.states import Condition, Heard, Judgement
from iotjobs.domain.statuses import Outcome
from iotjobs.domain.triggers import MAX_DEPTH
from iotjobs.engine.firing import Firing, FiringParts
from iotjobs.engine.happenings import Connection, Happening, Looked, Redefined, Reported, Said, Written
from iotjobs.engine.intake import Origin
from iotjobs.store import chains, entities, rules, standings, unheeded
from iotjobs.store.known import KnownRules
from iotjobs.store.standings import Snapshot
from iotjobs.store.unheeded import Unheeded
from iotjobs.store.writer import Transaction

PROPERTIES = 1000  # of one entity's own, as its definition may have
PROPERTIES_BYTES = 256 * 1024  # of all of these
LOOP_GUARD_CODE = "loopGuard"
LITTLE_BYTES = 1024  # a report of known names that says no more is not measured with the rest


class Reactions:
    """Gives happenings their effects. What it holds between two transactions is known to be as it was.

    Args:
        parts: what firing needs.
        heard: how far it is known, at a moment, what devices have said.
    """

    def __init__(self, parts: FiringParts, heard: Callable[[int], Heard] = Heard.all_until) -> None:
        self.parts, self.heard, self.known = parts, heard, KnownRules()

    def turn(self, tx: Transaction) -> Turn:
        """The happenings of one transaction, in their order; end it with `Turn.finish`."""
        return Turn(self, tx, clock.now_ms())

    def react(self, tx: Transaction, happening: Happening) -> bool:
        """A turn of one happening; False for a report that came before.

        Raises:
            NotFound: there is no such entity.
        """
        turn = self.turn(tx)
        had_effect = turn.take(happening)
        turn.finish()
        return had_effect

    def catch_up(self, tx: Transaction, owner_type: OwnerType, entity_id: str) -> None:
        """Give what has come due for an entity its effect, before its definition is changed; NotFound if there is none."""
        turn = self.turn(tx)
        turn.catch_up(owner_type, entity_id)
        turn.finish()

    def judged_now(self, conn: DatabaseConnection, snapshot: Snapshot) -> Judgement:
        """What would be decided of an entity's state, if it were looked at now; nothing is written."""
        now = clock.now_ms()
        return _judged(snapshot, rules.conditions_of(conn, snapshot.entity), now, self.heard(now))


class Turn:
    """What happens in one transaction. Entities are read once, and written once at its end."""

    def __init__(self, reactions: Reactions, tx: Transaction, now: int) -> None:
        self._reactions, self._tx, self._now = reactions, tx, now
        self._heard = reactions.heard(now)
        self._snapshots: dict[str, Snapshot] = {}
        self._wakes: dict[str, int | None] = {}  # of those to be saved
        self._written: set[str] = set()  # those whose properties are to be saved
        self._repeated: Counter[str] = Counter()
        self._caught_up: set[str] = set()
        self._known = reactions.known.at(tx.conn)
        self._firing = Firing(reactions.parts, tx, now, self._known)

    def read_ahead(self, object_ids: Iterable[str]) -> None:
        """Read together what will happen to objects that are locked."""
        self._snapshots.update(standings.load_objects(self._tx.conn, object_ids))

    def take(self, happening: Happening) -> bool:
        """Give it its effect; False for a report that came before.

        Raises:
            NotFound: there is no such entity.
            BadRequest: it would have too many properties, or too much in them.
        """
        snapshot, depth = self._snapshot(happening.owner_type, happening.entity_id), 0
        self._catch_up(snapshot)
        standing = snapshot.standing
        if isinstance(happening.what, Reported) and not self._is_whole(snapshot, happening.what):
            return self._take_parts(snapshot, happening, happening.what)
        if isinstance(happening.what, Reported | Written):
            _refuse_too_many(snapshot, happening.what.values)
        match happening.what:
            case Reported() as report:
                number = snapshot.reports + 1
                if not self._is_new(snapshot, report, number):
                    if (
                        standing.offline and not report.retained
                    ):  # behind an `offline` that came again with it
                        snapshot.heard(self._now)
                        self._judge(snapshot, 0)
                    return False
                depth = self._depth_behind(report.job_ids)
                snapshot.reports = number
                snapshot.superseded += report.superseded
                if not report.retained:
                    snapshot.heard(self._now)
                self._merge(snapshot, report.values, None, depth, alive=not report.retained)
            case Written() as written:
                depth = self._depth_behind(written.job_ids)
                self._merge(snapshot, written.values, written, depth)
            case Redefined() as redefined:
                self._redefine(snapshot, redefined)
            case Connection() as word:
                number = snapshot.reports + bool(word.ids)
                if not self._is_new(snapshot, word, number):
                    return False
                snapshot.reports = number
                snapshot.superseded += word.superseded
                if not word.retained or snapshot.is_news(word.online):
                    snapshot.standing = replace(standing, offline=not word.online)
                snapshot.online = word.online
                self._judge(snapshot, depth)
            case Said(forced, job_ids):
                snapshot.standing = replace(standing, forced=forced)
                self._judge(snapshot, self._depth_behind(job_ids))
            case Looked():
                self._judge(snapshot, depth)
        return True

    def catch_up(self, owner_type: OwnerType, entity_id: str) -> None:
        """See `Reactions.catch_up`."""
        snapshot = self._snapshot(owner_type, entity_id)
        self._catch_up(snapshot)
        self._links_of(snapshot)

    def finish(self) -> None:
        """Write what is to be written of entities and of what fired."""
        self._firing.finish()
        unheeded.add(self._tx, [(which, Unheeded(repeated=count)) for which, count in self._repeated.items()])
        standings.save_properties(self._tx, [self._snapshots[entity_id] for entity_id in self._written])
        wakes = self._wakes.items()
        standings.save(self._tx, [(self._snapshots[entity_id], wake_at) for entity_id, wake_at in wakes])
        if self._wakes and rules.version(self._tx.conn) != self._known.version:
            # Rules were changed since they were read, and whoever did it may have been before us: we have
            # just taken their word to decide anew away. A link that they made knows nothing of what we did.
            for entity_id in self._wakes:
                for changed in (entity_id, *standings.links_of(self._tx.conn, entity_id)):
                    standings.wake(self._tx, changed, self._now)
        self._repeated.clear()
        self._written.clear()
        self._wakes.clear()

    # --- entities -------------------------------------------------------------------------

    def _snapshot(self, owner_type: OwnerType, entity_id: str) -> Snapshot:
        found = self._snapshots.get(entity_id)
        if found is None:
            standings.lock(self._tx, owner_type, [entity_id])
            if owner_type is OwnerType.OBJECT:
                found = standings.load_object(self._tx.conn, entity_id)
            else:
                found = standings.load_link(self._tx.conn, entity_id, self._snapshots)
            if found is None:
                raise NotFound(f"there is no {owner_type.name.lower()} {entity_id}")
            self._snapshots[entity_id] = found
        return found

    def _depth_behind(self, job_ids: Sequence[str]) -> int:
        return chains.depth_behind(self._tx.conn, job_ids) if job_ids else 0

    def _is_whole(self, snapshot: Snapshot, report: Reported) -> bool:
        """Whether a report has its effect as one; else one that it was merged from would take others along."""
        if not report.parts:
            return True
        try:
            _refuse_too_many(snapshot, report.values)
        except BadRequest:
            return False
        return not report.ids or not standings.known_reports(self._tx.conn, [snapshot.entity.id], report.ids)

    def _take_parts(self, snapshot: Snapshot, happening: Happening, report: Reported) -> bool:
        """Give each that a report was merged from its own effect; whether one had one.

        Raises:
            BadRequest: the last that was refused; the others had theirs.
        """
        own = {part.report_id for part in report.parts}
        for report_id in report.ids:
            if report_id not in own:
                standings.is_new_report(self._tx, snapshot.entity.id, report_id, snapshot.reports + 1)
        snapshot.superseded += report.superseded + 1 - len(report.parts)
        refused, had_effect = None, False
        for part in report.parts:
            try:
                had_effect |= self.take(replace(happening, what=part))
            except BadRequest as error:
                refused = error
        if refused is not None:
            raise refused
        return had_effect

    def _is_new(self, snapshot: Snapshot, report: Reported | Connection, number: int) -> bool:
        """Note the ids of a report and of those that it stands for; whether one of them did not come before."""
        new = [standings.is_new_report(self._tx, snapshot.entity.id, one, number) for one in report.ids]
        if report.earlier_ids:
            standings.forget_oldest_reports(self._tx, snapshot.entity.id)
        if report.report_id is None or any(new):
            return True
        self._repeated[snapshot.entity.id] += 1 + report.superseded
        return False

    def _merge(
        self,
        snapshot: Snapshot,
        values: Mapping[str, Any],
        written: Written | None,
        depth: int,
        *,
        alive: bool = True,
    ) -> None:
        """Set properties, with what follows from it."""
        before = snapshot.entity.properties
        changed = {
            name: value
            for name, value in values.items()
            if name not in before or not operators.equal(before[name], value)
        }
        # What its class says too becomes its own as well: the class may say something else tomorrow.
        own = {name: value for name, value in values.items() if name in changed or name not in snapshot.own}
        if own:
            self._links_of(snapshot)  # what is due for them is so by what their ends are until now
            snapshot.set_properties(own)
            self._written.add(snapshot.entity.id)
        caller = None if written is None else written.caller
        self._follow(snapshot, changed, caller, depth, alive=alive)
        if written is not None:
            self._run_on_write(snapshot, values, written, depth)

    def _redefine(self, snapshot: Snapshot, redefined: Redefined) -> None:
        """Properties were written with the definition: what would have followed from them as such follows."""
        own, effective = snapshot.own, snapshot.entity.properties
        before, depth = redefined.before, self._depth_behind(redefined.job_ids)
        given = {
            name: value
            for name, value in own.items()
            if name not in before or not operators.equal(before[name], value)
        }
        gone = {name: effective.get(name, standings.GONE) for name in before if name not in own}
        self._follow(snapshot, {**given, **gone}, redefined.caller, depth)
        self._run_on_write(snapshot, given, redefined, depth)

    def _follow(
        self,
        snapshot: Snapshot,
        changed: Mapping[str, Any],
        caller: Caller | None,
        depth: int,
        *,
        alive: bool = True,
    ) -> None:
        """Keep properties' new values, and judge whatever can see them."""
        if changed:
            by = None if caller is None else caller.user_id
            standings.add_history(self._tx, snapshot.entity.id, changed, by, self._now)
        self._judge(snapshot, depth)
        for link in self._links_of(snapshot) if changed else ():
            link.see_ends(snapshot.entity)
            if alive:
                link.heard(self._now)
            self._judge(link, depth)

    def _links_of(self, snapshot: Snapshot) -> list[Snapshot]:
        """The links that an object is an end of, caught up."""
        found = []
        if snapshot.entity.owner_type is OwnerType.OBJECT:
            for link_id in self._known.links_of(self._tx.conn, snapshot.entity.id):
                try:
                    link = self._snapshot(OwnerType.LINK, link_id)
                except NotFound:
                    continue  # it was deleted since
                self._catch_up(link)
                found.append(link)
        return found

    def _run_on_write(
        self, snapshot: Snapshot, values: Mapping[str, Any], write: Written | Redefined, depth: int
    ) -> None:
        readwrite = [name for name in values if snapshot.types.get(name) == PropertyType.READWRITE]
        if not readwrite:
            return
        writes, refusal = chains.writes_behind(self._tx.conn, write.job_ids) if write.job_ids else 0, None
        if writes >= MAX_DEPTH:
            said = f"{writes} writes of properties that ran something stand before this one in one chain of causes"
            refusal = Ending(Outcome.REJECTED, error_code=LOOP_GUARD_CODE, error_message=said)
        before = {chains.TRIGGERS_BEFORE: depth, chains.WRITES_BEFORE: writes}
        meta = {name: count for name, count in before.items() if count} or None
        origin = Origin(meta=meta, listener=", ".join(sorted(readwrite)))
        for operation_id in entities.operations_on_write(self._tx.conn, snapshot.entity):
            self._firing.start(snapshot, operation_id, Cause.PROPERTY, origin, write.caller, refusal=refusal)

    # --- states ---------------------------------------------------------------------------

    def _judge(self, snapshot: Snapshot, depth: int) -> None:
        standing, entity = snapshot.standing, snapshot.entity
        conditions = self._known.conditions_of(self._tx.conn, entity)
        judged = _judged(snapshot, conditions, self._now, self._heard)
        self._wakes[entity.id] = judged.wake_at
        self._keep_depths(snapshot, judged, depth)
        forced = standing.forced
        if forced is not None and judged.why["by"] != "forced":
            forced = None  # its time is over
        holding, known_until = judged.holding, judged.known_until
        if (holding, known_until, forced) != (standing.holding, standing.known_until, standing.forced):
            snapshot.standing = replace(standing, holding=holding, known_until=known_until, forced=forced)
        if judged.state != standing.state:
            held = 0 if judged.hold_key is None else snapshot.hold_depths.get(judged.hold_key, 0)
            self._change(snapshot, judged, max(depth, held))
        elif states.overruled(judged.why) != snapshot.overruled:
            standings.add_reason(self._tx, snapshot, judged.why, self._now)
        snapshot.overruled = states.overruled(judged.why)

    def _keep_depths(self, snapshot: Snapshot, judged: Judgement, depth: int) -> None:
        """Time alone ends a hold: what follows then belongs to the chain of what began it."""
        began, before = snapshot.standing.holding, snapshot.hold_depths
        if depth or before:
            depths = {key: before.get(key, 0) if key in began else depth for key in judged.holding}
            snapshot.hold_depths = {key: of_key for key, of_key in depths.items() if of_key}

    def _change(self, snapshot: Snapshot, judged: Judgement, depth: int) -> None:
        before = snapshot.standing.state
        snapshot.standing = replace(snapshot.standing, state=judged.state, since=self._now)
        snapshot.change_id = clock.new_id()
        snapshot.depth, snapshot.why = depth, judged.why
        standings.add_change(self._tx, snapshot, before, self._now)
        self._firing.changed(snapshot, before)

    def due(self, timer: Any) -> bool:
        """A hold or a repeat has come to its moment; False when it is nobody's any more."""
        try:
            snapshot = self._snapshot(OwnerType(timer.owner_type), timer.entity_id)
        except NotFound:
            standings.forget(self._tx, timer.entity_id)
            return False
        return self._catch_up(snapshot) or self._firing.due(timer, snapshot)

    def _catch_up(self, snapshot: Snapshot) -> bool:
        """What has come due for an entity comes before what happens to it now, for a look at it may be late.

        Not so a wait of which it is not known whether the device left the state in its time: what happens now
        may tell that it did.

        Returns:
            Whether a timer had its effect.
        """
        entity_id, now = snapshot.entity.id, self._now
        if entity_id in self._caught_up:
            return False
        self._caught_up.add(entity_id)
        timers = rules.timers_due(self._tx.conn, entity_id, self._heard.until) if snapshot.waits else []
        woken_at = now + 1 if snapshot.wake_at is None else snapshot.wake_at
        effects = [self._firing.due(timer, snapshot) for timer in timers if timer.due_at < woken_at]
        if woken_at <= now:
            self._judge(snapshot, 0)
            effects += [self._firing.due(timer, snapshot) for timer in timers if timer.due_at >= woken_at]
        return any(effects)


def _judged(snapshot: Snapshot, conditions: Sequence[Condition], now: int, heard: Heard) -> Judgement:
    after_s = snapshot.no_data_after_s
    return states.judge(
        conditions, snapshot.facts, snapshot.standing, now, no_data_after_s=after_s, heard=heard
    )


def _refuse_too_many(snapshot: Snapshot, values: Mapping[str, Any]) -> None:
    """A device that makes up names, or says much, must not grow its row without end: each report reads all of it."""
    own, name = snapshot.own, snapshot.entity.name
    if values.keys() <= own.keys() and measure(values) <= LITTLE_BYTES:
        return
    if len(own.keys() | values.keys()) > PROPERTIES:
        raise BadRequest(f"{name} has {len(own)} properties, and {PROPERTIES} at most")
    if measure({**own, **values}, PROPERTIES_BYTES) > PROPERTIES_BYTES:
        raise BadRequest(f"the properties of {name} would have more than {PROPERTIES_BYTES} bytes together")

"""What triggers make of a change of state: traces, timers and jobs, in the transaction of the change.

Deciding is `domain.triggers`. Every trigger of the entity leaves one trace for each change, and one more for
each repeat; a wait (`held`) is a trace and a timer, and the trace tells later what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from iotjobs.domain import triggers
from iotjobs.domain.jobs import Cause, Ending, Job
from iotjobs.domain.rights import Caller
from iotjobs.domain.statuses import Outcome
from iotjobs.domain.triggers import Circumstances, Decision, History, Ruling, Trigger
from iotjobs.engine.intake import Execute, Fired, Intake, Origin, refused_row
from iotjobs.engine.settle import Settler
from iotjobs.store import jobs, queue, rules, standings, switch
from iotjobs.store.known import Known
from iotjobs.store.queue import Offers
from iotjobs.store.standings import Snapshot
from iotjobs.store.writer import Transaction

_NOTHING = History()
_LATE_MS = 5000  # looks are late by a tenth of a second, and by more under load; behind a stop of the site by all of it
_IN_TIME, _UNHEARD = "before its time", "while nobody listened: perhaps before its time"


class AtOnce(Protocol):
    """Who may begin a message within the transaction that inserts its job."""

    def begin_at_once(self, tx: Transaction, fired: Fired) -> bool:
        """Insert a job as begun, and send its message with the commit; False: it has to be inserted, and offered."""

    async def breathe(self) -> None:
        """Wait, not for long, until there is room for the messages of another batch."""


@dataclass(frozen=True, slots=True)
class FiringParts:
    """What firing works with."""

    intake: Intake
    settler: Settler
    offers: Offers
    at_once: AtOnce


class Firing:
    """The triggers' part of one transaction."""

    def __init__(self, parts: FiringParts, tx: Transaction, now: int, known: Known) -> None:
        self._parts, self._tx, self._now, self._known = parts, tx, now, known
        self._paused: bool | None = None
        self._histories: dict[tuple[str, str], History] = {}
        self._fired: list[tuple[Trigger, str, int]] = []  # those that ask for it the next time
        self._lanes: dict[str, list[Job]] = {}  # jobs that wait for their turn

    def finish(self) -> None:
        """Keep what fired, and offer it."""
        if self._fired:
            rules.add_firings(self._tx, self._fired)
            self._fired.clear()
        queue.offer_in_lanes(self._tx, self._lanes, self._now, self._parts.offers)
        self._lanes.clear()

    def changed(self, snapshot: Snapshot, before: str) -> None:
        """The entity has entered the snapshot's state: nothing of the one before waits any more."""
        entity = snapshot.entity
        left = f"left {before} for {snapshot.standing.state}"
        for key, due_at in rules.drop_timers(self._tx, entity.id) if snapshot.waits else ():
            said = f"{left} {_IN_TIME if due_at > self._now else _UNHEARD}"
            rules.settle_trace(self._tx, key, Ruling(Decision.HOLD_CANCELED, said), None, self._now)
        snapshot.waits = False
        for trigger, broken in self._known.triggers_of(self._tx.conn, entity):
            around = Circumstances(broken=broken, depth=snapshot.depth)
            self._decide(_Case(snapshot, trigger, before, self._now), around)

    def due(self, timer: Any, snapshot: Snapshot) -> bool:
        """A hold or a repeat has come to its moment; False when it is nobody's any more.

        The entity is in the state of the timer's change: leaving it takes its timers away.
        """
        there = rules.drop_timer(self._tx, timer.cause_key)
        if not there or snapshot.change_id != timer.state_change_id:
            return False
        its = {
            trigger.id: (trigger, broken)
            for trigger, broken in self._known.triggers_of(self._tx.conn, snapshot.entity)
        }
        if timer.trigger_id not in its:  # it was deleted, or the entity is of another class now
            ruling = Ruling(Decision.HOLD_CANCELED, "the entity has this trigger no more")
            if timer.number == 0:
                rules.settle_trace(self._tx, timer.cause_key, ruling, None, self._now)
            return False
        trigger, broken = its[timer.trigger_id]
        if timer.number and trigger.repeat_s is None:
            return False  # it repeats no more, since somebody changed it
        before = standings.left_by(self._tx.conn, timer.state_change_id)
        around = Circumstances(broken=broken, depth=snapshot.depth, waited=True, number=timer.number)
        late = 0 <= self._now - timer.due_at <= _LATE_MS
        at = timer.due_at if late else self._now
        self._decide(_Case(snapshot, trigger, before, at, timer.number), around)
        return True

    def start(
        self,
        snapshot: Snapshot,
        operation_id: str,
        cause: Cause,
        origin: Origin,
        caller: Caller | None = None,
        *,
        refusal: Ending | None = None,
    ) -> str:
        """Insert a job; it begins with the commit, waits for its turn, or ends as refused. Its id.

        Args:
            snapshot: whose it is.
            operation_id: what it runs.
            cause: what started it.
            origin: which one.
            caller: who, for somebody's write.
            refusal: how it ends, when it is not to begin at all.
        """
        entity, parts, tx = snapshot.entity, self._parts, self._tx
        request = Execute(entity.owner_type, entity.id, operation_id, caller, cause=cause, origin=origin)
        if refusal is None:
            fired = parts.intake.fire(tx.conn, request, entity, self._known)
        else:
            operation = self._known.operation_for(tx.conn, entity, operation_id)
            fired = Fired(refused_row(request, entity, operation))
        job_id: str = fired.row["id"]
        if parts.at_once.begin_at_once(tx, fired):
            return job_id
        job = jobs.inserted(fired.row, jobs.insert_job(tx, fired.row, fired.plan, None))
        if fired.refusal is not None:
            said = fired.refusal.detail
            refusal = Ending(Outcome.REJECTED, error_code=fired.refusal.code, error_message=said)
        if refusal is not None:
            parts.settler.finish(tx, job, refusal, job.timestamp)
        elif job.lane is None:
            parts.offers.offer(tx, queue.ticket_of(tx.conn, job))
        else:
            self._lanes.setdefault(job.lane, []).append(job)
        return job_id

    def _decide(self, case: _Case, around: Circumstances) -> None:
        """Decide, do it, and leave a trace."""
        trigger, snapshot = case.trigger, case.snapshot
        state = snapshot.standing.state
        if state in trigger.states:
            history = self._history(case)
            around = replace(around, paused=self._is_paused(), history=history)
        ruling = triggers.rule(trigger, state, around, case.at)
        job_id = None
        match ruling.decision:
            case Decision.FIRED:
                origin = Origin(case.key, case.process_meta, state, trigger.name)
                job_id = self.start(snapshot, trigger.operation_id, Cause.TRIGGER, origin)
                self._remember(case, around.history)
            case Decision.DRY:
                self._remember(case, around.history)
            case Decision.HELD:
                self._wait(case, trigger.hold_s)
            case Decision.LOOP_GUARD if not around.broken:
                rules.set_breaker(self._tx, trigger.id, self._now)
                self._known = Known()  # what is read from here on is not committed: for nobody else
        again_s = triggers.repeat_after_s(trigger, ruling.decision, case.number)
        if again_s is not None:
            self._wait(replace(case, number=case.number + 1), again_s)
        if case.number == 0 and around.waited:
            rules.settle_trace(self._tx, case.key, ruling, job_id, case.at)
        else:
            last = (
                ruling.decision is not Decision.HELD
            )  # its end is written into it, be it in this transaction
            rules.add_trace(self._tx, case.trace(ruling, job_id), last=last)

    def _wait(self, case: _Case, for_s: float) -> None:
        timer = {
            "cause_key": case.key,
            "trigger_id": case.trigger.id,
            "entity_id": case.snapshot.entity.id,
            "owner_type": int(case.snapshot.entity.owner_type),
            "state_change_id": case.change_id,
            "number": case.number,
            "due_at": case.at + round(for_s * 1000),
        }
        rules.add_timer(self._tx, timer)
        case.snapshot.waits = True

    def _history(self, case: _Case) -> History:
        trigger, entity_id = case.trigger, case.snapshot.entity.id
        if not trigger.remembers:
            return _NOTHING
        found = self._histories.get((trigger.id, entity_id))
        return found or rules.history_of(self._tx.conn, trigger, entity_id, case.at)

    def _remember(self, case: _Case, before: History) -> None:
        trigger, entity_id = case.trigger, case.snapshot.entity.id
        if trigger.remembers:
            self._histories[trigger.id, entity_id] = History(case.at, before.in_hour + 1)
            self._fired.append((trigger, entity_id, case.at))

    def _is_paused(self) -> bool:
        if self._paused is None:
            self._paused = switch.paused(self._tx.conn)
        return self._paused


@dataclass(frozen=True, slots=True)
class _Case:
    """One trigger at one change.

    Attributes:
        before: the state that was left; None: it is not known any more.
        at: the moment that this counts as, of a wait the one at which it was over; else looks that are a little
            late would make repeats rarer, and a cooldown just as long would swallow some.
        number: counts the repeats.
    """

    snapshot: Snapshot
    trigger: Trigger
    before: str | None
    at: int
    number: int = 0

    @property
    def change_id(self) -> str:
        assert self.snapshot.change_id is not None, "there was a change"
        return self.snapshot.change_id

    @property
    def key(self) -> str:
        return triggers.cause_key(self.trigger.id, self.change_id, self.number)

    @property
    def process_meta(self) -> dict[str, Any]:
        """The documented member of the job that the trigger starts."""
        return {
            "triggerStates": list(self.trigger.states),
            "state": self.snapshot.standing.state,
            "from": self.before,
            "trigger_id": self.trigger.id,
            "state_change_id": self.change_id,
        }

    def trace(self, ruling: Ruling, job_id: str | None) -> dict[str, Any]:
        entity = self.snapshot.entity
        return {
            "cause_key": self.key,
            "trigger_id": self.trigger.id,
            "trigger_name": self.trigger.name,
            "owner_id": entity.id,
            "owner_type": int(entity.owner_type),
            "state_change_id": self.change_id,
            "state": self.snapshot.standing.state,
            "decision": ruling.decision,
            "reason": ruling.reason,
            "job_id": job_id,
            "at": self.at,
        }

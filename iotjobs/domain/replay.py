"""What conditions and triggers would have done with what was reported: the same decisions, on the past.

Time is simulated: between two events the moments pass at which time alone changes something. Nothing is
known of reports that changed no value, but for a first one, so silence is taken from the record, as are forced states and lost
connections: they are events here, and last until the next recorded change.

Before the span everything counts as it really was; but what has to hold in it may have begun to before, so the
conditions are looked at from further back.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from iotjobs.domain import states, triggers
from iotjobs.domain.expressions import Facts
from iotjobs.domain.states import Condition, Judgement, Standing
from iotjobs.domain.triggers import HOUR_MS, Circumstances, Decision, History, Ruling, Trigger

MOST_STEPS = 200_000  # decisions: some seconds of work


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was recorded.

    Attributes:
        at: milliseconds.
        values: new values of properties.
        of: whose: `entity`, or of a link `source` or `target`.
        silent: that says nothing of whether the device lives: a person set them, or the broker had kept them.
        pinned: a state that was not decided by conditions, entered then.
        released: such a state ended then.
        gone: properties that are not there any more.
        heard: something was heard of it, whatever it told.
        by_time: time alone did it, in one look with whatever else was due.
    """

    at: int
    values: dict[str, Any] = field(default_factory=dict)
    of: str = "entity"
    silent: bool = False
    pinned: str | None = None
    released: bool = False
    heard: bool = False
    gone: frozenset[str] = frozenset()
    by_time: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state that would have been."""

    at: int
    before: str
    after: str
    why: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Firing:
    """What a trigger would have decided at a change; `number` counts the repeats after it."""

    at: int
    trigger_id: str
    state: str
    ruling: Ruling
    number: int = 0


@dataclass(slots=True)
class Replayed:
    """What would have been, in its order; `complete` is False when it was too much to simulate."""

    changes: list[Change] = field(default_factory=list)
    firings: list[Firing] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Past:
    """What was recorded of an entity.

    Attributes:
        facts: before the first event.
        standing: right before `since`, as it really was.
        events: in their order.
        until: the moment to stop at.
        fired: when triggers had fired before `since`, by id, in their order.
        since: the moment to begin at.
        warm_ms: so long before it the events begin: no condition has to hold for longer.
        made_at: when the entity was made: nothing held before.
        known: False when values of then are not kept any more: what the conditions said is not known either.
    """

    facts: Facts
    standing: Standing
    events: Iterable[Event]
    until: int
    fired: Mapping[str, Sequence[int]] = field(default_factory=dict)
    since: int = 0
    warm_ms: int = 0
    made_at: int = 0
    known: bool = True


def replay(conditions: Sequence[Condition], rules: Sequence[Trigger], past: Past) -> Replayed:
    """What these conditions, and these triggers, would have done."""
    run = Replay(conditions, rules, past)
    for _ in run.work():
        pass
    return run.result


class Replay:
    """A replay that is done bit by bit; used once.

    Attributes:
        result: what has been found so far.
        steps_left: how many decisions it may still take.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        rules: Sequence[Trigger],
        past: Past,
        steps: int = MOST_STEPS,
    ) -> None:
        self.steps_left = steps
        self._events, self._since, self._until = past.events, past.since, past.until
        self._begun, self._known = False, past.known
        self._conditions, self._rules = conditions, rules
        self._facts, self._standing = past.facts, past.standing
        self._pinned: str | None = None
        self._wake_at: int | None = None
        self._timers: list[tuple[int, int, Trigger, int]] = []  # due, order, whose, repeat
        self._fired = {rule.id: list(past.fired.get(rule.id, ())) for rule in rules}
        self._order = 0
        self.result = Replayed()
        self._resume_holds(past)

    def work(self) -> Iterator[None]:
        """Go through it all, or as far as the steps reach; between two bits others may have their turn."""
        for event in self._events:
            if event.at >= self._since:
                yield from self._begin()
            # What has come due is given its effect before what happens at that moment.
            yield from self._pass_time(event.at if event.by_time else event.at + 1)
            if not self.result.complete:
                return
            self._take(event)
        if self._until >= self._since:
            yield from self._begin()
        yield from self._pass_time(self._until + 1)

    def _begin(self) -> Iterator[None]:
        """A state that these conditions would have had already is entered when the span begins."""
        if self._begun:
            return
        yield from self._pass_time(self._since)
        self._begun = True
        before = self._standing.state
        judged = self._look(self._since - 1)
        if self._known:
            self._enter(judged, self._since)
        if self._standing.state == before:
            for rule in self._rules:
                self._resume(rule, self._since)

    def _pass_time(self, until: int) -> Iterator[None]:
        """Let the moments before `until` pass."""
        while True:
            yield
            timer_at = self._timers[0][0] if self._timers else None
            moments = [at for at in (self._wake_at, timer_at) if at is not None and at < until]
            if self.steps_left <= 0:
                self.result.complete = False
                return
            if not moments:
                return
            now = min(moments)
            if timer_at == now and (self._wake_at is None or now < self._wake_at):
                _, _, trigger, number = heapq.heappop(self._timers)
                self._decide(trigger, now, number, waited=True)
            else:
                self._judge(now)

    def _take(self, event: Event) -> None:
        """Give a recorded event its effect."""
        if event.heard and self._standing.heard_at is not None:
            return  # its values told already
        facts = self._facts
        if event.of == "entity":
            facts = replace(facts, properties=_after(event, facts.properties))
        elif event.of == "source":
            facts = replace(facts, source=_after(event, facts.source or {}))
        else:
            facts = replace(facts, target=_after(event, facts.target or {}))
        self._facts = facts
        if event.heard or ((event.values or event.gone) and not event.silent):
            self._standing = replace(self._standing, heard_at=event.at)
        if event.released:
            self._pinned = None
        if event.pinned is not None:
            self._pinned = event.pinned
        self._judge(event.at)

    def _judge(self, now: int) -> None:
        self.steps_left -= 1
        judged = self._look(now)
        if self._begun:
            self._enter(judged, now)

    def _look(self, now: int) -> Judgement:
        """What the conditions say; that they hold is remembered."""
        judged = states.judge(self._conditions, self._facts, self._standing, now)
        self._wake_at = judged.wake_at
        self._standing = replace(self._standing, holding=judged.holding)
        return judged

    def _enter(self, judged: Judgement, now: int) -> None:
        before = self._standing.state
        after = judged.state if self._pinned is None else self._pinned
        if after == before:
            return
        why = judged.why if self._pinned is None else {"by": "recorded"}
        self._standing = replace(self._standing, state=after, since=now)
        self.result.changes.append(Change(now, before, after, why))
        self._timers.clear()
        for trigger in self._rules:
            self._decide(trigger, now, 0, waited=False)

    def _decide(self, trigger: Trigger, now: int, number: int, *, waited: bool) -> None:
        self.steps_left -= 1
        fired, state = self._fired[trigger.id], self._standing.state
        recent = len(fired) - bisect_right(fired, now - HOUR_MS)
        around = Circumstances(
            waited=waited, number=number, history=History(fired[-1] if fired else None, recent)
        )
        ruling = triggers.rule(trigger, state, around, now)
        self.result.firings.append(Firing(now, trigger.id, state, ruling, number))
        if ruling.decision is Decision.FIRED:
            fired.append(now)
        if ruling.decision is Decision.HELD:
            self._wait(trigger, now, trigger.hold_s, 0)
        again_s = triggers.repeat_after_s(trigger, ruling.decision, number)
        if again_s is not None:
            self._wait(trigger, now, again_s, number + 1)

    def _resume_holds(self, past: Past) -> None:
        """What holds before the first event has held since the moment before at least: when the span begins it counts."""
        before, holding = past.since - past.warm_ms - 1, dict[str, int]()
        for condition in self._conditions:
            covered = condition.period is None or condition.period.covers(before)
            if condition.hold_s and covered and condition.when.evaluate(past.facts).holds:
                holding[condition.hold_key] = max(before, past.made_at)
        self._standing = replace(past.standing, holding=holding)
        self._look(before)

    def _resume(self, trigger: Trigger, now: int) -> None:
        """A hold or repeats that began before the span go on, as far as it is known since when."""
        standing = self._standing
        if standing.state not in trigger.states or not standing.since:
            return
        over_at = standing.since + round(trigger.hold_s * 1000)
        if over_at >= now:
            self._wait(trigger, standing.since, trigger.hold_s, 0)
        elif trigger.repeat_s is not None:
            number = ceil((now - over_at) / (trigger.repeat_s * 1000))
            self._wait(trigger, over_at, number * trigger.repeat_s, number)

    def _wait(self, trigger: Trigger, now: int, for_s: float, number: int) -> None:
        self._order += 1
        heapq.heappush(self._timers, (now + round(for_s * 1000), self._order, trigger, number))


def _after(event: Event, before: Mapping[str, Any]) -> dict[str, Any]:
    """Properties as an event leaves them."""
    return {name: value for name, value in {**before, **event.values}.items() if name not in event.gone}

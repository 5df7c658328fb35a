"""Which state an entity is in, and why: decided anew whenever something it depends on has changed.

In this order: what a person forces; `down`, when the broker announced the end of the device's
connection; `no_data`, when reports do not come; the first condition that holds; else `working`. A new
entity is `created` until it is first heard of, or a condition holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Any

from iotjobs.domain.expressions import Expression, Facts
from iotjobs.domain.payloads import beginning
from iotjobs.domain.periods import Period

CREATED, WORKING, NO_DATA, DOWN = "created", "working", "no_data", "down"
# Higher matters more. Those of users stand among them by their own number.
BUILT_IN = {
    CREATED: 0,
    "disabled": 0,
    WORKING: 10,
    "stopped": 20,
    NO_DATA: 30,
    "overloaded": 40,
    "alarm": 50,
    DOWN: 60,
}
# Who decides these is not in the conditions.
_OVERRULED = frozenset({"forced", "offline", "no_data"})
_TOLD = 20  # conditions with problems, and those that wait
# What time may do for want of a device's word waits so long for somebody to listen, and then goes on without.
PATIENCE_MS = 15 * 60_000
_LOOK_AGAIN_MS = 1000


@dataclass(frozen=True, slots=True)
class Condition:
    """A state condition.

    Attributes:
        hold_s: how long it has to be true without a break before it counts.
        period: when it counts; None is always.
    """

    id: str
    state: str
    when: Expression
    hold_s: float = 0
    description: str = ""
    period: Period | None = None

    @property
    def hold_key(self) -> str:
        """By which it is remembered since when it holds: with another text it is another one."""
        text = self.when.text.encode(errors="surrogatepass")
        return f"{self.id} {blake2s(text, digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Forced:
    """A state that a person set.

    Attributes:
        by: the person's id; `login` is the name that he had then, None where it was not kept.
        until: milliseconds, or None: until somebody takes it back.
    """

    state: str
    by: str
    reason: str
    since: int
    until: int | None = None
    login: str | None = None

    @property
    def user(self) -> dict[str, str | None]:
        """Who it was, as records tell it."""
        return {"id": self.by, "name": self.login}


@dataclass(frozen=True, slots=True)
class Standing:
    """What is remembered of an entity's state; moments in milliseconds.

    Attributes:
        since: when the state was entered.
        holding: since when conditions that have to hold for a while have been true, by their hold keys.
        known_until: what was said until then had been heard when it was last looked at while anything held.
        heard_at: of the last report; for a link, of either end.
        offline: the broker announced the end of the device's connection, and nothing came since.
    """

    state: str = CREATED
    since: int = 0
    holding: Mapping[str, int] = field(default_factory=dict)
    heard_at: int | None = None
    offline: bool = False
    forced: Forced | None = None
    known_until: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A condition that is true and does not count yet.

    Attributes:
        since: since when it has been true, where it has to hold; None: it waits for its period.
        counts_at: when it will, if it stays true; None: its period never comes. A moment that has passed: then
            it did, if the device has said nothing else by then, which has not been heard yet.
    """

    condition: Condition
    since: int | None
    counts_at: int | None


@dataclass(frozen=True, slots=True)
class Heard:
    """How far it is known what devices have said; moments in milliseconds.

    Attributes:
        since: when somebody began to listen; that a device said nothing before tells nothing of it.
        until: what was said up to then was heard.
    """

    since: int
    until: int

    @classmethod
    def all_until(cls, now: int) -> Heard:
        """Somebody has always listened."""
        return cls(0, now)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state that an entity has to be in now.

    Attributes:
        why: for people and records: `by` is `forced`, `offline`, `no_data`, `condition` or `default`.
            Of values that are too long it has the beginnings, and their names in `cut`.
        holding, known_until: see `Standing`.
        wake_at: the next moment at which time alone may change it; None: never.
        problems: of conditions that have no value, each with `when` and `problem`; whatever decides.
        hold_key: of the condition that decides, if it had to hold for a while.
        waiting: conditions that are true and do not count yet, the first ones.
    """

    state: str
    why: dict[str, Any]
    holding: dict[str, int]
    wake_at: int | None
    problems: list[dict[str, str]]
    hold_key: str | None = None
    waiting: Sequence[Waiting] = ()
    known_until: int | None = None


def overruled(why: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reason of a state, if it is not the conditions that decide it."""
    return why if why.get("by") in _OVERRULED else None


def judge(
    conditions: Sequence[Condition],
    facts: Facts,
    standing: Standing,
    now: int,
    *,
    no_data_after_s: float | None = None,
    heard: Heard | None = None,
) -> Judgement:
    """Decide an entity's state.

    Args:
        conditions: in their order.
        facts: what they read.
        standing: what is remembered, with what has just come.
        now: milliseconds.
        no_data_after_s: how long reports may stay away.
        heard: how far it is known what devices said; None: to this moment.
    """
    facts.budget.renew()
    heard = heard or Heard.all_until(now)
    # What was over once is over, though it may not be known now what was said since.
    known_until = max(heard.until, standing.known_until or 0)
    seen = _Seen(conditions, facts, standing, now, known_until)
    forced = standing.forced if standing.forced and not _past(standing.forced.until, now) else None
    silent_at, heard_until = _silent_at(standing, heard, no_data_after_s, now)
    state, why = seen.state, seen.why
    if _past(silent_at, heard_until):
        state, why = NO_DATA, {"by": "no_data", "no_data_after_s": no_data_after_s}
    elif _past(silent_at, now):
        silent_at = now + _LOOK_AGAIN_MS
    if standing.offline:
        state, why = DOWN, {"by": "offline"}
    if forced is not None:
        why = {"by": "forced", "user": forced.user, "reason": forced.reason, "until": forced.until}
        state = forced.state
    moments = [*seen.moments, silent_at, forced.until if forced else None]
    wake_at = min((moment for moment in moments if moment is not None and moment > now), default=None)
    hold_key = seen.hold_key if why["by"] == "condition" else None
    return Judgement(
        state,
        why,
        seen.holding,
        wake_at,
        seen.problems,
        hold_key,
        seen.waiting,
        known_until if seen.holding else None,
    )


def _silent_at(
    standing: Standing, heard: Heard, no_data_after_s: float | None, now: int
) -> tuple[int | None, int]:
    """When reports will have stayed away for too long, and up to when it is known whether one came.

    Where nobody listened meanwhile they get the whole time anew, and a quarter of an hour at most.
    """
    if no_data_after_s is None or standing.heard_at is None:
        return None, now
    after_ms = round(no_data_after_s * 1000)
    silent_at = standing.heard_at + after_ms
    if standing.state == NO_DATA:  # it was found out already
        return silent_at, now
    return max(silent_at, heard.since + min(after_ms, PATIENCE_MS)), heard.until


def _past(moment: int | None, now: int) -> bool:
    return moment is not None and moment <= now


class _Seen:
    """What the conditions alone say."""

    def __init__(
        self, conditions: Sequence[Condition], facts: Facts, standing: Standing, now: int, known_until: int
    ) -> None:
        self._known_until = known_until
        self.holding: dict[str, int] = {}
        self.moments: list[int | None] = []
        self.problems: list[dict[str, str]] = []
        self.waiting: list[Waiting] = []
        first = next(self._true(conditions, facts, standing, now), None)
        self.hold_key = first.hold_key if first is not None and first.hold_s else None
        if first is not None:
            self.state = first.state
            self.why: dict[str, Any] = {
                "by": "condition",
                "condition_id": first.id,
                "when": first.when.text,
                "values": first.when.values(facts),
                "description": first.description,
                "hold_s": first.hold_s,
            }
            _shorten(self.why)
        else:
            self.state = CREATED if standing.state == CREATED and standing.heard_at is None else WORKING
            self.why = {"by": "default"}
        del self.problems[_TOLD:], self.waiting[_TOLD:]
        if self.problems:
            self.why["problems"] = self.problems

    def _true(
        self, conditions: Sequence[Condition], facts: Facts, standing: Standing, now: int
    ) -> Iterator[Condition]:
        """Those that count, in order; all are looked at, for what holds has to be remembered."""
        found = []
        for condition in conditions:
            if condition.period is not None:
                edge = condition.period.next_edge(now)
                self.moments.append(edge)
                if not condition.period.covers(now):
                    if condition.when.evaluate(facts).holds:
                        self.waiting.append(Waiting(condition, None, edge))
                    continue
            verdict = condition.when.evaluate(facts)
            if verdict.problem is not None:
                self.problems.append({"when": condition.when.text, "problem": verdict.problem})
            if not verdict.holds:
                continue
            if condition.hold_s:
                key = condition.hold_key
                since = self.holding[key] = standing.holding.get(key, now)
                due = since + round(condition.hold_s * 1000)
                if due > min(now, self._known_until):
                    self.moments.append(due if due > now else now + _LOOK_AGAIN_MS)
                    self.waiting.append(Waiting(condition, since, due))
                    continue
            found.append(condition)
        return iter(found)


def _shorten(why: dict[str, Any]) -> None:
    values = why["values"]
    cut = {name: begins for name, value in values.items() if (begins := beginning(value)) is not None}
    if cut:
        values.update(cut)
        why["cut"] = list(cut)

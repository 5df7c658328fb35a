"""What a trigger does about a state change, in one word and with the reason: pure decisions.

For every change each trigger of the entity leaves a trace; the word is the trace's `decision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_DEPTH = 5
HOUR_MS = 3_600_000
_NAMES_TOLD = 10


class Decision(StrEnum):
    """What became of one trigger at one change."""

    FIRED = "fired"
    HELD = "held"  # fires when the entity stays in the state for `hold_s`
    HOLD_CANCELED = "hold_canceled"  # it left the state before, or it or the trigger is gone
    COOLING_DOWN = "cooling_down"
    RATE_LIMITED = "rate_limited"
    DISABLED = "disabled"
    DRY = "dry"  # would have fired
    LOOP_GUARD = "loop_guard"
    NOT_IN_STATES = "not_in_states"
    PAUSED = "paused"  # all triggers of the site are


@dataclass(frozen=True, slots=True)
class Trigger:
    """States, an operation, and when.

    Attributes:
        hold_s: how long the entity has to stay in the state before it fires.
        repeat_s: it fires again each time so much has passed in the state; None: once.
        cooldown_s: it does not fire within so much of the last time, of the same entity.
        max_per_hour: firings within an hour, of the same entity; None: any number.
        dry: decide and trace, and start nothing; what it would have started counts for its cooldown and rate.
    """

    id: str
    name: str
    states: tuple[str, ...]
    operation_id: str
    hold_s: float = 0
    repeat_s: float | None = None
    cooldown_s: float = 0
    max_per_hour: int | None = None
    enabled: bool = True
    dry: bool = False

    @property
    def remembers(self) -> bool:
        """Whether it asks when it fired before."""
        return bool(self.cooldown_s) or self.max_per_hour is not None


@dataclass(frozen=True, slots=True)
class History:
    """How a trigger fired for an entity before.

    Attributes:
        last_at: milliseconds; None: never.
        in_hour: how often within the last hour.
    """

    last_at: int | None = None
    in_hour: int = 0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What else bears on a decision.

    Attributes:
        paused: the site's switch for all triggers.
        broken: the trigger's breaker is open: it was part of a loop, and nobody has reset it.
        depth: how many triggers stand before the change in its chain of causes.
        waited: the entity has stayed in the state for `hold_s`, or this is a repeat.
        number: of the repeat, or 0.
    """

    paused: bool = False
    broken: bool = False
    depth: int = 0
    waited: bool = False
    number: int = 0
    history: History = History()


@dataclass(frozen=True, slots=True)
class Ruling:
    """A decision, and the reason in words."""

    decision: Decision
    reason: str


def rule(trigger: Trigger, state: str, around: Circumstances, now: int) -> Ruling:
    """Decide about a change into `state`, or about a wait that is over."""
    if state not in trigger.states:
        return Ruling(Decision.NOT_IN_STATES, f"{state} is not one of {_listed(trigger.states)}")
    if around.paused:
        return Ruling(Decision.PAUSED, "all triggers of the site are paused")
    if not trigger.enabled:
        return Ruling(Decision.DISABLED, "the trigger is switched off")
    if around.broken:
        return Ruling(Decision.LOOP_GUARD, "its breaker is open since it was part of a loop: reset it")
    if around.depth >= MAX_DEPTH:
        return Ruling(
            Decision.LOOP_GUARD, f"{around.depth} triggers stand before this change in one chain of causes"
        )
    if trigger.hold_s and not around.waited:
        return Ruling(Decision.HELD, f"fires after {trigger.hold_s:g} s in {state}")
    return _by_history(trigger, around.history, now) or _fire(trigger, state, around)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMES_TOLD
    return ", ".join(names[:_NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


def _by_history(trigger: Trigger, history: History, now: int) -> Ruling | None:
    fired = "would have fired" if trigger.dry else "fired"
    if trigger.cooldown_s and history.last_at is not None:
        ago_s = (now - history.last_at) / 1000
        if ago_s < trigger.cooldown_s:
            said = f"{fired} {ago_s:.1f} s ago and cools down for {trigger.cooldown_s:g} s"
            return Ruling(Decision.COOLING_DOWN, said)
    if trigger.max_per_hour is not None and history.in_hour >= trigger.max_per_hour:
        said = f"{fired} {history.in_hour} times within the last hour, {trigger.max_per_hour} at most are allowed"
        return Ruling(Decision.RATE_LIMITED, said)
    return None


def _fire(trigger: Trigger, state: str, around: Circumstances) -> Ruling:
    if around.number:
        why = f"repeat {around.number} in {state}"
    elif around.waited:
        why = f"after {trigger.hold_s:g} s in {state}"
    else:
        why = f"entered {state}"
    if trigger.dry:
        return Ruling(Decision.DRY, f"{why}: would have fired, and only tries")
    return Ruling(Decision.FIRED, why)


# After these a trigger with `repeat_s` begins to repeat, for the entity is in one of its states.
REPEATS_AFTER = frozenset({Decision.FIRED, Decision.DRY, Decision.COOLING_DOWN, Decision.RATE_LIMITED})


def repeat_after_s(trigger: Trigger, decision: Decision, number: int) -> float | None:
    """When a trigger looks again at the same change, in seconds; None: it does not.

    Repeats that have begun go on until the entity leaves the state, whatever keeps one of them from firing. A
    change that met a pause, a switch or the loop guard is not made up for.
    """
    goes_on = decision is not Decision.NOT_IN_STATES if number else decision in REPEATS_AFTER
    return trigger.repeat_s if goes_on else None


def cause_key(trigger_id: str, state_change_id: str, number: int) -> str:
    """What no two firings have in common; `number` counts the repeats of one change."""
    return f"trigger:{trigger_id}:{state_change_id}:{number}"


def repeat_of(key: str) -> int:
    """Which repeat a firing is, by its `cause_key`."""
    return int(key.rpartition(":")[2])

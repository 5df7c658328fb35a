"""The shapes of states, conditions, triggers and what they leave; every limit on them stands here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import time
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, Field, RootModel, StringConstraints

from iotjobs import clock
from iotjobs.clock import rfc3339
from iotjobs.domain.errors import BadRequest, FieldError
from iotjobs.domain.expressions import MAX_CHARACTERS, compile_expression
from iotjobs.domain.periods import DAYS
from iotjobs.domain.states import Forced
from iotjobs.domain.tokens import ExpressionError
from iotjobs.domain.triggers import Decision, repeat_of
from iotjobs.inputs.moments import SPAN
from iotjobs.inputs.shapes import YEAR_S, Name, Reference, Shape, Who

CONDITIONS, TRIGGERS = 200, 200  # of one owner
_STATE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,63}\Z")
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?\Z")


def _state_name(text: str) -> str:
    if not _STATE_NAME.match(text):
        raise ValueError("a state's name is a letter, then up to 63 letters, digits, blanks, - and _")
    return text


def _expression(text: str) -> str:
    try:
        senseless = compile_expression(text).senseless
    except ExpressionError as error:
        raise ValueError(str(error)) from error
    if senseless is not None:
        raise ValueError(str(senseless))
    return text


def _clock_time(text: str) -> str:
    if not _TIME.match(text):
        raise ValueError("a time of day is HH:MM or HH:MM:SS")
    return time.fromisoformat(text).isoformat()


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("not an IANA time zone such as Europe/Berlin") from error
    return text


StateName = Annotated[str, AfterValidator(_state_name)]
TimeOfDay = Annotated[str, StringConstraints(max_length=8), AfterValidator(_clock_time)]
Day = Annotated[str, StringConstraints(pattern=f"^({'|'.join(DAYS)})$")]
Duration = Annotated[float, Field(ge=0, le=YEAR_S)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class StateBody(Shape):
    """A state of the site's own; the higher its priority, the more it matters."""

    name: StateName
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 10


class WholeStateBody(StateBody):
    """A state that takes the place of what is there: nothing of it may be left out."""

    priority: Annotated[int, Field(ge=-1000, le=1000)]


class StateOut(BaseModel):
    """A state; the built-in ones have no id and cannot be changed."""

    id: str | None
    name: str
    priority: int
    built_in: bool
    version: int | None = None
    created_at: str | None = None


class PeriodBody(Shape):
    """When a condition counts; equal times are a whole day, an end before the begin is on the next day."""

    days: Annotated[list[Day], Field(min_length=1)] = Field(default_factory=lambda: list(DAYS))
    from_: TimeOfDay = Field("00:00:00", alias="from")
    to: TimeOfDay = "00:00:00"
    zone: Annotated[str, StringConstraints(max_length=64), AfterValidator(_zone)] = "UTC"


class ConditionBody(Shape):
    """A state and what has to hold for it."""

    id: Reference | None = None
    state: StateName
    when: Annotated[str, StringConstraints(max_length=MAX_CHARACTERS), AfterValidator(_expression)]
    hold_s: Duration = 0
    description: Text = ""
    period: PeriodBody | None = None


class ConditionsBody(Shape):
    """State conditions in their order: the first that holds decides."""

    items: Annotated[list[ConditionBody], Field(max_length=CONDITIONS)]


def with_ids(conditions: Sequence[ConditionBody]) -> list[dict[str, Any]]:
    """Conditions as they are stored, each with an id.

    Raises:
        BadRequest: names each that has the id of one before it.
    """
    items = [{**one.model_dump(by_alias=True), "id": one.id or clock.new_id()} for one in conditions]
    ids = [item["id"] for item in items]
    problems = tuple(
        FieldError(f"items[{at}].id", f"the id {own} stands twice")
        for at, own in enumerate(ids)
        if own in ids[:at]
    )
    if problems:
        raise BadRequest(f"{problems[0].field}: {problems[0].message}", errors=problems)
    return items


def refuse_ends(items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse conditions of an object that read what only links have.

    Raises:
        BadRequest: names each, and the place in its text.
    """
    found = ((at, compile_expression(item["when"]).of_links) for at, item in enumerate(items))
    problems = tuple(FieldError(f"items[{at}].when", str(why)) for at, why in found if why is not None)
    if problems:
        raise BadRequest(f"{problems[0].field}: {problems[0].message}", errors=problems)


class TriggerBody(Shape):
    """States, the operation that they start, and when."""

    id: Reference | None = None
    name: Name
    states: Annotated[list[StateName], Field(min_length=1, max_length=100)]
    operation_id: Reference
    hold_s: Duration = 0
    repeat_s: Annotated[float, Field(ge=1, le=YEAR_S)] | None = None
    cooldown_s: Duration = 0
    max_per_hour: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    enabled: bool = True
    dry: bool = False


class TriggerItem(TriggerBody):
    """A trigger of a list, perhaps as it was read."""

    owner_kind: str | None = Field(None, description="of no effect")
    owner_id: str | None = Field(
        None, description="of no effect; a trigger whose owner is the class of this one stays the class's"
    )
    broken_at: str | None = Field(None, description="of no effect")


class TriggersBody(Shape):
    """Triggers, all of the owner's own."""

    items: Annotated[list[TriggerItem], Field(max_length=TRIGGERS)]


class TriggerOut(TriggerBody):
    """A trigger as it is stored."""

    owner_kind: str
    owner_id: str
    broken_at: str | None = Field(description="since when its breaker is open: it was part of a loop")


class ForcedBody(Shape):
    """A state to be in whatever the conditions say."""

    state: StateName
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    until: str | None = Field(
        None, description=f"{SPAN}: for how long, or until when; null: until it is taken back"
    )


class ForcedOut(BaseModel):
    """Who forces a state, and until when."""

    state: str
    user: Who
    reason: str
    since: str
    until: str | None


class ProblemOut(BaseModel):
    """A condition that has no value."""

    when: str
    problem: str


class WaitingOut(BaseModel):
    """A condition that is true and does not count yet."""

    state: str
    when: str
    waits_for: Literal["hold", "period"]
    since: str | None = Field(description="since when it has been true, where it has to hold")
    counts_at: str | None = Field(
        description="when it will, if it stays true; a moment that has passed waits for somebody to listen"
    )


class JudgedOut(BaseModel):
    """What is decided of an entity's state by what is known now."""

    state: str = Field(description="another than the entity's until it is looked at, within a moment")
    why: dict[str, Any] = Field(description="as `why` of the last change, of the values that there are now")
    waiting: list[WaitingOut] = Field(
        description="conditions that are true and do not count yet, for want of their hold or period; the first 20"
    )
    problems: list[ProblemOut] = Field(description="of conditions that have no value; the first 20")


class RefusalOut(BaseModel):
    """A message of a device that was refused."""

    at: str
    topic: str = Field(description="its first 200 characters")
    why: str = Field(description="in words, 200 characters at most")


class EntityStateOut(BaseModel):
    """The state that an entity is in, and why."""

    state: str
    since: str
    forced: ForcedOut | None
    why: dict[str, Any] = Field(
        description="of the last change: `by` is condition, default, no_data, offline or forced, with what belongs"
        " to it, such as the `user` who forces it, and `until` in RFC 3339; `cut` names values that were too long, of"
        " which it has the beginnings"
    )
    now: JudgedOut
    state_change_id: str | None
    heard_at: str | None = Field(description="of the last report; of a link, of either end")
    reports: int = Field(description="reports that had an effect, and words of its status with an id")
    superseded: int = Field(
        description="reports, and words of its status, that came quicker than allowed and lived on in a later one"
    )
    repeated: int = Field(
        description="messages that came again, from the broker or with a report id that is known, and had their effect once"
    )
    refused: int = Field(
        description="messages that had no effect: no JSON, too large, of a wrong shape, about another's job; of the last"
        " second some may be missing"
    )
    last_refusal: RefusalOut | None


class PropertiesOut(RootModel[dict[str, Any]]):
    """All properties of an entity by name: its own, and below them those that its class gives."""


class PropertyOut(BaseModel):
    """A value that a property got."""

    value: Any = Field(description="null also where it was taken away")
    at: str
    by: str | None = Field(description="who wrote it; null: it was reported")


class StateChangeOut(BaseModel):
    """One change of an entity's state."""

    id: str
    entity_id: str
    owner_type: Literal[1, 2]
    entity_name: str
    from_: str = Field(alias="from")
    to: str
    at: str
    why: dict[str, Any]
    depth: int = Field(description="how many triggers stand before it in its chain of causes")


class TraceOut(BaseModel):
    """What a trigger decided, and why."""

    id: int
    decision: Decision
    reason: str
    trigger_id: str
    trigger_name: str
    owner_id: str
    owner_type: Literal[1, 2]
    state_change_id: str
    state: str
    repeat: int = Field(description="counts the repeats after the change; 0: the change itself, or its hold")
    job_id: str | None
    at: str


def forced_json(forced: Forced) -> dict[str, Any]:
    """A forced state as `ForcedOut`."""
    return {
        "state": forced.state,
        "user": forced.user,
        "reason": forced.reason,
        "since": rfc3339(forced.since),
        "until": rfc3339(forced.until),
    }


def why_json(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The reason of a state as it is shown: until when it is forced as every other moment."""
    if "until" not in stored:
        return dict(stored)
    return {**stored, "until": rfc3339(stored["until"])}


def change_json(row: Any) -> dict[str, Any]:
    """A row of state changes as `StateChangeOut`."""
    return {
        "id": row.id,
        "entity_id": row.entity_id,
        "owner_type": row.owner_type,
        "entity_name": row.entity_name,
        "from": row.from_state,
        "to": row.to_state,
        "at": rfc3339(row.at),
        "why": why_json(row.why),
        "depth": row.depth,
    }


def trace_json(row: Any) -> dict[str, Any]:
    """A row of traces as `TraceOut`."""
    shown = {"repeat": repeat_of(row.cause_key), "at": rfc3339(row.at)}
    return {name: shown[name] if name in shown else getattr(row, name) for name in TraceOut.model_fields}


def trigger_json(row: Any) -> dict[str, Any]:
    """A row of triggers as `TriggerOut`."""
    return {
        "id": row.id,
        "name": row.name,
        "operation_id": row.operation_id,
        **row.settings,
        "owner_kind": row.owner_kind,
        "owner_id": row.owner_id,
        "broken_at": rfc3339(row.broken_at),
    }

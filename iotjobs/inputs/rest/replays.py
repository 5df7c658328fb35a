"""Replays: what a trigger or proposed conditions would have done with what was reported. They write nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.clock import rfc3339
from iotjobs.domain.errors import BadRequest
from iotjobs.domain.replay import Change, Firing
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.triggers import Decision
from iotjobs.engine import replays
from iotjobs.engine.replays import EntityReplay, Span
from iotjobs.inputs.moments import SPAN, read_ago
from iotjobs.inputs.rest.answers import Id, json_response
from iotjobs.inputs.rest.body import body_of
from iotjobs.inputs.rest.services import ApiServices, Services, operator_for
from iotjobs.inputs.shapes import Reference, Shape
from iotjobs.inputs.state_shapes import CONDITIONS, ConditionBody, refuse_ends, with_ids
from iotjobs.store import definitions, rules, states
from iotjobs.store.definitions import Kind

router = APIRouter(tags=["triggers"])

T = TypeVar("T", Change, Firing)
LISTED = 1000
_operator = [operator_for("replaying")]  # it costs the server seconds


class ReplayBody(Shape):
    """From when on."""

    since: str = Field("24h", max_length=40, description=f"{SPAN}: how long ago it begins, or when")


class ConditionsReplayBody(ReplayBody):
    """Proposed state conditions, and for whom."""

    owner_kind: Literal["class", "object", "link"]
    owner_id: Reference
    items: Annotated[list[ConditionBody], Field(max_length=CONDITIONS)]


class ReplayedChange(BaseModel):
    """A change of state that would have been."""

    entity_id: str
    entity_name: str
    from_: str = Field(alias="from")
    to: str
    at: str
    why: dict[str, Any] = Field(
        description="as of a state; `by` is also recorded: that the state was forced, down or no_data is taken from"
        " the record, GET /state-changes has the reason of then"
    )


class ReplayedFiring(BaseModel):
    """What a trigger would have decided."""

    entity_id: str
    entity_name: str
    trigger_id: str
    trigger_name: str
    state: str
    decision: Decision
    reason: str
    at: str


class ReplayOut(BaseModel):
    """What would have been; of each list the first 1,000."""

    since: str
    until: str
    entities: int
    fired: int = Field(description="how often triggers would have fired")
    complete: bool = Field(
        description="false: too much to read or to simulate (the first part was), a class with more than 500 entities,"
        " or older than what is kept"
    )
    changes: list[ReplayedChange]
    firings: list[ReplayedFiring] = Field(description="decisions other than not_in_states")


_ANSWER: dict[int | str, Any] = {200: {"model": ReplayOut}}


@router.post("/triggers/{trigger_id}/replay", dependencies=_operator, responses=_ANSWER)
async def replay_trigger(
    services: Services,
    trigger_id: Id,
    body: Annotated[ReplayBody, Depends(body_of(ReplayBody, optional=True))],
) -> Response:
    """What a trigger would have decided, as if it had been on."""
    span = _span(body.since)
    found = await replays.of_trigger(services.store, trigger_id, span)
    return await _answer(services, found, span)


@router.post("/state-conditions/replay", dependencies=_operator, responses=_ANSWER)
async def replay_conditions(
    services: Services, body: Annotated[ConditionsReplayBody, Depends(body_of(ConditionsReplayBody))]
) -> Response:
    """What proposed conditions would have led to, with the triggers that are there."""
    span, kind = _span(body.since), Kind(body.owner_kind)
    items = with_ids(body.items)
    if kind is Kind.OBJECT:
        refuse_ends(items)

    def check(conn: Connection) -> None:
        definitions.get(conn, kind, body.owner_id, EVERYTHING)
        states.check_names(conn, ((f"items[{at}].state", item["state"]) for at, item in enumerate(items)))

    await services.store.read(check)
    proposed = [rules.condition_of(item) for item in items]
    found = await replays.of_conditions(services.store, kind, body.owner_id, proposed, span)
    return await _answer(services, found, span)


def _span(since: str) -> Span:
    now = clock.now_ms()
    begin = read_ago("since", since, now)
    if begin > now:
        raise BadRequest("since is still to come", field="since")
    return Span(begin, now)


async def _answer(services: ApiServices, found: list[EntityReplay], span: Span) -> Response:
    ids = {firing.trigger_id for one in found for firing in one.replayed.firings}

    def named(conn: Connection) -> dict[str, str]:
        rows = ((one, rules.trigger_row(conn, one)) for one in ids)
        return {one: "" if row is None else row.name for one, row in rows}  # it may be deleted meanwhile

    return json_response(_shown(found, span, await services.store.read(named)))


def _shown(found: list[EntityReplay], span: Span, names: Mapping[str, str]) -> dict[str, Any]:
    firings = [one.replayed.firings for one in found]
    fired = sum(firing.ruling.decision is Decision.FIRED for each in firings for firing in each)
    complete = len(found) < replays.ENTITIES and all(one.replayed.complete for one in found)
    return {
        "since": rfc3339(span.since),
        "until": rfc3339(span.until),
        "entities": len(found),
        "fired": fired,
        "complete": complete,
        "changes": _first(found, lambda one: one.replayed.changes, _change),
        "firings": _first(found, _decisions, lambda firing: _firing(firing, names[firing.trigger_id])),
    }


def _first(
    found: list[EntityReplay],
    of: Callable[[EntityReplay], Iterable[T]],
    told: Callable[[T], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The first of what all entities have, each in their order, with whose it is."""

    def owned(one: EntityReplay) -> Iterator[tuple[EntityReplay, T]]:
        return ((one, what) for what in of(one))

    merged = heapq.merge(*map(owned, found), key=lambda pair: pair[1].at)
    return [
        {"entity_id": one.snapshot.entity.id, "entity_name": one.snapshot.entity.name, **told(what)}
        for one, what in islice(merged, LISTED)
    ]


def _change(change: Change) -> dict[str, Any]:
    return {"from": change.before, "to": change.after, "at": rfc3339(change.at), "why": change.why}


def _decisions(one: EntityReplay) -> Iterator[Firing]:
    return (firing for firing in one.replayed.firings if firing.ruling.decision is not Decision.NOT_IN_STATES)


def _firing(firing: Firing, name: str) -> dict[str, Any]:
    return {
        "trigger_id": firing.trigger_id,
        "trigger_name": name,
        "state": firing.state,
        "decision": firing.ruling.decision,
        "reason": firing.ruling.reason,
        "at": rfc3339(firing.at),
    }

"""States: which there are, in which one entities are and why, and what decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import TypeAdapter
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.clock import rfc3339
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.states import Forced, Judgement
from iotjobs.engine.happenings import Happening, Said
from iotjobs.engine.reactions import Reactions
from iotjobs.inputs.moments import read_ahead
from iotjobs.inputs.rest.answers import (
    ENTITIES,
    FOLDERS,
    Id,
    IfMatch,
    JobsBehind,
    When,
    created,
    entity_of,
    json_response,
    listed,
    no_content,
    only,
    with_etag,
)
from iotjobs.inputs.rest.body import body_of, list_of, patch_of
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Engine, Services, admin_for, operator_for
from iotjobs.inputs.shapes import Listed
from iotjobs.inputs.state_shapes import (
    ConditionBody,
    ConditionsBody,
    EntityStateOut,
    ForcedBody,
    StateBody,
    StateChangeOut,
    StateOut,
    WholeStateBody,
    change_json,
    forced_json,
    refuse_ends,
    why_json,
    with_ids,
)
from iotjobs.inputs.validation import patched
from iotjobs.store import chains, definitions, rule_lists, rules, standings, states, unheeded
from iotjobs.store.definitions import Kind
from iotjobs.store.unheeded import Unheeded
from iotjobs.store.writer import Transaction

router = APIRouter(tags=["states"])
_admin = [admin_for("changing states")]
_shape = TypeAdapter(StateBody)


def _state_json(state: dict[str, Any]) -> dict[str, Any]:
    at = state["created_at"]
    return {**state, "created_at": None if at is None else rfc3339(at)}


@router.get("/states", responses={200: {"model": Listed[StateOut]}}, dependencies=[only()])
async def list_states(services: Services) -> Response:
    """All states: the built-in ones, then the site's own."""
    return listed(map(_state_json, await services.store.read(states.all_of)))


@router.post("/states", status_code=201, dependencies=_admin, responses={201: {"model": StateOut}})
async def create_state(
    services: Services, body: Annotated[StateBody, Depends(body_of(StateBody))]
) -> Response:
    """Add a state."""
    now = clock.now_ms()
    made = await services.store.write(lambda tx: states.create(tx, body.name, body.priority, now))
    return created(_state_json(made), f"/states/{made['id']}")


@router.get("/states/{state_id}", responses={200: {"model": StateOut}})
async def read_state(services: Services, state_id: Id) -> Response:
    """One state of the site's own; the built-in ones have no id."""
    return with_etag(_state_json(await services.store.read(lambda conn: states.get(conn, state_id))))


@router.put("/states/{state_id}", dependencies=_admin, responses={200: {"model": StateOut}})
async def change_state(
    services: Services,
    state_id: Id,
    expected: IfMatch,
    body: Annotated[WholeStateBody, Depends(body_of(WholeStateBody))],
) -> Response:
    """Give a state another priority; its name stays, and both have to be given."""
    return await _change(services, state_id, expected, lambda _: body)


@router.patch("/states/{state_id}", dependencies=_admin, responses={200: {"model": StateOut}})
async def patch_state(
    services: Services,
    state_id: Id,
    expected: IfMatch,
    body: Annotated[dict[str, Any], Depends(patch_of(StateBody))],
) -> Response:
    """Give a state another priority; its name stays."""
    return await _change(services, state_id, expected, lambda before: patched(_shape, before, body))


async def _change(
    services: ApiServices,
    state_id: str,
    expected: frozenset[int] | None,
    changed: Callable[[dict[str, Any]], StateBody],
) -> Response:
    def item(tx: Transaction) -> dict[str, Any]:
        before = states.get(tx.conn, state_id)
        after = changed({name: before[name] for name in StateBody.model_fields})
        if after.name != before["name"]:
            raise BadRequest("a state keeps its name: records have it", field="name")
        return states.change(tx, state_id, after.priority, expected)

    return with_etag(_state_json(await services.store.write(item)))


@router.delete("/states/{state_id}", status_code=204, dependencies=_admin)
async def delete_state(services: Services, state_id: Id, expected: IfMatch) -> Response:
    """Delete a state that nothing uses."""
    await services.store.write(lambda tx: states.remove(tx, state_id, expected))
    return no_content()


@router.get(
    "/state-changes",
    responses={200: {"model": Listed[StateChangeOut]}},
    dependencies=[only("owner_id", "entity_id", "since", "until", "limit", "cursor")],
)
async def list_state_changes(
    services: Services,
    *,
    owner_id: Annotated[str | None, Query(max_length=64)] = None,
    entity_id: Annotated[str | None, Query(max_length=64, description="the same as owner_id")] = None,
    span: When,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
) -> Response:
    """Changes of state, the newest first, each with why."""
    whose = entity_of(entity_id, owner_id)
    found = await services.store.read(
        lambda conn: standings.changes(conn, limit=limit + 1, entity_id=whose, before=cursor, span=span)
    )
    following = found[limit - 1].id if len(found) > limit else None
    return listed(map(change_json, found[:limit]), following)


def conditions_of(kind: Kind) -> APIRouter:
    """The routes of state conditions below one kind of owner."""
    router = APIRouter(prefix=f"/{FOLDERS[kind]}/{{owner_id}}/state-conditions", tags=["states"])
    what: dict[int | str, Any] = {200: {"model": Listed[ConditionBody]}}

    @router.get("", responses=what)
    async def read_conditions(services: Services, owner_id: Id) -> Response:
        """The owner's list, or its class's where it has none of its own."""

        def query(conn: Connection) -> tuple[list[dict[str, Any]], int]:
            owner = definitions.get(conn, kind, owner_id, EVERYTHING)
            items = rules.condition_items(conn, owner_id)
            if items is None and owner.values.get("class_id") is not None:
                items = rules.condition_items(conn, owner.values["class_id"])
            return items or [], rule_lists.version_of(conn, owner_id, rule_lists.CONDITIONS)

        items, version = await services.store.read(query)
        return listed(items, version=version)

    @router.put("", dependencies=_admin, responses=what)
    async def put_conditions(
        services: Services,
        owner_id: Id,
        expected: IfMatch,
        body: Annotated[ConditionsBody, Depends(list_of(ConditionsBody))],
    ) -> Response:
        """Put the whole list; it takes the place of the class's, and entities are judged anew."""
        items = with_ids(body.items)
        if kind is Kind.OBJECT:
            refuse_ends(items)

        def item(tx: Transaction) -> int:
            definitions.lock(tx, kind, owner_id, None)
            version = rule_lists.next_version(tx, owner_id, rule_lists.CONDITIONS, expected)
            named = ((f"items[{at}].state", one["state"]) for at, one in enumerate(items))
            states.check_names(tx.conn, named)
            rules.put_conditions(tx, kind, owner_id, items)
            states.wake(tx, kind, owner_id, clock.now_ms())
            return version

        return listed(items, version=await services.store.write(item))

    @router.delete("", status_code=204, dependencies=_admin)
    async def delete_conditions(services: Services, owner_id: Id, expected: IfMatch) -> Response:
        """Take the owner's own list away: its class's decides again."""

        def item(tx: Transaction) -> None:
            definitions.lock(tx, kind, owner_id, None)
            rule_lists.next_version(tx, owner_id, rule_lists.CONDITIONS, expected)
            rules.put_conditions(tx, kind, owner_id, None)
            states.wake(tx, kind, owner_id, clock.now_ms())

        await services.store.write(item)
        return no_content()

    return router


def state_of(kind: Kind) -> APIRouter:
    """The routes of an entity's state, of objects or links."""
    router = APIRouter(prefix=f"/{FOLDERS[kind]}/{{entity_id}}", tags=["states"])
    owner_type = ENTITIES[kind]
    operator = [operator_for("forcing a state")]
    what: dict[int | str, Any] = {200: {"model": EntityStateOut}}

    @router.get("/state", responses=what)
    async def read_entity_state(services: Services, engine: Engine, entity_id: Id) -> Response:
        """The state that the entity is in, since when, and why."""
        return json_response(
            await services.store.read(lambda conn: _state(conn, engine.reactions, kind, entity_id))
        )

    @router.put("/forced-state", dependencies=operator, responses=what)
    async def force_state(
        services: Services,
        engine: Engine,
        caller: CallerOf,
        entity_id: Id,
        body: Annotated[ForcedBody, Depends(body_of(ForcedBody))],
        *,
        job_ids: JobsBehind,
    ) -> Response:
        """Be in this state whatever the conditions say, until it is taken back or its time is over.

        What a job does says so (Job-Id), so that a loop of triggers is seen.
        """
        now = clock.now_ms()
        until = None if body.until is None else read_ahead("until", body.until, now)
        forced = Forced(body.state, caller.user_id, body.reason, now, until, caller.login)

        def item(tx: Transaction) -> dict[str, Any]:
            chains.refuse_unknown(tx.conn, job_ids, "Job-Id")
            states.check_names(tx.conn, [("state", body.state)])
            engine.reactions.react(tx, Happening(owner_type, entity_id, Said(forced, job_ids)))
            return _state(tx.conn, engine.reactions, kind, entity_id)

        return json_response(await services.store.write(item))

    @router.delete("/forced-state", dependencies=operator, responses=what)
    async def release_state(
        services: Services, engine: Engine, entity_id: Id, job_ids: JobsBehind
    ) -> Response:
        """Let the conditions decide again."""

        def item(tx: Transaction) -> dict[str, Any]:
            chains.refuse_unknown(tx.conn, job_ids, "Job-Id")
            engine.reactions.react(tx, Happening(owner_type, entity_id, Said(None, job_ids)))
            return _state(tx.conn, engine.reactions, kind, entity_id)

        return json_response(await services.store.write(item))

    return router


def _state(conn: Connection, reactions: Reactions, kind: Kind, entity_id: str) -> dict[str, Any]:
    created_at = definitions.get(conn, kind, entity_id, EVERYTHING).created_at
    found = standings.load(conn, ENTITIES[kind], entity_id)
    if found is None:
        raise NotFound(f"there is no {kind} {entity_id}")  # it was deleted since
    standing = found.standing
    return {
        "state": standing.state,
        "since": rfc3339(standing.since or created_at),
        "forced": None if standing.forced is None else forced_json(standing.forced),
        "why": why_json(found.why),
        "now": _judged(reactions.judged_now(conn, found)),
        "state_change_id": found.change_id,
        "heard_at": rfc3339(standing.heard_at),
        "reports": found.reports,
        "superseded": found.superseded,
        **_unheeded(unheeded.of(conn, entity_id)),
    }


def _unheeded(found: Unheeded) -> dict[str, Any]:
    last = None if found.last is None else {**asdict(found.last), "at": rfc3339(found.last.at)}
    return {"repeated": found.repeated, "refused": found.refused, "last_refusal": last}


def _judged(now: Judgement) -> dict[str, Any]:
    why = {name: value for name, value in why_json(now.why).items() if name != "problems"}
    waiting = [
        {
            "state": one.condition.state,
            "when": one.condition.when.text,
            "waits_for": "period" if one.since is None else "hold",
            "since": rfc3339(one.since),
            "counts_at": rfc3339(one.counts_at),
        }
        for one in now.waiting
    ]
    return {"state": now.state, "why": why, "waiting": waiting, "problems": now.problems}

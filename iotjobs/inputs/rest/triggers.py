"""Triggers: which there are, what they decided, and their breaker."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import BadRequest, FieldError, NotFound
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.triggers import Decision
from iotjobs.inputs.rest.answers import FOLDERS, Id, IfMatch, When, entity_of, json_response, listed, only
from iotjobs.inputs.rest.body import MOST, list_of
from iotjobs.inputs.rest.services import Services, admin_for
from iotjobs.inputs.shapes import Listed
from iotjobs.inputs.state_shapes import TraceOut, TriggerOut, TriggersBody, trace_json, trigger_json
from iotjobs.store import definitions, entities, rule_lists, rules, states
from iotjobs.store.definitions import Definition, Kind
from iotjobs.store.writer import Transaction

router = APIRouter(tags=["triggers"])
_admin = [admin_for("changing triggers")]
_Wanted = Annotated[str | None, Query(max_length=64)]


def triggers_of(kind: Kind) -> APIRouter:
    """The routes of triggers below one kind of owner."""
    router = APIRouter(prefix=f"/{FOLDERS[kind]}/{{owner_id}}/state-triggers", tags=["triggers"])
    what: dict[int | str, Any] = {200: {"model": Listed[TriggerOut]}}

    @router.get("", responses=what)
    async def read_triggers(services: Services, owner_id: Id) -> Response:
        """The owner's triggers, then those of its class."""

        def query(conn: Connection) -> tuple[list[Any], int]:
            owner = definitions.get(conn, kind, owner_id, EVERYTHING)
            found = list(rules.trigger_rows(conn, owner_id))
            if owner.values.get("class_id") is not None:
                found += rules.trigger_rows(conn, owner.values["class_id"])
            return found, rule_lists.version_of(conn, owner_id, rule_lists.TRIGGERS)

        found, version = await services.store.read(query)
        return listed(map(trigger_json, found), version=version)

    @router.put("", dependencies=_admin, responses=what)
    async def put_triggers(
        services: Services,
        owner_id: Id,
        expected: IfMatch,
        body: Annotated[TriggersBody, Depends(list_of(TriggersBody))],
    ) -> Response:
        """Put all triggers of the owner's own; one that keeps its id keeps its history and its breaker."""
        given = [{**item.model_dump(), "id": item.id or clock.new_id()} for item in body.items]

        def item(tx: Transaction) -> tuple[list[Any], int]:
            owner = definitions.lock(tx, kind, owner_id, None)
            version = rule_lists.next_version(tx, owner_id, rule_lists.TRIGGERS, expected)
            class_id = owner.values.get("class_id")
            items = [one for one in given if class_id is None or one["owner_id"] != class_id]
            _check(tx.conn, owner, items)
            rules.put_triggers(tx, kind, owner_id, items)
            return list(rules.trigger_rows(tx.conn, owner_id)), version

        found, version = await services.store.write(item)
        return listed(map(trigger_json, found), version=version)

    return router


def _check(conn: Connection, owner: Definition, items: list[dict[str, Any]]) -> None:
    """Refuse states, operations and ids that cannot be."""
    named = ((f"items[{at}].states", name) for at, item in enumerate(items) for name in item["states"])
    states.check_names(conn, named)
    owners = {(owner.kind.value, owner.id), ("class", owner.values.get("class_id"))}
    problems, seen = [], set()
    for at, item in enumerate(items):
        found = entities.load_operation(conn, item["operation_id"])
        if found is None or (found.owner_kind, found.owner_id) not in owners:
            what = f"{item['operation_id']} is no operation of this {owner.kind} or its class"
            problems.append(FieldError(f"items[{at}].operation_id", what))
        row = rules.trigger_row(conn, item["id"])
        if item["id"] in seen or (row is not None and row.owner_id != owner.id):
            problems.append(FieldError(f"items[{at}].id", f"the id {item['id']} is another trigger's"))
        seen.add(item["id"])
    if problems:
        first = problems[0]
        raise BadRequest(f"{first.field}: {first.message}", errors=tuple(problems))


@router.get(
    "/triggers",
    responses={200: {"model": Listed[TriggerOut]}},
    dependencies=[only("broken", "limit", "cursor")],
)
async def list_triggers(
    services: Services,
    *,
    broken: Annotated[
        bool | None, Query(description="true: only those whose breaker is open, that the loop guard stopped")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """All triggers of objects, links and classes, by id."""
    found = await services.store.read(
        lambda conn: rules.trigger_page(conn, limit=limit + 1, after=cursor, broken=broken)
    )
    following = found[limit - 1].id if len(found) > limit else None
    return listed(map(trigger_json, found[:limit]), following)


@router.post("/triggers/{trigger_id}/reset", dependencies=_admin, responses={200: {"model": TriggerOut}})
async def reset_trigger(services: Services, trigger_id: Id) -> Response:
    """Close the breaker of a trigger that was part of a loop: it may fire again."""

    def item(tx: Transaction) -> Any:
        if rules.trigger_row(tx.conn, trigger_id) is None:
            raise NotFound(f"there is no trigger {trigger_id}")
        rules.set_breaker(tx, trigger_id, None)
        return rules.trigger_row(tx.conn, trigger_id)

    return json_response(trigger_json(await services.store.write(item)))


@router.get(
    "/trigger-traces",
    responses={200: {"model": Listed[TraceOut]}},
    dependencies=[
        only(
            *("owner_id", "entity_id", "trigger_id", "state_change_id", "job_id", "decision"),
            *("since", "until", "limit", "cursor"),
        )
    ],
)
async def list_traces(
    services: Services,
    *,
    owner_id: _Wanted = None,
    entity_id: Annotated[str | None, Query(max_length=64, description="the same as owner_id")] = None,
    span: When,
    trigger_id: _Wanted = None,
    state_change_id: _Wanted = None,
    job_id: _Wanted = None,
    decision: Annotated[Decision | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[int | None, Query(ge=1, le=MOST)] = None,
) -> Response:
    """What triggers decided and why, the newest first."""
    wanted: dict[str, Any] = {
        "owner_id": entity_of(entity_id, owner_id),
        "trigger_id": trigger_id,
        "state_change_id": state_change_id,
        "job_id": job_id,
        "decision": decision,
    }
    found = await services.store.read(
        lambda conn: rules.trace_rows(conn, limit=limit + 1, before=cursor, span=span, **wanted)
    )
    following = str(found[limit - 1].id) if len(found) > limit else None
    return listed(map(trace_json, found[:limit]), following)

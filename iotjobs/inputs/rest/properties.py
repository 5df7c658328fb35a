"""Properties as reports and people set them, and their history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from sqlalchemy import Connection

from iotjobs.clock import rfc3339
from iotjobs.domain.entities import PropertyType
from iotjobs.domain.errors import BadRequest, FieldError
from iotjobs.domain.payloads import check_payload
from iotjobs.domain.rights import EVERYTHING
from iotjobs.engine.happenings import Happening, Reported, Written
from iotjobs.engine.reports import JOB_ID_MEMBER, REPORT_ID_MEMBER, check_names, reported
from iotjobs.inputs.rest.answers import (
    ENTITIES,
    FOLDERS,
    Id,
    JobId,
    JobsBehind,
    When,
    json_response,
    listed,
    only,
)
from iotjobs.inputs.rest.body import MOST, body_of, patch_of
from iotjobs.inputs.rest.services import (
    ApiServices,
    CallerOf,
    Engine,
    EngineServices,
    Services,
    operator_for,
)
from iotjobs.inputs.shapes import Listed
from iotjobs.inputs.state_shapes import PropertiesOut, PropertyOut
from iotjobs.store import chains, definitions, standings
from iotjobs.store.definitions import Definition, Kind
from iotjobs.store.writer import Transaction

_Values = Annotated[dict[str, Any], Depends(body_of(dict[str, Any]))]
_NO_PROPERTY = {
    REPORT_ID_MEMBER: "is a report's id, and no property",
    JOB_ID_MEMBER: "is the id of a report's job, and no property",
}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"model": PropertiesOut}}


def properties_of(kind: Kind) -> APIRouter:
    """The routes of properties below objects or links."""
    router = APIRouter(prefix=f"/{FOLDERS[kind]}/{{entity_id}}", tags=["properties"])

    @router.post("/report", dependencies=[operator_for("reporting")], responses=_ANSWER)
    async def report(
        services: Services,
        engine: Engine,
        entity_id: Id,
        body: _Values,
        *,
        idempotency_key: Annotated[
            str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)
        ] = None,
        job_id: JobId = None,
    ) -> Response:
        """A device's report: its values are merged into the properties, and what follows from them happens.

        Answered with all properties. A report whose id (Idempotency-Key, or the member `_id`) is among the last 256 has no effect.
        One that a job led to says so (Job-Id, or the member `_job_id`), so that a loop of triggers is seen.
        """
        what = reported(check_payload(body, "a report"), idempotency_key, job_id)
        return await _happen(services, engine, kind, entity_id, what)

    @router.patch("/properties", dependencies=[operator_for("writing properties")], responses=_ANSWER)
    async def write_properties(
        services: Services,
        engine: Engine,
        caller: CallerOf,
        entity_id: Id,
        body: Annotated[dict[str, Any], Depends(patch_of(dict[str, Any]))],
        *,
        job_ids: JobsBehind,
    ) -> Response:
        """Set properties; writing a readwrite one runs the owner's operations that ask for it.

        What a job does says so (Job-Id), so that a loop of triggers is seen.
        """
        values = check_names(check_payload(body, "a patch of properties"))
        what = Written(values, caller, job_ids)
        return await _happen(services, engine, kind, entity_id, what)

    @router.get("/properties", responses=_ANSWER)
    async def read_properties(services: Services, entity_id: Id) -> Response:
        """The effective properties: the class's under the entity's own."""
        return json_response(await services.store.read(lambda conn: _properties(conn, kind, entity_id)))

    return router


def history_of(kind: Kind) -> APIRouter:
    """The route of a property's history below objects or links."""
    router = APIRouter(prefix=f"/{FOLDERS[kind]}/{{entity_id}}", tags=["properties"])

    @router.get(
        "/properties/{name:path}/history",
        responses={200: {"model": Listed[PropertyOut]}},
        dependencies=[only("since", "until", "limit", "cursor")],
    )
    async def read_history(
        services: Services,
        entity_id: Id,
        name: Annotated[str, Path(min_length=1, max_length=200)],
        *,
        span: When,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: Annotated[int | None, Query(ge=1, le=MOST)] = None,
    ) -> Response:
        """The values that a property got, the newest first; only changes are kept."""

        def query(conn: Connection) -> Any:
            definitions.get(conn, kind, entity_id, EVERYTHING)
            return standings.history(conn, entity_id, name, limit=limit + 1, before=cursor, span=span)

        found = await services.store.read(query)
        following = str(found[limit - 1].id) if len(found) > limit else None
        shown = ({"value": row.value, "at": rfc3339(row.at), "by": row.by} for row in found[:limit])
        return listed(shown, following)

    return router


async def _happen(
    services: ApiServices, engine: EngineServices, kind: Kind, entity_id: str, what: Reported | Written
) -> Response:
    def item(tx: Transaction) -> dict[str, Any]:
        if isinstance(what, Written):
            refuse_unwritable(tx.conn, definitions.get(tx.conn, kind, entity_id, EVERYTHING), what.values)
        chains.refuse_unknown(tx.conn, what.job_ids, "Job-Id")
        engine.reactions.react(tx, Happening(ENTITIES[kind], entity_id, what))
        return _properties(tx.conn, kind, entity_id)

    return json_response(await services.store.write(item))


def refuse_unwritable(conn: Connection, entity: Definition, names: Iterable[str]) -> None:
    """Refuse that a person sets these properties of an entity.

    Raises:
        BadRequest: names each that only reports set.
    """
    types = dict(entity.values["property_types"])
    if entity.values["class_id"] is not None:
        of_class = definitions.get(conn, Kind.CLASS, entity.values["class_id"], EVERYTHING)
        types = {**of_class.values["property_types"], **types}
    problems = tuple(
        FieldError(name, _NO_PROPERTY.get(name, "is readonly: only reports set it"))
        for name in names
        if name in _NO_PROPERTY or types.get(name) == PropertyType.READONLY
    )
    if problems:
        raise BadRequest(f"{problems[0].field} {problems[0].message}", errors=problems)


def _properties(conn: Connection, kind: Kind, entity_id: str) -> dict[str, Any]:
    entity = definitions.get(conn, kind, entity_id, EVERYTHING)
    own: dict[str, Any] = entity.values["properties"]
    if entity.values["class_id"] is None:
        return own
    of_class = definitions.get(conn, Kind.CLASS, entity.values["class_id"], EVERYTHING)
    return {**of_class.values["properties"], **own}

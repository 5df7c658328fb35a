"""The REST application: its routers, and the description that it gives of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import TypeAdapter

from iotjobs import __version__
from iotjobs.inputs import problems
from iotjobs.inputs.rest import (
    classes,
    control,
    credentials,
    execute,
    health,
    jobs,
    links,
    objects,
    reach,
    replays,
    scripts,
    site,
    states,
    triggers,
    users,
    workers,
)
from iotjobs.inputs.rest.answers import PREFIX, json_response
from iotjobs.inputs.rest.body import Body
from iotjobs.inputs.rest.operations import operations_of
from iotjobs.inputs.rest.properties import history_of, properties_of
from iotjobs.inputs.rest.services import ApiServices, authenticated
from iotjobs.inputs.rest.states import conditions_of, state_of
from iotjobs.inputs.rest.triggers import triggers_of
from iotjobs.inputs.shapes import Problem
from iotjobs.store.definitions import Kind

_REFERENCE = "#/components/schemas/{model}"


def build_api(services: ApiServices) -> FastAPI:
    """The application; it owns nothing, so starting and stopping is its caller's part."""
    app = FastAPI(
        title="iotjobs",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Our own logs and metrics; asking OpenTelemetry at each request whether it is there costs 3 %.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    problems.install(app)
    for router in (
        execute.router,  # first: routes are tried one after the other, and this one is asked most
        classes.router,
        objects.router,
        links.router,
        scripts.router,
        credentials.router,
        users.router,
        operations_of(Kind.CLASS),
        operations_of(Kind.OBJECT),
        operations_of(Kind.LINK),
        jobs.router,
        control.router,
        reach.router,
        workers.router,
        site.router,
        states.router,
        triggers.router,
        replays.router,
        *(
            make(kind)
            for make in (conditions_of, triggers_of)
            for kind in (Kind.CLASS, Kind.OBJECT, Kind.LINK)
        ),
        *(make(kind) for make in (state_of, properties_of, history_of) for kind in (Kind.OBJECT, Kind.LINK)),
        _description(app),
    ):
        # Nothing here is public, whatever a route itself says.
        app.include_router(router, prefix=PREFIX, dependencies=[authenticated])
    app.include_router(health.router)
    return app


def _description(app: FastAPI) -> APIRouter:
    router = APIRouter()

    @router.get("/openapi.json", include_in_schema=False)
    async def read_openapi() -> Response:
        return json_response(describe(app))

    return router


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once.

    The framework does not see the bodies that our own dependencies read, nor our errors: both are
    added here.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Problem"] = _schema_of(TypeAdapter(Problem), schemas)
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        for operation, body in _operations(app, document):
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "What went wrong",
                "content": {problems.MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
            }
            if body is not None:
                operation["requestBody"] = _request_body(body, schemas)
        app.openapi_schema = document
    return app.openapi_schema


def _operations(app: FastAPI, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Body | None]]:
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None:
                yield operation, next(_bodies(route.dependant), None)  # codespell:ignore dependant


def _bodies(node: Any) -> Iterator[Body]:
    for dependency in node.dependencies:
        if isinstance(dependency.call, Body):
            yield dependency.call
        yield from _bodies(dependency)


def _request_body(body: Body, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = _schema_of(body.shape, schemas)
    if "title" in schema and not body.patch:
        schemas.setdefault(schema["title"], schema)
        schema = {"$ref": _REFERENCE.format(model=schema["title"])}
    media_type = "application/merge-patch+json" if body.patch else "application/json"
    if body.patch:
        # A patch is a part of the whole: its members may be absent or null, which no schema of it says.
        schema = {"type": "object", "description": "A merge patch (RFC 7396) of what GET answers."}
    return {"required": not body.optional, "content": {media_type: {"schema": schema}}}


def _schema_of(shape: TypeAdapter[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A shape's schema; what it refers to is put among the others."""
    schema = shape.json_schema(ref_template=_REFERENCE, mode="validation")
    for name, part in schema.pop("$defs", {}).items():
        schemas.setdefault(name, part)
    return schema

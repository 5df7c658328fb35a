"""Running the site: whether it dispatches, and its queues."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import Connection

from iotjobs.clock import rfc3339
from iotjobs.domain.errors import NotFound
from iotjobs.inputs.rest.answers import PREFIX, json_response, listed, no_content, only
from iotjobs.inputs.rest.body import body_of
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Engine, Services, admin_for
from iotjobs.inputs.shapes import Listed, QueueName, Shape, Who
from iotjobs.store import queues, switch
from iotjobs.store.queues import QueueState

router = APIRouter(tags=["site"])
_admin = admin_for("running the site")


class SiteBody(Shape):
    """What of the site is switched."""

    dispatch: Literal["open", "drained"] | None = Field(None, description="null leaves it as it is")
    triggers: Literal["open", "paused"] | None = Field(None, description="null leaves it as it is")

    @model_validator(mode="after")
    def _something(self) -> SiteBody:
        if self.dispatch is None and self.triggers is None:
            raise ValueError("give dispatch, triggers, or both")
        return self


class SwitchedOut(BaseModel):
    """Who put a switch of the site as it is, and when."""

    by: Who
    since: str


class SiteOut(BaseModel):
    """The site as it is now."""

    dispatch: Literal["open", "drained"]
    drained: SwitchedOut | None = Field(description="who drained it; null while it is open")
    triggers: Literal["open", "paused"]
    paused: SwitchedOut | None = Field(description="who paused all triggers; null while they may fire")
    running: int = Field(description="attempts that hold a worker, on all nodes")
    waiting: int = Field(description="jobs PENDING")
    job_id: str | None = Field(None, description="of the job that stands for the switch just made")


class QueueBody(Shape):
    """What of a queue is set."""

    concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = None


class QueueOut(BaseModel):
    """A queue and what is in it."""

    name: str
    concurrency: int | None = Field(description="attempts at the same time over all workers; null: no limit")
    built_in: bool
    running: int
    waiting: int


def _site(conn: Connection) -> dict[str, Any]:
    states = queues.states(conn)
    drained, paused = not queues.dispatching(conn), switch.paused(conn)
    return {
        "dispatch": "drained" if drained else "open",
        "drained": _switched(conn, switch.DISPATCH) if drained else None,
        "triggers": "paused" if paused else "open",
        "paused": _switched(conn, switch.PAUSED) if paused else None,
        "running": sum(state.running for state in states),
        "waiting": sum(state.waiting for state in states),
    }


def _switched(conn: Connection, name: str) -> dict[str, Any] | None:
    found = switch.signature(conn, name)
    return None if found is None else {**found, "since": rfc3339(found["since"])}


@router.get("/site", responses={200: {"model": SiteOut}}, dependencies=[only()])
async def read_site(services: Services) -> Response:
    """Whether the site dispatches, and how much runs and waits."""
    return json_response({**await services.store.read(_site), "job_id": None})


@router.put("/site", dependencies=[_admin, only()], responses={200: {"model": SiteOut}})
async def switch_site(
    services: Services,
    engine: Engine,
    caller: CallerOf,
    body: Annotated[SiteBody, Depends(body_of(SiteBody))],
) -> Response:
    """Drain the site, or open it again; pause all its triggers, or let them fire again.

    Drained: nothing begins, what runs goes on to its end, new jobs are taken and wait. The job of the
    answer (STOP_APP) ends when nothing runs any more.
    """
    if body.triggers is not None:
        await engine.switch.pause(paused=body.triggers == "paused", caller=caller)
    job_id = None
    if body.dispatch is not None:
        job_id = await engine.switch.switch(is_open=body.dispatch == "open", caller=caller)
    found = await services.store.read(_site)
    where = {} if job_id is None else {"Location": f"{PREFIX}/jobs/{job_id}"}
    return json_response({**found, "job_id": job_id}, headers=where)


@router.get("/queues", responses={200: {"model": Listed[QueueOut]}}, dependencies=[only()])
async def list_queues(services: Services) -> Response:
    """All queues: the built-in ones first, then the site's own by name."""
    found = await services.store.read(queues.states)
    return listed(map(asdict, found))


@router.get("/queues/{name}", responses={200: {"model": QueueOut}}, dependencies=[only()])
async def read_queue(services: Services, name: QueueName) -> Response:
    """One queue."""
    return json_response(asdict(await _one(services, name)))


@router.put("/queues/{name}", dependencies=[_admin, only()], responses={200: {"model": QueueOut}})
async def put_queue(
    services: Services,
    engine: Engine,
    name: QueueName,
    body: Annotated[QueueBody, Depends(body_of(QueueBody))],
) -> Response:
    """Make a queue, or change how many attempts of it may be under way at the same time."""
    is_new = await engine.switch.put_queue(name, body.concurrency)
    return json_response(asdict(await _one(services, name)), 201 if is_new else 200)


@router.delete("/queues/{name}", status_code=204, dependencies=[_admin, only()])
async def delete_queue(services: Services, name: QueueName) -> Response:
    """Delete a queue of the site's own that nothing uses."""
    await services.store.write(lambda tx: queues.remove(tx, name))
    return no_content()


async def _one(services: ApiServices, name: str) -> QueueState:
    name = queues.ALIASES.get(name, name)
    for state in await services.store.read(queues.states):
        if state.name == name:
            return state
    raise NotFound(f"there is no queue {name}")

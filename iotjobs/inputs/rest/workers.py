"""The processes that run jobs."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from iotjobs.clock import rfc3339
from iotjobs.domain.rights import require_operator
from iotjobs.inputs.rest.answers import listed
from iotjobs.inputs.rest.services import CallerOf, Engine, Services
from iotjobs.inputs.shapes import Listed
from iotjobs.store.nodes import WorkerState

router = APIRouter(tags=["site"])


class WorkerOut(BaseModel):
    """A process that runs jobs, or did within the last hour."""

    id: str
    state: Literal["alive", "dead"] = Field(
        description="dead: it was silent for 10 s, or another took its place"
    )
    host: str
    pid: int
    version: str
    queues: list[str] = Field(description="that it takes from; empty: all")
    running: int
    at_once: int
    leases: list[str] = Field(
        description="what it does for all: leader (timers, dead workers), ingest (MQTT)"
    )
    started_at: str
    seen_at: str = Field(description="last heartbeat, by the database's clock")


def _shown(worker: WorkerState) -> dict[str, Any]:
    return {
        "id": worker.id,
        "state": "alive" if worker.gone_at is None else "dead",
        "host": worker.node.host,
        "pid": worker.node.pid,
        "version": worker.node.version,
        "queues": list(worker.node.queues),
        "running": worker.running,
        "at_once": worker.node.at_once,
        "leases": list(worker.leases),
        "started_at": rfc3339(worker.started_at),
        "seen_at": rfc3339(worker.seen_at),
    }


@router.get("/workers", responses={200: {"model": Listed[WorkerOut]}})
async def list_workers(services: Services, engine: Engine, caller: CallerOf) -> Response:
    """List the processes that run jobs, the oldest first; not for viewers."""
    require_operator(caller, "reading workers")
    return listed((_shown(worker) for worker in await services.store.read(engine.roster)), None)

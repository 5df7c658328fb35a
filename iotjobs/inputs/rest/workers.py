"""The processes that run jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from iotjobs.clock import rfc3339
from iotjobs.domain.rights import require_operator
from iotjobs.inputs.rest.answers import listed, only
from iotjobs.inputs.rest.services import CallerOf, Engine, Services
from iotjobs.inputs.shapes import Listed
from iotjobs.store import queues
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
    queues: list[str] = Field(description="that it takes from: all there are")
    running: int
    at_once: int
    leases: list[str] = Field(
        description="what it does for all: leader (timers, dead workers), ingest (MQTT)"
    )
    started_at: str
    seen_at: str = Field(description="last heartbeat, by the database's clock")


def _shown(worker: WorkerState, names: Sequence[str]) -> dict[str, Any]:
    return {
        "id": worker.id,
        "state": "alive" if worker.gone_at is None else "dead",
        "host": worker.node.host,
        "pid": worker.node.pid,
        "version": worker.node.version,
        "queues": list(worker.node.queues or names),
        "running": worker.running,
        "at_once": worker.node.at_once,
        "leases": list(worker.leases),
        "started_at": rfc3339(worker.started_at),
        "seen_at": rfc3339(worker.seen_at),
    }


@router.get("/workers", responses={200: {"model": Listed[WorkerOut]}}, dependencies=[only()])
async def list_workers(services: Services, engine: Engine, caller: CallerOf) -> Response:
    """List the processes that run jobs, the oldest first; not for viewers."""
    require_operator(caller, "reading workers")
    workers, names = await services.store.read(lambda conn: (engine.roster(conn), list(queues.limits(conn))))
    return listed((_shown(worker, names) for worker in workers), None)

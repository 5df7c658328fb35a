"""Whether the process lives and whether the site is ready; public."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from iotjobs.inputs.rest.services import Services

router = APIRouter(tags=["health"])


class LifeOut(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class ReadyOut(BaseModel):
    """Whether the site is ready."""

    status: Literal["ready", "degraded", "starting"]
    reasons: dict[str, str] = Field(description="why a part is not up, by its name")


@router.get("/healthz")
async def healthz() -> LifeOut:
    """The process answers."""
    return LifeOut(status="ok")


@router.get("/readyz", responses={503: {"model": ReadyOut}})
async def readyz(services: Services, response: Response) -> ReadyOut:
    """503 until every part was up once; later 200, `degraded` with the reasons when one is down."""
    ready, reasons = (
        (False, {"engine": "not started"}) if services.engine is None else services.engine.readiness.report()
    )
    if not ready:
        response.status_code = 503
        return ReadyOut(status="starting", reasons=reasons)
    return ReadyOut(status="degraded" if reasons else "ready", reasons=reasons)

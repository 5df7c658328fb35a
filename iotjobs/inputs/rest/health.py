"""Whether the process lives and whether the site is ready; public."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from iotjobs.inputs.rest.services import Services

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: Services, response: Response) -> dict[str, Any]:
    """503 until every part was up once; later 200, `degraded` with the reasons when one is down."""
    ready, reasons = (
        (False, {"engine": "not started"}) if services.engine is None else services.engine.readiness.report()
    )
    if not ready:
        response.status_code = 503
    status = "ready" if not reasons else ("degraded" if ready else "starting")
    return {"status": status, "reasons": reasons}

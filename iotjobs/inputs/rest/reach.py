"""Reaching a device: test the way, look at its host key, give it its login on the broker."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from iotjobs.domain.errors import DeliveryError, NotReady
from iotjobs.inputs.rest.answers import Id
from iotjobs.inputs.rest.services import Engine, admin_for, authenticated

router = APIRouter(tags=["objects"], dependencies=[authenticated])


@router.post("/objects/{object_id}/check", dependencies=[admin_for("checking a connection")])
async def check(engine: Engine, object_id: Id) -> dict[str, Any]:
    """Test the SSH way step by step; each step with its time and what it found."""
    try:
        steps = [asdict(step) for step in await engine.reach.check(object_id)]
    except DeliveryError as error:
        steps = [{"name": "credential", "ok": False, "ms": 0, "detail": error.message}]
    return {"ok": all(step["ok"] for step in steps), "steps": steps}


@router.post("/objects/{object_id}/host-key/scan", dependencies=[admin_for("scanning a host key")])
async def scan_host_key(engine: Engine, object_id: Id) -> dict[str, Any]:
    """The keys that the host shows now, with fingerprints. Trusts nothing: compare, then PUT one."""
    try:
        keys = await engine.reach.scan_host_key(object_id)
    except DeliveryError as error:
        raise NotReady(error.message) from error
    return {"keys": [{"host_key": key.line, "fingerprint": key.fingerprint} for key in keys]}


@router.post("/objects/{object_id}/enrol", dependencies=[admin_for("enrolling a device")])
async def enrol(request: Request, engine: Engine, object_id: Id) -> dict[str, Any]:
    """Make the device's login on the broker. The password is in this answer and nowhere else."""
    enrolled = await engine.enrolment.enrol(object_id, request.url.hostname)
    return {
        "thing": enrolled.thing,
        "url": enrolled.url,
        "username": enrolled.username,
        "password": enrolled.password,
    }

"""Reaching a device: test the way, look at its host key, give it its login on the broker."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from iotjobs.domain.errors import DeliveryError, NotReady
from iotjobs.inputs.rest.answers import Id
from iotjobs.inputs.rest.services import Engine, admin_for, authenticated

router = APIRouter(tags=["objects"], dependencies=[authenticated])


class StepOut(BaseModel):
    """One step of a connection test."""

    name: Literal["credential", "dns", "tcp", "host key", "auth", "exec"]
    ok: bool
    ms: int
    detail: str = Field(description="what it found, or what is wrong")


class CheckOut(BaseModel):
    """A connection test: its steps up to the first that failed."""

    ok: bool
    steps: list[StepOut]


class ShownKey(BaseModel):
    """A host key as the host shows it now."""

    host_key: str
    fingerprint: str


class ScanOut(BaseModel):
    """The keys that a host shows now, one of each kind."""

    keys: list[ShownKey]


class EnrolledOut(BaseModel):
    """What a device needs to log in at the broker; the password is shown this once."""

    thing: str
    url: str
    username: str
    password: str


@router.post("/objects/{object_id}/check", dependencies=[admin_for("checking a connection")])
async def check(engine: Engine, object_id: Id) -> CheckOut:
    """Test the SSH way step by step; each step with its time and what it found."""
    try:
        steps = [StepOut(**asdict(step)) for step in await engine.reach.check(object_id)]
    except DeliveryError as error:
        steps = [StepOut(name="credential", ok=False, ms=0, detail=error.message)]
    return CheckOut(ok=all(step.ok for step in steps), steps=steps)


@router.post("/objects/{object_id}/host-key/scan", dependencies=[admin_for("scanning a host key")])
async def scan_host_key(engine: Engine, object_id: Id) -> ScanOut:
    """The keys that the host shows now, with fingerprints. Trusts nothing: compare, then PUT one."""
    try:
        keys = await engine.reach.scan_host_key(object_id)
    except DeliveryError as error:
        raise NotReady(error.message) from error
    return ScanOut(keys=[ShownKey(host_key=key.line, fingerprint=key.fingerprint) for key in keys])


@router.post("/objects/{object_id}/enrol", dependencies=[admin_for("enrolling a device")])
async def enrol(request: Request, engine: Engine, object_id: Id) -> EnrolledOut:
    """Make the device's login on the broker. The password is in this answer and nowhere else."""
    enrolled = await engine.enrolment.enrol(object_id, request.url.hostname)
    return EnrolledOut(**asdict(enrolled))

"""What devices say about jobs: custom results, and the answers that end one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.jobs import Delivery, Ending, Job, Transport
from iotjobs.domain.operations import Plan
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.settle import Settler
from iotjobs.store import entities, jobs, reads
from iotjobs.store.writer import Transaction
from iotjobs.transports.topics import DeviceTopic, TopicKind


def take_word(
    tx: Transaction,
    settler: Settler,
    topic: DeviceTopic,
    object_id: str,
    payload: dict[str, Any],
    *,
    retained: bool = False,
) -> None:
    """Append a device's word to its job, and end the attempt that waits for it.

    One that the broker had kept (`retained`) may be one that is there already: then it has no effect.

    Raises:
        ValueError: the job is not the device's.
        RequestError: there is no such job, or it has as many results as it may have.
    """
    assert topic.job_id is not None
    job = reads.job_by_reference(tx.conn, topic.job_id, EVERYTHING)
    _refuse_stranger(tx.conn, topic.thing, object_id, job)
    if retained and reads.has_result(tx.conn, job.id, object_id, payload):
        return
    now = clock.now_ms()
    jobs.append_result(tx, job, payload, object_id, now)
    job = jobs.get(tx.conn, job.id)  # again: the append has locked its row
    plan = _awaits_answer(tx.conn, job)
    if plan is not None:
        settler.conclude(tx, job, plan, ending_of_answer(payload), now, delivery=Delivery.ENDED)
    elif topic.kind is TopicKind.ANSWER:
        jobs.log(tx, job.id, now, "INFO", "an answer came that nobody waits for")


def _awaits_answer(conn: Connection, job: Job) -> Plan | None:
    """The plan, where a device's word ends the attempt: also before the broker acknowledged, or after a cut."""
    if job.transport is not Transport.MQTT or not job.attempt or job.ended:
        return None
    plan = Plan.from_json(jobs.plan_of(conn, job.id)[0])
    return None if plan.answer_within_s is None else plan


def ending_of_answer(payload: dict[str, Any]) -> Ending:
    """A device says no with `"ok": false`, and why in `"error"`; everything else is a yes."""
    if payload.get("ok") is not False:
        return Ending(Outcome.SUCCEEDED)
    said = str(payload.get("error") or "the device said no")
    return Ending(Outcome.FAILED, error_code="deviceSaidNo", error_message=said[:1000])


def _refuse_stranger(conn: Connection, thing: str, object_id: str, job: Job) -> None:
    """Only a job's owner may speak about it, or an end of the owning link."""
    if job.owner_type == OwnerType.OBJECT and job.owner_id == object_id:
        return
    if job.owner_type == OwnerType.LINK:
        link = entities.load_entity(conn, OwnerType.LINK, job.owner_id)
        if link is not None and object_id in (link.end("source").id, link.end("target").id):
            return
    raise ValueError(f"job {job.id} does not belong to {thing}")

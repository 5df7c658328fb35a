"""What devices say about jobs over MQTT: custom results and answers.

Who speaks is the thing in the topic: the broker's access list lets a device publish under its own
name only. A message is acknowledged after its effect is committed; what can have no effect is
logged, counted and acknowledged, never raised into the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import msgspec
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import LeaseLost, RequestError, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Delivery, Ending, Job, Transport
from iotjobs.domain.payloads import RESULT_LIMIT_BYTES, check_payload
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.settle import STORE_RETRY_S, Settler
from iotjobs.store import entities, jobs, reads
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import DeviceTopic, TopicKind, parse_topic

log = logging.getLogger(__name__)

# What may wait here: 64 MB at most, of a device that floods us.
INBOX_MESSAGES = 1000
LINES_A_SECOND = 50


_ALWAYS = Always()


class DeviceMessages:
    """Takes what devices send, in order, one at a time.

    `receive` is the consumer's handler; `start` begins the loop that works through what came.
    The consumer's Receive Maximum and our own bound for QoS 0 limit what can pile up here.
    """

    def __init__(self, store: Store, settler: Settler, standing: Standing = _ALWAYS) -> None:
        self._store, self._settler, self._standing = store, settler, standing
        self._inbox: asyncio.Queue[Received] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._second, self._told = 0.0, 0
        self.dropped = 0

    def receive(self, message: Received) -> None:
        """Take a message from the consumer; it is acknowledged once its effect is on disk.

        What is too large has no effect, and neither has QoS 0 beyond what we hold: the broker's
        Receive Maximum bounds QoS 1 only.
        """
        if len(message.payload) > RESULT_LIMIT_BYTES:
            self._drop(message, f"more than {RESULT_LIMIT_BYTES} bytes")
            message.ack()
        elif message.qos == 0 and self._inbox.qsize() >= INBOX_MESSAGES:
            self._drop(message, "too many at once with QoS 0")
        else:
            self._inbox.put_nowait(message)

    def _drop(self, message: Received, why: str) -> None:
        """Count what has no effect, and tell the log, but not as often as a flood comes."""
        self.dropped += 1
        if clock.monotonic() >= self._second + 1:
            self._second, self._told = clock.monotonic(), 0
        self._told += 1
        if self._told <= LINES_A_SECOND:
            facts = {"topic": message.topic[:200], "why": why[:200], "dropped": self.dropped}
            log.warning("a device message has no effect", extra=facts)

    async def start(self) -> None:
        """Begin; a second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="device messages")

    async def stop(self) -> None:
        """End; what was not acknowledged comes again from the broker."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._inbox = asyncio.Queue()

    async def _loop(self) -> None:
        while True:
            message = await self._inbox.get()
            try:
                while not await self._handle(message):
                    await clock.sleep(STORE_RETRY_S)
            except LeaseLost:
                continue  # not acknowledged: it comes to the node that took over
            message.ack()

    async def _handle(self, message: Received) -> bool:
        """Give a message its effect; False when the store cannot take it now."""
        try:
            topic = parse_topic(message.topic)
            if topic is None or topic.job_id is None:
                raise ValueError("the topic is not one of ours")
            payload = check_payload(read_payload(message.payload))
            await self._store.write(lambda tx: self._apply(tx, topic, payload))
        except (StoreUnavailable, StorageFull):
            log.warning("the store cannot take device messages", extra={"topic": message.topic})
            return False
        except (ValueError, RecursionError, RequestError) as error:
            # msgspec's errors are ValueErrors; what a device sends wrong must not stop the others.
            self._drop(message, str(error))
        except LeaseLost:
            raise
        except Exception:
            self.dropped += 1
            log.exception("a device message failed in us", extra={"topic": message.topic[:200]})
        return True

    def _apply(self, tx: Transaction, topic: DeviceTopic, payload: dict[str, Any]) -> None:
        assert topic.job_id is not None
        self._standing.check(tx)
        job = reads.job_by_reference(tx.conn, topic.job_id, EVERYTHING)
        object_id = _object_of(tx.conn, topic.thing, job)
        now = clock.now_ms()
        jobs.append_result(tx, job, payload, object_id, now)
        job = jobs.get(tx.conn, job.id)  # again: the append has locked its row
        if _awaits_answer(tx.conn, job):
            self._settler.finish(tx, job, ending_of_answer(payload), now, delivery=Delivery.ENDED)
        elif topic.kind is TopicKind.ANSWER:
            jobs.log(tx, job.id, now, "INFO", "an answer came that nobody waits for")


def _awaits_answer(conn: Connection, job: Job) -> bool:
    """Whether a device's word ends the job: also before the broker acknowledged, or after a cut."""
    if job.transport is not Transport.MQTT or not job.attempt or jobs.ended(job):
        return False
    return jobs.plan_of(conn, job.id)[0].get("answer_within_s") is not None


def read_payload(raw: bytes) -> Any:
    """The JSON of a device; two values for one name are refused, not guessed at.

    Raises:
        ValueError, RecursionError: it is no JSON, too deep, or says one name twice.
    """
    value = msgspec.json.decode(raw)  # strict: no NaN, no number out of range, no half characters
    json.loads(raw, object_pairs_hook=_refuse_repeated)
    return value


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice in one object")


def ending_of_answer(payload: dict[str, Any]) -> Ending:
    """A device says no with `"ok": false`, and why in `"error"`; everything else is a yes."""
    if payload.get("ok") is not False:
        return Ending(Outcome.SUCCEEDED)
    said = str(payload.get("error") or "the device said no")
    return Ending(Outcome.FAILED, error_code="deviceSaidNo", error_message=said[:1000])


def _object_of(conn: Connection, thing: str, job: Job) -> str:
    """The object of a thing that may speak about a job: its owner, or an end of the owning link.

    Raises:
        ValueError: it may not.
    """
    object_id = entities.find_by_thing(conn, thing)
    if object_id is None:
        raise ValueError(f"no object has the thing name {thing}")
    if job.owner_type == OwnerType.OBJECT and job.owner_id == object_id:
        return object_id
    if job.owner_type == OwnerType.LINK:
        link = entities.load_entity(conn, OwnerType.LINK, job.owner_id)
        if link is not None and object_id in (link.end("source").id, link.end("target").id):
            return object_id
    raise ValueError(f"job {job.id} does not belong to {thing}")

"""Attempts of mqtt operations: send once, then settle, or park until the device answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from iotjobs import clock
from iotjobs.domain import retries
from iotjobs.domain.control import ASKED, NOT_CONFIRMED
from iotjobs.domain.errors import DeliveryError, DeviceUnreachable, LeaseLost, OperationFailed
from iotjobs.domain.jobs import Delivery, Ending, Job
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.line import Line
from iotjobs.engine.settle import TAKEN, Settler, delivery_of, until_taken
from iotjobs.engine.watch import Watch, Why
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports import topics
from iotjobs.transports.mqtt import Acknowledged, MqttPublisher, PublishEnd, end_of
from iotjobs.transports.mqtt_messages import MqttMessage

# What was promised to an attempt whose begin then failed is free again after this long.
PROMISE_S = 5.0
# A broker that takes nothing holds reports up for so long only; their jobs then wait in the queue.
BREATH_S, BREATH_LOOK_S = 0.5, 0.002


_UNSENT = Ending(Outcome.LOST, error_code=NOT_CONFIRMED, error_message="nothing was sent")
_CALLED_BACK = Ending(
    Outcome.LOST, error_code=NOT_CONFIRMED, error_message="the message had left, and none can be called back"
)


class BeforeSend(Protocol):
    """The step right before the first byte leaves."""

    sent_at: int | None
    announced: bool

    async def before_send(self) -> None:
        """Commit that from now on the device may have been reached."""


class Publishing:
    """Publishes what jobs say. Safe for concurrent use.

    Args:
        store: where jobs are.
        settler: ends attempts.
        publisher: the connection to the broker, or None where there is no broker.
    """

    def __init__(self, store: Store, settler: Settler, publisher: MqttPublisher | None) -> None:
        self._store, self._settler, self._publisher = store, settler, publisher
        self._promised: dict[str, float] = {}  # job → when it was told that it may send at once
        self._line = Line()

    def ready_for(self, job_id: str, *, ahead: int = 0) -> bool:
        """Whether the job's message would leave at once: a free place that no other job was told of.

        Many jobs are begun in one transaction, before the first of them takes its place. Asking
        again for the same job counts once.

        Args:
            job_id: whose.
            ahead: how many may wait for the places of others, which takes a moment.
        """
        if self._publisher is None or (waiting := self._publisher.waiting) is None:
            return False
        now = clock.monotonic()
        self._promised.pop(job_id, None)
        while self._promised and now - next(iter(self._promised.values())) > PROMISE_S:
            del self._promised[next(iter(self._promised))]
        if self._publisher.free_places + ahead <= len(self._promised) + len(self._line) + waiting:
            return False
        self._promised[job_id] = now
        return True

    async def breathe(self, most: int) -> None:
        """Wait until so many messages wait for others at most, or `BREATH_S` has passed."""
        until = clock.monotonic() + BREATH_S
        while (
            self._publisher is not None
            and (self._publisher.waiting or 0) + len(self._line) + len(self._promised) > most
            and clock.monotonic() < until
        ):
            await clock.sleep(BREATH_LOOK_S)

    def line_up(self, job_id: str) -> None:
        """The job's message leaves after those that were lined up before it. `step_out` must follow."""
        self._promised.pop(job_id, None)
        self._line.join(job_id)

    def step_out(self, job_id: str) -> None:
        """Nothing of the job is about to leave; calling it again, or for another job, changes nothing."""
        self._line.leave(job_id)

    async def hand_over(
        self, job: Job, plan: Plan, before_send: Callable[[], Awaitable[None]]
    ) -> Acknowledged:
        """Send a job's message; what becomes of it is still to come. Raises as `MqttPublisher.hand_over`.

        One that is lined up keeps its place when this fails or is canceled: it may be tried again.
        """
        # Up to the window nothing is awaited that waits: with a free place it is taken in this turn.
        self._promised.pop(job.id, None)
        if self._publisher is None:
            raise DeviceUnreachable("this site has no MQTT broker, see /readyz")
        since = asyncio.get_running_loop().time() if job.id in self._line else None
        await self._line.come(job.id)
        answer = await self._publisher.hand_over(message_of(job, plan), before_send, since=since)
        self._line.leave(job.id)
        return answer

    async def publish(
        self, job: Job, plan: Plan, sending: BeforeSend, watch: Watch, answer: Acknowledged | None = None
    ) -> None:
        """Run one attempt of an mqtt job to its end, or until it is parked; the watch bounds it.

        Args:
            job: its row, with the attempt under way.
            plan: what it does.
            sending: the step before its first byte.
            watch: not started yet.
            answer: of a message that was handed over already.
        """
        try:
            async with watch:
                end = end_of(await (answer or await self._hand_over_alone(job, plan, sending)))
            if end.no_subscriber and plan.require_subscriber:
                raise OperationFailed("noSubscriber", "nobody has subscribed to the topic")
        except TimeoutError:
            if watch.why is Why.ASKED:
                ending = _CALLED_BACK if sending.announced else _UNSENT
            else:
                what = f"the broker did not acknowledge within {plan.timeout_s:g} s"
                ending = Ending(Outcome.TIMED_OUT, error_code="timeOut", error_message=what)
        except OperationFailed as error:
            ending = Ending(Outcome.FAILED, error_code=error.code, error_message=error.message)
        except DeliveryError as error:
            if not error.maybe_executed:
                sending.sent_at = None
            ending = retries.ending_of(error)
        else:
            await self._acknowledged(job, plan, end, sending.sent_at)
            return
        if not sending.announced:
            sending.sent_at = None
        await self._settler.end_attempt(replace(job, sent_at=sending.sent_at), plan, ending)

    async def _hand_over_alone(self, job: Job, plan: Plan, sending: BeforeSend) -> Acknowledged:
        try:
            return await self.hand_over(job, plan, sending.before_send)
        finally:
            self._line.leave(job.id)

    async def _acknowledged(self, job: Job, plan: Plan, end: PublishEnd, sent_at: int | None) -> None:
        if job.sent_at != sent_at:
            job = replace(job, sent_at=sent_at)
        if end.no_subscriber:
            said = "the broker took the message and nobody has subscribed to its topic"
            await until_taken(
                self._store, lambda tx: jobs.log(tx, job.id, clock.now_ms(), "INFO", said), job.id
            )
        if plan.answer_within_s is None:
            await self._settler.end_attempt(job, plan, TAKEN, delivery=delivery_of(plan))
            return
        deadline = clock.now_ms() + int(plan.answer_within_s * 1000)

        def park(tx: Transaction) -> None:
            jobs.note(tx, job.id, job.attempt, deadline_at=deadline, delivery=Delivery.ACKNOWLEDGED)
            self._settler.parked(tx, job)
            row = jobs.get(tx.conn, job.id)
            if row.status in ASKED:
                self._settler.end_asked(tx, row, _CALLED_BACK, clock.now_ms())

        try:
            await until_taken(self._store, park, job.id)
        except LeaseLost:
            return  # the answer was quicker than the broker's acknowledgement


def taken_plainly(answer: Acknowledged) -> bool:
    """Whether the broker has just taken a message, with no word of refusal or of nobody who has subscribed."""
    return not answer.cancelled() and answer.exception() is None and answer.result().value == 0


def message_of(job: Job, plan: Plan) -> MqttMessage:
    """The plan as an MQTT 5 message; it carries the job's id, since a broker may duplicate it."""
    assert plan.topic is not None
    assert plan.message is not None
    expiry_s = plan.expiry_s
    if expiry_s is None and job.expires_at is not None:
        expiry_s = max(1, (job.expires_at - clock.now_ms()) // 1000)
    answered = plan.answer_within_s is not None and plan.thing is not None
    return MqttMessage(
        topic=plan.topic,
        payload=plan.message.encode(),
        qos=plan.qos,
        retain=plan.retain,
        expiry_s=None if expiry_s is None else max(1, int(expiry_s)),
        user_properties=((topics.JOB_ID_PROPERTY, job.id),),
        response_topic=topics.answer_topic(plan.thing or "", job.id) if answered else None,
        correlation_data=job.id.encode() if answered else None,
        content_type="application/json" if plan.message_is_json else "text/plain",
    )

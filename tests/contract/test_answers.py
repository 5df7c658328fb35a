"""An answer that is a no, or does not come: what `retry` says of it, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.jobs import Delivery, Job, PendingReason
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.answers import take_word
from iotjobs.store import jobs, tables
from iotjobs.store.session import Store
from iotjobs.transports.topics import DeviceTopic, TopicKind
from tests.services.rows import Engine, begin, job_of, rows_of

NO = {"ok": False, "error": "stuck"}


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


class Asking:
    """A job of a message that waits for its device's answer."""

    def __init__(self, engine: Engine, owner_id: str, job: Job) -> None:
        self.engine, self._owner_id, self.job = engine, owner_id, job

    @classmethod
    async def begun(cls, engine: Engine, *on: str) -> Asking:
        """Its first attempt of two is under way, and the broker has acknowledged it."""
        owner_id = await engine.thing(thing="press")
        given = {"topic": "iotjobs/press/do", "message": "x", "answer": {"within_s": 60}}
        retry = {"attempts": 2, "on": [*on], "backoff_s": 60}
        operation_id = await engine.operation(
            owner_id, type="mqtt", parameters=given, idempotent=True, retry=retry
        )
        job = await job_of(engine.store, await engine.execute(owner_id, operation_id))
        asking = cls(engine, owner_id, job)
        await asking.next_try()
        return asking

    async def now(self) -> Job:
        """Its row."""
        return await job_of(self.engine.store, self.job.id)

    async def next_try(self) -> None:
        """The next attempt begins, and is acknowledged by the broker."""
        job = await begin(self.engine.store, await self.now(), sent=True)
        facts = {"deadline_at": clock.now_ms() + 60_000, "delivery": Delivery.ACKNOWLEDGED}
        await self.engine.store.write(lambda tx: jobs.note(tx, job.id, job.attempt, **facts))

    async def word(self, payload: dict[str, Any]) -> None:
        """The device says something."""
        topic = DeviceTopic(TopicKind.ANSWER, "press", self.job.id)
        await self.engine.store.write(
            lambda tx: take_word(tx, self.engine.settler, topic, self._owner_id, payload)
        )

    async def silence(self) -> None:
        """Its deadline passes."""
        job = await self.now()
        await self.engine.store.write(lambda tx: jobs.note(tx, job.id, job.attempt, deadline_at=1))
        await self.engine.deadlines.look()

    async def happens(self, what: str) -> None:
        """A `no`, or `silence`."""
        await (self.word(NO) if what == "no" else self.silence())


ENDS = [
    ("no", "failed", Outcome.FAILED, "deviceSaidNo"),
    ("silence", "timed_out", Outcome.TIMED_OUT, "noAnswer"),
]


@pytest.mark.parametrize(("what", "on", "outcome", "code"), ENDS)
async def test_it_is_tried_again_as_often_as_the_operation_says(
    engine: Engine, what: str, on: str, outcome: Outcome, code: str
) -> None:
    asking = await Asking.begun(engine, on)

    await asking.happens(what)

    waiting = await asking.now()
    assert (waiting.status, waiting.pending_reason) == (Status.PENDING, PendingReason.RETRY)
    assert 29_000 < (waiting.start_at or 0) - clock.now_ms() <= 60_000
    assert waiting.deadline_at is None
    await asking.next_try()
    await asking.happens(what)

    job = await asking.now()
    assert (job.status, job.attempt, job.outcome, job.error_code) == (Status.FINISHED, 2, outcome, code)
    rows = await rows_of(engine.store, tables.attempts, job.id)
    assert [(row["number"], row["outcome"], row["error_code"]) for row in rows] == [
        (1, outcome, code),
        (2, outcome, code),
    ]


@pytest.mark.parametrize(("what", "outcome", "code"), [(what, *end) for what, _, *end in ENDS])
async def test_it_is_not_tried_again_where_the_operation_does_not_say_so(
    engine: Engine, what: str, outcome: Outcome, code: str
) -> None:
    asking = await Asking.begun(engine, "unreachable", "lost")

    await asking.happens(what)

    job = await asking.now()
    assert (job.status, job.attempt, job.outcome, job.error_code) == (Status.FINISHED, 1, outcome, code)


async def test_a_no_that_comes_again_does_not_end_what_waits_for_its_next_try_and_a_yes_does(
    engine: Engine,
) -> None:
    asking = await Asking.begun(engine, "failed")
    await asking.word(NO)
    before = await asking.now()

    await asking.word(NO)

    again = await asking.now()
    assert (again.status, again.start_at, again.results_count) == (Status.PENDING, before.start_at, 2)
    await asking.word({"ok": True})
    job = await asking.now()
    assert (job.status, job.attempt, job.outcome) == (Status.FINISHED, 1, Outcome.SUCCEEDED)


async def test_who_is_canceled_meanwhile_is_not_tried_again(engine: Engine) -> None:
    asking = await Asking.begun(engine, "failed", "timed_out")
    job, told = await asking.now(), {"by": "u", "at": 1, "reason": None, "confirmed": None}
    await engine.store.write(lambda tx: jobs.ask(tx, job, Status.CANCELING, clock.now_ms(), told))

    await asking.word(NO)

    assert (await asking.now()).status is Status.FINISHED

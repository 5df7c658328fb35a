"""Messages of one transaction leave together and end together; what goes wrong with one is its own, on both databases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from iotjobs import clock
from iotjobs.domain.jobs import Delivery, Job, Transport
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import sending, volleys, worker
from iotjobs.engine.devices import BATCH_MESSAGES
from iotjobs.engine.intake import Fired
from iotjobs.store import jobs, tables
from iotjobs.store.session import Store
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import JOB_ID_PROPERTY
from tests.services.mosquitto import Mosquitto
from tests.services.rows import Engine, job_of, job_row, rows_of
from tests.services.site import eventually


@dataclass
class Line:
    """An engine, its broker, and who listens there."""

    engine: Engine
    broker: Mosquitto
    heard: Counter[str | None] = field(default_factory=Counter)
    writes: list[int] = field(default_factory=list)

    async def fire(self, count: int, **members: object) -> list[str]:
        """Begin so many messages in one transaction; their jobs."""
        given = {"timeout_s": 20.0, "topic": "line/1", "message": "on", **members}
        plan = Plan(OperationType.MQTT, **given)  # type: ignore[arg-type]
        fired = [Fired(job_row(transport=Transport.MQTT, queue="mix"), plan) for _ in range(count)]
        worker = self.engine.worker
        assert all(await self.engine.store.write(lambda tx: [worker.begin_at_once(tx, one) for one in fired]))
        return [one.row["id"] for one in fired]

    async def ask(self, job_id: str) -> None:
        """Cancel a job."""
        job, now = await job_of(self.engine.store, job_id), clock.now_ms()
        cancel = {"by": "u", "at": now, "reason": None, "confirmed": None}
        await self.engine.store.write(lambda tx: jobs.ask(tx, job, Status.CANCELING, now, cancel))
        self.engine.worker.end(job_id, job.attempt)

    async def ended(self, job_ids: list[str], within_s: float = 10.0) -> list[Job]:
        """The jobs, once all have ended."""
        found: list[Job] = []

        async def all_ended() -> bool:
            found[:] = [await job_of(self.engine.store, job_id) for job_id in job_ids]
            return all(job.ended_at is not None for job in found)

        await eventually(all_ended, within_s)
        return found


@pytest.fixture
async def line(
    store: Store, start_mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Line]:
    broker = start_mosquitto()
    publisher = MqttPublisher(broker.address, window=20)
    made = Line(Engine(store, publisher=publisher), broker)

    def heard(message: object) -> None:
        made.heard[message.user_property(JOB_ID_PROPERTY)] += 1  # type: ignore[attr-defined]
        message.ack()  # type: ignore[attr-defined]

    consumer = MqttConsumer(broker.address, client_id="listener", filters=["line/#"], handler=heard)
    end_messages = made.engine.settler.end_messages

    async def counted(messages: list[object]) -> None:
        made.writes.append(len(messages))
        await end_messages(messages)  # type: ignore[arg-type]

    monkeypatch.setattr(made.engine.settler, "end_messages", counted)
    for link in (consumer, publisher):
        await link.start()
        assert await link.wait_connected(10)
    yield made
    await made.engine.stop()
    await publisher.stop()
    await consumer.stop()


async def test_what_the_broker_takes_ends_together(line: Line) -> None:
    ids = await line.fire(40)
    found = await line.ended(ids)

    assert {(job.status, job.outcome, job.delivery, job.attempt) for job in found} == {
        (Status.FINISHED, Outcome.SUCCEEDED, Delivery.ACKNOWLEDGED, 1)
    }
    assert sum(line.writes) == 40
    assert len(line.writes) < 20
    assert line.heard == Counter(ids)
    assert line.engine.worker.running == 0


async def test_it_leaves_the_rows_that_a_single_attempt_leaves(line: Line, store: Store) -> None:
    [alone] = await line.fire(1)
    one, two = await line.fire(2)
    found = await line.ended([alone, one, two])

    own = {"id", "seq", "timestamp", "started_at", "begun_at", "ended_at", "sent_at", "nonce"}
    columns = [name for name in Job.__dataclass_fields__ if name not in own]
    assert len({tuple(str(getattr(job, name)) for name in columns) for job in found}) == 1
    for job in found:
        assert job.seq > 0
        assert job.timestamp <= job.started_at == job.begun_at == job.sent_at <= job.ended_at
        told = await store.read(
            lambda conn, job_id=job.id: conn.execute(  # type: ignore[misc]
                select(tables.events.c.kind, tables.events.c.data)
                .where(tables.events.c.job_id == job_id)
                .order_by(tables.events.c.id)
            ).all()
        )
        assert [(kind, data["status"]) for kind, data in told] == [
            ("job.added", "PENDING"),
            ("job.changed", "RUNNING"),
            ("job.changed", "FINISHED"),
        ]
        [attempt] = await rows_of(store, tables.attempts, job.id)
        assert (attempt["number"], attempt["outcome"]) == (1, "succeeded")


async def test_a_message_that_nobody_gets_says_so_and_the_others_go_on(line: Line, store: Store) -> None:
    ids, unheard = await line.fire(3), await line.fire(2, topic="nobody/1")
    found = await line.ended(ids + unheard)

    assert {job.outcome for job in found} == {Outcome.SUCCEEDED}
    lines = [await rows_of(store, tables.log_entries, job_id) for job_id in ids + unheard]
    assert [len(entries) for entries in lines] == [0, 0, 0, 1, 1]


async def test_a_slow_broker_is_waited_for_and_nothing_is_sent_twice(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volleys, "PATIENCE_S", 0.05)
    line.broker.freeze()
    ids = await line.fire(30)  # more than the broker's window
    assert set(line.engine.worker.under_way()) == set(ids)

    async def all_alone() -> bool:
        return set(line.engine.executor._watches) == set(ids)

    await eventually(all_alone, 10)
    line.broker.thaw()
    found = await line.ended(ids)

    assert {job.outcome for job in found} == {Outcome.SUCCEEDED}
    assert line.heard == Counter(ids)


@pytest.mark.parametrize("patience_s", [volleys.PATIENCE_S, 0.05], ids=["together", "alone"])
async def test_messages_leave_in_the_order_of_their_commits_however_long_they_wait(
    line: Line, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(volleys, "PATIENCE_S", patience_s)
    line.broker.freeze()
    ids = [job_id for count in (30, 1, 40, 1, 1, 60, 30) for job_id in await line.fire(count)]
    if patience_s < volleys.PATIENCE_S:
        await eventually(lambda: set(line.engine.executor._watches) == set(ids), 10)
    line.broker.thaw()
    await line.ended(ids)

    assert list(line.heard) == ids
    assert line.heard == Counter(ids)


async def test_those_that_waited_so_long_that_each_asks_whether_it_is_still_ours_keep_their_order(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volleys, "PATIENCE_S", 0.05)
    line.broker.freeze()
    ids = await line.fire(30)
    since = clock.monotonic()
    monkeypatch.setattr(sending, "SEND_WITHIN_S", 0.2)
    await eventually(lambda: clock.monotonic() - since > 0.2 and len(line.engine.executor._watches) == 30, 10)
    ids += await line.fire(5)  # and these need not ask
    line.broker.thaw()
    await line.ended(ids)

    assert list(line.heard) == ids


async def test_commands_of_one_device_leave_in_the_order_of_its_changes(line: Line) -> None:
    engine = line.engine
    owner_id = await engine.thing(thing="press")
    operation_id = await engine.operation(
        owner_id, type="mqtt", parameters={"topic": "line/press", "message": "{{state}}"}
    )
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    await engine.triggers(owner_id, {"states": ["alarm", "working"], "operation_id": operation_id})
    devices = engine.devices()
    await devices.start()
    count = 3 * BATCH_MESSAGES
    for number in range(count):
        said = b'{"t": 90}' if number % 2 == 0 else b'{"t": 20}'
        devices.receive(Received("iotjobs/press/report", said, 1, False, False, number + 1))
    await eventually(lambda: len(line.heard) == count, 20)
    await devices.stop()

    seqs = [(await job_of(engine.store, job_id or "")).seq for job_id in line.heard]
    assert seqs == sorted(seqs)


@pytest.mark.parametrize(("count", "which"), [(5, [0]), (25, [0, 24])])
async def test_a_cancel_reaches_one_that_was_sent_and_one_that_waits_for_its_place(
    line: Line, monkeypatch: pytest.MonkeyPatch, count: int, which: list[int]
) -> None:
    if count == 5:  # all of them are sent: a cancel is heard at once, and not when patience ends
        monkeypatch.setattr(volleys, "PATIENCE_S", 15.0)
    line.broker.freeze()
    ids = await line.fire(count)
    asked = [ids[at] for at in which]
    for job_id in asked:
        await line.ask(job_id)
    canceled = await line.ended(asked)
    line.broker.thaw()
    others = await line.ended([job_id for job_id in ids if job_id not in asked])

    assert {job.status for job in canceled} == {Status.CANCELED}
    assert {job.outcome for job in others} == {Outcome.SUCCEEDED}


async def test_one_that_was_ended_meanwhile_does_not_keep_the_others_from_their_end(
    line: Line, store: Store
) -> None:
    line.broker.freeze()
    ids = await line.fire(5)
    job = await job_of(store, ids[2])
    await store.write(lambda tx: jobs.ask(tx, job, Status.CANCELING, clock.now_ms(), {"by": "u"}))
    line.broker.thaw()
    found = await line.ended(ids)

    assert [job.outcome for job in found].count(Outcome.SUCCEEDED) >= 4
    assert found[2].ended_at is not None
    assert await asyncio.wait_for(_idle(line), 5) is None


async def test_a_cancel_reaches_one_that_waits_for_messages_of_an_earlier_commit(line: Line) -> None:
    line.broker.freeze()
    first, second = await line.fire(25), await line.fire(5)
    await eventually(lambda: len(line.engine.executor._watches) == 30, 10)
    await line.ask(second[0])
    [canceled] = await line.ended(second[:1])
    line.broker.thaw()
    others = await line.ended(first + second[1:])

    assert (canceled.status, canceled.sent_at) == (Status.CANCELED, None)
    assert {job.outcome for job in others} == {Outcome.SUCCEEDED}
    assert list(line.heard) == first + second[1:]


async def test_a_drain_leaves_what_waits_and_is_not_held_up(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "INTERRUPT_S", 0.1)
    line.broker.freeze()
    ids = await line.fire(25) + await line.fire(5)

    left = await asyncio.wait_for(line.engine.worker.drain(0.1), 10)

    assert sorted(left) == sorted(ids)
    assert len(line.engine.publishing._line) == 0


@pytest.mark.parametrize("counts", [(30,), (15, 1, 14)])
async def test_a_cut_connection_loses_what_was_sent_and_nothing_else(
    line: Line, counts: tuple[int, ...]
) -> None:
    line.broker.freeze()
    ids = [job_id for count in counts for job_id in await line.fire(count)]

    # Each goes its own way by now, so that what has a place has been written.
    await eventually(lambda: set(line.engine.executor._watches) == set(ids), 10)
    assert line.engine.publishing._publisher.free_places == 0  # type: ignore[union-attr]
    line.broker.kill()
    found = await line.ended(ids, 30)

    outcomes = Counter(job.outcome for job in found)
    assert outcomes[Outcome.LOST] == 20
    assert outcomes[Outcome.FAILED] == 10
    assert {job.error_code for job in found if job.outcome is Outcome.FAILED} == {"unreachable"}


async def _idle(line: Line) -> None:
    async def nothing_runs() -> bool:
        return line.engine.worker.running == 0

    await eventually(nothing_runs, 5)

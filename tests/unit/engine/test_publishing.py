from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from iotjobs import clock
from iotjobs.domain.jobs import Delivery, Ending, Job, Transport
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import execution
from iotjobs.engine.intake import Fired
from iotjobs.engine.publishing import BREATH_S, PROMISE_S, message_of
from iotjobs.engine.sending import Begun
from iotjobs.engine.watch import Watch
from iotjobs.store import jobs, queues, tables
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.transports.mqtt import MqttPublisher
from tests.services.mosquitto import Mosquitto
from tests.services.rows import Engine, MakeEngine, add_job, job_of, job_row, rows_of, running_job
from tests.services.site import eventually


def message(**members: object) -> Plan:
    given = {"timeout_s": 5.0, "topic": "line/1", "message": "on", **members}
    return Plan(OperationType.MQTT, **given)  # type: ignore[arg-type]


def fired(**members: object) -> Fired:
    """What a trigger starts, before it is anywhere."""
    return Fired(job_row(transport=Transport.MQTT, queue="mix"), message(**members))


async def begun(store: Store, plan: Plan, *, sent: bool = True) -> Job:
    return await running_job(
        store, of=plan, sent=sent, transport=Transport.MQTT, expires_at=clock.now_ms() + 60_000
    )


@pytest.fixture
async def online(make_engine: MakeEngine, start_mosquitto: Callable[..., Mosquitto]) -> AsyncIterator[Engine]:
    """An engine with a connection to a real broker."""
    publisher = MqttPublisher(start_mosquitto().address)
    await publisher.start()
    assert await publisher.wait_connected(10)
    yield make_engine(publisher=publisher)
    await publisher.stop()


async def published(engine: Engine, store: Store, plan: Plan) -> Job:
    job = await begun(store, plan)
    await engine.executor.run(Begun(job, plan))
    return await job_of(store, job.id)


async def test_a_message_carries_its_job_and_the_rest_of_its_time(sqlite_store: Store) -> None:
    job = await begun(sqlite_store, message())

    plain = message_of(job, message())
    asking = message_of(
        job, message(thing="press", answer_within_s=5.0, message_is_json=True, qos=0, retain=True)
    )
    short = message_of(job, message(expiry_s=7.9))
    late = message_of(replace(job, expires_at=clock.now_ms() - 5), message())

    assert (plain.topic, plain.payload, plain.qos, plain.retain) == ("line/1", b"on", 1, False)
    assert plain.user_properties == (("job-id", job.id),)
    assert (plain.response_topic, plain.correlation_data, plain.content_type) == (None, None, "text/plain")
    assert plain.expiry_s in (59, 60)
    assert asking.response_topic == f"iotjobs/press/jobs/{job.id}/answer"
    assert (asking.correlation_data, asking.content_type) == (job.id.encode(), "application/json")
    assert (asking.qos, asking.retain) == (0, True)
    assert (short.expiry_s, late.expiry_s) == (7, 1)


async def test_without_a_broker_a_message_fails_and_nothing_was_sent(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()

    job = await published(engine, sqlite_store, message())

    assert engine.publishing.ready_for(job.id) is False
    assert (job.outcome, job.error_code) == (Outcome.FAILED, "unreachable")
    assert job.error_message == "this site has no MQTT broker, see /readyz"
    [attempt] = await rows_of(sqlite_store, tables.attempts, job.id)
    assert attempt["sent_at"] is None


@pytest.mark.parametrize(("qos", "delivery"), [(0, Delivery.SENT), (1, Delivery.ACKNOWLEDGED)])
async def test_what_the_broker_took_succeeded(
    sqlite_store: Store, online: Engine, qos: int, delivery: Delivery
) -> None:
    job = await published(online, sqlite_store, message(qos=qos))

    assert (job.status, job.outcome, job.delivery) == (Status.FINISHED, Outcome.SUCCEEDED, delivery)
    lines = [line["message"] for line in await rows_of(sqlite_store, tables.log_entries, job.id)]
    assert lines == (["the broker took the message and nobody has subscribed to its topic"] if qos else [])


async def test_nobody_to_hear_it_is_a_failure_where_somebody_must(
    sqlite_store: Store, online: Engine
) -> None:
    job = await published(online, sqlite_store, message(require_subscriber=True))

    assert (job.outcome, job.error_code) == (Outcome.FAILED, "noSubscriber")


async def test_a_message_that_wants_an_answer_is_parked_without_a_worker(
    sqlite_store: Store, online: Engine
) -> None:
    before = clock.now_ms()

    job = await published(online, sqlite_store, message(answer_within_s=30.0, thing="press"))

    assert (job.status, job.delivery, job.parked) == (Status.RUNNING, Delivery.ACKNOWLEDGED, True)
    assert before + 30_000 <= job.deadline_at <= clock.now_ms() + 30_000


async def test_an_answer_that_was_quicker_than_the_broker_stays_the_end(
    sqlite_store: Store, online: Engine
) -> None:
    plan = message(answer_within_s=30.0, thing="press")
    job = await begun(sqlite_store, plan)

    class AnsweredMeanwhile:
        sent_at = job.sent_at

        async def before_send(self) -> None:
            await sqlite_store.write(lambda tx: jobs.settle(tx, job, Ending(Outcome.SUCCEEDED), 5))

    await online.publishing.publish(job, plan, AnsweredMeanwhile(), Watch(5.0))

    done = await job_of(sqlite_store, job.id)
    assert (done.outcome, done.deadline_at) == (Outcome.SUCCEEDED, None)


async def test_a_broker_that_acknowledges_nothing_times_out(
    sqlite_store: Store, make_engine: MakeEngine, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    publisher = MqttPublisher(broker.address)
    await publisher.start()
    assert await publisher.wait_connected(10)
    broker.freeze()
    try:
        job = await published(make_engine(publisher=publisher), sqlite_store, message(timeout_s=0.2))
    finally:
        broker.thaw()
        await publisher.stop()

    assert (job.outcome, job.error_code) == (Outcome.TIMED_OUT, "timeOut")
    assert job.error_message == "the broker did not acknowledge within 0.2 s"


async def test_a_cut_before_the_acknowledgement_is_lost(
    sqlite_store: Store, make_engine: MakeEngine, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    publisher = MqttPublisher(broker.address)
    await publisher.start()
    assert await publisher.wait_connected(10)
    engine = make_engine(publisher=publisher)
    broker.freeze()
    running = asyncio.create_task(published(engine, sqlite_store, message()))
    done, _ = await asyncio.wait([running], timeout=0.1)
    assert not done
    broker.kill()
    job = await running
    await publisher.stop()

    assert (job.outcome, job.error_code) == (Outcome.LOST, "linkLost")


@pytest.fixture
async def three_places(start_mosquitto: Callable[..., Mosquitto]) -> AsyncIterator[MqttPublisher]:
    """A publisher with a small window, and a broker that acknowledges nothing."""
    broker = start_mosquitto()
    publisher = MqttPublisher(broker.address, window=3)
    await publisher.start()
    assert await publisher.wait_connected(10)
    broker.freeze()
    yield publisher
    broker.thaw()
    await publisher.stop()


async def test_only_those_with_a_place_are_written_down_as_sent(
    sqlite_store: Store, make_engine: MakeEngine, three_places: MqttPublisher
) -> None:
    engine = make_engine(publisher=three_places)
    waiting = [await add_job(sqlite_store, of=message(), transport=Transport.MQTT) for _ in range(5)]
    await engine.dispatcher.offer_again([Ticket.of(job) for job in waiting])

    await engine.worker.start()

    async def all_begun() -> bool:
        return {(await job_of(sqlite_store, job.id)).status for job in waiting} == {Status.RUNNING}

    await eventually(all_begun, 3)
    sent = [(await job_of(sqlite_store, job.id)).sent_at is not None for job in waiting]
    assert sorted(sent) == [False, False, True, True, True]


async def test_a_place_is_promised_once_and_not_for_ever(
    make_engine: MakeEngine, three_places: MqttPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = make_engine(publisher=three_places).publishing

    assert [publishing.ready_for(job_id) for job_id in "aaabcd"] == [True] * 5 + [False]

    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + PROMISE_S + 1)
    assert [publishing.ready_for(job_id) for job_id in "defg"] == [True] * 3 + [False]


async def test_a_batch_of_reports_may_go_ahead_of_the_places_and_is_bounded(
    sqlite_store: Store, make_engine: MakeEngine, three_places: MqttPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MESSAGES_AHEAD", 4)
    engine = make_engine(publisher=three_places)
    waiting = [fired() for _ in range(9)]

    began = await sqlite_store.write(lambda tx: [engine.worker.begin_at_once(tx, one) for one in waiting])

    assert began == [True] * 7 + [False] * 2

    async def the_rest_waits() -> bool:
        return three_places.waiting == 1  # the other three behind it

    await eventually(the_rest_waits, 3)
    again = await sqlite_store.write(lambda tx: engine.worker.begin_at_once(tx, waiting[7]))
    assert again is False


async def test_a_breath_ends_when_the_broker_goes_on_and_also_when_it_does_not(
    sqlite_store: Store, make_engine: MakeEngine, three_places: MqttPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MESSAGES_AHEAD", 4)
    engine = make_engine(publisher=three_places)
    waiting = [fired() for _ in range(7)]
    await sqlite_store.write(lambda tx: [engine.worker.begin_at_once(tx, one) for one in waiting])
    began = clock.monotonic()

    await engine.worker.breathe()

    assert BREATH_S <= clock.monotonic() - began < BREATH_S + 5
    assert await make_engine().worker.breathe() is None


async def test_a_message_begins_at_once_but_not_on_a_site_whose_drain_its_node_has_not_seen(
    online: Engine, sqlite_store: Store
) -> None:
    async def at_once() -> bool:
        return await sqlite_store.write(lambda tx: online.worker.begin_at_once(tx, fired()))

    assert await at_once()
    await sqlite_store.write(lambda tx: queues.set_dispatching(tx, False))
    assert online.limits.opened.is_set()
    assert not await at_once()


async def test_a_message_begins_at_once_but_not_while_its_worker_drains(
    online: Engine, sqlite_store: Store
) -> None:
    async def at_once(one: Fired) -> bool:
        return await sqlite_store.write(lambda tx: online.worker.begin_at_once(tx, one))

    first = fired()
    assert await at_once(first)
    assert (await job_of(sqlite_store, first.row["id"])).status is not Status.PENDING
    await online.worker.drain(5.0)
    assert not await at_once(fired())

"""A cut between the COMMIT of PostgreSQL and its answer: what is on disk is found out, and told as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from iotjobs.domain.errors import StoreUnavailable
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.retries import RetryPolicy
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.store import standings, tables
from iotjobs.store.session import Store, open_store
from iotjobs.transports.mqtt import MqttPublisher
from iotjobs.transports.mqtt_messages import Received
from tests.services.mosquitto import Mosquitto
from tests.services.rows import ADMIN, Engine, job_of, plan, rows_of, running_job
from tests.services.site import eventually
from tests.services.wire import Wire

GOOD = Ending(Outcome.SUCCEEDED, exit_code=0)


@pytest.fixture
async def database(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


@pytest.fixture
async def wire(database: str) -> AsyncIterator[Wire]:
    """The way to the database."""
    port = make_url(database).port
    assert port is not None
    async with Wire(port) as made:
        yield made


@pytest.fixture
async def store(database: str, wire: Wire) -> AsyncIterator[Store]:
    behind = make_url(database).set(port=wire.port)
    opened = open_store(behind.render_as_string(hide_password=False))
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def online(store: Store, start_mosquitto: Callable[..., Mosquitto]) -> AsyncIterator[Engine]:
    """An engine with a connection to a real broker."""
    publisher = MqttPublisher(start_mosquitto().address)
    await publisher.start()
    assert await publisher.wait_connected(10)
    engine = Engine(store, publisher=publisher)
    yield engine
    await engine.stop()
    await publisher.stop()


async def attempts_of(store: Store, job: Job) -> list[tuple[int, str, bool]]:
    """(number, outcome, whether it was sent)"""
    rows = await rows_of(store, tables.attempts, job.id)
    return [(row["number"], row["outcome"], row["sent_at"] is not None) for row in rows]


async def lines_of(store: Store, job: Job) -> list[str]:
    return [row["message"] for row in await rows_of(store, tables.log_entries, job.id)]


async def submit(engine: Engine, count: int) -> list[str]:
    owner_id = await engine.thing()
    message = {"topic": "line/1", "message": "on"}
    operation_id = await engine.operation(owner_id, type="mqtt", parameters=message)
    return [await engine.execute(owner_id, operation_id) for _ in range(count)]


async def test_begins_whose_answer_was_lost_are_repeated_and_none_is_lost(
    online: Engine, store: Store, wire: Wire
) -> None:
    ids = await submit(online, 9)

    wire.lose_answer_to(b"COMMIT;")
    await online.worker.start()
    for _ in range(4):  # whoever looks for attempts that nobody runs finds none
        assert await online.deadlines.strays.look() == 0
    done = [await online.ended(job_id) for job_id in ids]

    assert {job.outcome for job in done} == {Outcome.SUCCEEDED}
    again = [job for job in done if job.attempt == 2]
    assert again
    for job in again:
        assert await attempts_of(store, job) == [(1, "lost", False), (2, "succeeded", True)]
    assert online.deadlines.strays.ended == 0


async def test_a_message_of_a_report_whose_answer_was_lost_is_sent_once_that_is_known(
    online: Engine, store: Store, wire: Wire
) -> None:
    owner_id = await online.thing()
    message = {"topic": "line/1", "message": "on"}
    operation_id = await online.operation(owner_id, type="mqtt", parameters=message)
    await online.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await online.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    await online.report(owner_id, "r0", t=1)

    wire.lose_answer_to(b"COMMIT;")
    with pytest.raises(StoreUnavailable):
        await online.report(owner_id, "r1", t=9)
    assert not await online.report(owner_id, "r1", t=9)  # it was taken
    [job_id] = await store.read(lambda conn: list(conn.execute(select(tables.jobs.c.id)).scalars()))
    await online.worker.start()
    assert [await online.deadlines.strays.look() for _ in range(2)] == [0, 1]

    job = await online.ended(job_id)
    assert (job.outcome, job.attempt) == (Outcome.SUCCEEDED, 2)
    assert await attempts_of(store, job) == [(1, "lost", False), (2, "succeeded", True)]


async def test_what_a_device_said_whose_answer_was_lost_has_its_effects_once(
    store: Store, wire: Wire, online: Engine
) -> None:
    owner_id, acknowledged = await online.thing(thing="press"), list[int]()
    devices = online.devices()

    def say(mid: int, kind: str, payload: bytes) -> None:
        topic = f"iotjobs/press/{kind}"
        devices.receive(Received(topic, payload, 1, False, False, mid, _acknowledge=acknowledged.append))

    await devices.start()
    say(1, "report", b'{"t":1}')
    await eventually(lambda: acknowledged, 5)
    wire.lose_answer_to(b"COMMIT;")
    for mid, word in enumerate((b"offline", b"online", b"offline"), 2):
        say(mid, "status", word)
    await eventually(lambda: len(acknowledged) == 4, 10)
    await devices.stop()

    changes = await store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id))
    assert [one.to_state for one in reversed(changes)] == ["working", "down", "working", "down"]


@pytest.mark.parametrize("last", [0, 1])
async def test_what_never_comes_again_has_its_effects_once_too_when_the_answer_was_lost(
    store: Store, wire: Wire, online: Engine, database: str, last: int
) -> None:
    owner_id, acknowledged = await online.thing(thing="press"), list[int]()
    await online.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    devices = online.devices()

    def say(qos: int, value: int) -> None:
        ack = acknowledged.append if qos else None
        raw = b'{"t":%d}' % value
        devices.receive(
            Received("iotjobs/press/report", raw, qos, False, False, qos * value, _acknowledge=ack)
        )

    await devices.start()
    say(1, 1)
    await eventually(lambda: acknowledged, 5)
    wire.lose_answer_to(b"COMMIT;")
    say(0, 90)
    say(last, 20)
    other = open_store(database)

    async def entered() -> list[str]:
        changes = await other.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id))
        return [one.to_state for one in reversed(changes)]

    async def is_committed() -> bool:
        return len(await entered()) == 3

    await eventually(is_committed, 5)
    say(1, 21)
    await eventually(lambda: 21 in acknowledged, 10)
    await devices.stop()

    assert await entered() == ["working", "alarm", "working"]
    await other.stop()


async def test_a_begin_whose_answer_was_lost_can_be_canceled_meanwhile(
    online: Engine, store: Store, wire: Wire, database: str
) -> None:
    other = open_store(database)
    elsewhere = Engine(other, worker_id="another")
    [job_id] = await submit(online, 1)

    async def is_running() -> bool:
        return (await job_of(other, job_id)).status is Status.RUNNING

    wire.lose_answer_to(b"COMMIT;", until_mended=True)
    await online.worker.start()
    await eventually(is_running)
    assert await elsewhere.control.cancel(job_id, ADMIN, None) is Status.CANCELING
    wire.mend()

    job = await online.ended(job_id)
    assert (job.status, job.cancel and job.cancel["confirmed"]) == (Status.CANCELED, True)
    assert await attempts_of(store, job) == [(1, "canceled", False)]
    await elsewhere.stop()
    await other.stop()


async def test_a_begin_that_was_not_committed_is_offered_again_as_it_was(online: Engine, wire: Wire) -> None:
    [job_id] = await submit(online, 1)

    wire.lose_answer_to(b"UPDATE job")
    await online.worker.start()
    await eventually(lambda: online.worker.running == 0 and not online.dispatcher.live)  # type: ignore[attr-defined]
    await online.deadlines.sweep()

    job = await online.ended(job_id)
    assert (job.outcome, job.attempt) == (Outcome.SUCCEEDED, 1)


async def test_an_end_whose_answer_was_lost_is_not_told_as_one_that_came_too_late(
    store: Store, wire: Wire
) -> None:
    engine = Engine(store)
    ended, repeated = [await running_job(store, sent=True, lane=lane) for lane in ("a", "b")]
    again = Ending(Outcome.FAILED, error_code="unreachable", error_message="nobody there")

    wire.lose_answer_to(b"COMMIT;")
    await engine.settler.end_attempt(ended, plan(), GOOD)
    wire.lose_answer_to(b"COMMIT;")
    await engine.settler.end_attempt(repeated, plan(retry=RetryPolicy(2)), again)

    assert (await job_of(store, ended.id)).outcome is Outcome.SUCCEEDED
    assert await lines_of(store, ended) == []
    assert (await job_of(store, repeated.id)).status is Status.PENDING
    assert await attempts_of(store, repeated) == [(1, "failed", True)]
    assert await lines_of(store, repeated) == ["attempt 1: nobody there; tried again"]
    await engine.stop()


@pytest.mark.parametrize(("asked", "status"), [("stop", Status.STOPPED), ("cancel", Status.CANCELED)])
async def test_an_end_that_was_asked_for_and_whose_answer_was_lost_stays_what_it_was(
    store: Store, wire: Wire, asked: str, status: Status
) -> None:
    engine = Engine(store)
    job = replace(await running_job(store, lane="a"), nonce=None)  # proven: nothing is left of it
    if asked == "stop":
        await engine.control.stop_job(job.id, ADMIN)
    else:
        await engine.control.cancel(job.id, ADMIN, None)
    cut_short = Ending(Outcome.LOST, error_code="signal", error_message="ended by a signal")

    # The first is refused, and rolls back; the next is what the request makes of it.
    wire.lose_answer_to(b"COMMIT;")
    await engine.settler.end_attempt(job, plan(), cut_short)

    assert (await job_of(store, job.id)).status is status
    assert await attempts_of(store, job) == [(1, "canceled", False)]
    assert (await lines_of(store, job))[asked == "stop" :] == [f"attempt 1, {asked}: ended by a signal"]
    await engine.stop()

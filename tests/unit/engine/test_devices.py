from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Delivery, Ending, Job, Transport
from iotjobs.domain.operations import OperationType
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import devices as devices_module
from iotjobs.engine import ingest
from iotjobs.engine.answers import ending_of_answer
from iotjobs.engine.ingest import Ingest
from iotjobs.engine.leases import Always
from iotjobs.engine.reports import read_payload
from iotjobs.store import jobs, standings, tables
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.mqtt_messages import Received
from tests.services.rows import Failing, MakeEngine, job_of, plan, rows_of, running_job, standing_of
from tests.services.site import eventually

Say = Callable[..., Awaitable[list[int]]]


@pytest.mark.parametrize(
    ("payload", "ending"),
    [
        ({}, Ending(Outcome.SUCCEEDED)),
        ({"ok": True}, Ending(Outcome.SUCCEEDED)),
        ({"ok": 0}, Ending(Outcome.SUCCEEDED)),
        ({"ok": False}, Ending(Outcome.FAILED, None, "deviceSaidNo", "the device said no")),
        ({"ok": False, "error": "stuck"}, Ending(Outcome.FAILED, None, "deviceSaidNo", "stuck")),
        ({"ok": False, "error": {"a": 1}}, Ending(Outcome.FAILED, None, "deviceSaidNo", "{'a': 1}")),
        ({"ok": False, "error": "x" * 9000}, Ending(Outcome.FAILED, None, "deviceSaidNo", "x" * 1000)),
    ],
)
def test_what_a_devices_word_means(payload: dict[str, Any], ending: Ending) -> None:
    assert ending_of_answer(payload) == ending


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"a":NaN}', b'{"a":1e999}', b'{"a":1,"a":2}', b'"\\ud800"', b"\xff"]
)
def test_what_is_no_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read_payload(raw)


def test_json_without_end_is_refused_and_overflows_nothing() -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_payload(b"[" * 100_000)


def received(topic: str, payload: Any, acknowledged: list[int], *, retain: bool = False) -> Received:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Received(topic, raw, 1, retain, False, len(raw), _acknowledge=acknowledged.append)


@pytest.fixture
async def said(sqlite_store: Store, make_engine: MakeEngine) -> Any:
    """Lets a thing say something; gives back what was acknowledged."""
    engine = make_engine()
    devices = engine.devices()
    await devices.start()

    async def say(thing: str, job_id: Any, kind: str, payload: Any, *, retain: bool = False) -> list[int]:
        acknowledged: list[int] = []
        topic = f"iotjobs/{thing}/jobs/{job_id}/{kind}"
        devices.receive(received(topic, payload, acknowledged, retain=retain))
        return await eventually(lambda: acknowledged, 3)

    say.engine, say.devices = engine, devices  # type: ignore[attr-defined]
    yield say
    await devices.stop()


async def message_job(store: Store, owner_id: str, *, answer: float | None, **columns: Any) -> Job:
    given = {
        "owner_id": owner_id,
        "transport": Transport.MQTT,
        "operation_type": OperationType.MQTT,
        **columns,
    }
    of = plan(type=OperationType.MQTT, script=None, topic="t", message="m", answer_within_s=answer)
    return await running_job(store, of=of, sent=True, **given)


async def test_a_result_is_kept_before_it_is_acknowledged(sqlite_store: Store, said: Any) -> None:
    owner_id = await said.engine.thing(thing="press")
    job = await message_job(sqlite_store, owner_id, answer=None)

    for reference in (job.id, job.seq):
        assert await said("press", reference, "results", {"at": "once"})

    rows = await rows_of(sqlite_store, tables.results, job.id)
    assert [(row["by"], row["payload"]) for row in rows] == [(owner_id, {"at": "once"})] * 2
    assert (await job_of(sqlite_store, job.id)).status is Status.RUNNING
    assert said.devices.dropped == 0


@pytest.mark.parametrize("kind", ["answer", "results"])
@pytest.mark.parametrize("parked", [False, True])
async def test_a_devices_word_ends_what_waits_for_it_also_before_it_is_parked(
    sqlite_store: Store, said: Any, kind: str, parked: bool
) -> None:
    job = await message_job(sqlite_store, await said.engine.thing(thing="press"), answer=30.0)
    if parked:
        await sqlite_store.write(lambda tx: jobs.note(tx, job.id, 1, deadline_at=clock.now_ms() + 30_000))

    await said("press", job.id, kind, {"ok": False, "error": "stuck"})

    done = await job_of(sqlite_store, job.id)
    assert (done.outcome, done.error_message, done.delivery) == (Outcome.FAILED, "stuck", Delivery.ENDED)
    assert done.results_count == 1


async def test_an_answer_that_nobody_waits_for_is_kept_with_a_line_about_it(
    sqlite_store: Store, said: Any
) -> None:
    owner_id = await said.engine.thing(thing="press")
    ended = await message_job(sqlite_store, owner_id, answer=30.0)
    await sqlite_store.write(lambda tx: jobs.settle(tx, ended, Ending(Outcome.TIMED_OUT), 5))
    plain = await message_job(sqlite_store, owner_id, answer=None)

    for job in (ended, plain):
        before = await job_of(sqlite_store, job.id)
        await said("press", job.id, "answer", {"ok": True})

        after = await job_of(sqlite_store, job.id)
        assert (after.status, after.outcome, after.results_count) == (before.status, before.outcome, 1)
        [line] = await rows_of(sqlite_store, tables.log_entries, job.id)
        assert line["message"] == "an answer came that nobody waits for"


async def test_a_word_that_the_broker_had_kept_is_not_appended_twice(sqlite_store: Store, said: Any) -> None:
    job = await message_job(sqlite_store, await said.engine.thing(thing="press"), answer=None)

    for payload in ({"n": 1}, {"n": 1}, {"n": 2}):
        assert await said("press", job.id, "results", payload, retain=True)
    assert await said("press", job.id, "results", {"n": 1})

    found = [row["payload"]["n"] for row in await rows_of(sqlite_store, tables.results, job.id)]
    assert found == [1, 2, 1]


async def test_only_the_owner_and_the_ends_of_an_owning_link_are_heard(
    sqlite_store: Store, said: Any
) -> None:
    engine = said.engine
    one, two = await engine.thing(thing="one"), await engine.thing(thing="two")
    await engine.thing(thing="three")
    link = await engine.link(one, two)
    of_link = await message_job(sqlite_store, link, answer=None, owner_type=int(OwnerType.LINK))
    of_gone_link = await message_job(sqlite_store, "f" * 32, answer=None, owner_type=int(OwnerType.LINK))
    of_one = await message_job(sqlite_store, one, answer=None)

    for thing in ("one", "two", "three", "nobody"):
        for job in (of_link, of_gone_link, of_one):
            assert await said(thing, job.id, "results", {"from": thing})
    await said("one", "0" * 32, "results", {})

    async def heard(job: Job) -> list[str]:
        return [row["payload"]["from"] for row in await rows_of(sqlite_store, tables.results, job.id)]

    assert [await heard(job) for job in (of_link, of_gone_link, of_one)] == [["one", "two"], [], ["one"]]
    assert said.devices.dropped == 12 - 3 + 1


async def test_what_has_no_effect_is_counted_acknowledged_and_stops_nobody(
    sqlite_store: Store, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = await message_job(sqlite_store, await said.engine.thing(thing="press"), answer=30.0)
    hostile = [
        b"",
        b"[]",
        b"\xff",
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":"\\u0000"}',
        b'{"a":"' + b"x" * 65_536,
    ]

    for payload in hostile:
        assert await said("press", job.id, "answer", payload)
    acknowledged: list[int] = []
    said.devices.receive(received("somewhere/else", {}, acknowledged))
    await eventually(lambda: acknowledged, 3)

    assert said.devices.dropped == len(hostile) + 1
    assert (await job_of(sqlite_store, job.id)) == job
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("error", [StorageFull("full"), StoreUnavailable("away")])
async def test_while_the_store_cannot_take_it_a_message_is_kept_and_not_acknowledged(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine, seen = make_engine(), []
    job = await message_job(sqlite_store, await engine.thing(thing="press"), answer=None)
    acknowledged: list[int] = []

    async def sleep(_seconds: float) -> None:
        seen.append(list(acknowledged))

    monkeypatch.setattr(clock, "sleep", sleep)
    devices = engine.devices(Failing(sqlite_store, [error, error]))
    await devices.start()
    devices.receive(received(f"iotjobs/press/jobs/{job.id}/results", {"n": 1}, acknowledged))
    await eventually(lambda: acknowledged, 3)
    await devices.stop()

    assert seen == [[], []]
    assert devices.dropped == 0
    assert (await job_of(sqlite_store, job.id)).results_count == 1


async def test_what_could_not_be_committed_for_want_of_the_lease_comes_again_and_nothing_overtakes_it(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(Always):
        """Taken over and taken back before anybody has looked."""

        def check(self, tx: Transaction) -> None:
            if self.epoch == 1:
                self.epoch = 2
                raise LeaseLost("taken over")

    class Consumer:
        """Brings what is not acknowledged, each time that it connects."""

        connected = False

        async def start(self) -> None:
            if not self.connected:
                self.connected = True
                for n in (1, 2, 3, 4):
                    if n not in acknowledged:
                        devices.receive(report(n, again=lost.epoch > 1))

        async def stop(self) -> None:
            self.connected = False

    def report(n: int, *, again: bool) -> Received:
        raw = json.dumps({"n": n}).encode()
        return Received("iotjobs/press/report", raw, 1, False, again, n, _acknowledge=acknowledged.append)

    monkeypatch.setattr(devices_module, "BATCH_MESSAGES", 2)
    monkeypatch.setattr(ingest, "LOOK_EVERY_S", 0.01)
    engine, lost, acknowledged = make_engine(), Lost(), list[int]()
    owner_id = await engine.thing(thing="press")
    devices = engine.devices(standing=lost)
    consumer, silent = (
        Consumer(),
        Failing(sqlite_store, [StoreUnavailable("away")] * 99),
    )  # only the batch checks
    service = Ingest(silent, lost, devices, consumer, publisher=consumer, worker_id=lambda: "w1")  # type: ignore[arg-type]
    await service.start()
    try:
        await eventually(lambda: len(acknowledged) == 4, 3)
    finally:
        await service.stop()

    assert acknowledged == [1, 2, 3, 4]
    values = await sqlite_store.read(lambda conn: standings.history(conn, owner_id, "n", limit=9))
    assert [row.value for row in reversed(values)] == [1, 2, 3, 4]


async def test_the_end_of_a_connection_is_not_taken_back_by_a_report_that_waited(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, acknowledged = make_engine(), list[int]()
    devices, owner_id = engine.devices(reports_per_s=1), await engine.thing(thing="press")
    for n in range(8):
        devices.receive(received("iotjobs/press/report", {"n": n}, acknowledged))
    devices.receive(received("iotjobs/press/status", b"offline", acknowledged))
    await devices.start()
    try:
        await eventually(lambda: len(acknowledged) == 9, 3)
    finally:
        await devices.stop()

    standing = await sqlite_store.read(lambda conn: standing_of(conn, owner_id))
    assert (standing.state, standing.offline, standing.superseded) == ("down", True, 2)


async def test_a_connection_that_flaps_is_held_to_the_rate_and_its_last_word_counts(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, acknowledged = make_engine(), list[int]()
    devices, owner_id = engine.devices(reports_per_s=2), await engine.thing(thing="press")
    for n in range(201):
        devices.receive(received("iotjobs/press/status", b"online" if n % 2 else b"offline", acknowledged))
    await devices.start()
    try:
        await eventually(lambda: len(acknowledged) == 201, 3)
    finally:
        await devices.stop()

    standing = await sqlite_store.read(lambda conn: standing_of(conn, owner_id))
    changes = await sqlite_store.read(lambda conn: standings.changes(conn, limit=500, entity_id=owner_id))
    assert (standing.state, len(changes), standing.superseded) == ("down", 11, 190)


async def test_a_report_that_the_broker_had_kept_is_no_sign_of_life(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, acknowledged = make_engine(), list[int]()
    devices, owner_id = engine.devices(reports_per_s=1), await engine.thing(thing="press")
    await devices.start()
    try:
        for payload, retain in ((b"offline", False), (b"online", False), (b"offline", False)):
            devices.receive(received("iotjobs/press/status", payload, acknowledged, retain=retain))
        devices.receive(received("iotjobs/press/report", {"n": 1}, acknowledged, retain=True))
        await eventually(lambda: len(acknowledged) == 4, 3)
    finally:
        await devices.stop()

    standing = await sqlite_store.read(lambda conn: standing_of(conn, owner_id))
    assert (standing.state, standing.offline, standing.heard_at) == ("down", True, None)


async def test_while_nobody_can_tell_which_ids_came_before_nothing_is_acknowledged_and_nothing_lost(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, acknowledged, seen = make_engine(), list[int](), list[list[int]]()
    owner_id = await engine.thing(thing="press")

    class Unreadable(Failing):
        async def read(self, query: Any) -> Any:
            if self.errors:
                raise self.errors.pop(0)
            return await sqlite_store.read(query)

        async def write(self, item: Any, **given: Any) -> Any:
            return await sqlite_store.write(item, **given)

    async def sleep(_seconds: float) -> None:
        seen.append(list(acknowledged))

    monkeypatch.setattr(clock, "sleep", sleep)
    devices = engine.devices(Unreadable(sqlite_store, [StoreUnavailable("away")] * 2), reports_per_s=1)
    for n in range(8):
        devices.receive(received("iotjobs/press/report", {"n": n, "_id": f"r{n}"}, acknowledged))
    await devices.start()
    try:
        await eventually(lambda: len(acknowledged) == 8, 3)
    finally:
        await devices.stop()

    assert seen == [[], []]
    found = await sqlite_store.read(lambda conn: standings.load_object(conn, owner_id))
    assert found is not None
    assert found.entity.properties == {"n": 7}


async def test_while_much_is_read_others_have_their_turns(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "SLICE_S", 0.0)  # the first message uses it up
    engine, acknowledged, turns = make_engine(), list[int](), list[int]()
    devices = engine.devices()
    await devices.start()
    for n in range(300):
        message = received("iotjobs/press/report", b"{", acknowledged)
        message.mid = n + 1
        devices.receive(message)
    try:
        while len(acknowledged) < 300:
            turns.append(len(acknowledged))
            await asyncio.sleep(0)
    finally:
        await devices.stop()
    assert len(set(turns)) >= 250

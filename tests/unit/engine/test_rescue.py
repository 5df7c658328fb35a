from __future__ import annotations

import functools

import pytest

from iotjobs.domain.jobs import Delivery, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.rescue import rescue
from iotjobs.store import jobs, queue, tables
from iotjobs.store.session import Store
from tests.services.rows import MakeEngine, add_job, events_of, job_of, plan, rows_of, running_job


@pytest.mark.parametrize(
    ("sent", "idempotent", "status", "outcome"),
    [
        (False, False, Status.PENDING, None),
        (False, True, Status.PENDING, None),
        (True, True, Status.PENDING, None),
        (True, False, Status.FINISHED, Outcome.LOST),
    ],
)
async def test_an_attempt_of_a_dead_process_is_repeated_or_lost(
    sqlite_store: Store,
    make_engine: MakeEngine,
    sent: bool,
    idempotent: bool,
    status: Status,
    outcome: Outcome | None,
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="dead", sent=sent, of=plan(idempotent=idempotent))

    assert await rescue(sqlite_store, engine.settler, "alive") == 1
    assert await rescue(sqlite_store, engine.settler, "alive") == 0

    rescued = await job_of(sqlite_store, job.id)
    assert (rescued.status, rescued.outcome, rescued.sent_at) == (
        status,
        outcome,
        None if outcome is None else job.sent_at,
    )
    assert engine.dispatcher._live == ({job.id} if outcome is None else set())
    [attempt] = await rows_of(sqlite_store, tables.attempts, job.id)
    assert (attempt["number"], attempt["outcome"], attempt["error_code"]) == (1, "lost", "workerDied")
    if outcome is not None:
        assert rescued.error_code == "workerDied"
        assert rescued.error_message == "the process that ran it ended after it was sent; it may have run"


async def test_a_rescued_jobs_lane_goes_on_with_the_first_by_age(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine(worker_id="alive")
    lost = await running_job(sqlite_store, worker_id="dead", sent=True, lane="a")
    again = await running_job(sqlite_store, worker_id="dead", lane="b")
    behind = {lane: await add_job(sqlite_store, lane=lane) for lane in ("a", "b")}

    await rescue(sqlite_store, engine.settler, "alive")
    await engine.deadlines.sweep()

    assert engine.dispatcher._live == {behind["a"].id, again.id}
    assert (await job_of(sqlite_store, lost.id)).outcome is Outcome.LOST


async def test_parked_own_and_ended_jobs_are_left_alone(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine(worker_id="alive")
    parked = await running_job(sqlite_store, worker_id="dead", sent=True, transport=Transport.MQTT)
    await sqlite_store.write(
        lambda tx: jobs.note(tx, parked.id, 1, deadline_at=10**13, delivery=Delivery.ACKNOWLEDGED)
    )
    others = [parked, await running_job(sqlite_store, worker_id="alive"), await add_job(sqlite_store)]
    before = [await events_of(sqlite_store, job.id) for job in others]

    assert await rescue(sqlite_store, engine.settler, "alive") == 0

    assert [await events_of(sqlite_store, job.id) for job in others] == before


async def test_more_than_one_batch_is_rescued(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(worker_id="alive")
    dead = [await running_job(sqlite_store, worker_id="dead", sent=True) for _ in range(7)]
    monkeypatch.setattr(queue, "orphans", functools.partial(queue.orphans, limit=3))

    assert await rescue(sqlite_store, engine.settler, "alive") == 7

    assert {(await job_of(sqlite_store, job.id)).outcome for job in dead} == {Outcome.LOST}

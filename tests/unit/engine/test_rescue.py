from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from iotjobs.domain.jobs import Delivery, Ending, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.leases import Always
from iotjobs.engine.rescue import Strays, _rescue_one, rescue
from iotjobs.store import jobs, queue, tables
from iotjobs.store.session import Store
from tests.services.rows import MakeEngine, add_job, begin, events_of, job_of, plan, rows_of, running_job
from tests.services.site import eventually


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
    assert engine.dispatcher.live == ({job.id} if outcome is None else set())
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

    assert engine.dispatcher.live == {behind["a"].id, again.id}
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


# --- what we hold and do not run ------------------------------------------------------------------


async def test_what_two_sweeps_found_held_and_not_run_is_lost_and_told(
    sqlite_store: Store, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="alive", sent=True, lane="a")
    behind = await add_job(sqlite_store, lane="a")
    strays = engine.deadlines.strays

    assert await strays.look() == 0
    assert (await job_of(sqlite_store, job.id)).status is Status.RUNNING
    with caplog.at_level(logging.ERROR):
        assert await strays.look() == 1
    assert await strays.look() == 0

    lost = await job_of(sqlite_store, job.id)
    assert (lost.outcome, lost.error_code, lost.sent_at) == (Outcome.LOST, "internalError", job.sent_at)
    said = "iotjobs lost track of it after it was sent; it may have run, see the log"
    assert lost.error_message == said
    assert (await engine.dispatcher.take()).job_id == behind.id
    assert strays.ended == 1
    assert [record.job_id for record in caplog.records] == [job.id]


async def test_a_stray_that_had_sent_nothing_gets_its_next_attempt(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="alive")
    for _ in range(2):
        await engine.deadlines.strays.look()
    assert (await job_of(sqlite_store, job.id)).status is Status.PENDING
    assert (await engine.dispatcher.take()).job_id == job.id


async def test_a_dead_worker_that_wakes_up_while_it_is_rescued_is_believed(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine(worker_id="alive")
    seen = await running_job(sqlite_store, worker_id="dead")
    await sqlite_store.write(lambda tx: jobs.note(tx, seen.id, seen.attempt, sent_at=7))

    await _rescue_one(sqlite_store, engine.settler, seen, Always())

    assert (await job_of(sqlite_store, seen.id)).outcome is Outcome.LOST  # not repeated: it may have run


async def test_what_runs_here_or_is_parked_or_another_holds_is_no_stray(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    await engine.worker.start()
    go = tmp_path / "go"
    running = await engine.execute(*await engine.script(f"until [ -e {go} ]; do sleep 0.02; done"))
    await eventually(lambda: engine.worker.running == 1)
    parked = await running_job(sqlite_store, worker_id="alive", sent=True, transport=Transport.MQTT)
    await sqlite_store.write(lambda tx: jobs.note(tx, parked.id, 1, deadline_at=10**13))
    other = await running_job(sqlite_store, worker_id="another")

    assert [await engine.deadlines.strays.look() for _ in range(3)] == [0, 0, 0]

    assert engine.worker.under_way() == {running}
    for job_id in (parked.id, other.id):
        assert (await job_of(sqlite_store, job_id)).status is Status.RUNNING
    go.touch()
    assert (await engine.ended(running)).outcome is Outcome.SUCCEEDED
    assert engine.worker.under_way() == set()


@pytest.mark.parametrize("meanwhile", ["registered", "ended", "the next attempt"])
async def test_what_only_one_sweep_found_so_is_left_alone(
    sqlite_store: Store, make_engine: MakeEngine, meanwhile: str
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="alive", sent=True)
    known: set[str] = set()
    strays = Strays(sqlite_store, engine.settler, _Worker("alive", known))
    assert await strays.look() == 0
    match meanwhile:
        case "registered":
            known.add(job.id)
        case "ended":
            await engine.settler.end_attempt(job, plan(), Ending(Outcome.SUCCEEDED))
        case _:
            await sqlite_store.write(lambda tx: jobs.try_again(tx, job, Ending(Outcome.LOST), 5, 5))
            await begin(sqlite_store, await job_of(sqlite_store, job.id), worker_id="alive")
    before = await events_of(sqlite_store, job.id)

    assert await strays.look() == 0

    assert await events_of(sqlite_store, job.id) == before


async def test_an_end_that_comes_while_a_stray_is_ended_wins(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="alive", sent=True)
    await engine.settler.end_attempt(job, plan(), Ending(Outcome.SUCCEEDED))

    await engine.deadlines.strays._end(job.id, 1)

    assert (await job_of(sqlite_store, job.id)).outcome is Outcome.SUCCEEDED


@dataclass
class _Worker:
    worker_id: str
    known: set[str]

    def under_way(self) -> set[str]:
        return self.known

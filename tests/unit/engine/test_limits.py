"""Full queues hold work back, and whatever leaves one lets the next of it go on."""

from __future__ import annotations

from pathlib import Path

from iotjobs.domain.jobs import Job, PendingReason
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.store.session import Store
from tests.services.rows import Engine, MakeEngine, add_job, job_of, running_job
from tests.services.site import eventually


async def waiting(engine: Engine, go: Path, count: int, **members: object) -> list[str]:
    """Jobs of one concurrent operation, each of which runs until a file is there."""
    text = f"until [ -e {go} ]; do sleep 0.02; done"
    owner_id, operation_id = await engine.script(text, concurrent=True, **members)
    return [await engine.execute(owner_id, operation_id) for _ in range(count)]


async def by_status(store: Store, ids: list[str], status: Status) -> list[Job]:
    return [job for job in [await job_of(store, job_id) for job_id in ids] if job.status is status]


async def test_a_queue_runs_no_more_than_it_may_and_says_what_the_others_wait_for(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.switch.put_queue("press", 2)
    await engine.worker.start()
    go = tmp_path / "go"
    ids = await waiting(engine, go, 5, queue="press")
    [other] = await waiting(engine, tmp_path, 1)  # in mix: passes

    assert (await engine.ended(other)).outcome is Outcome.SUCCEEDED

    async def three_wait() -> bool:
        held = await by_status(sqlite_store, ids, Status.PENDING)
        return [job.pending_reason for job in held] == [PendingReason.QUEUE] * 3

    await eventually(three_wait, 3)
    assert len(await by_status(sqlite_store, ids, Status.RUNNING)) == 2
    go.touch()
    ended = [await engine.ended(job_id) for job_id in ids]
    assert {job.outcome for job in ended} == {Outcome.SUCCEEDED}
    # No sweep was needed: the exits offered the next.
    assert (engine.deadlines.swept, engine.switch.swept) == (0, 0)
    starts = sorted(ended, key=lambda job: job.started_at or 0)
    assert [job.id for job in starts] == ids


async def test_a_raised_limit_lets_more_go_on_at_once(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.switch.put_queue("press", 1)
    await engine.worker.start()
    go = tmp_path / "go"
    ids = await waiting(engine, go, 4, queue="press")
    await eventually(lambda: engine.worker.running == 1, 3)

    await engine.switch.put_queue("press", 3)
    await eventually(lambda: engine.worker.running == 3, 1)
    await engine.switch.put_queue("press", None)
    await eventually(lambda: engine.worker.running == 4, 1)
    go.touch()
    for job_id in ids:
        await engine.ended(job_id)


async def test_the_next_is_the_first_by_priority_whose_lane_is_free(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    await engine.switch.put_queue("press", 1)
    first = await running_job(sqlite_store, queue="press", lane="a")
    await running_job(sqlite_store, lane="busy")
    held = {"queue": "press", "pending_reason": PendingReason.QUEUE}
    await add_job(sqlite_store, **held)
    await add_job(sqlite_store, **held, priority=9, lane="busy")
    urgent = await add_job(sqlite_store, **held, priority=8)
    await add_job(sqlite_store, **held, priority=9, low_priority=True)

    await sqlite_store.write(lambda tx: engine.limits.left(tx, first, engine.dispatcher))

    assert (await engine.dispatcher.take()).job_id == urgent.id
    assert (await job_of(sqlite_store, urgent.id)).pending_reason is None


async def test_what_a_full_queue_holds_back_lets_others_of_its_lane_pass_and_follows_them(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.switch.put_queue("press", 1)
    await engine.worker.start()
    go = tmp_path / "go"
    [holder] = await waiting(engine, go, 1, queue="press")
    await eventually(lambda: engine.worker.running == 1, 3)
    owner_id, held_operation = await engine.script("true", queue="press")
    free_operation = await engine.operation(owner_id, parameters={"text": "true"})

    held = await engine.execute(owner_id, held_operation)

    async def told() -> bool:
        return (await job_of(sqlite_store, held)).pending_reason is PendingReason.QUEUE

    await eventually(told, 3)
    free = await engine.execute(owner_id, free_operation)
    assert (await engine.ended(free)).outcome is Outcome.SUCCEEDED
    go.touch()
    await engine.ended(holder)
    assert (await engine.ended(held)).outcome is Outcome.SUCCEEDED
    assert (engine.deadlines.swept, engine.switch.swept) == (0, 0)

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update

from iotjobs import clock
from iotjobs.domain.jobs import Delivery, Ending, PendingReason, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.leases import Always
from iotjobs.engine.presence import Presence
from iotjobs.engine.rescue import DeadWorkers, Strays, _rescue_one, rescue
from iotjobs.store import jobs, nodes, queue, tables
from iotjobs.store.nodes import Node
from iotjobs.store.session import Store
from tests.services.rows import (
    Engine,
    MakeEngine,
    add_job,
    begin,
    events_of,
    job_of,
    plan,
    rows_of,
    running_job,
)
from tests.services.site import eventually


async def nothing_left(engine: Engine) -> None:
    """What had to be ended on its device first has been."""
    await eventually(lambda: not engine.leftovers._tasks)


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

    at_once = 1 if outcome is None else 0  # else it is ended on its device first
    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == at_once
    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 0

    await nothing_left(engine)
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
        said = "the process that ran it ended after it was sent; it may have run"
        assert rescued.error_message == f"{said}; its processes were killed and are gone"


async def test_a_rescued_jobs_lane_goes_on_with_the_first_by_age(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine(worker_id="alive")
    lost = await running_job(sqlite_store, worker_id="dead", sent=True, lane="a")
    again = await running_job(sqlite_store, worker_id="dead", lane="b")
    passed = await running_job(sqlite_store, worker_id="dead", lane="c")
    lane = PendingReason.LANE
    behind = {name: await add_job(sqlite_store, lane=name, pending_reason=lane) for name in ("a", "b")}
    first = await add_job(sqlite_store, lane="c", pending_reason=lane, priority=9)

    await rescue(sqlite_store, engine.settler, engine.leftovers, "alive")
    await nothing_left(engine)

    assert engine.dispatcher.live == {behind["a"].id, again.id, first.id}
    assert (await job_of(sqlite_store, lost.id)).outcome is Outcome.LOST
    waiting = [(await job_of(sqlite_store, job.id)).pending_reason for job in (again, passed, first)]
    assert waiting == [None, lane, None]
    assert await engine.deadlines.sweep() == 0


async def test_what_may_be_repeated_has_the_time_to_live_that_it_had_when_it_began(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(worker_id="alive"), clock.now_ms()
    job = await running_job(sqlite_store, worker_id="dead", sent=True, of=plan(idempotent=True))
    began = update(tables.jobs).values(begun_at=now - 3_600_000, expires_at=now - 3_540_000)
    await sqlite_store.write(lambda tx: tx.conn.execute(began))

    await rescue(sqlite_store, engine.settler, engine.leftovers, "alive")
    await engine.deadlines.look()

    again = await job_of(sqlite_store, job.id)
    assert again.status is Status.PENDING
    assert now + 60_000 <= (again.expires_at or 0) < now + 120_000


async def test_an_attempt_that_cannot_be_read_holds_no_other_up(
    sqlite_store: Store, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(worker_id="alive")
    unread, newer, other = [
        await running_job(sqlite_store, worker_id="dead", of=plan(idempotent=True)) for _ in range(3)
    ]
    P = tables.plans.c
    told = {**plan(idempotent=True).to_json(), "of_the_next_version": 1}
    for statement in (
        delete(tables.plans).where(P.job_id == unread.id),
        update(tables.plans).where(P.job_id == newer.id).values(plan=told),
    ):
        await sqlite_store.write(lambda tx, statement=statement: tx.conn.execute(statement))

    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 2

    assert engine.dispatcher.live == {newer.id, other.id}
    assert [record.job_id for record in caplog.records if record.levelno >= logging.ERROR] == [unread.id]
    await engine.worker.start()
    assert (await engine.ended(newer.id)).outcome is Outcome.SUCCEEDED


async def test_parked_own_and_ended_jobs_are_left_alone(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine(worker_id="alive")
    parked = await running_job(sqlite_store, worker_id="dead", sent=True, transport=Transport.MQTT)
    await sqlite_store.write(
        lambda tx: jobs.note(tx, parked.id, 1, deadline_at=10**13, delivery=Delivery.ACKNOWLEDGED)
    )
    others = [parked, await running_job(sqlite_store, worker_id="alive"), await add_job(sqlite_store)]
    before = [await events_of(sqlite_store, job.id) for job in others]

    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 0

    assert [await events_of(sqlite_store, job.id) for job in others] == before


async def test_more_than_one_batch_is_rescued(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(worker_id="alive")
    messages = {"transport": Transport.MQTT, "sent": True, "worker_id": "dead"}
    left = [await running_job(sqlite_store, worker_id="dead", sent=True) for _ in range(4)]
    dead = [await running_job(sqlite_store, **messages) for _ in range(7)]
    monkeypatch.setattr(queue, "orphans", functools.partial(queue.orphans, limit=3))

    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 7

    assert {(await job_of(sqlite_store, job.id)).outcome for job in dead} == {Outcome.LOST}
    await nothing_left(engine)
    assert {(await job_of(sqlite_store, job.id)).outcome for job in left} == {Outcome.LOST}


# --- who is dead ----------------------------------------------------------------------------------


class Following(Always):
    """It does not lead, until the test says so."""

    leads = False


@dataclass
class Others:
    """Workers that beat, a leader among them that watches, and the clocks: one that nobody sets, the database's."""

    store: Store
    watching: DeadWorkers
    presence: Presence
    standing: Following
    now: float = 1000.0
    ahead_ms: int = 0

    async def enter(self, worker_id: str) -> None:
        await self.store.write(lambda tx: nodes.register(tx, worker_id, Node("host", 7, "1.0", (), 5)))

    async def beat(self, *worker_ids: str) -> None:
        for worker_id in (self.presence.worker_id, *worker_ids):
            assert await self.store.write(lambda tx: nodes.beat(tx, worker_id, 0)), worker_id  # noqa: B023
            seen = {"ahead": self.ahead_ms, "id": worker_id}
            query = text("UPDATE worker SET seen_at = seen_at + :ahead + 1 WHERE id = :id")
            await self.store.write(lambda tx: tx.conn.execute(query, seen))  # noqa: B023
        self.presence.confirmed(self.now)

    async def pass_s(self, seconds: int, *beating: str) -> None:
        for second in range(seconds):
            self.now += 1
            if second % 3 == 0:
                await self.beat(*beating)
            await self.watching.look()

    async def living(self) -> set[str]:
        return {worker.id for worker in await self.store.read(nodes.listing) if worker.gone_at is None}


@pytest.fixture
async def others(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Others]:
    engine, standing = make_engine(), Following()
    presence = Presence(sqlite_store, Node("host", 7, "1.0", (), 5), lambda _: None)
    watching = DeadWorkers(sqlite_store, engine.settler, engine.leftovers, presence, standing)
    made = Others(sqlite_store, watching, presence, standing)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "monotonic", lambda: made.now)
        await presence.enter(None)
        yield made


async def test_nobody_is_dead_because_the_databases_clock_was_set(others: Others) -> None:
    await others.enter("alive")
    others.standing.leads = True
    await others.pass_s(12, "alive")

    for ahead_ms in (60_000, -86_400_000, 86_400_000):
        await others.beat("alive")
        others.ahead_ms = ahead_ms  # the last beats are that far from now
        await others.pass_s(12, "alive")
        assert await others.living() == {others.presence.worker_id, "alive"}


async def test_who_beats_no_more_is_dead_after_ten_seconds_whatever_the_clock_says(others: Others) -> None:
    await others.enter("dead")
    others.standing.leads = True
    await others.pass_s(12, "dead")
    await others.store.write(
        lambda tx: tx.conn.execute(text("UPDATE worker SET seen_at = seen_at + 86400000"))
    )

    await others.pass_s(9)
    assert "dead" in await others.living()
    await others.pass_s(3)
    assert "dead" not in await others.living()


async def test_who_was_dead_before_we_came_is_buried_soon_and_at_once_by_who_takes_over(
    others: Others,
) -> None:
    await others.enter("dead")

    await others.pass_s(12)
    assert "dead" in await others.living()
    others.standing.leads = True
    await others.pass_s(1)
    assert await others.living() == {others.presence.worker_id}


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
    await nothing_left(engine)
    assert await strays.look() == 0

    lost = await job_of(sqlite_store, job.id)
    assert (lost.outcome, lost.error_code, lost.sent_at) == (Outcome.LOST, "internalError", job.sent_at)
    said = "iotjobs lost track of it after it was sent; it may have run, see the log"
    said += "; its processes were killed and are gone"
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

    await _rescue_one(sqlite_store, engine.settler, engine.leftovers, seen, Always())

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
    strays = Strays(sqlite_store, engine.settler, engine.leftovers, _Worker("alive", known))
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

    def unsent(self) -> set[str]:
        return set()

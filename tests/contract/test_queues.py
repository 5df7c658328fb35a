"""Queues and the site's switch, as rows on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from sqlalchemy import text
from sqlalchemy.util import await_only

from iotjobs.domain.errors import BadRequest, Conflict, NotFound
from iotjobs.domain.jobs import Ending, Job, PendingReason
from iotjobs.domain.retries import RetryPolicy
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import site
from iotjobs.store import jobs as rows
from iotjobs.store import queue, queues, switch
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import ADMIN, Engine, Offered, add_job, job_of, plan, running_job


async def state_of(store: Store, name: str) -> queues.QueueState:
    [found] = [state for state in await store.read(queues.states) if state.name == name]
    return found


async def test_built_in_queues_are_always_there_and_their_limit_may_be_changed(store: Store) -> None:
    names = [state.name for state in await store.read(queues.states)]
    assert names == ["mix", "light", "heavy", "system"]
    assert await store.write(lambda tx: queues.put(tx, "heavy", 2)) is False
    assert await store.write(lambda tx: queues.put(tx, "press", 1)) is True
    assert await store.write(lambda tx: queues.put(tx, "press", 7)) is False
    assert await store.read(queues.limits) == {
        "mix": None,
        "light": None,
        "heavy": 2,
        "system": None,
        "press": 7,
    }


async def test_what_runs_and_waits_is_counted_without_the_parked(store: Store) -> None:
    await running_job(store, queue="heavy")
    parked = await running_job(store, queue="heavy")
    await store.write(lambda tx: rows.note(tx, parked.id, 1, deadline_at=10**15))
    await add_job(store, queue="heavy")
    found = await state_of(store, "heavy")
    assert (found.running, found.waiting, found.concurrency, found.built_in) == (1, 1, 4, True)
    assert await store.read(lambda conn: queues.under_way(conn)) == 1


async def test_a_queue_that_is_used_is_not_deleted(store: Store) -> None:
    engine = Engine(store)
    await store.write(lambda tx: queues.put(tx, "press", 1))
    _, operation_id = await engine.script("true", queue="press")
    job = await add_job(store, queue="line")
    await store.write(lambda tx: queues.put(tx, "line", 1))
    with pytest.raises(Conflict, match="uses the queue press"):
        await store.write(lambda tx: queues.remove(tx, "press"))
    with pytest.raises(Conflict, match="jobs are in the queue line"):
        await store.write(lambda tx: queues.remove(tx, "line"))
    with pytest.raises(Conflict, match="built in"):
        await store.write(lambda tx: queues.remove(tx, "mix"))
    with pytest.raises(NotFound):
        await store.write(lambda tx: queues.remove(tx, "nowhere"))
    with pytest.raises(BadRequest, match="another name of mix"):
        await store.write(lambda tx: queues.remove(tx, "default"))
    await store.write(lambda tx: queues.put(tx, "empty", 1))
    await store.write(lambda tx: queues.remove(tx, "empty"))
    assert "empty" not in await store.read(queues.limits)
    assert job.id
    assert operation_id


async def test_names_are_known_or_refused(store: Store) -> None:
    assert await store.read(lambda conn: queues.known_name(conn, "default")) == "mix"
    with pytest.raises(BadRequest, match="there is no queue press"):
        await store.read(lambda conn: queues.known_name(conn, "press"))


async def test_places_are_given_out_up_to_the_limit(store: Store) -> None:
    await running_job(store, queue="heavy")
    assert await store.write(lambda tx: queues.has_place(tx, "heavy", 2))
    await running_job(store, queue="heavy")
    assert not await store.write(lambda tx: queues.has_place(tx, "heavy", 2))


async def held(store: Store, **columns: object) -> Job:
    return await add_job(store, queue="heavy", pending_reason=PendingReason.QUEUE, **columns)


async def test_a_raised_limit_lets_as_many_go_as_it_has_places(store: Store) -> None:
    jobs = [await held(store) for _ in range(4)]
    urgent = await held(store, priority=9)
    await running_job(store, queue="heavy")
    assert await store.read(queues.holding_back) == ["heavy"]
    assert await store.write(lambda tx: queues.let_go(tx, "heavy", 1)) == 0
    assert await store.write(lambda tx: queues.let_go(tx, "heavy", 3)) == 2
    ready = await store.read(lambda conn: queue.ready(conn, 10**13, 10))
    assert [ticket.job_id for ticket in ready] == [urgent.id, jobs[0].id]
    assert await store.write(lambda tx: queues.let_go(tx, "heavy", None)) == 3
    assert await store.read(queues.holding_back) == []


async def test_many_who_put_the_same_queue_at_once_all_succeed(store: Store) -> None:
    async def put(limit: int) -> None:
        await store.write(lambda tx: queues.put(tx, "press", limit))
        await store.write(lambda tx: queues.set_dispatching(tx, True))

    await asyncio.gather(*(put(limit) for limit in range(1, 9)))
    assert (await store.read(queues.limits))["press"] in range(1, 9)


async def test_the_switch_tells_who_waits_for_nothing_else(store: Store) -> None:
    ready, laned = await add_job(store), await add_job(store, pending_reason=PendingReason.LANE)
    assert await store.read(queues.dispatching)
    await store.write(lambda tx: queues.set_dispatching(tx, False))
    assert not await store.read(queues.dispatching)
    assert (await job_of(store, ready.id)).pending_reason is PendingReason.DRAINED
    assert (await job_of(store, laned.id)).pending_reason is PendingReason.LANE
    await store.write(lambda tx: queues.set_dispatching(tx, True))
    assert (await job_of(store, ready.id)).pending_reason is None


async def test_a_free_job_is_found_behind_many_whose_lanes_are_busy(store: Store) -> None:
    await running_job(store, lane="busy")
    for _ in range(25):
        await held(store, lane="busy", priority=9)
    child = await held(store, parent_id="p" * 32)
    single = await held(store)
    offered = Offered()
    for _ in range(3):
        await store.write(lambda tx: queues.offer_next_of(tx, "heavy", 10**13, offered))
    assert offered.ids == [single.id, child.id]


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_of_two_attempts_that_leave_a_full_queue_at_once_each_lets_another_job_go_on(
    store: Store,
) -> None:
    waiting = [
        await add_job(store, queue="heavy", pending_reason=PendingReason.QUEUE, priority=priority)
        for priority in (5, 5, 4)
    ]
    offers = Offered()

    def second(tx: Transaction) -> bool:
        tx.conn.execute(text("SET LOCAL lock_timeout = '2s'"))
        return queues.offer_next_of(tx, "heavy", 1, offers)

    def first(tx: Transaction) -> bool:
        offered = queues.offer_next_of(tx, "heavy", 1, offers)
        return bool(await_only(store.write(second))) and offered  # commits before this one does

    assert await store.write(first)

    assert sorted(offers.ids) == sorted(job.id for job in waiting[:2])
    assert [(await job_of(store, job.id)).pending_reason for job in waiting] == [
        None,
        None,
        PendingReason.QUEUE,
    ]


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("way", ["ended", "parked", "tried again"])
async def test_a_place_that_becomes_free_while_a_begin_finds_the_queue_full_is_given_to_its_job(
    store: Store, way: str
) -> None:
    engine = Engine(store)
    engine.limits.concurrency = {"press": 1}
    first, second = await running_job(store, queue="press"), await add_job(store, queue="press")
    leaves: list[asyncio.Future[None]] = []

    def park(tx: Transaction) -> None:
        rows.note(tx, first.id, 1, deadline_at=10**15)
        engine.settler.parked(tx, first)

    def leave() -> Awaitable[None]:
        if way == "parked":
            return store.write(park)
        of = plan(retry=RetryPolicy(2, ("unreachable",), backoff_s=60))
        ending = Ending(Outcome.SUCCEEDED if way == "ended" else Outcome.FAILED, error_code="unreachable")
        return engine.settler.end_attempt(first, of, ending)

    def held_back(tx: Transaction) -> None:
        assert engine.worker._begin(tx, Ticket.of(second)) is None
        leaves.append(asyncio.ensure_future(leave()))  # on another node, or beside us on this one
        await_only(asyncio.wait(leaves, timeout=0.5))  # it has to wait for us, so no longer

    await store.write(held_back)
    await leaves[0]

    assert (await job_of(store, first.id)).parked or (
        await job_of(store, first.id)
    ).status is not Status.RUNNING
    assert (await job_of(store, second.id)).pending_reason is None
    assert engine.dispatcher.live == {second.id}
    await engine.stop()


async def test_what_only_a_look_finds_a_place_for_is_counted(store: Store) -> None:
    engine = Engine(store)
    await engine.switch.put_queue("press", 1)
    await engine.switch.look()
    lost = await add_job(store, queue="press", pending_reason=PendingReason.QUEUE)

    await engine.switch.look()

    assert (engine.switch.swept, engine.dispatcher.live) == (1, {lost.id})
    await running_job(store, queue="press")
    await add_job(store, queue="press", pending_reason=PendingReason.QUEUE)
    await engine.switch.put_queue("press", 3)  # this one was not lost
    assert engine.switch.swept == 1
    assert len(engine.dispatcher.live) == 2
    await engine.stop()


async def test_what_a_job_waits_for_is_said_only_while_it_waits(store: Store) -> None:
    await running_job(store, lane="a")
    later = await add_job(store, lane="a", start_at=5)
    await store.write(lambda tx: rows.settle(tx, later, Ending(Outcome.CANCELED), 6))
    offers = Offered()

    await store.write(lambda tx: queue.begin_waiting(tx, later, 7, offers))
    ticket = queue.Ticket.of(later)
    await store.write(lambda tx: queue.offer_if_free(tx, "a", ticket, 7, offers))

    assert (await job_of(store, later.id)).pending_reason is None
    assert offers.ids == []


async def test_a_node_that_has_not_seen_a_drain_yet_begins_nothing_all_the_same(store: Store) -> None:
    late, other = Engine(store), Engine(store, worker_id="w2")
    await other.switch.switch(is_open=False, caller=ADMIN)
    waiting = [await add_job(store) for _ in range(3)]
    assert late.limits.opened.is_set()

    async def begin(job: Job) -> object:
        ticket, ahead = Ticket.of(job), (queue.candidates, job.id)
        return await store.write(lambda tx: late.worker._begin(tx, ticket), locks=(), ahead=ahead)

    assert await asyncio.gather(*map(begin, waiting)) == [None] * 3
    assert {(await job_of(store, job.id)).pending_reason for job in waiting} == {PendingReason.DRAINED}
    assert not await store.write(switch.stays_open)
    await other.switch.switch(is_open=True, caller=ADMIN)
    assert await store.write(switch.stays_open)
    assert await begin(waiting[0])


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("ask_at_once", [True, False])
async def test_a_drain_does_not_end_before_a_begin_that_hangs_on_another_node(
    store: Store, monkeypatch: pytest.MonkeyPatch, ask_at_once: bool
) -> None:
    monkeypatch.setattr(site, "SETTLED_AFTER_MS", 0)
    slow, other = Engine(store), Engine(store, worker_id="w2")
    job = await add_job(store)
    drain_ids: list[str] = []

    async def drain_and_end() -> None:
        drain_ids.append(await other.switch.switch(is_open=False, caller=ADMIN))
        await other.switch.look()

    def begin(tx: Transaction) -> asyncio.Task[None]:
        if ask_at_once:
            assert switch.stays_open(tx)
        else:
            found = queue.candidate(tx, job.id)
            assert found is not None
            assert found.dispatches
        drain = asyncio.get_running_loop().create_task(drain_and_end())
        await_only(asyncio.wait([drain], timeout=0.5))
        assert not drain.done()
        assert slow.worker._begin(tx, Ticket.of(job)) is not None
        return drain

    await (await store.write(begin))

    running = await job_of(store, job.id)
    assert running.status is Status.RUNNING
    assert (await job_of(store, drain_ids[0])).status is Status.RUNNING
    await store.write(lambda tx: slow.settler.finish(tx, running, Ending(Outcome.SUCCEEDED), 6))
    await other.switch.look()
    assert (await job_of(store, drain_ids[0])).outcome is Outcome.SUCCEEDED

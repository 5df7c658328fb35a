"""What both dispatchers promise: the embedded one, and PgQueuer on PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from iotjobs.domain.errors import Conflict
from iotjobs.engine import dispatch_postgres
from iotjobs.engine.dispatch import Dispatcher, InProcessDispatcher
from iotjobs.engine.dispatch_postgres import PgQueuerDispatcher
from iotjobs.engine.services import LoopService
from iotjobs.store.queue import Ticket, rank_of
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.postgres import PostgresServer
from tests.services.site import eventually

# Equal for both sides: the embedded one has no way to wait for.
WITHIN_S = 5.0
NORMAL = rank_of(5, False)

Make = Callable[..., Awaitable[Dispatcher]]


def ticket(seq: int, rank: int = NORMAL, turn: int = 0, attempt: int = 0) -> Ticket:
    return Ticket(rank, turn, seq, f"{seq:032x}", attempt)


async def take(dispatcher: Dispatcher, within_s: float = WITHIN_S) -> Ticket:
    return await asyncio.wait_for(dispatcher.take(), within_s)


async def nothing_comes(dispatcher: Dispatcher, within_s: float = 0.4) -> bool:
    try:
        await take(dispatcher, within_s)
    except TimeoutError:
        return True
    return False


async def offer(store: Store, dispatcher: Dispatcher, *tickets: Ticket) -> None:
    for one in tickets:
        await store.write(lambda tx: dispatcher.offer(tx, one))  # noqa: B023 - awaited within the turn


@pytest.fixture
async def make(store: Store, store_url: str) -> AsyncIterator[Make]:
    """Makes dispatchers that carry, as each node has one; on SQLite there is one node."""
    made: list[Dispatcher] = []

    async def begin(*, at_once: int = 400, may_publish: Callable[[], bool] = lambda: True) -> Dispatcher:
        one: Dispatcher = InProcessDispatcher()
        if store_url.startswith("postgresql"):
            one = PgQueuerDispatcher(store, store_url, at_once=at_once, may_publish=may_publish)
        made.append(one)
        await one.start()
        return one

    yield begin
    for one in made:
        await one.stop()


@pytest.fixture
async def dispatcher(make: Make) -> Dispatcher:
    return await make()


async def test_a_ticket_shows_with_its_commit_and_never_without(store: Store, dispatcher: Dispatcher) -> None:
    def refused(tx: Transaction) -> None:
        dispatcher.offer(tx, ticket(1))
        raise Conflict("no")

    with pytest.raises(Conflict):
        await store.write(refused)
    taking = asyncio.create_task(take(dispatcher))
    await offer(store, dispatcher, ticket(2))

    assert await taking == ticket(2)
    assert await nothing_comes(dispatcher)


async def test_an_attempt_has_one_live_ticket_from_offer_to_done(
    store: Store, dispatcher: Dispatcher
) -> None:
    await offer(store, dispatcher, ticket(1))
    await offer(store, dispatcher, ticket(1))
    assert await dispatcher.offer_again([ticket(1), ticket(2)]) == 1
    taken = [await take(dispatcher) for _ in range(2)]
    assert taken == [ticket(1), ticket(2)]
    assert await dispatcher.offer_again([ticket(1)]) == 0
    assert await nothing_comes(dispatcher)

    # The next attempt is another matter, while the ticket of this one is still held.
    await offer(store, dispatcher, ticket(1, attempt=1))
    assert await take(dispatcher) == ticket(1, attempt=1)

    for one in (*taken, ticket(99)):
        dispatcher.done(one)

    async def free() -> bool:
        return await dispatcher.offer_again([ticket(1)]) == 1

    await eventually(free, WITHIN_S)
    assert await take(dispatcher) == ticket(1)


async def test_they_are_taken_by_rank_then_turn_then_age(store: Store, make: Make, store_url: str) -> None:
    ranks = [rank_of(priority, low) for priority in (0, 5, 9) for low in (False, True)]
    tickets = [ticket(1 + seq, random.choice(ranks), random.randrange(3)) for seq in range(60)]
    random.shuffle(tickets)
    dispatcher = await make()
    await dispatcher.stop()  # what comes while nobody takes is taken in its order
    for one in tickets[:30]:
        await offer(store, dispatcher, one)
    await dispatcher.offer_again(tickets[30:])

    await dispatcher.start()
    if store_url.startswith("postgresql"):
        await eventually(lambda: len(dispatcher._held) == len(tickets), WITHIN_S)  # type: ignore[attr-defined]

    assert [await take(dispatcher) for _ in tickets] == sorted(tickets)


async def test_a_parents_many_jobs_let_the_single_one_pass(dispatcher: Dispatcher) -> None:
    await dispatcher.offer_again([ticket(1 + turn, NORMAL, turn) for turn in range(20)] + [ticket(500)])

    assert [(await take(dispatcher)).seq for _ in range(3)] == [1, 500, 2]


async def test_what_is_withdrawn_is_not_taken_and_may_be_offered_anew(
    store: Store, dispatcher: Dispatcher
) -> None:
    def moved(tx: Transaction) -> None:
        dispatcher.withdraw(tx, ticket(1))
        dispatcher.offer(tx, ticket(2))

    def both(tx: Transaction) -> None:
        dispatcher.offer(tx, ticket(1))
        moved(tx)

    await store.write(both)
    taken = await take(dispatcher)
    assert taken == ticket(2)
    assert await nothing_comes(dispatcher)

    # Held by a taker who finds that it leads to nothing: an offer right after that is a new one.
    await store.write(lambda tx: dispatcher.withdraw(tx, ticket(2)))
    await offer(store, dispatcher, ticket(2))
    dispatcher.done(taken)
    again = asyncio.create_task(take(dispatcher))
    assert await again == ticket(2)


async def test_thousands_are_each_taken_once(store: Store, make: Make, store_url: str) -> None:
    nodes = [await make() for _ in range(2 if store_url.startswith("postgresql") else 1)]
    tickets = [ticket(1 + seq) for seq in range(3000)]
    seen: list[Ticket] = []

    async def work(node: Dispatcher) -> None:
        while True:
            one = await node.take()
            seen.append(one)
            node.done(one)

    began = time.monotonic()
    workers = [asyncio.create_task(work(node)) for node in nodes for _ in range(4)]
    for at in range(0, len(tickets), 1000):
        assert await nodes[0].offer_again(tickets[at : at + 1000]) == 1000
    await eventually(lambda: len(seen) >= len(tickets), 30)
    print(f"{len(seen) / (time.monotonic() - began):.0f} tickets a second")  # noqa: T201 - a figure
    for worker in workers:
        worker.cancel()

    assert sorted(seen) == tickets


async def test_somebody_who_waits_is_woken_within_milliseconds(store: Store, dispatcher: Dispatcher) -> None:
    latencies = []
    await offer(store, dispatcher, ticket(1))
    dispatcher.done(await take(dispatcher))  # the way is up
    for seq in range(2, 42):
        waiting = asyncio.create_task(take(dispatcher))
        began = time.monotonic()
        await offer(store, dispatcher, ticket(seq))
        dispatcher.done(await waiting)
        latencies.append(time.monotonic() - began)

    print(f"offer to taken: median {1000 * statistics.median(latencies):.1f} ms")  # noqa: T201 - a figure
    assert statistics.median(latencies) < 0.1


async def test_a_restart_goes_on_where_it_was(store: Store, make: Make, store_url: str) -> None:
    first = await make()
    await first.offer_again([ticket(1), ticket(2), ticket(3)])
    done, held = await take(first), await take(first)
    first.done(done)
    await first.stop()
    await first.stop()

    second = await make()
    ready = [ticket(2), ticket(3)]
    await second.offer_again(ready)  # the sweep of every start

    assert [await take(second), await take(second)] == ready
    assert held in ready
    assert await nothing_comes(second)


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
class TestSeveralNodes:
    """What only PgQueuer has to promise."""

    async def test_what_a_stopping_node_did_not_take_is_another_ones_at_once(
        self, store: Store, make: Make
    ) -> None:
        first = await make()
        await first.offer_again([ticket(1), ticket(2)])
        taken = await take(first)
        second = await make()

        first.give_back()

        assert await take(second) == ticket(2)
        first.done(taken)

    async def test_a_dead_takers_ticket_comes_to_somebody_else_within_ten_seconds(
        self, store: Store, make: Make, postgres_server: PostgresServer
    ) -> None:
        first, second = await make(), await make()
        await first.offer_again([ticket(1)])
        takers = [asyncio.create_task(node.take()) for node in (first, second)]
        await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
        for taker in takers:
            taker.cancel()
        dead = first if first._held else second  # type: ignore[attr-defined]
        other = second if dead is first else first
        for carrier in dead._carriers:  # type: ignore[attr-defined]
            carrier._pool.terminate()  # as kill -9 does: no beat any more, and nothing given back
        await LoopService.stop(dead)  # type: ignore[arg-type]  # and it does not come back

        began = time.monotonic()
        assert await take(other, 15) == ticket(1)
        print(f"delivered again after {time.monotonic() - began:.1f} s")  # noqa: T201 - a figure
        assert time.monotonic() - began < 12

    async def test_a_ticket_that_is_offered_anew_before_its_taker_is_done_is_another_one(
        self, store: Store, dispatcher: Dispatcher
    ) -> None:
        await offer(store, dispatcher, ticket(1))
        taken = await take(dispatcher)
        await store.write(lambda tx: dispatcher.withdraw(tx, ticket(1)))
        await offer(store, dispatcher, ticket(1))

        async def picked() -> bool:
            query = "SELECT count(*) FROM iotjobs_q.iotjobs_pgqueuer WHERE status = 'picked'"
            found = await store.read(lambda conn: conn.exec_driver_sql(query).scalar_one())
            return bool(found == 1)

        await eventually(picked, WITHIN_S)
        dispatcher.done(taken)

        again = await take(dispatcher)
        assert again == ticket(1)
        dispatcher.done(again)

    async def test_a_message_is_left_to_the_nodes_that_have_a_broker(self, store: Store, make: Make) -> None:
        has_broker = False
        without = await make(may_publish=lambda: has_broker)
        messages = [replace(ticket(seq), mqtt=True) for seq in (1, 2)]
        await offer(store, without, *messages)
        await offer(store, without, ticket(3))
        assert await take(without) == ticket(3)
        assert await nothing_comes(without, 3.0)
        assert await without.offer_again(messages) == 0

        with_one = await make()
        assert [await take(with_one) for _ in messages] == messages

        has_broker = True  # or nobody has one any more
        await offer(store, without, replace(ticket(4), mqtt=True))
        takers = [asyncio.create_task(take(node)) for node in (without, with_one)]
        done, left = await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
        for taker in left:
            taker.cancel()
        assert [taker.result() for taker in done] == [ticket(4)]

    async def test_a_cut_listener_costs_seconds_also_while_a_long_job_runs(
        self, store: Store, make: Make, store_url: str, postgres_server: PostgresServer
    ) -> None:
        dispatcher = await make()
        await dispatcher.offer_again([ticket(1)])
        runs_for_ever = await take(dispatcher)
        assert runs_for_ever == ticket(1)

        await asyncio.to_thread(
            postgres_server.execute,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'iotjobs tickets'",
        )
        await offer(store, dispatcher, ticket(2))

        assert await take(dispatcher, 10) == ticket(2)
        assert await nothing_comes(dispatcher)
        dispatcher.done(runs_for_ever)

    async def test_what_no_worker_takes_is_given_to_the_others(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch_postgres, "HOLD_S", 0.2)
        busy = await make()
        await busy.offer_again([ticket(1)])
        await eventually(lambda: busy._held, WITHIN_S)  # type: ignore[attr-defined]

        other = await make()

        assert await take(other, 20) == ticket(1)

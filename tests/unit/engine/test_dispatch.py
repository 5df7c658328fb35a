from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotjobs.domain.errors import Conflict
from iotjobs.engine.dispatch import InProcessDispatcher
from iotjobs.store.queue import Ticket, rank_of
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

RANKED = st.tuples(st.integers(0, 9), st.booleans())


@settings(max_examples=50)
@given(st.lists(RANKED, max_size=30))
async def test_tickets_are_taken_by_priority_then_age(ranked: list[tuple[int, bool]]) -> None:
    dispatcher = InProcessDispatcher()
    tickets = [Ticket(rank_of(priority, low), 0, seq, str(seq)) for seq, (priority, low) in enumerate(ranked)]

    assert await dispatcher.offer_again(tickets) == len(tickets)
    taken = [await dispatcher.take() for _ in tickets]

    expected = sorted(enumerate(ranked), key=lambda entry: (entry[1][1], -entry[1][0], entry[0]))
    assert [ticket.seq for ticket in taken] == [seq for seq, _ in expected]


async def test_a_job_has_one_live_ticket_from_offer_to_done() -> None:
    dispatcher, ticket = InProcessDispatcher(), Ticket(5, 0, 1, "a")

    assert await dispatcher.offer_again([ticket, ticket]) == 1
    taken = await dispatcher.take()
    assert await dispatcher.offer_again([ticket]) == 0
    dispatcher.done(taken)
    assert await dispatcher.offer_again([ticket]) == 1
    dispatcher.done(Ticket(5, 0, 9, "never offered"))


async def test_a_ticket_shows_with_its_commit_and_never_without(sqlite_store: Store) -> None:
    dispatcher = InProcessDispatcher()

    def refused(tx: Transaction) -> None:
        dispatcher.offer(tx, Ticket(0, 0, 1, "refused"))
        raise Conflict("no")

    taking = asyncio.create_task(dispatcher.take())
    with pytest.raises(Conflict):
        await sqlite_store.write(refused)
    assert not taking.done()
    await sqlite_store.write(lambda tx: dispatcher.offer(tx, Ticket(9, 0, 2, "kept")))

    assert (await asyncio.wait_for(taking, 1)).job_id == "kept"


async def test_each_ticket_wakes_one_of_those_who_wait() -> None:
    dispatcher = InProcessDispatcher()
    takers = [asyncio.create_task(dispatcher.take()) for _ in range(3)]
    await asyncio.sleep(0)

    await dispatcher.offer_again([Ticket(0, 0, 1, "a"), Ticket(0, 0, 2, "b")])
    done, waiting = await asyncio.wait(takers, timeout=0.05)

    assert sorted(task.result().job_id for task in done) == ["a", "b"]
    await dispatcher.offer_again([Ticket(0, 0, 3, "c")])
    [last] = waiting
    assert (await asyncio.wait_for(last, 1)).job_id == "c"


async def test_a_parents_many_jobs_let_the_single_one_pass() -> None:
    dispatcher = InProcessDispatcher()
    children = [Ticket(rank_of(5, False), turn, 1 + turn, f"child {turn}") for turn in range(100)]
    await dispatcher.offer_again([*children, Ticket(rank_of(5, False), 0, 500, "single")])
    assert [(await dispatcher.take()).job_id for _ in range(3)] == ["child 0", "single", "child 1"]

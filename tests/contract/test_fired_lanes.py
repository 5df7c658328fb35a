"""Lanes of jobs that the happenings of one transaction start, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from iotjobs.domain.entities import OwnerType
from iotjobs.domain.jobs import PendingReason
from iotjobs.engine.happenings import Happening, Reported
from iotjobs.store.jobs import J
from iotjobs.store.session import Store, open_store
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, add_job

HOT = {"state": "alarm", "when": "temperature > 80"}


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def hot_thing(engine: Engine, *, triggers: int = 1) -> str:
    """An object that starts so many scripts when it is above 80; its id, which is its lane's name."""
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, HOT)
    await engine.triggers(owner_id, *({"states": ["alarm"], "operation_id": operation_id},) * triggers)
    return owner_id


async def told(engine: Engine, *owner_ids: str) -> int:
    """All of them report heat in one transaction; how often it was run."""
    runs = 0

    def item(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        turn = engine.reactions.turn(tx)
        for owner_id in owner_ids:
            turn.take(Happening(OwnerType.OBJECT, owner_id, Reported({"temperature": 90})))
        turn.finish()

    await engine.store.write(item)
    return runs


async def reasons_of(engine: Engine, lane: str) -> list[tuple[str, str | None]]:
    """(job id, what it waits for), oldest first."""
    query = select(J.id, J.pending_reason).where(J.lane == lane).order_by(J.seq)
    return await engine.store.read(lambda conn: [tuple(row) for row in conn.execute(query)])


async def test_of_jobs_that_start_together_in_a_lane_the_first_is_offered(engine: Engine) -> None:
    free, busy = await hot_thing(engine, triggers=3), await hot_thing(engine, triggers=2)
    ahead = await add_job(engine.store, lane=busy)

    await told(engine, busy, free)

    (first, reason), *others = await reasons_of(engine, free)
    assert (reason, [why for _, why in others]) == (None, [PendingReason.LANE] * 2)
    assert [why for _, why in await reasons_of(engine, busy)] == [None] + [PendingReason.LANE] * 2
    assert engine.dispatcher.live == {first}  # type: ignore[attr-defined]
    assert (await reasons_of(engine, busy))[0][0] == ahead.id


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)  # SQLite's single writer locks nothing
async def test_a_batch_of_reactions_locks_its_lanes_in_the_order_of_everybody_else(
    engine: Engine, store_url: str
) -> None:
    batches = [[await hot_thing(engine) for _ in range(12)] for _ in range(8)]
    other = open_store(store_url)
    over = False

    async def lock_all(lanes: list[str]) -> None:
        while not over:
            await other.write(lambda tx: tx.lock(*lanes))

    for lanes in batches:
        over = False
        locking = [asyncio.create_task(lock_all(lanes)) for _ in range(3)]
        runs = await told(engine, *lanes)
        over = True
        await asyncio.gather(*locking)
        assert runs == 1  # not the victim of a deadlock
    await other.stop()

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text, update

from iotjobs.domain.errors import Conflict, EngineError, RaceLost, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Ending, Job, PendingReason
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.sending import Begun
from iotjobs.store import drawn, facts, groups, queue, session, statements, tables, writer
from iotjobs.store.groups import GROUP_ITEMS
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store, open_store
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Item, Transaction
from tests.services.rows import Engine, add_job, counts, events_of, job_of, plan, rows_of, running_job


@pytest.fixture
async def store(fresh_database: Callable[[], str]) -> AsyncIterator[Store]:
    opened = open_store(fresh_database())
    await opened.start()
    yield opened
    await opened.stop()


def note(name: str, runs: list[str] | None = None) -> Item[int]:
    """Write a fact; the number of the transaction that it was written in."""

    def item(tx: Transaction) -> int:
        if runs is not None:
            runs.append(name)
        facts.put(tx, name, "x")
        return int(tx.conn.execute(text("SELECT pg_current_xact_id()::text::bigint")).scalar_one())

    return item


def refuse(_tx: Transaction) -> None:
    raise Conflict("not this one")


def break_a_rule(tx: Transaction) -> None:
    tx.conn.execute(text("INSERT INTO site (name, value) VALUES ('twice', 'x'), ('twice', 'x')"))


async def written(store: Store) -> set[str]:
    return set(await store.read(lambda conn: conn.execute(text("SELECT name FROM site")).scalars().all()))


async def together(store: Store, *items: Item[Any]) -> list[Any]:
    """What comes of items that wait at the same time; the first of them begins at once, and alone."""
    writes = [store.write(item, locks=()) for item in items]
    return await asyncio.gather(*writes, return_exceptions=True)


async def test_what_waits_together_is_one_transaction_and_each_gets_its_own_answer(store: Store) -> None:
    names = [f"fact {number}" for number in range(GROUP_ITEMS)]

    numbers = await together(store, *(note(name) for name in names))

    assert len(set(numbers)) <= 2
    assert await written(store) >= set(names)


async def test_an_item_that_fails_takes_no_other_along(store: Store) -> None:
    runs: list[str] = []
    names = [f"fact {number}" for number in range(20)]
    items: list[Item[Any]] = [note(name, runs) for name in names]
    items[7:7] = [refuse]
    items[15:15] = [break_a_rule]

    answers = await together(store, *items)

    failed = {at: type(answer) for at, answer in enumerate(answers) if isinstance(answer, Exception)}
    assert failed == {7: Conflict, 15: EngineError}
    assert await written(store) >= set(names)
    assert len(runs) > len(names)  # they were undone with it, and run again


async def test_nothing_of_a_group_is_kept_when_the_store_is_away(store: Store) -> None:
    def cut(tx: Transaction) -> None:
        tx.conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    answers = await together(store, note("before"), note("before too"), cut, note("behind"))

    assert isinstance(answers[2], StoreUnavailable)
    kept = await written(store)
    for at, name in ((0, "before"), (1, "before too"), (3, "behind")):
        assert (name in kept) is not isinstance(answers[at], StoreUnavailable)


async def test_a_caller_that_went_away_changes_nothing_for_the_others(store: Store) -> None:
    writes = [asyncio.create_task(store.write(note(f"fact {at}"), locks=())) for at in range(5)]
    await asyncio.sleep(0)
    writes[2].cancel()

    answers = await asyncio.gather(*writes, return_exceptions=True)

    assert [isinstance(answer, int) for answer in answers] == [True, True, False, True, True]


async def running(store: Store, count: int) -> tuple[Engine, list[Job]]:
    engine = Engine(store)
    return engine, [await running_job(store, lane=f"lane {number}") for number in range(count)]


async def finish(engine: Engine, job: Job) -> None:
    await engine.store.write(
        lambda tx: engine.settler.finish(tx, job, Ending(Outcome.SUCCEEDED), 5), locks=(job.lane or "",)
    )


async def test_of_ends_that_share_a_transaction_the_one_that_came_too_late_is_refused_alone(
    store: Store,
) -> None:
    engine, ended = await running(store, 9)
    await finish(engine, ended[4])

    answers = await asyncio.gather(*(finish(engine, job) for job in ended), return_exceptions=True)

    assert [type(answer) for answer in answers] == [type(None)] * 4 + [TransitionRefused] + [type(None)] * 4
    for job in ended:
        assert [kind for kind, _, outcome in await events_of(store, job.id) if outcome] == ["job.changed"]
    await engine.stop()


async def test_begins_and_ends_that_share_a_transaction_share_its_statements(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(store)
    waiting = [await add_job(store, lane=f"lane {number}") for number in range(GROUP_ITEMS)]
    ways: list[str] = []
    hand_over, update_all = statements.run, Prepared.run_all
    monkeypatch.setattr(
        statements, "run", lambda *given, **how: ways.append(given[1]) or hand_over(*given, **how)
    )
    monkeypatch.setattr(Prepared, "run_all", lambda *given: ways.append("all") or update_all(*given))

    async def begin(job: Job) -> Begun | None:
        ticket = Ticket.of(job)
        return await store.write(
            lambda tx: engine.worker._begin(tx, ticket),
            locks=engine.limits.locks_of(ticket),
            ahead=(queue.candidates, job.id),
        )

    begun = await asyncio.gather(*(begin(job) for job in waiting))

    assert all(each is not None for each in begun)
    assert len(ways) <= 20  # of two transactions, one of which may be of one item
    assert {(await job_of(store, job.id)).status for job in waiting} == {Status.RUNNING}
    await engine.stop()


async def test_ends_that_share_a_transaction_do_so_at_their_first_try(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(store)
    begun = [await running_job(store) for _ in range(GROUP_ITEMS)]
    tries: list[int] = []
    run_shares = groups.run_shares
    monkeypatch.setattr(
        session, "run_shares", lambda conn, shares: tries.append(len(shares)) or run_shares(conn, shares)
    )

    await asyncio.gather(
        *(engine.settler.end_attempt(job, plan(), Ending(Outcome.SUCCEEDED)) for job in begun)
    )

    assert sum(tries) == len(begun)
    assert len(tries) <= 4
    assert await counts(store) == {"FINISHED": len(begun)}
    await engine.stop()


async def test_submits_that_share_a_transaction_share_its_statements(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(store)
    things = [await engine.script("true") for _ in range(GROUP_ITEMS // 2)]
    ways: list[str] = []
    hand_over = statements.run
    for module in (statements, writer, drawn):
        monkeypatch.setattr(
            module, "run", lambda *given, **how: ways.append(given[1]) or hand_over(*given, **how)
        )

    ids = await asyncio.gather(*(engine.execute(*thing) for thing in things))

    inserts = [sql for sql in ways if "INSERT INTO job " in sql]
    assert len(inserts) <= 8  # those that came while nobody wrote went alone
    assert sum("nextval" in sql for sql in ways) <= 8
    made = [await job_of(store, job_id) for job_id in ids]
    assert len({job.seq for job in made}) == len(ids)
    assert {(job.status, job.pending_reason, job.priority) for job in made} == {(Status.PENDING, None, 5)}
    assert engine.dispatcher.live == set(ids)
    for job in made:
        assert await events_of(store, job.id) == [("job.added", "PENDING", None)]
        assert (await rows_of(store, tables.plans, job.id))[0]["plan"]["script"] == "true"
    await engine.stop()


async def test_of_submits_that_meet_in_a_lane_one_is_offered(store: Store) -> None:
    engine = Engine(store)
    things = [await engine.script("true") for _ in range(4)]

    ids = await asyncio.gather(*(engine.execute(*thing) for thing in things * 5))

    made = [await job_of(store, job_id) for job_id in ids]
    offered = [job for job in made if job.pending_reason is None]
    assert len({job.lane for job in offered}) == len(offered) == len(things)
    assert engine.dispatcher.live == {job.id for job in offered}
    assert {job.pending_reason for job in made} == {None, PendingReason.LANE}
    await engine.stop()


class _Changing:
    """A store in which an operation is changed once so many have looked it up."""

    def __init__(self, store: Store, operation_id: str, looks: int) -> None:
        self._store, self._operation_id, self._looks = store, operation_id, looks
        self._changed = asyncio.Event()

    async def look(self, query: Any) -> Any:
        seen = await self._store.look(query)
        self._looks -= 1
        if self._looks == 0:
            change = update(tables.operations).where(tables.operations.c.id == self._operation_id)
            await self._store.write(lambda tx: tx.conn.execute(change.values(version=2)))
            self._changed.set()
        await self._changed.wait()
        return seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def test_submits_of_an_operation_that_changed_meanwhile_render_it_anew(store: Store) -> None:
    engine = Engine(store)
    owner_id = await engine.thing()
    operation_id = await engine.operation(owner_id, concurrent=True, parameters={"text": "true"})
    engine.intake._store = _Changing(store, operation_id, 6)  # type: ignore[assignment]

    ids = await asyncio.gather(*(engine.execute(owner_id, operation_id) for _ in range(6)))

    assert {(await job_of(store, job_id)).operation_version for job_id in ids} == {2}
    assert await counts(store) == {"PENDING": 6}
    await engine.stop()


async def test_an_item_that_comes_as_the_last_writer_leaves_does_not_wait_for_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "AT_ONCE", 1)

    async with asyncio.timeout(10):
        for number in range(20):
            await store.write(note(f"fact {number}"), locks=())


@asynccontextmanager
async def locked_elsewhere(store: Store, *names: str) -> AsyncIterator[None]:
    """As by the transaction of a node that is frozen."""
    async with store._engine.begin() as conn:  # type: ignore[attr-defined]
        for name in names:
            await conn.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name}
            )
        yield


async def test_a_lock_held_elsewhere_makes_only_those_wait_that_need_it(store: Store) -> None:
    names = [f"lane {number}" for number in range(3 * GROUP_ITEMS)]
    held = set(names[::7])

    async with locked_elsewhere(store, *held):
        writes = {
            name: [asyncio.create_task(store.write(note(f"{name} {at}"), locks=(name,))) for at in range(2)]
            for name in names
        }
        free = [write for name in names if name not in held for write in writes[name]]
        async with asyncio.timeout(4):
            await asyncio.gather(*free)
            await asyncio.gather(*(store.write(note(f"later {at}"), locks=()) for at in range(20)))
        waiting = [write for name in held for write in writes[name]]
        assert not any(write.done() for write in waiting)
    async with asyncio.timeout(4):
        await asyncio.gather(*waiting)

    assert {f"{name} {at}" for name in names for at in range(2)} <= await written(store)


async def test_a_lock_that_is_not_let_go_refuses_only_those_that_need_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "LOCK_S", 0.3)

    async with locked_elsewhere(store, "lane 1"):
        writes = [store.write(note(f"fact {at}"), locks=(f"lane {at}",)) for at in range(4)]
        answers = await asyncio.gather(*writes, return_exceptions=True)

    assert [type(answer) for answer in answers] == [int, StoreUnavailable, int, int]
    assert "fact 1" not in await written(store)
    assert store.up  # it answers


async def test_a_store_that_stops_writes_first_what_waits_for_a_lock(store: Store) -> None:
    async with locked_elsewhere(store, "lane"):
        write = asyncio.create_task(store.write(note("behind it"), locks=("lane",)))
        await store.write(note("beside it"), locks=())
        stop = asyncio.create_task(store._groups.stop())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert not stop.done()
    await stop

    assert isinstance(write.result(), int)


async def test_an_item_that_loses_every_race_takes_no_other_along(store: Store) -> None:
    def lose(tx: Transaction) -> None:
        tx.conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$"))

    answers = await together(store, note("first"), note("before"), lose, note("behind"))

    assert [type(answer) for answer in answers] == [int, int, RaceLost, int]


async def test_groups_that_lock_the_same_in_another_order_do_not_meet_in_a_deadlock(store: Store) -> None:
    other = open_store(store._engine.url.render_as_string(hide_password=False))  # type: ignore[attr-defined]
    runs: list[str] = []
    lanes = [f"lane {number}" for number in range(12)]

    def at(name: str) -> Item[None]:
        def item(tx: Transaction) -> None:
            runs.append(name)
            assert not tx.lock(name)  # it is ours already

        return item

    writes = [
        one.write(at(lane), locks=(lane,))
        for one, order in ((store, lanes), (other, lanes[::-1]))
        for lane in order * 5
    ]
    await asyncio.gather(*writes)

    assert len(runs) == len(writes)  # none was the victim of a deadlock, and run again
    await other.stop()


async def test_a_connection_that_the_server_closed_is_not_used_again(store: Store) -> None:
    await together(store, *(note(f"fact {at}") for at in range(20)))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    await store.write(lambda tx: tx.conn.execute(text(f"{cut} AND datname = current_database()")))

    answers = await together(store, *(note(f"again {at}") for at in range(20)))

    assert all(isinstance(answer, int) for answer in answers)

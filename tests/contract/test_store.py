"""What the store promises about jobs, on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import Connection, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from iotjobs import clock
from iotjobs.domain.errors import (
    BadRequest,
    Conflict,
    IdempotencyMismatch,
    LeaseLost,
    NotFound,
    TransitionRefused,
)
from iotjobs.domain.jobs import Delivery, Ending, Job, PendingReason, Transport
from iotjobs.domain.rights import EVERYTHING, Scope
from iotjobs.domain.statuses import ENDED, Outcome, Status, may_become
from iotjobs.store import facts, jobs, output, queue, reads, rules, tables
from iotjobs.store import statements as statements_of_store
from iotjobs.store.output import Chunk
from iotjobs.store.queue import Ticket
from iotjobs.store.reads import JobFilter
from iotjobs.store.session import SqliteStore, Store
from iotjobs.store.state_tables import traces
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction
from tests.services.rows import (
    ADMIN,
    OBJECT,
    Engine,
    Offered,
    add_job,
    begin,
    counts,
    events_of,
    insert_job,
    job_of,
    job_row,
    plan,
    rows_of,
    running_job,
)

GOOD = Ending(Outcome.SUCCEEDED, exit_code=0)
LANE = {"lane": OBJECT}


async def with_status(store: Store, status: Status) -> Job:
    """A job that has a status, written as the engine cannot yet write each of them."""
    job = await add_job(store)
    J = tables.jobs.c
    values: dict[str, Any] = {"status": status, "attempt": 1}
    await store.write(lambda tx: tx.conn.execute(update(tables.jobs).where(J.id == job.id).values(values)))
    return await job_of(store, job.id)


# --- the one writer of a status -------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [Status.RUNNING, Status.PENDING, Status.FINISHED, Status.CANCELED])
@pytest.mark.parametrize("actual", list(Status))
async def test_a_status_is_written_only_as_the_table_allows(
    store: Store, actual: Status, wanted: Status
) -> None:
    job = await with_status(store, actual)
    before = await events_of(store, job.id)

    def item(tx: Transaction) -> None:
        match wanted:
            case Status.RUNNING:
                jobs.begin_attempt(tx, job, worker_id="w", nonce="n", at=job.timestamp + 1, sent=False)
            case Status.PENDING:
                jobs.try_again(tx, job, GOOD, job.timestamp + 1, job.timestamp + 2)
            case _:
                outcome = Outcome.CANCELED if wanted is Status.CANCELED else Outcome.LOST
                jobs.settle(tx, job, Ending(outcome), job.timestamp + 1)

    # From STOPPED only a person's resume leads to PENDING, and that closes no attempt.
    if may_become(actual, wanted):
        await store.write(item)
        assert (await job_of(store, job.id)).status is wanted
        assert [status for _, status, _ in await events_of(store, job.id)] == [
            *(status for _, status, _ in before),
            wanted,
        ]
    else:
        with pytest.raises(TransitionRefused) as refused:
            await store.write(item)
        assert (refused.value.actual, refused.value.wanted) == (actual, wanted)
        assert await job_of(store, job.id) == job
        assert await events_of(store, job.id) == before
        assert await rows_of(store, tables.attempts, job.id) == []


async def test_a_life_leaves_its_events_in_order_and_one_end(store: Store) -> None:
    job = await running_job(store)
    await store.write(lambda tx: jobs.try_again(tx, job, Ending(Outcome.FAILED), 5, 6))
    job = await begin(store, await job_of(store, job.id), sent=True)
    await store.write(lambda tx: jobs.settle(tx, job, GOOD, job.timestamp + 9))

    assert await events_of(store, job.id) == [
        ("job.added", "PENDING", None),
        ("job.changed", "RUNNING", None),
        ("job.changed", "PENDING", None),
        ("job.changed", "RUNNING", None),
        ("job.changed", "FINISHED", "succeeded"),
    ]
    with pytest.raises(TransitionRefused):
        await store.write(lambda tx: jobs.settle(tx, replace(job, status=Status.FINISHED), GOOD, 9))
    with pytest.raises(TransitionRefused):
        await store.write(lambda tx: jobs.settle(tx, job, GOOD, 9))
    assert [kind for kind, status, _ in await events_of(store, job.id) if status in ENDED] == ["job.changed"]


async def test_an_attempt_that_is_not_the_newest_writes_nothing(store: Store) -> None:
    first = await running_job(store)
    await store.write(lambda tx: jobs.try_again(tx, first, Ending(Outcome.FAILED), 5, 5))
    await begin(store, await job_of(store, first.id), worker_id="w2")
    before = await job_of(store, first.id)

    for late in (
        lambda tx: jobs.settle(tx, first, GOOD, 9),
        lambda tx: jobs.try_again(tx, first, GOOD, 9, 9),
        lambda tx: jobs.note(tx, first.id, first.attempt, sent_at=9),
    ):
        with pytest.raises(LeaseLost):
            await store.write(late)

    assert await job_of(store, first.id) == before
    assert [row["number"] for row in await rows_of(store, tables.attempts, first.id)] == [1]


async def test_of_two_ends_at_once_one_wins(store: Store) -> None:
    job = await running_job(store)

    ends = await asyncio.gather(
        *(store.write(lambda tx: jobs.settle(tx, job, GOOD, 9)) for _ in range(20)), return_exceptions=True
    )

    assert sorted(type(end).__name__ for end in ends) == ["NoneType", *["TransitionRefused"] * 19]
    assert len([1 for _, status, _ in await events_of(store, job.id) if status == "FINISHED"]) == 1
    assert len(await rows_of(store, tables.attempts, job.id)) == 1


async def test_nothing_is_noted_on_a_job_that_has_ended(store: Store) -> None:
    job = await running_job(store)
    await store.write(lambda tx: jobs.settle(tx, job, GOOD, 9))

    with pytest.raises(LeaseLost):
        await store.write(lambda tx: jobs.note(tx, job.id, job.attempt, output_bytes=5))


async def test_a_begun_attempt_says_who_and_when_and_is_sent_only_if_so(store: Store) -> None:
    cold = await running_job(store, worker_id="w7")
    warm = await running_job(store, sent=True, transport=Transport.MQTT)

    assert (cold.status, cold.attempt, cold.worker_id, cold.sent_at) == (Status.RUNNING, 1, "w7", None)
    assert cold.started_at is not None
    assert cold.delivery is None
    assert warm.sent_at == warm.started_at
    assert warm.delivery is Delivery.QUEUED


@pytest.mark.parametrize("how", ["expired", "answered"])
async def test_a_job_that_waits_for_its_next_try_can_end(store: Store, how: str) -> None:
    job = await running_job(store)
    await store.write(lambda tx: jobs.try_again(tx, job, Ending(Outcome.FAILED), 5, 10**13))
    waiting = await job_of(store, job.id)
    ending = Ending(Outcome.EXPIRED, error_code="expired") if how == "expired" else GOOD

    await store.write(lambda tx: jobs.settle(tx, waiting, ending, 20))

    assert (await job_of(store, job.id)).outcome is ending.outcome
    assert [row["outcome"] for row in await rows_of(store, tables.attempts, job.id)] == ["failed"]


async def test_the_secrets_of_a_job_are_erased_when_it_ends(store: Store) -> None:
    job = await running_job(store, secret=b"sealed", data={"secret_args": ["pin"]})
    assert (await rows_of(store, tables.plans, job.id))[0]["secret"] == b"sealed"

    await store.write(lambda tx: jobs.settle(tx, job, GOOD, 9))

    assert (await rows_of(store, tables.plans, job.id))[0]["secret"] is None


@pytest.mark.parametrize("said", ["cut \x00 here", "half \ud800 a pair", "ü\n\x1b[31m"])
async def test_what_a_device_says_in_its_last_words_cannot_keep_a_job_from_ending(
    store: Store, said: str
) -> None:
    job = await running_job(store)
    ending = Ending(Outcome.LOST, error_code="badAnswer", error_message=said)

    await store.write(lambda tx: jobs.settle(tx, job, ending, 9))
    await store.write(lambda tx: jobs.log(tx, job.id, 9, "INFO", said))

    assert (await job_of(store, job.id)).outcome is Outcome.LOST


# --- one transaction, many items ------------------------------------------------------------------


async def test_a_refused_item_does_not_undo_its_neighbours(store: Store) -> None:
    bad = await running_job(store)
    await store.write(lambda tx: jobs.settle(tx, bad, GOOD, 9))

    def refused(tx: Transaction) -> None:
        insert_job(tx, label="half written")
        jobs.settle(tx, bad, GOOD, 9)

    items = [store.write(insert_job if number % 3 else refused) for number in range(60)]
    done = await asyncio.gather(*items, return_exceptions=True)

    ids = [result for result in done if isinstance(result, str)]
    assert len(ids) == 40
    assert [type(result) for result in done if not isinstance(result, str)] == [TransitionRefused] * 20
    labels = await store.read(lambda conn: conn.execute(select(tables.jobs.c.label)).scalars().all())
    assert "half written" not in labels
    assert len(labels) == 41
    for job_id in ids:
        assert await events_of(store, job_id) == [("job.added", "PENDING", None)]
        assert len(await rows_of(store, tables.plans, job_id)) == 1


async def test_an_item_that_fails_in_us_hurts_nobody_else(store: Store) -> None:
    def broken(tx: Transaction) -> None:
        insert_job(tx)
        raise ZeroDivisionError

    results = await asyncio.gather(
        store.write(insert_job), store.write(broken), store.write(insert_job), return_exceptions=True
    )

    assert isinstance(results[1], ZeroDivisionError)
    assert [type(results[0]), type(results[2])] == [str, str]
    assert sum((await counts(store)).values()) == 2


async def test_what_must_follow_a_commit_follows_it_and_only_then(store: Store) -> None:
    told: list[str] = []

    def good(tx: Transaction) -> None:
        tx.after_commit(lambda: told.append("good"))
        insert_job(tx)

    def bad(tx: Transaction) -> None:
        tx.after_commit(lambda: told.append("bad"))
        raise Conflict("no")

    done = await asyncio.gather(store.write(good), store.write(bad), return_exceptions=True)

    assert isinstance(done[1], Conflict)
    assert told == ["good"]


async def test_what_was_answered_is_there_for_the_next_read(store: Store) -> None:
    for _ in range(20):
        job = await add_job(store)
        assert await store.look(lambda conn, job=job: jobs.has_ended(conn, job.id)) is False


async def test_a_fact_is_made_once(store: Store) -> None:
    numbers = itertools.count()

    values = [
        await store.write(lambda tx: facts.remembered(tx, "client", lambda: f"id-{next(numbers)}"))
        for _ in range(3)
    ]

    assert values == ["id-0"] * 3


# --- custom results -------------------------------------------------------------------------------


async def test_fifty_appends_at_once_are_all_kept_each_with_its_own_place(store: Store) -> None:
    job = await add_job(store)

    entries = await asyncio.gather(
        *(store.write(lambda tx, n=n: jobs.append_result(tx, job, {"n": n}, "device", n)) for n in range(50))
    )

    rows = await rows_of(store, tables.results, job.id)
    assert [row["number"] for row in rows] == list(range(1, 51))
    assert sorted(row["payload"]["n"] for row in rows) == list(range(50))
    assert [entry["payload"]["n"] for entry in entries] == list(range(50))
    shown = await store.read(lambda conn: reads.job_record(conn, job.id, EVERYTHING))
    assert shown.results == [
        {"payload": row["payload"], "by": "device", "timestamp": row["payload"]["n"]} for row in rows
    ]
    assert [kind for kind, _, _ in await events_of(store, job.id)] == ["job.added", *["job.result"] * 50]


async def test_a_job_holds_a_thousand_results_and_not_one_more(store: Store) -> None:
    job = await add_job(store)

    def thousand(tx: Transaction) -> None:
        for number in range(1000):
            jobs.append_result(tx, job, {"n": number}, "u", number)

    await store.write(thousand)
    with pytest.raises(BadRequest, match="1000 custom results, which is the limit"):
        await store.write(lambda tx: jobs.append_result(tx, job, {"n": 1000}, "u", 1))

    assert (await job_of(store, job.id)).results_count == 1000
    assert len(await rows_of(store, tables.results, job.id)) == 1000


async def test_a_job_that_has_ended_still_takes_results(store: Store) -> None:
    job = await running_job(store)
    await store.write(lambda tx: jobs.settle(tx, job, GOOD, 9))

    await store.write(lambda tx: jobs.append_result(tx, job, {"late": True}, "d", 10))

    assert (await job_of(store, job.id)).results_count == 1
    assert (await job_of(store, job.id)).status is Status.FINISHED


async def test_a_list_shows_the_first_hundred_results_and_the_record_all(store: Store) -> None:
    job = await add_job(store)

    def many(tx: Transaction) -> None:
        for number in range(120):
            jobs.append_result(tx, job, {"n": number}, "u", number)

    await store.write(many)
    listed, _ = await store.read(
        lambda conn: reads.job_page(conn, JobFilter(), EVERYTHING, limit=5, cursor=None)
    )
    whole = await store.read(lambda conn: reads.job_record(conn, job.id, EVERYTHING))

    assert [entry["payload"]["n"] for entry in listed[0].results] == list(range(100))
    assert [entry["payload"]["n"] for entry in whole.results] == list(range(120))
    assert listed[0].job.results_count == 120


async def test_a_list_shows_no_more_of_a_jobs_results_than_64_kib(store: Store) -> None:
    job, other = await add_job(store), await add_job(store)

    def much(tx: Transaction) -> None:
        jobs.append_result(tx, other, {"n": 0}, "u", 1)
        for number in range(5):
            jobs.append_result(tx, job, {"n": number, "text": "x" * 20_000}, "u", number)

    await store.write(much)
    listed, _ = await store.read(
        lambda conn: reads.job_page(conn, JobFilter(), EVERYTHING, limit=5, cursor=None)
    )
    whole = await store.read(lambda conn: reads.job_record(conn, job.id, EVERYTHING))

    shown = {record.job.id: [entry["payload"]["n"] for entry in record.results] for record in listed}
    assert shown == {job.id: [0, 1, 2], other.id: [0]}
    assert [entry["payload"]["n"] for entry in whole.results] == list(range(5))


# --- lanes, tickets and moments -------------------------------------------------------------------


def ticket(job: Job) -> Ticket:
    return Ticket.of(job)


async def submit(store: Store, offered: Offered, **columns: Any) -> Job:
    """Insert a job as intake does: with its ticket, or behind what is ahead in its lane."""

    def item(tx: Transaction) -> str:
        row = job_row(**{**LANE, **columns})
        seq = jobs.insert_job(tx, row, plan(), None)
        if row.get("start_at") is None:
            rank = queue.rank_of(row.get("priority", 5), row.get("low_priority", False))
            queue.offer_if_free(tx, row["lane"], Ticket(rank, 0, seq, row["id"]), row["timestamp"], offered)
        return str(row["id"])

    return await job_of(store, await store.write(item))


async def finish(store: Store, offered: Offered, job: Job) -> None:
    def item(tx: Transaction) -> None:
        jobs.settle(tx, job, GOOD, clock.now_ms())
        queue.offer_next(tx, job.lane, clock.now_ms(), offered)

    await store.write(item)


async def test_a_lane_runs_one_at_a_time_the_first_by_priority_then_age(store: Store) -> None:
    offered = Offered()
    first = await submit(store, offered)
    waiting = [
        await submit(store, offered, priority=priority, low_priority=low)
        for priority, low in [
            (5, False),
            (9, True),
            (7, False),
            (5, False),
            (0, False),
            (7, False),
            (0, True),
        ]
    ]
    other = await submit(store, offered, lane="another")
    assert offered.ids == [first.id, other.id]
    assert [(await job_of(store, job.id)).pending_reason for job in waiting] == [PendingReason.LANE] * 7

    order = []
    current = first
    while True:
        order.append(current.id)
        offered.tickets.clear()
        await finish(store, offered, await begin(store, current))
        if not offered.ids:
            break
        assert len(offered.ids) == 1
        current = await job_of(store, offered.ids[0])
        assert current.pending_reason is None

    a, b, c, d, e, f, g = [job.id for job in waiting]
    assert order == [first.id, c, f, a, d, e, b, g]


async def test_a_busy_lane_loses_no_wake_up_however_submits_and_ends_meet(store: Store) -> None:
    offered = Offered()
    done: list[str] = []

    async def work() -> None:
        """Takes tickets as a worker does, until all thirty are through."""
        while len(done) < 30:
            if not offered.tickets:
                await asyncio.sleep(0)
                continue
            found = await job_of(store, offered.tickets.pop(0).job_id)
            active = await store.read(lambda conn: queue.lane_active(conn, OBJECT))
            assert not active, "two jobs of one lane at a time"
            job = await begin(store, found)
            await finish(store, offered, job)
            done.append(job.id)

    async with asyncio.timeout(9):
        _, *submitted = await asyncio.gather(work(), *(submit(store, offered) for _ in range(30)))

    assert sorted(done) == sorted(job.id for job in submitted)


async def test_a_job_for_later_blocks_nobody(store: Store) -> None:
    offered = Offered()
    later = await submit(store, offered, start_at=clock.now_ms() + 10**9, priority=9)
    now = await submit(store, offered)

    assert offered.ids == [now.id]
    offered.tickets.clear()
    await finish(store, offered, await begin(store, now))
    assert offered.ids == []

    moment = clock.now_ms()
    await store.write(lambda tx: queue.begin_waiting(tx, later, moment, offered))
    assert offered.ids == [later.id]
    assert (await job_of(store, later.id)).start_at is None


async def test_a_start_that_has_come_waits_for_its_lane(store: Store) -> None:
    offered = Offered()
    running = await begin(store, await submit(store, offered))
    later = await submit(store, offered, start_at=clock.now_ms() + 10**9)
    offered.tickets.clear()

    await store.write(lambda tx: queue.begin_waiting(tx, later, clock.now_ms(), offered))
    assert offered.ids == []
    assert (await job_of(store, later.id)).pending_reason is PendingReason.LANE

    await finish(store, offered, running)
    assert offered.ids == [later.id]


async def test_without_a_lane_every_job_is_offered_at_once(store: Store) -> None:
    offered = Offered()

    ids = [(await submit(store, offered, lane=None)).id for _ in range(3)]

    assert offered.ids == ids


async def test_the_sweep_finds_what_is_ready_one_a_lane_by_priority_and_age(store: Store) -> None:
    now = clock.now_ms()
    free = [await add_job(store, lane=None, priority=priority) for priority in (1, 8)]
    await add_job(store, lane=None, start_at=now + 10**9)
    due = await add_job(store, lane=None, start_at=now - 5, low_priority=True)
    await add_job(store, lane="a")
    first_of_a = await add_job(store, lane="a", priority=6)
    await add_job(store, lane="a", priority=6)
    await running_job(store, lane="b")
    await add_job(store, lane="b", priority=9)
    alone = await add_job(store, lane="c", low_priority=True)
    await add_job(store, lane="c", low_priority=True)
    ended = await running_job(store, lane=None)
    await store.write(lambda tx: jobs.settle(tx, ended, GOOD, now))

    found = await store.read(lambda conn: queue.ready(conn, now, 100))

    assert [entry.job_id for entry in found] == [free[1].id, first_of_a.id, free[0].id, due.id, alone.id]
    assert [entry.job_id for entry in sorted(found)] == [entry.job_id for entry in found]
    assert await store.read(lambda conn: queue.ready(conn, now, 2)) == found[:2]


async def test_the_clock_finds_what_is_due_earliest_first_and_nothing_else(store: Store) -> None:
    now = clock.now_ms()
    starts = [await add_job(store, start_at=now - ago) for ago in (5, 50)]
    await add_job(store, start_at=now + 10**6)
    lives = [await add_job(store, expires_at=now - ago) for ago in (7, 70)]
    parked = await running_job(store, sent=True, transport=Transport.MQTT, expires_at=now - 9)
    await store.write(lambda tx: jobs.note(tx, parked.id, 1, deadline_at=now - 3))
    await running_job(store)

    async def due(moment: str) -> list[str]:
        return [job.id for job in await store.read(lambda conn: queue.due(conn, moment, now))]

    assert await due("start_at") == [starts[1].id, starts[0].id]
    assert await due("expires_at") == [lives[1].id, lives[0].id]
    assert await due("deadline_at") == [parked.id]
    assert len(await store.read(lambda conn: queue.due(conn, "start_at", now, 1))) == 1


async def test_orphans_are_the_attached_attempts_of_others(store: Store) -> None:
    mine = await running_job(store, worker_id="me")
    theirs = [await running_job(store, worker_id="dead") for _ in range(2)]
    parked = await running_job(store, worker_id="dead")
    await store.write(lambda tx: jobs.note(tx, parked.id, 1, deadline_at=10**13))
    ended = await running_job(store, worker_id="dead")
    await store.write(lambda tx: jobs.settle(tx, ended, GOOD, 9))
    await add_job(store)

    found = await store.read(lambda conn: queue.orphans(conn, "me"))

    assert [job.id for job in found] == [job.id for job in theirs]
    assert mine.id not in [job.id for job in found]


async def test_orphans_that_are_to_be_ended_are_also_those_that_were_parked_just_before(store: Store) -> None:
    # On PostgreSQL the cancel has read its row before the parking was committed.
    parked = await running_job(store, sent=True, transport=Transport.MQTT, worker_id="dead")
    await store.write(lambda tx: jobs.note(tx, parked.id, 1, deadline_at=10**13))
    await store.write(lambda tx: jobs.ask(tx, parked, Status.CANCELING, 5, {"by": "u", "confirmed": None}))

    found = await store.read(lambda conn: queue.orphans(conn, "me", asked=True))

    assert [job.id for job in found] == [parked.id]


# --- idempotency keys -----------------------------------------------------------------------------


def digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


async def test_fifty_equal_submits_at_once_make_one_job(store: Store) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")
    same = {"key": "POST /x key-1", "body_digest": digest("{}")}

    ids = await asyncio.gather(*(engine.execute(owner, operation, **same) for _ in range(50)))

    assert len(set(ids)) == 1
    assert await counts(store) == {"PENDING": 1}
    with pytest.raises(IdempotencyMismatch):
        await engine.execute(owner, operation, key="POST /x key-1", body_digest=digest('{"priority":9}'))
    assert await engine.execute(owner, operation, **{**same, "key": "POST /x key-2"}) != ids[0]
    assert await Engine(store).execute(owner, operation, **same) == ids[0]


async def test_equal_keys_with_other_bodies_at_once_make_one_job_and_refuse_the_rest(store: Store) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")

    done = await asyncio.gather(
        *(
            engine.execute(owner, operation, key="POST /x k", body_digest=digest(str(n % 2)))
            for n in range(20)
        ),
        return_exceptions=True,
    )

    assert len({result for result in done if isinstance(result, str)}) == 1
    assert {type(result) for result in done} == {str, IdempotencyMismatch}
    assert len([result for result in done if isinstance(result, str)]) == 10


async def test_a_key_is_one_callers_own(store: Store) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")
    same = {"key": "POST /x k", "body_digest": digest("{}")}

    mine = await engine.execute(owner, operation, **same)
    yours = await engine.execute(owner, operation, **same, caller=replace(ADMIN, user_id="b" * 32))

    assert mine != yours


async def test_a_key_is_forgotten_after_a_day(store: Store) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")
    same = {"key": "POST /x k", "body_digest": digest("{}")}
    first = await engine.execute(owner, operation, **same)
    I = tables.idempotency.c  # noqa: E741
    await store.write(
        lambda tx: tx.conn.execute(update(tables.idempotency).values(at=I.at - 24 * 3600 * 1000 - 1))
    )
    await engine.execute(owner, operation, key="POST /x other", body_digest=digest("{}"))

    assert await engine.execute(owner, operation, **same) != first


class ChangesBetween:
    """A store in which somebody changes the operation between rendering and insert."""

    def __init__(self, store: Store, operation_id: str, times: int) -> None:
        self._store, self._operation_id, self.times = store, operation_id, times

    async def look(self, query: Any) -> Any:
        found = await self._store.look(query)
        if self.times and not isinstance(found, str):
            self.times -= 1
            P = tables.operations.c
            await self._store.write(
                lambda tx: tx.conn.execute(
                    update(tables.operations).where(P.id == self._operation_id).values(version=P.version + 1)
                )
            )
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("key", [None, "POST /x k"])
async def test_an_operation_that_changes_meanwhile_is_rendered_again(store: Store, key: str | None) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")
    engine.intake._store = ChangesBetween(store, operation, times=2)

    job = await job_of(store, await engine.execute(owner, operation, key=key, body_digest=digest("{}")))

    assert job.operation_version == 3
    assert await counts(store) == {"PENDING": 1}


async def test_an_operation_that_never_stands_still_is_a_conflict_and_leaves_nothing(store: Store) -> None:
    engine = Engine(store)
    owner, operation = await engine.script("true")
    engine.intake._store = ChangesBetween(store, operation, times=99)

    with pytest.raises(Conflict):
        await engine.execute(owner, operation, key="POST /x k", body_digest=digest("{}"))

    assert await counts(store) == {}
    engine.intake._store = store
    assert await job_of(
        store, await engine.execute(owner, operation, key="POST /x k", body_digest=digest("{}"))
    )


# --- output ---------------------------------------------------------------------------------------


async def test_output_is_read_from_any_byte_in_order_and_a_gap_is_seen(store: Store) -> None:
    job = await running_job(store)
    pieces = [(0, 0, b"ab"), (2, 2, b"cde"), (3, 5, b"f"), (7, 20, b"tail")]
    chunks = [Chunk(number, "stdout", position, data) for number, position, data in pieces]
    await store.write(lambda tx: output.append(tx, job.id, 1, [*chunks, Chunk(1, "stderr", 0, b"\xff")]))

    def read(start: int) -> list[tuple[int, bytes]]:
        return [(chunk.position, chunk.data) for chunk in chunks if chunk.position + len(chunk.data) > start]

    for start in (0, 1, 2, 5, 6, 23, 24):
        found = await store.read(lambda conn, start=start: output.page(conn, job.id, 1, "stdout", start))
        assert [(chunk.position, chunk.data) for chunk in found] == read(start)
    assert await store.read(lambda conn: output.extent(conn, job.id, 1, "stdout")) == [(0, 6), (20, 24)]
    assert await store.read(lambda conn: output.extent(conn, job.id, 1, "stderr")) == [(0, 1)]
    begun = await store.read(lambda conn: output.beginnings(conn, [(job.id, 1)], 1024))
    assert begun[job.id, "stdout"] == output.Text("abcdef", whole=False)
    assert begun[job.id, "stderr"] == output.Text("\ufffd", whole=True)

    await store.write(lambda tx: output.drop(tx, job.id, 1, [2, 3]))
    assert await store.read(lambda conn: output.extent(conn, job.id, 1, "stdout")) == [(0, 2), (20, 24)]


async def test_a_beginning_is_cut_between_characters(store: Store) -> None:
    job = await running_job(store)
    await store.write(lambda tx: output.append(tx, job.id, 1, [Chunk(0, "stdout", 0, "aüü".encode())]))

    for limit, expected in ((1, "a"), (2, "a"), (3, "aü"), (4, "aü"), (5, "aüü")):
        found = await store.read(lambda conn, n=limit: output.beginnings(conn, [(job.id, 1)], n))
        assert found[job.id, "stdout"] == output.Text(expected, whole=limit == 5)


# --- reads ----------------------------------------------------------------------------------------


async def test_a_job_is_found_by_id_and_by_seq_within_the_scope(store: Store) -> None:
    job = await add_job(store, run_by_id="b" * 32)

    def found(reference: str, scope: Scope = EVERYTHING) -> Any:
        return store.read(lambda conn: reads.job_by_reference(conn, reference, scope))

    assert await found(job.id) == job
    assert await found(str(job.seq)) == job
    assert await found(job.id, Scope(jobs_of="b" * 32)) == job
    for reference in (job.id, str(job.seq)):
        with pytest.raises(NotFound):
            await found(reference, Scope(jobs_of="c" * 32))
    for reference in ("", "x", job.id.upper() + "g", "-1", "1.0", "١٢", "9" * 19, job.id + "0"):
        with pytest.raises(BadRequest):
            await found(reference)


async def test_pages_hold_every_job_once_newest_first_also_within_one_millisecond(store: Store) -> None:
    moments = [1000, 1000, 1000, 2000, 2000, 3000, 500, 500, 1000]
    made = [await add_job(store, timestamp=moment) for moment in moments]
    expected = [job.id for job in sorted(made, key=lambda job: (-job.timestamp, -job.seq))]

    for limit in (1, 2, 4, 9, 50):
        cursor, seen, pages = None, [], 0
        while True:
            page, cursor = await store.read(
                lambda conn, limit=limit, cursor=cursor: reads.job_page(
                    conn, JobFilter(), EVERYTHING, limit=limit, cursor=cursor
                )
            )
            seen += [record.job.id for record in page]
            pages += 1
            if cursor is None:
                break
        assert seen == expected
        assert pages == -(-len(made) // limit)


@pytest.mark.parametrize("cursor", ["", "x", "é", "MTA", "Ojo", "OTk6", "A" * 200, "LTE6MQ=="])
async def test_a_cursor_that_is_not_ours_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(BadRequest):
        await store.read(lambda conn: reads.job_page(conn, JobFilter(), EVERYTHING, limit=5, cursor=cursor))


async def test_a_cursor_with_numbers_that_no_database_holds_is_refused(store: Store) -> None:
    import base64

    cursor = base64.urlsafe_b64encode(b"9" * 40 + b":1").decode()

    with pytest.raises(BadRequest):
        await store.read(lambda conn: reads.job_page(conn, JobFilter(), EVERYTHING, limit=5, cursor=cursor))


LISTS = {
    "owner and status": (JobFilter(status=["FINISHED"], owner_id=OBJECT), EVERYTHING, "job_owner_status"),
    "owner": (JobFilter(owner_id=OBJECT), EVERYTHING, "job_owner"),
    "operation": (JobFilter(operation_id="p" * 32), EVERYTHING, "job_operation"),
    "status": (JobFilter(status=["PENDING"]), EVERYTHING, "job_status"),
    "of a user": (JobFilter(), Scope(jobs_of=ADMIN.user_id), "job_run_by"),
    "all": (JobFilter(), EVERYTHING, "job_created"),
}


async def fill(store: Store, count: int = 3000) -> None:
    """Many jobs of many owners, and statistics about them."""

    def item(tx: Transaction) -> None:
        columns = jobs._DEFAULTS
        rows = []
        for number in range(count):
            ended = number % 10 != 0
            rows.append(
                {
                    **columns,
                    **job_row(
                        timestamp=10**12 + number, owner_id=f"{number % 50:032x}", lane=f"{number % 50:032x}"
                    ),
                    "operation_id": f"{number % 60}" if number % 60 else "p" * 32,
                    "run_by_id": f"{number % 70}" if number % 70 else ADMIN.user_id,
                    "status": "FINISHED" if ended else ("PENDING", "RUNNING")[number // 10 % 2],
                    "outcome": "succeeded" if ended else None,
                }
            )
        tx.conn.execute(insert(tables.jobs), rows)

    await store.write(item)
    await store.write(lambda tx: tx.conn.execute(text("ANALYZE")))


async def explained(store: Store, query: Any) -> str:
    """The plan of the first statement that a query executes."""
    statements: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    hands_over = statements_of_store.run

    def hand_over(conn: Connection, sql: str, values: Any = (), **how: Any) -> Any:
        statements.append((sql, tuple(values)))
        return hands_over(conn, sql, values, **how)

    def run(conn: Connection) -> str:
        # `Prepared` goes past SQLAlchemy's events; SQLite itself tells the values too.
        sqlite = conn.connection.dbapi_connection if conn.dialect.name == "sqlite" else None
        if sqlite is not None:
            sqlite.set_trace_callback(lambda statement: statements.append((statement, ())))
        event.listen(conn, "before_cursor_execute", note)
        try:
            with mock.patch.object(statements_of_store, "run", hand_over):
                query(conn)
        finally:
            event.remove(conn, "before_cursor_execute", note)
            if sqlite is not None:
                sqlite.set_trace_callback(None)
        statement, parameters = next(
            told
            for told in statements
            if told[0].lstrip().upper().startswith("SELECT") and (sqlite is None or "?" not in told[0])
        )
        how = "EXPLAIN QUERY PLAN " if sqlite is not None else "EXPLAIN "
        return "\n".join(str(row) for row in conn.exec_driver_sql(how + statement, parameters))

    return await store.read(run)


async def test_every_list_of_jobs_uses_its_index_and_sorts_nothing(store: Store) -> None:
    await fill(store)
    for name, (wanted, scope, index) in LISTS.items():
        shown = await explained(
            store,
            lambda conn, wanted=wanted, scope=scope: reads.job_page(
                conn, wanted, scope, limit=50, cursor=None
            ),
        )

        assert index in shown, (name, shown)
        assert "TEMP B-TREE" not in shown, (name, shown)
        assert "Seq Scan" not in shown, (name, shown)


async def test_every_list_of_traces_uses_its_index_and_sorts_nothing(store: Store) -> None:
    def item(tx: Transaction) -> None:
        rows = [
            {
                "cause_key": f"{number}",
                "trigger_id": f"t{number % 60}",
                "trigger_name": "t",
                "owner_id": f"o{number % 50}",
                "owner_type": 1,
                "state_change_id": f"c{number // 10}",
                "state": "alarm",
                "decision": "fired" if number % 97 == 0 else "not_in_states",
                "reason": "",
                "job_id": f"j{number}",
                "at": 10**12 + number,
            }
            for number in range(5000)
        ]
        tx.conn.execute(insert(traces), rows)

    await store.write(item)
    await store.write(lambda tx: tx.conn.execute(text("ANALYZE")))
    asked = {"owner": {"owner_id": "o7"}, "trigger": {"trigger_id": "t7"}, "decision": {"decision": "fired"}}
    for name, wanted in asked.items():
        shown = await explained(
            store, lambda conn, wanted=wanted: rules.trace_rows(conn, limit=50, before=4000, **wanted)
        )

        assert f"trigger_trace_{name}" in shown, (name, shown)
        assert "TEMP B-TREE" not in shown, (name, shown)
        assert "Seq Scan" not in shown, (name, shown)


async def test_the_clocks_and_the_lanes_questions_use_their_indexes(store: Store) -> None:
    await fill(store)
    questions = {
        f"job_{moment}": lambda conn, moment=moment: queue.due(conn, moment, 5) for moment in tables.DUE
    } | {
        "job_lane": lambda conn: queue.lane_active(conn, f"{7:032x}"),
        "job_unproven": lambda conn: queue.unproven(conn, "w", of_the_dead=True),
    }
    for index, question in questions.items():
        shown = await explained(store, question)

        assert index in shown, (index, shown)


async def test_a_store_may_be_started_and_stopped_twice(store_url: str) -> None:
    from iotjobs.domain.errors import StoreUnavailable
    from iotjobs.store.session import open_store

    store = open_store(store_url)
    await store.stop()
    await store.start()
    await store.start()
    job = await add_job(store)
    await store.stop()
    await store.stop()
    if isinstance(store, SqliteStore):
        with pytest.raises(StoreUnavailable):
            await store.write(insert_job)
    await store.start()
    assert (await job_of(store, job.id)).status is Status.PENDING
    await store.stop()


async def test_the_values_of_a_statement_that_fails_are_in_no_error(store: Store) -> None:
    def by_core(tx: Transaction) -> None:
        tx.conn.execute(text("INSERT INTO nowhere (a) VALUES (:a)"), {"a": "canary-4711"})

    def by_driver(tx: Transaction) -> None:
        row = {"name": "canary-4711", "value": "canary-4711"}
        for _ in range(2):
            Prepared(insert(tables.site), ("name", "value")).insert_all(tx.conn, [row])

    for item in (by_core, by_driver):
        with pytest.raises(Exception) as refused:
            await store.write(item)
        told: BaseException | None = refused.value
        while told is not None:
            if isinstance(told, DBAPIError):
                assert "canary-4711" not in str(told).partition("DETAIL")[0]
            told = told.__cause__

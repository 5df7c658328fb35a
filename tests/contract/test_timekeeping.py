"""A clock that is set, forwards and backwards, running and stopped: on both databases."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Job
from iotjobs.domain.periods import DAYS
from iotjobs.domain.statuses import Status
from iotjobs.engine import timekeeping as module
from iotjobs.engine.happenings import Looked, Written
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.rescue import rescue
from iotjobs.engine.timekeeping import LEAP_MS, QUICK_MS, Timekeeper
from iotjobs.engine.timers import Timers
from iotjobs.store import jobs, moments, nodes, rules, tables, tickets
from iotjobs.store.moments import Mark
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.store.standings import waking
from iotjobs.store.state_tables import firings, standings, trigger_timers
from iotjobs.store.writer import Transaction
from tests.services.rows import ADMIN, Engine, Failing, add_job, begin, job_of, running_job

DAY, HOUR = 86_400_000, 3_600_000
SetClock = Callable[[int], None]


@pytest.fixture
def set_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[SetClock]:
    """Sets the clock that the store goes by, so many milliseconds from the true moment."""
    ahead = 0

    def clock_ms(conn: Connection) -> int:
        return truth(conn) + ahead

    def set_to(by_ms: int) -> None:
        nonlocal ahead
        ahead = by_ms

    before = clock._ahead_ns
    truth = nodes.clock_ms
    monkeypatch.setattr(nodes, "clock_ms", clock_ms)
    yield set_to
    clock._ahead_ns = before


async def waiting_jobs(store: Store) -> dict[str, Job]:
    """One of each kind of waiting, and one that has ended; all of them a minute from now."""
    soon = clock.now_ms() + 60_000
    parked, done = await running_job(store, sent=True), await running_job(store)
    J = tables.jobs.c
    await store.write(
        lambda tx: tx.conn.execute(update(tables.jobs).where(J.id == parked.id).values(deadline_at=soon))
    )
    finished = {"status": Status.FINISHED, "expires_at": soon}
    await store.write(lambda tx: tx.conn.execute(update(tables.jobs).where(J.id == done.id).values(finished)))
    made = {
        "start": await add_job(store, start_at=soon, expires_at=soon + 60_000),
        "life": await add_job(store, expires_at=soon),
        "parked": parked,
        "done": done,
    }
    return {name: await job_of(store, job.id) for name, job in made.items()}


def to_come(job: Job) -> list[int | None]:
    return [job.start_at, job.expires_at, job.deadline_at]


def moved(job: Job, by: int) -> list[int | None]:
    return [None if moment is None else moment + by for moment in to_come(job)]


def near(found: list[int | None], expected: list[int | None]) -> bool:
    return all(
        (a is None) == (b is None) and abs((a or 0) - (b or 0)) < 300
        for a, b in zip(found, expected, strict=True)
    )


async def begun(store: Store, standing: Standing | None = None) -> Timekeeper:
    """One that has taken the time from the store's clock."""
    keeper = Timekeeper(store, standing or Always())
    await keeper.begin()
    return keeper


MOVED = ("start", "life", "parked")


@pytest.mark.parametrize("by", [DAY, -DAY, 5_000, -5_000])
async def test_what_is_to_come_moves_with_a_clock_that_is_set(
    store: Store, set_clock: SetClock, by: int
) -> None:
    jobs, keeper = await waiting_jobs(store), await begun(store)
    key = {"scope": "s", "body": "b", "job_id": "j", "at": 10**12}
    await store.write(lambda tx: tx.conn.execute(insert(tables.idempotency), key))
    await keeper.look()
    before = clock.now_ms()

    set_clock(by)
    assert clock.now_ms() - before < 1000  # ours goes on as before, until everything moves at once
    await keeper.look()

    assert abs(clock.now_ms() - before - by) < 2000
    for name in MOVED:
        assert near(to_come(await job_of(store, jobs[name].id)), moved(jobs[name], by)), name
    assert to_come(await job_of(store, jobs["done"].id)) == to_come(jobs["done"])
    kept = await store.read(lambda conn: conn.execute(tables.idempotency.select()).one())
    assert abs(kept.at - 10**12 - by) < 300
    await keeper.look()  # and it is the same clock from now on
    assert near(to_come(await job_of(store, jobs["life"].id)), moved(jobs["life"], by))


async def test_a_little_is_followed_and_moves_nothing(store: Store, set_clock: SetClock) -> None:
    jobs, keeper = await waiting_jobs(store), await begun(store)
    before = clock.now_ms()

    set_clock(LEAP_MS - 100)
    await keeper.look()

    assert clock.now_ms() - before >= LEAP_MS - 200
    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_while_nothing_can_be_written_ours_goes_on_as_before(store: Store, set_clock: SetClock) -> None:
    jobs = await waiting_jobs(store)
    failing = Failing(store, [StorageFull("full"), StoreUnavailable("away")])
    keeper = await begun(failing)  # type: ignore[arg-type]
    before = clock.now_ms()
    set_clock(DAY)

    for _ in range(2):
        await keeper.look()
        assert clock.now_ms() - before < 5000
        assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])
    await keeper.look()

    assert clock.now_ms() - before >= DAY - 1000
    assert near(to_come(await job_of(store, jobs["life"].id)), moved(jobs["life"], DAY))


class Node(Always):
    """One of several processes, with a clock of its own: `look` is made by that."""

    another_leads = True

    def __init__(self) -> None:
        self.leads = False
        self.ahead_ns = clock._ahead_ns

    @classmethod
    async def joins(cls, store: Store) -> Node:
        """A process starts."""
        node = cls()
        node.keeper = Timekeeper(store, node)
        await node._under_its_clock(node.keeper.begin)
        return node

    keeper: Timekeeper

    async def look(self) -> None:
        """Its timekeeper's."""
        await self._under_its_clock(self.keeper.look)

    async def _under_its_clock(self, act: Callable[[], Awaitable[None]]) -> None:
        clock._ahead_ns, ours = self.ahead_ns, clock._ahead_ns
        try:
            await act()
        finally:
            self.ahead_ns, clock._ahead_ns = clock._ahead_ns, ours

    def ahead_ms(self) -> int:
        """How far its clock is from ours."""
        return (self.ahead_ns - clock._ahead_ns) // 1_000_000


async def are_moved(store: Store, jobs: dict[str, Job], by: int) -> bool:
    """Whether everything to come was moved by so much."""
    return all([near(to_come(await job_of(store, jobs[name].id)), moved(jobs[name], by)) for name in MOVED])


async def test_who_does_not_lead_goes_on_by_the_old_clock_until_everything_was_moved(
    store: Store, set_clock: SetClock
) -> None:
    leader, other = await Node.joins(store), await Node.joins(store)
    leader.leads, jobs = True, await waiting_jobs(store)
    set_clock(DAY)

    await other.look()
    assert abs(other.ahead_ms()) < 300
    await leader.look()
    await other.look()

    assert abs(other.ahead_ms() - DAY) < 300
    assert abs(leader.ahead_ms() - DAY) < 300
    assert await are_moved(store, jobs, DAY)


async def test_by_a_clock_that_has_not_followed_a_move_no_wait_is_over(
    store: Store, set_clock: SetClock
) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, "hold_s": 60})
    leader, listener = await Node.joins(store), await Node.joins(store)
    leader.leads = True
    await engine.report(owner_id, t=9)
    set_clock(-DAY)
    await leader.look()
    timers = Timers(store, engine.reactions, Always(), is_behind=listener.keeper.is_behind)

    async def look() -> None:
        assert await timers.look() == 0

    await listener._under_its_clock(look)  # by it all of the day that the clock was put back by is over
    await listener.look()
    await listener._under_its_clock(look)

    traces = await store.read(lambda conn: rules.trace_rows(conn, limit=9, owner_id=owner_id))
    assert [trace.decision for trace in traces] == ["held"]


@pytest.mark.parametrize("by", [DAY, -DAY])
@pytest.mark.parametrize("moved_by_the_old", [True, False])
async def test_a_leader_that_changes_after_a_leap_moves_everything_once(
    store: Store, set_clock: SetClock, by: int, moved_by_the_old: bool
) -> None:
    old, new = await Node.joins(store), await Node.joins(store)
    old.leads, jobs = True, await waiting_jobs(store)
    set_clock(by)
    if moved_by_the_old:
        await old.look()  # and the other has not looked yet
    else:
        await new.look()  # and the old one dies before it looks
    old.leads, new.leads = False, True

    for _ in range(2):
        await new.look()
        await old.look()

    assert await are_moved(store, jobs, by)
    assert abs(new.ahead_ms() - by) < 300
    assert abs(old.ahead_ms() - by) < 300


async def test_who_joins_between_a_leap_and_its_move_moves_nothing_for_it(
    store: Store, set_clock: SetClock
) -> None:
    leader, jobs = await Node.joins(store), await waiting_jobs(store)
    leader.leads = True
    set_clock(DAY)
    joined = await Node.joins(store)
    await leader.look()
    await joined.look()
    leader.leads, joined.leads = False, True

    set_clock(2 * DAY)
    for node in (leader, joined, leader):
        await node.look()

    assert await are_moved(store, jobs, 2 * DAY)
    assert abs(leader.ahead_ms() - 2 * DAY) < 300


async def test_a_move_whose_commit_nobody_heard_of_is_not_made_again(
    store: Store, set_clock: SetClock
) -> None:
    class Deaf:
        def __init__(self) -> None:
            self.errors = [StoreUnavailable("the connection was cut")]

        async def write(self, item: Any) -> Any:
            result = await store.write(lambda tx: item(Transaction(tx.conn)))
            if self.errors:
                raise self.errors.pop()
            return result

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    jobs, keeper = await waiting_jobs(store), await begun(Deaf())  # type: ignore[arg-type]
    before = clock.now_ms()
    set_clock(DAY)

    for _ in range(3):
        await keeper.look()

    assert abs(clock.now_ms() - before - DAY) < 2000
    assert await are_moved(store, jobs, DAY)


async def test_a_clock_that_was_set_back_and_followed_is_not_followed_again_at_the_next_start(
    store: Store, set_clock: SetClock
) -> None:
    jobs, keeper = await waiting_jobs(store), await begun(store)
    set_clock(-DAY)
    await keeper.look()

    await begun(store)  # the newest event is of the old time

    assert await are_moved(store, jobs, -DAY)
    set_clock(-2 * DAY)
    await begun(store)
    assert await are_moved(store, jobs, -2 * DAY)


async def test_what_a_node_is_off_by_when_it_starts_is_no_leap(
    store: Store, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await waiting_jobs(store)
    set_clock(5_000)
    with monkeypatch.context() as slow:
        slow.setattr(module, "QUICK_MS", 0)  # its first look took long
        keeper = await begun(store)
    clock._ahead_ns -= 3_000_000_000  # so what it found was not exact

    await keeper.look()

    assert await are_moved(store, jobs, 0)


async def test_a_stopped_job_has_its_whole_time_to_live_whatever_the_clock_did(
    store: Store, set_clock: SetClock
) -> None:
    keeper = await begun(store)
    waiting = await add_job(store, ttl_ms=60_000, expires_at=clock.now_ms() + 60_000)
    set_clock(DAY)
    await keeper.look()
    job = await begin(store, await job_of(store, waiting.id))
    set_clock(3 * DAY)
    await keeper.look()

    def stop(tx: Transaction) -> None:
        jobs.ask(tx, job, Status.STOPPING, clock.now_ms())
        jobs.set_aside(tx, replace(job, status=Status.STOPPING), clock.now_ms())

    before = clock.now_ms()
    await store.write(stop)

    expires_at = (await job_of(store, job.id)).expires_at
    assert before + 60_000 <= expires_at <= clock.now_ms() + 60_000


@pytest.mark.parametrize("by", [DAY, -DAY])
@pytest.mark.parametrize("stopped", [True, False])
async def test_a_job_that_ran_when_the_clock_was_set_has_the_rest_of_its_life_for_its_next_attempt(
    store: Store, set_clock: SetClock, by: int, stopped: bool
) -> None:
    engine, keeper = Engine(store), await begun(store)
    made = time.monotonic()
    job = await running_job(store, worker_id="dead", expires_at=clock.now_ms() + 60_000)
    set_clock(by)
    await (begun(store) if stopped else keeper.look())

    # Nothing was sent: it waits for its next attempt.
    assert await rescue(store, engine.settler, engine.leftovers, "w1") == 1
    await engine.deadlines.look()

    row = await job_of(store, job.id)
    await engine.stop()
    assert (row.status, row.outcome) == (Status.PENDING, None)
    took_ms = (time.monotonic() - made) * 1000
    assert 60_000 - took_ms - 300 < row.expires_at - clock.now_ms() < 60_300


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_ticket_that_a_dead_node_picked_is_not_hidden_by_a_clock_set_back(
    store: Store, set_clock: SetClock
) -> None:
    keeper, job = await begun(store), await add_job(store)
    await store.write(lambda tx: tickets.offer(tx, [Ticket.of(job)]))
    set_clock(-DAY)
    query = "SELECT extract(epoch FROM now() - heartbeat) FROM iotjobs_q.iotjobs_pgqueuer"

    await keeper.look()

    silent_s = await store.read(lambda conn: conn.exec_driver_sql(query).scalar_one())
    assert abs(float(silent_s) - DAY / 1000) < 10


async def test_who_leads_no_more_moves_nothing(store: Store, set_clock: SetClock) -> None:
    class Late(Always):
        def check(self, tx: Transaction) -> None:
            raise LeaseLost("taken over")

    jobs, keeper = await waiting_jobs(store), await begun(store, Late())
    set_clock(DAY)

    await keeper.look()

    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_an_answer_that_took_long_says_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, keeper = await waiting_jobs(store), await begun(store)
    times = iter([1000, 1000 + QUICK_MS])

    monkeypatch.setattr(nodes, "clock_ms", lambda _: DAY)
    monkeypatch.setattr(clock, "now_ms", lambda: next(times))
    await keeper.look()
    monkeypatch.undo()

    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_a_clock_that_went_back_while_stopped_makes_nothing_wait_longer(
    store: Store, set_clock: SetClock
) -> None:
    jobs = await waiting_jobs(store)
    set_clock(-DAY)

    await Timekeeper(store, Always()).begin()

    now = clock.now_ms()
    for name in ("start", "life", "parked"):
        job = await job_of(store, jobs[name].id)
        remains = [moment - now for moment in to_come(job) if moment is not None]
        assert all(50_000 < left <= 120_000 for left in remains), (name, remains)


class Undecided(Always):
    """Nobody leads yet: who did is dead, and its lease lasts on."""

    leads = False


@pytest.mark.parametrize("ours", [True, False])
async def test_who_leads_in_the_end_moves_what_a_clock_put_back_while_stopped_would_keep_waiting(
    store: Store, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    jobs, standing = await waiting_jobs(store), Undecided()
    set_clock(-DAY)

    async def decided(_seconds: float) -> None:
        setattr(standing, "leads" if ours else "another_leads", True)

    monkeypatch.setattr(clock, "sleep", decided)
    await Timekeeper(store, standing).begin()

    remains_s = ((await job_of(store, jobs["life"].id)).expires_at - clock.now_ms()) / 1000
    assert (remains_s < 120) == ours, remains_s


async def test_a_clock_that_went_on_while_stopped_makes_everything_due_and_moves_nothing(
    store: Store, set_clock: SetClock
) -> None:
    jobs = await waiting_jobs(store)
    set_clock(DAY)

    await Timekeeper(store, Always()).begin()

    for name, job in jobs.items():
        assert to_come(await job_of(store, job.id)) == to_come(job), name
    assert clock.now_ms() > (jobs["life"].expires_at or 0)


async def test_a_hold_that_is_over_stays_over_though_nothing_else_of_the_entity_is_to_come(
    store: Store, set_clock: SetClock
) -> None:
    engine = Engine(store)
    owner_id = await engine.thing()
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5", "hold_s": 60})
    await engine.happens(owner_id, Written({"t": 9}, ADMIN))  # so nothing was ever heard of it
    [key] = await store.read(lambda conn: conn.execute(select(standings.c.holding)).scalar_one())
    over = update(standings).values(holding={key: clock.now_ms() - 61_000})
    await store.write(lambda tx: tx.conn.execute(over))
    await engine.happens(owner_id, Looked())
    timekeeper = Timekeeper(store, Always())
    await timekeeper.begin()

    set_clock(-DAY)
    await timekeeper.look()
    await engine.happens(owner_id, Looked())

    standing = await store.read(lambda conn: conn.execute(select(standings)).one())
    assert (standing.state, standing.wake_at) == ("alarm", None)
    await engine.stop()


async def test_an_empty_store_begins_and_its_own_clock_is_the_systems(store: Store) -> None:
    await Timekeeper(store, Always()).begin()

    assert await store.read(moments.newest) is None
    assert abs(await store.read(nodes.clock_ms) - time.time() * 1000) < 2000

    made = await store.write(lambda tx: moments.shift(tx, 5, Mark(), 1))
    assert made == await store.read(moments.mark) == Mark(5, 1)
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: moments.shift(tx, 5, Mark(), 1))


async def test_holds_silence_and_forced_states_go_on_as_before(store: Store, set_clock: SetClock) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    await store.write(lambda tx: tx.conn.execute(update(tables.objects).values(no_data_after_s=600.0)))
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5", "hold_s": 60})
    await engine.triggers(owner_id, {"states": ["working"], "operation_id": operation_id, "hold_s": 300})
    await engine.report(owner_id, t=9)
    timekeeper = Timekeeper(store, Always())
    await timekeeper.begin()

    def remaining(conn: Connection) -> list[int]:
        now, standing = clock.now_ms(), conn.execute(select(standings)).one()
        due = conn.execute(select(trigger_timers.c.due_at)).scalar_one()
        moments_ = [standing.wake_at, standing.heard_at, *standing.holding.values(), due]
        return [round((moment - now) / 1000) for moment in moments_]

    expected = pytest.approx([60, 0, 0, 300], abs=5)  # a busy machine takes its time, but not a day
    assert await store.read(remaining) == expected
    for by in (DAY, -DAY):
        set_clock(by)
        await timekeeper.look()
        await engine.happens(owner_id, Looked())  # as it is due for, at once
        assert await store.read(remaining) == expected
    await engine.stop()


async def test_the_edge_of_a_period_comes_when_the_clock_that_was_set_says_so(
    store: Store, set_clock: SetClock
) -> None:
    engine = Engine(store)
    owner_id = await engine.thing()
    timekeeper = Timekeeper(store, Always())
    await timekeeper.begin()
    soon = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(hours=2)
    edges = {"from": f"{soon:%H:%M:%S}", "to": f"{soon + timedelta(hours=2):%H:%M:%S}"}
    period = {"days": list(DAYS), **edges, "zone": "UTC"}
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80", "period": period})
    await engine.report(owner_id, t=90)

    async def state() -> str:
        for owner_type, entity_id in await store.read(lambda conn: waking(conn, clock.now_ms(), 9)):
            await engine.happens(entity_id, Looked(), owner_type)
        return str(await store.read(lambda conn: conn.execute(select(standings.c.state)).scalar_one()))

    assert await state() == "working"
    for by, expected in ((3 * HOUR, "alarm"), (0, "working")):
        set_clock(by)
        await timekeeper.look()
        assert await state() == expected
    await engine.stop()


@pytest.mark.parametrize(("by", "stopped"), [(DAY, False), (-DAY, False), (-DAY, True)])
async def test_a_cooldown_and_a_rate_go_on_as_before(
    store: Store, set_clock: SetClock, by: int, stopped: bool
) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    given = {"states": ["alarm"], "operation_id": operation_id}
    limits = [{"cooldown_s": 3600}, {"max_per_hour": 2}]
    await engine.triggers(owner_id, *({**given, **limit} for limit in limits))
    timekeeper = Timekeeper(store, Always())
    await timekeeper.begin()

    async def decided() -> list[str]:
        """What both make of an alarm."""
        await engine.report(owner_id, t=9)
        found = await store.read(lambda conn: rules.trace_rows(conn, limit=2, owner_id=owner_id))
        await engine.report(owner_id, t=1)
        return [trace.decision for trace in reversed(found)]

    assert await decided() == ["fired", "fired"]
    set_clock(by)
    if stopped:
        await Timekeeper(store, Always()).begin()
    else:
        await timekeeper.look()
    assert await decided() == ["cooling_down", "fired"]
    assert await decided() == ["cooling_down", "rate_limited"]
    hour = 3_600_000
    await store.write(lambda tx: tx.conn.execute(update(firings).values(at=firings.c.at - hour)))
    assert await decided() == ["fired", "fired"]
    await engine.stop()

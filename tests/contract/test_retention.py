"""What is kept, what is deleted, and what the records say of it, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select, update

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, NotFound, StorageFull
from iotjobs.domain.jobs import Ending, Job, PendingReason
from iotjobs.domain.rights import EVERYTHING
from iotjobs.domain.states import Forced
from iotjobs.domain.statuses import Outcome
from iotjobs.domain.triggers import Decision
from iotjobs.engine import replays
from iotjobs.engine import retention as module
from iotjobs.engine.happenings import Said
from iotjobs.engine.leases import Always
from iotjobs.engine.replays import Span
from iotjobs.engine.retention import DAY_MS, Keep, Retention
from iotjobs.engine.timers import Timers
from iotjobs.inputs.job_shapes import job_json
from iotjobs.store import definitions, events, jobs, output, reads, retention, rules, standings, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.output import Chunk
from iotjobs.store.session import Store
from iotjobs.store.state_tables import property_history, state_changes, traces, trigger_timers
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, Failing, add_job, job_of, rows_of, running_job
from tests.services.site import eventually

LONG = {"output_days": 10_000, "output_bytes": 10**12, "logs_days": 10_000}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


async def ended(store: Store, days_ago: float, said: bytes = b"", **columns: Any) -> Job:
    """A job that ended so many days ago, and what it wrote."""
    at = clock.now_ms() - int(days_ago * DAY_MS)
    job = await running_job(store, timestamp=at - 10, **columns)

    def item(tx: Transaction) -> None:
        output.append(tx, job.id, 1, [Chunk(0, "stdout", 0, said)] if said else [])
        jobs.log(tx, job.id, at, "INFO", "said something")
        jobs.append_result(tx, job, {"a": 1}, "u", at)
        jobs.settle(tx, job, Ending(Outcome.SUCCEEDED, exit_code=0), at, output_bytes=len(said))

    await store.write(item)
    return await job_of(store, job.id)


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def prune(store: Store, **keep: Any) -> dict[str, int]:
    return dict(await Retention(store, Keep(**{**LONG, **keep})).prune())


async def kept(store: Store, *jobs_: Job) -> list[bool]:
    """Whether the output of each is there."""
    return [bool(await rows_of(store, tables.output, job.id)) for job in jobs_]


async def count(store: Store, table: Any) -> int:
    return int(
        await store.read(lambda conn: conn.execute(select(func.count()).select_from(table)).scalar_one())
    )


async def test_output_is_deleted_by_age_and_the_record_stays_and_says_so(store: Store) -> None:
    old, young = await ended(store, 31, b"old"), await ended(store, 29, b"young")
    silent, running = await ended(store, 31), await running_job(store)
    await store.write(lambda tx: output.append(tx, running.id, 1, [Chunk(0, "stdout", 0, b"live")]))

    before = clock.now_ms()
    assert await prune(store, output_days=30) == {"outputs": 1}

    assert await kept(store, old, young, running) == [False, True, True]
    record = job_json(
        await store.read(lambda conn: reads.job_record(conn, old.id, EVERYTHING)), clock.now_ms()
    )
    assert record["description"] == {"exitCode": 0, "stdout": "", "stderr": ""}
    assert record["output"]["bytes"] == 3
    assert record["output"]["truncated"] is True
    assert record["output"]["pruned_at"] >= clock.rfc3339(before)
    assert (record["status"], record["outcome"], len(record["results"])) == ("FINISHED", "succeeded", 1)
    for job in (young, silent, running):
        assert (await job_of(store, job.id)).output_pruned_at is None
    assert await prune(store, output_days=30) == {}


async def test_of_too_much_output_the_oldest_goes_first_and_no_more_than_needed(store: Store) -> None:
    sizes = ((5, 400), (4, 300), (3, 200), (2, 5000), (1, 100))
    made = [await ended(store, days, b"x" * size) for days, size in sizes]
    keep = {"output_cap_bytes": 250}  # of 400, 300 and 5,000 bytes only so many are there

    assert await store.read(lambda conn: retention.output_bytes(conn, 250)) == 250 + 250 + 200 + 250 + 100
    assert await prune(store, output_bytes=1050, **keep) == {}
    assert await prune(store, output_bytes=700, **keep) == {"outputs": 2}
    assert await kept(store, *made) == [False, False, True, True, True]
    assert await prune(store, output_bytes=0, **keep) == {"outputs": 3}
    assert await kept(store, *made) == [False] * 5
    assert await prune(store, output_bytes=0, **keep) == {}


async def test_output_of_an_earlier_attempt_is_deleted_though_the_last_one_said_nothing(
    store: Store, tmp_path: Path
) -> None:
    engine = Engine(store)
    text = f"[ -e {tmp_path}/said ] || echo loud; touch {tmp_path}/said; exit 1"
    retry = {"attempts": 2, "on": ["failed"], "backoff_s": 60}
    owner_id, operation_id = await engine.script(text, idempotent=True, retry=retry)
    await engine.worker.start()
    job_id = await engine.execute(owner_id, operation_id)

    async def waits() -> bool:
        return (await job_of(store, job_id)).pending_reason is PendingReason.RETRY

    await eventually(waits)
    await store.write(lambda tx: tx.conn.execute(update(tables.jobs).values(start_at=1)))
    await engine.deadlines.look()
    job = await engine.ended(job_id)
    await engine.stop()

    assert (job.attempt, job.output_bytes) == (2, 5)
    assert await kept(store, job) == [True]
    assert await prune(store, output_bytes=0) == {"outputs": 1}
    assert await kept(store, job) == [False]


async def test_a_lot_is_deleted_in_small_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_JOBS", 3)
    monkeypatch.setattr(module, "STEP_BYTES", 250)
    for _ in range(7):
        await ended(store, 31, b"x" * 100)
    await ended(store, 31, b"x" * 1000)  # more than a step, and a step of its own
    steps: list[int] = []
    drop = retention.drop_outputs

    def counted(tx: Transaction, job_ids: list[str], now: int) -> None:
        steps.append(len(job_ids))
        drop(tx, job_ids, now)

    monkeypatch.setattr(retention, "drop_outputs", counted)

    assert await prune(store, output_days=30) == {"outputs": 8}
    assert sum(steps) == 8
    assert max(steps) <= 3
    assert len(steps) >= 3


async def test_log_entries_are_deleted_by_age_page_by_page(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_ENTRIES", 4)
    job, now = await add_job(store), clock.now_ms()
    ages = [50] * 6 + [0, 45] + [40] * 3 + [10, 5]  # one was written with the clock ahead

    def item(tx: Transaction) -> None:
        for number, days in enumerate(ages):
            jobs.log(tx, job.id, now - days * DAY_MS, "INFO", f"{number} {days}")

    await store.write(item)

    assert await prune(store, logs_days=30) == {"log entries": 10}
    assert [row["message"] for row in await rows_of(store, tables.log_entries, job.id)] == [
        "6 0",
        "11 10",
        "12 5",
    ]


async def test_ended_jobs_are_kept_for_ever_unless_a_limit_is_set(store: Store) -> None:
    await ended(store, 5000, b"x")

    assert await prune(store) == {}
    assert await count(store, tables.jobs) == 1


async def test_an_ended_job_goes_with_all_that_is_known_of_it_and_the_mark_of_events_moves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_JOBS", 2)
    old = [await ended(store, 8, b"x") for _ in range(5)]
    waits = await add_job(store, timestamp=clock.now_ms() - 9 * DAY_MS)
    long = await ended(store, 6, b"x")
    E = tables.events.c
    positions = await store.read(
        lambda conn: dict(conn.execute(select(func.max(E.id), E.job_id).group_by(E.job_id)).all())
    )

    assert await prune(store, jobs_days=7) == {"jobs": 5}

    for job in old:
        with pytest.raises(NotFound):
            await job_of(store, job.id)
        for table in (tables.plans, tables.attempts, tables.results, tables.output, tables.log_entries):
            assert await rows_of(store, table, job.id) == []
    assert {(await job_of(store, job.id)).id for job in (waits, long)} == {waits.id, long.id}
    mark = await store.read(events.pruned)
    assert positions[mark.number] == old[-1].id
    left = {
        happened.job_id
        for happened in await store.read(lambda conn: events.after(conn, events.BEGINNING, 99))
    }
    assert left == {waits.id, long.id}


async def test_keys_are_kept_for_a_day(store: Store) -> None:
    now = clock.now_ms()
    rows = [
        {"scope": name, "body": "b", "job_id": "j", "at": now - int(hours * 3_600_000)}
        for name, hours in (("old", 24.1), ("young", 23.9))
    ]
    await store.write(lambda tx: tx.conn.execute(insert(tables.idempotency), rows))

    await prune(store)

    left = await store.read(lambda conn: conn.execute(select(tables.idempotency.c.scope)).scalars().all())
    assert left == ["young"]


async def test_what_is_asked_uses_the_small_index(store: Store) -> None:
    for _ in range(3):
        await ended(store, 1, b"x")
    asked: list[tuple[str, Any]] = []

    def query(conn: Connection) -> list[str]:
        def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                asked.append((statement, parameters))

        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("SET enable_seqscan = off")  # three rows are scanned otherwise
        event.listen(conn, "before_cursor_execute", note)
        retention.outputs(conn, limit=5, ended_before=9)
        retention.output_bytes(conn, 100)
        event.remove(conn, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
        return [
            "\n".join(str(row) for row in conn.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
        ]

    plans = await store.read(query)

    assert len(plans) == 2
    assert all("job_output" in plan for plan in plans), plans


async def test_a_store_that_is_full_is_tried_again_later(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise ZeroDivisionError

    monkeypatch.setattr(clock, "sleep", sleep)
    failing = Failing(store, [StorageFull("full")] * 2)
    service = Retention(failing, Keep(**LONG))  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError):
        await service._loop()

    assert slept == [module.FIRST_AFTER_S, module.EVERY_S, module.EVERY_S]
    assert caplog.messages == ["nothing can be pruned now"] * 2


async def test_values_traces_and_changes_are_kept_by_age_and_values_by_number(store: Store) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    for value in (1, 9, 1, 9):
        await engine.report(owner_id, t=value)
    old = clock.now_ms() - 10 * DAY_MS

    def age(tx: Transaction) -> None:
        for table in (property_history, traces):
            first = select(func.min(table.c.id)).scalar_subquery()
            tx.conn.execute(update(table).where(table.c.id == first).values(at=old))
        first_two = select(state_changes.c.id).order_by(state_changes.c.id).limit(2)
        changes = update(state_changes).where(state_changes.c.id.in_(first_two))
        tx.conn.execute(changes.values(at=old))  # the second one says how things were when the rest begins

    await store.write(age)
    assert await prune(store, history_days=7, traces_days=7) == {"values": 1, "traces": 2}
    assert [await count(store, table) for table in (property_history, traces, state_changes)] == [3, 3, 3]
    assert await prune(store, history_values=2) == {"values": 1}
    assert await count(store, property_history) == 2
    await engine.stop()


async def age(store: Store, days: float = 40) -> None:
    """Let so much time pass for all that is on record of states, and for what waits."""
    by = round(days * DAY_MS)
    moments = ((property_history, "at"), (state_changes, "at"), (traces, "at"), (trigger_timers, "due_at"))
    for table, moment in (*moments, (tables.objects, "created_at")):
        aged = update(table).values({moment: table.c[moment] - by})
        await store.write(lambda tx, aged=aged: tx.conn.execute(aged))  # type: ignore[misc]


async def in_alarm(engine: Engine, **trigger: Any) -> str:
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, **trigger})
    await engine.report(owner_id, t=1)
    await engine.report(owner_id, t=9)
    return owner_id


async def test_what_a_timer_names_is_kept_as_long_as_that(engine: Engine) -> None:
    store = engine.store
    holds, repeats = await in_alarm(engine, hold_s=35 * 86_400), await in_alarm(engine, repeat_s=35 * 86_400)
    before = await in_alarm(engine, hold_s=86_400)
    await engine.report(before, t=1)  # its wait is over
    await age(store)
    await prune(store)
    assert await count(store, traces) == 1
    assert await count(store, state_changes) == 3

    assert await Timers(store, engine.reactions, Always()).look() == 2

    J = tables.jobs.c
    jobs_ = await store.read(lambda conn: conn.execute(select(J.owner_id, J.id, J.process_meta)).all())
    assert {job.owner_id: job.process_meta["from"] for job in jobs_ if job.process_meta} == {
        holds: "working",
        repeats: "working",
    }
    found = await store.read(lambda conn: conn.execute(select(traces).order_by(traces.c.id)).all())
    assert [(row.owner_id, row.decision) for row in found] == [(holds, "fired"), (repeats, "fired")]
    assert {row.job_id for row in found} <= {job.id for job in jobs_}


async def test_of_changes_the_last_one_before_what_is_kept_stays_and_holds_up_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_ENTRIES", 2)
    store = engine.store
    owners = [await in_alarm(engine) for _ in range(5)]
    gone = await in_alarm(engine)
    for value in (1, 9):
        await engine.report(owners[-1], t=value)
    await age(store)
    for owner_id in owners[2:]:
        await engine.report(owner_id, t=1)
    await store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, gone))

    await prune(store)
    await prune(store)

    async def kept(owner_id: str) -> list[tuple[str, str]]:
        found = await store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id))
        return [(row.from_state, row.to_state) for row in reversed(found)]

    for owner_id in owners[:2]:
        assert await kept(owner_id) == [("working", "alarm")]
    for owner_id in owners[2:]:
        assert await kept(owner_id) == [("working", "alarm"), ("alarm", "working")]
    assert await kept(gone) == []


async def test_of_reasons_the_last_one_before_what_is_kept_stays_beside_the_last_change(
    engine: Engine,
) -> None:
    store, owner_id = engine.store, await in_alarm(engine)
    word = Forced("alarm", "anna", "service", since=clock.now_ms())
    for forced in (word, None, word):
        await engine.happens(owner_id, Said(forced))
    await age(store)

    await prune(store)

    query = select(state_changes).order_by(state_changes.c.id)
    found = await store.read(lambda conn: conn.execute(query).all())
    assert [(row.from_state, row.to_state, row.why["by"]) for row in found] == [
        ("working", "alarm", "condition"),
        ("alarm", "alarm", "forced"),
    ]


async def test_a_replay_knows_of_a_state_that_began_before_the_oldest_trace(engine: Engine) -> None:
    store, now = engine.store, clock.now_ms()
    forced, left = await in_alarm(engine, repeat_s=86_400), await in_alarm(engine, repeat_s=86_400)
    await engine.happens(forced, Said(Forced("alarm", "anna", "service", since=now)))
    await engine.report(forced, t=1)
    await age(store)
    await prune(store)
    since = clock.now_ms() - 5 * DAY_MS
    await engine.report(left, t=1)
    await engine.report(forced, t=2)

    for owner_id, changes in ((forced, []), (left, [("alarm", "working")])):
        rows = await store.read(lambda conn, owner_id=owner_id: rules.trigger_rows(conn, owner_id))  # type: ignore[misc]
        [found] = await replays.of_trigger(store, rows[0].id, Span(since, clock.now_ms()))
        assert [(one.before, one.after) for one in found.replayed.changes] == changes
        assert [one.ruling.decision for one in found.replayed.firings].count(Decision.FIRED) == 5


async def test_each_step_over_states_reads_little(engine: Engine) -> None:
    store = engine.store
    for _ in range(3):
        await in_alarm(engine, hold_s=86_400)
    asked: list[tuple[str, Any]] = []

    def item(tx: Transaction) -> list[str]:
        conn = tx.conn

        def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append((statement, parameters))

        if conn.dialect.name == "postgresql":
            for way in ("seqscan", "bitmapscan", "sort"):  # which few rows are read by otherwise
                conn.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        event.listen(conn, "before_cursor_execute", note)
        retention.drop_traces(tx, behind=(0, 0), limit=5, before=clock.now_ms() + 1)
        retention.drop_changes(tx, behind="", limit=5, before=clock.now_ms() + 1)
        event.remove(conn, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
        return [
            "\n".join(str(row) for row in conn.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
            if statement.startswith("SELECT")
        ]

    of_traces, of_timers, of_changes, of_standings = await store.write(item)

    assert "trigger_trace_at" in of_traces
    assert "Sort" not in of_traces.replace("Incremental Sort", "").replace("Sort Key", "")
    assert "state_change_entity" in of_changes
    for plan in (of_traces, of_timers, of_changes, of_standings):
        assert not any(word in plan for word in ("Seq Scan", "SCAN", "TEMP B-TREE", "SubPlan 2")), plan


async def test_the_event_of_a_change_of_state_goes_with_the_change(store: Store) -> None:
    job, owner_id = await add_job(store), await Engine(store).thing()
    for a in range(2):
        await Engine(store).report(owner_id, a=a)
    E, old = tables.events.c, clock.now_ms() - 9 * DAY_MS
    await store.write(lambda tx: tx.conn.execute(update(tables.events).values(at=old)))
    before = await store.read(events.pruned)

    await prune(store, traces_days=7)

    left = await store.read(lambda conn: list(conn.execute(select(E.job_id)).scalars()))
    assert left == [job.id]  # events live as long as their job
    assert await store.read(events.pruned) > before


async def test_who_leads_no_more_prunes_nothing(store: Store) -> None:
    class Late(Always):
        def check(self, tx: Transaction) -> None:
            raise LeaseLost("taken over")

    job = await ended(store, 40, b"kept")

    with pytest.raises(LeaseLost):
        await Retention(store, Keep(jobs_days=1), Late()).prune()

    assert await kept(store, job) == [True]
    assert await count(store, tables.log_entries) == 1

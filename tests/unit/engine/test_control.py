from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.errors import BadRequest, Conflict, NotFound
from iotjobs.domain.jobs import Cause, Delivery, Job, Transport
from iotjobs.domain.operations import OperationType
from iotjobs.domain.rights import Caller, Role
from iotjobs.domain.statuses import ENDED, Outcome, Status
from iotjobs.engine.control import repeat_of
from iotjobs.store import attempts, jobs, tables
from iotjobs.store.session import Store
from iotjobs.transports.base import Gone, KillProof
from tests.services.rows import (
    ADMIN,
    Engine,
    MakeEngine,
    add_job,
    events_of,
    job_of,
    plan,
    rows_of,
    running_job,
)
from tests.services.site import eventually
from tests.services.ssh import processes_of

STRANGER = Caller("b" * 32, "bob", Role.OPERATOR)


async def started(engine: Engine, text: str, **members: Any) -> str:
    """A job whose script tells when it has begun, and then does this; its id."""
    await engine.worker.start()
    given = {"kill_after_s": 0.3, **members}
    job_id = await engine.execute(*await engine.script(f"echo begun; {text}", **given))

    async def begun() -> bool:
        return (await job_of(engine.store, job_id)).output_bytes > 0

    await eventually(begun)
    return job_id


async def that(engine: Engine, job_id: str, status: Status) -> Job:
    """The job, once it has this status."""

    async def look() -> Job | None:
        job = await job_of(engine.store, job_id)
        return job if job.status is status else None

    found: Job = await eventually(look)
    return found


def ends_in(events: list[tuple[str, str | None, str | None]]) -> list[str | None]:
    return [status for _, status, _ in events if status in ENDED]


# --- cancel ---------------------------------------------------------------------------------------


async def test_a_waiting_job_is_canceled_at_once_and_its_lane_goes_on(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job, behind = [await add_job(sqlite_store, lane="a") for _ in range(2)]

    assert await engine.control.cancel(job.id, ADMIN, "why not") is Status.CANCELED
    assert await engine.control.cancel(job.id, ADMIN, "again") is Status.CANCELED

    canceled = await job_of(sqlite_store, job.id)
    facts = {"by": ADMIN.user_id, "at": canceled.ended_at, "reason": "why not", "confirmed": True}
    assert (canceled.outcome, canceled.error_code, canceled.cancel) == (Outcome.CANCELED, None, facts)
    assert (await engine.dispatcher.take()).job_id == behind.id
    assert ends_in(await events_of(sqlite_store, job.id)) == ["CANCELED"]


@pytest.mark.check(4)
async def test_a_running_job_is_canceled_with_proof(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    job_id = await started(engine, "trap '' TERM; (trap '' TERM; setsid sleep 77 & sleep 77); wait; sleep 77")

    assert await engine.control.cancel(job_id, ADMIN, None) is Status.CANCELING
    job = await engine.ended(job_id)

    assert processes_of(job_id) == []
    assert (job.outcome, job.error_code, job.exit_code) == (Outcome.CANCELED, None, None)
    assert job.cancel is not None
    assert job.cancel["confirmed"] is True
    assert [status for _, status, _ in await events_of(sqlite_store, job_id)] == [
        "PENDING",
        "RUNNING",
        "CANCELING",
        "CANCELED",
    ]
    [attempt] = await rows_of(sqlite_store, tables.attempts, job_id)
    assert (attempt["outcome"], attempt["started_at"]) == ("canceled", job.begun_at)
    lines = [line["message"] for line in await rows_of(sqlite_store, tables.log_entries, job_id)]
    assert lines == ["attempt 1, cancel: its processes were killed and are gone"]


@pytest.mark.parametrize("verdict", [Gone.LEFT, Gone.UNCONFIRMED])
async def test_what_cannot_be_confirmed_is_told(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, verdict: Gone
) -> None:
    engine = make_engine()

    async def kill(job: Job, *_: object) -> KillProof:
        await real_kill(job, 0, 0.1)
        return KillProof(verdict, "because")

    real_kill = engine.reach.kill
    monkeypatch.setattr(engine.reach, "kill", kill)
    job_id = await started(engine, "sleep 77")

    await engine.control.cancel(job_id, ADMIN, None)
    job = await engine.ended(job_id)

    assert (job.outcome, job.error_code) == (Outcome.CANCELED, "notConfirmed")
    assert job.error_message is not None
    assert "(because)" in job.error_message
    assert job.cancel is not None
    assert job.cancel["confirmed"] is False


async def test_an_exit_that_came_before_the_signal_is_the_jobs_end(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    # Its child keeps the output open: the exit is told, and late output waited for.
    job_id = await started(engine, "(sleep 0.4; echo late) & exit 3")

    await engine.control.cancel(job_id, ADMIN, None)
    job = await engine.ended(job_id)

    assert (job.status, job.outcome, job.exit_code) == (Status.FINISHED, Outcome.FAILED, 3)
    assert ends_in(await events_of(sqlite_store, job_id)) == ["FINISHED"]
    with pytest.raises(Conflict, match="has ended"):
        await engine.control.cancel(job_id, ADMIN, None)


async def test_a_word_that_got_lost_costs_one_look(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine(worker_id="here")
    other = make_engine(worker_id="elsewhere")
    job_id = await started(engine, "sleep 77")

    assert await other.control.cancel(job_id, ADMIN, None) is Status.CANCELING
    await other.control.look()
    assert (await job_of(sqlite_store, job_id)).status is Status.CANCELING
    await engine.control.look()

    assert (await engine.ended(job_id)).outcome is Outcome.CANCELED


async def test_a_cancel_between_the_begin_and_the_run_sends_nothing(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    owner, operation = await engine.script(f"touch {tmp_path}/ran")
    job_id = await engine.execute(owner, operation)
    ticket = await engine.dispatcher.take()
    begun = await sqlite_store.write(lambda tx: engine.worker._begin(tx, ticket))
    assert begun is not None

    await engine.control.cancel(job_id, ADMIN, None)
    engine.executor.end(job_id, 1)
    await engine.executor.run(begun)
    engine.dispatcher.done(ticket)

    job = await job_of(sqlite_store, job_id)
    assert (job.outcome, job.sent_at, (job.cancel or {})["confirmed"]) == (Outcome.CANCELED, None, True)
    assert not (tmp_path / "ran").exists()


async def test_a_word_for_an_older_attempt_ends_nothing(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    job_id = await started(engine, "sleep 0.3")

    engine.worker.end(job_id, 7)
    engine.worker.end("nobody", 1)

    assert (await engine.ended(job_id)).outcome is Outcome.SUCCEEDED


async def test_a_parked_message_is_canceled_at_once_and_nobody_can_tell(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, sent=True, transport=Transport.MQTT)
    await sqlite_store.write(lambda tx: jobs.note(tx, job.id, 1, deadline_at=10**13))

    assert await engine.control.cancel(job.id, ADMIN, None) is Status.CANCELED

    canceled = await job_of(sqlite_store, job.id)
    assert (canceled.outcome, (canceled.cancel or {})["confirmed"]) == (Outcome.CANCELED, None)
    assert [status for _, status, _ in await events_of(sqlite_store, job.id)][-2:] == [
        "CANCELING",
        "CANCELED",
    ]


async def test_what_was_parked_while_its_cancel_came_is_ended_by_the_look(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, sent=True, transport=Transport.MQTT)

    assert await engine.control.cancel(job.id, ADMIN, None) is Status.CANCELING
    await sqlite_store.write(
        lambda tx: jobs.note(tx, job.id, 1, deadline_at=10**13, delivery=Delivery.ACKNOWLEDGED)
    )
    await engine.control.look()

    canceled = await job_of(sqlite_store, job.id)
    assert (canceled.outcome, (canceled.cancel or {})["confirmed"]) == (Outcome.CANCELED, None)


class Hanging:
    """A publisher whose broker never acknowledges; `sends`: the message leaves."""

    free_places = waiting = 0

    def __init__(self, sends: bool) -> None:
        self.sends, self.began = sends, asyncio.Event()

    async def hand_over(self, _message: object, before_send: Any, *, since: float | None) -> None:
        if self.sends:
            await before_send()
        self.began.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(("sends", "confirmed"), [(False, True), (True, None)])
async def test_a_message_under_way_is_canceled_and_known_only_if_it_had_not_left(
    sqlite_store: Store, make_engine: MakeEngine, sends: bool, confirmed: bool | None
) -> None:
    publisher: Any = Hanging(sends)
    engine = make_engine(publisher=publisher)
    made = plan(type=OperationType.MQTT, script=None, topic="a/b", message="x")
    job = await add_job(sqlite_store, of=made, transport=Transport.MQTT, operation_type=OperationType.MQTT)
    await engine.worker.start()
    await engine.deadlines.sweep()
    await publisher.began.wait()

    with pytest.raises(Conflict, match="no process"):
        await engine.control.stop_job(job.id, ADMIN)
    assert await engine.control.cancel(job.id, ADMIN, None) is Status.CANCELING
    canceled = await engine.ended(job.id)

    assert (canceled.outcome, canceled.error_code) == (Outcome.CANCELED, None)
    assert (canceled.cancel or {})["confirmed"] is confirmed
    assert (canceled.sent_at is not None) is sends


async def test_a_drain_is_no_job_to_be_canceled(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    job_id = await engine.switch.switch(is_open=False, caller=ADMIN)

    for ask in (engine.control.cancel(job_id, ADMIN, None), engine.control.stop_job(job_id, ADMIN)):
        with pytest.raises(Conflict, match="before its time"):
            await ask


async def test_who_may_not_see_a_job_cannot_end_it(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    job = await add_job(sqlite_store)
    own = await add_job(sqlite_store, run_by_id=STRANGER.user_id)

    for ask in (
        engine.control.cancel(job.id, STRANGER, None),
        engine.control.stop_job(job.id, STRANGER),
        engine.control.resume(job.id, STRANGER, confirmed=True),
        engine.control.set_low_priority(job.id, STRANGER, True),
    ):
        with pytest.raises(NotFound):
            await ask
    assert await job_of(sqlite_store, job.id) == job
    assert await engine.control.cancel(str(own.seq), STRANGER, None) is Status.CANCELED


# --- stop and resume ------------------------------------------------------------------------------


async def test_a_stopped_run_is_gone_and_runs_anew_when_it_is_resumed(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    text = f"mkdir {tmp_path}/first 2>/dev/null && exec sleep 77; echo anew"
    job_id = await started(engine, text)

    assert await engine.control.stop_job(job_id, ADMIN) is Status.STOPPING
    stopped = await that(engine, job_id, Status.STOPPED)
    assert processes_of(job_id) == []
    assert (stopped.outcome, stopped.nonce, stopped.worker_id) == (None, None, None)
    assert await engine.control.stop_job(job_id, ADMIN) is Status.STOPPED
    with pytest.raises(Conflict, match='"confirm": true'):
        await engine.control.resume(job_id, ADMIN, confirmed=False)
    assert await engine.control.resume(job_id, ADMIN, confirmed=True) is Status.PENDING
    job = await engine.ended(job_id)

    assert (job.outcome, job.attempt) == (Outcome.SUCCEEDED, 2)
    found = await sqlite_store.read(lambda conn: attempts.of_job(conn, job))
    assert [(one.number, one.outcome, one.error_code) for one in found] == [
        (1, "canceled", "stopped"),
        (2, "succeeded", None),
    ]
    assert [one.started_at is not None and one.ended_at is not None for one in found] == [True, True]
    statuses = [status for _, status, _ in await events_of(sqlite_store, job_id)]
    assert statuses == ["PENDING", "RUNNING", "STOPPING", "STOPPED", "PENDING", "RUNNING", "FINISHED"]


async def test_a_stop_that_cannot_be_proven_is_lost_and_a_cancel_after_it_a_cancel(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, go = make_engine(), asyncio.Event()
    real_kill = engine.reach.kill

    async def kill(job: Job, *_: object) -> KillProof:
        await real_kill(job, 0, 0.1)
        await go.wait()
        return KillProof(Gone.UNCONFIRMED, "because")

    monkeypatch.setattr(engine.reach, "kill", kill)
    lost, canceled = await started(engine, "sleep 77"), await started(engine, "sleep 77")
    await engine.control.stop_job(lost, ADMIN)
    await engine.control.stop_job(canceled, ADMIN)
    assert await engine.control.cancel(canceled, ADMIN, None) is Status.CANCELING
    go.set()

    assert ((await engine.ended(lost)).outcome, (await engine.ended(canceled)).outcome) == (
        Outcome.LOST,
        Outcome.CANCELED,
    )
    assert (await job_of(sqlite_store, lost)).error_code == "notConfirmed"


async def test_what_waited_is_set_aside_frees_its_lane_and_keeps_its_secrets(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await add_job(sqlite_store, lane="a", secret=b"s", data={"secret_args": ["key"]}, expires_at=10**13)
    behind = await add_job(sqlite_store, lane="a")

    assert await engine.control.stop_job(job.id, ADMIN) is Status.STOPPED
    stopped = await job_of(sqlite_store, job.id)
    assert (stopped.expires_at, stopped.pending_reason) == (10**13, None)
    assert (await sqlite_store.read(lambda conn: jobs.plan_of(conn, job.id)))[1] == b"s"
    assert (await engine.dispatcher.take()).job_id == behind.id
    await engine.control.cancel(behind.id, ADMIN, None)

    assert await engine.control.resume(job.id, ADMIN, confirmed=False) is Status.PENDING
    assert (await engine.dispatcher.take()).job_id == job.id


async def test_time_to_live_ends_a_stopped_job_and_begins_anew_after_a_run(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job_id = await started(engine, "sleep 77", ttl_s=100)
    before = await job_of(sqlite_store, job_id)
    await engine.control.stop_job(job_id, ADMIN)
    stopped = await that(engine, job_id, Status.STOPPED)
    assert before.expires_at is not None
    assert stopped.expires_at is not None
    assert stopped.expires_at > before.expires_at
    waiting = await add_job(sqlite_store, expires_at=clock.now_ms() - 1)
    await sqlite_store.write(lambda tx: jobs.set_aside(tx, waiting, clock.now_ms()))

    await engine.deadlines.look()

    expired = await job_of(sqlite_store, waiting.id)
    assert (expired.status, expired.outcome) == (Status.FINISHED, Outcome.EXPIRED)
    assert (await job_of(sqlite_store, job_id)).status is Status.STOPPED


async def test_a_resume_before_its_start_goes_on_waiting_for_it(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, later = make_engine(), clock.now_ms() + 60_000
    job = await add_job(sqlite_store, start_at=later)

    await engine.control.stop_job(job.id, ADMIN)
    await engine.control.resume(job.id, ADMIN, confirmed=False)

    waits = await job_of(sqlite_store, job.id)
    assert (waits.status, waits.start_at, waits.pending_reason) == (Status.PENDING, later, "start_at")
    assert not engine.dispatcher.live


async def test_a_resume_while_the_old_ticket_is_being_taken_is_not_forgotten(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job_id = await engine.execute(*await engine.script("true"))
    await engine.control.stop_job(job_id, ADMIN)
    ticket = await engine.dispatcher.take()
    await sqlite_store.write(lambda tx: engine.worker._begin(tx, ticket))  # not ready

    await engine.control.resume(job_id, ADMIN, confirmed=False)
    engine.dispatcher.done(ticket)

    assert (await asyncio.wait_for(engine.dispatcher.take(), 1)).job_id == job_id


# --- low priority ---------------------------------------------------------------------------------


async def test_a_waiting_job_changes_its_place_at_once(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    first, second, third = [await engine.execute(*await engine.script("true")) for _ in range(3)]

    await engine.control.set_low_priority(first, ADMIN, True)
    await engine.control.set_low_priority(second, ADMIN, True)
    await engine.control.set_low_priority(second, ADMIN, True)
    await engine.control.set_low_priority(second, ADMIN, False)

    assert [(await engine.dispatcher.take()).job_id for _ in range(3)] == [second, third, first]


async def test_within_a_lane_the_next_in_order_comes_first(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner, operation = await engine.script("true")
    first, second = [await engine.execute(owner, operation) for _ in range(2)]

    await engine.control.set_low_priority(first, ADMIN, True)

    ticket = await engine.dispatcher.take()
    assert ticket.job_id == second
    assert (await job_of(sqlite_store, first)).pending_reason == "lane"
    assert (await job_of(sqlite_store, second)).pending_reason is None
    begun = await sqlite_store.write(lambda tx: engine.worker._begin(tx, ticket))
    assert begun is not None
    again = await engine.dispatcher.take()
    assert again.job_id == first
    assert await sqlite_store.write(lambda tx: engine.worker._begin(tx, again)) is None
    engine.dispatcher.done(again)
    await engine.executor.run(begun)
    engine.dispatcher.done(ticket)
    assert (await engine.dispatcher.take()).job_id == first


async def test_a_running_job_only_records_it_and_an_ended_one_refuses(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, lane="a")

    assert await engine.control.set_low_priority(job.id, ADMIN, True) is Status.RUNNING
    assert (await job_of(sqlite_store, job.id)).low_priority is True
    assert not engine.dispatcher.live
    await engine.control.cancel(job.id, ADMIN, None)
    await engine.settler.end_attempt(await job_of(sqlite_store, job.id), plan(), jobs.STOPPED)
    with pytest.raises(Conflict, match="has ended"):
        await engine.control.set_low_priority(job.id, ADMIN, False)


# --- retry ----------------------------------------------------------------------------------------


async def test_a_retry_is_a_new_job_of_the_operation_as_it_is_now(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    await engine.worker.start()
    owner, operation = await engine.script("echo {{args.n}} {{args.key}} {{ask.why}}", secret_args=["key"])
    first = await engine.execute(
        owner, operation, args={"n": 1, "key": "k1"}, ask={"why": "w"}, priority=7, reason="r"
    )
    job = await engine.ended(first)
    with pytest.raises(BadRequest, match="key"):
        repeat_of(job, ADMIN, {}, key=None, body_digest="")

    request = repeat_of(job, STRANGER, {"key": "k2"}, key="K", body_digest="d")
    again = await engine.ended(await engine.intake.execute(request))

    assert (await engine.intake.submit(request)).job_id == again.id
    assert (again.cause, again.retry_of, again.priority) == (Cause.RETRY, job.id, 7)
    assert (again.run_by_id, again.data) == (STRANGER.user_id, job.data)
    rows = await rows_of(sqlite_store, tables.output, again.id)
    assert b"".join(row["data"] for row in rows) == b"1 k2 w\n"

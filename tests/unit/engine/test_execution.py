from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StoreUnavailable
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.retries import RetryPolicy
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import commands
from iotjobs.engine.commands import command_request, ending_of_exit
from iotjobs.engine.presence import Alone
from iotjobs.engine.rescue import rescue
from iotjobs.engine.sending import SEND_WITHIN_S, Begun, RunMark, Sending, new_nonce
from iotjobs.store import jobs, reads, tables
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.transports import spool
from iotjobs.transports.base import CommandEnd, Gone, KillProof
from tests.services.rows import Engine, Failing, MakeEngine, begin, job_of, plan, rows_of, running_job
from tests.services.site import eventually
from tests.services.ssh import marked


@pytest.mark.parametrize(
    ("end", "ending"),
    [
        (CommandEnd(0), Ending(Outcome.SUCCEEDED, exit_code=0)),
        (CommandEnd(1), Ending(Outcome.FAILED, 1, "exitCode", "exit code 1")),
        (CommandEnd(255), Ending(Outcome.FAILED, 255, "exitCode", "exit code 255")),
        (CommandEnd(137, "KILL"), Ending(Outcome.FAILED, 137, "signal", "ended by signal KILL")),
    ],
)
def test_what_an_exit_means(end: CommandEnd, ending: Ending) -> None:
    assert ending_of_exit(end) == ending


def test_the_job_id_travels_in_the_environment_and_wins() -> None:
    made = Plan(
        OperationType.PROGRAM, 5.0, argv=("a", "b"), env={"X": "1", "IOTJOBS_JOB_ID": "no"}, cwd="/tmp"
    )

    request = command_request("j" * 32, "n" * 16, made)

    assert request.env == {"X": "1", "IOTJOBS_JOB_ID": "j" * 32}
    assert (request.nonce, request.argv, request.cwd, request.script) == ("n" * 16, ("a", "b"), "/tmp", None)


def test_no_two_attempts_have_the_same_mark() -> None:
    marks = {new_nonce() for _ in range(1000)}

    assert len(marks) == 1000
    assert all(mark.isalnum() and len(mark) == 16 for mark in marks)


async def run(engine: Engine, store: Store, made: Plan) -> tuple[str, Begun]:
    job = await running_job(store, of=made)
    begun = Begun(job, made)
    await engine.executor.run(begun)
    return job.id, begun


async def test_a_run_is_recorded_with_its_output_and_what_it_was(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    job_id, _ = await run(make_engine(), sqlite_store, plan(script="echo out; echo err >&2; exit 4"))
    job = await job_of(sqlite_store, job_id)
    record = await sqlite_store.read(lambda conn: reads.job_record(conn, job_id, reads.Scope()))

    assert (job.outcome, job.exit_code, job.error_code) == (Outcome.FAILED, 4, "exitCode")
    assert (record.stdout.text, record.stderr.text, job.output_bytes) == ("out\n", "err\n", 8)
    assert job.started_at <= job.sent_at <= job.ended_at
    [attempt] = await rows_of(sqlite_store, tables.attempts, job_id)
    assert (attempt["number"], attempt["outcome"], attempt["sent_at"]) == (1, "failed", job.sent_at)


async def test_output_that_was_left_off_is_told(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_AFTER_END_MOST_S", 0.3)
    detached = "n=0; while [ $n -lt 40 ]; do echo more; sleep 0.05; n=$((n+1)); done"
    job_id, _ = await run(make_engine(), sqlite_store, plan(script=f"({detached}) & exit 0"))
    job = await job_of(sqlite_store, job_id)

    assert (job.outcome, job.output_truncated) == (Outcome.SUCCEEDED, True)


async def test_a_timeout_kills_it_and_says_so(sqlite_store: Store, make_engine: MakeEngine) -> None:
    job_id, _ = await run(
        make_engine(), sqlite_store, plan(script="echo begun; sleep 77", timeout_s=0.3, kill_after_s=0.2)
    )
    job = await job_of(sqlite_store, job_id)

    assert (job.outcome, job.error_code) == (Outcome.TIMED_OUT, "timeOut")
    assert job.error_message == "not ended after 0.3 s; its processes were killed and are gone"
    assert job.output_bytes == 6


async def test_what_may_be_repeated_after_a_failure_waits_for_its_next_try(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    policy = RetryPolicy(2, ("failed",), backoff_s=30)
    engine = make_engine()
    job_id, begun = await run(engine, sqlite_store, plan(script="exit 1", idempotent=True, retry=policy))
    job = await job_of(sqlite_store, job_id)

    assert (job.status, job.outcome, job.pending_reason) == (Status.PENDING, None, "retry")
    assert 14_000 < job.start_at - clock.now_ms() <= 30_000
    again = await begin(sqlite_store, job)
    await engine.executor.run(Begun(again, begun.plan))
    job = await job_of(sqlite_store, job_id)
    assert (job.outcome, job.attempt) == (Outcome.FAILED, 2)
    assert len(await rows_of(sqlite_store, tables.attempts, job_id)) == 2


async def test_what_the_store_kept_from_being_sent_is_tried_again_whatever_its_operation_says_of_retries(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    engine.executor.store = Failing(sqlite_store, [StoreUnavailable("away")])
    job_id, begun = await run(engine, sqlite_store, plan(retry=RetryPolicy(1)))
    job = await job_of(sqlite_store, job_id)

    assert (job.status, job.attempt, job.sent_at) == (Status.PENDING, 1, None)
    assert (await engine.dispatcher.take()).job_id == job_id
    [first] = await rows_of(sqlite_store, tables.attempts, job_id)
    assert (first["error_code"], first["sent_at"]) == ("notRecorded", None)
    await engine.executor.run(Begun(await begin(sqlite_store, job), begun.plan))
    assert (await job_of(sqlite_store, job_id)).outcome is Outcome.SUCCEEDED


async def test_a_fault_of_ours_ends_the_job_as_lost_and_is_logged(
    sqlite_store: Store,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make_engine()

    async def broken(*_: object) -> CommandEnd:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.reach, "run", broken)
    job_id, _ = await run(engine, sqlite_store, plan())
    job = await job_of(sqlite_store, job_id)

    assert (job.outcome, job.error_code) == (Outcome.LOST, "internalError")
    assert job.error_message == "ZeroDivisionError in iotjobs, see the log"
    assert "an attempt failed in us" in [record.message for record in caplog.records]


# --- what an earlier attempt left on the device ---------------------------------------------------


async def died_while_it_ran(engine: Engine, store: Store, folder: Path) -> tuple[Job, list[int]]:
    """A job that waits for its next attempt, and the processes of the one whose worker died."""
    made = first_hangs(folder)
    job = await running_job(store, of=made)
    task = asyncio.create_task(engine.executor.run(Begun(replace(job, worker_id="alive"), made)))
    await eventually((folder / "pid").exists)
    task.cancel()
    await asyncio.wait({task})
    assert await rescue(store, engine.settler, engine.leftovers, "alive") == 1
    return await job_of(store, job.id), marked(job.nonce or "")


async def begin_again(engine: Engine, job: Job) -> Begun:
    begun = await engine.store.write(lambda tx: engine.worker._begin(tx, Ticket.of(job)))
    assert begun is not None
    return begun


def first_hangs(folder: Path) -> Plan:
    """An idempotent script whose first run does not end, and whose next ones tell whether it is there."""
    again = f"if kill -0 $(cat {folder}/pid) 2>/dev/null; then echo both; else echo alone; fi"
    text = f"if mkdir {folder}/first 2>/dev/null; then echo $$ >{folder}/pid; exec sleep 77; else {again}; fi"
    return plan(script=text, idempotent=True, kill_after_s=0.2)


async def test_what_an_earlier_attempt_left_is_gone_before_the_next_is_sent(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job, left = await died_while_it_ran(engine, sqlite_store, tmp_path)
    assert left

    begun = await begin_again(engine, job)
    await engine.executor.run(begun)

    assert marked(job.nonce or "") == []
    done = await job_of(sqlite_store, job.id)
    assert (done.outcome, done.attempt, begun.job.nonce != job.nonce) == (Outcome.SUCCEEDED, 2, True)
    record = await sqlite_store.read(lambda conn: reads.job_record(conn, job.id, reads.Scope()))
    assert record.stdout.text == "alone\n"
    [line] = await rows_of(sqlite_store, tables.log_entries, job.id)
    assert line["message"] == "before attempt 2: no process of an earlier attempt is left"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Gone.LEFT, "processes of an earlier attempt were signalled and some are left (why)"),
        (Gone.UNCONFIRMED, "could not confirm that the processes of an earlier attempt are gone (why)"),
    ],
)
async def test_nothing_is_sent_beside_what_may_still_run(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, verdict: Gone, said: str
) -> None:
    engine = make_engine(worker_id="alive")
    made = plan(idempotent=True, retry=RetryPolicy(3, ("lost",), backoff_s=0))
    job = await running_job(sqlite_store, of=made, sent=True, worker_id="dead")
    await rescue(sqlite_store, engine.settler, engine.leftovers, "alive")
    asked: list[str | None] = []

    async def kill_first(_: Job, mark: RunMark, *__: object) -> KillProof:
        asked.append(mark.nonce)
        return KillProof(verdict, "why")

    monkeypatch.setattr(engine.reach, "kill_first", kill_first)
    for _ in range(2):
        waits = await job_of(sqlite_store, job.id)
        assert (waits.status, waits.nonce) == (Status.PENDING, job.nonce)
        await engine.executor.run(await begin_again(engine, waits))

    lost = await job_of(sqlite_store, job.id)
    assert (lost.outcome, lost.error_code, lost.attempt) == (Outcome.LOST, "earlierNotEnded", 3)
    assert lost.error_message == f"{said}, so it was not sent again"
    assert asked == [job.nonce, job.nonce]
    assert [row["sent_at"] is None for row in await rows_of(sqlite_store, tables.attempts, job.id)] == [
        False,
        True,
        True,
    ]


async def test_a_second_death_before_the_first_was_ended_forgets_nothing(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job, left = await died_while_it_ran(engine, sqlite_store, tmp_path)
    await begin_again(engine, job)
    await rescue(sqlite_store, engine.settler, engine.leftovers, "the next")

    await engine.executor.run(await begin_again(engine, job))

    assert left
    assert marked(job.nonce or "") == []
    assert (await job_of(sqlite_store, job.id)).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("way", ["not sent", "ended by itself", "proven gone", "raw"])
async def test_where_nothing_can_be_left_the_next_attempt_begins_at_once(
    sqlite_store: Store, make_engine: MakeEngine, way: str
) -> None:
    engine = make_engine(worker_id="alive")
    policy = RetryPolicy(2, ("failed", "timed_out", "lost"), backoff_s=0)
    script = {"ended by itself": "exit 1", "proven gone": "sleep 77"}.get(way, "true")
    interpreter = "raw" if way == "raw" else "sh"
    timeout_s = 0.3 if way == "proven gone" else 5.0
    made = plan(
        script=script,
        interpreter=interpreter,
        timeout_s=timeout_s,
        kill_after_s=0.1,
        idempotent=True,
        retry=policy,
    )
    if way in ("not sent", "raw"):
        job = await running_job(sqlite_store, of=made, sent=way == "raw", worker_id="dead")
        await rescue(sqlite_store, engine.settler, engine.leftovers, "alive")
    else:
        job = await running_job(sqlite_store, of=made, worker_id="alive")
        await engine.executor.run(Begun(job, made))

    begun = await begin_again(engine, job)

    assert begun.earlier is None


async def test_a_stop_while_the_earlier_is_ended_sends_nothing_and_hands_over(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, of=plan(idempotent=True), sent=True, worker_id="dead")
    await rescue(sqlite_store, engine.settler, engine.leftovers, "alive")

    async def kill_first(*_: object) -> KillProof:
        engine.executor.interrupt()
        return KillProof(Gone.GONE, "")

    monkeypatch.setattr(engine.reach, "kill_first", kill_first)
    await engine.executor.run(await begin_again(engine, job))

    handed = await job_of(sqlite_store, job.id)
    assert (handed.status, handed.attempt, handed.nonce) == (Status.PENDING, 2, None)
    assert (await rows_of(sqlite_store, tables.attempts, job.id))[1]["sent_at"] is None


# --- the step before the first byte ---------------------------------------------------------------


async def test_the_moment_of_sending_is_on_disk_before_it_happens(sqlite_store: Store) -> None:
    job = await running_job(sqlite_store)
    sending = Sending(sqlite_store, Begun(job, plan(), since=clock.monotonic()), Alone("w1"))

    await sending.before_send()

    assert (await job_of(sqlite_store, job.id)).sent_at == sending.sent_at is not None


async def test_an_attempt_that_is_not_ours_any_more_sends_nothing(sqlite_store: Store) -> None:
    job = await running_job(sqlite_store)
    late = Sending(sqlite_store, Begun(replace(job, attempt=0), plan()), Alone("w1"))

    with pytest.raises(LeaseLost):
        await late.before_send()
    assert (await job_of(sqlite_store, job.id)).sent_at is None


@pytest.mark.parametrize("sent", [False, True])
async def test_who_was_declared_dead_and_lives_under_another_id_sends_nothing_of_before(
    sqlite_store: Store, sent: bool
) -> None:
    job = await running_job(sqlite_store, sent=sent)
    risen = Sending(sqlite_store, Begun(job, plan(), since=clock.monotonic()), Alone("w1 risen"))

    with pytest.raises(LeaseLost, match="declared dead"):
        await risen.before_send()
    assert (await job_of(sqlite_store, job.id)).sent_at == job.sent_at


@pytest.mark.parametrize("meanwhile", ["nothing", "ended", "another attempt"])
async def test_who_was_frozen_before_sending_looks_whether_it_still_may(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    job = await running_job(sqlite_store, sent=True)
    sending = Sending(sqlite_store, Begun(job, plan(), since=clock.monotonic()), Alone("w1"))
    if meanwhile == "ended":
        await sqlite_store.write(lambda tx: jobs.settle(tx, job, Ending(Outcome.LOST), 5))
    if meanwhile == "another attempt":
        await sqlite_store.write(lambda tx: jobs.try_again(tx, job, Ending(Outcome.LOST), 5, 5))
        await begin(sqlite_store, await job_of(sqlite_store, job.id))
    await sending.before_send()  # within the time nobody asks again
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + SEND_WITHIN_S + 1)

    if meanwhile == "nothing":
        await sending.before_send()
    else:
        with pytest.raises(LeaseLost):
            await sending.before_send()


class Woken(Alone):
    """A worker that finds out at its first beat that it was declared dead; the store answers at the second call."""

    away = True

    async def be_fresh(self) -> None:
        if self.away:
            self.away = False
            raise StoreUnavailable("away")
        self.worker_id = "anew"


async def test_who_was_declared_dead_writes_no_end_that_others_may_have_made(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(worker_id="alive")
    engine.executor.presence = Woken("alive")
    monkeypatch.setattr(commands, "STORE_RETRY_S", 0)
    made = plan(script="kill -TERM $$")  # as who ends what it left does
    job = await running_job(sqlite_store, of=made, worker_id="alive")

    await engine.executor.run(Begun(job, made))

    assert (await job_of(sqlite_store, job.id)).status is Status.RUNNING
    [line] = await rows_of(sqlite_store, tables.log_entries, job.id)
    assert line["message"].startswith(
        "attempt 1 ended failed after it was no longer the newest: worker alive"
    )

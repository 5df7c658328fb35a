"""The table of statuses, walked at random through the store's own functions, with rows that may be stale.

20,000 steps on each database with `pytest --full`, some hundred without.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import Connection, select

from iotjobs.domain.errors import Conflict, LeaseLost, TransitionRefused
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import ACTIVE, ENDED, TRANSITIONS, Outcome, Status, may_become
from iotjobs.store import attempts, jobs, queue, tables
from iotjobs.store.session import Store, open_store
from iotjobs.store.writer import Transaction
from tests.services.rows import Offered, insert_job

STEPS = 20_000
FEW_STEPS = 600
BORN = 1_795_328_126_916

PICK = st.integers(0, 104)

Told = list[tuple[Status, str | None, int, bool]]


class Walk(RuleBasedStateMachine):
    """Some jobs, and everything that the engine may do to them, with rows as they are or as they were."""

    runner: ClassVar[asyncio.Runner]
    store: ClassVar[Store]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.now = BORN
        self.offered = Offered()
        self.rows: list[Job] = []

    def seen(self, pick: int) -> Job:
        """A job's row as a worker or a caller has it: mostly as it is, and mostly of one that lives."""
        if pick % 5 == 0:
            return self.rows[pick % len(self.rows)]  # as it was at some moment
        ids = list(dict.fromkeys(row.id for row in self.rows))[-3:]
        now = [self.job(job_id) for job_id in ids]
        if all(row.status in ENDED for row in now):
            now.append(self.added())
        chosen = [row for row in now if row.status not in ENDED or not pick % 7]
        # Of what is under way there is most to tell.
        chosen += [row for row in chosen if row.status in ACTIVE] * 2
        row = chosen[pick % len(chosen)]
        self.rows.append(row)
        return row

    # -- what the engine does ----------------------------------------------------------------------

    @initialize()
    def first(self) -> None:
        self.rows.append(self.added())

    @rule(really=st.sampled_from([True, False, False]))
    def add(self, really: bool) -> None:
        if really:
            self.rows.append(self.added())

    @rule(pick=PICK, sent=st.booleans())
    def begin(self, pick: int, sent: bool) -> None:
        row = self.seen(pick)
        self.change(
            row,
            Status.RUNNING,
            lambda tx: jobs.begin_attempt(tx, row, worker_id="w", nonce="n", at=self.now, sent=sent),
        )

    @rule(pick=PICK)
    def note(self, pick: int) -> None:
        row = self.seen(pick)
        before = self.job(row.id)
        accepted = self.tried(lambda tx: jobs.note(tx, row.id, row.attempt, sent_at=self.now))
        assert accepted == (row.attempt == before.attempt and before.status in ACTIVE)
        self.check(row.id)

    @rule(pick=PICK, outcome=st.sampled_from(Outcome), really=st.sampled_from([True, False, False]))
    def settle(self, pick: int, outcome: Outcome, really: bool) -> None:
        if not really:  # lives are to be long
            return
        row = self.seen(pick)
        to = Status.CANCELED if outcome is Outcome.CANCELED else Status.FINISHED
        self.change(row, to, lambda tx: jobs.settle(tx, row, Ending(outcome), self.now))

    @rule(pick=PICK, after=st.integers(0, 5))
    def try_again(self, pick: int, after: int) -> None:
        row = self.seen(pick)
        if row.status is Status.RUNNING:  # nobody asks for it otherwise
            ending = Ending(Outcome.FAILED, error_code="unreachable")
            self.change(
                row,
                Status.PENDING,
                lambda tx: jobs.try_again(tx, row, ending, self.now, self.now + after),
            )

    @rule(pick=PICK, to=st.sampled_from([Status.CANCELING, Status.STOPPING]))
    def ask(self, pick: int, to: Status) -> None:
        row = self.seen(pick)
        facts = {"by": "me", "at": self.now, "reason": None, "confirmed": None}
        self.change(row, to, lambda tx: jobs.ask(tx, row, to, self.now, facts))

    @rule(pick=PICK)
    def set_aside(self, pick: int) -> None:
        row = self.seen(pick)
        self.change(row, Status.STOPPED, lambda tx: jobs.set_aside(tx, row, self.now))

    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        row = self.seen(pick)
        if row.status is Status.STOPPED:
            self.change(row, Status.PENDING, lambda tx: jobs.resume(tx, row, self.now))
        else:
            assert not self.tried(lambda tx: jobs.resume(tx, row, self.now))

    @rule(pick=PICK, low=st.booleans())
    def rank(self, pick: int, low: bool) -> None:
        row = self.seen(pick)
        before = self.job(row.id)
        accepted = self.tried(lambda tx: queue.rank_again(tx, row, low, self.now, self.offered))
        assert accepted == (before.status not in ENDED)
        self.check(row.id)

    @rule(by=st.integers(1, 3))
    def time_passes(self, by: int) -> None:
        self.now += by

    # -- and what has to hold ----------------------------------------------------------------------

    def change(self, row: Job, to: Status, item: Callable[[Transaction], Any]) -> None:
        """A change happens when the row is as it is and the table allows it; else nothing does."""
        before = self.job(row.id)
        same = (row.status, row.attempt) == (before.status, before.attempt)
        accepted = self.tried(item)
        assert accepted == (same and may_become(row.status, to)), (row.status, before.status, to)
        after = self.check(row.id)
        assert after.status is to if accepted else after == before

    def check(self, job_id: str) -> Job:
        told, tries = self.read(
            lambda conn: (history(conn, job_id), attempts.of_job(conn, jobs.get(conn, job_id)))
        )
        job = self.job(job_id)
        statuses = [status for status, _, _, changed in told if changed]
        assert all(later in TRANSITIONS[one] for one, later in itertools.pairwise(statuses)), statuses
        assert sum(status in ENDED for status in statuses) == (job.status in ENDED)
        assert told[-1][:2] == (job.status, job.outcome)
        moments = [at for _, _, at, _ in told]
        assert moments == sorted(moments)
        own = [job.timestamp, job.started_at, job.begun_at, job.ended_at]
        known = [moment for moment in own if moment is not None]
        assert known == sorted(known)
        assert (job.ended_at is None) == (job.status not in ENDED)
        assert (job.worker_id is not None) == (job.status in ACTIVE)
        assert [one.number for one in tries] == list(range(1, job.attempt + 1))
        return job

    # -- the store ---------------------------------------------------------------------------------

    def added(self) -> Job:
        job_id: str = self.run(self.store.write(lambda tx: insert_job(tx, timestamp=self.now)))
        return self.check(job_id)

    def tried(self, item: Callable[[Transaction], Any]) -> bool:
        """Whether the store took it."""
        type(self).steps += 1
        try:
            self.run(self.store.write(item))
        except (TransitionRefused, LeaseLost, Conflict):
            return False
        return True

    def job(self, job_id: str) -> Job:
        found: Job = self.read(lambda conn: jobs.get(conn, job_id))
        return found

    def read(self, query: Callable[[Connection], Any]) -> Any:
        return self.run(self.store.look(query))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)


def history(conn: Connection, job_id: str) -> Told:
    """What the events say: status, outcome, moment, and whether the status changed."""
    E = tables.events.c
    rows = conn.execute(select(E.data, E.at).where(E.job_id == job_id).order_by(E.id))
    return [
        (Status(data["status"]), data.get("outcome"), at, "low_priority" not in data) for data, at in rows
    ]


@pytest.mark.check(2)
@pytest.mark.timeout(1800)
def test_no_walk_through_the_store_leaves_the_table(store_url: str, full: bool) -> None:
    wanted = STEPS if full else FEW_STEPS
    with asyncio.Runner() as runner:
        Walk.runner, Walk.store, Walk.steps = runner, open_store(store_url), 0
        runner.run(Walk.store.start())
        try:
            while Walk.steps < wanted:
                number = random.randrange(2**32)
                print(f"seed {number}, {Walk.steps} steps before it")  # noqa: T201 - shown when it fails
                run_machine(
                    seed(number)(Walk),
                    settings=settings(
                        max_examples=100 if full else 20,
                        stateful_step_count=50,
                        deadline=None,
                        database=None,
                        suppress_health_check=list(HealthCheck),
                    ),
                )
        finally:
            runner.run(Walk.store.stop())
    print(f"{Walk.steps} steps")  # noqa: T201

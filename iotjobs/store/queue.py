"""What is ready to run, what comes due, and lanes: the queries behind dispatch.

The job table is the truth. A ticket is a hint: it is offered in the transaction that makes a job
ready, and the sweep offers again whatever is ready and may have lost its ticket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Connection,
    String,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    update,
)

from iotjobs.domain.control import ASKED
from iotjobs.domain.jobs import Job, PendingReason, Transport
from iotjobs.domain.statuses import ACTIVE, Status
from iotjobs.store import tables
from iotjobs.store.jobs import J, job_columns, job_of, set_low_priority
from iotjobs.store.statements import Prepared
from iotjobs.store.switch import DISPATCHES
from iotjobs.store.writer import Transaction

_HELD = (PendingReason.QUEUE, PendingReason.DRAINED)


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A job that may run now; sorts by priority, highest first, then turn, then age.

    Attributes:
        rank: of its priority; low priority stands behind everything else.
        turn: how many jobs of the same parent stand before it, so that ten thousand of one parent
            let everybody else's next job pass.
        attempt: how many attempts the job had when it became ready; a job has one live ticket for each.
        mqtt: its message goes by a broker: not every node may have one.
        lane, queue: of the job, so that who takes the ticket knows what to lock before it reads the row.
    """

    rank: int
    turn: int
    seq: int
    job_id: str
    attempt: int = 0
    mqtt: bool = field(default=False, compare=False)
    lane: str | None = field(default=None, compare=False)
    queue: str = field(default="", compare=False)

    @classmethod
    def of(cls, job: Job, turn: int = 0) -> Ticket:
        """The ticket of a job, without a parent unless `turn` says otherwise."""
        rank, mqtt = rank_of(job.priority, job.low_priority), job.transport is Transport.MQTT
        return cls(rank, turn, job.seq, job.id, job.attempt, mqtt, job.lane, job.queue)

    @property
    def key(self) -> str:
        """What no two live tickets have in common."""
        return f"{self.job_id}:{self.attempt}"


def ticket_of(conn: Connection, job: Job) -> Ticket:
    """The ticket of a job, its siblings counted."""
    if job.parent_id is None:
        return Ticket.of(job)
    return Ticket.of(job, _siblings_ahead.scalar(conn, {"parent": job.parent_id, "before": job.seq}))


_siblings_ahead = Prepared(
    select(func.count())
    .select_from(tables.jobs)
    .where(J.parent_id == bindparam("parent"), J.ended_at.is_(None), J.seq < bindparam("before"))
)


def rank_of(priority: int, low_priority: bool) -> int:
    """Smaller runs first."""
    return (10 if low_priority else 0) - priority


class Offers(Protocol):
    """The half of the dispatcher that transactions need."""

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """Make a ticket known, in this transaction: with its commit or not at all."""


class Tickets(Offers, Protocol):
    """And what it takes to change a ticket's rank."""

    def withdraw(self, tx: Transaction, ticket: Ticket) -> None:
        """The job's ticket is live no more, with the commit of this transaction."""


def _is_ready(columns: Any) -> ColumnElement[bool]:
    """Whether a row's start has come, and its time to live has not ended (parameter `now`)."""
    now: BindParameter[int] = bindparam("now")
    return and_(
        columns.status == Status.PENDING,
        or_(columns.start_at.is_(None), columns.start_at <= now),
        or_(columns.expires_at.is_(None), columns.expires_at > now),
    )


READY = _is_ready(J)


# Not IN, here and below: see `Prepared`.
def under_way(columns: Any) -> ColumnElement[bool]:
    """Whether an attempt of a row is under way."""
    return or_(*(columns.status == status for status in sorted(ACTIVE)))


def _held_back(columns: Any) -> ColumnElement[bool]:
    return or_(*(columns.pending_reason == reason for reason in _HELD))


def _free(columns: Any) -> ColumnElement[bool]:
    """What waits for more than its lane lets the others of the lane pass."""
    return or_(columns.pending_reason.is_(None), not_(_held_back(columns)))


UNDER_WAY, _HELD_BACK, _FREE = under_way(J), _held_back(J), _free(J)
_in_lane_before = Prepared(
    select(J.id)
    .where(J.lane == bindparam("lane"), or_(UNDER_WAY, and_(READY, _FREE)))
    .limit(bindparam("limit"))
)
_next_in_lane = Prepared(
    select(*job_columns)
    .where(J.lane == bindparam("lane"), READY)
    .order_by(case((_HELD_BACK, 1), else_=0), J.low_priority, J.priority.desc(), J.seq)
    .limit(1)
)
_next_free_in_lane = Prepared(
    select(*job_columns)
    .where(J.lane == bindparam("lane"), READY, _FREE)
    .order_by(J.low_priority, J.priority.desc(), J.seq)
    .limit(1)
)
_lane_active = Prepared(select(J.seq).where(J.lane == bindparam("lane"), UNDER_WAY).limit(1))


_wait_for = Prepared(
    update(tables.jobs)
    .where(J.id == bindparam("is_id"), J.status == Status.PENDING)
    .values(pending_reason=bindparam("reason"))
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that may be about to begin.

    Attributes:
        lane_taken: an attempt is under way in its lane.
        dispatches: the site is open, and stays so until the transaction ends that looked.
        plan, secret: as `jobs.plan_of` gives them.
    """

    job: Job
    lane_taken: bool
    dispatches: bool
    plan: dict[str, Any]
    secret: bytes | None


_in_lane = tables.jobs.alias("in_lane")
_candidates = select(
    *job_columns,
    and_(
        J.lane.is_not(None),
        exists().where(_in_lane.c.lane == J.lane, under_way(_in_lane.c)),
    ),
    DISPATCHES,
    tables.plans.c.plan,
    tables.plans.c.secret,
).select_from(tables.jobs.outerjoin(tables.plans, tables.plans.c.job_id == J.id))
_candidate = Prepared(_candidates.where(J.id == bindparam("is_id")))
_candidates_of = Prepared(_candidates.where(J.id == func.any(bindparam("ids", type_=ARRAY(String)))))


def candidate(tx: Transaction, job_id: str) -> Candidate | None:
    """What a ticket leads to, in one look; None: the job is gone."""
    ahead: Candidate | None = tx.ahead.pop(job_id, None)
    if ahead is not None:
        return ahead
    row = _candidate.first(tx.conn, {"is_id": job_id})
    return None if row is None else Candidate(job_of(row[:-4]), *row[-4:])


def candidates(conn: Connection, job_ids: list[str]) -> dict[str, Candidate]:
    """The same for several, read ahead on PostgreSQL."""
    rows = _candidates_of.all(conn, {"ids": job_ids})
    return {row.id: Candidate(job_of(row[:-4]), *row[-4:]) for row in rows}


def lane_is_free(tx: Transaction, lane: str | None, now: int, *, but: Collection[str] = ()) -> bool:
    """Whether nothing in a lane runs or stands ready but these jobs, that are new there; it stays so until COMMIT."""
    if lane is None:
        return True
    tx.lock(lane)
    found = _in_lane_before.all(tx.conn, {"lane": lane, "now": now, "limit": len(but) + 1})
    return all(row.id in but for row in found)


def lane_active(conn: Connection, lane: str) -> bool:
    """Whether an attempt is under way in the lane."""
    return _lane_active.first(conn, {"lane": lane}) is not None


def nobody_waits(conn: Connection, lane: str | None, now: int) -> bool:
    """Whether nothing stands ready in a lane, or there is none: then whoever leaves it offers nothing."""
    return lane is None or _next_in_lane.first(conn, {"lane": lane, "now": now}) is None


def offer_next(
    tx: Transaction, lane: str | None, now: int, offers: Offers, *, held_back: bool = True
) -> str | None:
    """A job left the lane: offer the next one, if nothing else is under way there; the id of what was offered.

    What a full queue or a drained site holds back comes last; without `held_back`, not at all.
    """
    if lane is None:
        return None
    tx.lock(lane)
    following = _next_in_lane if held_back else _next_free_in_lane
    row = following.first(tx.conn, {"lane": lane, "now": now})
    if row is None or lane_active(tx.conn, lane):
        return None
    job = job_of(row)
    if job.pending_reason is not None:
        _wait_for.run(tx.conn, {"is_id": job.id, "reason": None})
    offers.offer(tx, ticket_of(tx.conn, job))
    return job.id


def offer_again(tx: Transaction, job: Job, now: int, offers: Offers) -> None:
    """A job left its lane and stands ready there again: offer it, or whoever is before it now."""
    if job.lane is None:
        offers.offer(tx, ticket_of(tx.conn, job))
    elif offer_next(tx, job.lane, now, offers) != job.id:
        _wait_for.run(tx.conn, {"is_id": job.id, "reason": PendingReason.LANE})


def offer_if_free(tx: Transaction, lane: str | None, ticket: Ticket, now: int, offers: Offers) -> bool:
    """A job became ready: offer it, or note that it waits for its lane; whether it was offered."""
    if not lane_is_free(tx, lane, now, but=(ticket.job_id,)):
        _wait_for.run(tx.conn, {"is_id": ticket.job_id, "reason": PendingReason.LANE})
        return False
    offers.offer(tx, ticket)
    return True


def offer_in_lanes(tx: Transaction, lanes: Mapping[str, Sequence[Job]], now: int, offers: Offers) -> None:
    """New jobs of several lanes, by their lane: of each the first is offered if the lane was free, the others wait.

    The lanes are locked all at once: who locks one after the other may meet somebody who does so the other way.
    """
    tx.lock(*lanes)
    for lane, (first, *others) in lanes.items():
        if lane_is_free(tx, lane, now, but=[job.id for job in (first, *others)]):
            offers.offer(tx, ticket_of(tx.conn, first))
        else:
            others.append(first)
        if others:
            waiting = [{"is_id": job.id, "reason": PendingReason.LANE} for job in others]
            _wait_for.run_each(tx.conn, waiting)


def ready(conn: Connection, now: int, limit: int) -> list[Ticket]:
    """Jobs that may run now: one a lane, the first by priority and age.

    Those that a full queue or a drained site holds back are left out, see `store.queues`.
    """
    other = tables.jobs.alias("other")
    ahead = exists().where(
        other.c.lane == J.lane,
        or_(under_way(other.c), and_(_is_ready(other.c), _free(other.c), _before(other.c, J))),
    )
    query = (
        select(J.priority, J.low_priority, J.parent_id, J.transport, J.seq, J.id, J.attempt, J.lane, J.queue)
        .where(READY, or_(J.lane.is_(None), ~ahead), _FREE)
        .order_by(J.low_priority, J.priority.desc(), J.seq)
        .limit(limit)
    )
    turns: Counter[str] = Counter()
    tickets = []
    for priority, low, parent_id, transport, seq, job_id, attempt, *rest in conn.execute(query, {"now": now}):
        turn = turns[parent_id] if parent_id is not None else 0
        turns[parent_id] += 1
        mqtt = transport == Transport.MQTT
        tickets.append(Ticket(rank_of(priority, low), turn, seq, job_id, attempt, mqtt, *rest))
    return tickets


def _before(a: Any, b: Any) -> Any:
    """Whether row `a` stands before row `b` in a lane."""
    same = a.low_priority == b.low_priority
    return or_(
        and_(~a.low_priority, b.low_priority),
        and_(same, a.priority > b.priority),
        and_(same, a.priority == b.priority, a.seq < b.seq),
    )


@cache
def _due(moment: str) -> Prepared:
    return Prepared(
        select(*job_columns)
        .where(literal_column(tables.DUE[moment]), J[moment] <= bindparam("now"))
        .order_by(J[moment])
        .limit(bindparam("limit"))
    )


def due(conn: Connection, moment: str, now: int, limit: int = 200) -> list[Job]:
    """Jobs that the clock moves now, earliest first.

    Args:
        conn: a connection.
        moment: `start_at` (PENDING), `expires_at` (PENDING, STOPPED) or `deadline_at` (parked).
        now: milliseconds.
        limit: at most so many.
    """
    return [job_of(row) for row in _due(moment).all(conn, {"now": now, "limit": limit})]


def begin_waiting(tx: Transaction, job: Job, now: int, offers: Offers) -> None:
    """A job's start has come: it stands ready from now on."""
    begun = tx.conn.execute(
        update(tables.jobs)
        .where(J.id == job.id, J.status == Status.PENDING, J.start_at == job.start_at)
        .values(start_at=None, pending_reason=None)
    )
    if begun.rowcount != 1:  # it was canceled, say, or waits for another start since it was looked for
        return
    offer_if_free(tx, job.lane, ticket_of(tx.conn, job), now, offers)


_W = tables.workers.c
_ALIVE = exists().where(_W.id == J.worker_id, _W.gone_at.is_(None))


def orphans(
    conn: Connection, worker_id: str, *, after: int = 0, limit: int = 500, asked: bool = False
) -> list[Job]:
    """Attempts under way that a worker holds who is neither this one nor alive.

    Args:
        conn: a connection.
        worker_id: who is not meant.
        after: only of jobs with a `seq` behind this.
        limit: at most so many.
        asked: those that are to be ended by a cancel or a stop, also one that was parked just before that;
            else those that just run, without the parked.
    """
    which = J.status.in_(ASKED) if asked else and_(J.status == Status.RUNNING, J.deadline_at.is_(None))
    query = (
        select(*job_columns)
        .where(which, J.worker_id != worker_id, ~_ALIVE, J.seq > after)
        .order_by(J.seq)
        .limit(limit)
    )
    return [job_of(row) for row in conn.execute(query)]


def unproven(conn: Connection, worker_id: str, *, of_the_dead: bool) -> list[Job]:
    """Jobs at rest of which this worker, or one that is not alive, has yet to find out what they left."""
    whose = J.worker_id == worker_id
    if of_the_dead:
        whose = or_(whose, ~_ALIVE)
    query = select(*job_columns).where(literal_column(tables.UNPROVEN), whose)
    return [job_of(row) for row in conn.execute(query)]


def asked(conn: Connection, worker_id: str) -> list[Job]:
    """Attempts that a worker holds and that a person wants ended."""
    query = select(*job_columns).where(J.status.in_(ASKED), J.worker_id == worker_id)
    return [job_of(row) for row in conn.execute(query)]


def rank_again(tx: Transaction, job: Job, low: bool, now: int, offers: Tickets) -> None:
    """Put a job behind everything else, or back: also among what waits."""
    if job.lane is not None:
        tx.lock(job.lane)
    was_next = job.lane is None or _is_next(tx.conn, job, now)
    set_low_priority(tx, job, low, now)
    if job.status is not Status.PENDING or (job.start_at is not None and job.start_at > now):
        return
    before, job = ticket_of(tx.conn, job), replace(job, low_priority=low)
    offer_next(tx, job.lane, now, offers)
    if was_next and (job.lane is None or not lane_active(tx.conn, job.lane)):
        # Its ticket is out there: one of its new rank takes that one's place.
        offers.withdraw(tx, before)
        offers.offer(tx, ticket_of(tx.conn, job))
        if job.lane is not None and job.pending_reason is None and not _is_next(tx.conn, job, now):
            _wait_for.run(tx.conn, {"is_id": job.id, "reason": PendingReason.LANE})


def _is_next(conn: Connection, job: Job, now: int) -> bool:
    row = _next_in_lane.first(conn, {"lane": job.lane, "now": now})
    return row is not None and row.id == job.id


def held(conn: Connection, worker_id: str) -> list[tuple[str, int]]:
    """Attached attempts under way that a worker holds: (job id, attempt's number)."""
    query = select(J.id, J.attempt).where(UNDER_WAY, J.deadline_at.is_(None), J.worker_id == worker_id)
    return [(id_, attempt) for id_, attempt in conn.execute(query)]

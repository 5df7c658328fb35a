"""Queues with their concurrency, and whether the site dispatches at all.

A queue's limit counts attempts that hold a worker; parked ones hold none. What a full queue holds
back waits with the reason `queue`, and whatever leaves the queue offers the next of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    func,
    literal_column,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from iotjobs.domain.errors import BadRequest, Conflict, NotFound
from iotjobs.domain.jobs import Job, JobType, PendingReason
from iotjobs.domain.statuses import ACTIVE, Status
from iotjobs.store import facts, tables
from iotjobs.store.jobs import J, job_columns, job_of
from iotjobs.store.queue import READY, UNDER_WAY, Offers, ticket_of
from iotjobs.store.queue import under_way as is_under_way
from iotjobs.store.statements import Prepared
from iotjobs.store.switch import DISPATCH
from iotjobs.store.writer import Transaction

# Always there; a row only changes their limit. None: as many as the workers have places.
BUILT_IN: Mapping[str, int | None] = {"mix": None, "light": None, "heavy": 4, "system": None}
ALIASES = {"default": "mix"}
_ALL = 10_000

Q = tables.queues.c


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue and what is in it.

    Attributes:
        concurrency: attempts at the same time, over all workers; None means no limit of its own.
        running: attempts that hold a worker now; `waiting`: PENDING jobs.
    """

    name: str
    concurrency: int | None
    built_in: bool
    running: int
    waiting: int


def limits(conn: Connection) -> dict[str, int | None]:
    """The concurrency of every queue, by name."""
    found = conn.execute(select(Q.name, Q.concurrency)).all()
    return {**BUILT_IN, **{row.name: row.concurrency for row in found}}


def states(conn: Connection) -> list[QueueState]:
    """Every queue with what is in it: built-in ones first, then the site's own by name."""
    known = limits(conn)
    found = conn.execute(
        select(J.queue, J.status, J.deadline_at.is_(None), func.count())
        .where(J.ended_at.is_(None))
        .group_by(J.queue, J.status, J.deadline_at.is_(None))
    )
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for name, status, attached, count in found:
        if status == Status.PENDING:
            waiting[name] = waiting.get(name, 0) + count
        elif status in ACTIVE and attached:
            running[name] = running.get(name, 0) + count
    names = [*BUILT_IN, *sorted(set(known) - set(BUILT_IN))]
    return [
        QueueState(name, known[name], name in BUILT_IN, running.get(name, 0), waiting.get(name, 0))
        for name in names
    ]


def put(tx: Transaction, name: str, concurrency: int | None) -> bool:
    """Make a queue or change its limit; whether it is new."""
    known = tx.conn.execute(select(Q.name).where(Q.name == name)).first() is not None
    row = {"name": name, "concurrency": concurrency}
    make = postgresql.insert if tx.conn.dialect.name == "postgresql" else sqlite.insert
    made = make(tables.queues).values(row)  # somebody else may be making it just now
    tx.conn.execute(made.on_conflict_do_update(index_elements=["name"], set_={"concurrency": concurrency}))
    return not known and name not in BUILT_IN


def refuse_alias(name: str) -> None:
    """What changes a queue names it itself.

    Raises:
        BadRequest: it is another name of a queue.
    """
    if name in ALIASES:
        raise BadRequest(f"{name} is another name of {ALIASES[name]}", field="name")


def remove(tx: Transaction, name: str) -> None:
    """Delete a queue of the site's own.

    Raises:
        NotFound: there is none of this name.
        Conflict: it is built in, or operations or live jobs are in it.
        BadRequest: it is another name of a queue.
    """
    refuse_alias(name)
    if name in BUILT_IN:
        raise Conflict(f"the queue {name} is built in: it cannot be deleted")
    used = tx.conn.execute(
        select(tables.operations.c.name)
        .where(tables.operations.c.settings["queue"].as_string() == name)
        .limit(1)
    ).scalar()
    if used is not None:
        raise Conflict(f"the operation {used} uses the queue {name}: change it first")
    if tx.conn.execute(select(J.id).where(J.queue == name, J.ended_at.is_(None)).limit(1)).first():
        raise Conflict(f"jobs are in the queue {name}: wait for their end or cancel them")
    if tx.conn.execute(delete(tables.queues).where(Q.name == name)).rowcount != 1:
        raise NotFound(f"there is no queue {name}")


def known_name(conn: Connection, name: str) -> str:
    """The queue's own name for a name or an alias.

    Raises:
        BadRequest: there is no such queue.
    """
    name = ALIASES.get(name, name)
    known = limits(conn)
    if name not in known:
        raise BadRequest(
            f"there is no queue {name}: use one of {', '.join(sorted(known))}, or make it with PUT /queues/{name}",
            field="queue",
        )
    return name


# -- holding back and going on ------------------------------------------------------------------


def lock_of(name: str) -> str:
    """What whoever begins or ends an attempt in a limited queue locks."""
    return f"queue:{name}"


def has_place(tx: Transaction, name: str, limit: int) -> bool:
    """Whether another attempt may begin in a queue; nobody else begins one in it meanwhile."""
    tx.lock(lock_of(name))
    return _running_in(tx.conn, name) < limit


def _running_in(conn: Connection, name: str) -> int:
    return int(_in_queue.scalar(conn, {"name": name}))


_in_queue = Prepared(
    select(func.count())
    .select_from(tables.jobs)
    .where(J.queue == bindparam("name"), UNDER_WAY, J.deadline_at.is_(None))
)


def hold_back(tx: Transaction, job: Job, reason: PendingReason) -> None:
    """The job is ready and may not begin now: say why."""
    if job.pending_reason is not reason:
        _because.run(tx.conn, {"is_id": job.id, "reason": reason})


_because = Prepared(
    update(tables.jobs)
    .where(J.id == bindparam("is_id"), J.status == Status.PENDING)
    .values(pending_reason=bindparam("reason"))
)


def offer_next_of(tx: Transaction, name: str, now: int, offers: Offers) -> bool:
    """An attempt left a limited queue: offer the next job that waits for a place; whether there was one.

    Of the same priority those without a parent come first, so that a parent's many let them pass.
    """
    for low, priority in _held_ranks.all(tx.conn, {"name": name}):
        given = {"name": name, "low": low, "priority": priority, "now": now}
        row = _first_single.first(tx.conn, given) or _first_held.first(tx.conn, given)
        if row is not None:
            job = job_of(row)
            _because.run(tx.conn, {"is_id": job.id, "reason": None})
            offers.offer(tx, ticket_of(tx.conn, job))
            return True
    return False


_of_queue: tuple[ColumnElement[bool], ...] = (
    literal_column(tables.HELD),
    J.pending_reason == PendingReason.QUEUE,
    J.queue == bindparam("name"),
)
_held_ranks = Prepared(
    select(J.low_priority, J.priority)
    .where(*_of_queue)
    .distinct()
    .order_by(J.low_priority, J.priority.desc())
)
_other = tables.jobs.alias("other")
_lane_taken = (
    select(literal_column("1"))
    .select_from(_other)
    .where(_other.c.lane == J.lane, is_under_way(_other.c))
    .exists()
)


def _first_of_rank(*conditions: ColumnElement[bool]) -> Prepared:
    of_rank = (J.low_priority == bindparam("low"), J.priority == bindparam("priority"))
    free = or_(J.lane.is_(None), not_(_lane_taken))
    query = select(*job_columns).where(*_of_queue, *of_rank, READY, free, *conditions)
    # Of two attempts that leave at the same time each lets another job go on.
    first = query.order_by(J.seq).limit(1).with_for_update(of=tables.jobs, skip_locked=True)
    return Prepared(first)


_first_single, _first_held = _first_of_rank(J.parent_id.is_(None)), _first_of_rank()


def holding_back(conn: Connection) -> list[str]:
    """The queues in which jobs wait for a place."""
    query = select(J.queue).where(literal_column(tables.HELD), J.pending_reason == PendingReason.QUEUE)
    return list(conn.execute(query.distinct()).scalars())


def let_go(tx: Transaction, name: str, limit: int | None) -> int:
    """Hold back no more than a queue's limit asks for; how many may go on: the sweep offers them."""
    places = _ALL if limit is None else limit - _running_in(tx.conn, name)
    if places <= 0:
        return 0
    ordered = (J.low_priority, J.priority.desc(), J.seq)
    first = select(J.seq).where(*_of_queue).order_by(*ordered).limit(places)
    change = update(tables.jobs).where(J.seq.in_(first)).values(pending_reason=None)
    return tx.conn.execute(change, {"name": name}).rowcount


# -- the site's switch --------------------------------------------------------------------------


def dispatching(conn: Connection) -> bool:
    """Whether new attempts may begin."""
    query = select(tables.site.c.value).where(tables.site.c.name == DISPATCH)
    return conn.execute(query).scalar() != "drained"


def set_dispatching(tx: Transaction, is_open: bool) -> None:
    """Open or drain the site. Ready jobs wait with the reason `drained` until it is opened."""
    facts.put(tx, DISPATCH, "open" if is_open else "drained")
    tell_switched(tx)


def tell_switched(tx: Transaction) -> int:
    """Say of the jobs that wait for nothing else whether they wait for the site; how many it was new for.

    To be called again and again: a transaction beside the one that switched may have told the opposite.
    """
    if dispatching(tx.conn):
        change = update(tables.jobs).where(
            literal_column(tables.HELD), J.pending_reason == PendingReason.DRAINED
        )
        return tx.conn.execute(change.values(pending_reason=None)).rowcount
    change = update(tables.jobs).where(J.status == Status.PENDING, J.pending_reason.is_(None))
    return tx.conn.execute(change.values(pending_reason=PendingReason.DRAINED)).rowcount


def any_drained(conn: Connection) -> bool:
    """Whether jobs are said to wait for the site."""
    query = select(J.id).where(literal_column(tables.HELD), J.pending_reason == PendingReason.DRAINED)
    return conn.execute(query.limit(1)).first() is not None


def under_way(conn: Connection) -> int:
    """Attempts that hold a worker, anywhere."""
    query = select(func.count()).select_from(tables.jobs).where(UNDER_WAY, J.deadline_at.is_(None))
    return int(conn.execute(query).scalar_one())


def drains(conn: Connection) -> list[Job]:
    """The STOP_APP jobs that wait for the end of what runs."""
    query = select(*job_columns).where(J.type == JobType.STOP_APP, J.ended_at.is_(None))
    return [job_of(row) for row in conn.execute(query)]

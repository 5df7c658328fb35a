"""Chains of causes: how much stands before what jobs lead to, so that a loop is seen."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func, select

from iotjobs.domain.jobs import Cause
from iotjobs.store import tables
from iotjobs.store.state_tables import state_changes
from iotjobs.store.statements import Among, Prepared

J, H = tables.jobs.c, state_changes.c

# In the `process_meta` of what a write of a property ran; of writes those that ran something, one right behind another.
TRIGGERS_BEFORE, WRITES_BEFORE = "triggers_before", "writes_before"
_started_for = Prepared(select(J.cause, J.process_meta).where(Among(J.id, "wanted")))
_deepest = Prepared(select(func.max(H.depth)).where(Among(H.id, "wanted")))


def writes_behind(conn: Connection, job_ids: Iterable[str]) -> int:
    """How many writes of properties stand before a write that one of these jobs does, one right behind another."""
    rows = _started_for.all(conn, {"wanted": list(job_ids)})
    of_writes = [row.process_meta or {} for row in rows if row.cause == Cause.PROPERTY]
    return max((int(meta.get(WRITES_BEFORE, 0)) + 1 for meta in of_writes), default=0)


def depth_behind(conn: Connection, job_ids: Iterable[str]) -> int:
    """How many triggers stand before what these jobs led to, in the longest of their chains; ids may be made up."""
    rows = [row for row in _started_for.all(conn, {"wanted": list(job_ids)}) if row.process_meta is not None]
    of_writes = [int(row.process_meta.get(TRIGGERS_BEFORE, 0)) for row in rows if row.cause == Cause.PROPERTY]
    changes = [row.process_meta["state_change_id"] for row in rows if row.cause == Cause.TRIGGER]
    depth = _deepest.scalar(conn, {"wanted": changes}) if changes else None
    of_firings = [] if depth is None else [int(depth) + 1]
    return max([*of_firings, *of_writes], default=0)

"""Chains of causes: which triggers stand before what a job led to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, select

from iotjobs.domain.errors import BadRequest
from iotjobs.domain.jobs import Cause
from iotjobs.store import tables
from iotjobs.store.state_tables import state_changes
from iotjobs.store.statements import Among, Prepared

J, H = tables.jobs.c, state_changes.c
# In the `process_meta` of what a write of a property ran; of writes those that ran something, one right behind another.
TRIGGERS_BEFORE, WRITES_BEFORE = "triggers_before", "writes_before"
_SEQ_DIGITS = 18

_by_id, _by_seq = (
    Prepared(select(J.cause, J.process_meta).where(Among(column, "wanted"))) for column in (J.id, J.seq)
)
_deepest = Prepared(select(func.max(H.depth)).where(Among(H.id, "wanted")))


def _jobs(conn: Connection, references: Iterable[str]) -> list[Any]:
    """Those of these ids, or seqs in digits, that there are."""
    ids, seqs = [], []
    for one in references:
        if one.isascii() and one.isdigit() and len(one) <= _SEQ_DIGITS:
            seqs.append(int(one))
        else:
            ids.append(one)
    found = list(_by_id.all(conn, {"wanted": ids})) if ids else []
    return found + list(_by_seq.all(conn, {"wanted": seqs})) if seqs else found


def refuse_unknown(conn: Connection, references: Iterable[str], field: str) -> None:
    """Refuse jobs that there are not: a loop of triggers would not be seen.

    Raises:
        BadRequest: names the first, and the field that it was given in.
    """
    for one in references:
        if not _jobs(conn, [one]):
            raise BadRequest(f"{field}: there is no job {one}; give its id, or its seq", field=field)


def writes_behind(conn: Connection, references: Iterable[str]) -> int:
    """How many writes of properties stand before a write that one of these jobs does, one right behind another."""
    of_writes = [row.process_meta or {} for row in _jobs(conn, references) if row.cause == Cause.PROPERTY]
    return max((int(meta.get(WRITES_BEFORE, 0)) + 1 for meta in of_writes), default=0)


def depth_behind(conn: Connection, references: Iterable[str]) -> int:
    """How many triggers stand before what these jobs led to, in the longest of their chains; they may be made up."""
    rows = [row for row in _jobs(conn, references) if row.process_meta is not None]
    of_writes = [int(row.process_meta.get(TRIGGERS_BEFORE, 0)) for row in rows if row.cause == Cause.PROPERTY]
    changes = [row.process_meta["state_change_id"] for row in rows if row.cause == Cause.TRIGGER]
    depth = _deepest.scalar(conn, {"wanted": changes}) if changes else None
    of_firings = [] if depth is None else [int(depth) + 1]
    return max([*of_firings, *of_writes], default=0)

"""What submits read before they insert, for many of them on one way there and back. PostgreSQL only."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from iotjobs.store.statements import run

_DRAW = """
SELECT given.job_id, nextval('job_seq_seq'), operation.version
FROM unnest($1::text[], $2::text[]) AS given (job_id, operation_id)
LEFT JOIN operation ON operation.id = given.operation_id
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Of a job that is about to be inserted.

    Attributes:
        seq: its number, from now on nobody else's.
        version: that its operation has now; None: there is no such operation.
    """

    seq: int
    version: int | None


def draw(conn: Connection, wanted: list[tuple[str, str]]) -> dict[str, Drawn]:
    """For each (job id, operation id), by the job's id; to be given to `Store.write` as `ahead`."""
    rows = run(conn, _DRAW, [[job_id for job_id, _ in wanted], [operation_id for _, operation_id in wanted]])
    return {job_id: Drawn(seq, version) for job_id, seq, version in rows.fetchall()}

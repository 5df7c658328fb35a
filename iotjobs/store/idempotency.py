"""Idempotency keys that were used, each with its body's digest and the job that came of it."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select

from iotjobs.domain.errors import IdempotencyMismatch
from iotjobs.store import tables
from iotjobs.store.statements import insert_if_new
from iotjobs.store.writer import Transaction

I = tables.idempotency.c  # noqa: E741 - the table's columns, as J is the job's


def job_of(conn: Connection, scope: str, body: str) -> str | None:
    """The job that a key made before.

    Args:
        conn: where to read.
        scope: who sent which key to what.
        body: digest of the request's body.

    Raises:
        IdempotencyMismatch: the key came with another body.
    """
    found = conn.execute(select(I.body, I.job_id).where(I.scope == scope)).first()
    if found is None:
        return None
    if found.body != body:
        raise IdempotencyMismatch("this Idempotency-Key was used before with another body: use a new key")
    return str(found.job_id)


def take(tx: Transaction, scope: str, body: str, job_id: str, at: int) -> str | None:
    """Take a key for a job; the id of the job that took it before, if one did.

    Raises:
        IdempotencyMismatch: see `job_of`.
    """
    row = {"scope": scope, "body": body, "job_id": job_id, "at": at}
    return None if insert_if_new(tx.conn, tables.idempotency, row) else job_of(tx.conn, scope, body)


def forget(tx: Transaction, *, before: int) -> None:
    """Delete keys that were used before a moment."""
    tx.conn.execute(delete(tables.idempotency).where(I.at < before))

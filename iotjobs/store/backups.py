"""What a backup and a restore need of the store: a copy of SQLite's file, and a new life for the copy."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import and_, inspect, not_, or_, select, text, true

from iotjobs import clock
from iotjobs.domain.errors import ConfigurationError, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Ending
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import ENDED, Outcome
from iotjobs.store import events, jobs, rules
from iotjobs.store.jobs import J, job_columns, job_of
from iotjobs.store.migrations.migrate import RESTORING, lock_schema
from iotjobs.store.secrets import Secrets, check_canary
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

PAGE = 200
_BEHIND = Ending(
    Outcome.LOST,
    error_code="restored",
    error_message="the site was restored from a backup that is older than this job's end; it may have run",
)
_MAY_HAVE_FIRED = "the site was restored from a backup in which it waited; it may have fired since"


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that may be in use, as it is at one moment; writers go on meanwhile.

    Raises:
        StorageFull: no room for the copy.
        StoreUnavailable: it cannot be read, or the copy is damaged.
    """
    try:
        reading, writing = sqlite3.connect(source), sqlite3.connect(target)
        try:
            # In one step: one that is made in several begins again whenever somebody writes.
            reading.backup(writing, pages=-1)
            writing.execute("PRAGMA journal_mode = DELETE")  # the copy is one file, and opens anywhere
            [(said,)] = writing.execute("PRAGMA quick_check(1)").fetchall()
        finally:
            reading.close()
            writing.close()
    except sqlite3.Error as error:
        if error.sqlite_errorname == "SQLITE_FULL":
            raise StorageFull(f"there is no room for a copy at {target.parent}") from error
        raise StoreUnavailable(f"{source} cannot be copied: {error}") from error
    if said != "ok":
        raise StoreUnavailable(f"{source} is damaged: {said}")


def check_sqlite(file: Path) -> None:
    """Look whether a file holds a whole database.

    Raises:
        ConfigurationError: it does not.
    """
    connection = sqlite3.connect(file)
    try:
        [(said,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    except sqlite3.Error as error:
        raise ConfigurationError(f"the backup is damaged: {error}") from error
    finally:
        connection.close()
    if said != "ok":
        raise ConfigurationError(f"the backup is damaged: {said}")


def begin_restore(tx: Transaction) -> bool:
    """Mark an empty PostgreSQL database: nobody serves it until `end_restore`. False: it is not empty.

    One that a restore has left before its first row is empty.
    """
    lock_schema(tx.conn)
    if not set(inspect(tx.conn).get_table_names()) <= {RESTORING}:
        return False
    tx.conn.execute(text(f"CREATE TABLE IF NOT EXISTS {RESTORING} ()"))
    return True


def end_restore(tx: Transaction) -> None:
    """The database is whole, and fit to be served."""
    tx.conn.execute(text(f"DROP TABLE {RESTORING}"))


async def begin_life(store: Store, vault: Secrets | None, *, moved: bool) -> int:
    """Make a copy fit to be served: whatever followed the backup is unknown to it.

    Args:
        store: the copy, at the newest revision.
        vault: under the site's key, if that is there.
        moved: nothing followed the backup, since the site has not run from then on.

    Returns:
        How many jobs were ended, since they may have run after the backup was made.

    Raises:
        ConfigurationError: the key does not belong to the copy.
    """
    if vault is not None:
        await store.write(lambda tx: check_canary(tx, vault))
    await store.write(lambda tx: events.begin_generation(tx, clock.now_ms()))
    if not moved:
        await store.write(lambda tx: rules.cancel_waits(tx.conn, true(), _MAY_HAVE_FIRED))
    ended, behind = 0, 0
    while not moved:
        count, last = await store.write(lambda tx, behind=behind: _end_some(tx, behind))  # type: ignore[misc]
        ended += count
        if last is None:
            break
        behind = last
    return ended


def _end_some(tx: Transaction, behind: int) -> tuple[int, int | None]:
    """End the next of the jobs that were not at their end; how many, and where to go on.

    Those stay that have not begun for sure (their start is to come), may be repeated, or wait for a
    device's answer: that was sent before.
    """
    now, ended = clock.now_ms(), 0
    to_come = and_(J.attempt == 0, J.start_at.is_not(None), J.start_at > now)
    query = (
        select(*job_columns)
        .where(J.seq > behind, J.status.not_in(ENDED), J.transport.is_not(None), J.deadline_at.is_(None))
        .where(or_(J.start_at.is_(None), not_(to_come)))
        .order_by(J.seq)
        .limit(PAGE)
    )
    found = [job_of(row) for row in tx.conn.execute(query)]
    for job in found:
        if not Plan.from_json(jobs.plan_of(tx.conn, job.id)[0]).idempotent:
            jobs.settle(tx, job, _BEHIND, now)
            ended += 1
    return ended, found[-1].seq if found else None

"""Brings a database to the newest revision at start, or refuses one that is newer than we are.

One transaction under a lock: a crash half way leaves the schema as it was, and of several nodes
that start at once one does the work. Alembic costs 0.3 s to import, so it is imported only when
there is work.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from iotjobs.domain.errors import ConfigurationError, MigrationNeeded, StoreUnavailable
from iotjobs.store.session import IDLE_IN_TRANSACTION_MS, postgres_url, sqlite_engine

# In their order; a test holds them equal to `versions/`.
REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
)
HEAD = REVISIONS[-1]
# A table that is there from before a restore's first row until after its last, so also when it failed between.
RESTORING = "restoring"


def migrate(url: str, *, restoring: bool = False) -> None:
    """Bring the database behind a URL to `HEAD`; does nothing when it is there.

    Blocks, and must not be called in a running event loop: use a thread there. The caller of an
    SQLite URL holds the data directory's lock.

    Args:
        url: of the database.
        restoring: the caller is the restore that is under way there.

    Raises:
        MigrationNeeded: the database is of a revision that this version does not know, or a
            revision failed; the schema is as it was.
        StoreUnavailable: the database cannot be reached.
        ConfigurationError: another kind of database, or a restore into it has not come to its end.
    """
    kind, _, rest = url.partition("://")
    try:
        if kind == "sqlite":
            _migrate_sqlite(rest.removeprefix("/"))
        else:
            asyncio.run(_migrate_postgres(postgres_url(url), restoring))
    except (DBAPIError, OSError) as error:
        raise StoreUnavailable(
            f"the database cannot be reached: {getattr(error, 'orig', None) or error}"
        ) from error


def _migrate_sqlite(path: str) -> None:
    engine = sqlite_engine(path, read_only=False)
    try:
        with engine.begin() as conn:
            bring_to_head(conn)
    finally:
        engine.dispose()


async def _migrate_postgres(url: URL, restoring: bool) -> None:
    # A revision may take its time, but not stand still in a transaction.
    limits = {"idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS)}
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"server_settings": limits})
    try:
        async with engine.connect() as conn:
            if not restoring:
                await conn.run_sync(refuse_half_restored)
            if await conn.run_sync(revision_of) == HEAD:
                return
        async with engine.begin() as conn:
            await conn.run_sync(lock_schema)
            if not restoring:
                await conn.run_sync(refuse_half_restored)
            await conn.run_sync(bring_to_head)
    finally:
        await engine.dispose()


def lock_schema(conn: Connection) -> None:
    """Let one process at a time make tables in a PostgreSQL, to the end of its transaction."""
    conn.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('iotjobs migrations', 0))"))


def refuse_half_restored(conn: Connection) -> None:
    """Look whether a restore into this database has come to its end, if there was one.

    Raises:
        ConfigurationError: it has not.
    """
    if inspect(conn).has_table(RESTORING):
        raise ConfigurationError(
            "a restore into this database has not come to its end: wait for it; if it failed, make a new "
            "database (dropdb, createdb) and restore again"
        )


def revision_of(conn: Connection) -> str | None:
    """The revision of a database; None for an empty one."""
    if not inspect(conn).has_table("alembic_version"):
        return None
    revision: str | None = conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


def bring_to_head(conn: Connection) -> None:
    """Run the revisions that are missing, in the connection's transaction.

    Raises:
        MigrationNeeded: see `migrate`.
    """
    revision = revision_of(conn)
    if revision == HEAD:
        return
    if revision is not None and revision not in REVISIONS:
        raise MigrationNeeded(
            f"the database is of revision {revision}, this version of iotjobs knows {HEAD} at most: "
            "run the version that was used with it, or a newer one"
        )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    try:
        command.upgrade(config, HEAD)
    except DBAPIError as error:
        raise MigrationNeeded(
            f"the database could not be brought from revision {revision} to {HEAD}: {error.orig}"
        ) from error

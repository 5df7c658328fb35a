"""Opens the database and runs functions of a connection in it, the same on both kinds.

SQLite: all writes go through one `GroupWriter`; short reads run in the event loop, long ones on
read-only connections in threads. PostgreSQL: each write is one transaction of its own, repeated when it lost a race.
Decision record 0005 has the measurement behind the threads.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from iotjobs.domain.errors import (
    ConfigurationError,
    IotJobsError,
    RaceLost,
    StorageFull,
    StoreBroken,
    StoreUnavailable,
)
from iotjobs.store.groups import Groups, ReadAhead, Share, run_shares
from iotjobs.store.reserve import Reserve
from iotjobs.store.writer import GroupWriter, Item, call_back, map_store_error

T = TypeVar("T")

READERS = 4
# One transaction left open anywhere holds the event feed back.
IDLE_IN_TRANSACTION_MS = 5000
# A process that is frozen amid a pipeline of statements keeps its locks for as long; leadership has to change in 20 s.
STATEMENT_MS = 10_000
CONNECT_S = 5.0
ANSWER_S = STATEMENT_MS / 1000 + 5  # longer than the server's own time-out
RACES = 5  # tries of a PostgreSQL transaction that lost a race
_LOST_RACE = frozenset({"40P01", "40001"})  # deadlock, serialization failure

_decode = msgspec.json.decode
_encoder = msgspec.json.Encoder()


def _encode(value: Any) -> str:
    return _encoder.encode(value).decode()


def _nothing() -> None:
    """Nobody wants to know."""


class Store(Protocol):
    """A database that is open. `start` and `stop` may be called twice.

    Attributes:
        up: it answered when it was last asked.
        on_broken: called in the event loop when the disk has not kept what was written.
        after_writes: called in the event loop after each commit of this process: hints, and nothing more.
    """

    up: bool
    on_broken: Callable[[], object]
    after_writes: list[Callable[[], object]]

    @property
    def full(self) -> bool:
        """Whether there is no room for new work."""

    async def start(self) -> None:
        """Begin to take writes and reads."""

    async def keep_reserve(self) -> None:
        """Keep room for what is `reserved` from now on; to be called once the site has started.

        While it cannot be kept every other write is refused with StorageFull. On PostgreSQL this does
        nothing: its disk is its own affair.
        """

    async def stop(self) -> None:
        """Finish what was submitted, close every connection."""

    async def write(
        self,
        item: Item[T],
        *,
        size: int = 0,
        locks: Sequence[str] | None = None,
        ahead: tuple[ReadAhead, Any] | None = None,
        reserved: bool = False,
    ) -> T:
        """Run `item` in a transaction; return its result once it is committed.

        Args:
            item: short, and only its last run counts: on PostgreSQL it is run again when its
                transaction lost a race, or when another item of it failed.
            size: bytes that it carries.
            locks: the names that it locks (`Transaction.lock`) and that are known before it runs. Given,
                also none of them, it may share its transaction with others; then it locks no other names.
            ahead: a function that reads for many keys, and the item's own key. What it found for that
                one's job may be in `Transaction.ahead` when the item runs.
            reserved: no new work but an end, or what a person asks of a job: on a full disk it may use what
                is kept for it (`keep_reserve`).

        Raises:
            StorageFull, RaceLost: nothing of it is on disk.
            StoreUnavailable: nothing of it is on disk, unless it was the answer to COMMIT that was lost, which
                only PostgreSQL's can be: then all of it may be, so who cannot have that looks once it answers.
            StoreBroken: it may be on disk; nothing is taken any more.
        """

    async def look(self, query: Callable[[Connection], T]) -> T:
        """Run a short `query`, a few rows by key, on a read-only connection."""

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a `query` of any length on a read-only connection."""


def open_store(url: str) -> Store:
    """The store behind a SQLAlchemy URL: `sqlite:///FILE` or `postgresql://…`.

    Raises:
        ConfigurationError: another kind of database.
    """
    kind, _, rest = url.partition("://")
    if kind == "sqlite":
        return SqliteStore(rest.removeprefix("/"))
    return PostgresStore(postgres_url(url))


def postgres_url(url: str) -> URL:
    """A PostgreSQL URL in the form that asyncpg takes; libpq's `sslmode` becomes its `ssl`.

    Raises:
        ConfigurationError: another kind of database, or a URL that cannot be read.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "IOTJOBS_DATABASE_URL: not a URL such as postgresql://USER:PASSWORD@HOST/DB"
        ) from error
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"IOTJOBS_DATABASE_URL: {parsed.get_backend_name()} is not supported; use sqlite or postgresql"
        )
    query = dict(parsed.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    if unknown := sorted(set(query) - {"ssl", "host", "port"}):
        raise ConfigurationError(
            f"IOTJOBS_DATABASE_URL: unknown option {', '.join(unknown)}; ssl, host and port are known"
        )
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def forgets_in_crash(conn: Connection) -> str | None:
    """The server's setting by which a crash may take back what was committed; None when there is none.

    `synchronous_commit` is not among them: our sessions set it themselves.
    """
    if conn.dialect.name != "postgresql":
        return None
    names = ("fsync", "full_page_writes")
    return next((name for name in names if conn.exec_driver_sql(f"SHOW {name}").scalar() != "on"), None)


def sqlite_engine(path: str, *, read_only: bool, busy_ms: int = 5000) -> Engine:
    """An engine on one SQLite file: WAL, FULL, foreign keys, BEGIN IMMEDIATE for the writer.

    Args:
        path: the file; made if there is none.
        read_only: refuse writes.
        busy_ms: how long a statement waits, blocking its thread, while another process writes.
    """
    for words in StrEnum.__subclasses__():  # else sqlite3 looks in vain for how each is bound, for 1.4 us
        sqlite3.register_adapter(words, attrgetter("_value_"))
    engine = create_engine(
        f"sqlite:///{path}",
        hide_parameters=True,  # a statement that fails is logged, and its values are not for logs
        json_serializer=_encode,
        json_deserializer=_decode,
        poolclass=QueuePool if read_only else NullPool,
        connect_args={"check_same_thread": False},
        **({"pool_size": READERS} if read_only else {}),
    )

    @event.listens_for(engine, "connect")
    def _configure(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # BEGIN is ours
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"busy_timeout = {busy_ms}",
        ):
            raw.execute(f"PRAGMA {pragma}").close()
        if read_only:
            raw.execute("PRAGMA query_only = ON").close()

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        if conn.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            conn.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


class SqliteStore:
    """The embedded store: one file, one process, one event loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.up = True
        self._reserve = Reserve(Path(f"{path}-reserve"))
        self.on_broken: Callable[[], object] = _nothing
        self.after_writes: list[Callable[[], object]] = []
        self._write_engine = sqlite_engine(path, read_only=False, busy_ms=0)  # it waits in the loop
        self._read_engine = sqlite_engine(path, read_only=True)
        self._writer = GroupWriter(self._write_engine)
        self._readers: ThreadPoolExecutor | None = None
        self._looking: Connection | None = None  # for short reads: each statement its own snapshot

    @property
    def full(self) -> bool:
        """See `Store`."""
        return not self._reserve.whole

    async def keep_reserve(self) -> None:
        """See `Store`."""
        await self._reserve.start()

    async def start(self) -> None:
        """See `Store`."""
        if self._readers is None:
            self._looking = self._read_engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._writer.start()

    async def stop(self) -> None:
        """See `Store`."""
        await self._reserve.stop()
        await self._writer.stop()
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        readers, self._readers = self._readers, None
        if readers is not None:
            await asyncio.to_thread(readers.shutdown)
        self._read_engine.dispose()
        self._write_engine.dispose()

    async def write(
        self,
        item: Item[T],
        *,
        size: int = 0,
        locks: Sequence[str] | None = None,  # noqa: ARG002 - its single writer needs none
        ahead: tuple[ReadAhead, Any] | None = None,  # noqa: ARG002 - no way there that could be saved
        reserved: bool = False,
    ) -> T:
        """See `Store`."""
        if self.full and not reserved:
            raise StorageFull("no new work is taken: free disk space")
        try:
            result = await self._write(item, size, again=reserved)
        except (StoreUnavailable, StorageFull) as error:
            self.up = not isinstance(error, StoreUnavailable)
            if isinstance(error, StoreBroken):
                self.on_broken()
            raise
        self.up = True
        for hint in self.after_writes:
            hint()
        return result

    async def _write(self, item: Item[T], size: int, *, again: bool) -> T:
        try:
            return await self._writer.write(item, size=size)
        except StorageFull:
            self._reserve.release()
            if not again:
                raise
        return await self._writer.write(item, size=size)

    async def look(self, query: Callable[[Connection], T]) -> T:
        """See `Store`; runs in the loop, as the writer's statements do, and for the same reason."""
        if self._looking is None:
            raise StoreUnavailable("the store is closed")
        try:
            return query(self._looking)
        except DBAPIError as error:
            raise map_store_error(error) from error

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `Store`; runs in a thread, so that a long one holds nobody up."""
        if self._readers is None:
            raise StoreUnavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[Connection], T]) -> T:
        try:
            with self._read_engine.connect() as conn:
                return query(conn)
        except DBAPIError as error:
            raise map_store_error(error) from error


class PostgresStore:
    """The scaled-out store."""

    def __init__(self, url: URL, *, connections: int = 10, answer_s: float = ANSWER_S) -> None:
        """Nothing is connected yet.

        Args:
            url: as `postgres_url` gives it.
            connections: kept open; as many again are opened when they are all in use.
            answer_s: how long a statement may take; a connection that was cut off answers nothing.
        """
        self.up, self.full = True, False
        self.on_broken: Callable[[], object] = _nothing  # the server's disk is its own affair
        self.after_writes: list[Callable[[], object]] = []
        self._engine: AsyncEngine = create_async_engine(
            url,
            hide_parameters=True,  # a statement that fails is logged, and its values are not for logs
            json_serializer=_encode,
            json_deserializer=_decode,
            pool_size=connections,
            max_overflow=connections,
            connect_args={
                "timeout": CONNECT_S,
                "command_timeout": answer_s,
                "server_settings": {
                    "application_name": "iotjobs",
                    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
                    "statement_timeout": str(STATEMENT_MS),
                    # What was promised to a caller or sent to a device must not be taken back by a crash
                    # of the server, however the database is set.
                    "synchronous_commit": "on",
                },
            },
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        event.listen(self._engine.sync_engine, "handle_error", _refuse_unanswered)
        self._looking = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._groups = Groups(self._commit)

    async def keep_reserve(self) -> None:
        """See `Store`."""

    async def start(self) -> None:
        """See `Store`; connections are opened when they are needed."""

    async def stop(self) -> None:
        """See `Store`."""
        await self._groups.stop()
        await self._engine.dispose()

    async def write(
        self,
        item: Item[T],
        *,
        size: int = 0,
        locks: Sequence[str] | None = None,
        ahead: tuple[ReadAhead, Any] | None = None,
        reserved: bool = False,  # noqa: ARG002 - its disk is the server's own affair
    ) -> T:
        """See `Store`."""
        if locks is None:
            result: T = (await self._commit([Share(item)]))[0]
        else:
            result = await self._groups.write(Share(item, locks, ahead), size)
        return result

    async def _commit(self, shares: Sequence[Share]) -> list[Any]:
        """One transaction, repeated while it loses races; the items' results."""
        for tried in range(1, RACES + 1):
            try:
                async with self._engine.begin() as conn:
                    results, tx = await conn.run_sync(run_shares, shares)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _LOST_RACE:
                    raise self._refusal(map_store_error(error)) from error
                if tried == RACES:
                    raise RaceLost(f"it met others in a deadlock {RACES} times: {error.orig}") from error
                continue
            except (OSError, PoolTimeout) as error:
                refusal = StoreUnavailable(f"PostgreSQL cannot be reached: {error}")
                raise self._refusal(refusal) from error
            self.up, self.full = True, False
            for callback in [*tx.callbacks, *self.after_writes]:
                call_back(callback)
            return results
        raise AssertionError("the last try returns or raises")

    async def look(self, query: Callable[[Connection], T]) -> T:
        """See `Store`."""
        return await self.read(query)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `Store`."""
        try:
            async with self._looking.connect() as conn:
                result = await conn.run_sync(query)
            self.up = True
            return result
        except DBAPIError as error:
            raise self._refusal(map_store_error(error)) from error
        except (OSError, PoolTimeout) as error:
            refusal = StoreUnavailable(f"PostgreSQL cannot be reached: {error}")
            raise self._refusal(refusal) from error

    def _refusal(self, refusal: IotJobsError) -> IotJobsError:
        self.up, self.full = not isinstance(refusal, StoreUnavailable), isinstance(refusal, StorageFull)
        return refusal


def _refuse_closed(raw: Any, _record: Any, _proxy: Any) -> None:
    """Before a connection is used: one that the server has closed is noticed by itself, without asking."""
    if raw._connection.is_closed():
        raise DisconnectionError("it was closed by the server")


def _refuse_unanswered(context: ExceptionContext) -> None:
    """The same for what Core asks itself, COMMIT and ROLLBACK too: see `give_up_unanswered`."""
    if isinstance(context.original_exception, OSError):
        context.is_disconnect = True

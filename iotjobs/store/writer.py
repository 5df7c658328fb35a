"""The single writer of SQLite: everything that waits is committed together.

An item is a synchronous function of a `Transaction`. It runs in its own SAVEPOINT, so that one
refused item does not undo its neighbours, and it is answered only after COMMIT. There is no
timer: while one batch is being synced to disk the next one gathers. Under load this is one fsync
for some hundred items, alone it is one fsync for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction, Table, insert
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from iotjobs.domain.errors import EngineError, IotJobsError, StorageFull, StoreBroken, StoreUnavailable
from iotjobs.store.statements import Prepared, in_one, run

log = logging.getLogger(__name__)

T = TypeVar("T")

# One transaction takes at most so many items and so many bytes: statuses must not wait behind
# megabytes of output.
BATCH_ITEMS = 256
BATCH_BYTES = 1024 * 1024
# Other work of the loop waits at most about so long for the items of a batch.
SLICE_S = 0.003
# How long somebody else may hold SQLite's write lock, and how often we ask.
BUSY_S = 5.0
BUSY_POLL_S = 0.02


# In one order, whoever locks several: else two would wait for each other.
_LOCK = """
SELECT pg_advisory_xact_lock(key) FROM (
    SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS given (name) ORDER BY key
) AS sorted
"""

# Those of the names that somebody else holds; the others are locked. In no order: it waits for nobody.
_TRY_LOCK = """
SELECT name FROM unnest($1::text[]) AS given (name)
WHERE NOT pg_try_advisory_xact_lock(hashtextextended(name, 0))
"""

# Returns the statement, with its values, that writes what was gathered for it; or what does so once
# the statements of all others have run.
Action = Callable[[Connection, list[Any]], tuple[str, Sequence[Any]] | Callable[[], None]]
Gathered = dict[Action, list[Any]]


@dataclass(slots=True)
class Transaction:
    """What an item gets: the connection, and a place for what must happen only after COMMIT.

    Attributes:
        ahead: what was read for items before they ran, by their keys; see `Store.write`.
        defers: what the item writes last may be gathered, since no other item here asks for it.
    """

    conn: Connection
    callbacks: list[Callable[[], object]] = field(default_factory=list)
    rows: list[tuple[Table, dict[str, Any]]] = field(default_factory=list)
    gathered: Gathered = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    ahead: dict[str, Any] = field(default_factory=dict)
    defers: bool = False

    def lock(self, *names: str) -> bool:
        """Stand in line with every transaction that locks one of these names, until this one ends.

        False when there was nothing to wait for, so that what was read before is still true: they are
        locked already, or this is SQLite, whose single writer stands in line anyway.
        """
        missing = [name for name in names if name not in self.locked]
        if not missing or self.conn.dialect.name != "postgresql":
            return False
        run(self.conn, _LOCK, [missing])
        self.locked.update(missing)
        return True

    def part(self) -> Transaction:
        """Some of it: what is written last there is gathered, for `complete` to write before the item ends."""
        return Transaction(self.conn, self.callbacks, locked=self.locked, defers=True)

    def try_lock(self, names: Set[str]) -> set[str]:
        """Lock what nobody else has locked, on PostgreSQL, and wait for nothing; the names that somebody has."""
        if not names or self.conn.dialect.name != "postgresql":
            return set()
        held = {name for (name,) in run(self.conn, _TRY_LOCK, [list(names)]).fetchall()}
        self.locked.update(names - held)
        return held

    def gather(self, action: Action, value: Any) -> None:
        """Call `action` at the end of the transaction, once, with all that was gathered for it."""
        self.gathered.setdefault(action, []).append(value)

    def append(self, table: Table, row: dict[str, Any]) -> None:
        """Insert a row that cannot clash and that nothing in this transaction reads.

        Such rows (events, plans, output) are inserted together at the end of the transaction, in
        the order they were appended: a third of the cost of one statement each.
        """
        self.rows.append((table, row))

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call this in the event loop once the transaction is on disk; never if it fails."""
        self.callbacks.append(callback)


Item = Callable[[Transaction], T]


@dataclass(slots=True)
class _Pending:
    item: Item[Any]
    future: asyncio.Future[Any]
    size: int
    tx: Transaction | None = None
    result: Any = None
    error: BaseException | None = None


# SQLite's names for an fsync that failed. The system may have thrown the pages away, so that a second
# one succeeds and says nothing: what is on the disk is seen only by reading it anew, after a restart.
_LOST_PAGES = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})
# Classes of PostgreSQL's errors that another try does not mend: data, integrity, syntax.
_FAULTS = ("22", "23", "42")


def map_store_error(error: DBAPIError) -> IotJobsError:
    """What a database's own error means to us: full, away for a moment, broken, or a fault of ours."""
    text = str(error.orig).lower()
    if getattr(error.orig, "sqlite_errorname", None) in _LOST_PAGES:
        return StoreBroken(f"the disk did not keep what was written: {error.orig}")
    if "is full" in text or "no space" in text:
        return StorageFull("the store cannot take more: free disk space")
    state = getattr(error.orig, "sqlstate", None) or ""
    of_value = isinstance(getattr(error.orig, "__cause__", None), ValueError | TypeError)
    if (
        of_value
        or state.startswith(_FAULTS)
        or isinstance(error, DataError | IntegrityError | ProgrammingError)
    ):
        return EngineError(f"the store refused a statement: {error.orig}")
    return StoreUnavailable(f"the store does not answer: {error.orig}")


def complete(conn: Connection, parts: Sequence[Transaction]) -> None:
    """Write what items appended and gathered: one statement a table, each table's rows in their order.

    On PostgreSQL, where each statement is a way there and back, they are one.
    """
    by_table: dict[tuple[Table, tuple[str, ...]], list[dict[str, Any]]] = {}
    gathered: Gathered = {}
    for part in parts:
        for table, row in part.rows:
            by_table.setdefault((table, tuple(row)), []).append(row)
        for action, values in part.gathered.items():
            gathered.setdefault(action, []).extend(values)
    together: list[tuple[str, Sequence[Any]]] = []
    for (table, columns), members in by_table.items():
        statement = _insert(table, columns)
        if conn.dialect.name == "postgresql":
            together.append(statement.of_rows(conn, members))
        else:
            statement.insert_all(conn, members)
    later: list[Callable[[], None]] = []
    for action, values in gathered.items():
        written = action(conn, values)
        if isinstance(written, tuple):
            together.append(written)
        else:
            later.append(written)
    if together:
        sql = in_one(tuple(text for text, _ in together))
        run(conn, sql, [value for _, values in together for value in values])
    for write in later:
        write()


@cache
def _insert(table: Table, columns: tuple[str, ...]) -> Prepared:
    return Prepared(insert(table).inline(), columns)


class GroupWriter:
    """One connection, one transaction at a time, in the event loop. Start and stop may be called twice.

    The statements run in the loop: they are short, and SQLite gives the GIL away around each of
    them, so that in a thread every one waits for the loop to give it back (decision record 0005:
    ten times slower). Only COMMIT, which waits for the disk, runs in a thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._committing: ThreadPoolExecutor | None = None
        self._broken: StoreBroken | None = None

    def start(self) -> None:
        """Begin to take items; to be called in the running event loop."""
        if self._task is None:
            self._stopping = False
            self._committing = ThreadPoolExecutor(1, thread_name_prefix="store-commit")
            self._task = asyncio.get_running_loop().create_task(self._run(), name="store writer")

    async def stop(self) -> None:
        """Commit what was submitted, then end."""
        task, self._task = self._task, None
        if task is not None and self._committing is not None:
            self._stopping = True
            self._arrived.set()
            await task
            self._committing.shutdown()

    async def write(self, item: Item[T], *, size: int = 0) -> T:
        """Run an item in the next transaction and return its result once that is on disk.

        Args:
            item: called in the event loop, so it must be short; never called again.
            size: bytes it carries, for the bound of a batch.

        Raises:
            RequestError: whatever the item raised; its effects are undone.
            StorageFull, StoreUnavailable: nothing of it is on disk.
            StoreBroken: it may be on disk; nothing is taken any more.
        """
        if self._task is None:
            raise StoreUnavailable("the store is closed")
        if self._broken is not None:
            raise StoreBroken(str(self._broken))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(item, future, size))
        self._arrived.set()
        return await future

    async def _run(self) -> None:
        with self._engine.connect() as conn:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._queue:
                    await self._commit(conn)
                if self._stopping:
                    return

    async def _commit(self, conn: Connection) -> None:
        """One transaction; whatever goes wrong is answered to its items, never raised."""
        batch: list[_Pending] = []
        if self._broken is not None:
            batch.extend(self._queue)
            self._queue.clear()
            _refuse(batch, self._broken)
            return
        try:
            transaction = await self._begin(conn)
        except DBAPIError as error:
            batch.extend(self._queue)
            self._queue.clear()
            _refuse(batch, map_store_error(error))
            return
        try:
            await self._gather(conn, batch)
            complete(conn, [pending.tx for pending in batch if pending.tx is not None])
            # Waits for the disk, and gives the GIL away while it does.
            await asyncio.get_running_loop().run_in_executor(self._committing, transaction.commit)
        except Exception as error:  # noqa: BLE001 - the edge of one transaction: handed to its callers
            log.warning("a transaction was undone", extra={"items": len(batch), "why": repr(error)})
            _roll_back(transaction)
            mapped = map_store_error(error) if isinstance(error, DBAPIError) else error
            if isinstance(mapped, StoreBroken):
                self._broken = mapped
            _refuse(batch, mapped)
        except BaseException:
            _roll_back(transaction)
            raise
        else:
            _answer(batch)

    async def _begin(self, conn: Connection) -> RootTransaction:
        """BEGIN, once nobody else writes: a backup tool may, for a moment."""
        until = time.monotonic() + BUSY_S
        while True:
            try:
                return conn.begin()
            except DBAPIError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(BUSY_POLL_S)

    async def _gather(self, conn: Connection, batch: list[_Pending]) -> None:
        """Apply items until the batch is full or nothing waits; let the loop breathe meanwhile."""
        size, until = 0, time.monotonic() + SLICE_S
        while self._queue and len(batch) < BATCH_ITEMS and size < BATCH_BYTES:
            pending = self._queue.popleft()
            batch.append(pending)
            size += pending.size
            self._apply(conn, pending)
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_S

    @staticmethod
    def _apply(conn: Connection, pending: _Pending) -> None:
        tx = Transaction(conn)
        run(conn, "SAVEPOINT item")
        try:
            pending.result = pending.item(tx)
        except Exception as error:  # noqa: BLE001 - the edge of one item: handed to its caller
            pending.error = map_store_error(error) if isinstance(error, DBAPIError) else error
            try:
                run(conn, "ROLLBACK TO item")
            except DBAPIError:
                raise error from None  # SQLite has undone the whole transaction: the disk is full
        else:
            pending.tx = tx
        run(conn, "RELEASE item")


def _roll_back(transaction: RootTransaction) -> None:
    try:
        transaction.rollback()
    except DBAPIError as error:
        log.warning("a transaction could not be rolled back", extra={"why": str(error.orig)})


def _refuse(batch: list[_Pending], error: Exception) -> None:
    """Nothing of the batch is on disk; items that were refused before keep their own reason."""
    refusal = error
    if not isinstance(error, IotJobsError):
        refusal = EngineError(f"a row could not be written: {error!r}")
    for pending in batch:
        pending.error = pending.error or refusal
    _answer(batch)


def _answer(batch: list[_Pending]) -> None:
    for pending in batch:
        if pending.error is None and pending.tx is not None:
            for callback in pending.tx.callbacks:
                call_back(callback)
        if pending.future.cancelled():
            continue
        if pending.error is not None:
            pending.future.set_exception(pending.error)
        else:
            pending.future.set_result(pending.result)


def call_back(callback: Callable[[], object]) -> None:
    """Call what follows a commit: whatever it does, the commit stands."""
    try:
        callback()
    except Exception:
        log.exception("what follows a commit failed", extra={"callback": repr(callback)})

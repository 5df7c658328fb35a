"""The single writer of SQLite: everything that waits is committed together.

An item is a synchronous function of a `Transaction`. It runs in its own SAVEPOINT, so that one
refused item does not undo its neighbours, and it is answered only after COMMIT. There is no
timer: while one batch is being synced to disk the next one gathers. Under load this is one fsync
for some hundred items, alone it is one fsync for one.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Insert, Table, insert
from sqlalchemy.exc import DBAPIError

from iotjobs.domain.errors import IotJobsError, StorageFull, StoreUnavailable

T = TypeVar("T")

# One transaction takes at most so many items and so many bytes: statuses must not wait behind
# megabytes of output.
BATCH_ITEMS = 256
BATCH_BYTES = 1024 * 1024


@dataclass(slots=True)
class Transaction:
    """What an item gets: the connection, and a place for what must happen only after COMMIT."""

    conn: Connection
    callbacks: list[Callable[[], object]] = field(default_factory=list)
    rows: list[tuple[Table, dict[str, Any]]] = field(default_factory=list)

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
    callbacks: list[Callable[[], object]] = field(default_factory=list)
    rows: list[tuple[Table, dict[str, Any]]] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None


def map_store_error(error: DBAPIError) -> IotJobsError:
    """What a database's own error means to us."""
    text = str(error.orig).lower()
    if "full" in text or "no space" in text:
        return StorageFull("the store cannot take more: free disk space")
    return StoreUnavailable(f"the store refused: {error.orig}")


def insert_rows(conn: Connection, rows: list[tuple[Table, dict[str, Any]]]) -> None:
    """Insert what items appended, one statement a table, each table's rows in their order."""
    by_table: dict[Table, list[dict[str, Any]]] = {}
    for table, row in rows:
        by_table.setdefault(table, []).append(row)
    for table, members in by_table.items():
        conn.execute(_insert(table), members)


@cache
def _insert(table: Table) -> Insert:
    return insert(table).inline()


class GroupWriter:
    """One thread, one connection, one transaction at a time. `start` and `stop` may be called twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to take items; to be called in the running event loop."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Commit what was submitted, then end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    async def write(self, item: Item[T], *, size: int = 0) -> T:
        """Run an item in the next transaction and return its result once that is on disk.

        Args:
            item: called in the writer's thread; may be called again never.
            size: bytes it carries, for the bound of a batch.

        Raises:
            RequestError: whatever the item raised; its effects are undone.
            StorageFull, StoreUnavailable: nothing of it is on disk.
        """
        if self._thread is None or self._loop is None:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Pending(item, future, size))
        return await future

    def _run(self) -> None:
        with self._engine.connect() as conn:
            while (first := self._queue.get()) is not None:
                batch, ended = self._gather(first)
                self._commit(conn, batch)
                assert self._loop is not None
                self._loop.call_soon_threadsafe(_answer, batch)
                if ended:
                    break

    def _gather(self, first: _Pending) -> tuple[list[_Pending], bool]:
        batch, size = [first], first.size
        while len(batch) < BATCH_ITEMS and size < BATCH_BYTES:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
            size += following.size
        return batch, False

    def _commit(self, conn: Connection, batch: list[_Pending]) -> None:
        try:
            with conn.begin():
                for pending in batch:
                    self._apply(conn, pending)
                insert_rows(conn, [row for pending in batch for row in pending.rows])
        except DBAPIError as error:
            for pending in batch:
                pending.error = map_store_error(error)

    @staticmethod
    def _apply(conn: Connection, pending: _Pending) -> None:
        tx = Transaction(conn)
        conn.exec_driver_sql("SAVEPOINT item")
        try:
            pending.result = pending.item(tx)
        except Exception as error:  # noqa: BLE001 - the edge of one item: handed to its caller
            conn.exec_driver_sql("ROLLBACK TO item")
            pending.error = map_store_error(error) if isinstance(error, DBAPIError) else error
        else:
            pending.callbacks, pending.rows = tx.callbacks, tx.rows
        conn.exec_driver_sql("RELEASE item")


def _answer(batch: list[_Pending]) -> None:
    for pending in batch:
        if pending.error is None:
            for callback in pending.callbacks:
                callback()
        if pending.future.cancelled():
            continue
        if pending.error is not None:
            pending.future.set_exception(pending.error)
        else:
            pending.future.set_result(pending.result)

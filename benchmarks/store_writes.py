"""Job rows per second through the store's writer, and where a writer's statements had best run.

First the goal: producers that each write a job, and wait for it to be on disk, beside Core inserts
of the same rows in batches of 200 with one commit each. `job` is the row alone; `job + event` is
what a submit writes.

Then the variants of decision record 0005, 20 producers each, once beside an idle event loop and
once beside one that is always busy, as a server's is:

- in the loop: the store's own writer, statements in the event loop, COMMIT in a thread;
- in a thread: the whole batch, COMMIT included, in one thread;
- aiosqlite: the batch through SQLAlchemy's `run_sync`, each statement crossing to aiosqlite's thread.

All with synchronous=FULL in a folder of TMPDIR; the line `fsync` tells what this disk does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import site
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, insert
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from benchmarks.harness.figures import QUICK, finish, median, ratio, table
from iotjobs import clock
from iotjobs.store import jobs, tables
from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.session import open_store, sqlite_engine
from iotjobs.store.writer import Transaction, insert_rows

PEER_PACKAGES = Path(__file__).resolve().parents[1] / ".benchmark-env/lib/python3.11/site-packages"
SECONDS = 0.5 if QUICK else 2.0
RUNS = 1 if QUICK else 3
PRODUCERS = (1, 20, 200)
BATCH = 200
BURN_S = 0.0005

Item = Callable[[Transaction], Any]
Write = Callable[[Item], Any]


def job_row() -> dict[str, Any]:
    """A submitted job as intake makes it."""
    now = clock.now_ms()
    return {
        **jobs._DEFAULTS,
        "id": clock.new_id(),
        "type": "EXECUTE_ACTION",
        "label": "run on device-1",
        "operation_id": "1" * 32,
        "operation_name": "run",
        "operation_type": "script",
        "operation_version": 1,
        "transport": "ssh",
        "owner_id": "2" * 32,
        "owner_type": 1,
        "owner_name": "device-1",
        "target_id": "2" * 32,
        "user_id": "3" * 32,
        "run_by_id": "3" * 32,
        "run_by_name": "admin",
        "cause": "user",
        "timestamp": now,
        "expires_at": now + 3_600_000,
        "lane": "2" * 32,
        "data": {"args": {}, "entityName": "device-1", "actionName": "run"},
    }


def write_job(tx: Transaction) -> None:
    """The row alone."""
    jobs._insert_job.insert(tx.conn, job_row())


def write_submit(tx: Transaction) -> None:
    """The row with its event."""
    jobs.insert_job(tx, job_row(), None, None)


async def produce(write: Write, item: Item, producers: int) -> float:
    """Rows/s of producers that write one after the other, each waiting for the commit."""
    until, written = time.monotonic() + SECONDS, 0

    async def one() -> None:
        nonlocal written
        while time.monotonic() < until:
            await write(item)
            written += 1

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(producers)))
    return written / (time.monotonic() - began)


def core_in_batches(path: Path) -> float:
    """Rows/s of plain Core: one INSERT of 200 rows, one commit."""
    engine, written = sqlite_engine(str(path), read_only=False), 0
    began = time.monotonic()
    with engine.connect() as conn:
        while time.monotonic() - began < SECONDS:
            with conn.begin():
                conn.execute(insert(tables.jobs), [job_row() for _ in range(BATCH)])
            written += BATCH
    rate = written / (time.monotonic() - began)
    engine.dispose()
    return rate


class Grouped:
    """Group commit as the store's writer has it; how a batch is written is the variants' part."""

    def __init__(self, run_batch: Callable[[list[Item]], Any]) -> None:
        self._run_batch = run_batch
        self._queue: deque[tuple[Item, asyncio.Future[None]]] = deque()
        self._arrived = asyncio.Event()

    async def write(self, item: Item) -> None:
        """Write one item with whatever else waits."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._arrived.set()
        await future

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), 256))]
                await self._run_batch([item for item, _ in batch])
                for _, future in batch:
                    if not future.done():
                        future.set_result(None)


def apply_all(conn: Connection, items: list[Item]) -> None:
    """A batch on a connection of SQLAlchemy, each item in its SAVEPOINT."""
    rows = []
    for item in items:
        tx = Transaction(conn)
        conn.exec_driver_sql("SAVEPOINT item")
        item(tx)
        conn.exec_driver_sql("RELEASE item")
        rows += tx.rows
    insert_rows(conn, rows)


@contextlib.asynccontextmanager
async def in_the_loop(path: Path) -> Any:
    """The store itself."""
    store = open_store(f"sqlite:///{path}")
    await store.start()
    try:
        yield store.write
    finally:
        await store.stop()


@contextlib.asynccontextmanager
async def in_a_thread(path: Path) -> Any:
    """Statements and COMMIT in one thread."""
    engine = sqlite_engine(str(path), read_only=False)
    conn = engine.connect()
    thread = ThreadPoolExecutor(1)

    def batch(items: list[Item]) -> None:
        with conn.begin():
            apply_all(conn, items)

    grouped = Grouped(lambda items: asyncio.get_running_loop().run_in_executor(thread, batch, items))
    task = asyncio.create_task(grouped.run())
    try:
        yield grouped.write
    finally:
        task.cancel()
        thread.shutdown()
        conn.close()
        engine.dispose()


@contextlib.asynccontextmanager
async def through_aiosqlite(path: Path) -> Any:
    """`run_sync` over aiosqlite; Core throughout, since its driver has no synchronous connection."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(raw: Any, _record: Any) -> None:
        raw.isolation_level = None
        cursor = raw.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(conn: Connection) -> None:
        conn.exec_driver_sql("BEGIN IMMEDIATE")

    async def batch(conn: AsyncConnection, items: list[Item]) -> None:
        async with conn.begin():
            await conn.run_sync(apply_all, items)

    async with engine.connect() as conn:
        grouped = Grouped(lambda items: batch(conn, items))
        task = asyncio.create_task(grouped.run())
        try:
            yield grouped.write
        finally:
            task.cancel()
    await engine.dispose()


def write_core(tx: Transaction) -> None:
    """The row alone, by plain Core: what every variant can run."""
    tx.conn.execute(insert(tables.jobs), job_row())


async def busy() -> None:
    """Work of the loop that never ends, half a millisecond at a time."""
    while True:
        until = time.perf_counter() + BURN_S
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0)


async def variant(how: Any, path: Path, item: Item, *, under_load: bool) -> tuple[float, float]:
    """Rows/s of 20 producers, and processor ms a row (the load's own half milliseconds taken off)."""
    load = asyncio.create_task(busy()) if under_load else None
    try:
        async with how(path) as write:
            cpu = time.process_time()
            rate = await produce(write, item, 20)
            used = time.process_time() - cpu
    finally:
        if load is not None:
            load.cancel()
    return rate, 0.0 if under_load else 1000 * used / (rate * SECONDS)


def fsync_us(folder: Path) -> float:
    """Median microseconds of a write of 4 KiB with fsync."""
    descriptor = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY)
    took = []
    for _ in range(100):
        os.write(descriptor, b"x" * 4096)
        began = time.perf_counter()
        os.fsync(descriptor)
        took.append(1e6 * (time.perf_counter() - began))
    os.close(descriptor)
    return median(took)


def fresh(folder: Path, number: int) -> Path:
    """An empty database."""
    path = folder / f"{number}.db"
    migrate(f"sqlite:///{path}")
    return path


def variants() -> dict[str, tuple[Any, Item]]:
    """Those that can run here."""
    found: dict[str, tuple[Any, Item]] = {
        "in the loop (the store)": (in_the_loop, write_job),
        "in the loop, plain Core": (in_the_loop, write_core),
        "in a thread": (in_a_thread, write_job),
        "in a thread, plain Core": (in_a_thread, write_core),
    }
    site.addsitedir(str(PEER_PACKAGES))  # at the end: ours win
    with contextlib.suppress(ImportError):
        import aiosqlite  # noqa: F401 - asked for by name

        found["aiosqlite, plain Core"] = (through_aiosqlite, write_core)
    return found


def main() -> None:
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ij") as text:
        folder, number = Path(text), 0

        def path() -> Path:
            nonlocal number
            number += 1
            return fresh(folder, number)

        async def ours(item: Item, producers: int, at: Path) -> float:
            async with in_the_loop(at) as write:
                return await produce(write, item, producers)

        measured: dict[str, list[tuple[float, float]]] = {}
        for _ in range(RUNS):
            rates.setdefault("Core, batches of 200", []).append(core_in_batches(path()))
            for name, item in (("job", write_job), ("job + event", write_submit)):
                for producers in PRODUCERS:
                    rate = asyncio.run(ours(item, producers, path()))
                    rates.setdefault(f"{name}, {producers} producers", []).append(rate)
            for name, (how, item) in variants().items():
                for load in (False, True):
                    took = asyncio.run(variant(how, path(), item, under_load=load))
                    measured.setdefault(f"{name}, {'busy' if load else 'idle'} loop", []).append(took)
        fsync = fsync_us(folder)
    report(rates, measured, fsync)


def report(
    rates: dict[str, list[float]], measured: dict[str, list[tuple[float, float]]], fsync: float
) -> None:
    """Print the tables and the JSON line."""
    limit = median(rates["Core, batches of 200"])
    print(f"fsync {fsync:.0f} µs; medians of {RUNS} runs of {SECONDS:g} s\n")
    table(
        ["", "rows/s", "÷ Core in batches"],
        [[name, median(runs), ratio(median(runs), limit)] for name, runs in rates.items()],
    )
    variants_found = {
        name: (median([rate for rate, _ in runs]), median([cpu for _, cpu in runs]))
        for name, runs in measured.items()
    }
    table(
        ["20 producers", "rows/s", "CPU ms/row"],
        [[name, rate, cpu or None] for name, (rate, cpu) in variants_found.items()],
    )
    finish(
        "store_writes",
        {
            "fsync_us": round(fsync),
            "runs": RUNS,
            "per_s": {name: round(median(runs)) for name, runs in rates.items()},
            "ratio_20": ratio(median(rates["job, 20 producers"]), limit),
            "ratio_20_with_event": ratio(median(rates["job + event, 20 producers"]), limit),
            "variants_per_s": {name: round(rate) for name, (rate, _) in variants_found.items()},
        },
    )


if __name__ == "__main__":
    main()

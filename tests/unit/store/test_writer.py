from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import RootTransaction
from sqlalchemy.exc import OperationalError

from iotjobs.domain.errors import Conflict, EngineError, StoreBroken, StoreUnavailable
from iotjobs.store import tables
from iotjobs.store import writer as writer_module
from iotjobs.store.session import SqliteStore, sqlite_engine
from iotjobs.store.writer import Transaction


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    path = str(tmp_path / "x.db")
    engine = sqlite_engine(path, read_only=False)
    tables.metadata.create_all(engine)
    engine.dispose()
    opened = SqliteStore(path)
    await opened.start()
    yield opened
    await opened.stop()


def fact(name: str, value: object) -> tuple[object, dict[str, object]]:
    return tables.site, {"name": name, "value": value}


async def names(store: SqliteStore) -> set[str]:
    return await store.look(lambda conn: set(conn.execute(tables.site.select()).scalars()))


async def test_a_row_that_cannot_be_written_refuses_its_batch_and_not_the_next(store: SqliteStore) -> None:
    def unfit(tx: Transaction) -> None:
        tx.append(*fact("unfit", object()))

    with pytest.raises(EngineError, match="not supported"):
        await store.write(unfit)

    await store.write(lambda tx: tx.append(*fact("fit", "1")))
    assert await names(store) == {"fit"}


async def test_after_a_sync_that_failed_nothing_is_taken_any_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store.on_broken = lambda: told.append("broken")
    await store.write(lambda tx: tx.append(*fact("before", "1")))

    def commit(_transaction: RootTransaction) -> None:
        failed = sqlite3.OperationalError("disk I/O error")
        failed.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise OperationalError("COMMIT", None, failed)

    monkeypatch.setattr(RootTransaction, "commit", commit)
    ends = [store.write(lambda tx, n=n: tx.append(*fact(n, "1"))) for n in ("a", "b")]
    refused = await asyncio.gather(*ends, return_exceptions=True)
    monkeypatch.undo()
    with pytest.raises(StoreBroken, match="disk I/O error"):
        await store.write(lambda tx: tx.append(*fact("later", "1")))

    assert [type(end) for end in refused] == [StoreBroken, StoreBroken]
    assert await names(store) == {"before"}
    assert told == ["broken"] * 3
    assert not store.up


async def test_a_refused_item_undoes_itself_alone(store: SqliteStore) -> None:
    def refused(tx: Transaction) -> None:
        tx.conn.execute(tables.site.insert(), {"name": "refused", "value": "1"})
        raise Conflict("not now")

    ends = await asyncio.gather(
        store.write(lambda tx: tx.append(*fact("before", "1"))),
        store.write(refused),
        store.write(lambda tx: tx.append(*fact("after", "1"))),
        return_exceptions=True,
    )

    assert [type(end) for end in ends] == [type(None), Conflict, type(None)]
    assert await names(store) == {"before", "after"}


async def test_what_follows_a_commit_never_follows_a_refusal(store: SqliteStore) -> None:
    followed: list[str] = []

    def refused(tx: Transaction) -> None:
        tx.after_commit(lambda: followed.append("refused"))
        raise Conflict("not now")

    with pytest.raises(Conflict):
        await store.write(refused)
    await store.write(lambda tx: tx.after_commit(lambda: followed.append("committed")))

    assert followed == ["committed"]


async def test_a_callback_that_fails_costs_nobody_his_answer(store: SqliteStore) -> None:
    def item(tx: Transaction) -> str:
        tx.after_commit(lambda: 1 / 0)
        return "answered"

    assert await store.write(item) == "answered"


async def test_the_loop_goes_on_while_somebody_else_holds_the_write_lock(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BUSY_S", 0.2)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    with pytest.raises(StoreUnavailable):
        await store.write(lambda tx: tx.append(*fact("late", "1")))
    turning.cancel()
    other.execute("ROLLBACK")
    other.close()

    assert turns > 10
    await store.write(lambda tx: tx.append(*fact("on time", "1")))
    assert await names(store) == {"on time"}


async def test_a_stopped_store_refuses_and_stopping_twice_is_stopping_once(store: SqliteStore) -> None:
    await store.stop()
    await store.stop()

    with pytest.raises(StoreUnavailable):
        await store.write(lambda tx: tx.append(*fact("late", "1")))

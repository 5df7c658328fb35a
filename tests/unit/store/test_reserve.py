"""What is kept of the disk; a really full one is in tests/faults/test_disk_full.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from iotjobs.domain.errors import StorageFull
from iotjobs.store import facts, reserve
from iotjobs.store.reserve import RESERVE_BYTES, Reserve
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.site import eventually

NEVER = 1 << 60


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reserve]:
    monkeypatch.setattr(reserve, "LOOK_EVERY_S", 0.02)
    made = Reserve(tmp_path / "reserve")
    yield made
    await made.stop()


def blocks(folder: Path) -> int:
    return (folder / "reserve").stat().st_blocks * 512


async def test_it_has_real_blocks_and_stays_for_the_next_start(kept: Reserve, tmp_path: Path) -> None:
    assert kept.whole
    kept.release()  # nobody keeps one: nothing is refused
    assert kept.whole
    await kept.start()
    await kept.start()
    assert blocks(tmp_path) >= RESERVE_BYTES
    assert (tmp_path / "reserve").stat().st_mode & 0o077 == 0
    await kept.stop()
    await kept.stop()
    assert blocks(tmp_path) >= RESERVE_BYTES


async def test_one_with_holes_is_filled(kept: Reserve, tmp_path: Path) -> None:
    with (tmp_path / "reserve").open("wb") as file:
        file.truncate(RESERVE_BYTES)  # as a copy of it may be
    await kept.start()
    assert kept.whole
    assert blocks(tmp_path) >= RESERVE_BYTES


async def test_it_is_let_go_of_and_made_again_once_there_is_room(
    kept: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept.start()
    monkeypatch.setattr(reserve, "NEEDS_BYTES", NEVER)
    kept.release()
    kept.release()
    assert not (tmp_path / "reserve").exists()
    assert not kept.whole

    monkeypatch.setattr(reserve, "NEEDS_BYTES", RESERVE_BYTES)
    await eventually(lambda: kept.whole, 5)
    assert blocks(tmp_path) >= RESERVE_BYTES


async def test_a_disk_that_is_full_at_the_start_is_looked_at_again(
    kept: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "NEEDS_BYTES", NEVER)
    await kept.start()
    assert not kept.whole
    monkeypatch.setattr(reserve, "NEEDS_BYTES", RESERVE_BYTES)
    await eventually(lambda: kept.whole, 5)


async def test_without_it_a_store_takes_only_what_it_is_reserved_for(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def item(tx: Transaction) -> None:
        facts.put(tx, "a", "b")

    await sqlite_store.write(item)  # nobody has asked it to keep one
    monkeypatch.setattr(reserve, "NEEDS_BYTES", NEVER)
    await sqlite_store.keep_reserve()

    assert sqlite_store.full
    with pytest.raises(StorageFull):
        await sqlite_store.write(item)
    await sqlite_store.write(item, reserved=True)
    assert sqlite_store.full

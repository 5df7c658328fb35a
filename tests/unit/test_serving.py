from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from iotjobs import serving
from iotjobs.domain.errors import StoreBroken
from iotjobs.settings import Settings


class Stuck:
    """A site whose start does not come to its end."""

    made: Stuck

    def __init__(self, _settings: Settings) -> None:
        Stuck.made = self
        self.begun, self.disk_failed = asyncio.Event(), asyncio.Event()
        self.ends: list[str] = []

    async def start(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ends.append("start")

    async def stop(self) -> None:
        self.ends.append("stop")


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serving such a site; the signals are ours again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(serving, "Site", Stuck)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def begun(tmp_path: Path) -> asyncio.Task[None]:
    """The task that serves, once the start is under way."""
    task = asyncio.create_task(serving._serve(Settings(data_dir=tmp_path, port=0)))
    await asyncio.sleep(0)
    await Stuck.made.begun.wait()
    return task


@pytest.mark.usefixtures("stuck")
async def test_a_signal_during_the_start_undoes_it(tmp_path: Path) -> None:
    task = await begun(tmp_path)

    signal.raise_signal(signal.SIGTERM)
    await task

    assert Stuck.made.ends == ["start", "stop"]


@pytest.mark.usefixtures("stuck")
async def test_who_cannot_trust_the_disk_ends_and_says_so(tmp_path: Path) -> None:
    task = await begun(tmp_path)

    Stuck.made.disk_failed.set()

    with pytest.raises(StoreBroken, match="did not keep what was written"):
        await task
    assert Stuck.made.ends == ["start", "stop"]

from __future__ import annotations

import pytest

from iotjobs.engine import ingest
from iotjobs.engine.ingest import Ingest
from iotjobs.engine.leases import Always
from tests.services.site import eventually


class Part:
    """Counts whether it runs; start and stop may come again and again."""

    def __init__(self) -> None:
        self.running, self.begun = False, 0

    async def start(self) -> None:
        self.begun += not self.running
        self.running = True

    async def stop(self) -> None:
        self.running = False


async def test_its_parts_run_while_the_lease_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "LOOK_EVERY_S", 0.01)
    standing, parts = Always(), [Part(), Part()]
    standing.leads = False
    service = Ingest(standing, *parts)
    await service.start()

    standing.leads = True
    await eventually(lambda: all(part.running for part in parts), 3)
    standing.leads = False
    await eventually(lambda: not any(part.running for part in parts), 3)
    standing.leads = True
    await eventually(lambda: all(part.running for part in parts), 3)
    await service.stop()

    assert not any(part.running for part in parts)


async def test_a_lease_that_was_lost_and_taken_again_between_two_looks_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest, "LOOK_EVERY_S", 0.01)
    standing, parts = Always(), [Part(), Part()]
    service = Ingest(standing, *parts)
    await service.start()
    await eventually(lambda: all(part.running for part in parts), 3)

    standing.epoch += 1
    await eventually(lambda: all(part.begun == 2 for part in parts), 3)
    assert all(part.running for part in parts)
    await service.stop()

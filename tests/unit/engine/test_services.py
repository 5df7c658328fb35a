from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from iotjobs import clock
from iotjobs.engine.events import FeedLag
from iotjobs.engine.retention import Keep, Retention
from iotjobs.engine.services import LoopService, Service
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher
from iotjobs.transports.mqtt_address import BrokerAddress
from tests.services.programs import free_port
from tests.services.rows import Engine, MakeEngine


class Counting(LoopService):
    """Counts how often its loop begins; fails as often as it is told."""

    name = "counting"

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.begun, self.failures = 0, failures
        self.steady = asyncio.Event()

    async def _loop(self) -> None:
        self.begun += 1
        if self.begun <= self.failures:
            raise ZeroDivisionError
        self.steady.set()
        await asyncio.Event().wait()


def nobody() -> BrokerAddress:
    return BrokerAddress("127.0.0.1", free_port())


SERVICES: dict[str, Callable[[Engine], Service]] = {
    "worker": lambda engine: engine.worker,
    "deadlines": lambda engine: engine.deadlines,
    "retention": lambda engine: Retention(engine.store, Keep()),
    "feed lag": lambda engine: FeedLag(engine.store),
    "control": lambda engine: engine.control,
    "leftovers": lambda engine: engine.leftovers,
    "device messages": lambda engine: engine.devices(),
    "publisher": lambda _: MqttPublisher(nobody()),
    "consumer": lambda _: MqttConsumer(nobody(), client_id="x", filters=("a/b",), handler=print),
    "loop": lambda _: Counting(),
}


@pytest.mark.parametrize("name", list(SERVICES))
async def test_a_service_survives_double_start_double_stop_and_stop_before_start(
    make_engine: MakeEngine, name: str
) -> None:
    service = SERVICES[name](make_engine())
    before = asyncio.all_tasks()

    async with asyncio.timeout(5):
        await service.stop()
        await service.start()
        once = len(asyncio.all_tasks() - before)
        await service.start()
        assert len(asyncio.all_tasks() - before) == once
        await service.stop()
        await service.stop()
        assert asyncio.all_tasks() - before == set()
        await service.start()
        assert len(asyncio.all_tasks() - before) == once
        await service.stop()


async def test_a_loop_that_fails_is_logged_and_begun_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(clock, "sleep", sleep)
    service = Counting(failures=2)
    with caplog.at_level(logging.ERROR):
        await service.start()
        async with asyncio.timeout(1):
            await service.steady.wait()
    await service.stop()

    assert service.begun == 3
    assert slept == [1.0, 1.0]
    assert [record.message for record in caplog.records] == ["a service failed and is begun again"] * 2
    assert caplog.records[0].__dict__["service"] == "counting"


async def test_a_service_without_a_loop_says_so() -> None:
    with pytest.raises(AssertionError, match="a subclass writes its loop"):
        await LoopService()._loop()

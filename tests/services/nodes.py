"""Several nodes of one site on PostgreSQL, with one broker; `nodes` has the first one up."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from iotjobs_sim.mqtt_devices import PretendDevice

from iotjobs.store import queue
from iotjobs.store.session import open_store
from tests.services.fleet import slow_valve
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, Serve, StartServe


class Nodes:
    """One `serve`, and whatever is added to it."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.all = [serve]

    @property
    def broker_port(self) -> int:
        """Where devices connect."""
        return int(self.serve.settings["mqtt_url"].rpartition(":")[2])

    @property
    def database_url(self) -> str:
        """Of the site."""
        assert self.serve.database_url is not None
        return self.serve.database_url

    async def add(self, command: str = "worker", **settings: str) -> Serve:
        """Start another node."""
        node = self.serve.beside(f"node{len(self.all)}", command, **settings)
        self.all.append(node)
        await node.start()
        return node

    async def workers(self, rest: Rest) -> dict[int, dict[str, Any]]:
        """The living by their process ids."""
        items = (await rest.get("/workers"))["items"]
        return {worker["pid"]: worker for worker in items if worker["state"] == "alive"}

    async def all_alive(self, rest: Rest) -> bool:
        """Whether each of them counts as alive."""
        return set(await self.workers(rest)) == {node.pid for node in self.all}

    async def is_dead(self, rest: Rest, pid: int) -> bool:
        """Whether the others have declared a node dead: a leader, after ten seconds of its own watching."""
        return pid not in await self.workers(rest)

    async def holder(self, rest: Rest, lease: str) -> int | None:
        """The process that holds a lease."""
        held = [pid for pid, worker in (await self.workers(rest)).items() if lease in worker["leases"]]
        return held[0] if held else None

    async def leads(self, rest: Rest, pid: int, lease: str = "leader") -> bool:
        """Whether a process holds a lease."""
        return await self.holder(rest, lease) == pid

    async def held(self, worker_id: str) -> int:
        """How many attempts a worker has under way, by their rows."""
        store = open_store(self.database_url)
        await store.start()
        try:
            return len(await store.read(lambda conn: queue.held(conn, worker_id)))
        finally:
            await store.stop()


@pytest.fixture
async def nodes(make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]) -> AsyncIterator[Nodes]:
    """A site on PostgreSQL that is up, alone."""
    broker = start_mosquitto()
    serve = make_serve("postgresql", mqtt_url=f"mqtt://127.0.0.1:{broker.port}", stop_grace_s="5")
    await serve.start()
    made = Nodes(serve)
    yield made
    for node in made.all:
        node.end(signal.SIGKILL)


@pytest.fixture
async def valve(nodes: Nodes) -> AsyncIterator[PretendDevice]:
    """A `Fleet`'s device on their broker."""
    async with slow_valve(nodes.broker_port) as device:
        yield device

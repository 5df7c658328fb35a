"""This process's place: alone with its file, or one of several nodes. All that differs is made here.

Alone it always leads, and carries its tickets in memory. One of several beats, seeks the leases,
and carries tickets by PgQueuer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iotjobs import clock
from iotjobs.domain.errors import ConfigurationError
from iotjobs.engine.control import Control
from iotjobs.engine.dispatch import Dispatcher, InProcessDispatcher
from iotjobs.engine.events import EventFeed
from iotjobs.engine.feed import Feed
from iotjobs.engine.leases import Always, Lease
from iotjobs.engine.leftovers import Leftovers
from iotjobs.engine.presence import INGEST, LEADER, Alone, Presence
from iotjobs.engine.rescue import DeadWorkers, rescue
from iotjobs.engine.services import Service
from iotjobs.engine.settle import Settler
from iotjobs.store.nodes import Node
from iotjobs.store.session import PostgresStore, Store, postgres_url

if TYPE_CHECKING:
    from iotjobs.engine.hints import Hints

log = logging.getLogger(__name__)

VITAL_ANSWER_S = 4.0


@dataclass(slots=True)
class Place:
    """Where this process stands.

    Attributes:
        services: to be started in this order, before anything that uses them, and stopped after it.
        leader, ingest: whether it does what one process alone does.
        hints: between the nodes, where there are several.
    """

    presence: Alone | Presence
    dispatcher: Dispatcher
    leader: Always | Lease
    ingest: Always | Lease
    services: tuple[Service, ...]
    hints: Hints | None = None

    def tell_running(self, running: Callable[[], int]) -> None:
        """Say from now on how many attempts are under way here."""
        self.presence.running = running

    def tell_broker(self, connected: Callable[[], bool], fit: Callable[[], bool]) -> None:
        """Say from now on whether we are connected to the broker, and whether we can consume what devices send."""
        self.presence.connected, self.ingest.fit = connected, fit

    def connect(self, feed: Feed, events: EventFeed, control: Control) -> None:
        """Let those who wait here hear what happens on other nodes, and the others what happens here."""
        if self.hints is not None:
            feed.tell, control.tell = self.hints.ended, self.hints.asked
            self.hints.on_events, self.hints.on_ended = events.wake, feed.wake
            self.hints.on_asked = control.wake

    async def rescue(self, store: Store, settler: Settler, leftovers: Leftovers) -> Service | None:
        """End what dead workers held: at once when alone, else by the service that this returns."""
        if isinstance(self.presence, Presence):
            return DeadWorkers(store, settler, leftovers, self.presence, self.leader)
        worker_id = self.presence.worker_id
        count = await rescue(store, settler, leftovers, worker_id)
        count += await leftovers.take_over_all(worker_id)
        if count:
            log.info("attempts of a dead process were ended or given their next try", extra={"count": count})
        return None


def alone(node: Node) -> Place:
    """The embedded mode: the data directory's lock has made sure that there is nobody else."""
    always = Always()
    return Place(Alone(clock.new_id(), node), InProcessDispatcher(), always, always, ())


async def among_others(store: Store, url: str, node: Node, file: Path) -> Place:
    """One of several nodes on PostgreSQL.

    Args:
        store: open and migrated.
        url: of its database.
        node: what this process says of itself.
        file: keeps the worker's id. The directory's lock says that its last process is dead, so what
            that one held need not wait until its silence is noticed.

    Raises:
        ConfigurationError: PgQueuer is not installed.
        StoreUnavailable: the database cannot be reached.
    """
    try:
        from iotjobs.engine.dispatch_postgres import PgQueuerDispatcher
        from iotjobs.engine.hints import Hints
    except ImportError as error:
        raise ConfigurationError("PostgreSQL needs pgqueuer: pip install 'iotjobs[postgres]'") from error
    # Beats and leases must not stand in line behind five hundred jobs, nor wait for a dead connection.
    vital = PostgresStore(postgres_url(url), connections=2, answer_s=VITAL_ANSWER_S)
    presence = Presence(vital, node, lambda worker_id: _write(file, worker_id))
    await presence.enter(_read(file))
    leader, ingest = (Lease(vital, name, lambda: presence.worker_id) for name in (LEADER, INGEST))
    ingest.fit = lambda: False  # until we are connected
    dispatcher = PgQueuerDispatcher(store, url, at_once=node.at_once, may_publish=presence.may_publish)
    leases = (
        (leader, ingest) if node.mqtt else (leader,)
    )  # without a broker nobody can consume what devices send
    hints = Hints(url)
    store.after_writes.append(hints.written)
    services = (vital, presence, *leases, dispatcher, hints)
    return Place(presence, dispatcher, leader, ingest, services, hints)


def _read(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


def _write(file: Path, worker_id: str) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(worker_id + "\n")
    beside.replace(file)

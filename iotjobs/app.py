"""The composition root: settings → store → transports → engine → inputs.

`Site` is one running iotjobs: everything is made here, started in order and stopped in the
opposite order. Nothing below knows the settings.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass, field

from fastapi import FastAPI

from iotjobs import __version__, clock
from iotjobs.domain.errors import ConfigurationError
from iotjobs.engine.control import Control
from iotjobs.engine.deadlines import Deadlines
from iotjobs.engine.devices import DeviceMessages
from iotjobs.engine.dispatch import Dispatcher
from iotjobs.engine.enrolment import Enrolment
from iotjobs.engine.events import EventFeed, FeedLag
from iotjobs.engine.execution import Executor
from iotjobs.engine.feed import Feed
from iotjobs.engine.firing import FiringParts
from iotjobs.engine.ingest import Ingest
from iotjobs.engine.intake import Intake
from iotjobs.engine.leftovers import Leftovers
from iotjobs.engine.limits import Limits
from iotjobs.engine.listening import Listening
from iotjobs.engine.place import Place, alone, among_others
from iotjobs.engine.publishing import Publishing
from iotjobs.engine.reach import Reach
from iotjobs.engine.reactions import Reactions
from iotjobs.engine.readiness import Readiness
from iotjobs.engine.retention import Keep, Retention
from iotjobs.engine.services import Service
from iotjobs.engine.settle import Settler
from iotjobs.engine.site import SiteSwitch
from iotjobs.engine.timers import Timers
from iotjobs.engine.worker import Worker
from iotjobs.inputs.auth import Authenticator
from iotjobs.inputs.rest.api import build_api
from iotjobs.inputs.rest.services import ApiServices, EngineServices
from iotjobs.settings import Settings
from iotjobs.store import accounts, facts, secrets
from iotjobs.store.lock import take_lock
from iotjobs.store.migrations.migrate import migrate, revision_of
from iotjobs.store.nodes import Node
from iotjobs.store.permissions import make_private
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store, open_store
from iotjobs.transports.broker import BrokerProcess
from iotjobs.transports.broker_child import find_mosquitto
from iotjobs.transports.ingest_rules import IngestRule, subscriptions
from iotjobs.transports.local import LocalTransport
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher
from iotjobs.transports.mqtt_address import BrokerAddress
from iotjobs.transports.ssh import SshTransport
from iotjobs.transports.ssh_pool import SshLimits
from iotjobs.transports.ssh_trust import read_authorities
from iotjobs.transports.topics import DEVICE_FILTERS

log = logging.getLogger(__name__)

# No thing's login has an @, see `broker_username`.
BROKER_USER = "iotjobs@service"


@dataclass(slots=True)
class Site:
    """One running iotjobs. `start` once, `stop` once.

    Attributes:
        disk_failed: what was written may not be on disk; this process has to go, and a new one to look.
        with_api: make the HTTP application; without it the process is a worker, on PostgreSQL only.
        api: the HTTP application, after `start`.
        admin_token: the administrator's token if this start made one: to be shown once.
        mqtt_url: where devices connect, without a login; None without a broker.
    """

    settings: Settings
    disk_failed: asyncio.Event = field(default_factory=asyncio.Event)
    with_api: bool = True
    api: FastAPI | None = None
    admin_token: str | None = None
    mqtt_url: str | None = None
    worker: Worker | None = None
    readiness: Readiness = field(default_factory=Readiness)
    _ending_since: float | None = None
    _lock: int | None = None
    _store: Store | None = None
    _ssh: SshTransport | None = None
    _feed: Feed | None = None
    _events: EventFeed | None = None
    _services: list[Service] = field(default_factory=list)

    async def start(self) -> None:
        """Bring everything up, in order; `stop` undoes it also when this failed half way.

        Raises:
            AlreadyRunning: another process serves this data.
            ConfigurationError: a setting, or the key, does not fit.
            MigrationNeeded: the database is of another version.
        """
        settings = self.settings
        if not self.with_api and settings.database_url is None:
            raise ConfigurationError(
                "a worker needs PostgreSQL: set IOTJOBS_DATABASE_URL (with SQLite `iotjobs serve` does it all)"
            )
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = take_lock(settings.data_dir / "lock")
        make_private(settings.data_dir)
        vault = self._open_secrets()
        store = self._store = open_store(settings.store_url)
        store.on_broken = self._give_up
        if settings.database_url is not None:
            await store.read(revision_of)  # a silent database is given up here by a stop; a thread cannot be
        await asyncio.to_thread(migrate, settings.store_url)
        await store.start()
        await store.write(lambda tx: secrets.check_canary(tx, vault))
        given = settings.admin_token.get_secret_value() if settings.admin_token else None
        self.admin_token = await store.write(lambda tx: accounts.ensure_admin(tx, given, clock.now_ms()))
        self.readiness.watch("store", lambda: store.up)
        self.readiness.degraded(
            "disk", lambda: "is full: free space, no restart is needed" if store.full else None
        )
        await self._watch_events(store)
        broker, address = self._find_broker()
        place = await self._find_place(store, mqtt=address is not None)
        enrolment = Enrolment(store, broker)
        if broker is not None:
            await enrolment.publish_all()
            await self._run(broker)
        await self._start_engine(store, vault, place, address, enrolment=enrolment)
        await store.keep_reserve()

    async def _watch_events(self, store: Store) -> None:
        self._events = EventFeed(store)
        if self.settings.database_url is not None:
            lag = FeedLag(store)
            self.readiness.degraded("events", lag.reason)
            await self._run(lag)

    def _open_secrets(self) -> Secrets:
        embedded = self.settings.database_url is None
        if not embedded and self.settings.secret_key_file is None:
            raise ConfigurationError(
                "IOTJOBS_SECRET_KEY_FILE is required with PostgreSQL: every node needs the same key"
            )
        return Secrets(secrets.load_or_make_key(self.settings.key_file, may_make=embedded))

    async def _find_place(self, store: Store, *, mqtt: bool) -> Place:
        settings = self.settings
        node = Node(socket.gethostname(), os.getpid(), __version__, (), settings.jobs_at_once, mqtt)
        if settings.database_url is None:
            return alone(node)
        place = await among_others(store, settings.store_url, node, settings.data_dir / "worker")
        for service in place.services:
            await self._run(service)
        return place

    async def _start_engine(
        self,
        store: Store,
        vault: Secrets,
        place: Place,
        address: BrokerAddress | None,
        *,
        enrolment: Enrolment,
    ) -> None:
        settings = self.settings
        publisher = None if address is None else MqttPublisher(address)
        dispatcher, limits = place.dispatcher, Limits()
        feed = self._feed = Feed(store)
        settler = Settler(store, dispatcher, feed, limits)
        self._ssh = _ssh_of(settings)
        reach = Reach(store, vault, self._ssh, LocalTransport())
        publishing = Publishing(store, settler, publisher)
        presence, cap, at_once = place.presence, settings.output_cap_bytes, settings.jobs_at_once
        executor = Executor(store, settler, reach, publishing, presence=presence, output_cap_bytes=cap)
        worker = self.worker = Worker(
            store, vault, dispatcher, executor, limits=limits, presence=presence, at_once=at_once
        )
        place.tell_running(lambda: worker.running)
        leftovers = Leftovers(store, settler, reach)
        leader, listening = place.leader, await self._watch_listener(store, place, publisher)
        heard = listening.heard
        deadlines = Deadlines(store, dispatcher, settler, worker, leftovers, standing=leader, heard=heard)
        await deadlines.timekeeper.begin()
        control = Control(store, settler, dispatcher, leftovers=leftovers, worker=worker)
        if self._events is not None:
            place.connect(feed, self._events, control)
        dead_workers = await place.rescue(store, settler, leftovers)
        switch = SiteSwitch(store, limits, settler, deadlines.sweep)
        await switch.look()
        await deadlines.sweep()
        intake = _intake(settings, store, vault, dispatcher)
        reactions = Reactions(FiringParts(intake, settler, dispatcher, worker), heard)
        if publisher is not None and address is not None:
            await self._start_mqtt(settler, reactions, publisher, address, place=place)
        self.readiness.degraded("dispatch", limits.drained)
        retention = Retention(store, _keep(settings), leader)
        behind = deadlines.timekeeper.is_behind
        timers = Timers(store, reactions, leader, ingest=place.ingest, listening=listening, is_behind=behind)
        for service in (leftovers, switch, deadlines, dead_workers, worker, control, retention, timers):
            if service is not None:
                await self._run(service)
        if not self.with_api:
            return
        engine = EngineServices(
            intake=intake,
            reactions=reactions,
            feed=feed,
            control=control,
            reach=reach,
            enrolment=enrolment,
            readiness=self.readiness,
            switch=switch,
            roster=presence.roster,
        )
        self.api = self._api_of(store, vault, engine)

    def _api_of(self, store: Store, vault: Secrets, engine: EngineServices) -> FastAPI:
        return build_api(
            ApiServices(
                store=store,
                secrets=vault,
                authenticator=Authenticator(store),
                allow_local=self.settings.allow_local,
                definitions_changed=engine.definitions_changed,
                engine=engine,
            )
        )

    def _find_broker(self) -> tuple[BrokerProcess | None, BrokerAddress | None]:
        """The broker of ours, if we start one, and the address of whichever there is."""
        settings = self.settings
        if settings.mqtt_url is not None:
            address = BrokerAddress.parse(settings.mqtt_url.get_secret_value(), ca_file=settings.mqtt_ca_file)
            self.mqtt_url = str(address)
            return None, address
        if not self.with_api:
            log.warning("IOTJOBS_MQTT_URL is not set: this worker runs without MQTT")
            return None, None
        if find_mosquitto() is None:
            self.readiness.absent("broker", "mosquitto is not installed (apt-get install mosquitto): no MQTT")
            log.warning("mosquitto is not installed: running without MQTT")
            return None, None
        broker = BrokerProcess(
            settings.data_dir / "broker",
            service_username=BROKER_USER,
            service_password=clock.new_id() + clock.new_id(),
            bind=settings.mqtt_bind,
            port=settings.mqtt_port,
        )
        self.mqtt_url = f"mqtt://{settings.mqtt_bind}:{settings.mqtt_port}"
        return broker, broker.address

    async def _watch_listener(self, store: Store, place: Place, publisher: MqttPublisher | None) -> Listening:
        """Watch whether somebody listens to devices, and so how far it is known what they have said."""
        listening = Listening(store, lambda: place.presence.worker_id)
        await self._run(listening)
        if publisher is not None:
            self.readiness.degraded("ingest", lambda: listening.trouble() if publisher.connected else None)
        return listening

    async def _start_mqtt(
        self,
        settler: Settler,
        reactions: Reactions,
        publisher: MqttPublisher,
        address: BrokerAddress,
        *,
        place: Place,
    ) -> None:
        store, settings = self._store, self.settings
        assert store is not None
        ingest = [IngestRule(**rule.model_dump()) for rule in settings.ingest]
        devices = DeviceMessages(
            store,
            settler,
            reactions,
            standing=place.ingest,
            reports_per_s=settings.report_rate,
            ingest=ingest,
        )
        client_id = await store.write(lambda tx: facts.remembered(tx, facts.MQTT_CLIENT_ID, _new_client_id))
        filters = (*DEVICE_FILTERS, *subscriptions(ingest))
        consumer = MqttConsumer(
            address,
            client_id=client_id,
            filters=filters,
            earlier=await store.write(lambda tx: facts.subscribed(tx, filters)),
            handler=devices.receive,
            on_new_session=devices.new_session,
        )
        listener = Ingest(
            store,
            place.ingest,
            devices,
            consumer,
            publisher=publisher,
            worker_id=lambda: place.presence.worker_id,
        )
        place.tell_broker(lambda: publisher.connected, listener.is_fit)
        for service in (listener, publisher):
            await self._run(service)
        self.readiness.watch(
            "broker", lambda: publisher.connected and (consumer.connected or not place.ingest.leads)
        )

    async def _run(self, service: Service) -> None:
        self._services.append(service)
        await service.start()

    def _give_up(self) -> None:
        if not self.disk_failed.is_set():
            log.critical(
                "the disk did not keep what was written: stopping",
                extra={"data": str(self.settings.data_dir)},
            )
            self.readiness.failed("store", "the disk did not keep what was written")
            self.disk_failed.set()

    def let_go(self) -> None:
        """Answer those who wait for a job, or for events, so that they do not hold up the end; the grace begins."""
        self._ending_since = clock.monotonic()
        for feed in (self._feed, self._events):
            if feed is not None:
                feed.let_go()

    async def stop(self) -> None:
        """Let running jobs end within the grace, then take everything down in the opposite order."""
        grace_s = 0.0 if self.disk_failed.is_set() else self.settings.stop_grace_s  # no end can be kept
        if self._ending_since is not None:
            grace_s -= clock.monotonic() - self._ending_since
        if self.worker is not None:
            await self.worker.drain(max(0.0, grace_s))
        while self._services:
            await self._services.pop().stop()
        if self._ssh is not None:
            await self._ssh.close()
        if self._store is not None:
            await self._store.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _ssh_of(settings: Settings) -> SshTransport:
    return SshTransport(
        limits=SshLimits(
            connect_timeout_s=settings.ssh_connect_timeout_s,
            idle_s=settings.ssh_idle_s,
            keepalive_s=settings.ssh_keepalive_s,
        ),
        known_hosts_file=settings.known_hosts_file,
        host_authorities=read_authorities(settings.ssh_host_ca_file) if settings.ssh_host_ca_file else (),
        agent_path=settings.ssh_agent_path,
    )


def _intake(settings: Settings, store: Store, vault: Secrets, dispatcher: Dispatcher) -> Intake:
    return Intake(
        store,
        vault,
        dispatcher,
        allow_local=settings.allow_local,
        default_timeout_s=settings.default_timeout_s,
    )


def _keep(settings: Settings) -> Keep:
    return Keep(
        output_days=settings.keep_output_days,
        output_bytes=settings.keep_output_bytes,
        logs_days=settings.keep_logs_days,
        jobs_days=settings.keep_jobs_days,
        history_days=settings.keep_history_days,
        history_values=settings.keep_history_values,
        traces_days=settings.keep_traces_days,
        output_cap_bytes=settings.output_cap_bytes,
    )


def _new_client_id() -> str:
    # Unguessable: whoever knows it could take the session over.
    return f"iotjobs-{os.urandom(16).hex()}"

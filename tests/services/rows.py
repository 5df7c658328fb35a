"""Rows for tests of store and engine: jobs made directly, as intake would make them.

`sqlite_store` is a migrated store of the test's own. `Engine` is the real engine around a store,
without a broker and without a device: operations run on this host.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import Connection, func, select

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.jobs import Cause, Job, JobType, Transport
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.rights import Caller, Role
from iotjobs.domain.states import Heard
from iotjobs.engine.control import Control
from iotjobs.engine.deadlines import Deadlines
from iotjobs.engine.devices import DeviceMessages
from iotjobs.engine.dispatch import Dispatcher, InProcessDispatcher
from iotjobs.engine.execution import Executor
from iotjobs.engine.feed import Feed
from iotjobs.engine.firing import FiringParts
from iotjobs.engine.happenings import Happening, Reported, What
from iotjobs.engine.intake import Execute, Intake
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.leftovers import Leftovers
from iotjobs.engine.limits import Limits
from iotjobs.engine.presence import Alone
from iotjobs.engine.publishing import Publishing
from iotjobs.engine.reach import Reach
from iotjobs.engine.reactions import Reactions
from iotjobs.engine.recorder import OUTPUT_CAP_BYTES
from iotjobs.engine.settle import Settler
from iotjobs.engine.site import SiteSwitch
from iotjobs.engine.worker import Worker
from iotjobs.inputs.operation_shapes import OperationBody
from iotjobs.store import definitions, jobs, rules, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.queue import Ticket
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store, open_store
from iotjobs.store.state_tables import standings
from iotjobs.store.writer import Transaction
from iotjobs.transports.local import LocalTransport
from iotjobs.transports.mqtt import MqttPublisher
from iotjobs.transports.ssh import SshTransport

ADMIN = Caller("a" * 32, "admin", Role.ADMIN)
OBJECT = "0" * 31 + "1"

_numbers = itertools.count(1)
_operation: TypeAdapter[Any] = TypeAdapter(OperationBody)


def plan(**members: Any) -> Plan:
    """The plan of a script that does nothing."""
    return Plan(**{"type": OperationType.SCRIPT, "timeout_s": 300.0, "script": "true", **members})


def job_row(**columns: Any) -> dict[str, Any]:
    """A PENDING script job on `OBJECT`, in no lane."""
    defaults: dict[str, Any] = {
        "id": clock.new_id(),
        "type": JobType.EXECUTE_ACTION,
        "label": "op on thing",
        "operation_id": "p" * 32,
        "operation_name": "op",
        "operation_type": OperationType.SCRIPT,
        "operation_version": 1,
        "transport": Transport.LOCAL,
        "owner_id": OBJECT,
        "owner_type": int(OwnerType.OBJECT),
        "owner_name": "thing",
        "target_id": OBJECT,
        "user_id": ADMIN.user_id,
        "run_by_id": ADMIN.user_id,
        "run_by_name": ADMIN.login,
        "cause": Cause.USER,
        "timestamp": clock.now_ms(),
    }
    return {**defaults, **columns}


def insert_job(
    tx: Transaction, *, of: Plan | None = None, secret: bytes | None = None, **columns: Any
) -> str:
    """Insert a job in a transaction; its id."""
    row = job_row(**columns)
    jobs.insert_job(tx, row, of or plan(), secret)
    return str(row["id"])


async def add_job(
    store: Store, *, of: Plan | None = None, secret: bytes | None = None, **columns: Any
) -> Job:
    """Insert a job; the row."""
    job_id = await store.write(lambda tx: insert_job(tx, of=of, secret=secret, **columns))
    return await job_of(store, job_id)


async def running_job(store: Store, *, sent: bool = False, worker_id: str = "w1", **columns: Any) -> Job:
    """Insert a job and begin its first attempt; the row."""
    job = await add_job(store, **columns)
    return await begin(store, job, sent=sent, worker_id=worker_id)


async def begin(store: Store, job: Job, *, sent: bool = False, worker_id: str = "w1") -> Job:
    """Begin a job's next attempt; the row, with the mark that it gets when it is sent."""
    now, nonce = clock.now_ms(), clock.new_id()
    await store.write(
        lambda tx: jobs.begin_attempt(tx, job, worker_id=worker_id, nonce=nonce, at=now, sent=sent)
    )
    return replace(await job_of(store, job.id), nonce=nonce)


async def job_of(store: Store, job_id: str) -> Job:
    """A job's row now."""
    return await store.read(lambda conn: jobs.get(conn, job_id))


async def counts(store: Store) -> dict[str, int]:
    """How many jobs have each status."""
    query = select(tables.jobs.c.status, func.count()).group_by(tables.jobs.c.status)
    return await store.read(lambda conn: dict(conn.execute(query).all()))


async def events_of(store: Store, job_id: str) -> list[tuple[str, str | None, str | None]]:
    """A job's events in their order: (kind, status, outcome)."""
    E = tables.events.c

    def query(conn: Connection) -> list[tuple[str, str | None, str | None]]:
        rows = conn.execute(select(E.kind, E.data).where(E.job_id == job_id).order_by(E.id))
        return [(kind, data.get("status"), data.get("outcome")) for kind, data in rows]

    return await store.read(query)


async def rows_of(store: Store, table: Any, job_id: str) -> list[dict[str, Any]]:
    """The rows of a table that belong to a job."""

    def query(conn: Connection) -> list[dict[str, Any]]:
        rows = conn.execute(select(table).where(table.c.job_id == job_id).order_by(*table.primary_key))
        return [dict(row._mapping) for row in rows]

    return await store.read(query)


def standing_of(conn: Connection, entity_id: str) -> Any:
    """What is remembered of an entity's state; None of one that never changed."""
    return conn.execute(select(standings).where(standings.c.entity_id == entity_id)).first()


@dataclass
class Offered:
    """Takes tickets after their commit, and keeps them in that order."""

    tickets: list[Ticket] = field(default_factory=list)

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Offers`."""
        tx.after_commit(lambda: self.tickets.append(ticket))

    def withdraw(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Tickets`."""
        tx.after_commit(lambda: self.tickets.remove(ticket) if ticket in self.tickets else None)

    @property
    def ids(self) -> list[str]:
        """Whose they are."""
        return [ticket.job_id for ticket in self.tickets]


class Failing:
    """A store that cannot write so many times, and then can."""

    def __init__(self, store: Store, errors: list[Exception]) -> None:
        self._store, self.errors = store, errors

    async def write(self, item: Any, **given: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return await self._store.write(item, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Engine:
    """The engine as `app` wires it, around a store; nothing of it is started."""

    def __init__(
        self,
        store: Store,
        *,
        publisher: MqttPublisher | None = None,
        dispatcher: Dispatcher | None = None,
        worker_id: str = "w1",
        at_once: int = 10,
        output_cap_bytes: int = OUTPUT_CAP_BYTES,
        heard: Callable[[int], Heard] = Heard.all_until,
    ) -> None:
        self.store, self.secrets = store, Secrets(b"k" * 32)
        self.dispatcher = dispatcher or InProcessDispatcher()
        self.feed, self.limits = Feed(store), Limits()
        self.settler = Settler(store, self.dispatcher, self.feed, self.limits)
        self.ssh = SshTransport()
        self.reach = Reach(store, self.secrets, self.ssh, LocalTransport())
        self.publishing = Publishing(store, self.settler, publisher)
        self.executor = Executor(
            store,
            self.settler,
            self.reach,
            self.publishing,
            presence=Alone(worker_id),
            output_cap_bytes=output_cap_bytes,
        )
        self.worker = Worker(
            store,
            self.secrets,
            self.dispatcher,
            self.executor,
            limits=self.limits,
            presence=Alone(worker_id),
            at_once=at_once,
        )
        self.leftovers = Leftovers(store, self.settler, self.reach)
        self.deadlines = Deadlines(
            store, self.dispatcher, self.settler, self.worker, self.leftovers, heard=heard
        )
        self.switch = SiteSwitch(store, self.limits, self.settler, self.deadlines.sweep)
        self.control = Control(
            store, self.settler, self.dispatcher, leftovers=self.leftovers, worker=self.worker
        )
        self.intake = Intake(store, self.secrets, self.dispatcher, allow_local=True)
        parts = FiringParts(self.intake, self.settler, self.dispatcher, self.worker)
        self.reactions = Reactions(parts, heard)

    def devices(
        self, store: Any = None, *, reports_per_s: float = 0, standing: Standing | None = None
    ) -> DeviceMessages:
        """An inbox for what devices say; not started."""
        return DeviceMessages(
            store or self.store,
            self.settler,
            self.reactions,
            standing=standing or Always(),
            reports_per_s=reports_per_s,
        )

    async def stop(self) -> None:
        """End what was started."""
        await self.control.stop()
        await self.worker.drain(5.0)
        await self.switch.stop()
        await self.deadlines.stop()
        await self.leftovers.stop()
        await self.ssh.close()

    async def thing(self, **members: Any) -> str:
        """Define an object; its id."""
        return await self._define(Kind.OBJECT, **{"name": f"thing{next(_numbers)}", **members})

    async def link(self, source: str, target: str, **members: Any) -> str:
        """Define a link; its id."""
        return await self._define(
            Kind.LINK, name=f"link{next(_numbers)}", source=source, target=target, **members
        )

    async def class_(self, **members: Any) -> str:
        """Define a class; its id."""
        values = {
            "name": f"class{next(_numbers)}",
            "tags": [],
            "properties": {},
            "property_types": {},
            "no_data_after_s": None,
            **members,
        }
        made = await self.store.write(lambda tx: definitions.create(tx, Kind.CLASS, values, clock.now_ms()))
        return made.id

    async def _define(self, kind: Kind, **members: Any) -> str:
        values: dict[str, Any] = {"class_id": None, "tags": [], "properties": {}, "property_types": {}}
        if kind is Kind.OBJECT:
            values |= {"thing": None, "external_id": None, "no_data_after_s": None, "mqtt": None, "ssh": None}
        values |= members
        made = await self.store.write(lambda tx: definitions.create(tx, kind, values, clock.now_ms()))
        return made.id

    async def operation(self, owner_id: str, *, owner_kind: str = "object", **members: Any) -> str:
        """Define an operation of an object, on this host unless it is an mqtt one; its id."""
        given = {"name": f"op{next(_numbers)}", "type": "script", **members}
        if given["type"] != "mqtt":
            given.setdefault("via", "local")
        shaped = _operation.validate_python(given).model_dump()
        name, type_ = shaped.pop("name"), shaped.pop("type")
        values = {
            "owner_kind": owner_kind,
            "owner_id": owner_id,
            "name": name,
            "type": type_,
            "settings": shaped,
        }
        made = await self.store.write(
            lambda tx: definitions.create(tx, Kind.OPERATION, values, clock.now_ms())
        )
        return made.id

    async def script(self, text: str, **members: Any) -> tuple[str, str]:
        """Define an object with a script operation; both ids."""
        owner_id = await self.thing()
        return owner_id, await self.operation(owner_id, parameters={"text": text}, **members)

    async def conditions(self, owner_id: str, *items: dict[str, Any], owner_kind: str = "object") -> None:
        """Put the state conditions of an owner."""
        usual = {"hold_s": 0, "description": "", "period": None}
        rows = [{"id": f"c{number}", **usual, **item} for number, item in enumerate(items)]
        await self.store.write(lambda tx: rules.put_conditions(tx, owner_kind, owner_id, rows))

    async def triggers(self, owner_id: str, *items: dict[str, Any], owner_kind: str = "object") -> list[str]:
        """Put the triggers of an owner; their ids."""
        usual = {
            "hold_s": 0,
            "repeat_s": None,
            "cooldown_s": 0,
            "max_per_hour": None,
            "enabled": True,
            "dry": False,
        }
        rows = [
            {"id": clock.new_id(), "name": f"trigger {number}", **usual, **item}
            for number, item in enumerate(items)
        ]
        await self.store.write(lambda tx: rules.put_triggers(tx, owner_kind, owner_id, rows))
        return [str(row["id"]) for row in rows]

    async def happens(self, entity_id: str, what: What, owner_type: OwnerType = OwnerType.OBJECT) -> bool:
        """Something happens to an entity; False for a report that came before."""
        happening = Happening(owner_type, entity_id, what)
        return await self.store.write(lambda tx: self.reactions.react(tx, happening))

    async def report(self, entity_id: str, report_id: str | None = None, /, **values: Any) -> bool:
        """An object reports values; False when that report came before."""
        return await self.happens(entity_id, Reported(values, report_id))

    async def execute(self, owner_id: str, operation_id: str, **request: Any) -> str:
        """Submit a job; its id."""
        given = {"owner_type": OwnerType.OBJECT, "caller": ADMIN, **request}
        return await self.intake.execute(Execute(owner_id=owner_id, operation_id=operation_id, **given))

    async def ended(self, job_id: str, within_s: float = 5.0) -> Job:
        """The job's row, once it has ended."""
        assert await self.feed.wait_for_end(job_id, within_s), await job_of(self.store, job_id)
        return await job_of(self.store, job_id)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database at the newest revision, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """A database of the test's own."""
    path = tmp_path / "iotjobs.db"
    path.write_bytes(migrated_file.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
async def sqlite_store(sqlite_url: str) -> AsyncIterator[Store]:
    """A store of the test's own."""
    store = open_store(sqlite_url)
    await store.start()
    yield store
    await store.stop()


MakeEngine = Callable[..., Engine]


@pytest.fixture
async def make_engine(sqlite_store: Store) -> AsyncIterator[MakeEngine]:
    """Makes engines around one store, as after a restart."""
    made: list[Engine] = []

    def make(**given: Any) -> Engine:
        made.append(Engine(sqlite_store, **given))
        return made[-1]

    yield make
    for engine in made:
        await engine.stop()

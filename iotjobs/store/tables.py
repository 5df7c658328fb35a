"""The tables. They never leave `store/`; callers get the dataclasses of `domain`.

Moments are integer milliseconds. JSON is kept as the text that was written, on PostgreSQL
too: JSONB would sort members and write 1.5e300 out in digits, and a device gets what was saved.
Identifiers are UUIDv7 hex, except `job.seq` and `event.id`, which the database counts.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlmodel import AutoString, Field, SQLModel

# SQLite counts only a column declared INTEGER PRIMARY KEY.
Counter = BigInteger().with_variant(Integer(), "sqlite")
Json = JSON(none_as_null=True)


def json_column(*, nullable: bool = False) -> Any:
    """A column of JSON; None is NULL."""
    return Field(sa_column=Column(Json, nullable=nullable))


def ms_column(*, nullable: bool = True) -> Any:
    """A moment or a duration, in milliseconds."""
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable))


class ClassRow(SQLModel, table=True):
    """A template of entities."""

    __tablename__ = "class"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    tags: list[str] = json_column()
    properties: dict[str, Any] = json_column()
    property_types: dict[str, str] = json_column()
    no_data_after_s: float | None = None
    created_at: int = ms_column(nullable=False)
    version: int = 1


class ObjectRow(SQLModel, table=True):
    """A managed thing; `mqtt_password` is the broker's hash of an enrolled device's password."""

    __tablename__ = "object"
    id: str = Field(primary_key=True)
    name: str = Field(index=True)
    class_id: str | None = Field(default=None, foreign_key="class.id")
    thing: str | None = Field(default=None, unique=True)
    external_id: str | None = Field(default=None, unique=True)
    tags: list[str] = json_column()
    properties: dict[str, Any] = json_column()
    property_types: dict[str, str] = json_column()
    no_data_after_s: float | None = None
    mqtt: dict[str, Any] | None = json_column(nullable=True)
    ssh: dict[str, Any] | None = json_column(nullable=True)
    mqtt_password: str | None = None
    created_at: int = ms_column(nullable=False)
    version: int = 1


class LinkRow(SQLModel, table=True):
    """A connection from one object to another."""

    __tablename__ = "link"
    id: str = Field(primary_key=True)
    name: str
    class_id: str | None = Field(default=None, foreign_key="class.id")
    source: str = Field(foreign_key="object.id", index=True)
    target: str = Field(foreign_key="object.id", index=True)
    tags: list[str] = json_column()
    properties: dict[str, Any] = json_column()
    property_types: dict[str, str] = json_column()
    created_at: int = ms_column(nullable=False)
    version: int = 1


class ScriptRow(SQLModel, table=True):
    """A text of the script repository."""

    __tablename__ = "script"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    interpreter: str
    text: str
    created_at: int = ms_column(nullable=False)
    version: int = 1


class CredentialRow(SQLModel, table=True):
    """How to log in; `secret` is encrypted JSON of key, passphrase and password."""

    __tablename__ = "credential"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    kind: str
    username: str | None = None
    secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: int = ms_column(nullable=False)
    version: int = 1


class OperationRow(SQLModel, table=True):
    """A named action of a class, an object or a link."""

    __tablename__ = "operation"
    id: str = Field(primary_key=True)
    owner_kind: str
    owner_id: str
    name: str
    type: str
    settings: dict[str, Any] = json_column()
    created_at: int = ms_column(nullable=False)
    version: int = 1
    __table_args__ = (
        UniqueConstraint("owner_id", "name", name="operation_name"),
        Index("operation_owner", "owner_kind", "owner_id"),
    )


class UserRow(SQLModel, table=True):
    """Somebody who may call; `password` is argon2id's encoded hash."""

    __tablename__ = "account"
    id: str = Field(primary_key=True)
    login: str = Field(unique=True)
    password: str | None = None
    role: str
    created_at: int = ms_column(nullable=False)
    version: int = 1


class TokenRow(SQLModel, table=True):
    """An API token: its number and the SHA-256 of the whole."""

    __tablename__ = "token"
    number: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    user_id: str = Field(foreign_key="account.id", index=True)
    name: str
    digest: str
    created_at: int = ms_column(nullable=False)
    expires_at: int | None = ms_column()
    __table_args__ = ({"sqlite_autoincrement": True},)


# What the clock moves, as the literal text that both a partial index and its query must have.
DUE = {
    "start_at": "start_at IS NOT NULL AND status = 'PENDING'",
    "expires_at": "expires_at IS NOT NULL AND status IN ('PENDING', 'STOPPED')",
    "deadline_at": "deadline_at IS NOT NULL AND status IN ('RUNNING', 'STOPPING', 'CANCELING')",
}
# What a full queue or a drained site holds back, likewise.
HELD = "pending_reason IN ('queue', 'drained') AND status = 'PENDING'"

# A job at rest of which something may be left on its device: its worker is who finds out, until it has.
UNPROVEN = "worker_id IS NOT NULL AND (outcome = 'canceled' OR outcome = 'expired' OR status = 'STOPPED')"

# What retention deletes first; the index is small, since output that is gone falls out of it.
OUTPUT_KEPT = "ended_at IS NOT NULL AND output_bytes > 0 AND output_pruned_at IS NULL"


class JobRow(SQLModel, table=True):
    """One job; `domain.jobs.Job` says what each column means."""

    __tablename__ = "job"
    seq: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    id: str = Field(unique=True)
    type: str
    label: str
    operation_id: str | None = None
    operation_name: str | None = None
    operation_type: str | None = None
    operation_version: int | None = None
    transport: str | None = None
    owner_id: str
    owner_type: int
    owner_name: str
    target_id: str | None = None
    user_id: str | None = None
    run_by_id: str | None = None
    run_by_name: str | None = None
    cause: str
    cause_key: str | None = Field(default=None, unique=True)
    parent_id: str | None = None
    retry_of: str | None = None
    status: str
    outcome: str | None = None
    pending_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    progress: dict[str, Any] | None = json_column(nullable=True)
    delivery: str | None = None
    timestamp: int = ms_column(nullable=False)
    start_at: int | None = ms_column()
    started_at: int | None = ms_column()
    begun_at: int | None = ms_column()
    ended_at: int | None = ms_column()
    expires_at: int | None = ms_column()
    ttl_ms: int | None = ms_column()
    sent_at: int | None = ms_column()
    deadline_at: int | None = ms_column()
    attempt: int = 0
    worker_id: str | None = None
    nonce: str | None = None
    process_group: int | None = None
    sent_to: str | None = None
    exit_code: int | None = None
    lane: str | None = None
    queue: str = "mix"
    priority: int = 5
    low_priority: bool = False
    cancel: dict[str, Any] | None = json_column(nullable=True)
    process_meta: dict[str, Any] | None = json_column(nullable=True)
    data: dict[str, Any] = json_column()
    results_count: int = 0
    output_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    output_truncated: bool = False
    output_pruned_at: int | None = ms_column()
    transient: bool = False
    abortable: bool = True
    __table_args__ = (
        Index("job_owner_status", "owner_id", "status", "timestamp", "seq"),
        Index("job_owner", "owner_id", "timestamp", "seq"),
        Index("job_operation", "operation_id", "timestamp", "seq"),
        Index("job_status", "status", "timestamp", "seq"),
        Index("job_run_by", "run_by_id", "timestamp", "seq"),
        Index("job_created", "timestamp", "seq"),
        Index("job_lane", "lane", "status"),
        Index(
            "job_held",
            "queue",
            "low_priority",
            "priority",
            "parent_id",
            "seq",
            sqlite_where=text(HELD),
            postgresql_where=text(HELD),
        ),
        Index(
            "job_parent",
            "parent_id",
            "seq",
            sqlite_where=text("parent_id IS NOT NULL"),
            postgresql_where=text("parent_id IS NOT NULL"),
        ),
        Index(
            "job_output",
            "ended_at",
            "output_bytes",
            sqlite_where=text(OUTPUT_KEPT),
            postgresql_where=text(OUTPUT_KEPT),
        ),
        Index("job_unproven", "worker_id", sqlite_where=text(UNPROVEN), postgresql_where=text(UNPROVEN)),
        *(
            Index(f"job_{moment}", moment, sqlite_where=text(where), postgresql_where=text(where))
            for moment, where in DUE.items()
        ),
        {"sqlite_autoincrement": True},
    )


class PlanRow(SQLModel, table=True):
    """What a job will do: masked for people, and encrypted while a job with secrets lives."""

    __tablename__ = "plan"
    job_id: str = Field(primary_key=True)
    plan: dict[str, Any] = json_column()
    secret: bytes | None = Field(default=None, sa_column=Column(LargeBinary))


class AttemptRow(SQLModel, table=True):
    """One try that is over; the one under way lives in the job's row."""

    __tablename__ = "attempt"
    job_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    worker_id: str | None = None
    started_at: int | None = ms_column()
    sent_at: int | None = ms_column()
    ended_at: int = ms_column(nullable=False)
    outcome: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class ResultRow(SQLModel, table=True):
    """A custom result, in the order of its arrival."""

    __tablename__ = "result"
    job_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    payload: dict[str, Any] = json_column()
    by: str
    timestamp: int = ms_column(nullable=False)


class OutputRow(SQLModel, table=True):
    """A chunk of output; `position` is its first byte within its stream."""

    __tablename__ = "output"
    job_id: str = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    number: int = Field(primary_key=True)
    stream: str
    position: int = Field(sa_column=Column(BigInteger, nullable=False))
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class LogRow(SQLModel, table=True):
    """A line about a job."""

    __tablename__ = "log_entry"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    job_id: str = Field(index=True)
    at: int = ms_column(nullable=False)
    level: str
    message: str
    additional_info: dict[str, Any] | None = json_column(nullable=True)
    __table_args__ = ({"sqlite_autoincrement": True},)


class _CurrentTransaction(ColumnElement[int]):
    """The number of the transaction that inserts a row; SQLite has one writer and needs none."""

    inherit_cache = True


@compiles(_CurrentTransaction)
def _no_transaction(_element: Any, _compiler: Any, **_: Any) -> str:
    return "0"


@compiles(_CurrentTransaction, "postgresql")
def _postgres_transaction(_element: Any, _compiler: Any, **_: Any) -> str:
    return "pg_current_xact_id()::text::bigint"


GENERATION = "event_generation"  # a fact of the site, absent before the first restore
current_generation: ColumnElement[int] = literal_column(
    f"coalesce((SELECT CAST(value AS BIGINT) FROM site WHERE name = '{GENERATION}'), 1)"
)


class EventRow(SQLModel, table=True):
    """A permanent, numbered record of a change; read in the order of `generation`, `xid`, `id`.

    PostgreSQL counts `id` before the commit, so that a later number may be seen first: see `store.events`.
    """

    __tablename__ = "event"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    generation: int = Field(
        default=None, sa_column=Column(BigInteger, nullable=False, default=current_generation)
    )
    xid: int = Field(
        default=None, sa_column=Column(BigInteger, nullable=False, server_default=_CurrentTransaction())
    )
    kind: str
    at: int = ms_column(nullable=False)
    job_id: str | None = Field(default=None, index=True)
    entity_id: str | None = None
    data: dict[str, Any] = json_column()
    __table_args__ = (Index("event_position", "generation", "xid", "id"), {"sqlite_autoincrement": True})


class QueueRow(SQLModel, table=True):
    """A queue of the site's own, or another limit of a built-in one."""

    __tablename__ = "queue"
    name: str = Field(primary_key=True)
    concurrency: int | None = None


class IdempotencyRow(SQLModel, table=True):
    """An Idempotency-Key that was used, and the job that came of it."""

    __tablename__ = "idempotency"
    scope: str = Field(primary_key=True)
    body: str
    job_id: str
    at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))


class SiteRow(SQLModel, table=True):
    """Facts of the site: the canary, the broker's client id."""

    __tablename__ = "site"
    name: str = Field(primary_key=True)
    value: str


class WorkerRow(SQLModel, table=True):
    """A process that runs attempts, or did; its moments are of the database's clock."""

    __tablename__ = "worker"
    id: str = Field(primary_key=True)
    host: str
    pid: int
    version: str
    queues: list[str] = json_column()
    at_once: int
    mqtt: bool | None = None  # of a version that did not tell: not known
    running: int = 0
    started_at: int = ms_column(nullable=False)
    seen_at: int = ms_column(nullable=False)
    gone_at: int | None = ms_column()


class LeaseRow(SQLModel, table=True):
    """What one process at a time may do: who, in which epoch, until when by the database's clock."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True)
    holder: str
    epoch: int
    until: int = Field(sa_column=Column(BigInteger, nullable=False))


metadata = SQLModel.metadata


def core(row: type[SQLModel]) -> Any:
    """The Core table of a row.

    SQLModel's text type is a decorator that every bound value passes through in Python: a tenth of the
    cost of a statement, for nothing. So it becomes the plain one.
    """
    table = row.__table__  # type: ignore[attr-defined]  # set by SQLModel's metaclass
    for column in table.columns:
        if isinstance(column.type, AutoString):
            column.type = String()
    return table


classes, objects, links = core(ClassRow), core(ObjectRow), core(LinkRow)
scripts, credentials, operations = core(ScriptRow), core(CredentialRow), core(OperationRow)
users, tokens = core(UserRow), core(TokenRow)
jobs, plans, attempts, results = core(JobRow), core(PlanRow), core(AttemptRow), core(ResultRow)
output, log_entries, events = core(OutputRow), core(LogRow), core(EventRow)
idempotency, site, queues = core(IdempotencyRow), core(SiteRow), core(QueueRow)
workers, leases = core(WorkerRow), core(LeaseRow)

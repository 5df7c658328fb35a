"""How a job comes to be: operation, owner and arguments become a frozen plan, then a row.

Everything is looked up and rendered first, outside the write; the insert then checks that the
operation is still the version that was rendered. A caller's Idempotency-Key is taken in the same
transaction as the insert, so that a repeat finds the job also while the first call is under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain import operations
from iotjobs.domain.entities import Entity, OwnerType
from iotjobs.domain.errors import BadRequest, Conflict, NotFound, RequestError
from iotjobs.domain.jobs import Cause, Job, JobType, PendingReason, Transport
from iotjobs.domain.operations import Asked, Operation, Plan
from iotjobs.domain.rights import Caller
from iotjobs.engine.commands import command_request
from iotjobs.store import entities, idempotency, jobs, queue
from iotjobs.store.drawn import Drawn, draw
from iotjobs.store.known import Known
from iotjobs.store.queue import Offers
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports import shell, topics

RENDER_TRIES = 3
IDEMPOTENCY_KEPT_MS = 24 * 3600 * 1000
# One job at the end of the calendar would make every list that shows it fail.
START_WITHIN_MS = 10 * 366 * 86_400_000


@dataclass(frozen=True, slots=True)
class Origin:
    """What started a run by itself.

    Attributes:
        cause_key: what no two runs have in common that one thing may start once.
        meta: the job's `process_meta`.
        state: the value of `{{state}}`.
        listener: the trigger's name.
    """

    cause_key: str | None = None
    meta: dict[str, Any] | None = None
    state: str | None = None
    listener: str | None = None


@dataclass(frozen=True, slots=True)
class Execute:
    """A request to run an operation.

    Attributes:
        caller: None where nobody asked for it.
        origin: None where somebody did; of a retry, what started the job that it repeats.
        start_at: milliseconds; not before this moment.
        key: the caller's Idempotency-Key with method and path, or None.
        body_digest: of the request's body, to know a repeat from a clash.
    """

    owner_type: OwnerType
    owner_id: str
    operation_id: str
    caller: Caller | None
    args: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    start_at: int | None = None
    ttl_s: float | None = None
    timeout_s: float | None = None
    priority: int = 5
    low_priority: bool = False
    reason: str | None = None
    cause: Cause = Cause.USER
    origin: Origin | None = None
    retry_of: str | None = None
    key: str | None = None
    body_digest: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What came of a submit.

    Attributes:
        job: as it was inserted; None when an earlier call with the same key made it.
    """

    job_id: str
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class Fired:
    """A run that something starts by itself, to be inserted.

    Attributes:
        row: the job's columns.
        plan: None when it was refused.
        refusal: why.
    """

    row: dict[str, Any]
    plan: Plan | None = None
    refusal: RequestError | None = None


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A job that is ready to be inserted."""

    row: dict[str, Any]
    plan: Plan
    secret: bytes | None
    operation: Operation


class Intake:
    """Submits jobs. Safe for concurrent use."""

    def __init__(
        self,
        store: Store,
        secrets: Secrets,
        offers: Offers,
        *,
        allow_local: bool,
        default_timeout_s: float = operations.DEFAULT_TIMEOUT_S,
    ) -> None:
        self._store, self._secrets, self._offers = store, secrets, offers
        self._allow_local, self._default_timeout_s = allow_local, default_timeout_s

    async def execute(self, request: Execute) -> str:
        """Submit a job; returns its id once it is on disk, see `submit`."""
        return (await self.submit(request)).job_id

    async def submit(self, request: Execute) -> Submitted:
        """Submit a job; returns once it is on disk.

        Raises:
            BadRequest: something in the request or the definition does not allow the run.
            NotFound: no such owner, or no such operation of it.
            IdempotencyMismatch: the key came before with another body.
            Conflict: the operation was changed again and again meanwhile.
        """
        for _ in range(RENDER_TRIES):
            job_id = clock.new_id()
            seen = await self._store.look(lambda conn: _look_up(conn, request))
            if isinstance(seen, str):
                return Submitted(seen)
            rendered = self._render(request, job_id, seen)
            lane = rendered.row["lane"]
            locks = [] if lane is None else [lane]
            ahead = (draw, (job_id, request.operation_id))
            submitted = await self._store.write(self._item(request, rendered), locks=locks, ahead=ahead)
            if submitted is not None:
                return submitted
        raise Conflict("the operation is being changed: try again")

    def fire(self, conn: Connection, request: Execute, owner: Entity, known: Known) -> Fired:
        """Make a run ready within the transaction of what starts it, also one that is refused: that has to be seen.

        The caller inserts it, and offers it or ends it as rejected; or has it inserted as begun.

        Args:
            conn: of the transaction.
            request: with an origin, and without arguments.
            owner: as it is in this transaction.
            known: the rules that it knows.
        """
        job_id, operation = clock.new_id(), None
        try:
            operation = known.operation_for(conn, owner, request.operation_id)
            rendered = self._render(request, job_id, _Seen(operation, owner, _script_of(conn, operation)))
        except RequestError as error:
            return Fired(refused_row(request, owner, operation, job_id), refusal=error)
        assert rendered.secret is None, "only arguments are secret"
        return Fired(rendered.row, rendered.plan)

    def _render(self, request: Execute, job_id: str, seen: _Seen) -> _Rendered:
        operation, owner = seen.operation, seen.owner
        transport = operations.resolve_transport(operation, owner, allow_local=self._allow_local)
        caller, origin = request.caller, request.origin
        user = None if caller is None else (caller.user_id, caller.login)
        state = None if origin is None else origin.state
        asked = Asked(request.args, request.ask, request.timeout_s, self._default_timeout_s)
        shown_args = operations.masked_args(request.args, operation.secret_args)
        values = operations.values_for(owner, asked, job_id=job_id, user=user, state=state)
        plan = operations.render(operation, owner, values, asked, seen.script)
        _refuse_unfit(plan)
        secret = None
        hidden = [name for name in operation.secret_args if name in request.args]
        if hidden:
            secret = self._secrets.seal(msgspec.json.encode(plan.to_json()), f"plan:{job_id}")
            hiding = Asked(shown_args, request.ask)
            shown = operations.values_for(owner, hiding, job_id=job_id, user=user, state=state)
            plan = operations.render(operation, owner, shown, asked, seen.script)
        row = _job_row(request, job_id, operation, owner, transport)
        row["data"] = {
            "args": dict(shown_args),
            "entityName": owner.name,
            "actionName": operation.name,
            **({"ask": dict(request.ask)} if request.ask else {}),
            **({"reason": request.reason} if request.reason else {}),
            **({"listenerName": origin.listener} if origin is not None and origin.listener else {}),
            **({"secret_args": hidden} if hidden else {}),
            # No process group, so no proven end: the record says so.
            **({"interpreter": "raw"} if plan.interpreter == "raw" else {}),
        }
        return _Rendered(row, plan, secret, operation)

    def _item(self, request: Execute, rendered: _Rendered) -> Callable[[Transaction], Submitted | None]:
        row, now = rendered.row, rendered.row["timestamp"]

        def item(tx: Transaction) -> Submitted | None:
            if not _still_current(tx, row["id"], rendered.operation):
                return None  # before the key is taken: this job will never be
            if request.key is not None:
                idempotency.forget(tx, before=now - IDEMPOTENCY_KEPT_MS)
                earlier = idempotency.take(tx, _key_scope(request), request.body_digest, row["id"], now)
                if earlier is not None:
                    return Submitted(earlier)
            waits = row["start_at"] is None and not queue.lane_is_free(tx, row["lane"], now)
            told = {**row, "pending_reason": PendingReason.LANE} if waits else row
            job = jobs.inserted(told, jobs.insert_job(tx, told, rendered.plan, rendered.secret))
            if job.start_at is None and not waits:
                self._offers.offer(tx, queue.ticket_of(tx.conn, job))
            return Submitted(job.id, job)

        return item


def _refuse_unfit(plan: Plan) -> None:
    """Refuse a filled plan that its transport could not carry, before a job exists.

    Raises:
        BadRequest: names the field.
    """
    if plan.topic is not None:
        topics.check_topic(plan.topic, field="parameters.topic")
    elif plan.interpreter != "raw":
        shell.check(command_request("", "", plan))


@dataclass(frozen=True, slots=True)
class _Seen:
    operation: Operation
    owner: Entity
    script: str | None


def _look_up(conn: Connection, request: Execute) -> _Seen | str:
    """What the request names, or the id of the job that the same key made before."""
    if request.key is not None:
        earlier = idempotency.job_of(conn, _key_scope(request), request.body_digest)
        if earlier is not None:
            return earlier
    owner = entities.load_entity(conn, request.owner_type, request.owner_id)
    if owner is None:
        raise NotFound(f"there is no {request.owner_type.name.lower()} {request.owner_id}")
    operation = entities.operation_for(conn, owner, request.operation_id)
    return _Seen(operation, owner, _script_of(conn, operation))


def _script_of(conn: Connection, operation: Operation) -> str | None:
    """The text of a script operation, its own or the repository's."""
    script: str | None = operation.parameters.get("text")
    if operation.type is operations.OperationType.SCRIPT and script is None:
        stored = entities.script_text(conn, operation.parameters["script_id"])
        if stored is None:
            raise BadRequest("the script of this operation is gone", field="parameters.script_id")
        script = stored[0]
    return script


def _job_row(
    request: Execute, job_id: str, operation: Operation, owner: Entity, transport: Transport
) -> dict[str, Any]:
    now = clock.now_ms()
    if request.start_at is not None and request.start_at > now + START_WITHIN_MS:
        raise BadRequest("start_at is more than ten years ahead", field="start_at")
    start_at = request.start_at if request.start_at is not None and request.start_at > now else None
    on_device = transport in (Transport.SSH, Transport.LOCAL)
    target_id = owner.end(operation.run_on).id
    ttl_ms = int((request.ttl_s or operation.ttl_s) * 1000)
    return {
        **_started_by(request, job_id, owner, now),
        "label": f"{operation.name} on {owner.name}",
        **_operation_columns(operation),
        "transport": transport,
        "target_id": target_id,
        "retry_of": request.retry_of,
        "pending_reason": PendingReason.START_AT if start_at else None,
        "start_at": start_at,
        "expires_at": (start_at or now) + ttl_ms,
        "ttl_ms": ttl_ms,
        "lane": target_id if on_device and not operation.concurrent else None,
        "queue": operation.queue,
        "priority": request.priority,
        "low_priority": request.low_priority,
    }


def _started_by(request: Execute, job_id: str, owner: Entity, now: int) -> dict[str, Any]:
    """The columns that say whose job it is and what started it."""
    caller, origin = request.caller, request.origin
    by_itself = origin is not None and request.cause is not Cause.RETRY
    return {
        "id": job_id,
        "type": JobType.EXECUTE_LISTENER if by_itself else JobType.EXECUTE_ACTION,
        "owner_id": owner.id,
        "owner_type": int(owner.owner_type),
        "owner_name": owner.name,
        "user_id": None if caller is None else caller.user_id,
        "run_by_id": None if caller is None else caller.user_id,
        "run_by_name": None if caller is None else caller.login,
        "cause": request.cause,
        "cause_key": None if origin is None else origin.cause_key,
        "process_meta": None if origin is None else origin.meta,
        "timestamp": now,
    }


def refused_row(
    request: Execute, owner: Entity, operation: Operation | None, job_id: str | None = None
) -> dict[str, Any]:
    """The columns of a job that never begins; `operation`: None where that was not found."""
    listener = None if request.origin is None else request.origin.listener
    row = {
        **_started_by(request, job_id or clock.new_id(), owner, clock.now_ms()),
        "label": f"{listener or request.operation_id} on {owner.name}",
        "operation_id": request.operation_id,
        "data": {"args": {}, "entityName": owner.name, **({"listenerName": listener} if listener else {})},
    }
    if operation is not None:
        row["label"] = f"{operation.name} on {owner.name}"
        row["data"]["actionName"] = operation.name
        row |= _operation_columns(operation)
    return row


def _operation_columns(operation: Operation) -> dict[str, Any]:
    return {
        "operation_id": operation.id,
        "operation_name": operation.name,
        "operation_type": operation.type,
        "operation_version": operation.version,
    }


def _still_current(tx: Transaction, job_id: str, operation: Operation) -> bool:
    drawn: Drawn | None = tx.ahead.get(job_id)
    version = entities.operation_version(tx.conn, operation.id) if drawn is None else drawn.version
    return version == operation.version


def _key_scope(request: Execute) -> str:
    """Who, where and which key, as one short text."""
    assert request.caller is not None, "a key is a caller's"
    return hashlib.sha256(f"{request.caller.user_id}\n{request.key}".encode()).hexdigest()

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sqlalchemy import update

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.jobs import Cause, JobType, PendingReason, Transport
from iotjobs.domain.statuses import Status
from iotjobs.engine.intake import START_WITHIN_MS
from iotjobs.store import definitions, jobs, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.session import Store
from tests.services.rows import ADMIN, MakeEngine, counts, events_of, job_of, rows_of


async def test_a_job_is_made_with_everything_that_its_record_tells(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner_id, operation_id = await engine.script("echo {{args.n}} {{jobId}}", name="count", ttl_s=60.0)
    before = clock.now_ms()

    job_id = await engine.execute(owner_id, operation_id, args={"n": 3}, priority=8, reason="why")
    job = await job_of(sqlite_store, job_id)

    assert (job.type, job.cause, job.status, job.outcome) == (
        JobType.EXECUTE_ACTION,
        Cause.USER,
        Status.PENDING,
        None,
    )
    assert (job.operation_name, job.operation_type, job.operation_version) == ("count", "script", 1)
    assert (job.owner_id, job.owner_type, job.target_id, job.lane) == (owner_id, 1, owner_id, owner_id)
    assert (job.user_id, job.run_by_id, job.run_by_name) == (ADMIN.user_id, ADMIN.user_id, "admin")
    assert (job.transport, job.priority, job.attempt, job.sent_at) == (Transport.LOCAL, 8, 0, None)
    assert before <= job.timestamp == job.expires_at - 60_000
    assert job.label == f"count on {job.owner_name}"
    assert job.data == {
        "args": {"n": 3},
        "entityName": job.owner_name,
        "actionName": "count",
        "reason": "why",
    }
    assert await events_of(sqlite_store, job_id) == [("job.added", "PENDING", None)]
    [plan] = await rows_of(sqlite_store, tables.plans, job_id)
    assert plan["secret"] is None
    assert set(plan["plan"]["env"].values()) == {"3", job_id}
    assert (await engine.dispatcher.take()).job_id == job_id


async def test_what_was_rendered_stays_when_its_definition_changes(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner_id = await engine.thing(properties={"v": "then"})
    operation_id = await engine.operation(owner_id, parameters={"text": "echo {{properties.v}}"})
    job_id = await engine.execute(owner_id, operation_id)

    await sqlite_store.write(
        lambda tx: tx.conn.execute(update(tables.objects).values(properties={"v": "now"}))
    )

    [row] = await rows_of(sqlite_store, tables.plans, job_id)
    assert list(row["plan"]["env"].values()) == ["then"]


async def test_secret_arguments_are_masked_for_people_and_sealed_for_the_run(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner_id, operation_id = await engine.script("echo {{args.pin}}", secret_args=["pin", "other"])

    job_id = await engine.execute(owner_id, operation_id, args={"pin": "not hex", "n": 1})

    [row] = await rows_of(sqlite_store, tables.plans, job_id)
    job = await job_of(sqlite_store, job_id)
    assert job.data["args"] == {"pin": "******", "n": 1}
    assert job.data["secret_args"] == ["pin"]
    assert "not hex" not in repr(row["plan"]) + repr(job)
    assert b"not hex" not in row["secret"]
    opened = msgspec.json.decode(engine.secrets.open(row["secret"], f"plan:{job_id}"))
    assert list(opened["env"].values()) == ["not hex"]
    unused = await engine.execute(*await engine.script("true", secret_args=["pin"]))
    assert (await rows_of(sqlite_store, tables.plans, unused))[0]["secret"] is None


@pytest.mark.parametrize(
    ("ahead_ms", "waits"), [(None, False), (-5_000, False), (60_000, True), (START_WITHIN_MS - 5_000, True)]
)
async def test_only_a_start_ahead_makes_a_job_wait(
    sqlite_store: Store, make_engine: MakeEngine, ahead_ms: int | None, waits: bool
) -> None:
    engine = make_engine()
    start_at = None if ahead_ms is None else clock.now_ms() + ahead_ms

    job_id = await engine.execute(*await engine.script("true"), start_at=start_at, ttl_s=10.0)
    job = await job_of(sqlite_store, job_id)

    assert job.start_at == (start_at if waits else None)
    assert job.pending_reason == (PendingReason.START_AT if waits else None)
    assert job.expires_at == (start_at if waits else job.timestamp) + 10_000
    assert engine.dispatcher.live == (set() if waits else {job_id})
    assert clock.rfc3339(job.expires_at) is not None


async def test_a_start_beyond_every_calendar_is_refused(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    ids = await engine.script("true")

    for start_at in (clock.now_ms() + START_WITHIN_MS + 60_000, 253_402_300_800_000):
        with pytest.raises(BadRequest) as refused:
            await engine.execute(*ids, start_at=start_at)
        assert [error.field for error in refused.value.errors] == ["start_at"]
    assert await counts(sqlite_store) == {}


async def test_concurrent_operations_and_messages_have_no_lane(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner_id = await engine.thing(thing="t")
    together = await engine.operation(owner_id, concurrent=True, parameters={"text": "true"})
    message = await engine.operation(owner_id, type="mqtt", parameters={"topic": "a", "message": {}})

    for operation_id in (together, together, message, message):
        job = await job_of(sqlite_store, await engine.execute(owner_id, operation_id))
        assert (job.lane, job.pending_reason) == (None, None)
    assert len(engine.dispatcher.live) == 4


async def test_a_links_lane_is_that_of_the_object_it_runs_on(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    source, target = await engine.thing(), await engine.thing()
    link = await engine.link(source, target)
    operation_id = await engine.operation(
        link, owner_kind="link", run_on="target", parameters={"text": "echo {{source.name}}"}
    )

    job = await job_of(sqlite_store, await engine.execute(link, operation_id, owner_type=OwnerType.LINK))

    assert (job.owner_type, job.owner_id, job.target_id, job.lane) == (2, link, target, target)


async def test_what_is_not_there_is_named(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    owner_id, operation_id = await engine.script("true")
    other = await engine.thing()
    no = "0" * 32

    for ids, said in (
        ((no, operation_id), f"there is no object {no}"),
        ((owner_id, no), f"there is no operation {no}"),
        ((other, operation_id), "an operation of another owner"),
    ):
        with pytest.raises(NotFound, match=said):
            await engine.execute(*ids)
    with pytest.raises(NotFound, match="there is no link"):
        await engine.execute(owner_id, operation_id, owner_type=OwnerType.LINK)
    assert await counts(sqlite_store) == {}


async def test_a_script_that_is_gone_is_said_and_one_that_is_there_is_taken(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    owner_id = await engine.thing()
    given: dict[str, Any] = {"name": "s", "interpreter": "bash", "text": "echo {{name}}"}
    script = await sqlite_store.write(lambda tx: definitions.create(tx, Kind.SCRIPT, given, clock.now_ms()))
    operation_id = await engine.operation(owner_id, parameters={"script_id": script.id})

    job_id = await engine.execute(owner_id, operation_id)
    plan = await sqlite_store.read(lambda conn: jobs.plan_of(conn, job_id)[0])
    assert plan["interpreter"] == "bash"
    assert plan["script"].startswith("echo ")

    await sqlite_store.write(lambda tx: tx.conn.execute(tables.scripts.delete()))
    with pytest.raises(BadRequest, match="the script of this operation is gone"):
        await engine.execute(owner_id, operation_id)


async def test_another_user_is_the_one_who_started_it(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine()
    anna = replace(ADMIN, user_id="b" * 32, login="anna")

    job = await job_of(
        sqlite_store, await engine.execute(*await engine.script("echo {{user.login}}"), caller=anna)
    )

    assert (job.user_id, job.run_by_name) == (anna.user_id, "anna")

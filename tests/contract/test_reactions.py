"""What a report leads to, in one transaction, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter
from pytest_mock import MockerFixture
from sqlalchemy import Connection, select, update

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.jobs import Cause, Job, JobType
from iotjobs.domain.rights import Caller, Role
from iotjobs.domain.states import Forced, Heard, Judgement
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.control import repeat_of
from iotjobs.engine.happenings import Connection as Broker
from iotjobs.engine.happenings import Happening, Looked, Reported, Said, Written
from iotjobs.inputs.rest.definitions import patch_entity
from iotjobs.inputs.shapes import ObjectBody
from iotjobs.store import chains, definitions, facts, retention, rules, standings, states, switch, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.jobs import J, job_columns, job_of
from iotjobs.store.session import Store
from iotjobs.store.state_tables import firings, property_history, report_ids, traces, trigger_timers
from iotjobs.store.state_tables import standings as standing_table
from tests.services.rows import ADMIN, Engine, standing_of
from tests.services.rows import job_of as job_now

HOT = {"state": "alarm", "when": "temperature > 80"}


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def state_of(engine: Engine, entity_id: str) -> str:
    row = await engine.store.read(lambda conn: standing_of(conn, entity_id))
    return "created" if row is None else str(row.state)


async def changes_of(engine: Engine, entity_id: str) -> list[tuple[str, str]]:
    found = await engine.store.read(lambda conn: standings.changes(conn, limit=100, entity_id=entity_id))
    return [(row.from_state, row.to_state) for row in reversed(found)]


async def traces_of(engine: Engine, entity_id: str) -> list[Any]:
    found = await engine.store.read(lambda conn: rules.trace_rows(conn, limit=100, owner_id=entity_id))
    return list(reversed(found))


async def decisions_of(engine: Engine, entity_id: str) -> list[str]:
    return [trace.decision for trace in await traces_of(engine, entity_id)]


async def jobs_of(engine: Engine, owner_id: str) -> list[Job]:
    query = select(*job_columns).where(J.owner_id == owner_id).order_by(J.seq)
    return await engine.store.read(lambda conn: [job_of(row) for row in conn.execute(query)])


async def rows(engine: Engine, table: Any) -> list[Any]:
    return await engine.store.read(lambda conn: list(conn.execute(select(table))))


async def hot_thing(engine: Engine, **trigger: Any) -> tuple[str, str]:
    """An object that is in alarm above 80, and has one trigger on it; the ids of both."""
    owner_id, operation_id = await engine.script("echo {{state}} {{properties.temperature}}")
    await engine.conditions(owner_id, HOT)
    given = {"states": ["alarm"], "operation_id": operation_id, **trigger}
    return owner_id, (await engine.triggers(owner_id, given))[0]


async def due(engine: Engine, after_s: float) -> int:
    """Let this time pass for timers, and give those that are due their effect; how many had one."""
    now = clock.now_ms() + round(after_s * 1000)
    found = await engine.store.read(lambda conn: rules.due_timers(conn, now, 100))

    def item(tx: Any) -> int:
        turn = engine.reactions.turn(tx)
        count = sum(turn.due(timer) for timer in found)
        turn.finish()
        return count

    return await engine.store.write(item)


async def test_what_a_trigger_started_can_be_run_again_in_the_state_of_then(engine: Engine) -> None:
    owner_id = await engine.thing()
    operation_id = await engine.operation(owner_id, parameters={"text": "echo {{state}}; exit 1"})
    await engine.conditions(owner_id, HOT)
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    await engine.worker.start()
    await engine.report(owner_id, temperature=90)
    (first,) = await jobs_of(engine, owner_id)
    await engine.report(owner_id, temperature=20)

    before = first
    for _ in range(2):  # and a retry of the retry
        before = await engine.ended(before.id)
        again = repeat_of(before, ADMIN, {}, key=None, body_digest="")
        job = await job_now(engine.store, await engine.intake.execute(again))
        assert (job.type, job.cause, job.retry_of) == (JobType.EXECUTE_ACTION, Cause.RETRY, before.id)
        assert (job.cause_key, job.process_meta, job.data) == (None, first.process_meta, first.data)
        before = job

    assert (await engine.ended(before.id)).output_bytes == len("alarm\n")


async def test_a_report_sets_properties_changes_the_state_and_starts_the_operation(engine: Engine) -> None:
    owner_id, trigger_id = await hot_thing(engine)

    await engine.report(owner_id, temperature=20)
    await engine.report(owner_id, temperature=90, door="open")

    assert await changes_of(engine, owner_id) == [("created", "working"), ("working", "alarm")]
    fired = (await traces_of(engine, owner_id))[-1]
    (job,) = await jobs_of(engine, owner_id)
    assert (fired.decision, fired.reason, fired.job_id, fired.cause_key) == (
        "fired",
        "entered alarm",
        job.id,
        job.cause_key,
    )
    assert (job.type, job.cause, job.user_id) == (JobType.EXECUTE_LISTENER, Cause.TRIGGER, None)
    assert job.process_meta == {
        "triggerStates": ["alarm"],
        "state": "alarm",
        "from": "working",
        "trigger_id": trigger_id,
        "state_change_id": fired.state_change_id,
    }
    assert job.data["listenerName"] == "trigger 0"
    await engine.worker.start()
    ended = await engine.ended(job.id)
    assert ended.outcome is Outcome.SUCCEEDED

    history = [(row.name, row.value, row.by) for row in await rows(engine, property_history)]
    assert sorted(history) == [("door", "open", None), ("temperature", 20, None), ("temperature", 90, None)]


async def test_reports_that_come_at_once_see_what_the_one_before_made(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)

    await asyncio.gather(*(engine.report(owner_id, temperature=20 + 70 * (at % 2)) for at in range(30)))

    row = await engine.store.read(lambda conn: standing_of(conn, owner_id))
    assert row.reports == 30
    changes = await changes_of(engine, owner_id)
    assert [left for left, _ in changes] == ["created", *(entered for _, entered in changes[:-1])]
    assert len(await jobs_of(engine, owner_id)) == sum(entered == "alarm" for _, entered in changes)


async def test_why_a_state_was_entered_is_kept_and_told_in_an_event(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    await engine.report(owner_id, temperature=90)

    (change,) = await engine.store.read(lambda conn: standings.changes(conn, limit=1, entity_id=owner_id))
    assert change.why["when"] == "temperature > 80"
    assert change.why["values"] == {"temperature": 90}
    E = tables.events.c
    query = select(E.data).where(E.kind == "state.changed", E.entity_id == owner_id)
    (told,) = await engine.store.read(lambda conn: list(conn.execute(query).scalars()))
    assert (told["from"], told["to"], told["id"]) == ("created", "alarm", change.id)


async def test_a_report_that_changes_nothing_leaves_nothing_but_when_it_came(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    await engine.report(owner_id, temperature=20)
    await engine.report(owner_id, temperature=20.0)

    assert len(await rows(engine, property_history)) == 1
    (standing,) = await rows(engine, standing_table)
    assert standing.reports == 2


async def test_a_report_that_came_before_has_no_effect(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    assert await engine.report(owner_id, "r1", temperature=90)
    assert await engine.report(owner_id, "r2", temperature=20)
    assert not await engine.report(owner_id, "r1", temperature=90)
    assert await state_of(engine, owner_id) == "working"

    for number in range(300):
        await engine.report(owner_id, f"more {number}", temperature=20)
    assert not await engine.report(owner_id, "more 44", temperature=90)
    assert await engine.report(owner_id, "more 43", temperature=90)  # the newest 256 are remembered


async def test_reports_of_one_object_at_once_are_one_change_and_none_is_lost(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    await engine.report(owner_id, temperature=20)

    await asyncio.gather(*(engine.report(owner_id, f"r{n}", temperature=90) for n in range(8)))

    assert await changes_of(engine, owner_id) == [("created", "working"), ("working", "alarm")]
    assert len(await jobs_of(engine, owner_id)) == 1
    (standing,) = await rows(engine, standing_table)
    assert standing.reports == 9


async def test_only_changes_into_its_states_start_it_also_from_one_of_them_to_another(engine: Engine) -> None:
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, HOT, {"state": "overloaded", "when": "temperature > 60"})
    await engine.triggers(owner_id, {"states": ["alarm", "overloaded"], "operation_id": operation_id})
    for temperature in (20, 90, 95, 70, 90, 20):
        await engine.report(owner_id, temperature=temperature)

    assert await decisions_of(engine, owner_id) == [
        "not_in_states",
        "fired",
        "fired",
        "fired",
        "not_in_states",
    ]
    assert len(await jobs_of(engine, owner_id)) == 3


async def test_a_hold_fires_after_it_and_not_when_the_state_was_left(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, hold_s=5)
    await engine.report(owner_id, temperature=90)
    assert await decisions_of(engine, owner_id) == ["held"]
    assert await due(engine, 4.5) == 0
    assert await jobs_of(engine, owner_id) == []
    assert await due(engine, 5.5) == 1
    (trace,) = await traces_of(engine, owner_id)
    (job,) = await jobs_of(engine, owner_id)
    assert (trace.decision, trace.reason, trace.job_id) == ("fired", "after 5 s in alarm", job.id)

    await engine.report(owner_id, temperature=20)
    await engine.report(owner_id, temperature=90)
    await engine.report(owner_id, temperature=20)
    assert await due(engine, 60) == 0
    assert (await decisions_of(engine, owner_id))[2:] == ["hold_canceled", "not_in_states"]
    assert len(await jobs_of(engine, owner_id)) == 1
    assert await rows(engine, trigger_timers) == []


@pytest.mark.parametrize("late", ["the trigger", "the condition"])
async def test_what_was_held_long_enough_counts_also_when_nobody_looked_before_it_was_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    owner_id, _ = await hot_thing(engine, hold_s=5 if late == "the trigger" else 0)
    if late == "the condition":
        await engine.conditions(owner_id, {**HOT, "hold_s": 5})
    began = clock.now_ms()
    await engine.report(owner_id, temperature=90)
    monkeypatch.setattr(clock, "now_ms", lambda: began + 20_000)  # nobody led meanwhile

    await engine.report(owner_id, temperature=20)

    assert await changes_of(engine, owner_id) == [
        *(
            [("created", "working"), ("working", "alarm")]
            if late == "the condition"
            else [("created", "alarm")]
        ),
        ("alarm", "working"),
    ]
    decisions = await decisions_of(engine, owner_id)
    assert [one for one in decisions if one != "not_in_states"] == ["fired"]
    assert len(await jobs_of(engine, owner_id)) == 1
    assert await due(engine, 60) == 0


async def test_a_report_that_comes_again_behind_an_offline_that_comes_again_is_a_sign_of_life(
    engine: Engine,
) -> None:
    owner_id = await engine.thing()
    for _ in range(2):  # the acknowledgement of the first time was lost
        await engine.happens(owner_id, Broker(online=False))
        await engine.report(owner_id, "r2", temperature=1)

    assert await state_of(engine, owner_id) == "working"


async def test_a_hold_of_a_class_that_the_entity_left_is_canceled(engine: Engine) -> None:
    class_id = await engine.class_()
    owner_id = await engine.thing(class_id=class_id)
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    await engine.conditions(owner_id, HOT)
    given = {"states": ["alarm"], "operation_id": operation_id, "hold_s": 60}
    await engine.triggers(class_id, given, owner_kind="class")
    await engine.report(owner_id, temperature=90)
    left = {"class_id": None}
    await engine.store.write(lambda tx: definitions.change(tx, Kind.OBJECT, owner_id, lambda _: left))

    assert await due(engine, 61) == 0

    assert (await decisions_of(engine, owner_id), await jobs_of(engine, owner_id)) == (["hold_canceled"], [])


async def test_a_trigger_repeats_while_the_state_lasts_each_time_with_a_key_of_its_own(
    engine: Engine,
) -> None:
    owner_id, _ = await hot_thing(engine, repeat_s=10)
    await engine.report(owner_id, temperature=90)
    assert await due(engine, 11) == 1
    assert await due(engine, 11) == 1
    await engine.report(owner_id, temperature=20)
    assert await due(engine, 60) == 0

    keys = [str(job.cause_key) for job in await jobs_of(engine, owner_id)]
    assert [key.rpartition(":")[2] for key in keys] == ["0", "1", "2"]
    assert len({key.rpartition(":")[0] for key in keys}) == 1
    reasons = [trace.reason for trace in await traces_of(engine, owner_id)]
    assert reasons[:3] == ["entered alarm", "repeat 1 in alarm", "repeat 2 in alarm"]


async def test_a_repeat_that_was_taken_out_of_its_trigger_does_not_fire(engine: Engine) -> None:
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, HOT)
    given = {"id": "t" * 32, "states": ["alarm"], "operation_id": operation_id}
    await engine.triggers(owner_id, {**given, "repeat_s": 60})
    await engine.report(owner_id, temperature=90)
    await engine.triggers(owner_id, {**given, "repeat_s": None})
    assert await due(engine, 70) == 0
    assert await decisions_of(engine, owner_id) == ["fired"]
    assert await rows(engine, trigger_timers) == []


async def test_repeats_go_on_behind_a_pause_a_switch_and_a_loop_until_the_state_is_left(
    engine: Engine,
) -> None:
    owner_id, trigger_id = await hot_thing(engine, repeat_s=10)
    (row,) = await engine.store.read(lambda conn: rules.trigger_rows(conn, owner_id))
    item = {**row.settings, "id": trigger_id, "name": row.name, "operation_id": row.operation_id}

    async def put(*, enabled: bool = True, paused: bool = False, broken_at: int | None = None) -> None:
        def change(tx: Any) -> None:
            rules.put_triggers(tx, "object", owner_id, [{**item, "enabled": enabled}])
            rules.set_breaker(tx, trigger_id, broken_at)
            facts.put(tx, "triggers_paused", "yes" if paused else "no")

        await engine.store.write(change)

    await engine.report(owner_id, temperature=90)
    hindrances: list[dict[str, Any]] = [{"paused": True}, {"enabled": False}, {"broken_at": 1}]
    for hindrance in hindrances:
        await put(**hindrance)
        assert await due(engine, 11) == 1
        await put()
        assert await due(engine, 11) == 1
    assert await decisions_of(engine, owner_id) == [
        "fired",
        *("paused", "fired"),
        *("disabled", "fired"),
        *("loop_guard", "fired"),
    ]
    await engine.report(owner_id, temperature=20)
    assert await due(engine, 11) == 0
    for hindrance in hindrances:  # a change is not made up for
        await put(**hindrance)
        await engine.report(owner_id, temperature=90)
        assert await due(engine, 11) == 0
        await engine.report(owner_id, temperature=20)


async def test_two_who_take_the_same_timer_fire_once(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, hold_s=5)
    await engine.report(owner_id, temperature=90)

    assert sorted(await asyncio.gather(due(engine, 6), due(engine, 6))) in ([0, 1], [1, 1][:1])
    assert len(await jobs_of(engine, owner_id)) == 1


async def test_cooldown_and_rate_count_for_each_entity_alone(engine: Engine) -> None:
    class_id = await engine.class_(properties={"limit": 80})
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    await engine.conditions(class_id, {"state": "alarm", "when": "temperature > limit"}, owner_kind="class")
    given = {"states": ["alarm"], "operation_id": operation_id, "cooldown_s": 60, "max_per_hour": 5}
    await engine.triggers(class_id, given, owner_kind="class")
    one, other = await engine.thing(class_id=class_id), await engine.thing(class_id=class_id)
    for owner_id in (one, one, other):
        await engine.report(owner_id, temperature=90)
        await engine.report(owner_id, temperature=20)

    assert [d for d in await decisions_of(engine, one) if d != "not_in_states"] == ["fired", "cooling_down"]
    assert [d for d in await decisions_of(engine, other) if d != "not_in_states"] == ["fired"]


async def flap(engine: Engine, owner_id: str) -> str:
    """Into alarm and out of it again; what its trigger decided."""
    await engine.report(owner_id, temperature=90)
    await engine.report(owner_id, temperature=20)
    return [d for d in await decisions_of(engine, owner_id) if d != "not_in_states"][-1]


async def test_a_cooldown_lasts_longer_than_traces_are_kept(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, cooldown_s=86_400)
    assert await flap(engine, owner_id) == "fired"
    later = clock.now_ms() + 1
    await engine.store.write(lambda tx: retention.drop_traces(tx, behind=(0, 0), limit=500, before=later))

    assert await flap(engine, owner_id) == "cooling_down"


async def test_of_what_fired_before_only_what_bears_on_later_is_kept(engine: Engine) -> None:
    cooling, _ = await hot_thing(engine, cooldown_s=0.001)
    limited, _ = await hot_thing(engine, max_per_hour=100)
    neither, _ = await hot_thing(engine)
    for owner_id in (cooling, limited, neither):
        for _ in range(3):
            assert await flap(engine, owner_id) == "fired"
    kept = [row.entity_id for row in await rows(engine, firings)]
    assert (kept.count(cooling), kept.count(limited), kept.count(neither)) == (1, 3, 0)

    hour = 3_600_000
    await engine.store.write(lambda tx: tx.conn.execute(update(firings).values(at=firings.c.at - hour)))
    assert await flap(engine, limited) == "fired"
    assert [row.entity_id for row in await rows(engine, firings)].count(limited) == 1


async def test_a_trigger_that_is_given_a_cooldown_knows_when_it_fired(engine: Engine) -> None:
    owner_id, trigger_id = await hot_thing(engine)
    assert [await flap(engine, owner_id) for _ in range(2)] == ["fired", "fired"]
    items = await engine.store.read(lambda conn: rules.trigger_rows(conn, owner_id))
    given = {**items[0].settings, "id": trigger_id, "operation_id": items[0].operation_id, "name": "t"}

    for item in ({**given, "cooldown_s": 3600}, given, {**given, "max_per_hour": 1}):
        await engine.store.write(lambda tx, item=item: rules.put_triggers(tx, "object", owner_id, [item]))
        expected = {"max_per_hour": "rate_limited", "cooldown_s": "cooling_down"}
        [wanted] = [said for name, said in expected.items() if item[name]] or ["fired"]
        assert await flap(engine, owner_id) == wanted


async def put_trigger(engine: Engine, owner_id: str, **changes: Any) -> None:
    """Change the object's one trigger."""
    [row] = await engine.store.read(lambda conn: rules.trigger_rows(conn, owner_id))
    item = {**row.settings, "id": row.id, "operation_id": row.operation_id, "name": row.name, **changes}
    await engine.store.write(lambda tx: rules.put_triggers(tx, "object", owner_id, [item]))


@pytest.mark.parametrize("limit", [{}, {"cooldown_s": 0.001}, {"max_per_hour": 100}], ids=str)
async def test_a_trigger_that_is_given_a_rate_knows_how_often_it_fired(
    engine: Engine, limit: dict[str, Any]
) -> None:
    owner_id, _ = await hot_thing(engine, **limit)
    other_id, _ = await hot_thing(engine)
    for _ in range(4):
        assert await flap(engine, owner_id) == await flap(engine, other_id) == "fired"

    await put_trigger(engine, owner_id, max_per_hour=None)
    await put_trigger(engine, owner_id, max_per_hour=5)
    assert [await flap(engine, owner_id) for _ in range(2)] == ["fired", "rate_limited"]
    assert (await traces_of(engine, owner_id))[-2].reason == (
        "fired 5 times within the last hour, 5 at most are allowed"
    )
    assert await flap(engine, other_id) == "fired"

    hour_ago = clock.now_ms() - 3_600_001
    await engine.store.write(lambda tx: tx.conn.execute(update(traces).values(at=hour_ago)))
    await engine.store.write(lambda tx: tx.conn.execute(update(firings).values(at=hour_ago)))
    await put_trigger(engine, owner_id, max_per_hour=None)
    await put_trigger(engine, owner_id, max_per_hour=1)
    assert [await flap(engine, owner_id) for _ in range(2)] == ["fired", "rate_limited"]


@pytest.mark.parametrize(
    ("limit", "decision"), [({"cooldown_s": 60}, "cooling_down"), ({"max_per_hour": 1}, "rate_limited")]
)
async def test_a_dry_trigger_keeps_its_cooldown_and_its_rate_and_a_live_one_forgets_that(
    engine: Engine, limit: dict[str, Any], decision: str
) -> None:
    owner_id, _ = await hot_thing(engine, dry=True, **limit)
    assert [await flap(engine, owner_id) for _ in range(3)] == ["dry", decision, decision]
    assert (await traces_of(engine, owner_id))[-2].reason.startswith("would have fired ")

    await put_trigger(engine, owner_id, dry=False)
    assert [await flap(engine, owner_id) for _ in range(2)] == ["fired", decision]
    await put_trigger(engine, owner_id, dry=True)
    assert await flap(engine, owner_id) == decision
    await put_trigger(engine, owner_id, dry=False)
    assert await flap(engine, owner_id) == decision


async def test_a_cooldown_that_was_away_for_a_while_knows_what_fired_meanwhile(engine: Engine) -> None:
    owner_id, trigger_id = await hot_thing(engine, cooldown_s=3600)
    assert await flap(engine, owner_id) == "fired"
    [item] = await engine.store.read(lambda conn: rules.trigger_rows(conn, owner_id))
    given = {**item.settings, "id": trigger_id, "operation_id": item.operation_id, "name": "t"}
    long_ago = update(firings).values(at=1)
    await engine.store.write(lambda tx: tx.conn.execute(long_ago))

    for cooldown_s, decision in ((0, "fired"), (3600, "cooling_down")):
        item = {**given, "cooldown_s": cooldown_s}
        await engine.store.write(lambda tx, item=item: rules.put_triggers(tx, "object", owner_id, [item]))
        assert await flap(engine, owner_id) == decision


async def test_of_the_ids_of_a_flood_no_more_are_kept_than_of_other_reports(engine: Engine) -> None:
    owner_id = await engine.thing()
    for number in range(8):
        ids = tuple(f"{number}-{n}" for n in range(200))
        assert await engine.happens(owner_id, Reported({"n": number}, f"r{number}", earlier_ids=ids))

    kept = {row.report_id for row in await rows(engine, report_ids)}
    assert len(kept) <= 2 * standings.REPORT_IDS_KEPT
    assert {"r7", "7-0", "7-199", "6-199"} <= kept
    assert not await engine.report(owner_id, "7-50", n=0)


async def test_what_fired_goes_with_its_trigger_and_with_its_entity(engine: Engine) -> None:
    class_id = await engine.class_()
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    await engine.conditions(class_id, HOT, owner_kind="class")
    given = {"states": ["alarm"], "operation_id": operation_id, "cooldown_s": 60}
    await engine.triggers(class_id, given, owner_kind="class")
    one, other = await engine.thing(class_id=class_id), await engine.thing(class_id=class_id)
    for owner_id in (one, other):
        await engine.report(owner_id, temperature=90)

    await engine.store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, one))
    assert [row.entity_id for row in await rows(engine, firings)] == [other]
    await engine.store.write(lambda tx: rules.put_triggers(tx, "class", class_id, []))
    assert await rows(engine, firings) == []


async def test_a_hold_whose_trigger_is_taken_away_is_canceled_and_says_so(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, hold_s=60)
    await engine.report(owner_id, temperature=90)

    await engine.store.write(lambda tx: rules.put_triggers(tx, "object", owner_id, []))

    (trace,) = await traces_of(engine, owner_id)
    assert (trace.decision, trace.reason) == ("hold_canceled", "the trigger was taken away")
    assert await rows(engine, trigger_timers) == []


async def test_a_hold_of_an_entity_that_is_deleted_is_canceled_and_says_so(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, hold_s=60)
    other, _ = await hot_thing(engine, hold_s=60)
    for each in (owner_id, other):
        await engine.report(each, temperature=90)

    await engine.store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, owner_id))

    (trace,) = await traces_of(engine, owner_id)
    assert (trace.decision, trace.reason) == ("hold_canceled", "the object or link was deleted")
    assert await decisions_of(engine, other) == ["held"]
    assert await due(engine, 61) == 1


async def test_conditions_of_its_own_take_the_place_of_its_class_s(engine: Engine) -> None:
    class_id = await engine.class_()
    await engine.conditions(class_id, HOT, owner_kind="class")
    owner_id = await engine.thing(class_id=class_id)
    await engine.report(owner_id, temperature=90)
    assert await state_of(engine, owner_id) == "alarm"

    await engine.conditions(owner_id, {"state": "overloaded", "when": "temperature > 80"})
    await engine.happens(owner_id, Looked())
    assert await state_of(engine, owner_id) == "overloaded"


async def test_a_condition_with_another_text_has_to_hold_anew(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_id, began = await engine.thing(), clock.now_ms()

    async def look(after_s: int) -> str:
        monkeypatch.setattr(clock, "now_ms", lambda: began + after_s * 1000)
        await engine.happens(owner_id, Looked())
        return await state_of(engine, owner_id)

    await engine.conditions(owner_id, {**HOT, "hold_s": 10})
    await engine.report(owner_id, temperature=90)
    await engine.conditions(owner_id, {**HOT, "when": "temperature > 85", "hold_s": 10})  # of the same id
    assert (await look(11), await look(20), await look(21)) == ("working", "working", "alarm")


@pytest.mark.parametrize("kind", [OwnerType.OBJECT, OwnerType.LINK])
async def test_what_is_true_now_is_judged_at_a_look_that_writes_nothing(
    engine: Engine, kind: OwnerType
) -> None:
    source, target = await engine.thing(), await engine.thing()
    link_id = await engine.link(source, target)
    entity_id, value = (
        (source, "temperature") if kind is OwnerType.OBJECT else (link_id, "source.temperature")
    )
    await engine.conditions(
        entity_id,
        {"state": "alarm", "when": f"{value} > 80"},
        {"state": "overloaded", "when": "load > 1"},
        owner_kind=kind.name.lower(),
    )
    await engine.report(source, temperature=90)
    await engine.report(source, temperature=95)
    before = await rows(engine, standing_table)

    async def now() -> Judgement:
        def look(conn: Connection) -> Judgement:
            found = standings.load(conn, kind, entity_id)
            assert found is not None
            return engine.reactions.judged_now(conn, found)

        return await engine.store.read(look)

    found = await now()
    assert (found.state, found.why["values"]) == ("alarm", {value: 95})
    assert [one["problem"] for one in found.problems] == ["there is no property load"]
    assert await rows(engine, standing_table) == before
    await engine.report(source, temperature="hot")
    await engine.conditions(
        entity_id, {"state": "alarm", "when": f"{value} > 80"}, owner_kind=kind.name.lower()
    )
    [problem] = (await now()).problems
    assert problem == {
        "when": f"{value} > 80",
        "problem": f"{value} is a text and 80 is a number: > compares numbers, or texts",
    }


async def test_a_link_follows_what_its_ends_report(engine: Engine) -> None:
    source, target = await engine.thing(), await engine.thing()
    link_id = await engine.link(source, target)
    operation_id = await engine.operation(link_id, owner_kind="link", parameters={"text": "true"})
    await engine.conditions(
        link_id, {"state": "alarm", "when": "source.flow > target.flow + 5"}, owner_kind="link"
    )
    await engine.triggers(link_id, {"states": ["alarm"], "operation_id": operation_id}, owner_kind="link")

    await engine.report(source, flow=20)
    assert await state_of(engine, link_id) == "working"
    await engine.report(target, flow=10)
    assert await state_of(engine, link_id) == "alarm"
    (job,) = await jobs_of(engine, link_id)
    assert job.owner_type == OwnerType.LINK
    await engine.report(target, flow=18)
    assert await changes_of(engine, link_id) == [
        ("created", "working"),
        ("working", "alarm"),
        ("alarm", "working"),
    ]


async def test_what_is_judged_by_rules_that_are_changed_meanwhile_is_judged_again(engine: Engine) -> None:
    owner_id = await engine.thing()
    await engine.conditions(owner_id, HOT)
    await engine.report(owner_id, temperature=20)

    def item(tx: Any) -> None:
        turn = engine.reactions.turn(tx)
        rules.changed(tx)  # as another transaction may that commits before this one
        turn.take(Happening(OwnerType.OBJECT, owner_id, Reported({"temperature": 21})))
        turn.finish()

    await engine.store.write(item)
    now = clock.now_ms() + 1
    assert await engine.store.read(lambda conn: standings.waking(conn, now, 9)) == [
        (OwnerType.OBJECT, owner_id)
    ]


async def test_a_change_of_an_object_wakes_its_links_also_those_without_a_standing(engine: Engine) -> None:
    source, target = await engine.thing(), await engine.thing()
    link_id = await engine.link(source, target)
    await engine.report(source, temperature=20)

    now = clock.now_ms()
    await engine.store.write(lambda tx: states.wake(tx, "object", target, now))

    woken = await engine.store.read(lambda conn: standings.waking(conn, now, 9))
    assert sorted(woken) == sorted([(OwnerType.OBJECT, target), (OwnerType.LINK, link_id)])
    # One that a first report comes to at the same moment.
    assert await engine.happens(link_id, Looked(), OwnerType.LINK)


async def test_a_link_that_is_made_while_its_end_reports_sees_that_report(engine: Engine) -> None:
    source, target = await engine.thing(), await engine.thing()
    await engine.report(source, temperature=20)
    values: dict[str, Any] = {"class_id": None, "tags": [], "properties": {}, "property_types": {}}
    values |= {"name": "pipe", "source": source, "target": target}
    condition = {"id": "c", "state": "alarm", "when": "source.temperature > 80"}
    condition |= {"hold_s": 0, "description": "", "period": None}

    def both(tx: Any) -> str:
        """What the report and whoever makes the link do, of which the report has begun first."""
        turn = engine.reactions.turn(tx)
        link = definitions.create(tx, Kind.LINK, values, clock.now_ms())
        rules.put_conditions(tx, "link", link.id, [condition])
        states.wake(tx, "link", link.id, clock.now_ms())
        engine.reactions.react(tx, Happening(OwnerType.LINK, link.id, Looked()))
        turn.take(Happening(OwnerType.OBJECT, source, Reported({"temperature": 90})))
        turn.finish()
        return link.id

    link_id = await engine.store.write(both)
    woken = await engine.store.read(lambda conn: standings.waking(conn, clock.now_ms() + 1, 9))
    for owner_type, entity_id in woken:
        await engine.happens(entity_id, Looked(), owner_type)
    assert await state_of(engine, link_id) == "alarm"


async def test_a_link_that_is_deleted_meanwhile_takes_no_report_along(engine: Engine) -> None:
    source, target = await engine.thing(), await engine.thing()
    links = [await engine.link(source, target) for _ in range(2)]
    await engine.report(source, a=1)

    def item(tx: Any) -> bool:
        turn = engine.reactions.turn(tx)  # has read which links there are
        definitions.remove(
            tx, Kind.LINK, links[0]
        )  # as another transaction may, that commits before this one
        had_effect = turn.take(Happening(OwnerType.OBJECT, source, Reported({"a": 2})))
        turn.finish()
        return had_effect

    assert await engine.store.write(item)
    assert [row.value for row in await rows(engine, property_history)] == [1, 2]
    assert await changes_of(engine, links[1]) == [("created", "working")]


async def test_a_run_that_is_refused_is_a_job_that_says_why(engine: Engine, mocker: MockerFixture) -> None:
    owner_id, operation_id = await engine.script("echo {{properties.nosuch}}", name="cool down")
    await engine.conditions(owner_id, HOT)
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    mocker.patch.object(clock, "now_ms", side_effect=count(clock.now_ms()))  # each look takes a millisecond
    await engine.report(owner_id, temperature=90)

    (job,) = await jobs_of(engine, owner_id)
    assert (job.status, job.outcome) == (Status.FINISHED, Outcome.REJECTED)
    assert "{{properties.nosuch}}" in (job.error_message or "")
    assert job.ended_at == job.timestamp, "it was refused when it was made"
    assert (job.operation_id, job.operation_name, job.operation_version) == (operation_id, "cool down", 1)
    assert (job.label.partition(" on ")[0], job.data["actionName"]) == ("cool down", "cool down")
    assert job.data["listenerName"] == "trigger 0"


async def test_a_forced_state_stands_until_it_is_taken_back_or_its_time_is_over(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    forced = Forced("disabled", ADMIN.user_id, "service", clock.now_ms())
    await engine.happens(owner_id, Said(forced))
    await engine.report(owner_id, temperature=90)
    assert await state_of(engine, owner_id) == "disabled"
    await engine.happens(owner_id, Said(None))
    assert await state_of(engine, owner_id) == "alarm"

    over = Forced("disabled", ADMIN.user_id, "service", clock.now_ms(), until=clock.now_ms() - 1)
    await engine.happens(owner_id, Said(over))
    assert await state_of(engine, owner_id) == "alarm"
    (standing,) = await rows(engine, standing_table)
    assert standing.forced is None


async def test_the_end_of_a_connection_is_down_until_the_device_is_heard_of(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    await engine.report(owner_id, temperature=20)
    await engine.happens(owner_id, Broker(online=False))
    assert await state_of(engine, owner_id) == "down"
    await engine.report(owner_id, temperature=20)
    assert await state_of(engine, owner_id) == "working"


async def test_a_report_that_the_broker_had_kept_has_values_and_is_no_sign_of_life(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    other = await engine.thing()
    link_id = await engine.link(owner_id, other)
    await engine.happens(owner_id, Reported({"door": "open"}, retained=True))
    assert await state_of(engine, owner_id) == "created"
    assert await state_of(engine, link_id) == "created"
    await engine.report(owner_id, temperature=20)
    heard_at = (await engine.store.read(lambda conn: standing_of(conn, owner_id))).heard_at
    await engine.happens(owner_id, Broker(online=False))

    await engine.happens(owner_id, Reported({"temperature": 90}, retained=True))

    standing = await engine.store.read(lambda conn: standing_of(conn, owner_id))
    assert (standing.state, standing.offline, standing.heard_at) == ("down", True, heard_at)
    await engine.report(owner_id, door="open")
    assert await state_of(engine, owner_id) == "alarm"  # its value is known since


@pytest.mark.parametrize(
    ("before", "kept", "state"),
    [
        ((), "offline", "down"),  # nothing is known of it yet
        ((), "online", "created"),
        (("report",), "offline", "working"),  # it may be of long before the report
        (("online", "report"), "offline", "down"),  # said since: it kept the other one before
        (("offline", "report"), "offline", "working"),  # that one, which the report has answered
        (("report", "offline"), "offline", "down"),
        (("report", "offline"), "online", "working"),
        (("report", "offline", "online"), "online", "working"),
        (("report", "kept offline", "kept online"), "offline", "down"),
    ],
)
async def test_a_word_that_the_broker_had_kept_counts_when_it_tells_what_is_not_known(
    engine: Engine, before: tuple[str, ...], kept: str, state: str
) -> None:
    owner_id = await engine.thing()
    for word in (*before, f"kept {kept}"):
        if word == "report":
            await engine.report(owner_id, temperature=20)
        else:
            what = Broker(online=word.endswith("online"), retained=word.startswith("kept"))
            await engine.happens(owner_id, what)

    assert await state_of(engine, owner_id) == state


async def test_a_word_with_an_id_counts_once_whoever_brings_it_again(engine: Engine) -> None:
    owner_id = await engine.thing()
    words = [("w1", False), ("w2", True), ("w1", False), ("w2", True), ("w3", False), ("w3", False)]
    effects = [await engine.happens(owner_id, Broker(online, report_id=word_id)) for word_id, online in words]

    assert effects == [True, True, False, False, True, False]
    assert [entered for _, entered in await changes_of(engine, owner_id)] == ["down", "working", "down"]
    for number in range(300):
        await engine.happens(owner_id, Broker(online=bool(number % 2), report_id=f"more {number}"))
    assert len(await rows(engine, report_ids)) == standings.REPORT_IDS_KEPT


async def test_time_alone_changes_a_state_and_is_asked_at_the_right_moment(engine: Engine) -> None:
    owner_id = await engine.thing(no_data_after_s=60)
    await engine.report(owner_id, temperature=20)
    (standing,) = await rows(engine, standing_table)
    assert 59_000 < standing.wake_at - clock.now_ms() <= 60_000

    def waking(conn: Connection) -> list[tuple[OwnerType, str]]:
        return standings.waking(conn, clock.now_ms() + 60_000, 10)

    assert await engine.store.read(waking) == [(OwnerType.OBJECT, owner_id)]


async def test_who_may_have_reported_while_nobody_listened_is_not_silent(store: Store) -> None:
    heard = Heard.all_until(0)
    engine = Engine(store, heard=lambda _: heard)
    owner_id = await engine.thing(no_data_after_s=60)
    await engine.report(owner_id, temperature=20)
    minute_ago = clock.now_ms() - 61_000
    await store.write(lambda tx: tx.conn.execute(update(standing_table).values(heard_at=minute_ago)))

    for listens_since in (clock.now_ms() - 1000, clock.now_ms()):
        heard = Heard(listens_since, clock.now_ms())
        await engine.happens(owner_id, Looked())
        (standing,) = await rows(engine, standing_table)
        assert (standing.state, standing.wake_at) == ("working", listens_since + 60_000)
    heard = Heard.all_until(clock.now_ms())
    await engine.happens(owner_id, Looked())
    assert await state_of(engine, owner_id) == "no_data"
    await engine.stop()


async def test_a_person_s_write_of_a_readwrite_property_runs_what_asks_for_it(engine: Engine) -> None:
    owner_id = await engine.thing(property_types={"setpoint": "readwrite"})
    await engine.operation(
        owner_id, parameters={"text": "echo {{properties.setpoint}}"}, run_on_property_change=True
    )
    await engine.operation(owner_id, parameters={"text": "true"})
    await engine.report(owner_id, setpoint=1)
    await engine.happens(owner_id, Written({"other": 1}, ADMIN))
    assert await jobs_of(engine, owner_id) == []

    await engine.happens(owner_id, Written({"setpoint": 21}, ADMIN))
    (job,) = await jobs_of(engine, owner_id)
    assert (job.type, job.cause, job.user_id) == (JobType.EXECUTE_LISTENER, Cause.PROPERTY, ADMIN.user_id)
    assert job.process_meta is None


@pytest.mark.check(43)
async def test_a_chain_of_triggers_stops_at_the_fifth_and_opens_its_breaker(engine: Engine) -> None:
    owner_id, trigger_id = await hot_thing(engine)
    await engine.report(owner_id, temperature=90)
    for _ in range(8):  # each report says which job led to it, as a message of ours that comes back does
        last = (await jobs_of(engine, owner_id))[-1]
        await engine.happens(owner_id, Reported({"temperature": 20}, job_ids=(last.id,)))
        await engine.happens(owner_id, Reported({"temperature": 90}, job_ids=(last.id,)))

    assert len(await jobs_of(engine, owner_id)) == 5
    decisions = [one for one in await decisions_of(engine, owner_id) if one != "not_in_states"]
    assert decisions == ["fired"] * 5 + ["loop_guard"] * 4
    await engine.report(owner_id, temperature=20)
    await engine.report(owner_id, temperature=90)
    assert len(await jobs_of(engine, owner_id)) == 5  # whoever started it: until it is reset
    await engine.store.write(lambda tx: rules.set_breaker(tx, trigger_id, None))
    await engine.report(owner_id, temperature=20)
    await engine.report(owner_id, temperature=90)
    assert len(await jobs_of(engine, owner_id)) == 6


@pytest.mark.check(43)
async def test_a_chain_over_a_condition_that_has_to_hold_stops_likewise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now_ms()
    monkeypatch.setattr(clock, "now_ms", lambda: now)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(
        owner_id, {**HOT, "hold_s": 1}, {"state": "overloaded", "when": "temperature > 85"}
    )
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    behind: tuple[str, ...] = ()
    for _ in range(8):
        await engine.happens(owner_id, Reported({"temperature": 20}, job_ids=behind))
        await engine.happens(owner_id, Reported({"temperature": 90}, job_ids=behind))
        now += 500
        await engine.report(owner_id, temperature=91)  # says of no job that it led to it
        now += 600
        await engine.happens(owner_id, Looked())
        behind = ((await jobs_of(engine, owner_id))[-1].id,)

    assert len(await jobs_of(engine, owner_id)) == 5
    decisions = [one for one in await decisions_of(engine, owner_id) if one != "not_in_states"]
    assert decisions == ["fired"] * 5 + ["loop_guard"] * 3


@pytest.mark.check(43)
async def test_a_chain_over_properties_that_are_written_stops_likewise(engine: Engine) -> None:
    owner_id, operation_id = await engine.script("true")
    readwrite = tables.objects.update().values(property_types={"setpoint": "readwrite"})
    await engine.store.write(lambda tx: tx.conn.execute(readwrite))
    await engine.operation(owner_id, parameters={"text": "true"}, run_on_property_change=True)
    await engine.conditions(owner_id, HOT)
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    behind: tuple[str, ...] = ()
    for turn in range(8):
        await engine.happens(owner_id, Reported({"temperature": 20}, job_ids=behind))
        await engine.happens(owner_id, Reported({"temperature": 90}, job_ids=behind))
        last = (await traces_of(engine, owner_id))[-1]
        if last.job_id is not None:  # it sets a property, and what that runs leads to a report
            await engine.happens(owner_id, Written({"setpoint": turn}, ADMIN, (last.job_id,)))
            behind = ((await jobs_of(engine, owner_id))[-1].id,)

    decisions = [one for one in await decisions_of(engine, owner_id) if one != "not_in_states"]
    assert decisions == ["fired"] * 5 + ["loop_guard"] * 3
    of_writes = [job for job in await jobs_of(engine, owner_id) if job.cause == Cause.PROPERTY]
    assert [job.process_meta for job in of_writes] == [{"triggers_before": depth} for depth in range(1, 6)]


async def test_of_the_chains_behind_a_report_the_longest_counts(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    await engine.report(owner_id, temperature=90)
    for _ in range(2):
        last = (await jobs_of(engine, owner_id))[-1]
        await engine.happens(owner_id, Reported({"temperature": 20}, job_ids=(last.id,)))
        await engine.happens(owner_id, Reported({"temperature": 90}, job_ids=(last.id,)))
    ids = [job.id for job in await jobs_of(engine, owner_id)]
    await engine.report(owner_id, temperature=20)

    seqs = [str(job.seq) for job in await jobs_of(engine, owner_id)]
    cases = ((ids[:1], 1), (["made up", ids[2], ids[0]], 3), (["made up", "9" * 18, "9" * 19], 0), ([], 0))
    await engine.store.read(lambda conn: chains.refuse_unknown(conn, [ids[0], seqs[1]], "Job-Id"))
    for none in ("made up", "9" * 18, "9" * 19, ""):
        with pytest.raises(BadRequest, match="there is no job"):
            await engine.store.read(lambda conn, none=none: chains.refuse_unknown(conn, [none], "Job-Id"))
    for given, depth in (*cases, (seqs[:1], 1), ([ids[0], seqs[2], seqs[0]], 3)):
        await engine.happens(owner_id, Reported({"temperature": 90}, job_ids=tuple(given)))
        query = partial(standings.changes, limit=1, entity_id=owner_id)
        assert [change.depth for change in await engine.store.read(query)] == [depth], given
        await engine.report(owner_id, temperature=20)


@pytest.mark.check(43)
async def test_a_sensor_that_flaps_fires_once_and_the_rest_is_counted(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, cooldown_s=60)

    def item(tx: Any) -> None:
        turn = engine.reactions.turn(tx)
        for number in range(1200):
            what = Reported({"temperature": 90 if number % 2 == 0 else 20})
            turn.take(Happening(OwnerType.OBJECT, owner_id, what))
        turn.finish()

    await engine.store.write(item)
    found = await engine.store.read(lambda conn: rules.trace_rows(conn, limit=5000, owner_id=owner_id))
    decisions = [trace.decision for trace in found]
    assert (decisions.count("fired"), decisions.count("cooling_down")) == (1, 599)
    assert len(await jobs_of(engine, owner_id)) == 1


async def test_all_triggers_of_the_site_can_be_paused(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    now = clock.now_ms()
    await engine.switch.pause(paused=True, caller=ADMIN)
    await engine.switch.pause(paused=True, caller=Caller("b" * 32, "ben", Role.ADMIN))
    await engine.report(owner_id, temperature=90)
    assert await decisions_of(engine, owner_id) == ["paused"]
    assert await jobs_of(engine, owner_id) == []
    told = await engine.store.read(lambda conn: switch.signature(conn, switch.PAUSED))
    assert told is not None
    assert told["by"] == {"id": ADMIN.user_id, "name": ADMIN.login}, "who did it first, and nobody changed it"
    assert now <= told["since"] <= clock.now_ms()


async def test_all_triggers_are_read_in_parts_and_those_whose_breaker_is_open(engine: Engine) -> None:
    class_id = await engine.class_()
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    given = {"states": ["alarm"], "operation_id": operation_id}
    ids = await engine.triggers(class_id, given, given, owner_kind="class")
    ids = sorted([*ids, *[(await hot_thing(engine))[1] for _ in range(2)]])
    await engine.store.write(lambda tx: rules.set_breaker(tx, ids[2], clock.now_ms()))

    async def page(**wanted: Any) -> list[str]:
        found = await engine.store.read(lambda conn: rules.trigger_page(conn, **wanted))
        return [row.id for row in found]

    assert await page(limit=3) == ids[:3]
    assert await page(limit=3, after=ids[2]) == ids[3:]
    assert await page(limit=3, broken=True) == [ids[2]]
    assert await page(limit=3, broken=False) == [*ids[:2], ids[3]]
    assert await page(limit=3, after=ids[2], broken=True) == []


async def test_a_dry_trigger_leaves_a_trace_and_no_job(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine, dry=True)
    await engine.report(owner_id, temperature=90)
    assert await decisions_of(engine, owner_id) == ["dry"]
    assert await jobs_of(engine, owner_id) == []


async def test_nothing_happens_to_what_is_not_there(engine: Engine) -> None:
    with pytest.raises(NotFound):
        await engine.report("f" * 32, temperature=1)


async def test_the_ids_of_reports_that_one_stands_for_have_come_as_well(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    merged = Reported({"temperature": 20}, "r3", superseded=2, earlier_ids=("r1", "r2"))
    assert await engine.happens(owner_id, merged)
    for again in ("r1", "r2", "r3"):
        assert not await engine.report(owner_id, again, temperature=90)
    assert await state_of(engine, owner_id) == "working"


async def test_a_report_that_comes_again_takes_no_other_along_that_it_was_merged_with(engine: Engine) -> None:
    owner_id, _ = await hot_thing(engine)
    assert await engine.report(owner_id, "r1", temperature=20)
    merged = Reported({"temperature": 20, "door": "open"}, "r1", superseded=1, earlier_ids=("r2",))
    assert await engine.happens(owner_id, merged)
    assert not await engine.happens(owner_id, merged)
    assert sorted(row.name for row in await rows(engine, property_history)) == ["door", "temperature"]


async def test_what_a_device_says_is_bounded_in_all(engine: Engine) -> None:
    owner_id = await engine.thing()
    for number in range(4):
        assert await engine.report(owner_id, **{f"p{number}": "x" * 60_000})
    with pytest.raises(BadRequest, match="more than 262144 bytes together"):
        await engine.report(owner_id, "r1", p4="x" * 60_000)
    with pytest.raises(BadRequest, match="more than 262144 bytes together"):
        await engine.report(owner_id, "r1", p3=["x" * 500] * 200)
    assert await engine.report(owner_id, "r1", p3="y", p4="z")


async def test_names_that_a_device_makes_up_are_bounded(engine: Engine) -> None:
    owner_id = await engine.thing()
    assert await engine.report(owner_id, **{f"n{number}": 1 for number in range(1000)})
    with pytest.raises(BadRequest, match="1000 at most"):
        await engine.report(owner_id, "r1", one_more=1)
    assert await engine.report(owner_id, "r1", n1=2)  # the refused one has left nothing behind


@pytest.mark.parametrize("who", ["a device", "a person"])
async def test_a_value_that_its_class_has_too_is_the_entity_s_own_once_it_was_told(
    engine: Engine, who: str
) -> None:
    class_id = await engine.class_(properties={"temperature": 20, "door": "open"})
    owner_id = await engine.thing(class_id=class_id)
    told = {"temperature": 20.0}
    await engine.happens(owner_id, Reported(told) if who == "a device" else Written(told, ADMIN))
    assert await rows(engine, property_history) == []

    def item(tx: Any) -> None:
        values = {"properties": {"temperature": 90, "door": "shut"}}
        definitions.change(tx, Kind.CLASS, class_id, lambda _before: values)

    await engine.store.write(item)
    found = await engine.store.read(lambda conn: standings.load_object(conn, owner_id))
    assert found is not None
    assert found.entity.properties == {"temperature": 20, "door": "shut"}


async def test_a_report_of_what_is_known_writes_no_properties(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_id = await engine.class_(properties={"p1": 1})
    owner_id, written = await engine.thing(class_id=class_id), list[str]()
    keep = standings.save_properties

    def noted(tx: Any, snapshots: Any) -> None:
        written.extend(one.entity.id for one in snapshots)
        keep(tx, snapshots)

    monkeypatch.setattr(standings, "save_properties", noted)
    for _ in range(3):
        await engine.report(owner_id, **{f"p{number}": number for number in range(50)})
    assert written == [owner_id]


@pytest.mark.parametrize("of_link", [False, True])
@pytest.mark.parametrize("way", ["properties", "definition"])
async def test_what_was_held_long_enough_counts_whatever_is_written_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, of_link: bool, way: str
) -> None:
    """Of the entity, and of a link that it is an end of."""
    owner_id, other_id = await engine.thing(mqtt={"read": [], "write": []}), await engine.thing()
    entity_id, kind, when = owner_id, "object", "temperature > 80"
    if of_link:
        entity_id, kind, when = await engine.link(owner_id, other_id), "link", "source.temperature > 80"
    await engine.conditions(entity_id, {"state": "alarm", "when": when, "hold_s": 5}, owner_kind=kind)
    began = clock.now_ms()
    monkeypatch.setattr(clock, "now_ms", lambda: began)
    await engine.report(owner_id, temperature=90)
    monkeypatch.setattr(clock, "now_ms", lambda: began + 5050)  # over, and the look comes in a moment
    if way == "properties":
        await engine.happens(owner_id, Written({"temperature": 20}, ADMIN))
    else:
        services: Any = SimpleNamespace(store=engine.store, engine=engine, definitions_changed=list)
        shape, members = TypeAdapter[Any](ObjectBody), {"properties": {"temperature": 20}}
        await patch_entity(
            services, (Kind.OBJECT, owner_id), shape, members, expected=None, caller=ADMIN, job_ids=()
        )

    assert await changes_of(engine, entity_id) == [
        ("created", "working"),
        ("working", "alarm"),
        ("alarm", "working"),
    ]

"""Holds and repeats wait for what devices said until their moments, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.states import Forced, Heard
from iotjobs.engine.happenings import Said
from iotjobs.engine.leases import Always
from iotjobs.engine.timers import Timers
from iotjobs.store import rules, standings
from iotjobs.store.session import Store
from tests.services.rows import Engine

HOT = {"state": "alarm", "when": "t > 80"}


class Site:
    """A site whose clock the test moves, and on which it says how far devices were heard.

    Attributes:
        now: milliseconds.
        silent_since: what was said from then on has not been heard; None: somebody listens.
    """

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = clock.now_ms()
        self.silent_since: int | None = None
        self.engine = Engine(store, heard=self._heard)
        self.timers = Timers(store, self.engine.reactions, Always())
        monkeypatch.setattr(clock, "now_ms", lambda: self.now)

    def _heard(self, now: int) -> Heard:
        return Heard(0, now if self.silent_since is None else self.silent_since)

    def falls_silent(self) -> None:
        """From now on what devices say waits at the broker."""
        self.silent_since = self.now

    async def pass_s(self, seconds: float) -> int:
        """Let time pass, and look once; how many were due."""
        self.now += round(seconds * 1000)
        return await self.timers.look()

    async def hot(self, alarm_after_s: float = 0, **trigger: Any) -> str:
        """An object that is in alarm above 80, and has one trigger on it."""
        owner_id, operation_id = await self.engine.script("true")
        await self.engine.conditions(owner_id, {**HOT, "hold_s": alarm_after_s})
        await self.engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, **trigger})
        await self.engine.report(owner_id, t=1)
        await self.engine.report(owner_id, t=90)
        await self.timers.look()  # what was defined is judged anew
        return owner_id

    async def decided(self, owner_id: str) -> list[tuple[str, str]]:
        """What its trigger decided about alarms, and why."""
        found = await self.engine.store.read(lambda conn: rules.trace_rows(conn, limit=99, owner_id=owner_id))
        return [(row.decision, row.reason) for row in reversed(found) if row.decision != "not_in_states"]

    async def fired(self, owner_id: str) -> int:
        """How often."""
        return [decision for decision, _ in await self.decided(owner_id)].count("fired")

    async def changes(self, owner_id: str) -> list[str]:
        """The states that it entered."""
        found = await self.engine.store.read(
            lambda conn: standings.changes(conn, limit=99, entity_id=owner_id)
        )
        return [row.to_state for row in reversed(found)]


@pytest.fixture
async def site(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    made = Site(store, monkeypatch)
    yield made
    await made.engine.stop()


async def test_a_hold_of_a_trigger_is_canceled_by_what_is_heard_behind_its_time(site: Site) -> None:
    owner_id = await site.hot(hold_s=5)
    site.falls_silent()
    assert await site.pass_s(60) == 0
    await site.engine.report(owner_id, t=1)

    said = "left alarm for working while nobody listened: perhaps before its time"
    assert await site.decided(owner_id) == [("hold_canceled", said)]
    site.silent_since = None
    assert await site.pass_s(60) == 0
    assert await site.fired(owner_id) == 0


async def test_a_hold_that_was_left_before_its_time_says_so(site: Site) -> None:
    owner_id = await site.hot(hold_s=5)
    site.now += 4999
    await site.engine.report(owner_id, t=1)
    assert await site.decided(owner_id) == [("hold_canceled", "left alarm for working before its time")]


async def test_a_hold_of_a_trigger_fires_once_when_nothing_else_was_heard(site: Site) -> None:
    owner_id = await site.hot(hold_s=5)
    site.falls_silent()
    await site.pass_s(60)
    await site.engine.report(owner_id, t=91)  # nobody knows of when that is
    assert await site.decided(owner_id) == [("held", "fires after 5 s in alarm")]

    site.silent_since = None
    assert await site.pass_s(0) == 1
    assert await site.pass_s(60) == 0
    assert await site.decided(owner_id) == [("fired", "after 5 s in alarm")]


async def test_a_hold_that_was_over_before_nobody_listened_comes_before_what_ends_it(site: Site) -> None:
    owner_id = await site.hot(hold_s=5)
    site.now += 6000
    site.falls_silent()
    site.now += 6000
    await site.engine.report(owner_id, t=1)
    assert await site.fired(owner_id) == 1


async def test_repeats_wait_likewise_and_the_next_one_counts_from_when_it_came(site: Site) -> None:
    owner_id = await site.hot(repeat_s=10)
    other_id = await site.hot(repeat_s=10)
    site.falls_silent()
    assert await site.pass_s(60) == 0
    await site.engine.report(other_id, t=1)
    site.silent_since = None

    assert await site.pass_s(0) == 1
    assert (await site.fired(owner_id), await site.fired(other_id)) == (2, 1)
    assert await site.pass_s(9) == 0
    site.falls_silent()
    assert await site.pass_s(3) == 0
    site.silent_since = None
    assert await site.pass_s(0) == 1  # 2 s late, and at its own moment
    assert await site.pass_s(8) == 1
    assert await site.fired(owner_id) == 4


async def test_a_condition_s_hold_is_not_over_until_what_was_said_was_heard(site: Site) -> None:
    left, stayed = await site.hot(alarm_after_s=5), await site.hot(alarm_after_s=5)
    site.falls_silent()
    assert await site.pass_s(60) == 2
    assert await site.pass_s(0) == 0  # it is not looked at again and again
    for owner_id, values in ((left, (91, 1)), (stayed, (91, 92))):
        for value in values:
            await site.engine.report(owner_id, t=value)
    assert await site.changes(left) == await site.changes(stayed) == ["working"]

    site.silent_since = None
    await site.pass_s(1)
    assert await site.changes(left) == ["working"]
    assert await site.changes(stayed) == ["working", "alarm"]
    assert await site.fired(stayed) == 1


async def test_a_condition_s_hold_that_was_over_goes_on_to_count(site: Site) -> None:
    owner_id = await site.hot(alarm_after_s=5)
    await site.pass_s(6)
    force = Said(Forced("stopped", "anna", "service", since=site.now, until=site.now + 10_000))
    await site.engine.happens(owner_id, force)
    site.falls_silent()
    site.silent_since = 0  # as behind a restart
    await site.pass_s(20)  # a person's word ends by the clock
    await site.engine.report(owner_id, t=95)
    assert await site.changes(owner_id) == ["working", "alarm", "stopped", "alarm"]


async def test_a_link_waits_for_what_its_ends_said(site: Site) -> None:
    engine = site.engine
    source, target = await engine.thing(), await engine.thing()
    link = await engine.link(source, target)
    operation_id = await engine.operation(source, parameters={"text": "true"})
    await engine.conditions(link, {"state": "alarm", "when": "source.t > target.t"}, owner_kind="link")
    given = {"states": ["alarm"], "operation_id": operation_id, "hold_s": 5}
    await engine.triggers(link, given, owner_kind="link")
    await engine.report(target, t=1)
    await engine.report(source, t=2)
    site.falls_silent()
    assert await site.pass_s(60) == 0
    await engine.report(target, t=3)
    assert [decision for decision, _ in await site.decided(link)] == ["hold_canceled"]


async def test_more_waits_than_one_look_takes_hold_up_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iotjobs.engine.timers.AT_ONCE", 2)
    for _ in range(3):
        await site.hot(hold_s=5)
    site.now += 4000
    early = await site.hot(hold_s=0.5)  # was over when somebody still listened, and nobody has looked since
    site.now += 500
    site.falls_silent()
    assert await site.pass_s(10) == 1
    assert await site.fired(early) == 1
    assert await site.pass_s(10) == 0

from __future__ import annotations

import pytest
from sqlalchemy import text

from iotjobs import clock
from iotjobs.domain.states import PATIENCE_MS, Heard
from iotjobs.engine.listening import BREAK_S, GRACE_S, LOOK_EVERY_S, LOOK_WITHIN_S, Listening
from iotjobs.store import facts, nodes
from iotjobs.store.nodes import Node
from iotjobs.store.session import Store

NODE = Node("host", 7, "1.0", (), 500)
NOW = 10_000_000
# Of the database's clock, on which two of this test may have one moment.
BEAT = text("UPDATE worker SET seen_at = seen_at + 1 WHERE id = :worker AND gone_at IS NULL")
EVERYTHING = Heard(0, NOW)
NOTHING = Heard(NOW, 0)


class Watch:
    """A process that watches, on a clock that the test moves."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.at)
        self.store, self.listening = store, Listening(store, lambda: "us")

    async def says(self, who: str) -> None:
        await self.store.write(lambda tx: facts.put(tx, facts.LISTENS, who))

    async def pass_s(self, seconds: float, *, beats: str | None = None) -> Heard:
        """Let time pass, looking all the while; what is known then."""
        until = self.at + seconds
        while self.at < until:
            if beats is not None and round(self.at * 2) % 6 == 0:  # each three seconds
                await self.store.write(lambda tx: tx.conn.execute(BEAT, {"worker": beats}))
            await self.listening.look()
            self.at += LOOK_EVERY_S
        return self.heard()

    def heard(self) -> Heard:
        return self.listening.heard(NOW)


@pytest.fixture
def watch(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(sqlite_store, monkeypatch)


async def test_where_nobody_ever_listened_nothing_waits(watch: Watch) -> None:
    assert watch.heard() == NOTHING  # before the first look
    assert await watch.pass_s(1) == EVERYTHING


async def test_who_listens_first_of_all_has_nothing_to_wait_for(watch: Watch) -> None:
    assert await watch.pass_s(1) == EVERYTHING
    await watch.says("")
    await watch.pass_s(1)
    await watch.says("us")
    assert (await watch.pass_s(2 * LOOK_EVERY_S)).until == NOW
    await watch.says("")
    await watch.pass_s(10)
    await watch.says("us")
    assert (await watch.pass_s(GRACE_S - 1)).until < NOW - 10_000


async def test_after_a_restart_nothing_is_known_until_we_have_listened_for_a_while(watch: Watch) -> None:
    await watch.says("who was here before us")
    assert await watch.pass_s(60) == NOTHING

    await watch.says("us")
    assert await watch.pass_s(GRACE_S - 1) == NOTHING
    heard = await watch.pass_s(1)
    assert heard == Heard(since=NOW - round(GRACE_S * 1000), until=NOW)
    heard = await watch.pass_s(20)
    assert heard == Heard(since=NOW - round(GRACE_S * 1000 + 20_000), until=NOW)


async def test_what_was_heard_before_a_break_is_known_and_silence_counts_anew_behind_a_long_one(
    watch: Watch,
) -> None:
    await watch.says("us")
    await watch.pass_s(30)
    await watch.says("")
    heard = await watch.pass_s(BREAK_S - GRACE_S - 1)
    assert NOW - heard.until == pytest.approx((BREAK_S - GRACE_S - 1) * 1000, abs=1500)
    await watch.says("us")
    heard = await watch.pass_s(GRACE_S + 1)
    assert heard.until == NOW
    assert NOW - heard.since > 30_000  # that was short

    await watch.says("")
    heard = await watch.pass_s(BREAK_S + 2)
    assert heard.since == NOW
    assert NOW - heard.until == pytest.approx((BREAK_S + 2) * 1000, abs=1500)
    await watch.says("us")
    heard = await watch.pass_s(GRACE_S + 1)
    assert heard == Heard(since=NOW - round(GRACE_S * 1000 + 1000), until=NOW)


async def test_another_node_is_known_to_listen_as_far_as_it_beats(watch: Watch) -> None:
    await watch.store.write(lambda tx: nodes.register(tx, "other", NODE))
    await watch.says("other")
    heard = await watch.pass_s(30, beats="other")
    assert 0 < NOW - heard.until <= 4500

    heard = await watch.pass_s(9)  # it is frozen, and still on record
    assert NOW - heard.until > 9000
    frozen_at = watch.at - (NOW - heard.until) / 1000
    await watch.store.write(lambda tx: nodes.bury(tx, "other"))
    heard = await watch.pass_s(9)
    assert watch.at - (NOW - heard.until) / 1000 == pytest.approx(frozen_at)

    await watch.says("us")
    assert (await watch.pass_s(GRACE_S + 1)).until == NOW


async def test_who_listens_is_us_or_another_node_as_far_as_it_beats(watch: Watch) -> None:
    def found() -> tuple[bool, bool]:
        return watch.listening.ours, watch.listening.another

    await watch.store.write(lambda tx: nodes.register(tx, "other", NODE))
    await watch.pass_s(2)
    assert found() == (False, False)
    for _ in range(3):
        await watch.says("other")
        await watch.pass_s(4)
        assert found() == (False, True)
        await watch.says("us")
        await watch.pass_s(1)
        assert found() == (True, False)

    await watch.says("other")
    for _ in range(60):
        await watch.pass_s(0.5, beats="other")
        assert found() == (False, True)
    await watch.pass_s(6)  # it is frozen
    assert found() == (False, False)
    await watch.says("")
    await watch.pass_s(1)
    assert found() == (False, False)


async def test_a_look_that_takes_a_moment_makes_nothing_late(watch: Watch) -> None:
    await watch.says("us")
    await watch.pass_s(30)
    watch.at += LOOK_WITHIN_S
    assert watch.heard().until == NOW


async def test_who_slept_does_not_know_what_it_missed(watch: Watch) -> None:
    await watch.says("us")
    await watch.pass_s(30)
    watch.at += 60
    heard = watch.heard()
    assert NOW - heard.until == pytest.approx(60_000, abs=1500)
    heard = await watch.pass_s(1)
    assert NOW - heard.until == pytest.approx(61_000, abs=1500)
    assert (await watch.pass_s(GRACE_S + 1)).until == NOW


async def test_nobody_is_waited_for_for_ever(watch: Watch) -> None:
    await watch.says("")
    assert await watch.pass_s(PATIENCE_MS / 1000 - 1) == NOTHING
    assert await watch.pass_s(3) == EVERYTHING

    await watch.says("us")
    await watch.pass_s(30)
    for _ in range(round(PATIENCE_MS / 1000 / 4)):  # never for long enough
        await watch.says("")
        await watch.pass_s(1)
        await watch.says("us")
        await watch.pass_s(GRACE_S - 1.5)
    assert watch.heard() == EVERYTHING


async def test_a_sleep_is_no_patience(watch: Watch) -> None:
    await watch.says("")
    await watch.pass_s(1)
    watch.at += PATIENCE_MS / 1000
    assert watch.heard() == NOTHING


async def test_it_says_that_nobody_listens_and_what_follows(watch: Watch) -> None:
    await watch.says("")
    await watch.pass_s(GRACE_S - 1)
    assert watch.listening.trouble() is None
    await watch.pass_s(2)
    trouble = watch.listening.trouble() or ""
    assert trouble.startswith("nobody listens")
    assert trouble.endswith("and so do their timeouts")
    await watch.pass_s(PATIENCE_MS / 1000)
    assert (watch.listening.trouble() or "").endswith("time goes on without them")
    await watch.says("us")
    await watch.pass_s(1)
    assert watch.listening.trouble() is None

"""What a device says above its rate, with ids and without, once and again: nothing new is lost, on both databases."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iotjobs.engine import devices as devices_module
from iotjobs.engine.rates import BURST_S
from iotjobs.store import standings
from iotjobs.store.session import Store
from iotjobs.transports.mqtt_messages import Received
from tests.services.rows import Engine, standing_of
from tests.services.site import eventually

_mids = itertools.count(1)
_TOO_MANY = {f"x{number}": 1 for number in range(1001)}


class Press:
    """A device that has used up its burst, and the broker between it and us; tokens come when `token` says so."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._engine, self._now, self.acknowledged = engine, 0.0, list[int]()
        self._unacknowledged: dict[int, Received] = {}
        self.monotonic = lambda: self._now
        self.sleep = devices_module.clock.sleep
        monkeypatch.setattr(devices_module, "clock", self)

    async def __aenter__(self) -> Press:
        self.thing = f"press{next(_mids)}"
        self.owner_id = await self._engine.thing(thing=self.thing)
        await self._begin()
        for _ in range(BURST_S):
            self.says({})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._devices.stop()

    async def _begin(self) -> None:
        self._devices = self._engine.devices(reports_per_s=1)
        await self._devices.start()

    def says(self, values: dict[str, Any], report_id: str | None = None, qos: int = 1) -> int:
        """Report; the number of the message."""
        return self._send(f"{self.thing}/report", json.dumps(values).encode(), report_id, qos)

    def status(self, word: str, report_id: str | None = None, qos: int = 1) -> int:
        """Say `online` or `offline`."""
        return self._send(f"{self.thing}/status", word.encode(), report_id, qos)

    def _send(self, topic: str, payload: bytes, report_id: str | None, qos: int) -> int:
        mid = next(_mids)
        given = () if report_id is None else (("report-id", report_id),)
        self._bring(mid, topic, payload, qos, given)
        return mid

    def _bring(self, mid: int, topic: str, payload: bytes, qos: int, given: Any, again: bool = False) -> None:
        def acknowledge(_mid: int) -> None:
            self._unacknowledged.pop(mid, None)
            self.acknowledged.append(mid)

        message = Received(
            f"iotjobs/{topic}" if not again else topic,
            payload,
            qos,
            False,
            again,
            mid if qos else 0,
            user_properties=given,
            _acknowledge=acknowledge,
        )
        if qos:
            self._unacknowledged[mid] = message
        self._devices.receive(message)

    async def settled(self) -> None:
        """All that was said so far has its effect, or waits for its token."""
        behind = self._send(f"nobody{next(_mids)}/report", b"{}", None, 1)  # each has tokens of its own
        await eventually(lambda: behind in self.acknowledged, 5)

    async def token(self) -> None:
        """Time for one more passes."""
        await self.settled()
        self._now += 1
        await self.settled()

    async def killed(self) -> None:
        """Die, and begin anew: the broker brings again what was not acknowledged."""
        await self._devices.stop()
        again, self._unacknowledged = self._unacknowledged, {}
        await self._begin()
        for mid, one in again.items():
            self._bring(mid, one.topic, one.payload, 1, one.user_properties, again=True)

    async def properties(self) -> dict[str, Any]:
        """As they are on disk."""
        found = await self._engine.store.read(lambda conn: standings.load_object(conn, self.owner_id))
        assert found is not None
        return dict(found.entity.properties)

    async def is_offline(self) -> bool:
        """As it is on disk."""
        return bool((await self._engine.store.read(lambda conn: standing_of(conn, self.owner_id))).offline)


@pytest.fixture
async def press(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Press]:
    engine = Engine(store)
    async with Press(engine, monkeypatch) as made:
        yield made
    await engine.stop()


async def test_a_report_that_comes_again_takes_no_newer_value_back(press: Press) -> None:
    press.says({"t": 20}, "a")
    await press.token()
    for _ in range(2):  # the device got no acknowledgement, and sends both again
        press.says({"t": 95}, "b")
        press.says({"t": 20}, "a")
    await press.token()
    press.says({"t": 95}, "b")
    await press.token()

    assert await press.properties() == {"t": 95}


@pytest.mark.parametrize("of_a_batch", [True, False])
async def test_what_is_held_is_not_lost_behind_a_report_that_comes_again(
    press: Press, of_a_batch: bool
) -> None:
    press.says({"u": 1}, "a")
    await press.token()
    press.says({"t": 95})
    if not of_a_batch:
        await press.settled()
    press.says({"u": 1}, "a")
    await press.token()

    assert await press.properties() == {"u": 1, "t": 95}


async def test_a_report_that_comes_again_is_no_reason_to_acknowledge_the_one_that_waits(press: Press) -> None:
    press.says({"t": 20}, "a")
    await press.token()
    waits = press.says({"t": 95}, "b")
    press.says({"t": 20}, "a")
    await press.settled()
    assert waits not in press.acknowledged

    await press.killed()
    await press.token()
    assert await press.properties() == {"t": 95}


async def test_a_word_that_comes_again_takes_no_newer_one_back(press: Press) -> None:
    press.status("online", "w1")
    await press.token()
    press.status("offline", "w2")
    press.status("online", "w1")
    await press.token()
    assert await press.is_offline()

    press.says({"t": 1}, "a")
    await press.token()
    press.status("offline", "w3")
    press.says({"t": 1}, "a")  # it is there, though it says nothing new
    await press.token()
    assert not await press.is_offline()


async def test_a_report_that_came_another_way_meanwhile_takes_no_other_along(press: Press) -> None:
    press.says({"t": 95})
    press.says({"u": 1}, "a")
    await press.settled()
    assert await press._engine.report(press.owner_id, "a", u=1)
    assert await press._engine.report(press.owner_id, "c", u=2)
    await press.token()

    assert await press.properties() == {"u": 2, "t": 95}


@pytest.mark.parametrize("too_many", [_TOO_MANY, {f"y{number}": 1 for number in range(20)}])
async def test_a_report_is_not_lost_behind_one_that_is_refused(
    press: Press, too_many: dict[str, Any]
) -> None:
    known = {f"p{number}": 0 for number in range(990)}
    await press._engine.report(press.owner_id, **known)
    press.says({"t": 95})
    press.says(too_many)
    press.says({"u": 1})
    await press.token()

    assert await press.properties() == {**known, "t": 95, "u": 1}
    row = await press._engine.store.read(lambda conn: standing_of(conn, press.owner_id))
    assert (row.reports, row.superseded) == (1 + BURST_S + 2, 0)


_values = st.dictionaries(st.sampled_from("abc"), st.integers(0, 99), max_size=2)
_ids = st.one_of(st.none(), st.integers(0, 5))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("report"), _values, _ids),
        st.tuples(st.just("status"), st.sampled_from(("online", "offline")), _ids),
        st.tuples(st.just("again"), st.integers(0, 9), st.sampled_from((0, 1))),
        st.tuples(st.sampled_from(("token", "settled", "killed")), st.none(), st.none()),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@example(steps=[("token", None, None)] * 8, only_qos_1=True, qos=random.Random(1))
@given(steps=_steps, only_qos_1=st.booleans(), qos=st.randoms(use_true_random=False))
async def test_in_the_end_it_is_as_if_all_had_come_one_by_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, steps: list[Any], only_qos_1: bool, qos: Any
) -> None:
    """Whatever came again, whenever its token came, and, where nothing came with QoS 0, whenever we were killed."""
    engine, ids = Engine(store), set[str]()
    values, offline, said = dict[str, Any](), False, list[Any]()
    with monkeypatch.context() as patched:
        async with Press(engine, patched) as press:
            for kind, what, number in steps:
                if kind in ("token", "settled", "killed"):
                    if kind != "killed" or only_qos_1:
                        await getattr(press, kind)()
                    continue
                if kind == "again":
                    if not said:
                        continue
                    kind, what, report_id = said[-1 - what % len(said)]
                else:
                    report_id = None if number is None else f"{kind}{number}"
                    earlier = next((one for one in said if report_id and one[2] == report_id), None)
                    kind, what, report_id = earlier or (kind, what, report_id)  # an id has one content
                said.append((kind, what, report_id))
                chosen = 1 if only_qos_1 else qos.choice((0, 1))
                is_new = report_id is None or report_id not in ids
                if report_id is not None:
                    ids.add(report_id)
                if kind == "report":
                    press.says(what, report_id, chosen)
                    values |= what if is_new else {}
                    offline = False
                else:
                    press.status(what, report_id, chosen)
                    offline = what == "offline" if is_new else offline
            await press.token()
            assert (await press.properties(), await press.is_offline()) == (values, offline)
            assert not press._unacknowledged

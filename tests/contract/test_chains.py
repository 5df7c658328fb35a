"""Loops over what jobs write are seen, on both databases; those over reports are in `test_reactions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from iotjobs import clock
from iotjobs.domain.states import Forced
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.happenings import Said, Written
from iotjobs.store import chains, standings
from iotjobs.store.session import Store
from tests.contract.test_reactions import decisions_of, jobs_of
from tests.services.rows import ADMIN, Engine


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def test_writes_that_run_what_writes_again_stop_at_the_fifth(engine: Engine) -> None:
    owner_id = await engine.thing(property_types={"setpoint": "readwrite"})
    await engine.operation(owner_id, parameters={"text": "true"}, run_on_property_change=True)
    await engine.happens(owner_id, Written({"setpoint": 0}, ADMIN))
    for number in range(1, 8):
        last = (await jobs_of(engine, owner_id))[-1]
        await engine.happens(owner_id, Written({"setpoint": number}, ADMIN, (last.id,)))

    made = await jobs_of(engine, owner_id)
    assert [job.error_code for job in made] == [None] * 5 + ["loopGuard"] * 3
    assert [job.process_meta for job in made] == [None, *({"writes_before": n} for n in range(1, 8))]
    read = [await engine.store.read(partial(chains.writes_behind, references=[job.id])) for job in made]
    assert read == list(range(1, 9))
    assert (made[5].outcome, made[5].attempt) == (Outcome.REJECTED, 0)
    loaded = await engine.store.read(lambda conn: standings.load_object(conn, owner_id))
    assert loaded is not None
    assert loaded.entity.properties == {"setpoint": 7}  # the write itself is a person's


@pytest.mark.check(43)
async def test_a_chain_over_forced_states_stops_likewise(engine: Engine) -> None:
    owner_id, operation_id = await engine.script("true")
    await engine.triggers(owner_id, {"states": ["alarm", "working"], "operation_id": operation_id})
    await engine.report(owner_id, temperature=1)
    for forced in [Forced("alarm", "u", "x", clock.now_ms()), None] * 6:
        last = (await jobs_of(engine, owner_id))[-1]
        await engine.happens(owner_id, Said(forced, (last.id,)))

    assert len(await jobs_of(engine, owner_id)) == 5
    assert "loop_guard" in await decisions_of(engine, owner_id)

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from iotjobs.domain.errors import StoreUnavailable
from iotjobs.engine import claim
from iotjobs.engine.claim import ClaimWatch


async def test_who_lost_the_claim_is_told_once_and_an_absent_database_is_no_loss(
    mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What PostgreSQL's session lock does when the session is cut off is in tests/contract/test_store.py.
    monkeypatch.setattr(claim, "LOOK_EVERY_S", 0)
    store = mocker.Mock()
    store.claim = mocker.AsyncMock(side_effect=[True, StoreUnavailable("away"), True, False])
    lost = asyncio.Event()
    watch = ClaimWatch(cast("Any", store), lost.set)

    await watch.start()
    async with asyncio.timeout(1):
        await lost.wait()
    await watch.stop()

    assert store.claim.await_count == 4

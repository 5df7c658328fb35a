from __future__ import annotations

import asyncio

import pytest

from iotjobs.engine.watch import Watch, Why


async def forever() -> None:
    await asyncio.Event().wait()


async def ended(watch: Watch) -> Why | None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5), watch:
            await forever()
    return watch.why


async def test_the_clock_ends_it() -> None:
    assert await ended(Watch(0.01)) is Why.TIMED_OUT


async def test_what_ends_by_itself_has_no_reason() -> None:
    watch = Watch(5.0)

    async with watch:
        await asyncio.sleep(0)
    watch.end(Why.ASKED)

    assert watch.why is None


@pytest.mark.parametrize("why", [Why.ASKED, Why.SERVER_STOPS])
async def test_who_asks_first_ends_it_also_before_the_start(why: Why) -> None:
    under_way, before = Watch(5.0), Watch(5.0)
    asyncio.get_running_loop().call_later(0.01, under_way.end, why)
    asyncio.get_running_loop().call_later(0.01, under_way.end, Why.STALLED)
    before.end(why)

    assert await ended(under_way) is why
    assert await ended(before) is why


async def test_a_deadline_that_has_passed_is_the_reason_whatever_comes_then() -> None:
    watch = Watch(0.01)

    async def late_word() -> None:
        async with watch:
            try:
                await forever()
            finally:
                watch.end(Why.ASKED)

    with pytest.raises(TimeoutError):
        await late_word()
    assert watch.why is Why.TIMED_OUT


async def test_silence_ends_it_from_the_first_word_on() -> None:
    watch = Watch(5.0, silent_s=0.02)
    asyncio.get_running_loop().call_soon(watch.heard)

    assert await ended(watch) is Why.STALLED
    assert await ended(Watch(0.05, silent_s=0.01)) is Why.TIMED_OUT  # it has not begun


async def test_words_put_the_end_off() -> None:
    watch, loop = Watch(5.0, silent_s=0.2), asyncio.get_running_loop()
    began = loop.time()
    for after_s in (0.0, 0.1, 0.2, 0.3):
        loop.call_later(after_s, watch.heard)

    assert await ended(watch) is Why.STALLED
    assert loop.time() - began >= 0.5


async def test_while_we_are_at_work_on_it_it_is_not_silent() -> None:
    watch = Watch(0.2, silent_s=0.02)
    asyncio.get_running_loop().call_soon(lambda: watch.heard(busy=True))

    assert await ended(watch) is Why.TIMED_OUT

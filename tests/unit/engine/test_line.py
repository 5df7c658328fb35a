from __future__ import annotations

import asyncio

import pytest

from iotjobs.engine.line import Line


async def test_one_comes_after_the_other_however_they_were_asked() -> None:
    line, came = Line(), []

    async def come(job_id: str) -> None:
        await line.come(job_id)
        came.append(job_id)
        line.leave(job_id)

    for job_id in "abcd":
        line.join(job_id)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for job_id in "dbca":
            group.create_task(come(job_id))

    assert came == list("abcd")
    assert len(line) == 0


async def test_who_does_not_stand_in_it_waits_for_nobody() -> None:
    line = Line()
    line.join("a")

    await asyncio.wait_for(line.come("b"), 5)
    line.leave("b")

    assert "a" in line


@pytest.mark.parametrize("leaves_first", [False, True])
async def test_who_gives_up_keeps_its_place_until_it_leaves(leaves_first: bool) -> None:
    line = Line()
    for job_id in "abc":
        line.join(job_id)
    second, third = asyncio.create_task(line.come("b")), asyncio.create_task(line.come("c"))
    await asyncio.sleep(0)

    if leaves_first:  # its turn was given to it in the very moment of the cancel
        line.leave("a")
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    line.leave("a")
    again = asyncio.create_task(line.come("b"))
    await asyncio.wait_for(again, 5)
    assert not third.done()

    line.leave("b")
    await asyncio.wait_for(third, 5)


async def test_one_that_is_gone_is_passed_over() -> None:
    line = Line()
    for job_id in "abc":
        line.join(job_id)
    third = asyncio.create_task(line.come("c"))
    await asyncio.sleep(0)

    line.leave("b")
    line.leave("b")
    line.leave("a")

    await asyncio.wait_for(third, 5)

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from iotjobs.domain.errors import BadAnswer
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, Stream
from iotjobs.transports.local import LocalTransport
from tests.services.site import eventually
from tests.services.ssh import Told, marked, nonce


async def run(script: str, **fields: object) -> tuple[CommandEnd, Told]:
    told = Told()
    request = CommandRequest(**{"nonce": nonce(), "script": script, **fields})  # type: ignore[arg-type]
    return await LocalTransport().run(None, request, told.hooks), told


async def test_output_exit_code_and_group_are_told() -> None:
    end, told = await run("printf out; printf err >&2; cat; exit 37", env={"A": "1"})
    assert (end, bytes(told.out), bytes(told.err)) == (CommandEnd(37), b"out", b"err")
    [(pid, group)] = told.run
    assert pid == group != os.getpgid(0)


async def test_nothing_of_our_own_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTJOBS_MASTER_SECRET", "x")
    _, told = await run("env")
    assert b"MASTER" not in told.out


async def test_death_by_a_signal_is_told() -> None:
    assert (await run("kill -KILL $$"))[0] == CommandEnd(137, "KILL")


async def test_death_by_a_signal_without_a_name_is_told() -> None:
    async with asyncio.timeout(10):
        assert (await run("kill -40 $$"))[0] == CommandEnd(168, "40")


async def test_raw_text_is_run_as_it_is() -> None:
    end, told = await run("echo raw; exit 4", interpreter="raw")
    assert (end.exit_code, bytes(told.out), told.run) == (4, b"raw\n", [])


async def test_both_outputs_can_be_opened_by_their_names() -> None:
    end, told = await run("echo a >/dev/stdout; echo b >/dev/stderr; echo c | tee /proc/self/fd/2")
    assert (end, bytes(told.out), bytes(told.err)) == (CommandEnd(0), b"a\nc\n", b"b\nc\n")


async def test_a_detached_child_does_not_hold_the_end() -> None:
    mark, told = nonce(), Told()
    request = CommandRequest(nonce=mark, script="sleep 777 & exit 9")
    async with asyncio.timeout(5):
        end = await LocalTransport().run(None, request, told.hooks)
    assert end.exit_code == 9
    assert (await LocalTransport().kill(None, mark, told.group, 1)).verdict is Gone.GONE


async def test_a_slow_reader_makes_the_command_wait() -> None:
    told, go, calls = Told(keep=0), asyncio.Event(), 0

    async def output(stream: Stream, data: bytes) -> None:
        nonlocal calls
        calls += 1
        await go.wait()
        told.count += len(data)

    hooks = CommandHooks(told.before_send, told.started, output)
    request = CommandRequest(nonce=nonce(), script="head -c 5000000 /dev/zero; echo end >&2")
    task = asyncio.create_task(LocalTransport().run(None, request, hooks))
    await eventually(lambda: calls)
    assert told.count == 0
    go.set()
    assert (await task).exit_code == 0
    assert told.count == 5_000_004


async def test_cancelling_leaves_the_process_and_a_kill_ends_it() -> None:
    local, mark, told = LocalTransport(), nonce(), Told()
    request = CommandRequest(nonce=mark, script='trap "" TERM; (setsid sleep 777 & sleep 777); wait')
    task = asyncio.create_task(local.run(None, request, told.hooks))
    await eventually(lambda: told.run and len(marked(mark)) >= 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(marked(mark)) >= 3
    assert (await local.kill(None, mark, told.group, 0.4)).verdict is Gone.GONE
    assert not marked(mark)


async def test_a_kill_that_is_canceled_leaves_no_process_of_its_own() -> None:
    local, mark, told = LocalTransport(), nonce(), Told()
    request = CommandRequest(nonce=mark, script='trap "" TERM; while :; do sleep 0.1; done')
    task = asyncio.create_task(local.run(None, request, told.hooks))
    await eventually(lambda: told.run)
    kept = children()
    kill = asyncio.create_task(local.kill(None, mark, told.group, 60))
    await eventually(lambda: children() - kept)
    kill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kill

    assert not children() - kept
    assert (await local.kill(None, mark, told.group, 0.1)).verdict is Gone.GONE
    await task


def children() -> set[int]:
    """Processes that this one has started and not reaped."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user without a password")
async def test_an_unknown_user_runs_nothing() -> None:
    with pytest.raises(BadAnswer, match="no-such-user") as caught:
        await run("echo ran", run_as="no-such-user")
    assert not caught.value.maybe_executed


ON_UVLOOP = (
    test_both_outputs_can_be_opened_by_their_names,
    test_output_exit_code_and_group_are_told,
    test_death_by_a_signal_is_told,
    test_raw_text_is_run_as_it_is,
    test_a_detached_child_does_not_hold_the_end,
    test_a_slow_reader_makes_the_command_wait,
    test_cancelling_leaves_the_process_and_a_kill_ends_it,
)


@pytest.mark.parametrize("promise", ON_UVLOOP, ids=lambda promise: promise.__name__)
def test_uvloop_keeps_the_same_promises(promise: Callable[[], Coroutine[None, None, None]]) -> None:
    """Its transports are none of asyncio's classes."""
    uvloop = pytest.importorskip("uvloop", reason="the extra `fast` is not installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(promise())

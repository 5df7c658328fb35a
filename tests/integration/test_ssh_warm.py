"""Runs on a connection that carried one before, on a device whose channels have faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pytest_mock import MockerFixture

from iotjobs.domain.errors import DeviceUnreachable, LinkLost
from iotjobs.transports import ssh as ssh_module
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest
from iotjobs.transports.ssh import SshTarget, SshTransport
from tests.services.site import eventually
from tests.services.ssh import Told, nonce
from tests.services.zoo import Faults, faulty_server

pytestmark = pytest.mark.check(22)
INTERPRETERS = ["sh", "raw"]


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def warmed(quick_ssh: SshTransport, faults: Faults) -> AsyncIterator[SshTarget]:
    """The device after one run without a fault; what it told of that is forgotten."""
    async with faulty_server(faults) as target:
        assert await run(quick_ssh, target, faults) == CommandEnd(0)
        await eventually(lambda: not faults.held)
        faults.told.clear()
        yield target


async def run(
    transport: SshTransport, target: SshTarget, faults: Faults, interpreter: str = "sh", script: str = "true"
) -> CommandEnd:
    """A run that tells its `before_send` to the same list as the device."""
    told = Told()

    async def before_send() -> None:
        await told.before_send()
        faults.told.append("before_send")

    hooks = CommandHooks(before_send, told.started, told.output)
    request = CommandRequest(nonce=nonce(), script=script, interpreter=interpreter)
    return await transport.run(target, request, hooks)


async def test_a_script_is_announced_when_the_device_waits_for_it_and_raw_before_its_request(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget
) -> None:
    await run(quick_ssh, warmed, faults)
    assert faults.told == ["open", "exec", "before_send", "ran"]
    faults.told.clear()
    await run(quick_ssh, warmed, faults, "raw")
    assert faults.told == ["before_send", "open", "exec", "ran"]
    assert faults.connections == 1


async def test_a_script_whose_exec_is_not_answered_has_not_run_and_runs_on_a_fresh_connection(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget
) -> None:
    faults.cut = "exec"
    assert await run(quick_ssh, warmed, faults) == CommandEnd(0)
    assert faults.told == ["open", "exec", "open", "exec", "before_send", "ran"]
    assert faults.connections == 2


@pytest.mark.parametrize("cut", ["exec", "ran"])
async def test_a_raw_command_whose_request_is_not_answered_may_have_run_and_is_not_sent_again(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget, cut: str
) -> None:
    faults.cut = cut
    with pytest.raises(LinkLost) as caught:
        await run(quick_ssh, warmed, faults, "raw")
    assert caught.value.maybe_executed
    assert faults.told == ["before_send", "open", "exec", "ran"][: 4 if cut == "ran" else 3]
    assert faults.connections == 1


async def test_a_script_that_ran_and_was_cut_off_is_lost_and_not_sent_again(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget
) -> None:
    faults.cut = "ran"
    with pytest.raises(LinkLost) as caught:
        await run(quick_ssh, warmed, faults)
    assert caught.value.maybe_executed
    assert faults.told == ["open", "exec", "before_send", "ran"]
    assert faults.connections == 1


@pytest.mark.parametrize("interpreter", INTERPRETERS)
async def test_a_connection_cut_before_the_exec_costs_one_more_and_no_job(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget, interpreter: str
) -> None:
    faults.cut = "open"
    assert await run(quick_ssh, warmed, faults, interpreter) == CommandEnd(0)
    assert faults.told.count("ran") == 1
    assert faults.connections == 2
    # Told again before what is sent later.
    assert faults.told[-4:].count("before_send") == 1


@pytest.mark.parametrize("window", [0, 1000, 2 * 1024 * 1024])
@pytest.mark.parametrize("interpreter", INTERPRETERS)
async def test_refused_commands_ran_nothing_and_hold_no_channel(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget, interpreter: str, window: int
) -> None:
    faults.refuse, faults.window = True, window
    for _ in range(12):  # more than a device lets us hold
        with pytest.raises(DeviceUnreachable, match="refused to run") as caught:
            await run(quick_ssh, warmed, faults, interpreter, "#" * 5000)
        assert not caught.value.maybe_executed
    await eventually(lambda: not faults.held)
    faults.refuse, faults.window = False, 2 * 1024 * 1024
    assert await run(quick_ssh, warmed, faults, interpreter) == CommandEnd(0)
    assert faults.told.count("ran") == 1
    assert faults.connections == 1


async def test_a_script_larger_than_the_window_runs_once(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget
) -> None:
    faults.window = 1000
    assert await run(quick_ssh, warmed, faults, script="#" * 50_000) == CommandEnd(0)
    assert faults.told == ["open", "exec", "before_send", "ran"]


@pytest.mark.parametrize("interpreter", INTERPRETERS)
async def test_what_was_announced_before_a_channel_opened_late_is_announced_again(
    quick_ssh: SshTransport, faults: Faults, warmed: SshTarget, interpreter: str, mocker: MockerFixture
) -> None:
    mocker.patch.object(ssh_module, "_SEND_WITHIN_S", 0.3)
    faults.late_s = 0.5
    assert await run(quick_ssh, warmed, faults, interpreter) == CommandEnd(0)
    assert (
        faults.told
        == {
            "sh": ["open", "exec", "before_send", "ran"],
            "raw": ["before_send", "open", "before_send", "open", "exec", "ran"],
        }[interpreter]
    )
    await eventually(lambda: not faults.held)
    assert faults.connections == 1

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from iotjobs.domain.errors import BadAnswer, CredentialsRefused, DeliveryError, DeviceUnreachable, LinkLost
from iotjobs.transports import spool
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone
from iotjobs.transports.ssh import SshCredential, SshLimits, SshTarget, SshTransport
from tests.services import zoo
from tests.services.programs import steady
from tests.services.site import eventually
from tests.services.ssh import QUICK, Told, marked, nonce, resident_bytes, run, target_of
from tests.services.zoo import raw_server, ssh_server

pytestmark = pytest.mark.check(22)
MIB = 1024 * 1024


@asynccontextmanager
async def ends_within(seconds: float) -> AsyncIterator[None]:
    """In time, and without having kept what came."""
    before, started_at = resident_bytes(), time.monotonic()
    yield
    assert time.monotonic() - started_at <= seconds + 2
    assert resident_bytes() - before <= 20 * MIB


@pytest.mark.parametrize(
    "talk", [zoo.silent, zoo.slow_banner, zoo.endless_banner, zoo.endless_line, zoo.not_ssh, zoo.drops]
)
async def test_what_is_no_ssh_server_is_unreachable_or_answers_badly(
    quick_ssh: SshTransport, talk: zoo.Talk
) -> None:
    async with raw_server(talk) as target, ends_within(QUICK.connect_timeout_s):
        told = Told()
        with pytest.raises((DeviceUnreachable, BadAnswer)) as caught:
            await quick_ssh.run(target, CommandRequest(nonce=nonce(), script="true"), told.hooks)
    assert not caught.value.maybe_executed
    assert told.before == 0
    assert isinstance(caught.value, BadAnswer) == (talk in {zoo.endless_banner, zoo.endless_line})


async def test_hanging_up_after_the_login_is_unreachable(quick_ssh: SshTransport) -> None:
    async with ssh_server(hang_up=True) as target, ends_within(QUICK.connect_timeout_s):
        with pytest.raises(DeviceUnreachable) as caught:
            await run(quick_ssh, target, "true")
    assert not caught.value.maybe_executed


async def test_no_answer_after_the_exec_is_lost_in_bounded_time(quick_ssh: SshTransport) -> None:
    async with (
        ssh_server(zoo.hangs_in_exec) as target,
        ends_within(QUICK.connect_timeout_s + QUICK.answer_s),
    ):
        with pytest.raises(LinkLost) as caught:
            await run(quick_ssh, target, "true")
    assert caught.value.maybe_executed


async def test_a_command_that_hangs_ends_by_the_engines_timeout_and_the_kill_is_unconfirmed(
    quick_ssh: SshTransport,
) -> None:
    async with ssh_server(zoo.hangs_after_start) as target:
        told, mark = Told(), nonce()
        async with ends_within(0.5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await quick_ssh.run(target, CommandRequest(nonce=mark, script="true"), told.hooks)
        assert told.run == [(1, 1)]
        async with ends_within(0.2 + QUICK.answer_s):
            proof = await quick_ssh.kill(target, mark, 1, 0.2)
    assert proof.verdict is Gone.UNCONFIRMED


def with_password(target: SshTarget) -> SshTarget:
    return replace(target, credential=SshCredential(id="password", kind="password", password="right"))


@pytest.mark.parametrize("first", [False, True], ids=["after a cut", "before more is sent"])
async def test_a_kill_waits_for_a_slow_login(first: bool) -> None:
    transport = SshTransport(limits=SshLimits(first_word_s=0.4, connect_timeout_s=5, answer_s=2))
    async with ssh_server(zoo.says_gone, password="right", login_s=0.8) as target:
        kill = transport.kill_first if first else transport.kill
        proof = await kill(with_password(target), nonce(), 0, 0.2)
        await transport.close()
    assert proof.verdict is Gone.GONE


@pytest.mark.parametrize(("login_s", "handle"), [(60, zoo.says_gone), (0.8, zoo.hangs_in_exec)])
async def test_a_kill_waits_no_longer_for_a_login_than_a_run_and_then_for_one_word(
    login_s: float, handle: zoo.Handle
) -> None:
    transport = SshTransport(limits=SshLimits(first_word_s=0.4, connect_timeout_s=2, answer_s=20))
    async with ssh_server(handle, password="right", login_s=login_s) as target:
        async with asyncio.timeout(0.4 + 2 + 1):
            proof = await transport.kill(with_password(target), nonce(), 0, 0.2)
        await transport.close()
    assert proof.verdict is Gone.UNCONFIRMED


@pytest.mark.check(4)
async def test_a_kill_gives_a_host_up_that_does_not_even_greet() -> None:
    transport = SshTransport(limits=SshLimits(first_word_s=0.4))
    async with raw_server(zoo.silent) as target:
        async with asyncio.timeout(0.4 + 1):
            proof = await transport.kill(target, nonce(), 0, 0.2)
        await transport.close()
    assert proof.verdict is Gone.UNCONFIRMED


@pytest.mark.parametrize("handle", [zoo.no_status, zoo.cuts])
async def test_no_exit_status_is_lost_and_never_success(quick_ssh: SshTransport, handle: zoo.Handle) -> None:
    async with ssh_server(handle) as target, ends_within(1):
        with pytest.raises(LinkLost) as caught:
            await run(quick_ssh, target, "true")
    assert caught.value.maybe_executed


async def test_a_cut_right_behind_the_end_is_no_whole_output(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.cuts_behind_the_end) as target:
        end, told = await run(quick_ssh, target, "true")
    assert (end, bytes(told.out)) == (CommandEnd(0, whole=False), b"half")


async def test_output_that_does_not_cease_behind_the_end_is_left_off(
    quick_ssh: SshTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_AFTER_END_MOST_S", 0.5)
    async with ssh_server(zoo.writes_behind_the_end) as target, ends_within(0.5):
        end, told = await run(quick_ssh, target, "true")
    assert end == CommandEnd(0, whole=False)
    assert told.count >= len(b"more")


async def test_a_cut_before_the_whole_command_left_is_known_to_have_run_nothing(
    quick_ssh: SshTransport,
) -> None:
    options = {"window": 4096}
    async with ssh_server(zoo.cuts_before_the_end_of_the_prologue, **options) as target, ends_within(1):
        with pytest.raises(DeviceUnreachable) as caught:
            await run(quick_ssh, target, "#" * 300_000)
    assert not caught.value.maybe_executed


async def test_noise_without_end_is_a_bad_answer(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.noise) as target, ends_within(2):
        with pytest.raises(BadAnswer) as caught:
            await run(quick_ssh, target, "true")
    assert caught.value.maybe_executed


async def test_a_login_without_a_shell_ran_nothing_and_says_why(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.nologin) as target, ends_within(1):
        with pytest.raises(BadAnswer, match="currently not available") as caught:
            await run(quick_ssh, target, "true")
    assert not caught.value.maybe_executed


async def test_only_stderr(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.only_stderr) as target, ends_within(1):
        end, told = await run(quick_ssh, target, "true")
    assert (end, bytes(told.out), bytes(told.err)) == (CommandEnd(0), b"", b"err" * 1000)


async def test_binary_output(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.binary) as target, ends_within(1):
        end, told = await run(quick_ssh, target, "true")
    assert (end, bytes(told.out)) == (CommandEnd(0), bytes(range(256)) * 4)


async def test_a_signal_of_the_devices_own_is_255(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.private_signal) as target, ends_within(1):
        end, _ = await run(quick_ssh, target, "true")
    assert end == CommandEnd(255, "STRANGE@example.com")


async def test_a_wrong_password_is_refused_credentials(quick_ssh: SshTransport) -> None:
    record = zoo.Record()
    async with ssh_server(zoo.binary, password="right", record=record) as target, ends_within(2):
        for password, version in (("wrong", 1), ("right", 2)):
            login = SshCredential(id="password", version=version, kind="password", password=password)
            changed = SshTarget(
                key="p",
                host=target.host,
                port=target.port,
                username="keeper",
                credential=login,
                host_keys=target.host_keys,
            )
            if password == "wrong":
                with pytest.raises(CredentialsRefused):
                    await run(quick_ssh, changed, "true")
                assert "exec" not in record.told
            else:
                assert (await run(quick_ssh, changed, "true"))[0].exit_code == 0
            assert password not in repr(changed)


async def test_a_gigabyte_waits_for_its_reader_and_passes_in_flat_memory(
    ssh: SshTransport, openssh: SshServer
) -> None:
    mark, told, go = nonce(), Told(keep=0), asyncio.Event()
    enough = asyncio.Event()
    calls = 0

    async def output(stream: object, data: bytes) -> None:
        nonlocal calls
        calls += 1
        assert len(data) <= 128 * 1024
        await go.wait()
        told.count += len(data)
        if told.count > 100 * MIB:
            enough.set()

    hooks = CommandHooks(told.before_send, told.started, output)  # type: ignore[arg-type]
    target = target_of(openssh)
    request = CommandRequest(nonce=mark, script="head -c 1073741824 /dev/zero")
    await run(ssh, target, "true")
    async with ends_within(60):
        task = asyncio.create_task(ssh.run(target, request, hooks))
        await eventually(lambda: calls)
        written = await stalled(mark)
        assert written < 20 * MIB
        go.set()
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await ssh.kill(target, mark, told.group, 1)).verdict is Gone.GONE


async def stalled(mark: str) -> int:
    """Bytes that the run has written once it writes no more: it waits for us."""
    return await steady(lambda: _written(mark), within_s=10)


def _written(mark: str) -> int:
    lines = "".join(Path(f"/proc/{pid}/io").read_text() for pid in marked(mark))
    return sum(int(line.split()[1]) for line in lines.splitlines() if line.startswith("wchar"))


async def test_a_million_lines_come_complete(ssh: SshTransport, openssh: SshServer) -> None:
    async with ends_within(20):
        told = Told(keep=0)
        request = CommandRequest(nonce=nonce(), script="yes 123456789 | head -n 1000000")
        end = await ssh.run(target_of(openssh), request, told.hooks)
    assert (end.exit_code, told.count) == (0, 10_000_000)


async def test_a_server_that_allows_no_channel_is_unreachable(
    quick_ssh: SshTransport, ssh_folder: Path
) -> None:
    with start_openssh(ssh_folder / f"closed-{nonce()}", settings=["MaxSessions 0"]) as server:
        async with ends_within(QUICK.connect_timeout_s):
            with pytest.raises(DeviceUnreachable, match="no channel") as caught:
                await run(quick_ssh, target_of(server), "true")
    assert not caught.value.maybe_executed


async def test_a_server_that_allows_two_channels_makes_the_others_wait(
    ssh: SshTransport, ssh_folder: Path
) -> None:
    with start_openssh(ssh_folder / f"two-{nonce()}", settings=["MaxSessions 2"]) as server:
        ends = await asyncio.gather(*[run(ssh, target_of(server), "sleep 0.05") for _ in range(12)])
    assert [end.exit_code for end, _ in ends] == [0] * 12


async def test_drops_by_max_startups_are_tried_again(ssh_folder: Path) -> None:
    settings = ["MaxStartups 1:100:1", "LogLevel VERBOSE"]
    transport = SshTransport(limits=SshLimits(handshakes=16))
    with start_openssh(ssh_folder / f"busy-{nonce()}", settings=settings) as server:
        try:
            ends = await asyncio.gather(
                *[run(transport, target_of(server, key=f"busy-{number}"), "exit 5") for number in range(16)]
            )
        finally:
            await transport.close()
        log = server.log
    assert [end.exit_code for end, _ in ends] == [5] * 16
    assert "MaxStartups" in log, log


async def test_dead_devices_do_not_hold_up_the_living(quick_ssh: SshTransport, openssh: SshServer) -> None:
    async with raw_server(zoo.silent) as dead:
        dying = [
            asyncio.create_task(run(quick_ssh, zoo.zoo_target(dead.port, key=f"dead-{number}"), "true"))
            for number in range(6)
        ]
        await asyncio.sleep(0)
        async with ends_within(0):
            assert (await run(quick_ssh, target_of(openssh), "exit 3"))[0].exit_code == 3
        ends = await asyncio.gather(*dying, return_exceptions=True)
    assert all(isinstance(end, DeliveryError) for end in ends)


async def test_a_check_of_a_device_that_hangs_in_exec_ends_in_time(quick_ssh: SshTransport) -> None:
    async with (
        ssh_server(zoo.hangs_in_exec) as target,
        ends_within(QUICK.connect_timeout_s + QUICK.answer_s),
    ):
        steps = await quick_ssh.check(target)
    assert [(step.name, step.ok) for step in steps][-1] == ("exec", False)


async def test_a_check_of_a_login_without_a_shell_fails_at_exec(quick_ssh: SshTransport) -> None:
    async with ssh_server(zoo.nologin) as target:
        steps = await quick_ssh.check(target)
    assert [(step.name, step.ok) for step in steps][-2:] == [("auth", True), ("exec", False)]

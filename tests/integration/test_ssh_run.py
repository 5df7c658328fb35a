from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import asyncssh
import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from iotjobs.domain.errors import BadAnswer, DeviceUnreachable, LinkLost
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone
from iotjobs.transports.ssh import SshLimits, SshTarget, SshTransport
from tests.services.site import eventually
from tests.services.ssh import (
    Device,
    Told,
    arguments_of_all,
    look,
    marked,
    nonce,
    resident_bytes,
    run,
    target_of,
)

HOSTILE = "".join(map(chr, range(1, 256))) + 'ā\U0001f600 it\'s $(id) `id` \\n "$HOME" * \n\n'
STUBBORN = 'trap "" TERM; (trap "" TERM; setsid sleep 777 & sleep 777 & wait) & sleep 777 & wait'


async def test_stdout_and_stderr_and_exit_code_come_exactly(ssh: SshTransport, device: Device) -> None:
    end, told = await run(ssh, device.target, "printf out; printf err >&2; exit 37")
    assert (end, bytes(told.out), bytes(told.err)) == (CommandEnd(37), b"out", b"err")


async def test_a_run_tells_its_process_and_leads_a_group(ssh: SshTransport, device: Device) -> None:
    _, told = await run(ssh, device.target, "echo $$")
    [(pid, group)] = told.run
    assert pid == int(told.out)
    assert group == (0 if device.name == "bare_busybox" else pid)


async def test_one_mebibyte_of_any_bytes_comes_exactly(ssh: SshTransport, device: Device) -> None:
    script = "head -c 1048576 /dev/urandom >/tmp/iotjobs-$IOTJOBS_RUN; cd /tmp; cat iotjobs-$IOTJOBS_RUN; "
    end, told = await run(
        ssh, device.target, script + "sha256sum <iotjobs-$IOTJOBS_RUN >&2; rm iotjobs-$IOTJOBS_RUN"
    )
    assert end.exit_code == 0
    assert len(told.out) == 1024 * 1024
    assert told.err.split()[0].decode() == hashlib.sha256(told.out).hexdigest()


async def test_twenty_mebibytes_pass_with_flat_memory(ssh: SshTransport, device: Device) -> None:
    told = Told(keep=0)
    before, most = resident_bytes(), 0

    async def output(stream: object, data: bytes) -> None:
        nonlocal most
        told.count += len(data)
        most = max(most, resident_bytes())

    hooks = CommandHooks(told.before_send, told.started, output)
    script = "head -c 20971520 /dev/zero"
    end = await ssh.run(device.target, CommandRequest(nonce=nonce(), script=script), hooks)
    assert (end.exit_code, told.count) == (0, 20 * 1024 * 1024)
    assert most - before < 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [("true", b"", b""), ("echo x >&2", b"", b"x\n"), (r"printf '\000\001\377'", b"\0\1\xff", b"")],
    ids=["nothing", "only stderr", "binary"],
)
async def test_little_output_comes_exactly(
    ssh: SshTransport, device: Device, script: str, out: bytes, err: bytes
) -> None:
    end, told = await run(ssh, device.target, script)
    assert (end.exit_code, bytes(told.out), bytes(told.err)) == (0, out, err)


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 255])
async def test_exit_codes_come_as_they_are(ssh: SshTransport, device: Device, code: int) -> None:
    end, _ = await run(ssh, device.target, f"exit {code}")
    assert end == CommandEnd(code)


@pytest.mark.parametrize(("signal", "number"), [("KILL", 9), ("TERM", 15)])
async def test_death_by_a_signal_is_told(ssh: SshTransport, device: Device, signal: str, number: int) -> None:
    end, _ = await run(ssh, device.target, f"kill -{signal} $$")
    assert end == CommandEnd(128 + number, signal)


async def test_a_missing_program_is_127(ssh: SshTransport, device: Device) -> None:
    told = Told()
    end = await ssh.run(device.target, CommandRequest(nonce=nonce(), argv=("no-such-program",)), told.hooks)
    assert end.exit_code == 127
    assert b"no-such-program" in told.err


async def test_hostile_words_and_environment_arrive_byte_for_byte(ssh: SshTransport, device: Device) -> None:
    words = (HOSTILE, "", "\n", "-n", "a\n", "\x1e\x1f\x1c\x1d\n", " ")
    told = Told()
    request = CommandRequest(
        nonce=nonce(),
        argv=("sh", "-c", 'printf "%s:" "$@"; printf "%s" "$HOSTILE"', "sh", *words),
        env={"HOSTILE": HOSTILE, "PLAIN": "a 'b' \"c\""},
    )
    end = await ssh.run(device.target, request, told.hooks)
    assert end.exit_code == 0, told.err
    assert told.out == "".join(f"{word}:" for word in words).encode() + HOSTILE.encode()


async def test_the_whole_environment_is_what_was_asked(ssh: SshTransport, device: Device) -> None:
    end, told = await run(ssh, device.target, "env", env={"A": "1", "B": "2\n3"})
    names = {line.split("=")[0] for line in told.out.decode().split("\n")}
    assert end.exit_code == 0
    assert {"A", "B", "IOTJOBS_RUN"} <= names
    assert not {"IOTJOBS_W", "IOTJOBS_LED"} & names
    assert not [name for name in names if name.startswith("_ij")]


async def test_a_script_that_reads_stdin_gets_nothing_and_eats_nothing(
    ssh: SshTransport, device: Device
) -> None:
    end, told = await run(ssh, device.target, "cat\necho after\ncat\necho end")
    assert (end.exit_code, bytes(told.out)) == (0, b"after\nend\n")


@pytest.mark.parametrize(
    ("script", "code", "out"),
    [
        ('echo "$#" "$1" "$2"', 0, b"2 a b *\n"),
        ("set -e; false; echo no", 1, b""),
        ('set -u; trap "echo bye" EXIT; echo $unset_one; echo no', 2, b"bye\n"),
        ('trap "echo bye" EXIT; exit 5', 5, b"bye\n"),
        ("exec sh -c 'echo new; exit 6'", 6, b"new\n"),
        ("f() { return 7; }; f", 7, b""),
        ("cat <<X\n$1\nX", 0, b"a\n"),
        ("#!/bin/sh\n# comment\n\necho x", 0, b"x\n"),
        ("", 0, b""),
    ],
)
async def test_sh_scripts_behave_as_from_a_file(
    ssh: SshTransport, device: Device, script: str, code: int, out: bytes
) -> None:
    end, told = await run(ssh, device.target, script, args=("a", "b *"))
    assert (end.exit_code, bytes(told.out)) == (code, out), told.err


SCRIPTS = {
    "sh": "echo $1; cat; exit 3",
    "bash": "echo ${1:0:9}; cat; exit 3",
    "python3": "import sys\nprint(sys.argv[1])\nassert sys.stdin.read() == ''\nsys.exit(3)",
    "perl": 'print "$ARGV[0]\\n"; print <STDIN>; exit 3',
    "node": "console.log(process.argv[2]); process.exit(3)",
}


@pytest.mark.parametrize("padding", [0, 250_000], ids=["short", "long"])
@pytest.mark.parametrize("interpreter", SCRIPTS)
async def test_interpreters_run_text_that_is_in_no_file(
    ssh: SshTransport, full_device: Device, interpreter: str, padding: int
) -> None:
    comment = "//" if interpreter == "node" else "#"
    text = (f"{comment} {'x' * 60}\n" * (padding // 63)) + SCRIPTS[interpreter]
    end, told = await run(ssh, full_device.target, text, interpreter=interpreter, args=("a b",))
    assert (end.exit_code, bytes(told.out)) == (3, b"a b\n"), told.err


async def test_a_missing_interpreter_is_127(ssh: SshTransport, busybox: SshServer) -> None:
    end, told = await run(ssh, target_of(busybox), "print(1)", interpreter="python3")
    assert end.exit_code == 127
    assert b"python3" in told.err


async def test_a_big_environment_arrives(ssh: SshTransport, device: Device) -> None:
    env = {f"BIG_{number}": "x" * 100_000 for number in range(8)}
    end, told = await run(ssh, device.target, 'echo "${#BIG_0} ${#BIG_7}"', env=env)
    assert (end.exit_code, bytes(told.out)) == (0, b"100000 100000\n")


@pytest.mark.parametrize("interpreter", ["sh", "bash", "python3", "perl"])
async def test_nothing_secret_is_in_any_argument_or_file(
    ssh: SshTransport, full_device: Device, interpreter: str, tmp_path: Path
) -> None:
    secret, told, go = nonce(), Told(), tmp_path / "go"
    texts = {
        "sh": f"x={secret}\nwhile ! [ -e {go} ]; do sleep 0.05; done",
        "bash": f"x={secret}\nwhile ! [ -e {go} ]; do sleep 0.05; done",
        "python3": f"import os, time\nx = '{secret}'\nwhile not os.path.exists('{go}'): time.sleep(0.05)",
        "perl": f"$x = '{secret}'; select(undef, undef, undef, 0.05) while !-e '{go}';",
    }
    request = CommandRequest(
        nonce=nonce(), script=texts[interpreter], interpreter=interpreter, env={"PASSWORD": secret}
    )
    task = asyncio.create_task(ssh.run(full_device.target, request, told.hooks))
    try:
        await asyncio.wait_for(told.began.wait(), 10)
        seen = arguments_of_all()
        assert secret.encode() not in seen
        assert b"iotjobs" in seen or interpreter != "sh"
    finally:
        go.touch()
    assert (await task).exit_code == 0


@pytest.mark.parametrize("cut", [0, 1, 10, -1, -2])
async def test_a_prologue_cut_short_runs_nothing(device: Device, cut: int) -> None:
    mark = nonce()
    lines = shell.prologue(CommandRequest(nonce=mark, argv=("sh", "-c", "echo ran"), env={"A": "b\nc"}))
    lines = lines[:cut] if cut else b""
    target = device.target
    async with asyncssh.connect(
        target.host,
        target.port,
        username=target.username,
        client_keys=[asyncssh.import_private_key(target.credential.private_key or "")],
        known_hosts=([asyncssh.import_public_key(target.host_keys[0])], [], []),
        server_host_key_algs=["ssh-ed25519"],
        config=None,
    ) as connection:
        process = await connection.create_process(shell.run_command(mark), encoding=None)
        process.stdin.write(lines)
        process.stdin.write_eof()
        done = await process.wait()
    noise = (b"welcome\n", b"careful\n") if device.name == "openssh_noisy" else (b"", b"")
    assert (done.exit_status, done.stdout, done.stderr) == (125, *noise)


async def test_a_directory_is_entered(ssh: SshTransport, device: Device) -> None:
    end, told = await run(ssh, device.target, "pwd", cwd="/proc")
    assert (end.exit_code, bytes(told.out)) == (0, b"/proc\n")


@pytest.mark.parametrize("cwd", ["/no such 'place", "-P", "$(touch /tmp/iotjobs-injected)"])
async def test_a_missing_directory_fails_for_certain(ssh: SshTransport, device: Device, cwd: str) -> None:
    end, told = await run(ssh, device.target, "echo ran", cwd=cwd)
    assert (end.exit_code, bytes(told.out)) == (126, b"")
    assert b"cd" in told.err
    assert "iotjobs-injected" not in os.listdir("/tmp")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user without a password")
async def test_run_as_another_user_keeps_marker_group_and_environment(
    ssh: SshTransport, full_device: Device
) -> None:
    mark, told = nonce(), Told()
    text = 'id -un; echo "$A $IOTJOBS_RUN $1"; cat; exec sleep 777'
    request = CommandRequest(
        nonce=mark, script=text, args=("it's",), env={"A": "b\nc"}, run_as="nobody", cwd="/"
    )
    task = asyncio.create_task(ssh.run(full_device.target, request, told.hooks))
    await eventually(lambda: told.out.count(b"\n") == 3)
    assert told.out.decode() == f"nobody\nb\nc {mark} it's\n"
    pid, group = told.run[0]
    assert group == pid == os.getpgid(pid)
    assert os.stat(f"/proc/{pid}").st_uid == 65534
    assert (await ssh.kill(full_device.target, mark, group, 1)).verdict is Gone.GONE
    assert (await task).exit_code in {143, 137}
    assert not marked(mark)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user without a password")
async def test_an_unknown_user_runs_nothing(ssh: SshTransport, full_device: Device) -> None:
    with pytest.raises(BadAnswer, match="no-such-user") as caught:
        await run(ssh, full_device.target, "echo ran", run_as="no-such-user")
    assert not caught.value.maybe_executed


async def test_an_ordinary_login_runs_as_another_user_through_sudo(
    ssh: SshTransport, openssh_sudoer: SshServer
) -> None:
    target, mark, told = target_of(openssh_sudoer), nonce(), Told()
    text = 'id -un; echo "$A $IOTJOBS_RUN $1"; cat; setsid sleep 777 & sleep 777'
    request = CommandRequest(
        nonce=mark, script=text, args=("it's",), env={"A": "the-secret\nc"}, run_as="nobody", cwd="/"
    )
    assert bytes((await run(ssh, target, "id -un"))[1].out) == b"keeper\n"

    task = asyncio.create_task(ssh.run(target, request, told.hooks))
    await eventually(lambda: told.out.count(b"\n") == 3 and len(marked(mark)) >= 3)

    assert told.out.decode() == f"nobody\nthe-secret\nc {mark} it's\n"
    pid, group = told.run[0]
    assert group == os.getpgid(pid)
    assert os.stat(f"/proc/{pid}").st_uid == 65534
    assert b"the-secret" not in arguments_of_all()
    # Other users' environments are closed to the login: it looks and kills as that user.
    assert (await look(ssh, target, mark, group)).verdict is Gone.LEFT
    assert (await ssh.kill(target, mark, group, 1)).verdict is Gone.GONE
    assert (await task).exit_code in {143, 137}
    assert not marked(mark)


async def test_what_sudo_refuses_runs_nothing_and_is_told(
    ssh: SshTransport, openssh_sudoer: SshServer
) -> None:
    with pytest.raises(BadAnswer, match="no-such-user") as caught:
        await run(ssh, target_of(openssh_sudoer), "echo ran", run_as="no-such-user")
    assert not caught.value.maybe_executed


async def test_raw_text_is_the_exec_request_itself(ssh: SshTransport, device: Device) -> None:
    end, told = await run(ssh, device.target, "echo raw; exit 4", interpreter="raw")
    assert end.exit_code == 4
    assert told.out.endswith(b"raw\n")
    assert (told.before, told.run) == (1, [])


@pytest.mark.check(4)
async def test_a_timeout_leaves_no_process(ssh: SshTransport, device: Device) -> None:
    mark, told = nonce(), Told()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await ssh.run(device.target, CommandRequest(nonce=mark, script="sleep 777"), told.hooks)
    assert marked(mark)
    proof = await ssh.kill(device.target, mark, told.group, 1)
    assert proof.verdict is Gone.GONE
    assert not marked(mark)


async def test_a_stubborn_tree_is_proven_gone(ssh: SshTransport, device: Device) -> None:
    mark, told = nonce(), Told()
    script = STUBBORN if device.name != "bare_busybox" else STUBBORN.replace("setsid ", "")
    task = asyncio.create_task(ssh.run(device.target, CommandRequest(nonce=mark, script=script), told.hooks))
    await eventually(lambda: told.run and len(marked(mark)) >= 4)
    left = await look(ssh, device.target, mark, told.group)
    assert left.verdict is Gone.LEFT
    assert str(told.run[0][0]) in left.detail
    assert (await ssh.kill(device.target, mark, told.group, 0.5)).verdict is Gone.GONE
    assert not marked(mark)
    assert (await look(ssh, device.target, mark, told.group)).verdict is Gone.GONE
    assert (await task).signal == "KILL"


async def test_a_group_that_is_somebody_elses_is_left_alone(ssh: SshTransport, openssh: SshServer) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "777", start_new_session=True)
    try:
        proof = await ssh.kill(target_of(openssh), nonce(), stranger.pid, 0.2)
        assert proof.verdict is Gone.LEFT
        assert stranger.returncode is None
        os.kill(stranger.pid, 0)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_detached_child_that_keeps_the_output_does_not_hold_the_end(
    ssh: SshTransport, device: Device
) -> None:
    mark, told = nonce(), Told()
    request = CommandRequest(nonce=mark, script="echo said; sleep 777 & exit 9")
    async with asyncio.timeout(5):
        end = await ssh.run(device.target, request, told.hooks)
    assert (end.exit_code, bytes(told.out)) == (9, b"said\n")
    await ssh.kill(device.target, mark, told.group, 0.2)
    # Its leader is gone, and the marker tells whose it is.
    assert not marked(mark)


async def test_output_closed_early_does_not_end_the_run(ssh: SshTransport, device: Device) -> None:
    end, told = await run(ssh, device.target, "echo x; exec >&- 2>&-; sleep 1; exit 8")
    assert (end.exit_code, bytes(told.out)) == (8, b"x\n")


async def test_cancelling_a_run_frees_its_channel(ssh: SshTransport, openssh: SshServer) -> None:
    target = target_of(openssh)
    for _ in range(12):
        mark, told = nonce(), Told()
        task = asyncio.create_task(
            ssh.run(target, CommandRequest(nonce=mark, script="sleep 777"), told.hooks)
        )
        await asyncio.wait_for(told.began.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await ssh.kill(target, mark, told.group, 1)).verdict is Gone.GONE
    assert ssh._pool.open_connections == 1


async def test_forty_runs_share_one_connection_eight_at_a_time(ssh: SshTransport, device: Device) -> None:
    ends = await asyncio.gather(*[run(ssh, device.target, f"echo {number}") for number in range(40)])
    assert [told.out.decode() for _, told in ends] == [f"{number}\n" for number in range(40)]
    assert ssh._pool.open_connections == 1


async def test_a_kill_finds_room_beside_eight_runs(ssh: SshTransport, openssh: SshServer) -> None:
    target = target_of(openssh)
    marks = [nonce() for _ in range(8)]
    tolds = [Told() for _ in marks]
    tasks = [
        asyncio.create_task(ssh.run(target, CommandRequest(nonce=mark, script="sleep 777"), told.hooks))
        for mark, told in zip(marks, tolds, strict=True)
    ]
    await asyncio.gather(*[asyncio.wait_for(told.began.wait(), 10) for told in tolds])
    proofs = [await ssh.kill(target, mark, told.group, 1) for mark, told in zip(marks, tolds, strict=True)]
    assert {proof.verdict for proof in proofs} == {Gone.GONE}
    assert {(await task).signal for task in tasks} == {"TERM"}


async def test_a_dead_pooled_connection_costs_one_more_and_no_job(
    ssh: SshTransport, ssh_folder: Path
) -> None:
    folder = ssh_folder / f"restarted-{nonce()}"
    server = start_openssh(folder)
    target = target_of(server)
    assert (await run(ssh, target, "true"))[0].exit_code == 0
    server.stop()
    server = start_openssh(folder, port=server.port)
    try:
        end, told = await run(ssh, target, "echo again")
        assert (end.exit_code, told.before) == (0, 1)
    finally:
        server.stop()
    with pytest.raises(DeviceUnreachable) as caught:
        await run(ssh, target, "echo never")
    assert not caught.value.maybe_executed


@pytest.mark.check(3)
async def test_a_frozen_server_ends_in_link_lost_and_never_in_success(
    quick_ssh: SshTransport, ssh_folder: Path
) -> None:
    with start_openssh(ssh_folder / f"frozen-{nonce()}") as server:
        mark, told = nonce(), Told()
        request = CommandRequest(nonce=mark, script="sleep 777")
        task = asyncio.create_task(quick_ssh.run(target_of(server), request, told.hooks))
        await asyncio.wait_for(told.began.wait(), 10)
        server.freeze()
        try:
            async with asyncio.timeout(1 * 2 + 2):
                with pytest.raises(LinkLost) as caught:
                    await task
            assert caught.value.maybe_executed
            proof = await quick_ssh.kill(target_of(server), mark, told.group, 0.2)
            assert proof.verdict is Gone.UNCONFIRMED
        finally:
            server.thaw()
        assert (await quick_ssh.kill(target_of(server), mark, told.group, 0.2)).verdict is Gone.GONE


async def test_a_jump_host_is_used_and_shared(
    ssh: SshTransport, openssh: SshServer, dropbear: SshServer
) -> None:
    jump = target_of(openssh)
    inner = target_of(dropbear, jump=jump)
    assert (await run(ssh, inner, "exit 3"))[0].exit_code == 3
    assert (await run(ssh, jump, "exit 4"))[0].exit_code == 4
    assert ssh._pool.open_connections == 2
    shown = await ssh.scan_host_key(inner.host, inner.port, jump)
    assert [key.line for key in shown] == list(inner.host_keys)


async def test_another_address_under_the_same_key_is_another_connection(
    ssh: SshTransport, openssh: SshServer, dropbear: SshServer
) -> None:
    for server in (openssh, dropbear, openssh):
        target: SshTarget = target_of(server, key="one")
        assert (await run(ssh, target, "true"))[0].exit_code == 0
    assert ssh._pool.open_connections == 1
    ssh.forget("one")
    assert ssh._pool.open_connections == 0


async def test_a_check_names_each_step(ssh: SshTransport, device: Device) -> None:
    steps = await ssh.check(device.target)
    assert [(step.name, step.ok) for step in steps] == [
        (name, True) for name in ("dns", "tcp", "host key", "auth", "exec")
    ]
    assert steps[2].detail.startswith("SHA256:")


async def test_an_idle_connection_is_closed(openssh: SshServer) -> None:
    transport = SshTransport(limits=SshLimits(idle_s=0.1))
    try:
        await run(transport, target_of(openssh), "true")
        assert transport._pool.open_connections == 1
        await eventually(lambda: transport._pool.open_connections == 0)
    finally:
        await transport.close()

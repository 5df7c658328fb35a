"""Real SSH devices for tests, and what a run told."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import CannotStartError, SshServer, start_busybox, start_dropbear, start_openssh

from iotjobs.domain.jobs import Job
from iotjobs.engine.sending import Begun
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, KillProof, Stream
from iotjobs.transports.ssh import SshCredential, SshLimits, SshTarget, SshTransport
from tests.services.programs import missing
from tests.services.rows import Engine, job_of, plan, running_job
from tests.services.site import eventually

QUICK = SshLimits(connect_timeout_s=2.0, answer_s=2.0, keepalive_s=1.0, keepalive_count=2)


@dataclass
class Told:
    """Collects what a run tells; the hooks of one run.

    Attributes:
        keep: bytes of a stream that are kept; the rest is only counted.
    """

    keep: int = 64 * 1024 * 1024
    before: int = 0
    run: list[tuple[int, int]] = field(default_factory=list)
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    count: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def group(self) -> int:
        return self.run[0][1]

    @property
    def hooks(self) -> CommandHooks:
        return CommandHooks(self.before_send, self.started, self.output)

    async def before_send(self) -> None:
        assert not self.run
        self.before += 1

    async def started(self, pid: int, group: int) -> None:
        assert self.before == 1
        self.run.append((pid, group))
        self.began.set()

    async def output(self, stream: Stream, data: bytes) -> None:
        assert data
        self.count += len(data)
        kept = self.out if stream is Stream.STDOUT else self.err
        if len(kept) < self.keep:
            kept += data


@dataclass(frozen=True)
class Device:
    """A running server and its target."""

    name: str
    server: SshServer
    target: SshTarget


def target_of(server: SshServer, key: str = "", **changes: object) -> SshTarget:
    """The target of a server, trusted and with its login; `key` names the object."""
    values: dict[str, object] = {
        "key": key or f"device-{server.port}",
        "host": server.host,
        "port": server.port,
        "username": server.username,
        "credential": SshCredential(id=f"login-{server.port}", private_key=server.client_key),
        "host_keys": server.host_keys,
    }
    return SshTarget(**{**values, **changes})  # type: ignore[arg-type]


def nonce() -> str:
    return secrets.token_hex(16)


async def run(
    transport: SshTransport, target: SshTarget, script: str, **fields: object
) -> tuple[CommandEnd, Told]:
    """Run a script to its end."""
    told = Told()
    request = CommandRequest(**{"nonce": nonce(), "script": script, **fields})  # type: ignore[arg-type]
    return await transport.run(target, request, told.hooks), told


async def look(transport: SshTransport, target: SshTarget, mark: str, group: int) -> KillProof:
    """What is left of a run on its device, without a signal."""
    return await transport._prove(target, shell.kill_command(mark, group, None), 10.0)


def marked(mark: str) -> list[int]:
    """Live processes of this machine with this run's marker; every device is on it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
            state = (process / "stat").read_text().rpartition(") ")[2][:1]
        except OSError:
            continue
        if f"IOTJOBS_RUN={mark}".encode() in environ and state not in "ZX":
            found.append(int(process.name))
    return found


async def orphan_of(
    engine: Engine, folder: Path, where: Mapping[str, Any] | None = None, **members: Any
) -> Job:
    """A job under way whose worker, `w1`, has died; the row.

    `where` it runs are columns of the job (without them on this host), `members` are of its plan.
    """
    made = plan(script=f"echo $$ >{folder}/pid; exec sleep 77", kill_after_s=0.2, **members)
    job = await running_job(engine.store, of=made, **(where or {}))
    task = asyncio.create_task(
        engine.executor.run(Begun(replace(job, worker_id=engine.worker.worker_id), made))
    )
    await eventually((folder / "pid").exists)
    task.cancel()
    await asyncio.wait({task})
    assert marked(job.nonce or "")
    return await job_of(engine.store, job.id)


@pytest.fixture
async def reaped() -> AsyncIterator[None]:
    """Before the loop is closed it has heard of the end of each process: these are killed from elsewhere."""
    yield
    await eventually(lambda: not any("waitpid" in thread.name for thread in threading.enumerate()))
    for _ in range(10):
        await asyncio.sleep(0)  # what those told the loop, and what follows of it


def processes_of(job_id: str) -> list[Path]:
    """Live processes of this machine, which every device is on, that belong to a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"IOTJOBS_JOB_ID={job_id}".encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def arguments_of_all() -> bytes:
    """What `ps` would show of every process of this machine."""
    seen = b""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            seen += (process / "cmdline").read_bytes()
    return seen


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _started(start: Callable[[], SshServer]) -> SshServer:
    try:
        return start()
    except CannotStartError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def ssh_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="session")
def openssh(ssh_folder: Path) -> Iterator[SshServer]:
    """OpenSSH; the login shell is dash as root, else the user's."""
    with _started(lambda: start_openssh(ssh_folder / "openssh")) as server:
        yield server


@pytest.fixture(scope="session")
def openssh_noisy(ssh_folder: Path) -> Iterator[SshServer]:
    """OpenSSH with bash as login shell, whose start-up files talk on both outputs."""
    folder = ssh_folder / "noisy"
    (folder / "home").mkdir(parents=True)
    (folder / "home/.bashrc").write_text("echo welcome; echo careful >&2\n")
    with _started(lambda: start_openssh(folder, shell="/bin/bash")) as server:
        yield server


@pytest.fixture(scope="session")
def openssh_sudoer(ssh_folder: Path) -> Iterator[SshServer]:
    """OpenSSH where an ordinary user logs in, who may sudo without a password."""
    with _started(lambda: start_openssh(ssh_folder / "sudoer", sudoer="keeper")) as server:
        yield server


@pytest.fixture(scope="session")
def dropbear(ssh_folder: Path) -> Iterator[SshServer]:
    with _started(lambda: start_dropbear(ssh_folder / "dropbear")) as server:
        yield server


@pytest.fixture(scope="session")
def busybox(ssh_folder: Path) -> Iterator[SshServer]:
    """Dropbear and BusyBox ash, and nothing else."""
    with _started(lambda: start_busybox(ssh_folder / "busybox")) as server:
        yield server


@pytest.fixture(scope="session")
def bare_busybox(ssh_folder: Path) -> Iterator[SshServer]:
    """The same without setsid: a run cannot have a group of its own there."""
    with _started(lambda: start_busybox(ssh_folder / "bare", without=("setsid",))) as server:
        yield server


@pytest.fixture(params=["openssh", "openssh_noisy", "dropbear", "busybox", "bare_busybox"])
def device(request: pytest.FixtureRequest) -> Device:
    """Each kind of device in turn."""
    server = request.getfixturevalue(request.param)
    return Device(request.param, server, target_of(server))


@pytest.fixture(params=["openssh", "openssh_noisy", "dropbear"])
def full_device(request: pytest.FixtureRequest) -> Device:
    """Each kind of device that has the programs of this machine."""
    server = request.getfixturevalue(request.param)
    return Device(request.param, server, target_of(server))


@pytest.fixture
async def ssh() -> AsyncIterator[SshTransport]:
    """A transport with the default limits."""
    transport = SshTransport()
    yield transport
    await transport.close()


@pytest.fixture
async def quick_ssh() -> AsyncIterator[SshTransport]:
    """A transport that gives up soon."""
    transport = SshTransport(limits=QUICK)
    yield transport
    await transport.close()

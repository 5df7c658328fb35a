"""SSH servers that misbehave, one way each; raw sockets and asyncssh servers on loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncssh
from asyncssh.packet import UInt32

from iotjobs.transports.ssh import SshCredential, SshTarget

CLIENT_KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def public_line(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])


def zoo_target(port: int, **changes: object) -> SshTarget:
    """A target at a port of this host that trusts the zoo's host key."""
    values: dict[str, object] = {
        "key": f"zoo-{port}",
        "host": "127.0.0.1",
        "port": port,
        "username": "keeper",
        "credential": SshCredential(id="zoo", private_key=CLIENT_KEY.export_private_key().decode()),
        "host_keys": (public_line(HOST_KEY),),
    }
    return SshTarget(**{**values, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[SshTarget]:
    """A TCP server that is no SSH server."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield zoo_target(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the connection and says nothing."""
    await reader.read()


async def slow_banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One byte of a greeting in 200 ms."""
    for byte in b"SSH-2.0-" + b"slow" * 100:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


async def endless_banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lines before the greeting, for ever."""
    while True:
        writer.write(b"welcome to the endless banner\r\n" * 100)
        await writer.drain()


async def endless_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One line before the greeting, for ever."""
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def not_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web server."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes at once, as sshd does over MaxStartups."""


@dataclass
class Record:
    """Everything a recording server was told after the key exchange."""

    connections: int = 0
    told: list[str] = field(default_factory=list)


class Keeper(asyncssh.SSHServer):
    """Lets everybody in and writes down what it was told."""

    def __init__(
        self, record: Record, *, password: str | None = None, login_s: float = 0, hang_up: bool = False
    ) -> None:
        self._record = record
        self._password = password
        self._login_s = login_s
        self._hang_up = hang_up
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._record.connections += 1
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        self._record.told.append(f"login {username}")
        return self._password is not None

    def password_auth_supported(self) -> bool:
        return self._password is not None

    async def validate_password(self, username: str, password: str) -> bool:
        self._record.told.append("password")
        await asyncio.sleep(self._login_s)
        return password == self._password

    def auth_completed(self) -> None:
        if self._hang_up and self._connection is not None:
            self._connection.close()


Handle = Callable[[asyncssh.SSHServerProcess[bytes]], Awaitable[None]]


@asynccontextmanager
async def ssh_server(
    handle: Handle | None = None,
    *,
    record: Record | None = None,
    host_key: object = HOST_KEY,
    password: str | None = None,
    login_s: float = 0,
    hang_up: bool = False,
    **options: object,
) -> AsyncIterator[SshTarget]:
    """An asyncssh server that hands every command to `handle`."""
    record = record if record is not None else Record()
    tasks: set[asyncio.Task[None]] = set()
    connections: list[asyncssh.SSHServerConnection] = []

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        record.told.append("exec")
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        if handle is not None:
            with suppress(OSError, asyncssh.Error, asyncio.CancelledError):
                await handle(process)

    class Recorded(Keeper):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            super().connection_made(conn)
            connections.append(conn)

    server = await asyncssh.create_server(
        lambda: Recorded(record, password=password, login_s=login_s, hang_up=hang_up),
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        process_factory=serve,
        encoding=None,
        **options,
    )
    try:
        yield zoo_target(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for connection in connections:
            connection.abort()
        await server.wait_closed()


async def header(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Behave as the device's shell does until the command would start."""
    found = re.match(r"IOTJOBS_RUN=(\w+)", process.command or "")
    assert found is not None
    while (line := await process.stdin.readline()) and line != b".\n":
        pass
    process.stdout.write(f"iotjobs {found[1]} 1 1\n".encode())
    process.stderr.write(f"iotjobs {found[1]} 1 1\n".encode())


async def says_gone(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Answers a kill."""
    process.stdout.write(b"asked\ngone TERM 0\n")
    process.exit(0)


async def hangs_in_exec(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Takes the command and never tells anything."""
    await asyncio.Event().wait()


async def hangs_after_start(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Starts the command and never ends."""
    await header(process)
    await asyncio.Event().wait()


async def no_status(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Closes the channel without an exit status."""
    await header(process)
    process.stdout.write(b"out")
    process.close()


async def cuts(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Cuts the connection while the command runs."""
    await header(process)
    await process.stdout.drain()
    process.channel.get_connection().abort()


async def cuts_before_the_end_of_the_prologue(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Reads a little of the command and cuts the connection."""
    await process.stdin.read(1)
    process.channel.get_connection().abort()


def tell_end(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Tell that the command ended with 0, and not that there is no more output, as `exit` would."""
    process.channel._send_request(b"exit-status", UInt32(0))


async def cuts_behind_the_end(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Tells the end of the command, and cuts the connection before all of its output has left."""
    await header(process)
    process.stdout.write(b"half")
    tell_end(process)
    await process.stdout.drain()
    await asyncio.sleep(0.2)
    process.channel.get_connection().abort()


async def writes_behind_the_end(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Tells the end of the command, and goes on to send its output."""
    await header(process)
    tell_end(process)
    while True:
        process.stdout.write(b"more")
        await asyncio.sleep(0.05)


async def noise(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Start-up noise without an end instead of the header."""
    while True:
        process.stdout.write(b"noise " * 1000)
        await process.stdout.drain()


async def nologin(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """A login that may not run anything."""
    process.stdout.write(b"This account is currently not available.\n")
    process.exit(1)


async def only_stderr(process: asyncssh.SSHServerProcess[bytes]) -> None:
    await header(process)
    process.stderr.write(b"err" * 1000)
    process.exit(0)


async def binary(process: asyncssh.SSHServerProcess[bytes]) -> None:
    await header(process)
    process.stdout.write(bytes(range(256)) * 4)
    process.exit(0)


async def private_signal(process: asyncssh.SSHServerProcess[bytes]) -> None:
    await header(process)
    process.exit_with_signal("STRANGE@example.com")


@dataclass
class Faults:
    """What a device with faults does next, and what happened on it, in order.

    Attributes:
        window: bytes that a channel takes from its opening on; OpenSSH's is 0 until it answers the exec.
        refuse: exec requests.
        late_s: the next channel opens this much later.
        cut: the next connection that gets so far: as a channel is asked for (`open`), with the exec
            request before (`exec`) or after it ran (`ran`), in each case without an answer.
        told: `open`, `exec`, `ran`, and what a test adds.
        held: channels open now.
    """

    window: int = 2 * 1024 * 1024
    refuse: bool = False
    late_s: float = 0.0
    cut: str = ""
    told: list[str] = field(default_factory=list)
    held: int = 0
    connections: int = 0

    def hits(self, step: str) -> bool:
        """Whether the cut comes here; there is only one."""
        found = self.cut == step
        self.cut = "" if found else self.cut
        return found


class FaultyChannel(asyncssh.SSHServerSession[bytes]):
    """Reads a command as a device's shell does; a raw one runs with its exec request."""

    def __init__(self, faults: Faults, connection: asyncssh.SSHServerConnection) -> None:
        self._faults, self._connection = faults, connection
        self._mark, self._read = "", b""
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan
        self._faults.held += 1
        self._faults.told.append("open")

    def connection_lost(self, exc: Exception | None) -> None:
        self._faults.held -= 1

    def exec_requested(self, command: str) -> bool:
        faults = self._faults
        faults.told.append("exec")
        if faults.hits("exec"):
            self._connection.abort()
        elif not faults.refuse:
            found = re.match(r"IOTJOBS_RUN=(\w+)", command)
            self._mark = found[1] if found is not None else ""
            if not self._mark:
                self._ran()
            return True
        return False

    def session_started(self) -> None:
        if not self._mark and self._channel is not None:
            self._channel.exit(0)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._read += data
        if self._read.endswith(b"\n.\n") and self._channel is not None:
            line = f"iotjobs {self._mark} 1 1\n".encode()
            self._ran()
            self._channel.write(line)
            self._channel.write_stderr(line)
            self._channel.exit(0)

    def _ran(self) -> None:
        self._faults.told.append("ran")
        if self._faults.hits("ran"):
            self._connection.abort()


@asynccontextmanager
async def faulty_server(faults: Faults) -> AsyncIterator[SshTarget]:
    """A device whose channels have faults; its logins and connections have none."""
    connections: list[asyncssh.SSHServerConnection] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn
            connections.append(conn)
            faults.connections += 1

        def begin_auth(self, username: str) -> bool:
            return False

        def session_requested(self) -> object:
            if faults.hits("open"):
                self._connection.abort()
                return False
            late_s, faults.late_s = faults.late_s, 0.0
            channel = self._connection.create_server_channel(encoding=None, window=faults.window)

            async def opened() -> FaultyChannel:
                await asyncio.sleep(late_s)
                return FaultyChannel(faults, self._connection)

            return channel, opened()

    server = await asyncssh.create_server(Server, "127.0.0.1", 0, server_host_keys=[HOST_KEY], encoding=None)
    try:
        yield zoo_target(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for connection in connections:
            connection.abort()
        await server.wait_closed()

"""Runs commands on this host, through the same shell texts as over SSH."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from typing import cast

from iotjobs.domain.errors import DeviceUnreachable
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof, Stream
from iotjobs.transports.spool import Spool, follow

_WHERE = "this host"
_START_WITHIN_S = 20.0
_EOF_WAIT_S = 0.5
_KILL_EXTRA_S = 10.0


class LocalTransport:
    """A `CommandTransport`; the target is this host, whatever is given.

    Whether it may be used at all is the site's decision and not made here.
    """

    def __init__(self, *, path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") -> None:
        """Nothing of this process's environment is handed on but what is given here."""
        self._env = {"PATH": path, "LANG": "C.UTF-8"}

    async def run(self, target: object, request: CommandRequest, hooks: CommandHooks) -> CommandEnd:
        """See `CommandTransport.run`; cancelling it leaves the processes alone."""
        del target
        command, lines = shell.exec_request(request)
        if lines is None:
            await hooks.before_send()
        process = await self._start(command, _LocalProcess(None if lines is None else request.nonce))
        try:
            if lines is not None:
                await hooks.before_send()
                process.send(lines)
            return await follow(process, hooks, _START_WITHIN_S, _EOF_WAIT_S)
        finally:
            process.let_go()

    async def kill(self, target: object, nonce: str, group: int, kill_after_s: float) -> KillProof:
        """See `CommandTransport.kill`."""
        del target
        return await self._ask(shell.kill_command(nonce, group, kill_after_s), kill_after_s + _KILL_EXTRA_S)

    async def _ask(self, command: str, within_s: float) -> KillProof:
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=self._env
            )
        except OSError as error:
            return KillProof(Gone.UNCONFIRMED, f"/bin/sh cannot be started: {error.strerror}")
        try:
            async with asyncio.timeout(within_s):
                answer, _ = await process.communicate()
        except TimeoutError:
            return KillProof(Gone.UNCONFIRMED, f"this host did not answer within {within_s:g} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return shell.proof(answer)

    async def _start(self, command: str, process: _LocalProcess) -> _LocalProcess:
        stdin = DEVNULL if process.header is None else PIPE
        ends: list[int] = []
        try:
            ends.append(await process.listen(Stream.STDOUT))
            ends.append(await process.listen(Stream.STDERR))
            await asyncio.get_running_loop().subprocess_exec(
                lambda: process,
                "/bin/sh",
                "-c",
                command,
                stdin=stdin,
                stdout=ends[0],
                stderr=ends[1],
                env=self._env,
                cwd="/",
                start_new_session=True,
            )
        except BaseException as error:
            process.let_go()
            if isinstance(error, OSError):
                raise DeviceUnreachable(f"/bin/sh cannot be started: {error.strerror}") from error
            raise
        finally:
            for end in ends:
                os.close(end)
        return process


class _LocalProcess(Spool, asyncio.SubprocessProtocol):
    """One process of ours, its pipes, and how it ended."""

    def __init__(self, nonce: str | None) -> None:
        super().__init__(_WHERE, nonce)
        self._transport: asyncio.SubprocessTransport | None = None
        self._outputs: dict[Stream, asyncio.ReadTransport] = {}
        self._left = False

    async def listen(self, stream: Stream) -> int:
        """Read a pipe of our own making; returns the end to be written, which the caller closes.

        Not the loop's: uvloop's are sockets, and opening `/dev/stdout` fails on those.
        """
        ours, theirs = os.pipe()
        file = os.fdopen(ours, "rb", buffering=0)
        try:
            loop = asyncio.get_running_loop()
            self._outputs[stream], _ = await loop.connect_read_pipe(lambda: _Output(self, stream), file)
        except BaseException:
            file.close()
            os.close(theirs)
            raise
        return theirs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked of their classes: uvloop's transports are none of asyncio's.
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def output_closed(self, stream: Stream) -> None:
        """No process holds the other end of this pipe any more."""
        self._outputs.pop(stream, None)
        if not self._outputs:
            self.closed()

    def process_exited(self) -> None:
        assert self._transport is not None
        code = self._transport.get_returncode()
        if code is not None:
            self.ended(_end(code))
        if self._left:
            self._transport.close()

    def send(self, lines: bytes) -> None:
        """Write what the process waits for, and the end of its input."""
        stdin = self._transport.get_pipe_transport(0) if self._transport is not None else None
        if stdin is not None:
            pipe = cast(asyncio.WriteTransport, stdin)
            pipe.write(lines)
            pipe.write_eof()
        self.sent = True

    def pause(self) -> None:
        for pipe in self._outputs.values():
            pipe.pause_reading()

    def resume(self) -> None:
        for pipe in list(self._outputs.values()):
            pipe.resume_reading()

    def let_go(self) -> None:
        """Close our ends of the pipes; the process is left alone, and reaped when it ends."""
        self._left = True
        for output in self._outputs.values():
            output.close()
        if self._transport is None:
            return
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        if self._transport.get_returncode() is not None:  # closing it earlier would kill the process
            self._transport.close()


def _end(code: int) -> CommandEnd:
    if code >= 0:
        return CommandEnd(code)
    try:
        return shell.end_by_signal(signal.Signals(-code).name)
    except ValueError:  # most real-time signals have no name
        return CommandEnd(128 - code, str(-code))


class _Output(asyncio.Protocol):
    """One of a process's two outputs."""

    def __init__(self, process: _LocalProcess, stream: Stream) -> None:
        self._process, self._stream = process, stream

    def data_received(self, data: bytes) -> None:
        self._process.receive(self._stream, data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._process.output_closed(self._stream)

"""Runs commands on this host, through the same shell texts as over SSH."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

from iotjobs.domain.errors import BadAnswer, DeviceUnreachable
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof, Stream

_PIECE_MOST_BYTES = 64 * 1024
_STOP_WITHIN_S = 10.0


class LocalTransport:
    """A `CommandTransport`; the target is this host, whatever is given.

    Whether it may be used at all is the site's decision and not made here.
    """

    def __init__(self, *, path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") -> None:
        """Nothing of this process's environment is handed on but what is given here."""
        self._env = {"PATH": path, "LANG": "C.UTF-8"}
        self._eof_wait_s = 0.5

    async def run(self, target: object, request: CommandRequest, hooks: CommandHooks) -> CommandEnd:
        """See `CommandTransport.run`; cancelling it leaves the processes alone."""
        del target
        raw = request.interpreter == "raw" and request.script is not None
        if raw:
            shell.check(request)
            command, lines, header = request.script or "", b"", None
            await hooks.before_send()
        else:
            command, lines = shell.run_command(request.nonce), shell.prologue(request)
            header = shell.Header(request.nonce)
        process = await self._start(command)
        try:
            if not raw:
                await hooks.before_send()
            assert process.stdin is not None
            process.stdin.write(lines)
            with suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.drain()
            process.stdin.close()
            return await _follow(process, header, hooks, self._eof_wait_s)
        finally:
            _let_go(process)

    async def kill(self, target: object, nonce: str, group: int, kill_after_s: float) -> KillProof:
        """See `CommandTransport.kill`."""
        del target
        return await self._ask(shell.kill_command(nonce, group, kill_after_s), kill_after_s + _STOP_WITHIN_S)

    async def probe(self, target: object, nonce: str, group: int) -> KillProof:
        """See `CommandTransport.probe`."""
        del target
        return await self._ask(shell.kill_command(nonce, group, None), _STOP_WITHIN_S)

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
            process.kill()
            await process.wait()
            return KillProof(Gone.UNCONFIRMED, f"this host did not answer within {within_s:g} s")
        return shell.proof(answer)

    async def _start(self, command: str) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=self._env,
                cwd="/",
                start_new_session=True,
                limit=2 * _PIECE_MOST_BYTES,
            )
        except OSError as error:
            raise DeviceUnreachable(f"/bin/sh cannot be started: {error.strerror}") from error


async def _follow(
    process: Process, header: shell.Header | None, hooks: CommandHooks, eof_wait_s: float
) -> CommandEnd:
    """Hand the output on until the process is gone and the output closed, or nearly so."""
    lock = asyncio.Lock()  # the hooks are called one at a time
    told = header is None

    async def hand_on(stream: Stream, reader: asyncio.StreamReader) -> None:
        nonlocal told
        while data := await reader.read(_PIECE_MOST_BYTES):
            async with lock:
                if header is not None:
                    data = header.feed(stream, data)
                    if not told and header.run is not None:
                        told = True
                        await hooks.started(*header.run)
                if data:
                    await hooks.output(stream, data)

    assert process.stdout is not None
    assert process.stderr is not None
    both = asyncio.gather(
        hand_on(Stream.STDOUT, process.stdout),
        hand_on(Stream.STDERR, process.stderr),
        return_exceptions=False,
    )
    gone = asyncio.create_task(process.wait(), name="local-wait")
    try:
        await asyncio.wait({both, gone}, return_when=asyncio.FIRST_COMPLETED)
        if both.done():
            await both
        code = await gone
        # A detached child may keep the output open for ever.
        await asyncio.wait({both}, timeout=eof_wait_s)
        if both.done():
            await both
    finally:
        both.cancel()
        gone.cancel()
        await asyncio.wait({both, gone})
    end = CommandEnd(code) if code >= 0 else shell.end_by_signal(signal.Signals(-code).name)
    if header is not None and header.run is None:
        raise BadAnswer(
            f"the shell ended with {end.exit_code} before the command started; it said: {header.said() or 'nothing'}",
            maybe_executed=False,
        )
    return end


def _let_go(process: Process) -> None:
    """Close our ends of the pipes; the process is left alone."""
    transport = getattr(process, "_transport", None)  # asyncio has no public way to close the read ends
    if transport is not None:
        for number in (0, 1, 2):
            pipe = transport.get_pipe_transport(number)
            if pipe is not None:
                pipe.close()

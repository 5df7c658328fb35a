"""Runs commands over SSH, proves them ended, and looks at hosts that are to be trusted.

Host keys are checked in `ssh_trust`, connections are kept in `ssh_pool`, the texts that run on
the device are in `shell`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncssh

from iotjobs.domain.entities import SshCredential
from iotjobs.domain.errors import (
    BadAnswer,
    CredentialsRefused,
    DeliveryError,
    DeviceUnreachable,
    HostKeyChanged,
    HostKeyUnknown,
    LinkLost,
)
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof, Stream
from iotjobs.transports.spool import follow
from iotjobs.transports.ssh_channel import PACKET_BYTES, WINDOW_BYTES, OpenedTooLateError, Session
from iotjobs.transports.ssh_dial import dial, resolve
from iotjobs.transports.ssh_pool import Link, SshLimits, SshPool
from iotjobs.transports.ssh_trust import (
    HOST_KEY_ALGS,
    KEX_ALGS,
    HostKey,
    SshTarget,
    TrustStore,
    delivery_error,
    host_key,
)

__all__ = ["CheckStep", "HostKey", "SshCredential", "SshLimits", "SshTarget", "SshTransport"]

_ANSWER_MOST_BYTES = 64 * 1024
_CLOSE_WITHIN_S = 2.0
# How long a refused channel is asked for again when nothing else of ours is open there.
_REFUSED_FIRST_S = 0.02
_REFUSED_MOST_S = 0.3
# How old `before_send` may be when a command leaves: with what is older already before it, a worker
# that is taken for dead after 8 s does not send any more.
_SEND_WITHIN_S = 3.0

StepName = Literal["dns", "tcp", "host key", "auth", "exec"]


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of a connection test.

    Attributes:
        name: which.
        ok: it worked; after the first that did not there are no more steps.
        ms: how long it took.
        detail: addresses, fingerprint, or what is wrong.
    """

    name: StepName
    ok: bool
    ms: int
    detail: str


class SshTransport:
    """A `CommandTransport` for `SshTarget`. Used in one event loop; close it at the end."""

    def __init__(
        self,
        *,
        limits: SshLimits | None = None,
        known_hosts_file: Path | None = None,
        host_authorities: tuple[str, ...] = (),
        agent_path: str | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            limits: numbers, see there.
            known_hosts_file: of the site, OpenSSH format; read again when it changes.
            host_authorities: public key lines; their host certificates are believed of every host that
                has neither a line of its own nor one in the file.
            agent_path: socket of the SSH agent for credentials of that kind.
        """
        self._limits = limits or SshLimits()
        self._trust = TrustStore(known_hosts_file, host_authorities)
        self._pool = SshPool(self._limits, self._trust, agent_path)

    async def run(self, target: SshTarget, request: CommandRequest, hooks: CommandHooks) -> CommandEnd:
        """See `CommandTransport.run`.

        `before_send` is awaited when the device waits for the command; for `raw`, whose exec request is
        the command, before the channel is asked for, and again where it opened too late.
        """
        command, lines = shell.exec_request(request)
        nonce, first = (None, hooks.before_send) if lines is None else (request.nonce, None)
        limits = self._limits
        reconnected = False
        while True:
            async with self._pool.channel(target) as link:
                warm, link.used = link.used, True
                try:
                    session = await self._open(link, command, nonce, first)
                except DeviceUnreachable:
                    # Nothing has left: a pooled connection that turns out to be dead costs one more
                    # connection and not the job.
                    if reconnected or not (warm and link.dead):
                        raise
                    reconnected = True
                    continue
                try:
                    if lines is not None:
                        # Not sent along with the exec request, which would save nothing: OpenSSH opens
                        # its window (0 before) with its answer to that, and Dropbear is fragile then.
                        await hooks.before_send()
                        session.send(lines)
                    return await follow(
                        session, hooks, limits.connect_timeout_s + limits.answer_s, limits.eof_wait_s
                    )
                finally:
                    await self._leave(link, session)

    async def kill(
        self,
        target: SshTarget,
        nonce: str,
        group: int,
        kill_after_s: float,
        *,
        first_word_s: float | None = None,
    ) -> KillProof:
        """See `CommandTransport.kill`; takes at most `kill_after_s` and `answer_s`.

        A device that says nothing for `first_word_s`, by default the limit of that name, is given up.
        """
        command = shell.kill_command(nonce, group, kill_after_s)
        within_s = kill_after_s + self._limits.answer_s
        return await self._prove(target, command, within_s, first_word_s=first_word_s)

    async def kill_first(self, target: SshTarget, nonce: str, group: int, kill_after_s: float) -> KillProof:
        """`kill` before more is sent: waits for a connection and for the first word as long as a run does."""
        try:
            async with self._pool.channel(target, spare=True):
                pass  # it is open now, and stays so for the kill and for what is sent after it
        except DeliveryError as error:
            return KillProof(Gone.UNCONFIRMED, error.message)
        return await self.kill(target, nonce, group, kill_after_s, first_word_s=self._limits.answer_s)

    async def scan_host_key(self, host: str, port: int = 22, jump: SshTarget | None = None) -> list[HostKey]:
        """The host keys that a host shows now, one of each kind, to be compared and then trusted.

        Nobody logs in and nothing is believed.

        Raises:
            DeviceUnreachable, BadAnswer: no key was shown.
        """
        found: list[HostKey] = []
        problem: DeliveryError = DeviceUnreachable(f"{host}:{port} showed no host key")
        async with self._pool.through(jump) as through:
            for algs in (HOST_KEY_ALGS[:1], HOST_KEY_ALGS[1:4], HOST_KEY_ALGS[4:]):
                try:
                    found.append(await self._shown(host, port, through, algs))
                except BadAnswer as error:
                    problem = error  # it has no key of this kind
                except DeliveryError as error:
                    problem = error
                    break
        if not found:
            raise problem
        return found

    async def _shown(
        self, host: str, port: int, through: asyncssh.SSHClientConnection | None, algs: tuple[str, ...]
    ) -> HostKey:
        sock = None
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                if through is None:
                    sock = await dial(await resolve(host, port), self._limits.connect_timeout_s)
                key = await asyncssh.get_server_host_key(
                    host,
                    port,
                    tunnel=through or (),
                    sock=sock,
                    kex_algs=KEX_ALGS,
                    server_host_key_algs=algs,
                    config=None,
                )
        except (asyncssh.Error, OSError, ValueError) as error:
            raise delivery_error(error, f"{host}:{port}", sent=False) from error
        finally:
            if sock is not None:
                sock.close()
        if key is None:
            raise BadAnswer(f"{host}:{port} showed no host key", maybe_executed=False)
        return host_key(key)

    async def check(self, target: SshTarget) -> list[CheckStep]:
        """Test a target step by step, on a connection of its own; ends with the first that fails."""
        steps, shown, limits = _Steps(), list[HostKey](), self._limits
        try:
            await self._reach(target, steps)
            self._trust.of(target)
            shown = await self.scan_host_key(target.host, target.port, target.jump)
            key_ms = steps.lap()
            async with self._pool.alone(target) as link:
                used = link.connection.get_server_host_key() if link.connection else None
                steps.done("host key", host_key(used).fingerprint if used else "", key_ms)
                steps.done("auth", f"logged in as {target.username}")
                async with asyncio.timeout(limits.connect_timeout_s + limits.answer_s):
                    proof = await self._prove_on(link, shell.kill_command("check", 0, None), lambda: None)
            if proof.verdict is Gone.UNCONFIRMED:
                raise BadAnswer(f"no POSIX shell answers at {target.address}", maybe_executed=False)
            steps.done("exec", "a POSIX shell answers")
        except (HostKeyUnknown, HostKeyChanged) as error:
            steps.failed("host key", error.message)
        except CredentialsRefused as error:
            steps.done("host key", shown[0].fingerprint if shown else "")
            steps.failed("auth", error.message)
        except DeliveryError as error:
            steps.failed(None, error.message)
        except OSError as error:
            steps.failed(None, delivery_error(error, target.address, sent=False).message)
        return steps.all

    async def _reach(self, target: SshTarget, steps: _Steps) -> None:
        """The steps of a test up to the host's port; behind a jump host the way to that, and its login.

        Raises:
            DeviceUnreachable, OSError: it cannot be reached.
        """
        if target.jump is None:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                addresses = await resolve(target.host, target.port)
            steps.done("dns", ", ".join(sorted({str(address[0]) for _, address in addresses})))
            (await dial(addresses, self._limits.connect_timeout_s)).close()
            steps.done("tcp", target.address)
            return
        steps.done("dns", "left to the jump host")
        try:
            async with self._pool.through(target.jump):
                steps.done("tcp", f"through the jump host {target.jump.address}")
        except DeliveryError as error:
            raise DeviceUnreachable(f"the jump host: {error.message}") from error

    def forget(self, key: str) -> None:
        """Use the pooled connection of this object no more; what runs on it goes on."""
        self._pool.forget(key)

    def open_way(self, key: str) -> str | None:
        """The place of this object's open connection, on which a run needs no handshake; None without."""
        return self._pool.open_way(key)

    async def close(self) -> None:
        """Close all connections; runs still going end with LinkLost. Calling it twice is safe."""
        await self._pool.close()

    # -- one channel -----------------------------------------------------------------------------

    async def _open(
        self,
        link: Link,
        command: str,
        nonce: str | None,
        before_send: Callable[[], Awaitable[None]] | None = None,
    ) -> Session:
        """Open a channel and make the exec request; the caller leaves it.

        A refusal is asked again: sshd counts a closed session until it has swept it, and a device
        may allow fewer than we do, so it is a matter of waiting while others of ours are open.

        Args:
            link: an open connection with a channel held on it.
            command: the exec request.
            nonce: of a run that tells its header.
            before_send: given where the request is all of a command; the request leaves only within
                `_SEND_WITHIN_S` of it, and is held back for another one where the channel opens later.

        Raises:
            DeviceUnreachable: there is no channel, or the request was refused or not answered.
            LinkLost: the request was not answered, and it is all of a command.
        """
        loop, pause = asyncio.get_running_loop(), _REFUSED_FIRST_S
        while True:
            send_by = math.inf
            if before_send is not None:
                await before_send()
                send_by = loop.time() + _SEND_WITHIN_S
            session = Session(link.target.address, nonce, send_by)
            try:
                await self._request(link, session, command)
                return session
            except DeviceUnreachable as error:
                session.leave()
                if before_send is not None and session.requested and not session.refused:
                    raise LinkLost(error.message) from error
                if not isinstance(error, _ChannelRefusedError) or (
                    link.active <= 1 and pause > _REFUSED_MOST_S
                ):
                    raise
            except BaseException:
                session.leave()
                raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # jitter
            pause = min(2 * pause, 2 * _REFUSED_MOST_S)

    async def _request(self, link: Link, session: Session, command: str) -> None:
        connection, where = link.connection, link.target.address
        if connection is None:
            raise DeviceUnreachable(f"the connection to {where} is closed")
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await connection.create_session(
                    lambda: session, command, encoding=None, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
                )
        except TimeoutError as error:
            # Whoever does not open a channel in this time does not do it for the next job either.
            self._pool.forget(link.target.key)
            raise DeviceUnreachable(f"{where} did not open a channel in time") from error
        except asyncio.CancelledError:
            # asyncssh does not close a channel that is granted after its opening was cancelled.
            if not session.requested:
                self._pool.forget(link.target.key)
            raise
        except OpenedTooLateError as error:
            raise _ChannelRefusedError(f"{where} opened a channel too late") from error
        except asyncssh.ChannelOpenError as error:
            if connection.is_closed():
                raise DeviceUnreachable(f"the connection to {where} broke: {error.reason}") from error
            session.refused = not session.over
            if session.requested and session.refused:
                raise DeviceUnreachable(f"{where} refused to run a command") from error
            raise _ChannelRefusedError(f"{where} opened no channel: {error.reason}") from error
        except (asyncssh.Error, OSError) as error:
            raise DeviceUnreachable(f"the connection to {where} broke: {error}") from error

    async def _leave(self, link: Link, session: Session) -> None:
        session.leave()
        if not link.single:
            return
        # The next channel must not meet this one, see `Link.single`.
        if not (session.complete and await session.closing(_CLOSE_WITHIN_S)):
            self._pool.forget(link.target.key)

    async def _prove(
        self, target: SshTarget, command: str, within_s: float, *, first_word_s: float | None = None
    ) -> KillProof:
        limits = self._limits
        patience = _Patience(
            min(first_word_s or limits.first_word_s, within_s), limits.connect_timeout_s, within_s
        )
        try:
            async with patience.deadline:
                return await self._ask(target, command, patience)
        except TimeoutError:
            return KillProof(Gone.UNCONFIRMED, f"{target.address} did not answer in time")
        except DeliveryError as error:
            return KillProof(Gone.UNCONFIRMED, error.message)
        finally:
            patience.over = True

    async def _ask(self, target: SshTarget, command: str, patience: _Patience) -> KillProof:
        """Ask on the pooled connection, then, where that failed, on a fresh one."""
        warm = False
        try:
            async with self._pool.channel(target, spare=True, opening=patience.opening) as link:
                warm, link.used = link.used, True
                patience.asked()
                return await self._prove_on(link, command, patience.heard)
        except (DeviceUnreachable, LinkLost):
            if not warm:
                raise
        async with self._pool.alone(target, opening=patience.opening) as link:
            patience.asked()
            return await self._prove_on(link, command, patience.heard)

    async def _prove_on(self, link: Link, command: str, heard: Callable[[], None]) -> KillProof:
        session = await self._open(link, command, None)
        answer = bytearray()
        try:
            while not session.over:
                for stream, data in session.take():
                    heard()
                    if stream is Stream.STDOUT:
                        answer += data
                        del answer[:-_ANSWER_MOST_BYTES]
                if not session.over:
                    await session.news(self._limits.eof_wait_s)
        finally:
            await self._leave(link, session)
        if session.end is None:
            raise LinkLost(f"{link.target.address} closed the channel before it answered")
        return shell.proof(bytes(answer))


class _ChannelRefusedError(DeviceUnreachable):
    """The connection is there and a channel was refused; nothing was asked on it."""


class _Patience:
    """How long a kill is waited for: for each sign of life first, then for what should follow it.

    Attributes:
        deadline: of the whole; entered by the caller.
        over: nothing is waited for any more.
    """

    def __init__(self, first_word_s: float, login_s: float, within_s: float) -> None:
        self._first_word_s, self._login_s, self._within_s = first_word_s, login_s, within_s
        self._loop = asyncio.get_running_loop()
        self.deadline = asyncio.timeout(first_word_s)
        self.over = self._asked = False
        self._asked_at = self._loop.time()

    def opening(self, link: Link) -> None:
        """A connection is waited for: its host greets soon, and then lets us in."""
        self._asked = False
        self._reach(self._loop.time() + self._first_word_s)
        link.greeted.add_done_callback(self._greeted)

    def _greeted(self, _greeting: asyncio.Future[None]) -> None:
        if not self._asked:
            self._reach(self._loop.time() + self._login_s)

    def asked(self) -> None:
        """The connection is open: the device's first word comes soon."""
        self._asked, self._asked_at = True, self._loop.time()
        self._reach(self._asked_at + self._first_word_s)

    def heard(self) -> None:
        """The device is at work."""
        self._reach(self._asked_at + self._within_s)

    def _reach(self, when: float) -> None:
        if not (self.over or self.deadline.expired()):
            self.deadline.reschedule(when)


class _Steps:
    """The steps of a connection test, each with its time."""

    _ORDER: tuple[StepName, ...] = ("dns", "tcp", "host key", "auth", "exec")

    def __init__(self) -> None:
        self.all: list[CheckStep] = []
        self._since = time.monotonic()

    def lap(self) -> int:
        """Milliseconds since the last step."""
        now = time.monotonic()
        took, self._since = now - self._since, now
        return round(1000 * took)

    def done(self, name: StepName, detail: str, ms: int | None = None) -> None:
        self.all.append(CheckStep(name, True, self.lap() if ms is None else ms, detail))

    def failed(self, name: StepName | None, detail: str) -> None:
        """The end of the test; without a name the step after the last one failed."""
        if name is None:
            last = self.all[-1].name if self.all else None
            name = self._ORDER[self._ORDER.index(last) + 1] if last else "dns"
        self.all.append(CheckStep(name, False, self.lap(), detail))

"""Warm SSH connections: one per device, opened under limits, closed when idle."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from iotjobs.domain.entities import SshCredential
from iotjobs.domain.errors import CredentialsRefused, DeviceUnreachable
from iotjobs.transports.ssh_dial import Budget, DroppedError, dial, greeting, resolve
from iotjobs.transports.ssh_socket import Dialled
from iotjobs.transports.ssh_trust import (
    ENCRYPTION_ALGS,
    KEX_ALGS,
    MAC_ALGS,
    SIGNATURE_ALGS,
    HostKeyWatch,
    SshTarget,
    TrustStore,
    delivery_error,
    host_key_refused,
)

# A host that has not even greeted after this time gives its handshake slot back while it waits:
# dead hosts must not hold up the living.
_PATIENCE_S = 0.25
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0
# Below OpenSSH's MaxSessions of 10 there is room for this many kills beside full channels.
_SPARE_CHANNELS = 2


@dataclass(frozen=True, slots=True)
class SshLimits:
    """Numbers of the pool.

    Attributes:
        connect_timeout_s: for name, TCP, key exchange and login together, and for a channel.
        answer_s: for the device to tell that a command started, beyond the time for a channel, and
            for a kill to be answered.
        first_word_s: for the first word of that answer on an open connection, and for the first byte of
            a host that has to be connected to for it: a device that hangs is not waited for.
        idle_s: an unused connection is closed after this time.
        channels: commands at once on one connection; others wait.
        handshakes: key exchanges at once over all devices.
        dials: TCP connections being opened at once.
        keepalive_s: pause before a keepalive is sent, and between them.
        keepalive_count: unanswered ones until the connection counts as lost.
        eof_wait_s: how long output may lag behind the exit status.
    """

    connect_timeout_s: float = 10.0
    answer_s: float = 10.0
    first_word_s: float = 1.5
    idle_s: float = 60.0
    channels: int = 8
    handshakes: int = 2 * (os.cpu_count() or 1)
    dials: int = 200
    keepalive_s: float = 5.0
    keepalive_count: int = 3
    eof_wait_s: float = 0.5


class Link:
    """One pooled connection; made by the pool only."""

    def __init__(self, target: SshTarget, limits: SshLimits) -> None:
        self.target = target
        self.users = 0
        self.active = 0  # channels held now
        self.used = False  # has carried a channel: its death may have gone unseen
        self.channels = asyncio.Semaphore(limits.channels)
        self.spare = asyncio.Semaphore(_SPARE_CHANNELS)
        self.opening: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        # Done at the host's first byte; behind a jump host, whose byte that is, from the beginning.
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.through: Link | None = None
        self.idle: asyncio.TimerHandle | None = None

    def greets(self) -> None:
        """The host shows life."""
        if not self.greeted.done():
            self.greeted.set_result(None)

    @property
    def connection(self) -> asyncssh.SSHClientConnection | None:
        """The open connection, or None while it opens or after it failed."""
        task = self.opening
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    @property
    def single(self) -> bool:
        """It can carry one channel at a time only.

        Dropbear 2022.83 with two sessions on one connection closes new ones before they ran and
        fails an assertion in common-channel.c, which cuts all of them (a third of `echo` was lost
        with two at a time, whatever the client).
        """
        connection = self.connection
        return connection is not None and "dropbear" in str(connection.get_extra_info("server_version"))

    @property
    def dead(self) -> bool:
        """It was open, or tried to be, and is no longer of use."""
        if self.opening is None or not self.opening.done():
            return False
        connection = self.connection
        return connection is None or connection.is_closed()


def _no_matter(_link: Link) -> None:
    """Nobody asked to be told."""


def _opened(link: Link) -> asyncssh.SSHClientConnection:
    if link.connection is None or link.dead:
        raise DeviceUnreachable(f"the connection to {link.target.address} is closed")
    return link.connection


class SshPool:
    """Opens, shares and closes connections."""

    def __init__(self, limits: SshLimits, trust: TrustStore, agent_path: str | Path | None) -> None:
        self._limits = limits
        self._trust = trust
        self._agent_path = agent_path
        self._links: dict[str, Link] = {}
        self._options: dict[tuple[str, int], asyncssh.SSHClientConnectionOptions] = {}
        self._handshakes = asyncio.Semaphore(limits.handshakes)
        self._dials = asyncio.Semaphore(limits.dials)
        self._every: set[Link] = set()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return sum(1 for link in self._every if link.connection is not None and not link.dead)

    @asynccontextmanager
    async def channel(
        self, target: SshTarget, *, spare: bool = False, opening: Callable[[Link], None] = _no_matter
    ) -> AsyncIterator[Link]:
        """A link with an open connection and one of its channels, held until the block ends.

        Where a connection carries one channel only, the second has a connection of its own.

        Args:
            target: the device.
            spare: for a kill: where all channels are taken, one of the two beyond the limit.
            opening: told of a connection that has to be waited for, once it is begun.

        Raises:
            DeliveryError: why there is no connection.
        """
        link = await self._join(target, opening)
        try:
            async with link.spare if spare and link.channels.locked() else link.channels:
                if link.active and link.single:
                    async with self.alone(target, opening=opening) as other:
                        yield other
                    return
                link.active += 1
                try:
                    yield link
                finally:
                    link.active -= 1
        finally:
            self._leave(link)

    async def _join(self, target: SshTarget, told: Callable[[Link], None] = _no_matter) -> Link:
        link = self._links.get(target.key)
        if link is not None and (link.dead or link.target != target):
            self._drop(link)
            link = None
        if link is None:
            link = self._links[target.key] = Link(target, self._limits)
            self._every.add(link)
            link.opening = asyncio.create_task(self._open(link), name=f"ssh-open-{target.key}")
        link.users += 1
        if link.idle is not None:
            link.idle.cancel()
            link.idle = None
        opening = link.opening
        assert opening is not None
        if not opening.done():
            told(link)
            try:
                await asyncio.shield(opening)
            except BaseException:
                self._leave(link)
                raise
        return link

    def _leave(self, link: Link) -> None:
        link.users -= 1
        if link.users:
            return
        if self._links.get(link.target.key) is not link or link.connection is None or link.dead:
            self._drop(link)
        else:
            loop = asyncio.get_running_loop()
            link.idle = loop.call_later(self._limits.idle_s, self._drop, link)

    def open_way(self, key: str) -> str | None:
        """The place of this key's connection, if it is open now and has a channel to spare."""
        link = self._links.get(key)
        if link is None or link.connection is None or link.dead or link.channels.locked():
            return None
        return link.target.place

    def forget(self, key: str) -> None:
        """Use this connection no more; what runs on it goes on."""
        link = self._links.get(key)
        if link is not None:
            self._drop(link)

    def _drop(self, link: Link) -> None:
        """Out of the pool; closed once nobody uses it."""
        if self._links.get(link.target.key) is link:
            del self._links[link.target.key]
        if link.idle is not None:
            link.idle.cancel()
            link.idle = None
        if link.users:
            return
        self._every.discard(link)
        opening = link.opening
        if opening is not None and not opening.done():
            opening.cancel()
        elif (connection := link.connection) is not None:
            connection.close()
        if link.through is not None:
            through, link.through = link.through, None
            self._leave(through)

    async def close(self) -> None:
        """Close every connection, also those in use. Calling it twice is safe."""
        links = list(self._every)
        for link in links:
            link.users = 0
            self._drop(link)
        for link in links:
            if (connection := link.connection) is not None:
                connection.abort()
                await connection.wait_closed()
            elif link.opening is not None:
                await asyncio.wait({link.opening})

    # -- opening ---------------------------------------------------------------------------------

    async def _open(self, link: Link) -> asyncssh.SSHClientConnection:
        target = link.target
        self._trust.of(target)  # refuses an unknown host before anything is sent
        if target.jump is None:
            return await self.connect(link)
        link.greets()
        through = await self._join(target.jump)
        try:
            connection = await self.connect(link, _opened(through))
        except BaseException:
            self._leave(through)
            raise
        link.through = through
        return connection

    @asynccontextmanager
    async def through(self, jump: SshTarget | None) -> AsyncIterator[asyncssh.SSHClientConnection | None]:
        """The connection of a jump host for the time of the block; None without one."""
        if jump is None:
            yield None
            return
        link = await self._join(jump)
        try:
            yield _opened(link)
        finally:
            self._leave(link)

    @asynccontextmanager
    async def alone(
        self, target: SshTarget, *, opening: Callable[[Link], None] = _no_matter
    ) -> AsyncIterator[Link]:
        """A fresh connection outside the pool for the time of the block; `opening` as for `channel`."""
        link = Link(target, self._limits)
        opening(link)
        if target.jump is not None:
            link.greets()
        async with self.through(target.jump) as through:
            link.opening = asyncio.create_task(self.connect(link, through), name=f"ssh-alone-{target.key}")
            try:
                connection = await link.opening
                yield link
                connection.close()
            except BaseException:
                link.opening.cancel()
                await asyncio.wait({link.opening})
                if link.connection is not None:
                    link.connection.abort()
                raise

    async def connect(
        self, link: Link, through: asyncssh.SSHClientConnection | None = None
    ) -> asyncssh.SSHClientConnection:
        """A connection for a link, host key verified and logged in; the caller closes it.

        A host that drops us before it greets (OpenSSH's MaxStartups does) is tried again until the
        time to connect is over.

        Raises:
            DeliveryError: why not.
        """
        target = link.target
        self._options_of(target.credential)  # a key that cannot be read is told before we dial
        budget = Budget(self._limits.connect_timeout_s)
        pause = _RETRY_FIRST_S
        while True:
            watch = HostKeyWatch()
            try:
                return await self._attempt(link, through, watch, budget)
            except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError, DroppedError) as error:
                wait = pause * random.uniform(0.5, 1.5)  # jitter, not a secret
                if watch.greeted or wait >= budget.left:
                    raise delivery_error(error, target.address, sent=False) from error
                budget.spend(wait)
                await asyncio.sleep(wait)
                pause = min(2 * pause, _RETRY_MOST_S)
            except asyncssh.HostKeyNotVerifiable as error:
                raise host_key_refused(error, target, self._trust.of(target), watch) from error
            except (asyncssh.Error, asyncssh.ChannelListenError, OSError, ValueError) as error:
                raise delivery_error(error, target.address, sent=False) from error

    async def _attempt(
        self,
        link: Link,
        through: asyncssh.SSHClientConnection | None,
        watch: HostKeyWatch,
        budget: Budget,
    ) -> asyncssh.SSHClientConnection:
        target = link.target
        if through is not None:
            async with self._handshakes, budget.running():
                return await self._handshake(target, watch, tunnel=through)
        dialing = asyncio.create_task(self._dial(link, budget))
        try:
            async with self._handshakes:
                await asyncio.wait({dialing}, timeout=_PATIENCE_S)
                if dialing.done():
                    sock = await dialing
                    async with budget.running():
                        return await self._handshake(target, watch, sock=sock)
            sock = await dialing
            async with self._handshakes, budget.running():
                return await self._handshake(target, watch, sock=sock)
        except BaseException:
            await _undial(dialing, watch)
            raise

    async def _dial(self, link: Link, budget: Budget) -> socket.socket:
        """A TCP connection on which the host has begun to greet."""
        async with self._dials, budget.running():
            addresses = await resolve(link.target.host, link.target.port)
            sock = await dial(addresses, budget.left)
            try:
                await greeting(sock)
            except BaseException:
                sock.close()
                raise
            link.greets()
            return sock

    async def _handshake(
        self,
        target: SshTarget,
        watch: HostKeyWatch,
        *,
        sock: socket.socket | None = None,
        tunnel: asyncssh.SSHClientConnection | None = None,
    ) -> asyncssh.SSHClientConnection:
        trust = self._trust.of(target)
        return await asyncssh.connect(
            target.host,
            target.port,
            tunnel=tunnel or (Dialled(sock) if sock is not None else ()),
            options=self._options_of(target.credential),
            config=None,
            username=target.username,
            known_hosts=trust.known_hosts,
            server_host_key_algs=trust.host_key_algs,
            client_factory=lambda: watch,
        )

    def _options_of(self, credential: SshCredential) -> asyncssh.SSHClientConnectionOptions:
        """Options with the keys parsed, built once per version of a credential.

        Raises:
            CredentialsRefused: the key cannot be read.
        """
        name = (credential.id, credential.version)
        options = self._options.get(name)
        if options is None:
            for old in [other for other in self._options if other[0] == credential.id]:
                del self._options[old]
            options = self._options[name] = self._build(credential)
        return options

    def _build(self, credential: SshCredential) -> asyncssh.SSHClientConnectionOptions:
        keys: list[object] = []
        methods = ["publickey"]
        try:
            if credential.kind == "ssh_key":
                keys = [asyncssh.import_private_key(credential.private_key or "", credential.passphrase)]
            elif credential.kind == "password":
                methods = ["password", "keyboard-interactive"]
            elif self._agent_path is None:
                raise CredentialsRefused("no SSH agent is set up for this site")
            return asyncssh.SSHClientConnectionOptions(
                config=None,
                client_keys=keys or (None if credential.kind == "password" else []),
                client_certs=[],
                password=credential.password if credential.kind == "password" else None,
                preferred_auth=methods,
                agent_path=str(self._agent_path) if credential.kind == "ssh_agent" else None,
                gss_host=None,
                x509_trusted_certs=None,
                x509_trusted_cert_paths=[],
                kex_algs=KEX_ALGS,
                encryption_algs=ENCRYPTION_ALGS,
                mac_algs=MAC_ALGS,
                signature_algs=SIGNATURE_ALGS,
                compression_algs=("none",),
                keepalive_interval=self._limits.keepalive_s,
                keepalive_count_max=self._limits.keepalive_count,
                login_timeout=0,  # the budget of the whole connect bounds it
                request_pty=False,
                encoding=None,
            )
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
            raise CredentialsRefused(f"the credential {credential.id} cannot be used: {error}") from error


async def _undial(dialing: asyncio.Task[socket.socket], watch: HostKeyWatch) -> None:
    """Close the dialled socket, unless asyncssh has taken it over."""
    dialing.cancel()
    await asyncio.wait({dialing})
    if not dialing.cancelled() and dialing.exception() is None and watch.connection is None:
        dialing.result().close()

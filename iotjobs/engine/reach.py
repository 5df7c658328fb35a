"""Finds the way to an object's device: address, credential and trusted key, and the transport.

What it looked up is kept for a few seconds per object, so that a burst of jobs on one device reads
its definition once; a change made through this process drops it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from iotjobs import clock
from iotjobs.domain.errors import (
    BadRequest,
    CredentialsRefused,
    DeliveryError,
    DeviceUnreachable,
    NotFound,
    NotRecorded,
    StoreUnavailable,
)
from iotjobs.domain.jobs import Job, Transport
from iotjobs.engine.sending import RunMark
from iotjobs.store import entities
from iotjobs.store.entities import SshAccess
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof
from iotjobs.transports.local import LocalTransport
from iotjobs.transports.ssh import CheckStep, SshTransport
from iotjobs.transports.ssh_trust import HostKey, SshTarget

log = logging.getLogger(__name__)

KEPT_S = 5.0  # another node's change of a definition is seen after this long


@dataclass(frozen=True, slots=True)
class _Kept:
    target: SshTarget
    until: float


class Reach:
    """The command transports, asked by object id. Safe for concurrent use."""

    def __init__(self, store: Store, secrets: Secrets, ssh: SshTransport, local: LocalTransport) -> None:
        self._store, self._secrets, self._ssh, self._local = store, secrets, ssh, local
        self._kept: dict[str, _Kept] = {}
        self._went: dict[str, SshTarget] = {}  # where runs under way went, by nonce

    def forget(self) -> None:
        """A definition changed: look everything up again."""
        self._kept.clear()

    def open_way(self, object_id: str | None) -> str | None:
        """Where the open connection to the object's device leads (`SshTarget.place`); None without one."""
        return None if object_id is None else self._ssh.open_way(object_id)

    async def run(self, job: Job, request: CommandRequest, hooks: CommandHooks) -> CommandEnd:
        """Run a command where the job executes; errors as `CommandTransport.run`.

        Until `ended` is called a `kill` of it goes to the same place.
        """
        if job.transport is Transport.LOCAL:
            return await self._local.run(None, request, hooks)
        target = self._went[request.nonce] = await self._target(job)
        return await self._ssh.run(target, request, hooks)

    def went_to(self, nonce: str | None) -> str | None:
        """Where the run under way goes (`SshTarget.place`); None on this host."""
        went = self._went.get(nonce or "")
        return None if went is None else went.place

    def ended(self, nonce: str) -> None:
        """Nobody will kill this run any more."""
        self._went.pop(nonce, None)

    async def kill(
        self, job: Job, group: int, kill_after_s: float, first_word_s: float | None = None
    ) -> KillProof:
        """End everything of the job's newest attempt and look whether it is gone.

        Args:
            job: whose `nonce` marks it.
            group: its process group, or 0.
            kill_after_s: between TERM and KILL.
            first_word_s: how long the device may take to say anything; None: as little as it needs.
        """
        assert job.nonce is not None
        if job.transport is Transport.LOCAL:
            return await self._local.kill(None, job.nonce, group, kill_after_s)
        try:
            target = await self._way_of(job, job.nonce)
            return await self._ssh.kill(target, job.nonce, group, kill_after_s, first_word_s=first_word_s)
        except DeliveryError as error:
            return KillProof(Gone.UNCONFIRMED, error.message)

    async def kill_first(self, job: Job, mark: RunMark, kill_after_s: float) -> KillProof:
        """End what an earlier attempt, or a dead worker's, left; waits for the device as long as a run does.

        It is looked for where the object is now. Is that not where it was sent, then only processes
        that were found there, and are gone, prove anything: another device has none of them anyway.
        """
        if job.transport is Transport.LOCAL:
            return await self._local.kill(None, mark.nonce, mark.group, kill_after_s)
        try:
            target = await self._target(job)
            proof = await self._ssh.kill_first(target, mark.nonce, mark.group, kill_after_s)
        except DeliveryError as error:
            return KillProof(Gone.UNCONFIRMED, error.message)
        if target.place == mark.sent_to or (proof.verdict is Gone.GONE and proof.found):
            return proof
        sent_to = mark.sent_to or "an address that is not on record"
        return KillProof(
            Gone.UNCONFIRMED, f"it was sent to {sent_to}, and its object is at {target.place} now"
        )

    async def check(self, object_id: str) -> Sequence[CheckStep]:
        """Test the way step by step: DNS, TCP, host key, login, exec.

        Raises:
            NotFound, BadRequest: no such object, or it has no SSH address.
        """
        return await self._ssh.check(await self._looked_up(object_id))

    async def scan_host_key(self, object_id: str) -> Sequence[HostKey]:
        """The keys that the object's host shows now; trusts nothing.

        Raises:
            NotFound, BadRequest: no such object, or it has no SSH address.
            DeliveryError: the host cannot be reached.
        """
        access = await self._store.look(lambda conn: entities.ssh_access(conn, object_id, self._secrets))
        jump = None if access.jump is None else _target_of(access.jump)  # a scan itself needs no login
        return await self._ssh.scan_host_key(access.address.host, access.address.port, jump)

    async def _way_of(self, job: Job, nonce: str) -> SshTarget:
        """The way to where a run is: its object may have another address now, or be gone."""
        went = self._went.get(nonce)
        try:
            target = await self._target(job)
        except DeliveryError:
            if went is None:
                raise
            return went
        return target if went is None or target.place == went.place else went

    async def _target(self, job: Job) -> SshTarget:
        assert job.target_id is not None, "an ssh job has an object that it executes on"
        try:
            return await self._looked_up(job.target_id)
        except (NotFound, BadRequest) as error:
            raise DeviceUnreachable(error.detail) from error
        except StoreUnavailable as error:
            # A kill must not wait for the database: the way was right some seconds ago.
            kept = self._kept.get(job.target_id)
            if kept is None:
                raise NotRecorded(f"the way to the device cannot be looked up: {error}") from error
            return kept.target

    async def _looked_up(self, object_id: str) -> SshTarget:
        kept = self._kept.get(object_id)
        if kept is not None and kept.until > clock.monotonic():
            return kept.target
        access = await self._store.look(lambda conn: entities.ssh_access(conn, object_id, self._secrets))
        target = _target_of(access)
        self._kept[object_id] = _Kept(target, clock.monotonic() + KEPT_S)
        return target


def _target_of(access: SshAccess) -> SshTarget:
    address, credential = access.address, access.credential
    if credential is None:
        raise CredentialsRefused(f"{access.object_name} has no credential: set ssh.credential_id")
    username = address.username or credential.username
    if not username:
        raise CredentialsRefused(f"{access.object_name} has no user to log in as: set ssh.username")
    return SshTarget(
        key=access.object_id,
        host=address.host,
        port=address.port,
        username=username,
        credential=credential,
        host_keys=tuple(line for line in (address.host_key or "").splitlines() if line.strip()),
        jump=None if access.jump is None else _target_of(access.jump),
    )

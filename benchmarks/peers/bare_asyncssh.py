"""asyncssh alone: a connection a device, host keys verified, one `exec` a job, nothing recorded.

Same ciphers, key exchange and limit on handshakes as ours; this is the most that a Python server
on asyncssh could reach.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import asyncssh
import fan_out

COMMAND = os.environ.get("BENCH_COMMAND", "true")
HANDSHAKES = 2 * (os.cpu_count() or 1)


class Fleet:
    """The connections, opened on first use."""

    def __init__(self, fleet: dict[str, Any]) -> None:
        self.devices = fleet["devices"]
        self.options = asyncssh.SSHClientConnectionOptions(
            config=None,
            username=fleet["username"],
            client_keys=[asyncssh.read_private_key(fleet["key_file"])],
            agent_path=None,
            gss_host=None,
            kex_algs=["curve25519-sha256"],
            encryption_algs=["aes128-gcm@openssh.com"],
            server_host_key_algs=["ssh-ed25519"],
            compression_algs=["none"],
            preferred_auth=["publickey"],
        )
        self.keys = [asyncssh.import_public_key(device["host_key"]) for device in self.devices]
        self.open: dict[int, asyncssh.SSHClientConnection] = {}
        self.handshakes = asyncio.Semaphore(HANDSHAKES)

    async def run(self, number: int) -> bool:
        """One job; whether it succeeded."""
        connection = self.open.get(number)
        if connection is None:
            device = self.devices[number]
            async with self.handshakes:
                connection = self.open[number] = await asyncssh.connect(
                    device["host"],
                    device["port"],
                    options=self.options,
                    config=None,
                    known_hosts=([self.keys[number]], [], []),
                )
        done = await connection.run(COMMAND, encoding=None)
        return done.exit_status == 0

    async def fan_out(self) -> int:
        """One job on every device; how many failed."""
        ends = await asyncio.gather(*(self.run(number) for number in range(len(self.devices))))
        return ends.count(False)


with asyncio.Runner() as runner:

    async def make() -> Fleet:
        return Fleet(fan_out.read_fleet())

    fleet = runner.run(make())
    fan_out.serve(lambda: runner.run(fleet.fan_out()))

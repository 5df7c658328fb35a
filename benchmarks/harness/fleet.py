"""A fleet of SSH devices on loopback: one address each, fifteen to an OpenSSH server.

Every contender sees the same addresses, the same host key a server, and logs in with the same key.
Needs root: sshd gives a session its group and its log only then, and the login's home is its own.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from iotjobs_sim import sshd

# OpenSSH's MAX_LISTEN_SOCKS is 16, and one of them is 127.0.0.1 (see `_start`).
ADDRESSES_EACH = 15
_SETTINGS = ("MaxStartups 1000", "MaxSessions 10", "LogLevel ERROR", "UseDNS no", "PrintLastLog no")


@dataclass(frozen=True, slots=True)
class Device:
    """One address of the fleet; `host_key` is its line without the address."""

    host: str
    port: int
    host_key: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices, and the files that programs of OpenSSH's family read."""

    devices: tuple[Device, ...]
    username: str
    key_file: str
    known_hosts_file: str

    @property
    def key(self) -> str:
        """The private key that every device accepts."""
        return Path(self.key_file).read_text()

    def save(self, path: Path) -> Path:
        """Write it down for another process."""
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str) -> Fleet:
        """Read what `save` wrote."""
        found = json.loads(Path(path).read_text())
        found["devices"] = tuple(Device(**device) for device in found["devices"])
        return cls(**found)


@contextmanager
def fleet_of(count: int, folder: Path) -> Iterator[Fleet]:
    """Run `count` devices; each server is ended by its own process id."""
    _raise_open_files()
    key = folder / "login"
    with ExitStack() as running:
        devices: list[Device] = []
        for number in range((count + ADDRESSES_EACH - 1) // ADDRESSES_EACH):
            hosts = [
                f"127.0.{number + 1}.{host + 1}" for host in range(min(ADDRESSES_EACH, count - len(devices)))
            ]
            server = _start(folder, number, hosts, key)
            running.enter_context(server)
            devices += [Device(host, server.port, server.host_keys[0]) for host in hosts]
            if not key.exists():
                key.touch(mode=0o600)
                key.write_text(server.client_key)
                Path(f"{key}.pub").write_text((folder / "sshd0" / "client.pub").read_text())
        known = folder / "known_hosts"
        known.write_text("".join(f"[{d.host}]:{d.port} {d.host_key}\n" for d in devices))
        yield Fleet(tuple(devices), server.username, str(key), str(known))


def _start(folder: Path, number: int, hosts: list[str], key: Path) -> sshd.SshServer:
    # 127.0.0.1 beside them: there `start_openssh` looks whether the server greets.
    return sshd.start_openssh(
        folder / f"sshd{number}",
        settings=(*_SETTINGS, *(f"ListenAddress {host}" for host in ("127.0.0.1", *hosts))),
        client_key=key if key.exists() else None,
    )


def _raise_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

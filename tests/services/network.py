"""A network namespace with one wire to this machine, which a test can cut. Needs root and iproute2.

Its addresses are of the range that RFC 2544 keeps for tests; nothing of the machine's own network is
touched, and all of it is gone at the end.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.programs import missing, require_program

_INSIDE = "cut0"
# Nobody's: frames to it are dropped in silence.
_NOBODY = "02:00:00:00:00:01"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace, and what its processes reach of this machine.

    Attributes:
        name: of the namespace.
        outside: of this end of the wire.
        address: of this machine, as it is seen from inside; it stays here while the wire is cut.
        own: the address inside.
    """

    ip: str
    name: str
    outside: str
    address: str
    own: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that runs another one inside, in its own place."""
        return (self.ip, "netns", "exec", self.name)

    def unplug(self) -> None:
        """Cut the wire as a pulled plug does: whoever sends is told so."""
        self._run("-n", self.name, "link", "set", _INSIDE, "down")

    def plug(self) -> None:
        """Undo `unplug`."""
        self._run("-n", self.name, "link", "set", _INSIDE, "up")

    def silence(self) -> None:
        """Drop everything, both ways, and say nothing: what a broken switch does."""
        for where, device, far in self._ends():
            self._run(*where, "neigh", "replace", far, "lladdr", _NOBODY, "dev", device, "nud", "permanent")

    def mend(self) -> None:
        """Undo `silence`."""
        for where, device, far in self._ends():
            self._run(*where, "neigh", "del", far, "dev", device)

    def make(self) -> None:
        """Make it; who calls this calls `remove`, also when it failed."""
        self._run("netns", "add", self.name)
        peer = ("peer", "name", _INSIDE, "netns", self.name)
        self._run("link", "add", self.outside, "type", "veth", *peer)
        self._run("addr", "add", f"{self.address}/30", "dev", self.outside)
        self._run("link", "set", self.outside, "up")
        for more in (("addr", "add", f"{self.own}/30", "dev", _INSIDE), ("link", "set", "lo", "up")):
            self._run("-n", self.name, *more)
        self.plug()

    def remove(self) -> None:
        """Remove whatever there is of it, also while a process is left inside."""
        for command in (("link", "del", self.outside), ("netns", "del", self.name)):
            subprocess.run([self.ip, *command], capture_output=True, timeout=10, check=False)

    def _ends(self) -> Iterator[tuple[tuple[str, ...], str, str]]:
        yield (), self.outside, self.own
        yield ("-n", self.name), _INSIDE, self.address

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([self.ip, *arguments], capture_output=True, text=True, timeout=10, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _remove_left(ip: str) -> None:
    """Remove what test processes left that were killed."""
    listed = subprocess.run([ip, "netns", "list"], capture_output=True, text=True, timeout=10, check=False)
    for name in re.findall(r"^iotjobs-\d+-\d+", listed.stdout, re.MULTILINE):
        _, pid, number = name.split("-")
        if not Path(f"/proc/{pid}").exists():
            Namespace(ip, name, f"ij{pid}x{number}", "", "").remove()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A namespace of the test's own; ask for it before whatever runs inside."""
    if os.geteuid() != 0:
        missing("a network namespace needs root")
    ip, number = require_program("ip", package="iproute2"), next(_numbers)
    _remove_left(ip)
    pid = os.getpid()
    net = f"198.{18 + pid // 8192 % 2}.{pid // 32 % 256}"
    first = pid % 32 * 8 + number % 2 * 4
    name = f"iotjobs-{pid}-{number}"
    made = Namespace(ip, name, f"ij{pid}x{number}", f"{net}.{first + 1}", f"{net}.{first + 2}")
    try:
        try:
            made.make()
        except OSError as error:
            missing(f"this root may not make a network namespace: {error}")
        yield made
    finally:
        made.remove()

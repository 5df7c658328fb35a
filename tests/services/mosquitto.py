"""Mosquitto for tests: ours as `serve` starts it, or one with a configuration of the test's own.

Each has a folder and a free loopback port of its own, and is ended by its pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from iotjobs.transports.broker import BrokerProcess
from iotjobs.transports.broker_files import Credential, broker_username, hash_password
from iotjobs.transports.mqtt_address import BrokerAddress
from tests.services.programs import free_port, require_program

START_WITHIN_S = 10.0
SERVICE = "iotjobs.service"


async def nothing() -> None:
    """A `before_send` that has nothing to do."""


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    """Let the others run until the condition holds."""
    async with asyncio.timeout(within_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def mosquitto_path() -> str:
    """The broker's program."""
    return require_program("mosquitto", package="mosquitto")


@pytest.fixture(scope="session")
def mosquitto_sub_path() -> str:
    """A client that is not ours."""
    return require_program("mosquitto_sub", package="mosquitto-clients")


@dataclass(slots=True)
class OurBroker:
    """The broker as `serve` starts it, and who may log in."""

    process: BrokerProcess
    directory: Path
    credentials: dict[str, Credential] = field(default_factory=dict)

    @property
    def address(self) -> BrokerAddress:
        """With the service's login."""
        return self.process.address

    def login(self, thing: str, password: str) -> BrokerAddress:
        """With a device's login."""
        return BrokerAddress(self.address.host, self.address.port, broker_username(thing), password)

    async def enrol(self, thing: str, *, read: tuple[str, ...] = (), write: tuple[str, ...] = ()) -> str:
        """Let a thing in; its password."""
        password = secrets.token_hex(16)
        self.credentials[thing] = Credential(thing, hash_password(password), read, write)
        self.process.write_credentials(self.credentials.values())
        assert await self.process.test_connect(broker_username(thing), password)
        return password


@pytest.fixture
def make_broker(tmp_path: Path, mosquitto_path: str) -> Callable[..., BrokerProcess]:
    """Makes our own broker, not yet started; keywords are `BrokerProcess`'s."""

    def make(**more: Any) -> BrokerProcess:
        return BrokerProcess(
            tmp_path / "broker",
            service_username=SERVICE,
            **{
                "service_password": secrets.token_hex(16),
                "port": free_port(),
                "mosquitto_path": mosquitto_path,
                **more,
            },
        )

    return make


@pytest.fixture
async def broker(tmp_path: Path, make_broker: Callable[..., BrokerProcess]) -> AsyncIterator[OurBroker]:
    """Our own broker, up."""
    process = make_broker()
    await process.start()
    yield OurBroker(process, tmp_path / "broker")
    await process.stop()


class Mosquitto:
    """A broker with a configuration of the test's own; anonymous unless that says otherwise."""

    def __init__(self, program: str, folder: Path, lines: tuple[str, ...]) -> None:
        self.port, self._program, self._folder = free_port(), program, folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        configuration = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_on_changes true",
            "autosave_interval 1",
            "max_queued_messages 100000000",
            "max_inflight_messages 256",
            "log_dest file " + str(folder / "log"),
            *lines,
        ]
        if not any(line.startswith("allow_anonymous") for line in lines):
            configuration.append("allow_anonymous true")
        if os.geteuid() == 0:
            configuration.append("user root")
        (folder / "mosquitto.conf").write_text("\n".join(configuration) + "\n")

    @property
    def address(self) -> BrokerAddress:
        """Without a login."""
        return BrokerAddress("127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        """Of the running broker."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote, of all its lives."""
        return (self._folder / "log").read_text()

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._folder / "mosquitto.conf")], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + START_WITHIN_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.02)
        raise TimeoutError("mosquitto does not take connections")

    def kill(self) -> None:
        """As a power cut would: nothing is saved."""
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; safe when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a frozen one takes TERM only then, and KILL at once
            process.wait(timeout=10)

    def forget(self) -> None:
        """Delete all that it keeps; it is not running."""
        assert self._process is None
        for path in self._folder.glob("mosquitto.db*"):
            path.unlink()

    def freeze(self) -> None:
        """Stop it from doing anything; the kernel goes on taking bytes for it."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def start_mosquitto(tmp_path: Path, mosquitto_path: str) -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers: each argument is a line of the configuration."""
    started: list[Mosquitto] = []

    def start(*lines: str) -> Mosquitto:
        mosquitto = Mosquitto(mosquitto_path, tmp_path / f"mosquitto{len(started)}", lines)
        started.append(mosquitto)
        mosquitto.start()
        return mosquitto

    yield start
    for mosquitto in started:
        mosquitto.stop()

"""Names are looked up beside everything else that needs a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from iotjobs.domain.errors import DeliveryError
from iotjobs.transports.ssh import SshLimits, SshTransport
from iotjobs.transports.ssh_dial import resolve
from tests.services.programs import free_port
from tests.services.site import eventually

DEVICES = 40  # more than the loop has threads, and than names have


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name server that answers nobody until the test is over; the names that it was asked for."""
    asked: list[str] = []
    over = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *given: object, **named: object) -> object:
        if not host.endswith(".invalid"):
            return real(host, *given, **named)  # type: ignore[arg-type]
        asked.append(host)
        over.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "name not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


async def hang(of: str) -> None:
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(5):
            await resolve(of, 22)


async def test_names_that_hang_hold_up_nobody_who_logs_in(hanging: list[str]) -> None:
    lookups = [asyncio.create_task(hang(f"device-{number}.invalid")) for number in range(DEVICES)]
    await eventually(lambda: hanging)

    async with asyncio.timeout(2):
        assert await asyncio.to_thread(lambda: "logged in") == "logged in"

    for lookup in lookups:
        lookup.cancel()
    await asyncio.wait(lookups)


async def test_a_scan_of_names_that_hang_holds_up_nobody_who_logs_in(hanging: list[str]) -> None:
    transport = SshTransport(limits=SshLimits(connect_timeout_s=0.2))

    async def scan(host: str) -> None:
        with suppress(DeliveryError):
            await transport.scan_host_key(host)

    await asyncio.gather(*(scan(f"device-{number}.invalid") for number in range(DEVICES)))
    assert hanging

    async with asyncio.timeout(2):
        assert await asyncio.to_thread(lambda: "logged in") == "logged in"
    await transport.close()


async def test_an_address_needs_no_name_server(hanging: list[str]) -> None:
    lookups = [asyncio.create_task(hang(f"device-{number}.invalid")) for number in range(DEVICES)]
    await eventually(lambda: hanging)

    port = free_port()
    async with asyncio.timeout(2):
        assert await resolve("127.0.0.1", port) == [(socket.AF_INET, ("127.0.0.1", port))]
        assert await resolve("::1", port) == [(socket.AF_INET6, ("::1", port, 0, 0))]

    for lookup in lookups:
        lookup.cancel()
    await asyncio.wait(lookups)

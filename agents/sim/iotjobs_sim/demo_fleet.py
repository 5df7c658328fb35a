"""The demo's devices: gateways with a real sshd each, valves and an oven on the broker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iotjobs_sim.mqtt_devices import PretendDevice
from iotjobs_sim.sshd import SshServer, start_openssh

_UP_WITHIN_S = 15.0
_GONE_WITHIN_S = 2.0
_PAUSE_S = 0.02
_MARK = "PRETEND_FLEET"

HEATING = (62, 70, 78, 86)
COOLING = (79, 68, 60)
REPORT_EVERY_S = 0.25


def start_gateway(folder: Path, number: int) -> SshServer:
    """Start OpenSSH for gateway 1, 2 and so on, on 127.0.0.11, .12 …; one key opens all of them.

    Where the host has no such address (only Linux gives loopback all of 127/8) it is 127.0.0.1.
    """
    address = f"127.0.0.{10 + number}"
    settings, has_address = [f"SetEnv {_MARK}={folder}"], _can_bind(address)
    if has_address:
        # Both, as `start_openssh` waits for it on the first.
        settings += ["ListenAddress 127.0.0.1", f"ListenAddress {address}"]
    key = folder / "gw-1" / "client"
    server = start_openssh(folder / f"gw-{number}", settings=settings, client_key=key if number > 1 else None)
    if has_address:
        server.host = address
    return server


def mark_children(folder: Path) -> None:
    """Whatever this process starts from now on can be found by `end_left_over`."""
    os.environ[_MARK] = str(folder)


def end_left_over(folder: Path) -> None:
    """Kill what still runs of all that was started for this folder, on the gateways too.

    A server that stops leaves jobs that outlive its grace running on their devices, and these
    devices are this machine. What a gateway starts carries the folder's name in its environment.
    """
    until = time.monotonic() + _GONE_WITHIN_S
    while (left := _marked(folder)) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _marked(folder: Path) -> list[int]:
    mark, found = f"{_MARK}={folder}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _can_bind(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class Thing(PretendDevice):
    """Logs in with what the server gave it when it was enrolled."""

    def __init__(self, login: dict[str, str]) -> None:
        at = urlsplit(login["url"])
        super().__init__(
            login["thing"],
            at.hostname or "127.0.0.1",
            at.port or 1883,
            login["username"],
            login["password"],
            result={},
        )


class Valve(Thing):
    """Does what it is told, says so where an answer is asked for, and tells how often it blinked."""

    def append_result(self, job_id: str, payload: dict[str, Any]) -> None:
        """Append to jobs that made it blink, and to no others."""
        asked = json.loads(self.payloads[job_id])
        if "blink" in asked:
            super().append_result(job_id, {**payload, "blinked": asked["blink"], "battery": 87})


class Oven(Thing):
    """Gets hotter from report to report once it is heated, and stays hot until its fan is switched on."""

    def heat(self) -> None:
        """Begin; in the loop that it lives in."""
        self._go_through(HEATING, None)

    def append_result(self, job_id: str, _payload: dict[str, Any]) -> None:
        """Take the only command there is: the fan is on. It appends nothing."""
        self._go_through(COOLING, job_id)

    def _go_through(self, temperatures: tuple[int, ...], job_id: str | None) -> None:
        # A report that a command led to names the command's job: that is how a loop of triggers is seen.
        for number, temperature in enumerate(temperatures):
            self._after(number * REPORT_EVERY_S, partial(self._tell, temperature, job_id))

    def _tell(self, temperature: int, job_id: str | None) -> None:
        self.report({"temperature": temperature, "fan": "off" if job_id is None else "on"}, job_id=job_id)


class Things:
    """Devices on the broker, on an event loop in a thread of their own. `stop` in any case."""

    def __init__(self, *devices: Thing) -> None:
        self._devices = devices
        self._up: concurrent.futures.Future[asyncio.Event] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="things", daemon=True)

    def start(self) -> None:
        """Log all of them in.

        Raises:
            TimeoutError: one was not let in.
        """
        self._thread.start()
        self._up.result(_UP_WITHIN_S + 1)

    def call(self, do: Callable[[], None]) -> None:
        """Let one of them do something, once all are up."""
        assert self._loop is not None, "they are up"
        self._loop.call_soon_threadsafe(do)

    def stop(self) -> None:
        """Log them out. Safe before `start` and twice."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._up.result().set)
        if self._thread.ident is not None:
            self._thread.join(_UP_WITHIN_S)

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        over = asyncio.Event()
        try:
            await asyncio.gather(*(device.start(_UP_WITHIN_S) for device in self._devices))
        except TimeoutError as error:
            self._up.set_exception(error)
        else:
            self._loop = asyncio.get_running_loop()
            self._up.set_result(over)
            await over.wait()
        finally:
            await asyncio.gather(*(device.stop() for device in self._devices))

"""Memory and processor time of `iotjobs serve` while a thousand connected devices report, for ten minutes.

Every device is a connection of its own that takes commands, and reports once in five seconds; one report in
twenty is hot, so that the device becomes `alarm`, a trigger sends it a command, and the next one brings it
back. What counts is the slope of the resident memory behind the first quarter, in which caches fill.
`MINUTES=3` makes it shorter.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.broker import mosquitto
from benchmarks.harness.figures import QUICK, finish, table
from benchmarks.harness.http import Client
from benchmarks.harness.mqtt import Load, open_all
from benchmarks.harness.server import JobTable, Server, cpu_s, rss_mb

API = "/api/v1"
DEVICES = 100 if QUICK else 1000
EACH_S = 5.0
MINUTES = float(os.environ.get("MINUTES", "0.3" if QUICK else "10"))
HOT_ONE_IN = 20
LOOK_S = 2.0
WITHIN_S = 60.0


class Devices:
    """All devices; `commands` counts what they took, `changes` how often one became hot."""

    def __init__(self) -> None:
        self.commands = self.changes = self.reports = 0
        self._news = asyncio.Event()
        self._loads = [Load(self._took, f"device-{number}") for number in range(DEVICES)]

    def _took(self, _topic: str) -> None:
        self.commands += 1
        self._news.set()

    async def all_told(self) -> None:
        """Wait until there was a command for each change."""
        while self.commands < self.changes:
            self._news.clear()
            await self._news.wait()

    async def open(self, port: int) -> None:
        """Connect all."""
        await open_all(self._loads, port, "iotjobs/thing-{}/cmd/#")

    async def report_until(self, end: float) -> None:
        """Report in turn, evenly, until this moment of the monotonic clock."""
        began, number = time.monotonic(), 0
        while (now := time.monotonic()) < end:
            due = began + number * EACH_S / DEVICES
            if due > now:
                await asyncio.sleep(due - now)
            self._report(number % DEVICES, number // DEVICES)
            number += 1

    def _report(self, device: int, turn: int) -> None:
        hot = (turn + device) % HOT_ONE_IN == 0
        self.changes += hot
        self.reports += 1
        temperature = 90.0 if hot else 20.0 + (turn * 7 + device) % 50 / 10
        load = self._loads[device]
        load.send(load.report(f"iotjobs/thing-{device}/report", b'{"temperature":%.1f}' % temperature))

    def close(self) -> None:
        """Close all connections."""
        for load in self._loads:
            load.close()


async def define(client: Client, count: int = DEVICES) -> None:
    """A class with its rule, and an object for each of so many devices."""
    made = await client.call("POST", f"{API}/classes", {"name": "device"})
    path = f"{API}/classes/{made['id']}"
    message = {"topic": "iotjobs/{{name}}/cmd/fan", "message": {"fan": "on"}}
    operation = await client.call(
        "POST", f"{path}/operations", {"name": "fan-on", "type": "mqtt", "parameters": message}
    )
    hot = {"state": "alarm", "when": "temperature > 80"}
    await client.call("PUT", f"{path}/state-conditions", {"items": [hot]})
    trigger = {"name": "cool it", "states": ["alarm"], "operation_id": operation["id"]}
    await client.call("PUT", f"{path}/state-triggers", {"items": [trigger]})
    for number in range(count):
        name = f"thing-{number}"
        await client.call("POST", f"{API}/objects", {"name": name, "thing": name, "class_id": made["id"]})


async def watch(pid: int, end: float) -> list[tuple[float, float, float]]:
    """Seconds, resident megabytes and processor seconds, again and again."""
    began, seen = time.monotonic(), []
    while (now := time.monotonic()) < end:
        seen.append((now - began, rss_mb(pid), cpu_s(pid)))
        await asyncio.sleep(LOOK_S)
    return seen


async def measure(folder: Path) -> dict[str, Any]:
    """Run it, print the table; the figures."""
    with (
        mosquitto(folder) as port,
        Server(folder, settings={"IOTJOBS_MQTT_URL": f"mqtt://127.0.0.1:{port}"}) as server,
    ):
        client = server.client(1)
        await define(client)
        client.close()
        devices = Devices()
        try:
            await devices.open(port)
            idle = rss_mb(server.pid)
            end = time.monotonic() + 60 * MINUTES
            _, seen = await asyncio.gather(devices.report_until(end), watch(server.pid, end))
            jobs = JobTable(server.data)
            await jobs.all_ended(0, devices.changes, WITHIN_S)
            jobs.close()
            async with asyncio.timeout(WITHIN_S):
                await devices.all_told()
        finally:
            devices.close()
    if devices.commands != devices.changes:
        raise RuntimeError(f"{devices.changes} devices became hot, {devices.commands} commands came")
    settled = seen[len(seen) // 4 :]
    slope = statistics.linear_regression([at for at, _, _ in settled], [rss for _, rss, _ in settled]).slope
    seconds, used = settled[-1][0] - settled[0][0], settled[-1][2] - settled[0][2]
    rows: list[list[Any]] = [
        ["reports", devices.reports],
        ["jobs, each from one change", devices.changes],
        ["RSS with all devices connected, MB", idle],
        ["RSS behind the first quarter · at the end, MB", f"{settled[0][1]:.1f} · {settled[-1][1]:.1f}"],
        ["slope of RSS, MB an hour", slope * 3600],
        ["CPU, ms a second", 1000 * used / seconds],
    ]
    print(f"{DEVICES} devices, {DEVICES / EACH_S:g} reports a second, {MINUTES:g} minutes\n")
    table(["", "measured"], rows)
    return {
        "devices": DEVICES,
        "reports": devices.reports,
        "jobs": devices.changes,
        "rss_mb": [round(rss, 1) for _, rss, _ in seen[:: max(1, len(seen) // 20)]],
        "rss_mb_an_hour": round(slope * 3600, 2),
        "cpu_ms_a_second": round(1000 * used / seconds, 1),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True) as text:
        figures = await measure(Path(text))
    finish("soak", figures)


if __name__ == "__main__":
    asyncio.run(main())

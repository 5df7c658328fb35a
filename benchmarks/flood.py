"""What one device that floods costs the others: a check of the rate that every device is held to.

Two hundred connected devices report in turn, each hot and cold again, so that each hot report is a change that
sends it a command; measured is the time from such a report to its command. In every second phase one more
device sends 5,000 reports a second, and in every third as many messages that are no JSON. The phases alternate, so
that all see the same machine. With the default `IOTJOBS_REPORT_RATE`; what the flood said last must be known in the
end, and everything that it sent be counted.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.broker import mosquitto
from benchmarks.harness.figures import QUICK, finish, median, percentile, ratio, table
from benchmarks.harness.mqtt import Load, open_all
from benchmarks.harness.server import Server, rss_mb
from benchmarks.soak import API, define

DEVICES = 50 if QUICK else 200
FLOOD_PER_S = 1000 if QUICK else 5000
REPORTS_PER_S = 100
PHASE_S = 3.0 if QUICK else 10.0
TURNS = 1 if QUICK else 3
TICK_S = 0.01
WITHIN_S = 60.0


class Others:
    """The devices that behave; `took_ms` is what their commands took."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []
        self._sent: list[deque[float]] = [deque() for _ in range(DEVICES)]
        self._loads = [Load(self._took, f"device-{number}") for number in range(DEVICES)]
        self._number = 0

    def _took(self, topic: str) -> None:
        sent = self._sent[int(topic.split("/")[1].removeprefix("thing-"))]
        self.took_ms.append(1000 * (time.perf_counter() - sent.popleft()))

    async def open(self, port: int) -> None:
        """Connect all."""
        await open_all(self._loads, port, "iotjobs/thing-{}/cmd/#")

    async def phase(self) -> list[float]:
        """Report for a phase; the milliseconds from each hot report to its command, all of which have come."""
        self.took_ms, began, first = [], time.monotonic(), self._number
        while (now := time.monotonic()) < began + PHASE_S:
            due = began + (self._number - first) / REPORTS_PER_S
            if due > now:
                await asyncio.sleep(due - now)
            device, turn = self._number % DEVICES, self._number // DEVICES
            if hot := turn % 2 == 0:
                self._sent[device].append(time.perf_counter())
            load = self._loads[device]
            temperature = 90 if hot else 20
            load.send(load.report(f"iotjobs/thing-{device}/report", b'{"temperature":%d}' % temperature))
            self._number += 1
        async with asyncio.timeout(WITHIN_S):
            while any(self._sent):  # noqa: ASYNC110 - what is awaited comes by a callback of each connection
                await asyncio.sleep(TICK_S)
        return self.took_ms

    def close(self) -> None:
        """Close all connections."""
        for load in self._loads:
            load.close()


class Flood:
    """The device that does not; `sent` counts its reports, and `wrong` what is none."""

    def __init__(self) -> None:
        self.sent = self.wrong = 0
        self.load = Load(lambda _topic: None, f"device-{DEVICES}")

    def _burst(self, *, wrong: bool) -> Iterator[bytes]:
        for _ in range(int(FLOOD_PER_S * TICK_S)):
            payload = b'{"n":' if wrong else b'{"n":%d}' % self.sent
            yield self.load.report(f"iotjobs/thing-{DEVICES}/report", payload)
            self.sent, self.wrong = self.sent + (not wrong), self.wrong + wrong

    async def run(self, *, wrong: bool = False) -> None:
        """Send until canceled."""
        began, first = time.monotonic(), self.sent + self.wrong
        while True:
            if self.sent + self.wrong - first < FLOOD_PER_S * (time.monotonic() - began):
                self.load.send(b"".join(self._burst(wrong=wrong)))
            else:
                await asyncio.sleep(TICK_S)
            await asyncio.sleep(0)


async def watched(pid: int, most: list[float]) -> None:
    """Keep the most resident memory, until canceled."""
    while True:
        most.append(rss_mb(pid))
        await asyncio.sleep(0.2)


async def measure(folder: Path) -> dict[str, Any]:
    """Run it, print the table; the figures."""
    phases: tuple[list[list[float]], ...] = ([], [], [])  # alone, beside the flood, beside what is no JSON
    with (
        mosquitto(folder) as port,
        Server(folder, settings={"IOTJOBS_MQTT_URL": f"mqtt://127.0.0.1:{port}"}) as server,
    ):
        client = server.client(1)
        await define(client, DEVICES + 1)
        others, flood = Others(), Flood()
        memory: list[float] = []
        try:
            await others.open(port)
            await flood.load.open(port, f"iotjobs/thing-{DEVICES}/cmd/#")
            await others.phase()  # caches fill
            before = rss_mb(server.pid)
            watching = asyncio.create_task(watched(server.pid, memory))
            for _ in range(TURNS):
                phases[0].append(await others.phase())
                for wrong in (False, True):
                    flooding = asyncio.create_task(flood.run(wrong=wrong))
                    phases[1 + wrong].append(await others.phase())
                    flooding.cancel()
            watching.cancel()
            told = await settled(client, flood)
        finally:
            others.close()
            flood.load.close()
            client.close()
    return shown(phases, max(memory) - before, told, flood)


async def settled(client: Any, flood: Flood) -> dict[str, Any]:
    """The state of the flooding device, once its last value is known, and all that was refused is counted."""
    name = f"thing-{DEVICES}"
    page = await client.call("GET", f"{API}/objects?limit=500")
    path = next(f"{API}/objects/{one['id']}" for one in page["items"] if one["name"] == name)
    async with asyncio.timeout(WITHIN_S):
        while (await client.call("GET", f"{path}/properties")).get("n") != flood.sent - 1:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        while True:
            state: dict[str, Any] = await client.call("GET", f"{path}/state")
            if state["refused"] >= flood.wrong:
                return state
            await asyncio.sleep(0.1)


def shown(
    kinds: tuple[list[list[float]], ...], grown_mb: float, told: dict[str, Any], flood: Flood
) -> dict[str, Any]:
    """Print the table; the figures."""
    p50 = [median([percentile(phase, 0.5) for phase in phases]) for phases in kinds]
    p95 = [median([percentile(phase, 0.95) for phase in phases]) for phases in kinds]
    rows: list[list[Any]] = [
        ["report to command, p50, ms", *p50, ratio(p50[1], p50[0]), ratio(p50[2], p50[0])],
        ["report to command, p95, ms", *p95, ratio(p95[1], p95[0]), ratio(p95[2], p95[0])],
    ]
    sent = flood.sent
    print(f"{DEVICES} devices, {REPORTS_PER_S} reports a second; one more sends {FLOOD_PER_S} a second\n")
    table(["of the others", "alone", "beside the flood", "beside what is no JSON", "ratio", "ratio"], rows)
    print(f"the flood sent {sent}; {told['reports']} counted, {told['superseded']} superseded")
    print(f"it sent {flood.wrong} that are no JSON; {told['refused']} refused")
    print(f"resident memory grew by {grown_mb:.1f} MB\n")
    if told["reports"] + told["superseded"] != sent or told["refused"] != flood.wrong:
        raise RuntimeError(f"{sent} reports and {flood.wrong} others sent, and {told} is told")
    return {
        "p95_ms": [round(one, 1) for one in p95],
        "p95_ratio": ratio(p95[1], p95[0]),
        "p95_ratio_wrong": ratio(p95[2], p95[0]),
        "sent": sent,
        "superseded": told["superseded"],
        "refused": told["refused"],
        "grown_mb": round(grown_mb, 1),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True) as text:
        figures = await measure(Path(text))
    finish("flood", figures)


if __name__ == "__main__":
    asyncio.run(main())

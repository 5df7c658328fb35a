"""From a report to the command that its change of state starts, beside Node-RED and a bare paho loop.

All follow one rule: a temperature above 90 is `alarm`, above 80 `overloaded`, else `working`; a change into
one of the first two sends a command. The reports of a thing alternate between 85 and 95, so that each is a
change and each starts one job. iotjobs records each report with its history, each change, each trigger's
decision and each job, once on SQLite with synchronous=FULL and once on PostgreSQL; the others record
nothing. `IOTJOBS_REPORT_RATE` is 0: here nothing may be left out.

- Steady: so many reports a second; from the write of a report to the arrival of its command, by the one
  clock of the process that does both.
- Saturation: all reports at once; commands a second, for iotjobs until the last job is FINISHED on disk.
- Ingest: reports that match nothing, with values that changed each time, and with the same ones.

Each contender's turn has a Mosquitto of its own, always of the same configuration, so that no session keeps
messages for one that is not there. Each turn checks that every report started exactly one job.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sqlite3
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.broker import mosquitto
from benchmarks.harness.figures import QUICK, finish, median, percentile, ratio, table
from benchmarks.harness.http import Client
from benchmarks.harness.mqtt import Load
from benchmarks.harness.node_red import is_installed, node_red
from benchmarks.harness.peer import PEERS, ROOT
from benchmarks.harness.postgres import postgres
from benchmarks.harness.server import Server, cpu_s, rss_mb

API = "/api/v1"
RUNS = 1 if QUICK else 3
RATES = (10, 100, 500) if QUICK else (10, 100, 500, 1000)
SECONDS = 2.0 if QUICK else 5.0
THINGS = 100
BURST = 500 if QUICK else 4000
INGEST = 1000 if QUICK else 10_000
WITHIN_S = 120.0
ALL_WITHIN_S = 3000.0
PROBE_S = 0.25
HOT, HOTTER, COOL = 85, 95, 20
CONDITIONS = [
    {"state": "alarm", "when": "temperature > 90"},
    {"state": "overloaded", "when": "temperature > 80"},
]
OPERATION = {
    "name": "cool",
    "type": "mqtt",
    "parameters": {
        "topic": "benchmark/{{name}}/cmd",
        "message": {"temperature": "{{properties.temperature}}"},
    },
}


@dataclass
class Fleet:
    """The things that report, over one connection.

    Attributes:
        sent: the moments of reports whose command has not come, by thing.
        took_s: from each report to its command.
        unasked: commands that no report stands for.
    """

    load: Load = field(init=False)
    unasked: int = 0
    sent: dict[str, deque[float]] = field(init=False)
    took_s: list[float] = field(default_factory=list)
    _temperatures: dict[str, int] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.load = Load(self._took)
        self.sent = {thing: deque() for thing in things()}

    def _took(self, topic: str) -> None:
        moments = self.sent[topic.split("/")[1]]
        if moments:
            self.took_s.append(time.perf_counter() - moments.popleft())
        else:
            self.unasked += 1
        self._news.set()

    def change(self, thing: str) -> bytes:
        """A report that puts the thing into another state than the one before."""
        self._temperatures[thing] = HOTTER if self._temperatures.get(thing) == HOT else HOT
        return self._encoded(thing, self._temperatures[thing])

    def no_change(self, thing: str, temperature: float) -> bytes:
        """A report that starts nothing."""
        self._temperatures[thing] = COOL
        return self._encoded(thing, temperature)

    def _encoded(self, thing: str, temperature: float) -> bytes:
        return self.load.report(f"iotjobs/{thing}/report", b'{"temperature":%.1f}' % temperature)

    def send(self, thing: str, report: bytes) -> None:
        """Send a report that starts a command."""
        self.sent[thing].append(time.perf_counter())
        self.load.send(report)

    async def until(self, commands: int) -> None:
        """Wait until so many commands have come since the last `clear`.

        Raises:
            TimeoutError: not in time.
            RuntimeError: more came than were asked for.
        """
        async with asyncio.timeout(WITHIN_S):
            while len(self.took_s) < commands:
                self._news.clear()
                await self._news.wait()
        if self.unasked:
            raise RuntimeError(f"{self.unasked} commands too many")

    def clear(self) -> None:
        """Begin to count anew."""
        self.took_s = []


def things() -> list[str]:
    return [f"thing-{number:03}" for number in range(THINGS)]


def turns(count: int) -> Iterable[str]:
    names = things()
    return (names[number % THINGS] for number in range(count))


class Contender(Protocol):
    """Something that answers reports by commands."""

    name: str

    def running(self, port: int) -> Any:
        """A context manager of it on the broker of this port; its process id."""

    async def recorded(self) -> int | None:
        """Wait until all is recorded; how many jobs were since the last call, None without a record.

        Raises:
            RuntimeError: two have one cause, or one did not succeed.
        """


class Records(Protocol):
    """What SQLite's and PostgreSQL's connections have in common."""

    def execute(self, statement: str, /) -> Any:
        """Its cursor."""


class Iotjobs:
    """`iotjobs serve` on one of its databases; the same site in each of its turns."""

    def __init__(self, name: str, folder: Path, settings: dict[str, str]) -> None:
        self.name, self._folder, self._settings = name, folder, settings
        self._defined, self._seen = False, 0
        self._records: Records | None = None

    @asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[int]:
        """See `Contender`."""
        given = {"IOTJOBS_MQTT_URL": f"mqtt://127.0.0.1:{port}", "IOTJOBS_REPORT_RATE": "0"}
        self._folder.mkdir(exist_ok=True)
        server = await asyncio.to_thread(Server(self._folder, settings=given | self._settings).start)
        try:
            if not self._defined:
                client = server.client(1)
                await define(client)
                client.close()
                self._defined = True
            records: Any
            if (url := self._settings.get("IOTJOBS_DATABASE_URL")) is None:
                at = f"file:{server.data / 'iotjobs.db'}?mode=ro"
                records = sqlite3.connect(at, uri=True, isolation_level=None)
            else:
                # In the benchmarks' environment only.
                records = import_module("psycopg").connect(url, autocommit=True)
            self._records = records
            yield server.pid
            records.close()
        finally:
            await asyncio.to_thread(server.stop)

    def _one(self, statement: str) -> tuple[Any, ...]:
        assert self._records is not None, "running"
        row: tuple[Any, ...] = self._records.execute(statement).fetchone()
        return row

    async def recorded(self) -> int | None:
        """See `Contender`."""
        open_ = "SELECT count(*) FROM job WHERE status IN ('PENDING', 'RUNNING')"
        async with asyncio.timeout(WITHIN_S):
            while self._one(open_)[0]:  # noqa: ASYNC110 - another process's rows have no event
                await asyncio.sleep(0.01)
        count, causes, succeeded, newest = self._one(
            "SELECT count(*), count(DISTINCT cause_key), count(CASE outcome WHEN 'succeeded' THEN 1 END),"
            f" coalesce(max(seq), 0) FROM job WHERE seq > {self._seen}"
        )
        self._seen = max(self._seen, newest)
        if not count == causes == succeeded:
            raise RuntimeError(f"{self.name}: {count} jobs of {causes} causes, {succeeded} succeeded")
        return int(count)


async def define(client: Client) -> None:
    """A class with the rule, and an object for each thing."""
    made = await client.call("POST", f"{API}/classes", {"name": "device"})
    path = f"{API}/classes/{made['id']}"
    operation = await client.call("POST", f"{path}/operations", OPERATION)
    await client.call("PUT", f"{path}/state-conditions", {"items": CONDITIONS})
    trigger = {"name": "cool", "states": ["alarm", "overloaded"], "operation_id": operation["id"]}
    await client.call("PUT", f"{path}/state-triggers", {"items": [trigger]})
    for name in things():
        await client.call("POST", f"{API}/objects", {"name": name, "thing": name, "class_id": made["id"]})


class NodeRed:
    """Node-RED; it records nothing."""

    name = "Node-RED"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[int]:
        """See `Contender`."""
        with node_red(self._folder, port) as pid:
            yield pid

    async def recorded(self) -> None:
        """See `Contender`."""


class BarePaho:
    """paho's callback loop; it records nothing."""

    name = "bare paho"

    @asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[int]:
        """See `Contender`."""
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, str(PEERS / "paho_reports.py"), str(port)]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(WITHIN_S):
                await process.stdout.readline()
            yield process.pid
        finally:
            process.stdin.close()
            await process.wait()

    async def recorded(self) -> None:
        """See `Contender`."""


@dataclass
class Found:
    """Figures of one contender, one of each turn."""

    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)
    commands_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    changed_per_s: list[float] = field(default_factory=list)
    same_per_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


async def warm_up(fleet: Fleet) -> None:
    """Report until commands come, and then a little more.

    Raises:
        RuntimeError: none came.
    """
    until, first = time.monotonic() + WITHIN_S, things()[0]
    while not fleet.took_s:  # reports before its subscription reach nobody
        if time.monotonic() > until:
            raise RuntimeError("no command came")
        fleet.send(first, fleet.change(first))
        await asyncio.sleep(PROBE_S)
    await asyncio.sleep(2 * PROBE_S)
    fleet.sent[first].clear()
    fleet.clear()
    for thing in turns(3 * THINGS):
        fleet.send(thing, fleet.change(thing))
    await fleet.until(3 * THINGS)


async def check(contender: Contender, changes: int) -> None:
    """See that so many changes left a job each, where there is a record.

    Raises:
        RuntimeError: they did not.
    """
    jobs = await contender.recorded()
    if jobs not in (None, changes):
        raise RuntimeError(f"{contender.name}: {changes} changes and {jobs} jobs")


async def steady(fleet: Fleet, rate: int) -> list[float]:
    """Milliseconds from each report to its command."""
    fleet.clear()
    count, began = int(rate * SECONDS), time.perf_counter()
    for number, thing in enumerate(turns(count)):
        wait_s = began + number / rate - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        fleet.send(thing, fleet.change(thing))
    await fleet.until(count)
    return [1000 * took for took in fleet.took_s]


async def burst(fleet: Fleet, contender: Contender) -> float:
    """Seconds until all commands have come, and are recorded."""
    fleet.clear()
    reports = [(thing, fleet.change(thing)) for thing in turns(BURST)]
    began = time.perf_counter()
    for thing, _ in reports:
        fleet.sent[thing].append(began)
    fleet.load.send(b"".join(report for _, report in reports))
    await fleet.until(BURST)
    await check(contender, BURST)
    return time.perf_counter() - began


async def ingest(fleet: Fleet, *, changing: bool) -> float:
    """Seconds until reports that match nothing are worked through; the last one starts a command."""
    fleet.load.send(b"".join(fleet.no_change(thing, COOL) for thing in things()))
    fleet.clear()
    reports = [
        fleet.no_change(thing, COOL + (number // THINGS % 40 + 1 if changing else 0))
        for number, thing in enumerate(turns(INGEST))
    ]
    last = things()[0]
    began = time.perf_counter()
    fleet.load.send(b"".join(reports))
    fleet.send(last, fleet.change(last))
    await fleet.until(1)
    return time.perf_counter() - began


async def turn(contender: Contender, folder: Path, found: Found) -> None:
    """One contender's turn on a broker of its own."""
    with mosquitto(folder) as port:
        async with contender.running(port) as pid:
            fleet = Fleet()
            try:
                await fleet.load.open(port, "benchmark/#")
                await warm_up(fleet)
                await contender.recorded()
                for rate in RATES:
                    took = await steady(fleet, rate)
                    await check(contender, len(took))
                    found.p50_ms.setdefault(rate, []).append(percentile(took, 0.5))
                    found.p99_ms.setdefault(rate, []).append(percentile(took, 0.99))
                cpu = cpu_s(pid)
                found.commands_per_s.append(BURST / await burst(fleet, contender))
                found.cpu_ms.append(1000 * (cpu_s(pid) - cpu) / BURST)
                found.changed_per_s.append(INGEST / await ingest(fleet, changing=True))
                found.same_per_s.append(INGEST / await ingest(fleet, changing=False))
                await check(contender, 2)
                found.rss_mb.append(rss_mb(pid))
            finally:
                fleet.load.close()


def report(found: dict[str, Found]) -> dict[str, Any]:
    """Print the tables; the figures."""
    node, paho = found.get(NodeRed.name, Found()), found[BarePaho.name]
    waits: list[tuple[str, int, float, float, float | None]] = []
    for name, of in found.items():
        for rate in RATES:
            p50, p99 = median(of.p50_ms[rate]), median(of.p99_ms[rate])
            theirs = median(node.p50_ms.get(rate, []))
            waits.append((name, rate, p50, p99, ratio(p50, theirs)))
    print(f"medians of {RUNS} turns; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    table(["", "reports/s", "p50 ms to the command", "p99 ms", "p50 ÷ Node-RED's"], waits)
    commands = {name: median(of.commands_per_s) for name, of in found.items()}
    rows = [
        [name, commands[name], ratio(commands[name], median(node.commands_per_s)), median(of.cpu_ms)]
        for name, of in found.items()
    ]
    table(["", "commands/s at saturation", "÷ Node-RED's", "CPU ms each"], rows)
    changed = {name: median(of.changed_per_s) for name, of in found.items()}
    same = {name: median(of.same_per_s) for name, of in found.items()}
    rows = [
        [
            name,
            changed[name],
            ratio(changed[name], median(paho.changed_per_s)),
            same[name],
            ratio(same[name], median(paho.same_per_s)),
            median(of.rss_mb),
        ]
        for name, of in found.items()
    ]
    head = [
        "",
        "matching nothing, changed values/s",
        "÷ bare paho",
        "the same values/s",
        "÷ bare paho",
        "RSS MB",
    ]
    table(head, rows)
    return {
        "runs": RUNS,
        "ms": {f"{name}, {rate}/s": [round(p50, 2), round(p99, 2)] for name, rate, p50, p99, _ in waits},
        "commands_per_s": {name: round(rate) for name, rate in commands.items()},
        "changed_per_s": {name: round(rate) for name, rate in changed.items()},
        "same_per_s": {name: round(rate) for name, rate in same.items()},
    }


def make_key(folder: Path) -> Path:
    """A secret key in the folder, which PostgreSQL's user may enter from now on."""
    folder.chmod(0o755)
    key = folder / "secret.key"
    key.touch(0o600)
    key.write_bytes(base64.b64encode(os.urandom(32)))
    return key


async def main() -> None:
    async with AsyncExitStack() as stack:
        text = stack.enter_context(tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True))
        folder = Path(text)
        key = make_key(folder)
        url = stack.enter_context(postgres(folder / "postgres"))
        on_postgres = {"IOTJOBS_DATABASE_URL": f"{url}/postgres", "IOTJOBS_SECRET_KEY_FILE": str(key)}
        contenders: list[Contender] = [
            Iotjobs("iotjobs, SQLite", folder / "sqlite", {}),
            Iotjobs("iotjobs, PostgreSQL", folder / "site", on_postgres),
            BarePaho(),
        ]
        if is_installed():
            contenders.append(NodeRed(folder / "node-red"))
        else:
            print("Node-RED is not installed (npm is missing): measured without it\n", file=sys.stderr)
        found = {contender.name: Found() for contender in contenders}
        async with asyncio.timeout(ALL_WITHIN_S):
            for _ in range(RUNS):
                for contender in contenders:
                    await turn(contender, folder, found[contender.name])
    finish("reports", report(found))


if __name__ == "__main__":
    asyncio.run(main())

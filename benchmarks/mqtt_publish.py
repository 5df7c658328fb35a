"""Recorded mqtt jobs per second (QoS 1, PUBACK) beside a bare paho loop on the same Mosquitto.

A job here is submitted, written, published, acknowledged by the broker and written again as
FINISHED, all on SQLite with synchronous=FULL. A window is how many are under way at once: HTTP
connections for the server, unacknowledged messages for paho. One subscriber takes all messages, so
that the broker has the same work with each. Then, at a modest rate, how long a call with `?wait=`
takes: from the request to the answer that tells FINISHED.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.broker import mosquitto
from benchmarks.harness.figures import QUICK, finish, median, percentile, ratio, table
from benchmarks.harness.http import Client
from benchmarks.harness.peer import PEERS, Peer
from benchmarks.harness.server import JobTable, Server, cpu_s, rss_mb

JOBS = 200 if QUICK else 2000
WINDOWS = (1, 16) if QUICK else (1, 16, 64)
RUNS = 1 if QUICK else 3
RATES = (20,) if QUICK else (20, 50)
RATE_S = 2 if QUICK else 10
ALL_WITHIN_S = 900.0
API = "/api/v1"


async def define(client: Client) -> str:
    """An object and its operation; the path that executes it."""
    made = await client.call("POST", f"{API}/objects", {"name": "device", "thing": "device"})
    operation = await client.call(
        "POST",
        f"{API}/objects/{made['id']}/operations",
        {
            "name": "on",
            "type": "mqtt",
            "parameters": {"topic": "benchmark/device", "message": {"on": True}, "qos": 1},
        },
    )
    return f"{API}/objects/{made['id']}/operations/{operation['id']}/execute"


async def through_rest(server: Server, path: str, window: int) -> tuple[float, float]:
    """Jobs/s and server CPU ms a job with `window` connections."""
    client, jobs = server.client(window), JobTable(server.data)
    await client.open()
    request = client.request("POST", path, {})
    after, cpu, began = jobs.newest(), cpu_s(server.pid), time.monotonic()
    answers = await client.send_all([request] * JOBS)
    if any(status != 202 for status, _ in answers):
        raise RuntimeError("an execute was refused")
    await jobs.all_ended(after, JOBS, 120)
    took, used = time.monotonic() - began, cpu_s(server.pid) - cpu
    client.close()
    jobs.close()
    return JOBS / took, 1000 * used / JOBS


async def at_rate(server: Server, path: str, rate: int) -> list[float]:
    """Milliseconds from each request to its FINISHED, requests coming at a steady rate."""
    clients = [server.client(1) for _ in range(rate)]
    for client in clients:
        await client.open()
    request = clients[0].request("POST", f"{path}?wait=10", {})
    began, took = time.monotonic(), []

    async def one(number: int) -> None:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        [(status, _)] = await clients[number % rate].send_all([request])
        if status != 200:
            raise RuntimeError(f"a job did not end in time: {status}")
        took.append(1000 * (time.monotonic() - due))

    await asyncio.gather(*(one(number) for number in range(rate * RATE_S)))
    for client in clients:
        client.close()
    return took


async def peer_rate(peer: Peer) -> tuple[float, float]:
    """Jobs/s and CPU ms a job of a peer's round; the one before it warms up."""
    try:
        await peer.start()
        await peer.fan_out()
        took = await peer.fan_out()
    finally:
        await peer.stop()
    return JOBS / took.seconds, 1000 * took.cpu_s / JOBS


async def measure(folder: Path, port: int) -> dict[str, Any]:
    """Everything on one broker; prints the tables."""
    settings = {"IOTJOBS_MQTT_URL": f"mqtt://127.0.0.1:{port}"}
    server = Server(folder / "site", settings=settings)
    with server:
        client = server.client(1)
        path = await define(client)
        client.close()
    shutil.copytree(folder / "site" / "data", folder / "engine")
    (folder / "paths.json").write_text(json.dumps([path] * JOBS))
    in_process = ["-m", "benchmarks.harness.in_process", str(folder / "engine"), str(folder / "paths.json")]
    found: dict[str, list[tuple[float, float]]] = {}
    latencies: dict[int, list[float]] = {}
    for _ in range(RUNS):
        for window in WINDOWS:
            command = [sys.executable, str(PEERS / "bare_paho.py"), str(port), str(JOBS), str(window)]
            found.setdefault(f"bare paho, window {window}", []).append(await peer_rate(Peer("paho", command)))
        with server:
            await through_rest(server, path, 16)  # warms up
            for window in WINDOWS:
                rate = await through_rest(server, path, window)
                found.setdefault(f"iotjobs serve (REST), {window} connections", []).append(rate)
            for a_second in RATES:
                latencies.setdefault(a_second, []).extend(await at_rate(server, path, a_second))
            memory = rss_mb(server.pid)
        engine = Peer("iotjobs, in process", [sys.executable, *in_process], settings)
        found.setdefault(f"iotjobs, in process, {JOBS} at once", []).append(await peer_rate(engine))
    return report(found, latencies, memory)


def report(
    found: dict[str, list[tuple[float, float]]], latencies: dict[int, list[float]], memory: float
) -> dict[str, Any]:
    """Print the tables; the figures."""
    rates = {
        name: (median([rate for rate, _ in runs]), median([cpu for _, cpu in runs]))
        for name, runs in found.items()
    }
    limit = max(rate for name, (rate, _) in rates.items() if name.startswith("bare"))
    rows = [[name, rate, cpu, ratio(rate, limit)] for name, (rate, cpu) in rates.items()]
    print(f"{JOBS} jobs, medians of {RUNS} runs; RSS of the server {memory:.0f} MB\n")
    table(["", "jobs/s", "CPU ms/job", "÷ best bare paho"], rows)
    waits = {rate: (percentile(took, 0.5), percentile(took, 0.99)) for rate, took in latencies.items()}
    table(
        ["requests/s", "p50 ms to FINISHED", "p99 ms"],
        [[rate, p50, p99] for rate, (p50, p99) in waits.items()],
    )
    return {
        "jobs": JOBS,
        "runs": RUNS,
        "per_s": {name: round(rate, 1) for name, (rate, _) in rates.items()},
        "cpu_ms": {name: round(cpu, 3) for name, (_, cpu) in rates.items()},
        "to_finished_ms": {str(rate): [round(p50, 2), round(p99, 2)] for rate, (p50, p99) in waits.items()},
        "rss_mb": round(memory, 1),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True) as text:
        folder = Path(text)
        with mosquitto(folder) as port:
            subscriber = Peer("subscriber", [sys.executable, str(PEERS / "subscriber.py"), str(port)])
            try:
                await subscriber.start()
                async with asyncio.timeout(ALL_WITHIN_S):
                    figures = await measure(folder, port)
            finally:
                await subscriber.stop()
    finish("mqtt_publish", figures)


if __name__ == "__main__":
    asyncio.run(main())

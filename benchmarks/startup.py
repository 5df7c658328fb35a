"""How long until the server is ready, until `iotjobs --version` has printed, and what idling costs.

Start is measured from the spawn to the first 200 of `/readyz`, once with an empty data directory
(keys, migrations, the first administrator) and then with one that exists; a start before them
writes the byte code. Idle is a server that
nobody asks anything, over a minute: its memory at the beginning and the end, and its processor time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness.figures import QUICK, finish, median, table
from benchmarks.harness.server import Server, cpu_s, rss_mb

RUNS = 2 if QUICK else 5
IDLE_S = 5 if QUICK else 60


def version_ms() -> float:
    """Milliseconds of one `iotjobs --version`."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "iotjobs", "--version"], check=True, capture_output=True, timeout=30
    )
    return 1000 * (time.monotonic() - began)


def main() -> None:
    versions = [version_ms() for _ in range(2 * RUNS)]
    first, again = [], []
    with tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True) as folder:
        with Server(Path(folder) / "before"):
            pass
        for number in range(RUNS):
            server = Server(Path(folder) / str(number))
            with server:
                first.append(server.ready_s)
            with server:
                again.append(server.ready_s)
        with server:
            began, cpu = rss_mb(server.pid), cpu_s(server.pid)
            time.sleep(IDLE_S)
            ended, used = rss_mb(server.pid), cpu_s(server.pid) - cpu
    rows = [
        ["iotjobs --version, ms", median(versions), "≤ 150"],
        ["ready, empty data directory, s", median(first), "≤ 3"],
        ["ready, existing data directory, s", median(again), "≤ 3"],
        ["RSS idle at the beginning, MB", began, "≤ 120"],
        [f"RSS idle after {IDLE_S} s, MB", ended, "≤ 120"],
        ["CPU idle, ms/s", 1000 * used / IDLE_S, "-"],
    ]
    print(f"medians of {RUNS} starts\n")
    table(["", "measured", "goal"], rows)
    finish(
        "startup",
        {
            "version_ms": round(median(versions)),
            "ready_first_s": round(median(first), 2),
            "ready_s": round(median(again), 2),
            "rss_mb": [round(began, 1), round(ended, 1)],
            "idle_cpu_ms_per_s": round(1000 * used / IDLE_S, 2),
        },
    )


if __name__ == "__main__":
    main()

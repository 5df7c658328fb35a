"""The line protocol of a peer that runs one command on all devices, again and again.

Started as `python PEER.py FLEET.json`; each line on stdin is one fan-out, answered by one line with
its seconds, processor seconds and failures. The first one opens the connections; end of input
closes them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def read_fleet() -> dict[str, Any]:
    """The fleet that the first argument names; see `harness/fleet.py`."""
    with open(sys.argv[1]) as file:
        fleet: dict[str, Any] = json.load(file)
    return fleet


def answer(took_s: float, cpu_s: float, failed: int) -> None:
    """Tell what one fan-out took."""
    print(json.dumps({"seconds": took_s, "cpu_s": cpu_s, "failed": failed}), flush=True)


def serve(fan_out: Callable[[], int]) -> None:
    """Answer each line on stdin; `fan_out` returns how many failed."""
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        began, cpu = time.monotonic(), time.process_time()
        failed = fan_out()
        answer(time.monotonic() - began, time.process_time() - cpu, failed)

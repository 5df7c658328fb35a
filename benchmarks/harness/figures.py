"""Medians, tables, and the one JSON line of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

QUICK = os.environ.get("QUICK", "0") == "1"


def median(values: Sequence[float]) -> float:
    """The middle one; 0 without any."""
    return statistics.median(values) if values else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(ours: float, theirs: float) -> float | None:
    """How many times theirs ours is; None where there is no measurement of either."""
    return round(ours / theirs, 2) if ours and theirs else None


def python_ms() -> float:
    """Processor milliseconds of a fixed piece of Python: tells machines, and moments, apart."""
    began = time.thread_time()
    kept: dict[int, Any] = {}
    for number in range(300_000):
        kept[number % 1000] = (number, str(number))
        sample = [number] * 3
        sample.append(kept.get(number % 7))
    return (time.thread_time() - began) * 1000


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    cells = [[_shown(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    return str(cell)


def finish(name: str, figures: dict[str, Any]) -> None:
    """Print the JSON line: the figures, and the machine and the moment that they belong to."""
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "python_ms": round(python_ms()),
        "load": round(os.getloadavg()[0], 1),
        "quick": QUICK,
    }
    print(json.dumps({"benchmark": name, **figures, "machine": machine}), flush=True)

"""A process beside us that speaks the line protocol of `benchmarks/peers/fan_out.py`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.server import rss_mb

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
ANSWER_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Took:
    """One round: seconds, and processor seconds of the contender's own process."""

    seconds: float
    cpu_s: float


@dataclass(slots=True)
class Peer:
    """A process from `start` to `stop`; each round is one line to it and one back."""

    name: str
    command: Sequence[str]
    settings: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True  # no: it starts processes of its own, so that its memory says nothing
    _process: asyncio.subprocess.Process | None = None

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started"
        return self._process

    async def start(self) -> None:
        """Bring the process up; no connection is open."""
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self.settings,
            cwd=ROOT,
        )
        await self._line()

    async def _line(self) -> dict[str, Any]:
        assert self._running.stdout is not None
        async with asyncio.timeout(ANSWER_WITHIN_S):
            line = await self._running.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: its complaint is above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def fan_out(self) -> Took:
        """Run one round.

        Raises:
            RuntimeError: a job failed.
        """
        assert self._running.stdin is not None
        self._running.stdin.write(b"go\n")
        took = await self._line()
        if took["failed"]:
            raise RuntimeError(f"{self.name}: {took['failed']} failed")
        return Took(took["seconds"], took["cpu_s"])

    def rss_mb(self) -> float:
        """Resident memory now; 0 where that says nothing."""
        return rss_mb(self._running.pid) if self.is_whole else 0.0

    async def stop(self) -> None:
        """End the process, and with it its connections. Calling it twice is safe."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(60):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

"""Devices that report all the time, each on a connection of its own, and how soon they are back after an outage."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

from iotjobs_sim.mqtt_devices import PretendDevice

STARTS_PER_S = 40


class Voice(PretendDevice):
    """One of them.

    Attributes:
        connects: the moments at which the broker let it in.
        back_at: of each connection the moment at which the broker had acknowledged a first report.
    """

    def __init__(self, thing: str, port: int, spread_s: float) -> None:
        super().__init__(thing, "127.0.0.1", port, spread_s=spread_s)
        self.connects: list[float] = []
        self.back_at: list[float] = []

    def _let_in(self, *given: Any) -> None:
        self.connects.append(time.monotonic())
        super()._let_in(*given)

    def _acknowledged(self, *given: Any) -> None:
        super()._acknowledged(*given)
        if len(self.back_at) < len(self.connects):
            self.back_at.append(time.monotonic())


class Chorus:
    """`async with` it: all are connected, and report hot and cold in turn until `silence`.

    Attributes:
        sent, hot: how many reports, and hot ones, each has said.
        up_at: when the broker was up again, of each outage.
    """

    def __init__(
        self, port: int, things: Sequence[str], *, every_s: float, spread_s: float, chance: random.Random
    ) -> None:
        self.voices = [Voice(thing, port, spread_s) for thing in things]
        self._every_s, self._chance = every_s, chance
        self._speaking: list[asyncio.Task[None]] = []
        self.sent: Counter[str] = Counter()
        self.hot: Counter[str] = Counter()
        self.up_at: list[float] = []

    async def __aenter__(self) -> Chorus:
        for voice in self.voices:
            await voice.start()
            self._speaking.append(asyncio.create_task(self._speak(voice)))
            await asyncio.sleep(1 / STARTS_PER_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.silence()
        for voice in self.voices:
            await voice.stop()

    async def _speak(self, voice: Voice) -> None:
        await asyncio.sleep(self._chance.uniform(0, self._every_s))
        while True:
            number, hot = self.sent[voice.thing], self.sent[voice.thing] % 2 == 0
            values = {"temperature": 90 if hot else 20, "n": number}
            voice.report(values, report_id=f"{voice.thing}-{number}")
            self.sent[voice.thing] += 1
            self.hot[voice.thing] += hot
            await asyncio.sleep(self._every_s)

    async def silence(self) -> None:
        """Nobody says anything any more; what was said goes on its way."""
        for task in self._speaking:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._speaking.clear()

    @property
    def all_taken(self) -> bool:
        """Whether the broker has acknowledged everything."""
        return not any(voice.unacknowledged for voice in self.voices)

    @property
    def all_back(self) -> bool:
        """Whether each has had a report acknowledged since the broker was up."""
        return all(voice.back_at[-1] > self.up_at[-1] for voice in self.voices if voice.back_at)

    def back_after_s(self) -> list[float]:
        """Of all outages and voices, in order: from the broker being up to the first report acknowledged."""
        return sorted(
            next(at for at in voice.back_at if at > up) - up for up in self.up_at for voice in self.voices
        )

    def most_connects_in_a_second(self) -> list[int]:
        """Of all voices together, of each outage, in order: where a machine stands still they come at once after it."""
        found = []
        for up, following in pairwise([*self.up_at, math.inf]):
            moments = [at for voice in self.voices for at in voice.connects if up < at < following]
            found.append(max(sum(at <= one < at + 1 for one in moments) for at in moments))
        return sorted(found)

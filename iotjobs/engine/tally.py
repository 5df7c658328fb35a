"""Counts of devices' messages that had no effect, from when they come until they are written.

A flood of what nobody can read must not cost a write each: it is counted here, and written at most once a
second. What names no object, or comes from more than `NAMES` in a second, is in the log only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from iotjobs import clock
from iotjobs.engine.rates import Who
from iotjobs.store.unheeded import TEXT_CHARACTERS, Refusal, Unheeded

WRITE_EVERY_S = 1.0
NAMES = 1000  # on some brokers anybody may make up names


@dataclass(slots=True)
class Tally:
    """What is not written yet."""

    _of: dict[Who, Unheeded] = field(default_factory=dict)
    _next_at: float = 0.0  # of the monotonic clock: no earlier is anything written again

    def repeat(self, who: Who) -> None:
        """A message came again, and had its effect before."""
        self._add(who, Unheeded(repeated=1))

    def refuse(self, who: Who, topic: str, why: str, count: int = 1) -> None:
        """A message was refused, for this reason, and with it those that it stands for."""
        last = Refusal(clock.now_ms(), topic[:TEXT_CHARACTERS], why[:TEXT_CHARACTERS])
        self._add(who, Unheeded(refused=count, last=last))

    def _add(self, who: Who, more: Unheeded) -> None:
        before = self._of.get(who)
        if before is not None:
            self._of[who] = Unheeded(
                before.repeated + more.repeated, before.refused + more.refused, more.last or before.last
            )
        elif len(self._of) < NAMES:
            self._of[who] = more

    def wait_s(self) -> float | None:
        """How long until something is to be written, 0 when it is time; None while there is nothing."""
        return max(0.0, self._next_at - clock.monotonic()) if self._of else None

    def take(self) -> Mapping[Who, Unheeded]:
        """What is to be written now, if it is time; it stays here until it is `written`."""
        if self.wait_s() != 0:
            return {}
        self._next_at = clock.monotonic() + WRITE_EVERY_S
        return dict(self._of)

    def written(self, given: Mapping[Who, Unheeded]) -> None:
        """Let go of what `take` gave."""
        for who, told in given.items():
            now = self._of.pop(who)
            if now != told:
                repeated, refused = now.repeated - told.repeated, now.refused - told.refused
                self._of[who] = replace(now, repeated=repeated, refused=refused)

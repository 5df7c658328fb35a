"""What has not changed for too long: by what this process saw itself, on a clock that nobody sets.

Beats and leases carry moments of the database's clock. They are compared with each other, never with
that clock: one that is set forward would make everybody look dead, and one that is set back would make the
dead look alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from iotjobs import clock

S = TypeVar("S")


class Silence(Generic[S]):
    """Watches things that change as long as somebody looks after them.

    Args:
        after_s: without a change for so long a thing is silent.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._seen: dict[str, tuple[S, float]] = {}

    def of(self, states: Mapping[str, S], asked: float) -> dict[str, S]:
        """Take note of how all of them stand; those that are silent.

        Args:
            states: what each was found to say.
            asked: the moment of the monotonic clock before that was looked up.
        """
        now, before = clock.monotonic(), self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == state else (state, now)
            for name, state in states.items()
        }
        return {name: state for name, (state, since) in self._seen.items() if asked - since >= self._after_s}

"""Whether the site is ready: not before its parts were up once, degraded when one is down later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Readiness:
    """Parts and what is known of them."""

    _watched: dict[str, Callable[[], bool]] = field(default_factory=dict)
    _was_up: set[str] = field(default_factory=set)
    _absent: dict[str, str] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _troubles: dict[str, Callable[[], str | None]] = field(default_factory=dict)

    def up(self, part: str) -> None:
        """The part is up for good."""
        self.watch(part, lambda: True)

    def watch(self, part: str, is_up: Callable[[], bool]) -> None:
        """Ask this for the part's state from now on."""
        self._watched[part] = is_up

    def absent(self, part: str, why: str) -> None:
        """The site has no such part; it works without."""
        self._absent[part] = why

    def degraded(self, part: str, reason: Callable[[], str | None]) -> None:
        """Ask this for what troubles a part that is up; None while nothing does."""
        self._troubles[part] = reason

    def failed(self, part: str, why: str) -> None:
        """The part is gone for good: the site is not ready any more."""
        self._failed[part] = why

    def report(self) -> tuple[bool, dict[str, str]]:
        """Whether the site is ready, and the reasons why a part is not up."""
        told = {part: reason() for part, reason in self._troubles.items()}
        reasons = self._absent | {part: reason for part, reason in told.items() if reason is not None}
        ready = True
        for part, is_up in self._watched.items():
            if is_up():
                self._was_up.add(part)
            elif part in self._was_up:
                reasons[part] = f"the {part} is down"
            else:
                reasons[part] = f"the {part} was not up yet"
                ready = False
        return ready and not self._failed, reasons | self._failed

"""Whether somebody listens to devices, since when, and up to when everything they said has been heard.

While nobody does, what devices say waits at the broker: an answer that does not come is not late, and who
does not report is not silent. `Ingest` writes down who listens; each process watches that on its monotonic
clock, and holds it against the beats of who it is (see `engine.silence` for why). A process that has just
begun, alone after a crash say, takes nothing for heard before it has seen somebody listen for a while.

A broker that never comes back must not keep jobs for ever: after a quarter of an hour time goes on
without it.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.states import PATIENCE_MS, Heard
from iotjobs.engine.services import LoopService
from iotjobs.store import facts, nodes
from iotjobs.store.session import Store

LOOK_EVERY_S = 0.5
LOOK_WITHIN_S = 0.1  # a look takes no longer, or waits be late
# Listened to for so long: devices that lost the broker too have come back, and said what they had to say.
GRACE_S = 5.0
# Nothing was heard for longer than this, and silence counts anew: more than a beat or two and the grace.
BREAK_S = 15.0
_LONG_AGO = float("-inf")


class Listening(LoopService):
    """Watches who listens.

    Args:
        store: where that is written down.
        worker_id: gives the id of this process's worker, of whom no beat is needed.
    """

    name = "listening"

    def __init__(self, store: Store, worker_id: Callable[[], str]) -> None:
        super().__init__()
        self._store, self._worker_id = store, worker_id
        self._asked = self._began = self._since = clock.monotonic()
        self._awaited = True  # somebody has listened before
        self._who = ""
        self._beat: int | None = None
        self._alive_until = _LONG_AGO  # who listens
        self._nobody_before = False  # ever, when this process began: nothing waited at the broker
        self._grace_s = GRACE_S
        self._heard_until = self._heard_from = _LONG_AGO

    async def _loop(self) -> None:
        while True:
            await self.look()
            await clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """See who listens now."""
        asked, before, worker_id = clock.monotonic(), self._asked, self._worker_id()

        def query(conn: Connection) -> tuple[str | None, int | None]:
            who = facts.value(conn, facts.LISTENS)
            return who, nodes.last_beat(conn, who) if who and who != worker_id else None

        found, beat = await self._store.look(query)
        self._asked, self._awaited = asked, found is not None
        self._nobody_before |= found is None
        ours = found == worker_id
        who = found if found and (ours or beat is not None) else ""
        # Behind a sleep of ours it may have been another meanwhile.
        if who != self._who or asked - before > GRACE_S:
            self._who, self._since = who, clock.monotonic()
            self._grace_s = 0.0 if who and self._nobody_before else GRACE_S
            self._nobody_before &= not who
            self._alive_until = _LONG_AGO
        elif ours:
            self._alive_until = asked + LOOK_EVERY_S + LOOK_WITHIN_S  # until the next look is done
        elif beat != self._beat:
            self._alive_until = before
        self._beat = beat
        if self._alive_until - self._since >= self._grace_s:
            if self._alive_until - self._heard_until > BREAK_S:
                self._heard_from = self._since
            self._heard_until = self._alive_until

    def heard(self, now: int) -> Heard:
        """How far it is known what devices have said.

        Args:
            now: the moment by `clock.now_ms`.
        """
        if not self._awaited or self._in_vain:
            return Heard.all_until(now)
        if self._heard_until == _LONG_AGO:
            return Heard(since=now, until=0)
        at = clock.monotonic()
        behind_s = max(0.0, at - self._heard_until)
        since_s = 0.0 if behind_s > BREAK_S else at - self._heard_from
        return Heard(since=now - round(since_s * 1000), until=now - round(behind_s * 1000))

    @property
    def ours(self) -> bool:
        """Whether it is this process that listens."""
        return bool(self._who) and self._who == self._worker_id()

    @property
    def another(self) -> bool:
        """Whether another one does, of which a beat was seen a moment ago."""
        seen = max(self._since, self._alive_until)
        return bool(self._who) and not self.ours and clock.monotonic() - seen < GRACE_S

    @property
    def _in_vain(self) -> bool:
        """Whether it was waited for long enough, while we looked."""
        return self._asked - max(self._began, self._heard_until) > PATIENCE_MS / 1000

    def trouble(self) -> str | None:
        """Why devices are not heard; None while they are, or may be in a moment."""
        if self._who or clock.monotonic() - self._since < GRACE_S:
            return None
        waits = "and time goes on without them" if self._in_vain else "and so do their timeouts"
        return f"nobody listens: what devices send waits at the broker, {waits}"

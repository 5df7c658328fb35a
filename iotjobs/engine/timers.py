"""Time's part in states and triggers: what was held long enough, what is silent, what repeats.

Both are rows, so that they go on across restarts. A look that comes late finds the same rows, and each is
given its effect in a transaction that takes it away.

A wait is over when everything that devices said by its moment was heard, for they may have said that the state
is another. Who listens to them knows that first, and looks; where nobody does, the leader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import LeaseLost, NotFound, StorageFull, StoreUnavailable
from iotjobs.engine.happenings import Happening, Looked
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.listening import Listening
from iotjobs.engine.reactions import Reactions
from iotjobs.engine.services import LoopService
from iotjobs.store import rules, standings
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
AT_ONCE = 200
AGAIN_MS = 60_000  # after one that failed in us

Entity = tuple[OwnerType, str]


_ALWAYS = Always()


class Timers(LoopService):
    """Gives due timers their effect.

    Args:
        store: where they are.
        reactions: give them their effect.
        leader: whether this process leads.
        ingest: whether it may listen to devices.
        listening: tells who does listen; None: nobody.
        is_behind: whether all this was moved with a clock that ours has not followed yet: nothing is due by it.
    """

    name = "timers"

    def __init__(
        self,
        store: Store,
        reactions: Reactions,
        leader: Standing,
        *,
        ingest: Standing = _ALWAYS,
        listening: Listening | None = None,
        is_behind: Callable[[Connection], bool] = lambda _conn: False,
    ) -> None:
        super().__init__()
        self._store, self._reactions = store, reactions
        self._leader, self._ingest, self._listening = leader, ingest, listening
        self._is_behind = is_behind
        self._standing = leader  # by which the last look was made

    async def _loop(self) -> None:
        while True:
            try:
                while self._looks() and await self.look() >= AT_ONCE:
                    pass
            except (LeaseLost, StorageFull) as error:
                log.warning("timers wait", extra={"why": str(error)})
            await clock.sleep(LOOK_EVERY_S)

    def _looks(self) -> bool:
        """Whether this process looks; two that do so at once, when it changes, do no harm."""
        listening = self._listening
        if listening is not None and listening.ours and self._ingest.leads:
            self._standing = self._ingest
            return True
        self._standing = self._leader
        return self._leader.leads and not (listening is not None and listening.another)

    async def look(self) -> int:
        """Look once; how many were due."""
        now = clock.now_ms()
        heard_until = self._reactions.heard(now).until

        def query(conn: Connection) -> tuple[Sequence[Entity], Sequence[Any]]:
            found = standings.waking(conn, now, AT_ONCE), rules.due_timers(conn, heard_until, AT_ONCE)
            return found if any(found) and not self._is_behind(conn) else ((), ())

        waking, due = await self._store.look(query)
        if not waking and not due:
            return 0

        try:
            await self._take(waking, due)
        except (LeaseLost, StorageFull, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - the edge of one batch: it is told by the one that fails
            log.warning("timers are taken one by one", extra={"why": repr(error)})
            for entity in waking:
                await self._take_alone(entity[1], [entity], [])
            for timer in due:
                await self._take_alone(timer.entity_id, [], [timer])
        return max(len(waking), len(due))

    async def _take_alone(self, entity_id: str, waking: Sequence[Entity], due: Sequence[Any]) -> None:
        """One that fails in us is looked at again later, so that it keeps nobody waiting."""
        try:
            await self._take(waking, due)
        except (LeaseLost, StorageFull, StoreUnavailable):
            raise
        except Exception:
            log.exception("a timer failed in us", extra={"entity_id": entity_id})
            again_at = clock.now_ms() + AGAIN_MS

            def put_off(tx: Transaction) -> None:
                self._standing.check(tx)
                for _, waking_id in waking:
                    standings.wake(tx, waking_id, again_at)
                for timer in due:
                    rules.put_off(tx, timer.cause_key, again_at)

            await self._store.write(put_off)

    async def _take(self, waking: Sequence[Entity], due: Sequence[Any]) -> None:
        def item(tx: Transaction) -> None:
            self._standing.check(tx)
            turn = self._reactions.turn(tx)
            named = [*waking, *((OwnerType(timer.owner_type), timer.entity_id) for timer in due)]
            for kind in OwnerType:
                standings.lock(tx, kind, [entity_id for owner_type, entity_id in named if owner_type is kind])
            if self._is_behind(tx.conn):
                return
            for owner_type, entity_id in waking:
                try:
                    turn.take(Happening(owner_type, entity_id, Looked()))
                except NotFound:
                    standings.forget(tx, entity_id)
            for timer in due:
                turn.due(timer)
            turn.finish()

        await self._store.write(item)

"""Days of reports and changes of state that pass as quickly as they can be written, and are replayed."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.engine import replays
from iotjobs.engine.happenings import Happening, Looked
from iotjobs.engine.replays import Span
from iotjobs.store import rules, standings
from iotjobs.store.state_tables import standings as standing_table
from iotjobs.store.state_tables import traces, trigger_timers
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine


class Day:
    """A day that is as long as what happens in it: the clock is moved from one moment to the next.

    Looks are late by `late_ms`.
    """

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, late_ms: int = 0) -> None:
        self.engine, self.now, self.late_ms = engine, clock.now_ms(), late_ms
        self.began = self.now
        monkeypatch.setattr(clock, "now_ms", lambda: self.now)

    async def pass_until(self, moment: int) -> None:
        """Let time pass, and whatever is due in it happen at its own moment."""
        while (due := await self.engine.store.read(_next_due)) is not None and due + self.late_ms <= moment:
            self.now = max(self.now, due + self.late_ms)
            await self.engine.store.write(self._look)
        self.now = moment

    def _look(self, tx: Transaction) -> None:
        turn = self.engine.reactions.turn(tx)
        for owner_type, entity_id in standings.waking(tx.conn, self.now, 100):
            turn.take(Happening(owner_type, entity_id, Looked()))
        for timer in rules.due_timers(tx.conn, self.now, 100):
            turn.due(timer)
        turn.finish()


def _next_due(conn: Connection) -> int | None:
    moments = [
        conn.execute(select(func.min(column))).scalar()
        for column in (standing_table.c.wake_at, trigger_timers.c.due_at)
    ]
    return min((moment for moment in moments if moment is not None), default=None)


def decided_of(conn: Connection, owner_id: str, since: int) -> list[tuple[Any, ...]]:
    """What triggers really decided; a hold is told by what came of it."""
    X = traces.c
    query = select(X.at, X.trigger_id, X.state, X.decision).where(X.owner_id == owner_id, X.at >= since)
    return sorted(tuple(row) for row in conn.execute(query) if row.decision not in ("held", "hold_canceled"))


async def agrees(engine: Engine, kind: OwnerType, entity_id: str, span: Span) -> None:
    """A replay of what was recorded has the changes that there were, and the decisions."""

    def recorded(conn: Connection) -> tuple[Any, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        entity = standings.load(conn, kind, entity_id).entity  # type: ignore[union-attr]
        changes = standings.changes(conn, limit=1000, entity_id=entity_id)
        told = [(one.at, one.from_state, one.to_state) for one in reversed(changes) if one.at >= span.since]
        return rules.conditions_of(conn, entity), told, decided_of(conn, entity_id, span.since)

    conditions, changes, decided = await engine.store.read(recorded)
    name = kind.name.lower()
    [found] = await replays.of_conditions(engine.store, name, entity_id, conditions, span)
    replayed_changes = [(one.at, one.before, one.after) for one in found.replayed.changes]
    assert replayed_changes == changes
    replayed = [
        (one.at, one.trigger_id, one.state, one.ruling.decision.value) for one in found.replayed.firings
    ]
    assert sorted(one for one in replayed if one[-1] not in ("held", "hold_canceled")) == decided

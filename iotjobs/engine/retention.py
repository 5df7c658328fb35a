"""Makes room: deletes output, log entries and ended jobs when they were kept as long as the site wants.

In small steps with pauses between them: jobs go on meanwhile, and a stop waits for one step at most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.engine.intake import IDEMPOTENCY_KEPT_MS
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.services import LoopService
from iotjobs.store import idempotency, retention
from iotjobs.store.session import Store
from iotjobs.store.writer import Item, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")

DAY_MS = 86_400_000
# A board without a battery starts with any date, and is told the right one a little later.
FIRST_AFTER_S = 300.0
EVERY_S = 300.0
PAUSE_S = 0.05
STEP_JOBS = 50
STEP_BYTES = 8 * 1024 * 1024
STEP_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Keep:
    """How much is kept, and how long.

    Attributes:
        jobs_days: ended jobs; None keeps them for ever.
        history_days: values of properties, `history_values` at most.
        traces_days: changes of state, and what triggers decided.
        output_cap_bytes: what one attempt's output takes at most.
    """

    output_days: float = 30.0
    output_bytes: int = 10 * 1024**3
    logs_days: float = 30.0
    jobs_days: float | None = None
    history_days: float = 7.0
    history_values: int = 2_000_000
    traces_days: float = 30.0
    output_cap_bytes: int = 16 * 1024 * 1024


_ALWAYS = Always()


class Retention(LoopService):
    """Prunes the store every few minutes; of several nodes the leader does."""

    name = "retention"

    def __init__(self, store: Store, keep: Keep, standing: Standing = _ALWAYS) -> None:
        super().__init__()
        self._store, self._keep, self._standing = store, keep, standing

    async def _loop(self) -> None:
        await clock.sleep(FIRST_AFTER_S)
        while True:
            try:
                if self._standing.leads:
                    await self.prune()
            except LeaseLost as error:
                log.info("somebody else prunes now", extra={"why": str(error)})
            except (StoreUnavailable, StorageFull) as error:
                log.warning("nothing can be pruned now", extra={"why": str(error)})
            await clock.sleep(EVERY_S)

    async def _write(self, step: Item[T]) -> T:
        def item(tx: Transaction) -> T:
            self._standing.check(tx)
            return step(tx)

        return await self._store.write(item, reserved=True)  # it makes room

    async def prune(self) -> Counter[str]:
        """Delete everything that is due; how many of what.

        Raises:
            LeaseLost: another process leads now; it goes on.
        """
        now, keep = clock.now_ms(), self._keep
        pruned: Counter[str] = Counter()
        async for count in self._outputs_of_age(now - int(keep.output_days * DAY_MS)):
            pruned["outputs"] += count
        async for count in self._outputs_over(keep.output_bytes):
            pruned["outputs"] += count
        old_entries = partial(retention.drop_log_entries, before=now - int(keep.logs_days * DAY_MS))
        async for count in self._pages(old_entries, 0):
            pruned["log entries"] += count
        if keep.jobs_days is not None:
            async for count in self._jobs(now - int(keep.jobs_days * DAY_MS)):
                pruned["jobs"] += count
        traces_before = now - int(keep.traces_days * DAY_MS)
        for what, drop in (
            ("values", partial(retention.drop_history, before=now - int(keep.history_days * DAY_MS))),
            ("values", partial(retention.drop_values_over, most=keep.history_values)),
            ("traces", partial(retention.drop_events, before=traces_before)),
        ):
            async for count in self._rows(drop):
                pruned[what] += count
        pages: tuple[tuple[Callable[..., tuple[int, Any]], Any], ...] = (
            (retention.drop_traces, (0, 0)),
            (retention.drop_changes, ""),
        )
        for of_states, begin in pages:
            async for count in self._pages(partial(of_states, before=traces_before), begin):
                pruned["traces"] += count
        await self._write(lambda tx: idempotency.forget(tx, before=now - IDEMPOTENCY_KEPT_MS))
        for what, count in pruned.items():
            log.info("pruned", extra={"what": what, "count": count})
        return pruned

    async def _outputs_of_age(self, ended_before: int) -> AsyncIterator[int]:
        def oldest(conn: Connection) -> list[tuple[str, int]]:
            return retention.outputs(conn, limit=STEP_JOBS, ended_before=ended_before)

        while found := await self._store.read(oldest):
            yield (await self._drop_some(found))[0]
            await clock.sleep(PAUSE_S)

    async def _outputs_over(self, limit_bytes: int) -> AsyncIterator[int]:
        cap = self._keep.output_cap_bytes
        excess = await self._store.read(lambda conn: retention.output_bytes(conn, cap)) - limit_bytes
        while excess > 0:
            found = await self._store.read(lambda conn: retention.outputs(conn, limit=STEP_JOBS))
            if not found:
                return
            count, freed = await self._drop_some(found, excess)
            excess -= freed
            yield count
            await clock.sleep(PAUSE_S)

    async def _drop_some(self, found: list[tuple[str, int]], wanted: int | None = None) -> tuple[int, int]:
        """Drop the first outputs, one at least, until a step is full or enough is free; count and bytes."""
        size, ids = 0, []
        enough = STEP_BYTES if wanted is None else min(wanted, STEP_BYTES)
        for job_id, total in found:
            ids.append(job_id)
            size += min(total, self._keep.output_cap_bytes)
            if size >= enough:
                break
        await self._write(lambda tx: retention.drop_outputs(tx, ids, clock.now_ms()))
        return len(ids), size

    async def _pages(self, drop: Callable[..., tuple[int, Any]], begin: Any) -> AsyncIterator[int]:
        behind = begin
        while behind is not None:
            step = partial(drop, behind=behind, limit=STEP_ENTRIES)
            count, behind = await self._write(step)
            if count:
                yield count
            await clock.sleep(PAUSE_S)

    async def _rows(self, drop: Callable[..., int]) -> AsyncIterator[int]:
        while count := await self._write(lambda tx: drop(tx, limit=STEP_ENTRIES)):
            yield count
            await clock.sleep(PAUSE_S)

    async def _jobs(self, before: int) -> AsyncIterator[int]:
        def oldest(conn: Connection) -> list[str]:
            return retention.ended_jobs(conn, limit=STEP_JOBS, before=before)

        while ids := await self._store.read(oldest):
            await self._write(lambda tx, ids=ids: retention.drop_jobs(tx, ids))  # type: ignore[misc]
            yield len(ids)
            await clock.sleep(PAUSE_S)

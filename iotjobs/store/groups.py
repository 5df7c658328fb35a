"""Writes to PostgreSQL that share transactions: what waits together is committed together.

A job is a handful of short transactions, and most of what one costs is the way to the server and
back: BEGIN, COMMIT, one statement for each event. So items that wait while others are written go
into one transaction, in their order, after all their locks were taken. There is no timer: an item
that meets nobody goes at once and alone.

No group waits for a lock, for whoever holds it may be frozen, on another node. What needs it goes aside,
and the others go on; a moment later it comes again.

An item that fails must not take its neighbours along, and PostgreSQL gives a transaction up at the
first error. So the group is undone then, and each half of it is tried again, down to the one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from iotjobs.domain.errors import RaceLost, StorageFull, StoreUnavailable
from iotjobs.store.writer import BATCH_BYTES, Item, Transaction, complete

# What a group holds is locked for all of it, and no reader of events sees past an open one: small ones.
GROUP_ITEMS = 64
# While the server works for one group, we work for another.
AT_ONCE = 2
# A lock that somebody else holds is asked for again after the first of these, then after twice that, up to
# the second; and no longer than a statement would have waited for it.
AGAIN_S, AGAIN_MOST_S = 0.005, 0.25
LOCK_S = 10.0

_AWAY = (StoreUnavailable, StorageFull)


# Reads for many keys what their items would each read first; by the ids of the jobs.
ReadAhead = Callable[[Connection, list[Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Share:
    """An item, what it locks, and what may be read for it together with others: see `Store.write`."""

    item: Item[Any]
    locks: Sequence[str] = ()
    ahead: tuple[ReadAhead, Any] | None = None


# The result of an item that did not run, since somebody else holds what it locks.
ASIDE = object()


def run_shares(conn: Connection, shares: Sequence[Share]) -> tuple[list[Any], Transaction]:
    """Everything that one transaction does; the items' results, or `ASIDE`."""
    tx = Transaction(conn)
    held = tx.try_lock({name for share in shares for name in share.locks})
    if not held:
        return _run_locked(tx, shares), tx
    free = [held.isdisjoint(share.locks) for share in shares]
    results = iter(_run_locked(tx, [share for share, is_free in zip(shares, free, strict=True) if is_free]))
    return [next(results) if is_free else ASIDE for is_free in free], tx


def _run_locked(tx: Transaction, shares: Sequence[Share]) -> list[Any]:
    """Run items all of whose locks are taken.

    An item that locks nothing that another of them locks meets nobody here: what was read ahead for it
    is still true when it runs, and what it writes last may be written with that of others.
    """
    locked = Counter(name for share in shares for name in share.locks)
    meets = [len(shares) == 1 or any(locked[name] > 1 for name in share.locks) for share in shares]
    ahead: dict[ReadAhead, list[Any]] = {}
    for share, others in zip(shares, meets, strict=True):
        if share.ahead is not None and not others:
            ahead.setdefault(share.ahead[0], []).append(share.ahead[1])
    for read, keys in ahead.items():
        tx.ahead.update(read(tx.conn, keys))
    results = []
    for share, others in zip(shares, meets, strict=True):
        tx.defers = not others
        results.append(share.item(tx))
    complete(tx.conn, [tx])
    return results


@dataclass(slots=True)
class _Waiting:
    share: Share
    size: int
    answer: asyncio.Future[Any]
    again_s: float = AGAIN_S
    until: float | None = None  # once it went aside


class Groups:
    """Items wait here until a transaction takes them.

    Args:
        commit: `run_shares` in a transaction; raises as `Store.write` does.
    """

    def __init__(self, commit: Callable[[Sequence[Share]], Awaitable[list[Any]]]) -> None:
        self._commit = commit
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = 0

    async def write(self, share: Share, size: int) -> Any:
        """See `Store.write`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(share, size, answer))
        self._set_going()
        return await answer

    async def stop(self) -> None:
        """Finish what was submitted."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _set_going(self) -> None:
        if self._writing < AT_ONCE:
            self._writing += 1
            self._keep(asyncio.create_task(self._write_all(), name="groups of writes"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                group: list[_Waiting] = []
                size = 0
                while self._waiting and len(group) < GROUP_ITEMS and size < BATCH_BYTES:
                    group.append(self._waiting.popleft())
                    size += group[-1].size
                await self._write(group)
        finally:
            self._writing -= 1  # not when the task is done: an item that came before that would wait for ever

    async def _write(self, group: Sequence[_Waiting]) -> None:
        """One transaction, or more of them when one of its items fails; answers all, raises nothing."""
        try:
            results = await self._commit([waiting.share for waiting in group])
        except Exception as error:  # noqa: BLE001 - the edge of one transaction: handed to its callers
            if len(group) > 1 and (isinstance(error, RaceLost) or not isinstance(error, _AWAY)):
                half = len(group) // 2
                await self._write(group[:half])
                await self._write(group[half:])
                return
            for waiting in group:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        else:
            for waiting, result in zip(group, results, strict=True):
                if result is ASIDE:
                    self._keep(asyncio.create_task(self._come_again(waiting), name="a write aside"))
                elif not waiting.answer.done():
                    waiting.answer.set_result(result)

    async def _come_again(self, waiting: _Waiting) -> None:
        now = time.monotonic()
        if waiting.until is None:
            waiting.until = now + LOCK_S
        if now >= waiting.until:
            if not waiting.answer.done():
                error = StoreUnavailable(f"what it locks was held by others for {LOCK_S:.0f} s")
                waiting.answer.set_exception(error)
            return
        await asyncio.sleep(waiting.again_s)
        waiting.again_s = min(2 * waiting.again_s, AGAIN_MOST_S)
        self._waiting.appendleft(waiting)  # it has waited longer than those
        self._set_going()

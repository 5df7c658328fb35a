"""Writes to PostgreSQL that share transactions: what waits together is committed together.

A job is a handful of short transactions, and most of what one costs is the way to the server and
back: BEGIN, COMMIT, one statement for each event. So items that wait while others are written go
into one transaction, in their order, after all their locks were taken in one order. There is no
timer: an item that meets nobody goes at once and alone.

An item that fails must not take its neighbours along, and PostgreSQL gives a transaction up at the
first error. So the group is undone then, and each half of it is tried again, down to the one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from iotjobs.domain.errors import StorageFull, StoreUnavailable
from iotjobs.store.writer import BATCH_BYTES, Item, Transaction, complete

# What a group holds is locked for all of it, and no reader of events sees past an open one: small ones.
GROUP_ITEMS = 64
# While the server works for one group, we work for another.
AT_ONCE = 2


# Reads for many keys what their items would each read first; by the ids of the jobs.
ReadAhead = Callable[[Connection, list[Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Share:
    """An item, what it locks, and what may be read for it together with others: see `Store.write`."""

    item: Item[Any]
    locks: Sequence[str] = ()
    ahead: tuple[ReadAhead, Any] | None = None


def run_shares(conn: Connection, shares: Sequence[Share]) -> tuple[list[Any], Transaction]:
    """Everything that one transaction does; the items' results.

    An item that locks nothing that another of them locks meets nobody here: what was read ahead for it
    is still true when it runs, and what it writes last may be written with that of others.
    """
    tx = Transaction(conn)
    locked = Counter(name for share in shares for name in share.locks)
    tx.lock(*locked)
    meets = [len(shares) == 1 or any(locked[name] > 1 for name in share.locks) for share in shares]
    ahead: dict[ReadAhead, list[Any]] = {}
    for share, others in zip(shares, meets, strict=True):
        if share.ahead is not None and not others:
            ahead.setdefault(share.ahead[0], []).append(share.ahead[1])
    for read, keys in ahead.items():
        tx.ahead.update(read(conn, keys))
    results = []
    for share, others in zip(shares, meets, strict=True):
        tx.defers = not others
        results.append(share.item(tx))
    complete(conn, [tx])
    return results, tx


@dataclass(slots=True)
class _Waiting:
    share: Share
    size: int
    answer: asyncio.Future[Any]


class Groups:
    """Items wait here until a transaction takes them.

    Args:
        commit: `run_shares` in a transaction; raises as `Store.write` does.
    """

    def __init__(self, commit: Callable[[Sequence[Share]], Awaitable[list[Any]]]) -> None:
        self._commit = commit
        self._waiting: deque[_Waiting] = deque()
        self._writers: set[asyncio.Task[None]] = set()
        self._writing = 0

    async def write(self, share: Share, size: int) -> Any:
        """See `Store.write`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(share, size, answer))
        if self._writing < AT_ONCE:
            self._writing += 1
            writer = asyncio.create_task(self._write_all(), name="groups of writes")
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        return await answer

    async def stop(self) -> None:
        """Finish what was submitted."""
        while self._writers:
            await asyncio.wait(self._writers)

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
            if len(group) > 1 and not isinstance(error, StoreUnavailable | StorageFull):
                half = len(group) // 2
                await self._write(group[:half])
                await self._write(group[half:])
                return
            for waiting in group:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        else:
            for waiting, result in zip(group, results, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(result)

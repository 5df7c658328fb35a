"""What devices sent by MQTT that was taken, as long as the broker may bring it again.

It does so, and says so, with what it has no acknowledgement of when a connection ends. Within a session it
names each message by its packet id until then. So the ids of a transaction's messages are written with their
effects. One of them that comes again while it stands here was taken; every other one was not.

An id is used again once it is free, so a sum of what the message says stands beside it, and the last use counts.

Each transaction has a row, also of messages without an id, and each row has a mark of its own: so it is known
whether one whose COMMIT was not answered was made.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection, delete, func, select

from iotjobs.store.state_tables import taken_messages
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

T = taken_messages.c
# Messages. Of 256 at most the broker waits for an acknowledgement (Receive Maximum), and as many may have had it before
# they were taken, for a later one has their value (`rates.LET_GO`). After its own restart a Mosquitto 2 sends beyond that
# at once what it had sent before: 427 were seen. What was taken before these has been acknowledged.
KEPT = 2048
_DROP_EVERY = 64

Key: TypeAlias = tuple[int, int]  # the packet id, and the sum; in a row first 0 and its mark

_all = Prepared(select(T.messages).order_by(T.id))
_newest = Prepared(select(T.messages).order_by(T.id.desc()).limit(1))
# Of two that follow each other one has an id at least.
_last_kept = select(T.id).order_by(T.id.desc()).offset(2 * KEPT - 1).limit(1).scalar_subquery()
_drop = Prepared(taken_messages.delete().where(T.id < _last_kept))
_drop_newest = Prepared(taken_messages.delete().where(T.id == select(func.max(T.id)).scalar_subquery()))


class Taken:
    """Those of the one node that consumes; what it holds is what is on disk."""

    def __init__(self) -> None:
        self._count = 0
        self._newest: Sequence[Key] = ()  # of the last transaction
        self._of: OrderedDict[int, int] = OrderedDict()  # the sum, by the packet id

    def load(self, conn: Connection) -> None:
        """Read what is on disk."""
        self._clear()
        for row in _all.all(conn):
            self._note(_keys(row))

    def unheard(self, conn: Connection) -> bool:
        """Whether a transaction is on disk that we do not know of: its COMMIT was made, and not answered."""
        row = _newest.first(conn)
        if row is None or self._newest == _keys(row):
            return False
        self._note(_keys(row))
        return True

    def holds(self, key: Key) -> bool:
        """Whether a message that comes again was taken."""
        mid, said = key
        return self._of.get(mid) == said

    def free(self, mid: int) -> None:
        """The broker has begun to use a packet id for another message."""
        self._of.pop(mid, None)

    def add(self, tx: Transaction, keys: Iterable[Key]) -> None:
        """Keep that messages get their effects in this transaction; those without a packet id never come again."""
        given = [(0, secrets.randbits(52)), *(key for key in keys if key[0])]
        if _have_no_id(given) and _have_no_id(self._newest):
            _drop_newest.run(tx.conn)
        tx.append(taken_messages, {"messages": given})
        if self._count % _DROP_EVERY == 0:
            _drop.run(tx.conn)
        tx.after_commit(partial(self._note, given))

    def clear(self, tx: Transaction) -> None:
        """The session is another one: nothing comes again."""
        tx.conn.execute(delete(taken_messages))
        tx.after_commit(self._clear)

    def _clear(self) -> None:
        self._newest = ()
        self._of.clear()

    def _note(self, keys: Sequence[Key]) -> None:
        self._count += 1
        self._newest = keys
        for mid, said in keys:
            if mid:
                self._of[mid] = said
                self._of.move_to_end(mid)
        while len(self._of) > KEPT:
            self._of.popitem(last=False)


def _have_no_id(keys: Sequence[Key]) -> bool:
    return not any(mid for mid, _ in keys)


def _keys(row: Any) -> list[Key]:
    return [(mid, said) for mid, said in row.messages]

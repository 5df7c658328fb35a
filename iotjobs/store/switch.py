"""The site's switch as a begin reads it: in a statement that it needs anyway.

A begin holds the switch, shared with other begins, until its commit; who drains the site holds it alone.
So what a drain finds under way is all there is, however late a node's own look at the switch may be.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, literal_column, not_, select
from sqlalchemy.ext.compiler import compiles

from iotjobs.domain.rights import Caller
from iotjobs.store import facts, tables
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

# The fact's name in the site's table; it is `open`, where it is not there too, or `drained`.
DISPATCH = "dispatch"
# Likewise of all triggers: `yes`, or anything else.
PAUSED = "triggers_paused"
# What a drain locks (`Transaction.lock`).
SWITCH = "switch"
_SHARED = f"{SWITCH}, shared"


class _Held(ColumnElement[bool]):
    """Whether nobody has the switch for himself, nor can until we commit. Never waits."""

    inherit_cache = True


@compiles(_Held)
def _alone(_element: Any, _compiler: Any, **_: Any) -> str:
    return "1"  # SQLite has one writer


@compiles(_Held, "postgresql")
def _postgres_held(_element: Any, _compiler: Any, **_: Any) -> str:
    return f"pg_try_advisory_xact_lock_shared(hashtextextended('{SWITCH}', 0))"


_S = tables.site.c
_drained = select(literal_column("1")).where(_S.name == DISPATCH, _S.value == "drained").exists()
# A column for the query of a begin.
DISPATCHES = and_(_Held(), not_(_drained))

_dispatches = Prepared(select(DISPATCHES.label("dispatches")))


def stays_open(tx: Transaction) -> bool:
    """Whether attempts may begin in this transaction; it asks once."""
    if _SHARED not in tx.locked:
        if not _dispatches.scalar(tx.conn):
            return False
        tx.locked.add(_SHARED)
    return True


def paused(conn: Connection) -> bool:
    """Whether all triggers of the site are paused."""
    return facts.value(conn, PAUSED) == "yes"


def sign(tx: Transaction, name: str, caller: Caller, now: int) -> None:
    """Keep who put a switch as it is, and when."""
    signature = {"by": {"id": caller.user_id, "name": caller.login}, "since": now}
    facts.put(tx, f"{name}_by", json.dumps(signature))


def signature(conn: Connection, name: str) -> dict[str, Any] | None:
    """Who put a switch as it is (`by`, of `id` and `name`), and when (`since`); None where nobody did."""
    kept = facts.value(conn, f"{name}_by")
    return None if kept is None else json.loads(kept)

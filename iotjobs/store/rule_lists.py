"""The versions of lists of state conditions and of triggers, which If-Match is compared with.

A list is put whole, so it has a version as a whole; one that is deleted and put again goes on from there.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from iotjobs.domain.errors import PreconditionFailed
from iotjobs.store.state_tables import rule_lists
from iotjobs.store.writer import Transaction

Y = rule_lists.c
CONDITIONS, TRIGGERS = "conditions", "triggers"


def version_of(conn: Connection, owner_id: str, what: str) -> int:
    """The version of an owner's `CONDITIONS` or `TRIGGERS`, also of a list that was never put."""
    found = conn.execute(select(Y.version).where(Y.owner_id == owner_id, Y.what == what)).scalar()
    return 1 if found is None else int(found)


def next_version(tx: Transaction, owner_id: str, what: str, expected: frozenset[int] | None) -> int:
    """Bring a list to its next version, which is returned; its owner's row is locked.

    Raises:
        PreconditionFailed: it is at none of the `expected` versions.
    """
    before = version_of(tx.conn, owner_id, what)
    if expected is not None and before not in expected:
        raise PreconditionFailed(f"the list is at version {before}: read it again and change that")
    tx.conn.execute(delete(rule_lists).where(Y.owner_id == owner_id, Y.what == what))
    tx.conn.execute(insert(rule_lists), {"owner_id": owner_id, "what": what, "version": before + 1})
    return before + 1

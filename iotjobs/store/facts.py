"""Facts of the site that are made once and remembered."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import insert, select

from iotjobs.store import tables
from iotjobs.store.writer import Transaction


def remembered(tx: Transaction, name: str, make: Callable[[], str]) -> str:
    """The fact of this name; made and kept at the first call."""
    value: str | None = tx.conn.execute(
        select(tables.site.c.value).where(tables.site.c.name == name)
    ).scalar()
    if value is None:
        value = make()
        tx.conn.execute(insert(tables.site), {"name": name, "value": value})
    return value

"""Of what an entity said, how much had no effect: it came again, or was refused; and the last refusal in words.

Kept apart from the standing: what is refused must not cost what a report does, nor make one wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, String, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from iotjobs.store import tables
from iotjobs.store.state_tables import unheeded
from iotjobs.store.statements import Prepared, storable
from iotjobs.store.writer import Transaction

TEXT_CHARACTERS = 200
U = unheeded.c
_CHANGING = ("repeated", "refused", "refused_at", "topic", "why")
_NUMBERS = ("repeated", "refused", "refused_at")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that was refused.

    Attributes:
        at: when, milliseconds.
        why: in words.
    """

    at: int
    topic: str
    why: str


@dataclass(frozen=True, slots=True)
class Unheeded:
    """How many messages came again and had their effect once, how many were refused, and the last of these."""

    repeated: int = 0
    refused: int = 0
    last: Refusal | None = None


def _add(dialect: Any) -> Prepared:
    types = {name: BigInteger() if name in _NUMBERS else String() for name in _CHANGING}
    given = [bindparam(f"to_{name}", type_=kind) for name, kind in types.items()]
    # Of one that is not there any more nothing is kept.
    objects, links = (
        select(E.id, *given).where(E.id == bindparam("is_id")) for E in (tables.objects.c, tables.links.c)
    )
    made = dialect.insert(unheeded).from_select(["entity_id", *_CHANGING], objects.union_all(links))
    new = made.excluded
    changed = {name: U[name] + new[name] for name in ("repeated", "refused")}
    changed |= {name: func.coalesce(new[name], U[name]) for name in ("refused_at", "topic", "why")}
    return Prepared(made.on_conflict_do_update(index_elements=["entity_id"], set_=changed))


_adding = {"postgresql": _add(postgresql), "sqlite": _add(sqlite)}
_of_entity = Prepared(select(unheeded).where(U.entity_id == bindparam("entity")))


def add(tx: Transaction, more: Iterable[tuple[str, Unheeded]]) -> None:
    """Count more of entities, by their ids."""
    rows = [_row(entity_id, of_it) for entity_id, of_it in more]
    if rows:
        _adding[tx.conn.dialect.name].run_each(tx.conn, rows)


def _row(entity_id: str, more: Unheeded) -> dict[str, Any]:
    row = {"is_id": entity_id, "to_repeated": more.repeated, "to_refused": more.refused}
    if more.last is None:
        return {**row, "to_refused_at": None, "to_topic": None, "to_why": None}
    topic, why = (storable(text[:TEXT_CHARACTERS]) for text in (more.last.topic, more.last.why))
    return {**row, "to_refused_at": more.last.at, "to_topic": topic, "to_why": why}


def of(conn: Connection, entity_id: str) -> Unheeded:
    """What is counted of an entity."""
    row = _of_entity.first(conn, {"entity": entity_id})
    if row is None:
        return Unheeded()
    last = None if row.refused_at is None else Refusal(row.refused_at, row.topic, row.why)
    return Unheeded(row.repeated, row.refused, last)

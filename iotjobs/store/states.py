"""The states of the site: the built-in ones and its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from iotjobs import clock
from iotjobs.domain.errors import BadRequest, Conflict, FieldError, NotFound, PreconditionFailed
from iotjobs.domain.states import BUILT_IN, CREATED
from iotjobs.store import tables
from iotjobs.store.state_tables import condition_lists, standings, states, triggers
from iotjobs.store.writer import Transaction

A, S, N, T = states.c, standings.c, condition_lists.c, triggers.c


def all_of(conn: Connection) -> list[dict[str, Any]]:
    """The built-in states, then the site's own, by name."""
    built_in: list[dict[str, Any]] = [
        {
            "id": None,
            "name": name,
            "priority": priority,
            "built_in": True,
            "version": None,
            "created_at": None,
        }
        for name, priority in BUILT_IN.items()
    ]
    own = conn.execute(select(states).order_by(A.name))
    return built_in + [{**row._mapping, "built_in": False} for row in own]


def get(conn: Connection, state_id: str) -> dict[str, Any]:
    """A state of the site's own.

    Raises:
        NotFound: there is none.
    """
    return _found(conn, select(states).where(A.id == state_id), state_id)


def _found(conn: Connection, query: Select[Any], state_id: str) -> dict[str, Any]:
    row = conn.execute(query).first()
    if row is None and state_id in BUILT_IN:
        raise NotFound(f"the state {state_id} is built in: it has no id, and stays as it is")
    if row is None:
        raise NotFound(f"there is no state {state_id}")
    return {**row._mapping, "built_in": False}


def _lock(tx: Transaction, state_id: str, expected: frozenset[int] | None) -> dict[str, Any]:
    found = _found(tx.conn, select(states).where(A.id == state_id).with_for_update(), state_id)
    if expected is not None and found["version"] not in expected:
        raise PreconditionFailed(f"the state {found['name']} is at version {found['version']}: read it again")
    return found


def create(tx: Transaction, name: str, priority: int, now: int) -> dict[str, Any]:
    """Add a state.

    Raises:
        Conflict: the name is taken.
    """
    _refuse_taken(tx.conn, name)
    row = {"id": clock.new_id(), "name": name, "priority": priority, "created_at": now, "version": 1}
    tx.conn.execute(insert(states), row)
    return {**row, "built_in": False}


def change(
    tx: Transaction, state_id: str, priority: int, expected: frozenset[int] | None = None
) -> dict[str, Any]:
    """Give a state another priority; its name stays, for records have it.

    Raises:
        NotFound: there is none.
        PreconditionFailed: it is at none of the `expected` versions.
    """
    before = _lock(tx, state_id, expected)
    values = {"priority": priority, "version": before["version"] + 1}
    tx.conn.execute(update(states).where(A.id == state_id).values(values))
    return {**before, **values}


def remove(tx: Transaction, state_id: str, expected: frozenset[int] | None = None) -> None:
    """Delete a state that nothing leads to and nothing waits for.

    Raises:
        NotFound, PreconditionFailed: see `change`.
        Conflict: something refers to it, or an entity is in it.
    """
    name = _lock(tx, state_id, expected)["name"]
    for row in tx.conn.execute(select(N.owner_kind, N.owner_id, N.conditions)):
        if any(item["state"] == name for item in row.conditions):
            raise Conflict(f"the state {name} is used by a condition of the {row.owner_kind} {row.owner_id}")
    for row in tx.conn.execute(select(T.name, T.settings)):
        if name in row.settings["states"]:
            raise Conflict(f"the state {name} is used by the trigger {row.name}")
    inside = tx.conn.execute(select(S.entity_id).where(S.state == name).limit(1)).scalar()
    if inside is not None:
        raise Conflict(f"the entity {inside} is in the state {name}")
    tx.conn.execute(delete(states).where(A.id == state_id))


def _refuse_taken(conn: Connection, name: str) -> None:
    taken = conn.execute(select(A.id).where(A.name == name)).scalar()
    if name in BUILT_IN or taken is not None:
        raise Conflict(f"there is a state {name!r} already", field="name")


def check_names(conn: Connection, named: Iterable[tuple[str, str]]) -> None:
    """Refuse states that do not exist; `named`: (field, name).

    Raises:
        BadRequest: names each field.
    """
    known = {*BUILT_IN, *conn.execute(select(A.name)).scalars()}
    problems = tuple(
        FieldError(field, f"there is no state {name!r}: POST /states makes one")
        for field, name in named
        if name not in known
    )
    if problems:
        raise BadRequest(f"{problems[0].field}: {problems[0].message}", errors=problems)


def wake(tx: Transaction, kind: str, owner_id: str, now: int) -> None:
    """Have states decided anew in a moment: of an entity or of all entities of a class, and of objects' links."""
    L, O = tables.links.c, tables.objects.c  # noqa: E741 - as in the queries
    objects = O.class_id == owner_id if kind == "class" else O.id == owner_id
    ends = select(O.id).where(objects)
    links = or_(
        L.class_id == owner_id if kind == "class" else L.id == owner_id,
        L.source.in_(ends),
        L.target.in_(ends),
    )
    make = postgresql.insert if tx.conn.dialect.name == "postgresql" else sqlite.insert
    empty = {"why": {}, "depth": 0, "holding": {}, "offline": False, "reports": 0, "superseded": 0}
    for owner_type, table, which in ((1, tables.objects, objects), (2, tables.links, links)):
        E = table.c
        values = {"owner_type": owner_type, "state": CREATED, "wake_at": now, **empty}
        given = (literal(value, S[name].type) for name, value in values.items())
        members = select(E.id, E.created_at, *given).where(which).order_by(E.id)
        # Also one that a first report makes at the same moment.
        made = make(standings).from_select(["entity_id", "since", *values], members)
        tx.conn.execute(made.on_conflict_do_update(index_elements=["entity_id"], set_={"wake_at": now}))

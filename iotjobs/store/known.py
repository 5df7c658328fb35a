"""Rules of entities and of their classes, kept from one transaction to the next as long as nobody has changed any.

Those of a class are kept once, however many members it has.
Whoever finds the version (`rules.changed`) that it knows may use what was read under it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection

from iotjobs.domain.entities import Entity
from iotjobs.domain.operations import Operation
from iotjobs.domain.states import Condition
from iotjobs.domain.triggers import Trigger
from iotjobs.store import entities, rules, standings
from iotjobs.store.entities import OwnedOperation

_MOST = 100_000  # entities and classes


@dataclass(slots=True)
class Known:
    """What was read under one version, by owner; what is not there yet is read."""

    version: str | None = None
    _conditions: dict[str, tuple[Condition, ...] | None] = field(default_factory=dict)
    _triggers: dict[str, tuple[tuple[Trigger, bool], ...]] = field(default_factory=dict)
    _links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _operations: dict[str, OwnedOperation | None] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether it is better begun anew."""
        return len(self._conditions) >= _MOST

    def conditions_of(self, conn: Connection, entity: Entity) -> tuple[Condition, ...]:
        """See `rules`."""
        found = self._own_conditions(conn, entity.id)
        if found is None and entity.class_id is not None:
            found = self._own_conditions(conn, entity.class_id)
        return found or ()

    def _own_conditions(self, conn: Connection, owner_id: str) -> tuple[Condition, ...] | None:
        if owner_id not in self._conditions:
            self._conditions[owner_id] = rules.own_conditions(conn, owner_id)
        return self._conditions[owner_id]

    def triggers_of(self, conn: Connection, entity: Entity) -> tuple[tuple[Trigger, bool], ...]:
        """See `rules`."""
        own = self._own_triggers(conn, entity.id)
        return own if entity.class_id is None else own + self._own_triggers(conn, entity.class_id)

    def _own_triggers(self, conn: Connection, owner_id: str) -> tuple[tuple[Trigger, bool], ...]:
        found = self._triggers.get(owner_id)
        if found is None:
            found = self._triggers[owner_id] = rules.own_triggers(conn, owner_id)
        return found

    def operation_for(self, conn: Connection, entity: Entity, operation_id: str) -> Operation:
        """See `entities`."""
        if operation_id not in self._operations:
            self._operations[operation_id] = entities.load_operation(conn, operation_id)
        return entities.checked_operation(self._operations[operation_id], entity, operation_id)

    def links_of(self, conn: Connection, object_id: str) -> tuple[str, ...]:
        """See `standings`."""
        found = self._links.get(object_id)
        if found is None:
            found = self._links[object_id] = tuple(standings.links_of(conn, object_id))
        return found


class KnownRules:
    """What the last transaction knew. A transaction keeps its own `Known`, whatever the others read meanwhile."""

    def __init__(self) -> None:
        self._last = Known()

    def at(self, conn: Connection) -> Known:
        """What may be used in the transaction of this connection."""
        version = rules.version(conn)
        if version != self._last.version or self._last.full:
            self._last = Known(version)
        return self._last

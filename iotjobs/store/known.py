"""Rules of entities, kept from one transaction to the next as long as nobody has changed any.

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

_MOST = 100_000  # entities


@dataclass(slots=True)
class Known:
    """What was read under one version, by entity; what is not there yet is read."""

    version: str | None = None
    _conditions: dict[str, tuple[Condition, ...]] = field(default_factory=dict)
    _triggers: dict[str, tuple[tuple[Trigger, bool], ...]] = field(default_factory=dict)
    _links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _operations: dict[str, OwnedOperation | None] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether it is better begun anew."""
        return len(self._conditions) >= _MOST

    def conditions_of(self, conn: Connection, entity: Entity) -> tuple[Condition, ...]:
        """See `rules`."""
        found = self._conditions.get(entity.id)
        if found is None:
            found = self._conditions[entity.id] = rules.conditions_of(conn, entity)
        return found

    def triggers_of(self, conn: Connection, entity: Entity) -> tuple[tuple[Trigger, bool], ...]:
        """See `rules`."""
        found = self._triggers.get(entity.id)
        if found is None:
            found = self._triggers[entity.id] = rules.triggers_of(conn, entity)
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

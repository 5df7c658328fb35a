"""What people define: create, read, list, change and delete, each in one transaction.

Classes, objects, links, scripts, credentials and operations have the same life: a version that
If-Match is compared with, names that are unique, references that must lead somewhere. One is read
as a `Definition`: its columns by name. What its members may be is decided in `inputs/shapes`, what
they may refer to in `references`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, Table, cast, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from iotjobs import clock
from iotjobs.domain.errors import Conflict, NotFound, PreconditionFailed
from iotjobs.domain.rights import EVERYTHING, Scope
from iotjobs.store import references, rules, tables
from iotjobs.store.writer import Transaction


class Kind(StrEnum):
    """What can be defined; the word stands in messages and in `operation.owner_kind`."""

    CLASS = "class"
    OBJECT = "object"
    LINK = "link"
    SCRIPT = "script"
    CREDENTIAL = "credential"
    OPERATION = "operation"


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition as it is stored.

    Attributes:
        values: the columns of its kind by name, defaults filled in; never a secret.
        created_at: milliseconds.
    """

    kind: Kind
    id: str
    version: int
    created_at: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `next` is the cursor of the following part, None at the end."""

    items: list[Definition]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Subject:
    table: Table
    columns: tuple[str, ...]
    unique: tuple[str, ...]


_ENTITY = ("name", "class_id", "tags", "properties", "property_types")
_SUBJECTS = {
    Kind.CLASS: _Subject(
        tables.classes, ("name", "tags", "properties", "property_types", "no_data_after_s"), ("name",)
    ),
    Kind.OBJECT: _Subject(
        tables.objects,
        (*_ENTITY, "thing", "external_id", "no_data_after_s", "mqtt", "ssh"),
        ("thing", "external_id"),
    ),
    Kind.LINK: _Subject(tables.links, (*_ENTITY, "source", "target"), ()),
    Kind.SCRIPT: _Subject(tables.scripts, ("name", "interpreter", "text"), ("name",)),
    Kind.CREDENTIAL: _Subject(tables.credentials, ("name", "kind", "username"), ("name",)),
    Kind.OPERATION: _Subject(
        tables.operations, ("owner_kind", "owner_id", "name", "type", "settings"), ("name",)
    ),
}


@contextmanager
def clash(detail: str, *, field: str | None = None) -> Iterator[None]:
    """Say `detail` as a Conflict where the database's own constraint was faster than our question.

    That happens on PostgreSQL only, when two transactions ask at the same moment.
    """
    try:
        yield
    except IntegrityError as error:
        raise Conflict(detail, field=field) from error


def _columns(subject: _Subject) -> Select[Any]:
    c = subject.table.c
    return select(c.id, c.version, c.created_at, *(c[name] for name in subject.columns))


def _definition(kind: Kind, row: Any) -> Definition:
    return Definition(kind, row[0], row[1], row[2], dict(zip(_SUBJECTS[kind].columns, row[3:], strict=True)))


def _seen_by(query: Select[Any], scope: Scope) -> Select[Any]:  # noqa: ARG001 - everybody sees definitions
    return query


def create(
    tx: Transaction, kind: Kind, values: Mapping[str, Any], now: int, *, new_id: str | None = None
) -> Definition:
    """Add a definition.

    Args:
        tx: the transaction.
        kind: what is defined.
        values: every column of the kind; may hold further ones (a credential's `secret`).
        now: milliseconds.
        new_id: the id, when the caller had to know it before.

    Raises:
        BadRequest: a reference leads nowhere; names the field.
        Conflict: a name that must be unique is taken; names the field.
    """
    subject, given_id = _SUBJECTS[kind], new_id or clock.new_id()
    references.check(tx.conn, kind, given_id, values)
    _refuse_taken(tx.conn, kind, given_id, values)
    row = {"id": given_id, "version": 1, "created_at": now, **values}
    with clash(f"a {kind} like this was made at the same moment"):
        tx.conn.execute(insert(subject.table), row)
    _note(tx, kind)
    return get(tx.conn, kind, given_id, EVERYTHING)


def _refuse_taken(conn: Connection, kind: Kind, own_id: str, values: Mapping[str, Any]) -> None:
    c = _SUBJECTS[kind].table.c
    for name in _SUBJECTS[kind].unique:
        if values.get(name) is None:
            continue
        query = select(c.id).where(c[name] == values[name], c.id != own_id)
        if kind is Kind.OPERATION:
            query = query.where(c.owner_id == values["owner_id"])
        taken = conn.execute(query.limit(1)).scalar_one_or_none()
        if taken is not None:
            where = f" of this {values['owner_kind']}" if kind is Kind.OPERATION else ""
            raise Conflict(f"{name} {values[name]!r} is taken by the {kind} {taken}{where}", field=name)


def get(conn: Connection, kind: Kind, definition_id: str, scope: Scope) -> Definition:
    """The definition of an id.

    Raises:
        NotFound: there is none that the scope shows.
    """
    subject = _SUBJECTS[kind]
    query = _columns(subject).where(subject.table.c.id == definition_id)
    row = conn.execute(_seen_by(query, scope)).first()
    if row is None:
        raise NotFound(f"there is no {kind} {definition_id}")
    return _definition(kind, row)


def page(
    conn: Connection,
    kind: Kind,
    scope: Scope,
    *,
    limit: int,
    after: str | None = None,
    **filters: str | None,
) -> Page:
    """Definitions by id, the oldest first.

    Args:
        conn: where to read.
        kind: what to list.
        scope: what the caller may see.
        limit: at most so many.
        after: the cursor that the part before gave.
        filters: wanted values of columns, or of one `tag`; None wants nothing.
    """
    subject = _SUBJECTS[kind]
    c = subject.table.c
    query = _seen_by(_columns(subject), scope).order_by(c.id).limit(limit + 1)
    if after is not None:
        query = query.where(c.id > after)
    for name, wanted in filters.items():
        if wanted is None:
            continue
        query = query.where(_has_tag(conn, c.tags, wanted) if name == "tag" else c[name] == wanted)
    rows = conn.execute(query).all()
    items = [_definition(kind, row) for row in rows[:limit]]
    return Page(items, items[-1].id if len(rows) > limit else None)


def _has_tag(conn: Connection, tags: Any, tag: str) -> Any:
    if conn.dialect.name == "postgresql":
        return cast(tags, JSONB).contains([tag])
    each = func.json_each(tags).table_valued("value")
    return select(each.c.value).where(each.c.value == tag).exists()


def of_owners(conn: Connection, owners: list[tuple[Kind, str]], scope: Scope) -> list[Definition]:
    """The operations of several owners, in the owners' order, each owner's by name."""
    subject = _SUBJECTS[Kind.OPERATION]
    c = subject.table.c
    found: list[Definition] = []
    for owner_kind, owner_id in owners:
        query = _columns(subject).where(c.owner_kind == owner_kind, c.owner_id == owner_id).order_by(c.name)
        found += [_definition(Kind.OPERATION, row) for row in conn.execute(_seen_by(query, scope))]
    return found


def lock(tx: Transaction, kind: Kind, definition_id: str, expected: frozenset[int] | None) -> Definition:
    """Read a definition that this transaction is about to change.

    Args:
        tx: the transaction; on PostgreSQL the row stays locked to its end.
        kind: what it is.
        definition_id: which.
        expected: versions that the caller named by If-Match; None takes any.

    Raises:
        NotFound: there is none.
        PreconditionFailed: it is at another version.
    """
    subject = _SUBJECTS[kind]
    query = _columns(subject).where(subject.table.c.id == definition_id).with_for_update()
    row = tx.conn.execute(query).first()
    if row is None:
        raise NotFound(f"there is no {kind} {definition_id}")
    if expected is not None and row.version not in expected:
        raise PreconditionFailed(
            f"{kind} {definition_id} is at version {row.version}: read it again and change that"
        )
    return _definition(kind, row)


def change(
    tx: Transaction,
    kind: Kind,
    definition_id: str,
    changed: Callable[[Definition], Mapping[str, Any]],
    *,
    expected: frozenset[int] | None = None,
) -> Definition:
    """Change a definition; one that comes out as it was keeps its version.

    Args:
        tx: the transaction.
        kind: what it is.
        definition_id: which.
        changed: makes the new values of the present ones, in the transaction; whatever it raises is
            raised, and nothing is changed. Absent columns stay.
        expected: see `lock`.

    Raises:
        NotFound, PreconditionFailed: see `lock`.
        BadRequest, Conflict: see `create`; or others refer to what would be gone.
    """
    before = lock(tx, kind, definition_id, expected)
    given = dict(changed(before))
    values = {**before.values, **given}
    if values == before.values:
        return before
    references.check(tx.conn, kind, definition_id, values)
    _refuse_taken(tx.conn, kind, definition_id, values)
    table = _SUBJECTS[kind].table
    with clash(f"a {kind} like this was made at the same moment"):
        tx.conn.execute(
            update(table).where(table.c.id == definition_id).values({**given, "version": before.version + 1})
        )
    _note(tx, kind)
    return get(tx.conn, kind, definition_id, EVERYTHING)


def remove(
    tx: Transaction, kind: Kind, definition_id: str, *, expected: frozenset[int] | None = None
) -> Definition:
    """Delete a definition with the operations that it owns; jobs of it stay. Returns what it was.

    Raises:
        NotFound, PreconditionFailed: see `lock`.
        Conflict: something else refers to it; says what.
    """
    before = lock(tx, kind, definition_id, expected)
    references.refuse_used(tx.conn, kind, definition_id, before.values["name"])
    if kind in (Kind.CLASS, Kind.OBJECT, Kind.LINK):
        o = tables.operations.c
        tx.conn.execute(delete(tables.operations).where(o.owner_kind == kind, o.owner_id == definition_id))
        references.forget_rules(tx.conn, definition_id)
    table = _SUBJECTS[kind].table
    with clash(f"the {kind} came into use at the same moment"):
        tx.conn.execute(delete(table).where(table.c.id == definition_id))
    _note(tx, kind)
    return before


def _note(tx: Transaction, kind: Kind) -> None:
    if kind is not Kind.CREDENTIAL:
        rules.changed(tx)


def owner(conn: Connection, owner_kind: Kind, owner_id: str) -> Definition:
    """The owner of an operation that is being made; it cannot be deleted before this transaction ends.

    Raises:
        NotFound: there is none.
    """
    subject = _SUBJECTS[owner_kind]
    query = _columns(subject).where(subject.table.c.id == owner_id).with_for_update(read=True)
    row = conn.execute(query).first()
    if row is None:
        raise NotFound(f"there is no {owner_kind} {owner_id}")
    return _definition(owner_kind, row)

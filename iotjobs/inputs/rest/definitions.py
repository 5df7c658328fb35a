"""What the routers of definitions share: read, list, patch and delete one kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from iotjobs import clock
from iotjobs.domain import operators
from iotjobs.domain.rights import Caller, scope_of
from iotjobs.engine.happenings import Happening, Redefined
from iotjobs.inputs.rest.answers import ENTITIES, ListQuery, created, no_content, page_of, shown, with_etag
from iotjobs.inputs.rest.properties import refuse_unwritable
from iotjobs.inputs.rest.services import ApiServices
from iotjobs.inputs.validation import patched
from iotjobs.store import chains, definitions, standings, states
from iotjobs.store.definitions import Definition, Kind
from iotjobs.store.writer import Transaction

# Other parts of the process keep what they read of these.
_WATCHED = frozenset({Kind.CLASS, Kind.OBJECT, Kind.LINK, Kind.CREDENTIAL})

# What decides states stands in these.
_JUDGED = frozenset({Kind.CLASS, Kind.OBJECT, Kind.LINK})


async def make(
    services: ApiServices, kind: Kind, values: Mapping[str, Any], path: str, caller: Caller
) -> Response:
    """201 with a new definition; its location is `path` and its id."""

    def item(tx: Transaction) -> Definition:
        _tell(services, tx, kind)
        now = clock.now_ms()
        created_now = definitions.create(tx, kind, values, now)
        if kind in (Kind.OBJECT, Kind.LINK):
            # What it is made with may hold already.
            standings.add_history(tx, created_now.id, values["properties"], caller.user_id, now)
            states.wake(tx, kind, created_now.id, now)
        return created_now

    made = await services.store.write(item)
    return created(shown(made), f"{path}/{made.id}")


async def read(services: ApiServices, kind: Kind, definition_id: str, caller: Caller) -> Response:
    """200 with a definition."""
    scope = scope_of(caller)
    return with_etag(
        shown(await services.store.read(lambda conn: definitions.get(conn, kind, definition_id, scope)))
    )


async def read_page(services: ApiServices, kind: Kind, query: ListQuery, caller: Caller) -> Response:
    """200 with a part of a list; members of the query beside `limit` and `cursor` are filters."""
    scope, after = scope_of(caller), query.after
    filters = query.model_dump(exclude={"limit", "cursor"})
    return page_of(
        await services.store.read(
            lambda conn: definitions.page(conn, kind, scope, limit=query.limit, after=after, **filters)
        )
    )


async def patch(
    services: ApiServices,
    definition: tuple[Kind, str],
    shape: TypeAdapter[Any],
    members: Mapping[str, Any],
    expected: frozenset[int] | None,
) -> Response:
    """200 with a definition that a merge patch was applied to."""

    def changed(before: Definition) -> dict[str, Any]:
        return patched(shape, before.values, members).model_dump()  # type: ignore[no-any-return]

    return await change(services, definition, changed, expected)


async def patch_entity(
    services: ApiServices,
    definition: tuple[Kind, str],
    shape: TypeAdapter[Any],
    members: Mapping[str, Any],
    *,
    expected: frozenset[int] | None,
    caller: Caller,
    job_ids: tuple[str, ...],
) -> Response:
    """200 with an object or link that a merge patch was applied to.

    What follows from properties that were set follows from these, whatever else was changed.
    """
    before: Mapping[str, Any] = {}

    def changed(entity: Definition) -> dict[str, Any]:
        nonlocal before
        before = entity.values["properties"]
        values: dict[str, Any] = patched(shape, entity.values, members).model_dump()
        if "thing" in values and values["thing"] != entity.values["thing"]:
            values["mqtt_password"] = None  # it was enrolled under the other name
        return values

    def follow(tx: Transaction, after: Definition) -> None:
        chains.refuse_unknown(tx.conn, job_ids, "Job-Id")
        own, engine = after.values["properties"], services.engine
        if operators.equal(own, before) or engine is None:
            return
        given = [name for name in own if name not in before or not operators.equal(own[name], before[name])]
        refuse_unwritable(tx.conn, after, given)
        what = Redefined(before, caller, job_ids)
        engine.reactions.react(tx, Happening(ENTITIES[after.kind], after.id, what))

    return await change(services, definition, changed, expected, follow)


def _nothing_more(_tx: Transaction, _after: Definition) -> None:
    """Nothing follows."""


async def change(
    services: ApiServices,
    definition: tuple[Kind, str],
    changed: Any,
    expected: frozenset[int] | None,
    follow: Callable[[Transaction, Definition], None] = _nothing_more,
) -> Response:
    """200 with a definition that `changed` made new values for, in the transaction; `follow` goes on in it."""
    kind, definition_id = definition

    def item(tx: Transaction) -> Definition:
        _tell(services, tx, kind)
        if kind in ENTITIES and services.engine is not None:  # what is due is so by what it was until now
            services.engine.reactions.catch_up(tx, ENTITIES[kind], definition_id)
        after = definitions.change(tx, kind, definition_id, changed, expected=expected)
        follow(tx, after)
        if kind in _JUDGED:  # behind what follows, that knows what led to it: a look does not
            states.wake(tx, kind, definition_id, clock.now_ms())
        return after

    return with_etag(shown(await services.store.write(item)))


async def remove(
    services: ApiServices, kind: Kind, definition_id: str, expected: frozenset[int] | None
) -> Response:
    """204 once a definition is deleted."""

    def item(tx: Transaction) -> None:
        _tell(services, tx, kind)
        definitions.remove(tx, kind, definition_id, expected=expected)

    await services.store.write(item)
    return no_content()


def _tell(services: ApiServices, tx: Transaction, kind: Kind) -> None:
    if kind in _WATCHED:
        tx.after_commit(services.definitions_changed)

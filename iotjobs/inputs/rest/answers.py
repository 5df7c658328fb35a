"""What all routers have in common: answers with their ETag, If-Match, lists and ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from iotjobs import clock
from iotjobs.clock import rfc3339
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.moments import SPAN, read_ago
from iotjobs.inputs.shapes import Name, formed
from iotjobs.store.definitions import Definition, Kind, Page
from iotjobs.store.spans import Between

PREFIX = "/api/v1"
# Owners of operations, where they are found; those of them that jobs run on.
FOLDERS = {Kind.CLASS: "classes", Kind.OBJECT: "objects", Kind.LINK: "links"}
ENTITIES = {Kind.OBJECT: OwnerType.OBJECT, Kind.LINK: OwnerType.LINK}

_ETAG = re.compile(r'(?P<weak>W/)?"(?P<text>[^"]*)"\s*(?:,|\Z)\s*')
_CURSOR = re.compile(r"[0-9a-f]{32}\Z")

Id = Annotated[str, Path(), formed("[0-9A-Za-z_-]{1,64}", "an id: letters, digits, `_` and `-`")]


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON; the content holds JSON's own types only."""
    return Response(msgspec.json.encode(content), status, dict(headers or {}), "application/json")


def shown(definition: Definition) -> dict[str, Any]:
    """A definition's members beside its id, version and moment of creation."""
    return {
        "id": definition.id,
        **definition.values,
        "version": definition.version,
        "created_at": rfc3339(definition.created_at),
    }


def with_etag(content: Mapping[str, Any]) -> Response:
    """200 with the content, its `version` being the ETag."""
    return json_response(content, headers=_etag(content["version"]))


def _etag(version: int) -> dict[str, str]:
    return {"ETag": f'"{version}"'}


def created(content: Mapping[str, Any], location: str) -> Response:
    """201 with where the new thing is, its ETag if it has a version, and itself."""
    headers = {"Location": f"{PREFIX}{location}"}
    if "version" in content:
        headers |= _etag(content["version"])
    return json_response(content, 201, headers)


def listed(items: Iterable[Any], cursor: str | None = None, *, version: int | None = None) -> Response:
    """A list, or a part of one; the ETag of one that is put whole is its version."""
    headers = {} if version is None else _etag(version)
    return json_response({"items": list(items), "next": cursor}, headers=headers)


def page_of(page: Page, show: Callable[[Definition], Any] = shown) -> Response:
    """A part of a list of definitions."""
    return listed((show(item) for item in page.items), page.next)


def no_content() -> Response:
    """204."""
    return Response(status_code=204)


class ListQuery(BaseModel):
    """The query of every list; an unknown name in a query is an error."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str, Field(max_length=64, description="`next` of the part before")] | None = None

    @property
    def after(self) -> str | None:
        """The id behind which the part begins."""
        if self.cursor is not None and not _CURSOR.match(self.cursor):
            raise BadRequest("this is no cursor of this list", field="cursor")
        return self.cursor


class NamedQuery(ListQuery):
    """A list that can be asked for one name."""

    name: Name | None = None


def only(*names: str) -> Any:
    """The dependency that refuses every other parameter of a query: a misspelt one must not be ignored."""

    async def check(request: Request) -> None:
        unknown = sorted(set(request.query_params) - set(names))
        if unknown:
            known = ", ".join(names) or "none"
            raise BadRequest(f"unknown parameter {', '.join(unknown)}; known here: {known}", field=unknown[0])

    return Depends(check)


async def _between(
    since: Annotated[str | None, Query(max_length=40, description=f"{SPAN}: how long ago, or when")] = None,
    until: Annotated[str | None, Query(max_length=40, description="likewise")] = None,
) -> Between:
    now = clock.now_ms()
    begin = None if since is None else read_ago("since", since, now)
    end = None if until is None else read_ago("until", until, now)
    if begin is not None and end is not None and begin > end:
        raise BadRequest("since is after until", field="since")
    return Between(begin, end)


# Of which span a list is wanted; `since` and `until` in its query.
When = Annotated[Between, Depends(_between)]


def entity_of(entity_id: str | None, owner_id: str | None) -> str | None:
    """Whose records are wanted: an entity is the owner of what was decided and done for it.

    Raises:
        BadRequest: two are given.
    """
    if None not in (entity_id, owner_id) and entity_id != owner_id:
        raise BadRequest("entity_id and owner_id name one entity: give one of them", field="entity_id")
    return entity_id or owner_id


Listing = Annotated[ListQuery, Query()]
NamedListing = Annotated[NamedQuery, Query()]


async def _versions(request: Request) -> frozenset[int] | None:
    given = ",".join(request.headers.getlist("if-match")).strip()
    if given in ("", "*"):
        return None
    versions, position = set(), 0
    while position < len(given):
        tag = _ETAG.match(given, position)
        if tag is None:
            raise BadRequest('If-Match must be an ETag as it was sent, such as "3"', field="If-Match")
        # A weak tag never matches here (RFC 9110 §13.1.1), and neither does one that is not ours.
        if not tag["weak"] and tag["text"].isdecimal() and len(tag["text"]) < 10:
            versions.add(int(tag["text"]))
        position = tag.end()
    return frozenset(versions)


IfMatch = Annotated[frozenset[int] | None, Depends(_versions)]
JobId = Annotated[str | None, Header(alias="Job-Id", min_length=1, max_length=128)]


def _jobs_behind(job_id: JobId = None) -> tuple[str, ...]:
    return () if job_id is None else (job_id,)


# The jobs that led to a write: a script that does it tells of which one it is.
JobsBehind = Annotated[tuple[str, ...], Depends(_jobs_behind)]

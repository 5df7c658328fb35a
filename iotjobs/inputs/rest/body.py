"""Reads a request's JSON body: after the caller's rights are checked, within limits, into a shape.

The framework would read the body first. Here it is a dependency that a route's own dependencies
(who may call) come before, so that a stranger's body is never parsed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import Request
from pydantic import TypeAdapter

from iotjobs.domain.errors import BadRequest, TooLarge
from iotjobs.domain.payloads import refuse_repeated
from iotjobs.inputs.problems import dotted
from iotjobs.inputs.rest.services import caller_of
from iotjobs.inputs.validation import validated

BODY_BYTES = 1024 * 1024
DEPTH = 32
# What every database and every client of ours can hold.
LEAST, MOST = -(2**63), 2**63 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


class Body:
    """A route's body as its dependency; `shape` and `patch` are what the API's description needs.

    Attributes:
        shape: what the body is validated as.
        patch: it is a merge patch of the shape: any member may be absent, null takes it away.
        optional: no body at all is as good as `{}`.
        items: an array stands for an object with that one member.
    """

    def __init__(
        self, shape: TypeAdapter[Any], *, patch: bool = False, optional: bool = False, items: bool = False
    ) -> None:
        self.shape, self.patch, self.optional, self.items = shape, patch, optional, items

    async def __call__(self, request: Request) -> Any:
        """The validated body, for a known caller; for a patch the object as it came."""
        await caller_of(request)
        value = await read_json(request, optional=self.optional)
        if self.items and isinstance(value, list):
            value = {"items": value}
        if not isinstance(value, dict):
            raise BadRequest("the body must be a JSON object")
        return value if self.patch else validated(self.shape, value)


def body_of(shape: Any, *, optional: bool = False) -> Body:
    """The dependency that reads a shape: `Annotated[ClassBody, Depends(body_of(ClassBody))]`."""
    return Body(TypeAdapter(shape), optional=optional)


def list_of(shape: Any) -> Body:
    """The dependency that reads a shape whose one member is `items`; the bare array is as good."""
    return Body(TypeAdapter(shape), items=True)


def patch_of(shape: Any) -> Body:
    """The dependency that reads a merge patch (RFC 7396) of a shape: `dict[str, Any]`."""
    return Body(TypeAdapter(shape), patch=True)


async def read_json(request: Request, *, optional: bool = False) -> Any:
    """The body as JSON.

    Raises:
        TooLarge: more than 1 MiB.
        BadRequest: no JSON, too deep, or holds what cannot be stored; names the place where it can.
    """
    raw = await _read(request)
    if not raw.strip():
        if optional:
            return {}
        raise BadRequest("the body is empty: send a JSON object")
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise BadRequest(f"the body is said to be {kind}: send `Content-Type: application/json`")
    return decode(raw)


async def _read(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES:
            raise TooLarge(f"the body has more than {BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def decode(raw: bytes) -> Any:
    """JSON that every part of us can hold: bounded depth and numbers, names once, text without NUL or surrogates.

    Raises:
        BadRequest: it is something else; names the place where it can.
    """
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        _explain(raw)
        raise BadRequest(f"the body is no JSON: {error}") from None
    _refuse_unfit(value)
    try:
        refuse_repeated(raw, value)
    except ValueError as error:
        raise BadRequest(f"the body is ambiguous: {error}") from None
    return value


def _explain(raw: bytes) -> None:
    """Say where a body is wrong that the standard library's laxer parser takes: NaN, surrogates."""
    try:
        value = json.loads(raw)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        return
    _refuse_unfit(value)


def _too_deep() -> BadRequest:
    return BadRequest(f"the body is nested deeper than {DEPTH}")


def _refuse_unfit(value: Any) -> None:
    waiting: list[tuple[Any, tuple[int | str, ...]]] = [(value, ())]
    while waiting:
        found, path = waiting.pop()
        if isinstance(found, dict | list):
            if len(path) >= DEPTH:
                raise _too_deep()
            waiting += [(member, (*path, name)) for name, member in _members(found)]
            if isinstance(found, dict):
                waiting += [(name, path) for name in found]
        elif (problem := _unfit(found)) is not None:
            field = dotted(path).encode(errors="replace").decode()
            raise BadRequest(f"{field}: {problem}" if field else problem, field=field or None)


def _members(found: dict[str, Any] | list[Any]) -> Iterator[tuple[int | str, Any]]:
    return iter(found.items()) if isinstance(found, dict) else enumerate(found)


def _unfit(value: Any) -> str | None:
    match value:
        case bool() | None:
            return None
        case str():
            if "\x00" in value:
                return "NUL characters cannot be stored"
            if _SURROGATE.search(value):
                return "lone surrogates are no text"
        case int() if not LEAST <= value <= MOST:
            return "an integer beyond 64 bits"
        case float() if not math.isfinite(value):
            return "NaN and infinities are no JSON numbers"
    return None

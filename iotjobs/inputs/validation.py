"""Turns decoded JSON into shapes, and merge patches into whole definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.problems import bad_request, field_errors

S = TypeVar("S")


def validated(shape: TypeAdapter[S], value: Any) -> S:
    """A decoded JSON value as its shape.

    Raises:
        BadRequest: names every field that is wrong, as the caller wrote it.
    """
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        raise bad_request(field_errors(error.errors(include_url=False, include_input=False), value)) from None


def merge_patch(target: Any, patch: Any) -> Any:
    """What RFC 7396 makes of a value: null takes a member away, objects are merged, the rest replaced.

    Neither argument is changed.
    """
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def patched(shape: TypeAdapter[S], stored: Mapping[str, Any], patch: Mapping[str, Any]) -> S:
    """A stored definition with a merge patch applied, validated as a whole.

    Raises:
        BadRequest: the patch makes it unfit; names every field.
    """
    if "type" in stored and patch.get("type", stored["type"]) != stored["type"]:
        raise BadRequest("the type of an operation cannot change: make a new one", field="type")
    return validated(shape, merge_patch(stored, patch))

"""What is sent to us and kept: JSON of bounded size and depth, storable as text, with one value for each name."""

from __future__ import annotations

import json
import re
from typing import Any

from iotjobs.domain.errors import BadRequest, TooLarge

RESULT_LIMIT_BYTES = 64 * 1024
DEPTH_LIMIT = 32
TOLD_CHARACTERS = 200  # of a value in a reason
_NAME_END = re.compile(rb'"[ \t\r\n]*:')  # of each name one, and of some texts
_json = json.JSONEncoder(ensure_ascii=False)


def check_payload(payload: Any, what: str = "a custom result") -> dict[str, Any]:
    """The payload itself, if it may be kept; `what` it is called in an error.

    Raises:
        BadRequest: not an object, nested too deep, or with text that no database keeps.
        TooLarge: more than 64 KiB of text and structure.
    """
    if not isinstance(payload, dict):
        raise BadRequest(f"{what} is a JSON object")
    size = measure(payload)
    if size > RESULT_LIMIT_BYTES:
        raise TooLarge(f"{what} has at most {RESULT_LIMIT_BYTES} bytes")
    return payload


def measure(value: Any, most: int = RESULT_LIMIT_BYTES) -> int:
    """About how many bytes a JSON value has, written compactly, counted until it is more than `most`.

    Refuses what cannot be kept.
    """
    size = 0
    open_values: list[tuple[Any, int]] = [(value, 1)]
    while open_values:
        member, depth = open_values.pop()
        if depth > DEPTH_LIMIT:
            raise BadRequest(f"nested deeper than {DEPTH_LIMIT}")
        match member:
            case str():
                size += _text_bytes(member) + 2
            case dict():
                size += 2 + 2 * len(member)
                open_values += [(name, depth) for name in member]
                open_values += [(item, depth + 1) for item in member.values()]
            case list():
                size += 2 + len(member)
                open_values += [(item, depth + 1) for item in member]
            case _:
                size += len(str(member))
        if size > most:
            return size
    return size


def refuse_repeated(raw: bytes, value: Any) -> None:
    """Refuse JSON in which a name stands twice in one object; `value`: what it was decoded to.

    Raises:
        ValueError: names it.
        RecursionError: it is too deep.
    """
    if len(_NAME_END.findall(raw)) != _count_names(value):
        json.loads(raw, object_pairs_hook=_once_each)  # ten times as slow, and rarely needed


def _count_names(value: Any) -> int:
    """How many members all objects of a value have together."""
    count, waiting = 0, [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            count += len(found)
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
    return count


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {beginning(name) or name} stands twice in one object")
        found[name] = value
    return found


def beginning(value: Any) -> str | None:
    """Of a value that is too long to stand in a reason, how it begins, as a text; None: it may stand there."""
    text = "" if isinstance(value, list | dict) else str(value)
    if isinstance(value, list | dict):
        for part in _json.iterencode(value):
            text += part
            if len(text) > TOLD_CHARACTERS:
                break
    return None if len(text) <= TOLD_CHARACTERS else f"{text[: TOLD_CHARACTERS - 1]}…"


def _text_bytes(text: str) -> int:
    if "\x00" in text:
        raise BadRequest("text with a NUL character cannot be kept")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest("text with half a surrogate pair cannot be kept") from error

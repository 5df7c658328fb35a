"""Moments as callers write them: in RFC 3339, in milliseconds, or by how far away they are."""

from __future__ import annotations

import re
from datetime import datetime

from iotjobs.domain.errors import BadRequest

# The year 9000: beyond it there is nothing to run, and no calendar of ours goes far beyond it.
LATEST_MS = 221_845_392_000_000
SPAN = "a span such as `90m`, `2h`, `7d`, or RFC 3339"  # for descriptions
_SPAN = re.compile(r"([0-9]{1,6})(s|m|h|d)\Z", re.ASCII)
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def read_moment(name: str, text: str) -> int:
    """Milliseconds since the epoch, from digits or from RFC 3339 with its zone.

    Raises:
        BadRequest: neither, naming the parameter.
    """
    moment_ms = int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else _read_date(name, text)
    if not 0 <= moment_ms <= LATEST_MS:
        raise BadRequest(f"{name}: a moment between 1970 and 9000", field=name)
    return moment_ms


def read_ago(name: str, text: str, now: int) -> int:
    """A moment as of `read_moment`, or how long before `now` it is: `90m`, `24h`, `7d`.

    Raises:
        BadRequest: neither; names the parameter.
    """
    span = _read_span(text)
    return _read_either(name, text) if span is None else max(0, now - span)


def read_ahead(name: str, text: str, now: int) -> int:
    """A moment as of `read_moment`, or how long after `now` it is.

    Raises:
        BadRequest: neither, or over already; names the parameter.
    """
    span = _read_span(text)
    moment_ms = _read_either(name, text) if span is None else now + span
    if moment_ms <= now:
        raise BadRequest(f"{name} is over already", field=name)
    return moment_ms


def _read_span(text: str) -> int | None:
    found = _SPAN.match(text)
    return None if found is None else int(found[1]) * _UNIT_MS[found[2]]


def _read_either(name: str, text: str) -> int:
    try:
        return read_moment(name, text)
    except BadRequest as error:
        hint = f"{name}: a span such as 90m, 2h or 7d, or a moment in RFC 3339 such as 2026-11-22T10:00:00Z"
        raise BadRequest(hint, field=name) from error


def _read_date(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise BadRequest(f"{name}: give the zone, such as 2026-11-22T10:00:00Z", field=name)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{name}: milliseconds since the epoch, or RFC 3339", field=name) from error

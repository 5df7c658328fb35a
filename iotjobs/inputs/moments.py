"""Moments as callers write them."""

from __future__ import annotations

from datetime import datetime

from iotjobs.domain.errors import BadRequest


def read_moment(name: str, text: str) -> int:
    """Milliseconds since the epoch, from digits or from RFC 3339 with its zone.

    Raises:
        BadRequest: neither, naming the parameter.
    """
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"{name}: milliseconds since the epoch, or RFC 3339", field=name) from error
    if moment.tzinfo is None:
        raise BadRequest(f"{name}: give the zone, such as 2026-11-22T10:00:00Z", field=name)
    return int(moment.timestamp() * 1000)

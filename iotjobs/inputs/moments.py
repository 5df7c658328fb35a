"""Moments as callers write them."""

from __future__ import annotations

from datetime import datetime

from iotjobs.domain.errors import BadRequest

# The year 9000: beyond it there is nothing to run, and no calendar of ours goes far beyond it.
LATEST_MS = 221_845_392_000_000


def read_moment(name: str, text: str) -> int:
    """Milliseconds since the epoch, from digits or from RFC 3339 with its zone.

    Raises:
        BadRequest: neither, naming the parameter.
    """
    moment_ms = int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else _read_date(name, text)
    if not 0 <= moment_ms <= LATEST_MS:
        raise BadRequest(f"{name}: a moment between 1970 and 9000", field=name)
    return moment_ms


def _read_date(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise BadRequest(f"{name}: give the zone, such as 2026-11-22T10:00:00Z", field=name)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{name}: milliseconds since the epoch, or RFC 3339", field=name) from error

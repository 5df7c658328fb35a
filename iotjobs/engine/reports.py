"""What a device's message says, before anybody acts on it: pure reading, that refuses what it cannot keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from iotjobs.domain.entities import NAME_CHARACTERS, unfit_name
from iotjobs.domain.errors import BadRequest
from iotjobs.domain.payloads import check_payload, refuse_repeated
from iotjobs.engine.happenings import Connection, Reported
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import JOB_ID_PROPERTY

REPORT_ID_PROPERTY = "report-id"
REPORT_ID_MEMBER, JOB_ID_MEMBER = "_id", "_job_id"  # of those that can set no property of a message
ID_CHARACTERS = 128
_STATUSES = {b"online": True, b"offline": False}


def read_payload(raw: bytes) -> Any:
    """The JSON of a device; two values for one name are refused, not guessed at.

    Raises:
        ValueError, RecursionError: it is no JSON, too deep, or says one name twice.
    """
    value = msgspec.json.decode(raw)  # strict: no NaN, no number out of range, no half characters
    refuse_repeated(raw, value)
    return value


def in_words(error: Exception) -> str:
    """Why a message was refused; of what is no JSON it is said."""
    if isinstance(error, RecursionError):
        return "no JSON that we read: too deep"
    no_json = isinstance(error, msgspec.DecodeError | UnicodeDecodeError | json.JSONDecodeError)
    return f"no JSON: {error}" if no_json else str(error)


def read_report(message: Received) -> Reported:
    """A report: a JSON object, whose id is a user property or its member `_id`, as its job's is (`_job_id`).

    Raises:
        ValueError, RecursionError, RequestError: it is none.
    """
    return _reported_by(message, check_payload(read_payload(message.payload), "a report"))


def read_ingested(message: Received, name: str | None, prefix: str) -> Reported:
    """A report in another maker's words: an object of values, or the one value of a property.

    Raises:
        ValueError, RecursionError, RequestError: it cannot be kept.
    """
    if name is None:
        values = check_payload(read_payload(message.payload), "a report")
    else:
        try:
            values = {name: read_payload(message.payload)}
        except msgspec.DecodeError:
            values = {name: message.payload.decode()}  # plain text, such as `on`
        check_payload(values, "a report")
    return _reported_by(message, {prefix + name: value for name, value in values.items()})


def read_shadow(message: Received) -> Reported | None:
    """What a shadow's update reports; None for one that only desires.

    Raises:
        ValueError, RecursionError, RequestError: it is no shadow's update.
    """
    state = check_payload(read_payload(message.payload), "a shadow update").get("state")
    if not isinstance(state, dict):
        raise ValueError("a shadow's update has the member state")
    values = state.get("reported")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError("state.reported is an object")
    return _reported_by(message, values)


def _reported_by(message: Received, values: dict[str, Any]) -> Reported:
    return reported(values, message.user_property(REPORT_ID_PROPERTY), message.user_property(JOB_ID_PROPERTY))


def reported(values: dict[str, Any], report_id: str | None, job_id: str | None = None) -> Reported:
    """A report of these values; what is None may be among them.

    Raises:
        BadRequest: a name or an id is too long, or an id is no text.
    """
    own, of_job = values.pop(REPORT_ID_MEMBER, None), values.pop(JOB_ID_MEMBER, None)
    chosen = _checked_id("report", own if report_id is None else report_id)
    behind = _checked_id("job", of_job if job_id is None else job_id)
    return Reported(check_names(values), chosen, () if behind is None else (behind,))


def _checked_id(whose: str, given: Any) -> str | None:
    if given is not None and (not isinstance(given, str) or not 0 < len(given) <= ID_CHARACTERS):
        raise BadRequest(f"a {whose}'s id is a text of 1 to {ID_CHARACTERS} characters")
    if given is not None and "\x00" in given:
        raise BadRequest(f"a {whose}'s id with a NUL character cannot be kept")
    return given


def check_names(values: dict[str, Any]) -> dict[str, Any]:
    """The values, whose names are those of properties: what a definition could not name is none.

    Raises:
        BadRequest: one is too long, or no name.
    """
    for name in values:
        if not 0 < len(name) <= NAME_CHARACTERS:
            raise BadRequest(f"a property's name has 1 to {NAME_CHARACTERS} characters")
        if (why := unfit_name(name)) is not None:
            raise BadRequest(f"a property's name: {why}")
    return values


def read_status(message: Received, words: Mapping[bytes, bool] = _STATUSES) -> Connection:
    """What a device, or its last will, says of its connection; `words`: whether each says that it is online.

    Raises:
        ValueError: none of these words.
        BadRequest: its id is too long.
    """
    online = words.get(message.payload)
    if online is None:
        raise ValueError(f"a status is {' or '.join(word.decode() for word in words)}")
    return Connection(online, report_id=_checked_id("report", message.user_property(REPORT_ID_PROPERTY)))

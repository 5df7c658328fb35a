"""Names on the broker: things, our topics, and what text MQTT can carry.

Pure: no I/O. `check_text` is stricter than MQTT 5 §1.5.4, which lets a broker close the connection
over such text: Mosquitto 2.0.11 does, and one job's topic would cut every other job's message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from iotjobs.domain.entities import THING_NAME
from iotjobs.domain.errors import BadRequest

ROOT = "iotjobs"

# The user property that names the job in every message of ours: the receiver's idempotency key.
JOB_ID_PROPERTY = "job-id"

# What we consume from devices.
DEVICE_FILTERS = (
    f"{ROOT}/+/report",
    f"{ROOT}/+/status",
    f"{ROOT}/+/jobs/+/results",
    f"{ROOT}/+/jobs/+/answer",
    "$aws/things/+/shadow/update",
)

_JOB_ID = re.compile(r"[0-9a-f]{32}|[0-9]{1,18}")
# Control characters, lone surrogates, non-characters; U+FEFF because paho 2.2 drops the connection over it.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff"
    + "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_TEXT_BYTES = 65_535  # MQTT 5 §1.5.4: two bytes of length
_LEVELS = 200  # Mosquitto 2 closes the connection beyond (TOPIC_HIERARCHY_LIMIT)


class TopicKind(StrEnum):
    """What a device says on one of our topics."""

    REPORT = "report"
    STATUS = "status"
    RESULTS = "results"
    ANSWER = "answer"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A topic of ours, taken apart.

    Attributes:
        kind: what it carries.
        thing: the thing that it belongs to.
        job_id: 32 hex digits or a `seq`, for `RESULTS` and `ANSWER`; else None.
    """

    kind: TopicKind
    thing: str
    job_id: str | None = None


def is_thing_name(name: str) -> bool:
    """Whether `name` can be an object's name on the broker."""
    return THING_NAME.match(name) is not None


def check_thing_name(name: str) -> str:
    """Give the name back.

    Raises:
        BadRequest: it is not 1-128 of letters, digits, `:`, `_`, `-`.
    """
    if not is_thing_name(name):
        raise BadRequest("a thing name is 1-128 letters, digits, ':', '_' or '-'", field="thing_name")
    return name


def results_topic(thing: str, job_id: str) -> str:
    """Build the topic that appends custom results to a job."""
    return f"{ROOT}/{check_thing_name(thing)}/jobs/{_check_job_id(job_id)}/results"


def answer_topic(thing: str, job_id: str) -> str:
    """Build the topic whose message ends an operation with `answer`."""
    return f"{ROOT}/{check_thing_name(thing)}/jobs/{_check_job_id(job_id)}/answer"


def parse_topic(topic: str) -> DeviceTopic | None:
    """Take one of our topics apart; None for every other topic, also for a foreign shape below our root."""
    match topic.split("/"):
        case [root, thing, ("report" | "status") as kind] if root == ROOT and is_thing_name(thing):
            return DeviceTopic(TopicKind(kind), thing)
        case [root, thing, "jobs", job_id, ("results" | "answer") as kind] if (
            root == ROOT and is_thing_name(thing) and _JOB_ID.fullmatch(job_id)
        ):
            return DeviceTopic(TopicKind(kind), thing, job_id)
        case ["$aws", "things", thing, "shadow", "update"] if is_thing_name(thing):
            return DeviceTopic(TopicKind.SHADOW, thing)
    return None


def speaker(topic: str) -> str | None:
    """The thing that a topic is of, also one that says nothing we know; None for a topic that names none."""
    match topic.split("/"):
        case [root, thing, *_] if root == ROOT and is_thing_name(thing):
            return thing
        case ["$aws", "things", thing, *_] if is_thing_name(thing):
            return thing
    return None


def check_text(text: str, *, field: str) -> str:
    """Give text back that every MQTT broker takes.

    Raises:
        BadRequest: longer than 65,535 bytes, or with control characters, lone surrogates or non-characters.
    """
    if (unfit := _UNFIT.search(text)) is not None:
        raise BadRequest(f"U+{ord(unfit[0]):04X} cannot be sent over MQTT: leave it out", field=field)
    if len(text) * 4 > _TEXT_BYTES and len(text.encode()) > _TEXT_BYTES:
        raise BadRequest(f"longer than {_TEXT_BYTES} bytes", field=field)
    return text


def check_topic(topic: str, *, field: str = "topic") -> str:
    """Give a topic back that a message can be published on.

    Raises:
        BadRequest: empty, with a wildcard, too long, too many levels, or not fit as text.
    """
    check_text(topic, field=field)
    if not topic:
        raise BadRequest("a topic needs at least one character", field=field)
    if "+" in topic or "#" in topic:
        raise BadRequest("a topic to publish on has no wildcards (+ or #)", field=field)
    _check_levels(topic, field)
    return topic


def check_filter(topic_filter: str, *, field: str = "filter") -> str:
    """Give a filter back that can be subscribed to.

    Raises:
        BadRequest: empty, a wildcard that does not stand alone in its level, `#` before the end, or unfit text.
    """
    check_text(topic_filter, field=field)
    if not topic_filter:
        raise BadRequest("a filter needs at least one character", field=field)
    _check_levels(topic_filter, field)
    levels = topic_filter.split("/")
    for position, level in enumerate(levels):
        if ("+" in level or "#" in level) and len(level) > 1:
            raise BadRequest("a wildcard stands alone between slashes", field=field)
        if level == "#" and position != len(levels) - 1:
            raise BadRequest("# stands at the end only", field=field)
    return topic_filter


def check_own_filter(topic_filter: str, *, field: str = "filter") -> str:
    """Give a filter back that a device may be granted beside its own `iotjobs/{thing}/#`.

    Raises:
        BadRequest: no filter, or one that could reach below `iotjobs/` or `$`; blanks at an end.
    """
    check_filter(topic_filter, field=field)
    first = topic_filter.split("/", 1)[0]
    if first in ("+", "#", ROOT) or first.startswith("$"):
        raise BadRequest("the first level is a plain name, not 'iotjobs', '+', '#' or '$…'", field=field)
    if topic_filter != topic_filter.strip():
        raise BadRequest("no blanks at the ends: the broker's ACL file would lose them", field=field)
    return topic_filter


def _check_levels(topic: str, field: str) -> None:
    if topic.count("/") >= _LEVELS:
        raise BadRequest(f"more than {_LEVELS} levels", field=field)


def _check_job_id(job_id: str) -> str:
    if _JOB_ID.fullmatch(job_id) is None:
        raise BadRequest("a job id is 32 hex digits, or the job's number", field="job_id")
    return job_id

"""Check 19 in numbers: whatever bytes a device sends, on whatever topic, are refused or can be kept and judged."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from iotjobs.domain.errors import RequestError
from iotjobs.domain.expressions import Facts, compile_expression
from iotjobs.domain.states import Condition, Heard, Standing, judge
from iotjobs.engine.reactions import Reported
from iotjobs.engine.reports import read_ingested, read_report, read_shadow, read_status
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import TopicKind, parse_topic

SEEDS = [
    b'{"temperature": 90.5, "door": "open", "tags": ["a", "b"], "gps": {"lat": 1, "lon": -2.5e-7}}',
    b'{"temperature": NaN, "a": Infinity, "b": -Infinity}',
    b'{"a": 1e400, "b": -1e400, "c": 1e-400, "d": 123456789012345678901234567890}',
    b'{"a": 1, "a": 2, "\\u0061": 3}',
    b'{"text": "\\ud800", "more": "\\u0000", "other": "\\udfff\\ud800"}',
    b'{"text": "\xff\xfe\xc3\x28", "bom": "\xef\xbb\xbf"}',
    b'{"_id": "r1", "_job_id": "1", "temperature": true}',
    b'{"state": {"reported": {"temperature": 91}, "desired": {"temperature": 20}}, "clientToken": "x"}',
    b'{"state": {"reported": null}}',
    b'{"": 1, "__proto__": {"x": 1}, "thing": "another", "name-with-dash": null}',
    b"[" * 40 + b"]" * 40,
    b'{"a":' * 40 + b"1" + b"}" * 40,
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xed\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee\x08\x0a",
    b"online",
    b"offline",
    b"on",
    b"",
]
TOPICS = [
    "iotjobs/t1/report",
    "iotjobs/t1/status",
    "iotjobs/t1/jobs/1/results",
    "iotjobs/t1/jobs/00000000000000000000000000000001/answer",
    "$aws/things/t1/shadow/update",
]
PIECES = [*(bytes([one]) for one in b'"{}[]:,\\e-\x00\xff'), b"\\u", b"9" * 400, b"NaN"]
LEVELS = ["", *"#+.", "$SYS", "t1", "t2", "a" * 200, "\ud800", "\ufeff", "jobs", "report", "-1", "1" * 19]
TEXTS = [
    "temperature > 80",
    'door == "open" || "a" in tags',
    "size(text) > 3 ? a < b : has(gps.lat)",
    "a + 1 == b",
]
CONDITIONS = [Condition(str(at), "alarm", compile_expression(text)) for at, text in enumerate(TEXTS)]


def hostile(chance: random.Random, count: int) -> Iterator[Received]:
    """Messages that are nearly right, on topics that are."""
    for _ in range(count):
        payload = chance.choice(SEEDS)
        for _ in range(chance.randrange(4)):
            at, end = chance.randrange(len(payload) + 1), chance.randrange(len(payload) + 1)
            match chance.randrange(4):
                case 0:  # one bit
                    bits = bytearray(payload)
                    if bits:
                        bits[at % len(bits)] ^= 1 << chance.randrange(8)
                    payload = bytes(bits)
                case 1:
                    payload = payload[:at] + chance.choice(PIECES) + payload[at:]
                case 2:  # what stands between is gone, or stands twice
                    payload = payload[:at] + payload[end:]
                case 3:
                    payload = payload[:at] + chance.choice(SEEDS) + payload[at:]
        levels = chance.choice(TOPICS).split("/")
        if chance.random() < 0.2:
            levels[chance.randrange(len(levels))] = chance.choice(LEVELS)
        yield Received("/".join(levels), payload[:70_000], 1, chance.random() < 0.1, False, 1)


def read(message: Received) -> Reported | None:
    topic = parse_topic(message.topic)
    match None if topic is None else topic.kind:
        case TopicKind.REPORT:
            return read_report(message)
        case TopicKind.SHADOW:
            return read_shadow(message)
        case TopicKind.STATUS:
            read_status(message)
        case None:
            return read_ingested(message, "said", "its_")
    return read_ingested(message, None, "")


@pytest.mark.check(19)
def test_of_a_million_messages_each_is_refused_or_can_be_kept_and_judged(full: bool) -> None:
    seed = int(os.environ.get("IOTJOBS_TEST_SEED") or random.randrange(10**6))
    print("seed", seed)  # noqa: T201 - to run it again
    found = Counter[str]()
    for message in hostile(random.Random(seed), 1_000_000 if full else 20_000):
        try:
            report = read(message)
        except (ValueError, RecursionError, RequestError):
            found["refused"] += 1
            continue
        if report is None or not report.values:
            found["says nothing"] += 1
            continue
        kept = msgspec.json.encode(report.values)
        assert msgspec.json.decode(kept) == report.values
        json.loads(kept.decode(), parse_constant=lambda name: pytest.fail(f"{name} was kept"))
        judged = judge(CONDITIONS, Facts(report.values), Standing(heard_at=1), 2, heard=Heard.all_until(2))
        msgspec.json.encode(judged.why)
        found[judged.state] += 1
    print(dict(found))  # noqa: T201 - a figure
    assert min(found[name] for name in ("refused", "working", "alarm")) > 100  # it was about all of these

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from iotjobs.domain.errors import BadRequest, RequestError
from iotjobs.domain.expressions import Facts, compile_expression
from iotjobs.domain.states import Condition, Heard, Standing, judge
from iotjobs.engine.happenings import Connection, Reported
from iotjobs.engine.reports import (
    check_names,
    read_ingested,
    read_payload,
    read_report,
    read_shadow,
    read_status,
)
from iotjobs.inputs.shapes import Properties
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import TopicKind, parse_topic


def received(payload: Any, **properties: str) -> Received:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    pairs = tuple((name.replace("_", "-"), value) for name, value in properties.items())
    return Received("t", raw, 1, False, False, 1, user_properties=pairs)


def test_a_report_is_an_object_and_its_id_a_property_of_the_message_or_a_member() -> None:
    assert read_report(received({"a": 1})) == Reported({"a": 1})
    assert read_report(received({"a": 1, "_id": "r1"})) == Reported({"a": 1}, "r1")
    assert read_report(received({"a": 1, "_id": "r1"}, report_id="r2")) == Reported({"a": 1}, "r2")
    assert read_report(received({"a": 1}, job_id="j1")) == Reported({"a": 1}, job_ids=("j1",))
    assert read_report(received({"a": 1, "_job_id": "j1"})) == Reported({"a": 1}, job_ids=("j1",))
    both = received({"a": 1, "_id": "r1", "_job_id": "j1"}, job_id="j2")
    assert read_report(both) == Reported({"a": 1}, "r1", ("j2",))


def test_a_word_of_a_connection_may_have_an_id() -> None:
    assert read_status(received(b"offline")) == Connection(False)
    assert read_status(received(b"online", report_id="w1")) == Connection(True, report_id="w1")
    with pytest.raises(RequestError):
        read_status(received(b"online", report_id="w" * 129))


@pytest.mark.check(19)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\u0000"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": "' + b"x" * 65_537 + b'"}',
        {"_id": 1},
        {"_id": ""},
        {"_id": "x" * 129},
        {"_job_id": 1},
        {"_job_id": "x" * 129},
        {"x" * 201: 1},
        {"": 1},
        {" ": 1},
        {"a\nb": 1},
        {"a\u2028b": 1},
        {"a\x7f": 1},
        {"a\nb": None},
        {"_id": "a\0"},
    ],
)
def test_what_cannot_be_kept_is_refused(payload: Any) -> None:
    with pytest.raises((ValueError, RecursionError, RequestError)):
        read_report(received(payload))


def test_an_id_that_no_database_keeps_is_refused() -> None:
    for name in ("report_id", "job_id"):
        with pytest.raises(RequestError):
            read_report(received({"a": 1}, **{name: "a\0"}))


@given(st.text(max_size=5))
def test_a_report_can_give_a_property_no_name_that_a_definition_could_not(name: str) -> None:
    definition = TypeAdapter(Properties)
    try:
        check_names({name: 1})
    except BadRequest:
        with pytest.raises(ValidationError):
            definition.validate_python({name: 1})
    else:
        assert definition.validate_python({name: 1}) == {name: 1}


@pytest.mark.check(19)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    for read in (read_report, read_shadow, read_status, lambda message: read_ingested(message, "p", "")):
        try:
            read(received(raw))
        except (ValueError, RecursionError, RequestError):
            continue


def test_of_a_shadow_s_update_only_what_is_reported_counts() -> None:
    both = {"state": {"reported": {"a": 1}, "desired": {"a": 2}}, "clientToken": "x"}
    assert read_shadow(received(both)) == Reported({"a": 1})
    assert read_shadow(received({"state": {"desired": {"a": 2}}})) is None
    for wrong in ({}, {"state": 1}, {"state": {"reported": [1]}}):
        with pytest.raises(ValueError):
            read_shadow(received(wrong))


def test_a_status_is_one_of_two_words() -> None:
    assert read_status(received(b"online")) == Connection(True)
    assert read_status(received(b"offline")) == Connection(False)
    with pytest.raises(ValueError):
        read_status(received(b"away"))
    spelt = {b"Online": True, b"Offline": False}
    assert read_status(received(b"Offline"), spelt) == Connection(False)
    for wrong in (b"offline", b"", b"Offline ", b"\xff"):
        with pytest.raises(ValueError, match="Online or Offline"):
            read_status(received(wrong), spelt)


def test_other_makers_send_objects_or_single_values() -> None:
    assert read_ingested(received({"a": 1}), None, "s.") == Reported({"s.a": 1})
    assert read_ingested(received(b"12.5"), "power", "") == Reported({"power": 12.5})
    assert read_ingested(received(b"on"), "relay", "x.") == Reported({"x.relay": "on"})
    assert read_ingested(received(b"{on"), "relay", "") == Reported({"relay": "{on"})
    for payload, name in ((b'{"a": 1}', None), (b"1", "a")):
        with_ids = received(payload, report_id="r1", job_id="j1")
        assert read_ingested(with_ids, name, "") == Reported({"a": 1}, "r1", ("j1",))
    with pytest.raises(ValueError):
        read_ingested(received(b"\xff"), "relay", "")
    with pytest.raises(RequestError):
        read_ingested(received(b"5"), None, "")
    with pytest.raises(ValueError, match="twice"):
        read_ingested(received(b'{"a": 1, "a": 2}'), "relay", "")


@pytest.mark.parametrize("raw", [b'{"a":1,"a":2}', b'{"o":{"a":1,"a":2}}'])
def test_two_values_for_one_name_are_not_guessed_at(raw: bytes) -> None:
    with pytest.raises(ValueError, match="twice"):
        read_payload(raw)


# Check 19 in numbers: whatever bytes a device sends, on whatever topic, are refused or can be kept and judged.
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


def read_any(message: Received) -> Reported | None:
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
            report = read_any(message)
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

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.errors import RequestError
from iotjobs.engine.reactions import Connection, Reported
from iotjobs.engine.reports import read_ingested, read_payload, read_report, read_shadow, read_status
from iotjobs.transports.mqtt_messages import Received


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
    ],
)
def test_what_cannot_be_kept_is_refused(payload: Any) -> None:
    with pytest.raises((ValueError, RecursionError, RequestError)):
        read_report(received(payload))


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

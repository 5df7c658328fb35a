from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotjobs.domain.errors import BadRequest, TooLarge
from iotjobs.domain.payloads import DEPTH_LIMIT, RESULT_LIMIT_BYTES, check_payload, measure

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


def nested(depth: int) -> dict[str, Any]:
    payload: dict[str, Any] = {"end": 1}
    for _ in range(depth - 1):
        payload = {"in": payload}
    return payload


@settings(max_examples=30)
@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_an_object_is_given_back_as_it_is(payload: dict[str, Any]) -> None:
    assert check_payload(payload) is payload


@given(JSON)
def test_the_measure_is_near_the_written_size(value: Any) -> None:
    written = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    assert measure(value) <= 2 * written + 16
    assert measure(value) >= written / 3 - 4  # control characters are written as six bytes


@pytest.mark.parametrize("payload", [[], [{}], "text", 1, 1.5, True, None])
def test_everything_but_an_object_is_refused(payload: Any) -> None:
    with pytest.raises(BadRequest, match="a custom result is a JSON object"):
        check_payload(payload)


@pytest.mark.parametrize("filler", ["x", "ü", "😀"])
def test_the_limit_counts_bytes_and_is_exact_to_the_structure(filler: str) -> None:
    room = (RESULT_LIMIT_BYTES - len('{"a":""}') - 1) // len(filler.encode())

    assert check_payload({"a": filler * (room - 1)})
    with pytest.raises(TooLarge, match="at most 65536 bytes"):
        check_payload({"a": filler * (room + 1)})


def test_many_small_members_count_as_well() -> None:
    with pytest.raises(TooLarge):
        check_payload({"a": [0] * RESULT_LIMIT_BYTES})
    with pytest.raises(TooLarge):
        check_payload({str(number): None for number in range(8_000)})


def test_the_depth_limit_is_exact_and_a_deep_payload_overflows_nothing() -> None:
    assert check_payload(nested(DEPTH_LIMIT - 1))
    assert check_payload(nested(DEPTH_LIMIT - 1) | {"list": [[]]})
    with pytest.raises(BadRequest, match="nested deeper than 32"):
        check_payload(nested(DEPTH_LIMIT + 1))
    with pytest.raises(BadRequest, match="nested deeper than 32"):
        check_payload(nested(100_000))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"a": "x\x00y"}, "NUL"),
        ({"a\x00": 1}, "NUL"),
        ({"a": ["deep", {"b": "\x00"}]}, "NUL"),
        ({"a": "\ud800"}, "half a surrogate pair"),
        ({"\udfff": 1}, "half a surrogate pair"),
    ],
)
def test_text_that_no_database_keeps_is_refused(payload: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check_payload(payload)

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.rest.body import DEPTH, LEAST, MOST, decode

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(LEAST, MOST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_every_json_that_can_be_kept_is_decoded_as_it_is(value: Any) -> None:
    try:
        assert decode(json.dumps(value).encode()) == value
    except BadRequest:
        assert "\\u0000" in json.dumps(value)


@given(st.binary() | st.text(alphabet='[]{}",:0123456789eE+-.truefalsn\\u\x00\ud7ff').map(str.encode))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    with contextlib.suppress(BadRequest):
        decode(raw)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_depth_has_one_limit_for_lists_and_objects() -> None:
    decode(nested(DEPTH))
    decode(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH)
    for deep in (nested(DEPTH + 1), nested(100_000), b"[" * 1_000_000, b'{"a":' * 100_000):
        with pytest.raises(BadRequest, match="deeper"):
            decode(deep)


@pytest.mark.parametrize("number", [LEAST - 1, MOST + 1, 10**30])
def test_integers_beyond_64_bits_are_refused(number: int) -> None:
    decode(f"[{LEAST},{MOST}]".encode())
    with pytest.raises(BadRequest, match="64 bits") as refused:
        decode(f'{{"a":[0,{number}]}}'.encode())
    assert refused.value.errors[0].field == "a[1]"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"a":{"b":["x","\\u0000"]}}', "a.b[1]"),
        (b'{"a":{"\\ud800":1}}', "a"),
        (b'{"a":"\\udfff"}', "a"),
        (b'{"a":[Infinity]}', "a[0]"),
        (b'{"a":-1e999}', "a"),
    ],
)
def test_what_is_unfit_is_named_by_its_place(raw: bytes, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        decode(raw)
    assert [error.field for error in refused.value.errors] == [field]


@pytest.mark.parametrize("raw", [b'{"a":1,"a":1}', b'{"o":[{"b":1},{"a":1,"\\u0061" : 2}]}'])
def test_two_values_for_one_name_are_refused_and_it_is_named(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="the name a stands twice"):
        decode(raw)
    text = 'a text with ": in it is no name'
    assert decode(json.dumps({"a": text, "o": {"a": text}}).encode()) == {"a": text, "o": {"a": text}}


def test_a_pair_of_surrogates_is_text() -> None:
    assert decode(b'"\\ud83d\\ude00"') == "\U0001f600"

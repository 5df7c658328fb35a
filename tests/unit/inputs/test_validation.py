from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.shapes import ObjectBody, ScriptBody, SshBody, UserBody
from iotjobs.inputs.validation import merge_patch, patched, validated

SCRIPT = TypeAdapter(ScriptBody)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_its_rfc_says(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=10,
)


@given(json_values, json_values)
def test_a_second_time_changes_nothing(target: Any, patch: Any) -> None:
    before = repr(target)

    once = merge_patch(target, patch)

    assert merge_patch(once, patch) == once
    assert repr(target) == before


def test_a_patched_definition_is_validated_as_a_whole() -> None:
    stored = {"name": "s", "interpreter": "bash", "text": "true"}

    assert patched(SCRIPT, stored, {"interpreter": None}).interpreter == "sh"
    for patch, field in (({"text": None}, "text"), ({"colour": 1}, "colour")):
        with pytest.raises(BadRequest) as refused:
            patched(SCRIPT, stored, patch)
        assert [error.field for error in refused.value.errors] == [field]


def test_no_error_repeats_what_was_sent() -> None:
    with pytest.raises(BadRequest) as refused:
        validated(SCRIPT, {"name": ["hidden-7"], "text": {"hidden-7": 1}, "interpreter": "hidden-7"})
    assert "hidden-7" not in repr(refused.value.errors) + str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("shape", "value", "field", "words"),
    [
        (SshBody, {"host": "root@10.0.0.1"}, "host", "a host name"),
        (SshBody, {"host": "h", "username": "-x"}, "username", "no `-` first"),
        (ObjectBody, {"name": "a", "thing": "a/b"}, "thing", "letters"),
        (UserBody, {"login": "a b", "role": "viewer"}, "login", "without blanks"),
    ],
)
def test_a_text_of_the_wrong_form_is_told_in_words(shape: Any, value: Any, field: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validated(TypeAdapter(shape), value)

    [error] = caught.value.errors
    assert error.field == field
    assert words in error.message
    assert "^" not in error.message

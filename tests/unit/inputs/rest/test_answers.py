from __future__ import annotations

import pytest
from starlette.requests import Request

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.rest import answers
from iotjobs.inputs.rest.answers import ListQuery, created, with_etag


async def versions(*given: str) -> frozenset[int] | None:
    headers = [(b"if-match", value.encode()) for value in given]
    return await answers._versions(Request({"type": "http", "headers": headers}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), None),
        (("*",), None),
        (('"3"',), {3}),
        (('"3", "4"',), {3, 4}),
        (('"3"', '"4"'), {3, 4}),
        (('W/"3"',), set()),
        (('"abc"',), set()),
        (('"a,b" , "5"',), {5}),
    ],
)
async def test_if_match_names_versions(given: tuple[str, ...], expected: set[int] | None) -> None:
    assert await versions(*given) == (None if expected is None else frozenset(expected))


@pytest.mark.parametrize("given", ["3", '"3', "x", '*, "3"'])
async def test_what_is_no_etag_is_refused(given: str) -> None:
    with pytest.raises(BadRequest):
        await versions(given)


def test_answers_carry_their_etag_and_location() -> None:
    assert with_etag({"version": 7}).headers["etag"] == '"7"'
    assert created({"version": 7}, "/classes/x").headers["location"] == "/api/v1/classes/x"
    assert "etag" not in created({}, "/x").headers


def test_a_cursor_is_an_id_of_the_list() -> None:
    assert ListQuery(cursor="0" * 32).after == "0" * 32
    with pytest.raises(BadRequest):
        _ = ListQuery(cursor="' OR 1").after

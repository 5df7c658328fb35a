from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.entities import THING_NAME, Entity, OwnerType, PropertyType, macro_values

PRESS = Entity("o1", OwnerType.OBJECT, "press", properties={"line": 3})
PLC = Entity("o2", OwnerType.OBJECT, "plc")
CABLE = Entity("l1", OwnerType.LINK, "cable", properties={"metres": 5}, source=PRESS, target=PLC)


def test_the_owner_types_have_the_documented_numbers() -> None:
    assert [(kind.name, int(kind)) for kind in OwnerType] == [("OBJECT", 1), ("LINK", 2)]
    assert [kind.value for kind in PropertyType] == ["info", "readonly", "readwrite"]


@pytest.mark.parametrize("run_on", ["source", "target"])
def test_a_command_of_an_object_runs_on_itself(run_on: str) -> None:
    assert PRESS.end(run_on) is PRESS


def test_a_command_of_a_link_runs_on_the_end_that_was_chosen() -> None:
    assert CABLE.end("source") is PRESS
    assert CABLE.end("target") is PLC


def test_an_object_gives_its_own_macros() -> None:
    assert macro_values(PRESS) == {"id": "o1", "name": "press", "properties": {"line": 3}}


def test_a_link_gives_those_of_its_ends_too() -> None:
    assert macro_values(CABLE) == {
        "id": "l1",
        "name": "cable",
        "properties": {"metres": 5},
        "source": {"id": "o1", "name": "press", "properties": {"line": 3}},
        "target": {"id": "o2", "name": "plc", "properties": {}},
    }


@given(st.from_regex(r"[a-zA-Z0-9:_-]{1,128}", fullmatch=True))
def test_a_thing_name_is_a_topic_level_of_plain_characters(name: str) -> None:
    assert THING_NAME.match(name)


@pytest.mark.parametrize("name", ["", "a" * 129, "a/b", "a+", "#", "a b", "é", "a\n", "a\x00", "%u", "$SYS"])
def test_what_could_be_another_topic_is_no_thing_name(name: str) -> None:
    assert THING_NAME.match(name) is None

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from iotjobs.domain.errors import BadRequest
from iotjobs.domain.operations import check
from iotjobs.inputs.operation_shapes import OperationBody
from iotjobs.inputs.validation import validated
from iotjobs.store.entities import operation_of

OPERATION: TypeAdapter[Any] = TypeAdapter(OperationBody)
LEAST = {
    "script": {"text": "true"},
    "program": {"path": "/bin/true"},
    "mqtt": {"topic": "a/{{id}}", "message": None},
}


@pytest.mark.parametrize("kind", LEAST)
def test_the_least_that_can_be_given_is_an_operation_of_the_domain(kind: str) -> None:
    shape = validated(OPERATION, {"name": "n", "type": kind, "parameters": LEAST[kind]})
    settings = shape.model_dump(exclude={"name", "type"})

    operation = operation_of("0" * 32, shape.name, shape.type, settings)

    check(operation, "object")
    assert operation.kill_after_s == 5.0


def test_parameters_of_another_type_are_unknown_fields() -> None:
    with pytest.raises(BadRequest) as refused:
        validated(OPERATION, {"name": "n", "type": "program", "parameters": {"text": "true"}})
    assert {error.field for error in refused.value.errors} == {"parameters.path", "parameters.text"}


@pytest.mark.parametrize(
    ("given", "interpreter"),
    [
        ({"text": "true"}, "sh"),
        ({"script_id": "x"}, None),
        ({"script_id": "x", "interpreter": "perl"}, "perl"),
    ],
)
def test_only_a_shared_script_may_leave_the_interpreter_open(given: dict[str, str], interpreter: str) -> None:
    shape = validated(OPERATION, {"name": "n", "type": "script", "parameters": given})

    assert shape.parameters.interpreter == interpreter


def test_defaults_are_not_shared() -> None:
    body = {"name": "n", "type": "script", "parameters": {"text": "true"}}
    one, two = validated(OPERATION, body), validated(OPERATION, body)

    one.retry.on.append("lost")
    one.parameters.args.append("x")

    assert (two.retry.on, two.parameters.args) == (["unreachable"], [])

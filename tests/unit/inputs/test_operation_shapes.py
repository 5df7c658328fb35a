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


@pytest.mark.parametrize(
    ("kind", "members", "field", "said"),
    [
        ("script", {"parameters": {"text": "true", "env": {"IFS": ","}}}, "parameters.env.IFS", "the shell"),
        ("script", {"parameters": {"text": "true", "env": {"UID": "0"}}}, "parameters.env.UID", "the shell"),
        ("program", {"parameters": {"path": "x", "env": {"PPID": "1"}}}, "parameters.env.PPID", "the shell"),
        ("program", {"parameters": {"path": "x", "env": {"_ij_c": "1"}}}, "parameters.env._ij_c", "are ours"),
        ("program", {"parameters": {"path": "x", "env": {"A B": "1"}}}, "parameters.env.A B", "letters"),
        ("script", {"run_as": "x" * 33}, "run_as", "the name of a user"),
        ("script", {"run_as": "-u"}, "run_as", "the name of a user"),
        ("program", {"parameters": {"path": "-x"}}, "parameters.path", "start with -"),
        ("program", {"parameters": {"path": "x", "args": ["a", "b\0"]}}, "parameters.args[1]", "NUL"),
        ("script", {"parameters": {"text": "true\0"}}, "parameters.text", "NUL"),
    ],
)
def test_what_no_device_could_be_sent_is_refused_at_save_with_its_field(
    kind: str, members: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        validated(OPERATION, {"name": "n", "type": kind, "parameters": LEAST[kind]} | members)

    [error] = refused.value.errors
    assert (error.field, said in error.message) == (field, True)


def test_a_user_may_end_in_a_dollar_sign() -> None:
    body = {"name": "n", "type": "script", "parameters": {"text": "true"}, "run_as": "machine$"}

    assert validated(OPERATION, body).run_as == "machine$"

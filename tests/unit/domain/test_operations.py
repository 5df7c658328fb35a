from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotjobs.domain.entities import Entity, OwnerType, SshAddress
from iotjobs.domain.errors import BadRequest
from iotjobs.domain.jobs import Transport
from iotjobs.domain.operations import (
    MASK,
    MESSAGE_LIMIT_BYTES,
    Asked,
    Operation,
    OperationType,
    Plan,
    Via,
    check,
    masked_args,
    render,
    resolve_transport,
    values_for,
)
from iotjobs.domain.retries import RetryPolicy

JOB = "0199f3c2a7d47c4e9f0b6f6f6c1f2a10"
SSH = SshAddress("10.0.0.1")
PRESS = Entity(
    "o1", OwnerType.OBJECT, "press", properties={"line": 3, "note": "it's"}, thing="press", ssh=SSH
)
SENSOR = Entity("o2", OwnerType.OBJECT, "sensor", thing="sensor")
BARE = Entity("o3", OwnerType.OBJECT, "bare")
CABLE = Entity("l1", OwnerType.LINK, "cable", source=PRESS, target=BARE)


def script(text: str | None = "true", **members: Any) -> Operation:
    given = {"text": text, "script_id": None, "interpreter": "sh", "args": [], "env": {}}
    return Operation("p1", "op", OperationType.SCRIPT, given | members.pop("parameters", {}), **members)


def program(path: str = "/bin/echo", *args: str, **members: Any) -> Operation:
    given = {"path": path, "args": list(args), "env": {}, "cwd": None}
    return Operation("p1", "op", OperationType.PROGRAM, given | members.pop("parameters", {}), **members)


def message(body: Any = "on", topic: str = "line/1", **members: Any) -> Operation:
    given = {"topic": topic, "message": body, "qos": 1, "retain": False, "require_subscriber": False}
    given |= {"expiry_s": None, "answer": None} | members.pop("parameters", {})
    return Operation("p1", "op", OperationType.MQTT, given, **members)


def rendered(operation: Operation, owner: Entity = PRESS, text: str | None = None, **asked: Any) -> Plan:
    given = Asked(**asked)
    values = values_for(owner, given, job_id=JOB, user=("u1", "anna"))
    return render(operation, owner, values, given, text or operation.parameters.get("text"))


def refused(operation: Operation, owner_kind: str = "object") -> list[tuple[str, str]]:
    with pytest.raises(BadRequest) as error:
        check(operation, owner_kind)
    return [(problem.field, problem.message) for problem in error.value.errors]


# --- what is refused when an operation is saved ---------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (script(None), "parameters"),
        (script("true", parameters={"script_id": "s1"}), "parameters"),
        (script("x", parameters={"interpreter": "raw", "args": ["a"]}), "parameters.interpreter"),
        (script("x", parameters={"interpreter": "raw"}, run_as="root"), "run_as"),
        (message(run_as="root"), "run_as"),
        (message(via=Via.SSH), "via"),
        (message(stall_s=5.0), "stall_s"),
        (message({"a": [{"{{args.key}}": 1}]}), "parameters.message"),
        (message(parameters={"qos": 0, "require_subscriber": True}), "parameters.require_subscriber"),
        (script("echo {{args.password}}", secret_args=("password", "passwrd")), "secret_args[1]"),
        (message("{{ask.pin}}", secret_args=("pin",)), "secret_args[0]"),
        (script(via=Via.AGENT), "via"),
        (script(retry=RetryPolicy(2, ("unreachable", "failed"))), "retry.on"),
        (script("echo {{what}}"), "parameters.text"),
        (script("echo {{source.name}}"), "parameters.text"),
        (program("/bin/{{what}}"), "parameters.path"),
        (program("a", "b", "{{args}}"), "parameters.args[1]"),
        (program(parameters={"env": {"A": "{{no}}"}}), "parameters.env.A"),
        (program(parameters={"cwd": "{{no}}"}), "parameters.cwd"),
        (message(topic="a/{{no}}"), "parameters.topic"),
        (message({"a": [1, {"b": "{{no}}"}]}), "parameters.message.a[1].b"),
    ],
)
def test_what_can_never_run_is_refused_by_its_field(operation: Operation, field: str) -> None:
    assert field in [name for name, _ in refused(operation)]


def test_all_problems_are_told_at_once() -> None:
    operation = program("{{a}}", "{{b}}", retry=RetryPolicy(2, ("lost", "failed")))

    assert [name for name, _ in refused(operation)] == ["parameters.path", "parameters.args[0]", "retry.on"]


@pytest.mark.parametrize(
    "text", ["# {{name}}", "cat <<E\n{{name}}\nE", "echo `echo {{name}}`", "echo $(({{id}}))"]
)
def test_a_macro_where_no_quoting_holds_is_refused_with_its_position(text: str) -> None:
    [(field, said)] = refused(script(text))

    assert field == "parameters.text"
    assert "line" in said


@pytest.mark.parametrize("owner_kind", ["link", "class"])
def test_links_and_classes_may_name_both_ends(owner_kind: str) -> None:
    check(script('echo "{{source.name}}" {{target.properties.x}}'), owner_kind)


@pytest.mark.parametrize(
    "operation",
    [
        script("echo {{name}} {{args.x}} {{ask.y}} {{user.login}} {{jobId}}"),
        script(None, parameters={"script_id": "s1"}),
        script(None, parameters={"script_id": "s1"}, secret_args=("pin",)),
        script("echo {{args.pin}}", secret_args=("pin",)),
        message({"pin": "{{args.pin}}"}, secret_args=("pin",)),
        script(retry=RetryPolicy(3, ("unreachable", "failed", "timed_out", "lost")), idempotent=True),
        script("x", parameters={"interpreter": "raw"}),
        program("{{properties.path}}", "{{id}}", via=Via.LOCAL),
        message({"set": "{{args.v}}"}, "line/{{properties.line}}"),
    ],
)
def test_what_can_run_is_let_through(operation: Operation) -> None:
    check(operation, "object")


# --- the way that a run takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "owner", "way"),
    [
        (script(), PRESS, Transport.SSH),
        (script(via=Via.SSH), PRESS, Transport.SSH),
        (program(run_on="source"), CABLE, Transport.SSH),
        (message(), BARE, Transport.MQTT),
        (message(parameters={"answer": {"within_s": 1}}), SENSOR, Transport.MQTT),
        (script(via=Via.LOCAL), BARE, Transport.LOCAL),
    ],
)
def test_the_way_follows_from_the_operation_and_its_owner(
    operation: Operation, owner: Entity, way: Transport
) -> None:
    assert resolve_transport(operation, owner, allow_local=True) is way


@pytest.mark.parametrize(
    ("operation", "owner", "said"),
    [
        (script(), BARE, "the object bare has no SSH address: set ssh.host"),
        (script(run_on="target"), CABLE, "the link's target bare has no SSH address: set ssh.host"),
        (script(), SENSOR, "has a thing name and no SSH address, and this version has no agent"),
        (script(via=Via.LOCAL), PRESS, "via local is switched off"),
        (message(parameters={"answer": {"within_s": 1}}), BARE, "answer needs a thing name"),
        (message(parameters={"answer": {"within_s": 1}}, run_on="target"), CABLE, "the link's target bare"),
    ],
)
def test_an_owner_that_cannot_be_reached_so_is_told_what_is_missing(
    operation: Operation, owner: Entity, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        resolve_transport(operation, owner, allow_local=False)


# --- what a job will do ---------------------------------------------------------------------------


def test_a_program_gets_one_argument_for_each_however_it_looks() -> None:
    hostile = "; $( ) ` | & > \n -oProxyCommand= -- '\""

    plan = rendered(
        program("/bin/{{args.p}}", "{{args.x}}", "a {{args.x}} b", parameters={"env": {"V": "{{args.x}}"}}),
        args={"p": "echo", "x": hostile},
    )

    assert plan.argv == ("/bin/echo", hostile, f"a {hostile} b")
    assert plan.env == {"V": hostile}
    assert plan.script is None


@settings(max_examples=40)
@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=50))
def test_a_value_never_becomes_script_text(value: str) -> None:
    plan = rendered(script("echo {{args.x}} \"-{{args.x}}-\" '{{args.x}}'"), args={"x": value})
    empty = rendered(script("echo {{args.x}} \"-{{args.x}}-\" '{{args.x}}'"), args={"x": ""})

    assert plan.script == empty.script
    assert set(plan.env.values()) == {value}


def test_macros_of_owner_user_and_job_are_filled() -> None:
    plan = rendered(
        program(
            "p", "{{id}}", "{{name}}", "{{properties.line}}", "{{user.id}}", "{{user.login}}", "{{jobId}}"
        )
    )

    assert plan.argv[1:] == ("o1", "press", "3", "u1", "anna", JOB)


def test_macros_of_both_ends_are_filled_on_a_link() -> None:
    assert rendered(program("p", "{{source.name}}-{{target.id}}"), CABLE).argv == ("p", "press-o3")


def test_every_macro_without_a_value_is_named_with_its_field() -> None:
    operation = program("p", "{{args.a}}", "{{ask.b}} {{properties.none}}", parameters={"cwd": "{{args.a}}"})

    with pytest.raises(BadRequest) as error:
        rendered(operation)

    assert error.value.detail == "no value for {{args.a}}, {{ask.b}}, {{properties.none}}"
    assert {(problem.field, problem.message.split()[0]) for problem in error.value.errors} == {
        ("parameters.cwd", "{{args.a}}"),
        ("parameters.args[0]", "{{args.a}}"),
        ("parameters.args[1]", "{{ask.b}}"),
        ("parameters.args[1]", "{{properties.none}}"),
    }


def test_the_script_of_the_repository_is_part_of_the_plan() -> None:
    plan = rendered(script(None, parameters={"script_id": "s1"}), text="echo {{name}}")

    assert plan.script is not None
    assert plan.script.startswith("echo ")
    assert list(plan.env.values()) == ["press"]


@pytest.mark.parametrize(
    ("operation", "asked", "limit"),
    [(script(), None, 60.0), (script(timeout_s=7.0), None, 7.0), (script(timeout_s=7.0), 2.0, 2.0)],
)
def test_the_calls_timeout_wins_over_the_operations_and_that_over_the_sites(
    operation: Operation, asked: float | None, limit: float
) -> None:
    assert rendered(operation, timeout_s=asked, default_timeout_s=60.0).timeout_s == limit


def test_a_leaf_that_is_one_macro_keeps_the_type_of_the_value() -> None:
    plan = rendered(message({"set": "{{args.v}}", "say": "v={{args.v}}", "n": [None, 1.5]}), args={"v": 21})

    assert plan.message == '{"set":21,"say":"v=21","n":[null,1.5]}'
    assert plan.message_is_json


@pytest.mark.parametrize("value", ["a/b", "+", "#", "x\x00"])
def test_a_value_cannot_reach_another_topic(value: str) -> None:
    with pytest.raises(BadRequest):
        rendered(message(topic="line/{{args.n}}"), args={"n": value})


def test_a_message_over_the_limit_is_refused_after_filling() -> None:
    operation = message("{{args.x}}")

    assert rendered(operation, args={"x": "ü" * (MESSAGE_LIMIT_BYTES // 2)}).message is not None
    with pytest.raises(BadRequest, match="more than 65536") as error:
        rendered(operation, args={"x": "ü" * (MESSAGE_LIMIT_BYTES // 2) + "x"})
    assert [problem.field for problem in error.value.errors] == ["parameters.message"]


def test_an_answer_goes_to_the_thing_of_the_end_that_the_run_is_on() -> None:
    plan = rendered(message(parameters={"answer": {"within_s": 4.0}}), replace(CABLE, target=SENSOR))

    assert (plan.answer_within_s, plan.thing) == (4.0, "press")


# --- plans are kept as JSON -----------------------------------------------------------------------

plans = st.builds(
    Plan,
    type=st.sampled_from(OperationType),
    timeout_s=st.floats(0.001, 1e6),
    kill_after_s=st.floats(0, 3600),
    idempotent=st.booleans(),
    concurrent=st.booleans(),
    retry=st.builds(
        RetryPolicy,
        attempts=st.integers(1, 100),
        on=st.lists(st.sampled_from(["unreachable", "failed"])).map(tuple),
        backoff_s=st.floats(0, 100),
        max_backoff_s=st.floats(0, 100),
    ),
    script=st.none() | st.text(),
    argv=st.lists(st.text()).map(tuple),
    args=st.lists(st.text()).map(tuple),
    env=st.dictionaries(st.text(), st.text()),
    cwd=st.none() | st.text(),
    message=st.none() | st.text(),
    qos=st.integers(0, 1),
    retain=st.booleans(),
    answer_within_s=st.none() | st.floats(0.001, 1e6),
)


@settings(max_examples=25)
@given(plans)
def test_a_plan_comes_back_from_json_as_it_was(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plans_json_leaves_the_defaults_out() -> None:
    assert Plan(OperationType.SCRIPT, 300.0, script="true").to_json() == {
        "type": OperationType.SCRIPT,
        "timeout_s": 300.0,
        "script": "true",
    }


def test_secret_arguments_are_masked_and_the_others_are_not() -> None:
    assert masked_args({"pin": "1234", "n": 2}, ("pin", "absent")) == {"pin": MASK, "n": 2}

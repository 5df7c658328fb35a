from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotjobs.domain.macros import (
    JSON,
    MacroError,
    Values,
    check_names,
    check_shell,
    find,
    missing,
    names_in,
    render_argument,
    render_message,
    render_shell,
    render_topic,
)

KNOWN: dict[str, JSON] = {
    "id": "o1",
    "name": "pump 1",
    "properties": {
        "a.b": 1.5,
        "on": True,
        "off": False,
        "none": None,
        "a b-c": {"x": ["é", None]},
        "zero": 0,
    },
    "user": {"id": "u1", "login": "ann"},
    "jobId": "j1",
    "args": {
        "x": "$(id)",
        "empty": "",
        "twice": "{{name}}",
        "nul": "a\0b",
        "half": "\ud800",
        "nan": float("nan"),
    },
    "ask": {"why": "because"},
    "source": {"id": "s1", "name": "S", "properties": {"p.q": "sp"}},
    "target": {"id": "t1", "name": "T", "properties": {"p": "tp"}},
    "state": "alarm",
}
VALUES = Values(KNOWN)


def place_of(error: MacroError) -> tuple[int, int, int, str | None]:
    return error.position, error.line, error.column, error.name


def test_macros_are_found_with_their_places() -> None:
    assert [(m.name, m.start, m.end) for m in find("a {{ id }}{{{args.x y}}} {{}} {{a{b}} {{a\n}}")] == [
        ("id", 2, 10),
        ("args.x y", 11, 23),
        ("", 25, 29),
    ]


def test_names_are_gathered_from_all_string_leaves() -> None:
    assert names_in({"a": ["{{id}}", 1, {"b": "x {{ args.y }} {{id}}"}]}) == {"id", "args.y"}


def test_a_macro_in_a_key_of_json_is_refused() -> None:
    for call in (lambda m: names_in(m), lambda m: check_names(m), lambda m: render_message(m, VALUES)):
        with pytest.raises(MacroError, match="key") as caught:
            call([{"a {{id}}": 1}])
        assert place_of(caught.value) == (2, 1, 3, "id")


@pytest.mark.parametrize(
    "name",
    ["id", "name", "properties.a.b c-d", "user.id", "user.login", "jobId", "args.x", "ask.a b", "state"],
)
def test_the_known_macros_exist(name: str) -> None:
    check_names(f"{{{{ {name} }}}}")


@pytest.mark.parametrize("name", ["source.id", "source.name", "target.properties.a.b"])
def test_the_ends_exist_on_links_only(name: str) -> None:
    check_names([f"{{{{{name}}}}}"], link=True)
    with pytest.raises(MacroError):
        check_names(f"{{{{{name}}}}}")


@pytest.mark.parametrize(
    "name",
    ["", "ID", "title", "properties", "properties.", "user", "user.name", "args.", "source.state", "source.properties.",
     "target.user.id", "id.x", ".Names", "source.source.id"],
)  # fmt: skip
def test_an_unknown_macro_is_named_with_its_place_and_what_exists(name: str) -> None:
    with pytest.raises(MacroError) as caught:
        check_names(f"a\nb {{{{{name}}}}}", link=True)
    assert place_of(caught.value) == (4, 2, 3, name)
    assert f"{{{{{name}}}}}" in caught.value.message
    assert "properties.NAME" in caught.value.message
    assert str(caught.value) == f"{caught.value.message} (line 2, column 3)"


def test_state_exists_for_triggers_only() -> None:
    with pytest.raises(MacroError):
        check_names("{{state}}", triggered=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("id", "o1"), ("properties.a.b", 1.5), ("user.login", "ann"), ("source.properties.p.q", "sp"),
     ("target.name", "T"), ("properties.off", False), ("properties.a b-c", {"x": ["é", None]}), ("state", "alarm")],
)  # fmt: skip
def test_a_name_leads_to_its_value(name: str, value: JSON) -> None:
    assert VALUES.get(name) == value


def test_absent_and_null_are_missing_and_false_and_empty_are_not() -> None:
    names = {
        "properties.none",
        "args.q",
        "user.id",
        "ask.why.x",
        "properties.off",
        "properties.zero",
        "args.empty",
    }
    assert missing(names, VALUES) == ["args.q", "ask.why.x", "properties.none"]
    assert missing(["user.id", "state"], Values({"user": None})) == ["state", "user.id"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a {{args.x}} b", "a $(id) b"), ("{{properties.on}}{{properties.a.b}}", "true1.5"), ("{{args.empty}}", ""),
     ("{{properties.a b-c}}", '{"x":["é",null]}'), ("{{args.twice}}", "{{name}}"), ("plain }} {{", "plain }} {{")],
)  # fmt: skip
def test_an_argument_stays_one_argument(text: str, expected: str) -> None:
    assert render_argument(text, VALUES) == expected


@pytest.mark.parametrize("name", ["args.nul", "args.half", "args.nan", "args.none"])
def test_what_no_environment_can_hold_is_refused(name: str) -> None:
    text = f"\n x={{{{{name}}}}}"
    for render in (render_argument, render_shell):
        with pytest.raises(MacroError) as caught:
            render(text, VALUES)
        assert place_of(caught.value) == (4, 2, 4, name)


def test_a_topic_takes_values_and_empty_levels() -> None:
    assert render_topic("d/{{id}}/{{args.empty}}/{{properties.a.b}}", VALUES) == "d/o1//1.5"


@pytest.mark.parametrize("value", ["a+", "#", "a/b", "\0", "\n", "\x9f", "\ufffe", "\ud800", ["a/b"]])
def test_a_topic_refuses_values_that_change_its_levels(value: JSON) -> None:
    with pytest.raises(MacroError) as caught:
        render_topic("d/{{args.v}}", Values({"args": {"v": value}}))
    assert place_of(caught.value) == (2, 1, 3, "args.v")


@pytest.mark.parametrize(
    ("text", "value"), [("{{id}}/x", "$SYS"), ("{{id}}", ""), ("a/{{id}}", "x" * 65_534)]
)
def test_a_topic_that_cannot_be_published_to_is_refused(text: str, value: str) -> None:
    with pytest.raises(MacroError):
        render_topic(text, Values({"id": value}))


def test_a_topic_of_the_broker_is_the_authors_choice() -> None:
    assert render_topic("$share/{{id}}", VALUES) == "$share/o1"


def test_a_leaf_that_is_one_macro_keeps_the_type() -> None:
    message: JSON = {
        "a": "{{properties.on}}",
        "b": ["{{ properties.a b-c }}", "v {{properties.a.b}}", 1, None],
        "c": "{{args.twice}}",
    }
    assert render_message(message, VALUES) == (
        '{"a":true,"b":[{"x":["é",null]},"v 1.5",1,null],"c":"{{name}}"}'
    )


@pytest.mark.parametrize(("message", "expected"), [(5, "5"), (True, "true"), (None, "null"), ([], "[]")])
def test_a_message_may_be_any_json(message: JSON, expected: str) -> None:
    assert render_message(message, VALUES) == expected


def test_a_text_message_is_substituted_as_it_is() -> None:
    assert render_message('{"a":{{properties.on}}} {{args.nul}}', VALUES) == '{"a":true} a\0b'


@pytest.mark.parametrize("name", ["args.half", "args.nan", "args.none"])
def test_a_message_that_is_no_json_is_refused(name: str) -> None:
    for message in ([f"{{{{{name}}}}}"], [f" {{{{{name}}}}}"], f"{{{{{name}}}}}"):
        with pytest.raises(MacroError) as caught:
            render_message(message, VALUES)
        assert caught.value.name == name


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(st.characters(codec="utf-8", exclude_characters="{"))
)
MESSAGES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=8
)


@settings(max_examples=40, deadline=None)
@given(
    value=MESSAGES.filter(lambda value: value is not None),
    around=st.text("\"\\',{ }", max_size=4).filter(lambda text: "{{" not in text),
)
def test_a_value_cannot_change_the_shape_of_a_message(value: JSON, around: str) -> None:
    message: JSON = {"k": [around + "-{{args.v}}", "{{args.v}}"], "last": 1}
    got = json.loads(render_message(message, Values({"args": {"v": value}})))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert got == {"k": [f"{around}-{text}", value], "last": 1}


@pytest.mark.parametrize("interpreter", ["python3", "perl", "node", "raw"])
def test_text_for_other_interpreters_cannot_hold_macros(interpreter: str) -> None:
    check_shell("print('x')", interpreter)
    assert render_shell("print('x')", VALUES, interpreter).text == "print('x')"
    way = "goes as it is" if interpreter == "raw" else "use args or env"  # raw has neither of them
    with pytest.raises(MacroError, match=way) as caught:
        check_shell("print('{{id}}')", interpreter)
    assert place_of(caught.value) == (7, 1, 8, "id")


def test_one_name_has_one_variable() -> None:
    shell = render_shell("echo {{id}} '{{name}}' \"{{ id }}\"", VALUES)
    assert shell.text == 'echo "${IJ_0}" \'\'"${IJ_1}"\'\' "${IJ_0}"'
    assert shell.env == {"IJ_0": "o1", "IJ_1": "pump 1"}


@settings(deadline=None)
@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_the_text_of_a_script_does_not_depend_on_values(value: str) -> None:
    shell = render_shell("echo {{id}} 'a{{id}}' \"$(echo {{id}})\"", Values({"id": value}))
    assert shell.text == 'echo "${IJ_0}" \'a\'"${IJ_0}"\'\' "$(echo "${IJ_0}")"'
    assert shell.env == {"IJ_0": value}


def test_the_place_of_the_cause_is_told_too() -> None:
    with pytest.raises(MacroError) as caught:
        check_shell("a\n b=(1)\necho {{id}}", "bash")
    assert place_of(caught.value) == (14, 3, 6, "id")
    assert "line 2, column 4" in caught.value.message


def test_literal_braces_can_be_written_in_a_script() -> None:
    text = "docker ps --format '{''{.Names}}' {{id}}"
    check_names(text)
    assert render_shell(text, VALUES).text == "docker ps --format '{''{.Names}}' \"${IJ_0}\""

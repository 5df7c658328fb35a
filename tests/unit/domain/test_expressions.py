"""The language of conditions: what it means, what it refuses and where, and that it is CEL."""

from __future__ import annotations

import json
import time
from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.expressions import Expression, Facts, Reference, compile_expression
from iotjobs.domain.operators import HINTS
from iotjobs.domain.tokens import ExpressionError

PROPERTIES: dict[str, Any] = {
    "temperature": 80.5,
    "count": 3,
    "door": "open",
    "on": True,
    "nothing": None,
    "battery-level": 12,
    "list": [1, 2, "a"],
    "pump": {"speed": 4, "modes": ["slow", "fast"]},
    "in": 1,
}
OBJECT = Facts(PROPERTIES, name="press-057", tags=("hall 3", "old"))
LINK = Facts({"load": 4}, name="line", source={"temperature": 5, "a-b": 1}, target={"temperature": 7})


@pytest.mark.parametrize(
    "text",
    [
        "temperature > 80",
        "temperature > 80 && temperature < 81.0",
        "count == 3.0 && 3 == count",
        "count / 2 == 1.5",
        "-count + 2 * 4 - 1 == 4",
        "temperature > 80 || nosuch > 1",
        "nosuch > 1 || temperature > 80",
        "!(false && nosuch > 1) && !(nosuch > 1 && false)",
        'properties["battery-level"] < 20',
        'properties["in"] == 1',
        'door == "open" && door != "shut" && door < "p"',
        'door.startsWith("op") && door.endsWith("n") && door.contains("pe")',
        'size(door) == 4 && size("日本") == 2 && size(list) == 3 && size(pump) == 2',
        'name == "press-057" && "old" in tags && size(tags) == 2',
        "nothing == null && count != null",
        "count in [1, 2, 3] && !(4 in [1, 2, 3]) && 3.0 in [3]",
        '"speed" in pump && !("colour" in pump)',
        "has(pump.speed) && !has(pump.colour) && has(properties.door) && !has(properties.nosuch)",
        'pump.modes[1] == "fast" && list[0] == 1',
        "on ? count == 3 : nosuch == 1",
        "[1, 2] + [3] == [1, 2, 3] && [] == []",
        r'"\u00e9\n\"\x41\101" == "é" + "\n" + "\"" + "AA"',
        "on == true && on != 1 && 1 != true",
        "temperature // a comment\n > 80",
        "1e2 == 100 && .5 == 0.5",
    ],
)
def test_what_holds(text: str) -> None:
    found = compile_expression(text).evaluate(OBJECT)
    assert (found.holds, found.problem) == (True, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch > 1", "there is no property nosuch"),
        ("nosuch > 1 || door == 'shut'", "there is no property nosuch"),
        ("door == 'open' && nosuch > 1", "there is no property nosuch"),
        ("door > 3", "door is a text and 3 is a number: > compares numbers, or texts"),
        ("on > 0", "on is true and 0 is a number: > compares numbers, or texts"),
        ("nothing > 0", "nothing is null and 0 is a number: > compares numbers, or texts"),
        ("temperature", "temperature is a number, not true or false"),
        ("!count", "count is a number, not true or false"),
        ("count && true", "count is a number, not true or false"),
        ("door ? true : true", "door is a text, not true or false"),
        ("-door == 1", "door is a text, not a number"),
        ("door + 1 == 2", "door is a text and 1 is a number: + wants two numbers"),
        ("count / 0 > 1", "count / 0 divides by zero"),
        ("1e308 * 10 > 1", "1e308 * 10 is too large"),
        ("pump.colour == 1", "pump has no colour"),
        ("!has(nosuch.x)", "there is no property nosuch"),
        ("!has(pump.nosuch.x)", "pump has no nosuch"),
        ("list[3] == 1", "list has no element 3, it has 3"),
        ("list[0.5] == 1", "0.5 is a number, and list is a list, counted from 0"),
        ("count.x == 1", "count is a number and has no members"),
        ("1 in door", "door is a text, and `in` wants a list or an object"),
        ("size(count) == 1", "count is a number and has no size"),
        ('count.startsWith("a")', "count is a number, and startsWith() is of texts"),
        ("source.temperature > 1", "there is no source: only links have one"),
    ],
)
def test_what_has_no_value_does_not_hold_and_names_the_culprit(text: str, why: str) -> None:
    found = compile_expression(text).evaluate(OBJECT)
    assert (found.holds, found.problem) == (False, why)


def test_the_value_that_was_read_is_told_and_not_the_whole_that_it_is_a_part_of() -> None:
    readings = {"TotalStartTime": "2026-01-01T00:00:00", "Power": 7, "phases": [{"u": 230}, {"u": 231}]}
    facts = Facts({"sensor.ENERGY": readings, "b": 1}, name="plug", tags=("a",))
    for text, values in (
        ('properties["sensor.ENERGY"].Power > 5', {'properties["sensor.ENERGY"].Power': 7}),
        (
            'properties["sensor.ENERGY"].phases[1].u > 230 && tags[0] == "a"',
            {'properties["sensor.ENERGY"].phases[1].u': 231, "tags[0]": "a"},
        ),
        ('name.startsWith("pl") && size(tags) == 1', {"name": "plug", "tags": ["a"]}),
        ("!has(properties.a) && has(properties.b)", {"b": 1}),
        ('properties["sensor.ENERGY"].nosuch > 5 || b.c == 1 || tags[3] == "x" || b == 1', {"b": 1}),
        ('"b" in properties', {}),
    ):
        expression = compile_expression(text)
        assert (expression.evaluate(facts).holds, expression.values(facts)) == (True, values), text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("battery-level < 20", 'there is no property battery: there is properties["battery-level"]'),
        ("sensor.ENERGY.Power > 5", 'there is no property sensor: there is properties["sensor.ENERGY"]'),
        ("relay/0 == 1", 'there is no property relay: there is properties["relay/0"]'),
        ("sens > 1", "there is no property sens"),
    ],
)
def test_a_name_that_is_no_identifier_is_told_as_it_has_to_be_written(text: str, why: str) -> None:
    names = ("battery-level", "sensor.ENERGY", "sensor.Time", "relay/0", "sensors")
    facts = Facts(dict.fromkeys(names, 1))
    assert compile_expression(text).evaluate(facts).problem == why
    for _ in range(HINTS):
        last = compile_expression(text).evaluate(facts).problem or ""
    assert "there is properties" not in last  # names are sought so often, and then no more
    facts.budget.renew()
    assert compile_expression(text).evaluate(facts).problem == why


def test_a_link_reads_the_properties_of_its_ends() -> None:
    text = 'source.temperature + target.temperature == 12 && source["a-b"] == 1 && load == 4'
    expression = compile_expression(text)
    assert expression.evaluate(LINK).holds
    assert expression.values(LINK) == {
        "load": 4,
        "source.temperature": 5,
        'source["a-b"]': 1,
        "target.temperature": 7,
    }


@pytest.mark.parametrize(
    ("text", "references"),
    [
        ("temperature > 80 || properties.door == name", {"temperature", "door", "name"}),
        ('properties["battery-level"] < 20', {'properties["battery-level"]'}),
        ("properties[door] == 1", {"properties", "door"}),
        ('"x" in properties && "a" in tags', {"properties", "tags"}),
        ("source.x.y == pump.speed", {"source.x.y", "pump.speed"}),
        ('properties["sensor.ENERGY"].Power > 5', {'properties["sensor.ENERGY"].Power'}),
        ('a.b["c d"][0] == 1 && a.b == 2', {'a.b["c d"][0]', "a.b"}),
        ("l[i] == l[0] && m[-1] == 1", {"l", "i", "l[0]", "m"}),
        ('name.startsWith("press") && a.b.contains("x")', {"name", "a.b"}),
        ('tags[0] == "x" && size(source) > 1', {"tags[0]", "source"}),
        ('properties.name == "x" && properties["in"] == 1', {"properties.name", "properties.in"}),
        ("has(target.x)", {"target.x"}),
        ("1 == 2", set()),
    ],
)
def test_what_an_expression_reads_is_known(text: str, references: set[str]) -> None:
    assert {str(reference) for reference in compile_expression(text).references} == references


def test_a_bare_name_and_a_member_of_properties_are_one_reference() -> None:
    assert compile_expression("a == properties.a").references == {Reference("properties", ("a",))}


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("[1][1e999] == 1", "1e999 is too large a number", 4),
        ("", "there is no expression", 0),
        ("temperature >", "a value is missing before the end", 13),
        ("temperature\n  > > 1", "a value is missing before >", 16),
        ("a b", "b cannot stand here", 2),
        ("a = 1", "'=' cannot stand here: write == to compare", 2),
        ("a % 2 == 0", "'%' cannot stand here: there is + - * /", 2),
        ("a > 1 & b", "'&' cannot stand here: write &&", 6),
        ("a > 1 | b", "'|' cannot stand here: write ||", 6),
        ("a > 1 and b", "write && for and", 6),
        ("(a > 1 OR b)", "write || for OR", 7),
        ("not a", "write ! for not", 0),
        ("a > 1 && not (b)", "write ! for not", 9),
        ("(not a == 1)", "write ! for not", 1),
        ('a == "abc', "the text is not closed", 5),
        ("if > 1", 'if is a word of the language: write properties["if"]', 0),
        ("(a == 1", ") is missing before the end", 7),
        ("a[1", "] is missing before the end", 3),
        ("a ? b", ": is missing before the end", 5),
        ("a.", "a name is missing behind the dot", 2),
        ("foo(1)", "foo() is not available; there are has() and size()", 0),
        (
            "l.map(x, x)",
            "map() is not available here; of texts there are contains(), endsWith(), startsWith()",
            2,
        ),
        ("1u == 1", "u cannot follow 1 directly", 1),
        ('r"a" == b', '"a" cannot follow r directly', 1),
        ("'a' 'b' == c", "'b' cannot follow 'a' directly", 4),
        (r'"\q" == ""', r"\q means nothing in a text", 1),
        (r'"\ud800" == ""', r"\ud800 is no character", 1),
        ("a == 'é' && ü", "'ü' cannot stand here", 12),
        ("a > \u0668\u0660", "'\u0668' cannot stand here", 4),
        ("a > 8\u0660", "'\u0660' cannot stand here", 5),
        ("(" * 31 + "1" + ")" * 31, "nested deeper than 30", 31),
        ("!" * 40 + "a", "nested deeper than 30", 31),
        ("a + " * 100 + "a > 1", "more than 100 names and literals", 400),
        ("a" * 1001, "longer than 1000 characters", 1000),
    ],
)
def test_what_is_refused_and_where(text: str, message: str, position: int) -> None:
    with pytest.raises(ExpressionError) as refused:
        compile_expression(text)
    assert (refused.value.message, refused.value.position) == (message, position)


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("1", "1 is never true or false: compare it", 0),
        (' "a"', '"a" is never true or false: compare it', 1),
        ("null", "null is never true or false: compare it", 0),
        ("[true]", "[true] is never true or false: compare it", 0),
        ("name", "name is never true or false: compare it", 0),
        ("properties", "properties is never true or false: compare it", 0),
        ("size(tags)", "size(tags) is never true or false: compare it", 0),
        ("a + b", "a + b is never true or false: compare it", 0),
        ("-a", "-a is never true or false: compare it", 0),
        ("(1)", "(1) is never true or false: compare it", 0),
        ("a ? 1 : b - 2", "a ? 1 : b - 2 is never true or false: compare it", 0),
        ("a > 1 && 2", "2 is never true or false: compare it", 9),
        ('a || "b"', '"b" is never true or false: compare it', 5),
        ("!size(a)", "size(a) is never true or false: compare it", 1),
        ("size(a) ? b : c", "size(a) is never true or false: compare it", 0),
    ],
)
def test_what_can_never_be_true_or_false_is_known_before_it_is_evaluated(
    text: str, message: str, position: int
) -> None:
    senseless = compile_expression(text).senseless
    assert senseless is not None
    assert (senseless.message, senseless.position) == (message, position)


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "a",
        "a.b",
        "a[0]",
        "[true][0]",
        "source.on",
        "!a",
        "a ? 1 : b",
        "(a)",
        "1 == 2",
        "has(a.b)",
        "1 in tags",
    ],
)
def test_what_may_be_true_is_no_nonsense(text: str) -> None:
    assert compile_expression(text).senseless is None


def test_it_is_known_where_an_expression_reads_what_only_links_have() -> None:
    for text, position in (
        ("a > 1 || source.x > 1", 9),
        ("has(target.x)", 4),
        ("properties.source == 1", None),
    ):
        found = compile_expression(text).of_links
        assert (None if found is None else found.position) == position, text


def test_has_takes_a_member_only_and_says_what_to_write_instead() -> None:
    for text in ("has(a)", 'has(properties["battery-level"])', "has(1)", "has(size(a))"):
        with pytest.raises(ExpressionError, match="battery-level"):
            compile_expression(text)


def test_an_error_is_placed_by_line_and_column() -> None:
    with pytest.raises(ExpressionError) as refused:
        compile_expression("a == 1 &&\n  b c")
    assert (refused.value.line, refused.value.column) == (2, 5)
    assert str(refused.value) == "c cannot stand here (line 2, column 5)"


@pytest.mark.check(43)
@pytest.mark.parametrize(
    "text",
    [
        "(" * 500,
        "[" * 500,
        "-" * 1000,
        "a?" * 300,
        "a.b" * 300,
        "a[" * 400,
        "&&" * 400,
        "'" * 999,
        "1+" * 499 + "1",
        "l.map(x, l.map(y, l.map(z, z)))",
        'door.matches("(a+)+$")',
        "\\" * 1000,
        "x" * 1_000_000,
    ],
)
def test_a_hostile_text_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ExpressionError):
        compile_expression(text)
    assert time.process_time() - began < 0.1  # ten times what a slow machine may take


def test_the_longest_that_is_allowed_is_evaluated() -> None:
    longest = " || ".join(["on == false"] * 49) + " || on"
    assert compile_expression(longest).evaluate(OBJECT).holds
    assert compile_expression("+".join(["1"] * 99) + " == 99").evaluate(OBJECT).holds


# --- against CEL itself -----------------------------------------------------------------------
# The values are those on which CEL and we agree by design: numbers as floats, no arithmetic on ints.

_names = st.sampled_from(["a", "b", "c", "s", "l", "m", "nosuch"])
_literals = st.one_of(
    st.floats(-100, 100).map(lambda x: f"{round(x, 2):.2f}"),
    st.sampled_from(["true", "false", "null", '"x"', '"ab"', "[1.0, 2.0]", "[]"]),
)


def _joined(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&&", "||", "+", "-", "*", "in"])
    return st.one_of(
        st.tuples(part, signs, part).map(lambda found: f"({' '.join(found)})"),
        st.tuples(part, part, part).map(lambda found: f"({found[0]} ? {found[1]} : {found[2]})"),
        part.map(lambda found: f"!{found}"),
        st.tuples(part, st.sampled_from(["x", "y"])).map(lambda found: f"{found[0]}.{found[1]}"),
        part.map(lambda found: f"has(m.{'x' if len(found) % 2 else 'y'})"),
        part.map(lambda found: f"has({found}.x)"),
        st.sampled_from(["has(nosuch.x)", "has(m.nosuch.x)", "has(m.x.y)"]),
        part.map(lambda found: f'{found}.startsWith("a")'),
    )


_expressions = st.recursive(st.one_of(_names, _literals), _joined, max_leaves=12)
_values = st.one_of(
    st.floats(-100, 100, allow_subnormal=False), st.booleans(), st.none(), st.sampled_from(["x", "ab", ""])
)


def _of_cel(text: str, values: dict[str, Any]) -> bool:
    try:
        return cel.compile(text).execute(values) is True
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError):
        return False


@given(
    text=_expressions.filter(lambda text: len(text) < 200),
    values=st.fixed_dictionaries({"a": _values, "b": _values, "c": _values}),
)
def test_it_says_what_cel_says(text: str, values: dict[str, Any]) -> None:
    # A literal has no members in CEL's grammar either, but its errors differ: both are "does not hold".
    everything = values | {"s": "abc", "l": [1.0, 2.0, "x"], "m": {"x": 1.0}}
    try:
        ours: Expression = compile_expression(text)
    except ExpressionError:
        return  # over a limit
    said = ours.evaluate(Facts(everything))
    assert said.holds == _of_cel(text, everything), json.dumps(values)
    if ours.senseless is not None and "||" not in text and "?" not in text:
        assert not said.holds  # it was no loss to refuse it


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 in (" + " + ".join(["a"] * 90) + ")", "a + a is too large"),
        (" || ".join(["a == b"] * 49), "a has more than 1000 values"),
        ("[a] != [b]", "[a] has more than 1000 values"),
        ("1 in a", "a has more than 1000 values"),
        (" + ".join(["t"] * 90) + ' == "x"', "t + t is too large"),
    ],
)
def test_large_values_are_refused_before_they_cost_anything(text: str, problem: str) -> None:
    facts = Facts({"a": [1] * 30_000, "b": [1] * 30_000, "t": "x" * 60_000})
    began = time.process_time()

    verdict = compile_expression(text).evaluate(facts)

    assert not verdict.holds
    assert problem in (verdict.problem or "")
    assert time.process_time() - began < 0.1

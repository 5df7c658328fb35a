"""What the operators of `expressions` do with values as JSON has them.

Each function here returns a closure over the closures of its operands. One that cannot give a value
raises `NoValue`, whose words name the operand as it was written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iotjobs.domain.payloads import beginning

# An operand: how it is evaluated, and how it was written.
Operand = tuple[Callable[[Any], Any], str]


class NoValue(Exception):
    """A part of an expression has no value; `why` says it in words."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def kind(value: Any) -> str:
    """What a value is, for people."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case Mapping():
            return "an object"
    return "a list"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Elements and members, with those of their own, that are looked at one by one; and characters.
LARGE, LARGE_TEXT = 1000, 65_536
LOOKS = 10_000  # by all conditions that are evaluated together: some milliseconds
HINTS = 20  # of names that may have been meant, which are sought among all of the entity's
_CHARACTERS = 200  # are looked at as quickly as one value


class Budget:
    """How many values may still be looked at before everybody else has waited long enough."""

    __slots__ = ("hints", "left")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew."""
        self.left, self.hints = LOOKS, HINTS

    def spend(self, looks: int, words: str) -> None:
        """Look at so many."""
        self.left -= looks
        if self.left < 0:
            raise NoValue(
                f"{words} was not looked at: the conditions have more than {LOOKS:,} values to look at"
            )


def equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and nothing of another kind."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def _compared(value: Any, words: str, facts: Any) -> Any:
    """The value, if it is not so large that comparing it would hold everybody up."""
    if isinstance(value, str):
        return _read(value, words, facts)
    rest, seen = [value], 0
    while rest:
        one = rest.pop()
        members = one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ()
        seen += len(members)
        if seen > LARGE:
            raise NoValue(f"{words} has more than {LARGE} values")
        if members:
            facts.budget.spend(len(members), words)
            rest += members
    return value


def _read(text: str, words: str, facts: Any) -> str:
    """The text, if not too much has been read already."""
    if len(text) >= _CHARACTERS:
        facts.budget.spend(len(text) // _CHARACTERS, words)
    return text


def _joined(left: Any, right: Any, words: str, facts: Any) -> Any:
    size, is_text = len(left) + len(right), isinstance(left, str)
    if size > (LARGE_TEXT if is_text else LARGE):
        raise NoValue(f"{words} is too large")
    facts.budget.spend(size // _CHARACTERS if is_text else size, words)
    return left + right


def _contains(left: Any, right: Any, words: tuple[str, str], facts: Any) -> bool:
    if isinstance(right, Mapping):
        return isinstance(left, str) and left in right
    if isinstance(right, list | tuple):
        _compared(left, words[0], facts)
        return any(equal(left, one) for one in _compared(right, words[1], facts))
    raise NoValue(f"{words[1]} is {kind(right)}, and `in` wants a list or an object")


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def binary(sign: str, left: Operand, right: Operand) -> Callable[[Any], Any]:
    """`left sign right`, of comparisons and arithmetic."""
    (run_left, left_words), (run_right, right_words) = left, right
    words = (left_words, right_words)
    if sign in ("==", "!="):

        def same(facts: Any) -> bool:
            a = _compared(run_left(facts), left_words, facts)
            b = _compared(run_right(facts), right_words, facts)
            return equal(a, b) is (sign == "==")

        return same
    if sign == "in":
        return lambda facts: _contains(run_left(facts), run_right(facts), words, facts)
    if sign in _ORDER:
        compare = _ORDER[sign]

        def ordered(facts: Any) -> bool:
            a, b = run_left(facts), run_right(facts)
            for one, its_words in ((a, left_words), (b, right_words)):
                if isinstance(one, str):
                    _read(one, its_words, facts)
            if (_is_number(a) and _is_number(b)) or any(
                isinstance(a, t) and isinstance(b, t) for t in (str, bool)
            ):
                return compare(a, b)
            raise NoValue(
                f"{_said(left_words, a)} and {_said(right_words, b)}: {sign} compares numbers, or texts"
            )

        return ordered
    count = _ARITHMETIC[sign]

    def counted(facts: Any) -> Any:
        a, b = run_left(facts), run_right(facts)
        if sign == "+" and ((isinstance(a, str) and isinstance(b, str)) or (_is_list(a) and _is_list(b))):
            return _joined(a, b, f"{left_words} {sign} {right_words}", facts)
        if not (_is_number(a) and _is_number(b)):
            raise NoValue(f"{_said(left_words, a)} and {_said(right_words, b)}: {sign} wants two numbers")
        return _number(lambda: count(float(a), float(b)), f"{left_words} {sign} {right_words}")

    return counted


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _number(count: Callable[[], float], words: str) -> float:
    try:
        value = count()
    except ZeroDivisionError:
        raise NoValue(f"{words} divides by zero") from None
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise NoValue(f"{words} is too large")
    return value


def _said(words: str, value: Any) -> str:
    return words if words == kind(value) else f"{words} is {kind(value)}"


def unary(sign: str, of: Operand) -> Callable[[Any], Any]:
    """`!of` or `-of`."""
    run, words = of

    def negated(facts: Any) -> bool:
        value = run(facts)
        if type(value) is not bool:
            raise NoValue(f"{words} is {kind(value)}, not true or false")
        return not value

    def minus(facts: Any) -> Any:
        value = run(facts)
        if not _is_number(value):
            raise NoValue(f"{words} is {kind(value)}, not a number")
        return -value

    return negated if sign == "!" else minus


def logic(parts: Sequence[Operand], *, decisive: bool) -> Callable[[Any], bool]:
    """`||` (decisive: True) or `&&` (False): one decisive part decides, whatever has no value beside it."""

    def decide(facts: Any) -> bool:
        problem: NoValue | None = None
        for run, words in parts:
            try:
                value = run(facts)
            except NoValue as error:
                problem = problem or error
                continue
            if value is decisive:
                return bool(value)
            if not isinstance(value, bool) and problem is None:
                problem = NoValue(f"{words} is {kind(value)}, not true or false")
        if problem is not None:
            raise problem
        return not decisive

    return decide


def choice(
    asked: Callable[[Any], Any], words: str, then: Callable[[Any], Any], otherwise: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """`asked ? then : otherwise`; the other side is not evaluated."""

    def choose(facts: Any) -> Any:
        value = asked(facts)
        if type(value) is not bool:
            raise NoValue(f"{words} is {kind(value)}, not true or false")
        return then(facts) if value else otherwise(facts)

    return choose


def property_of(name: str) -> Callable[[Any], Any]:
    """The property of a name."""

    def read(facts: Any) -> Any:
        try:
            return facts.properties[name]
        except KeyError:
            raise NoValue(f"there is no property {name}{_meant(name, facts)}") from None

    return read


def _meant(name: str, facts: Any) -> str:
    """A property that was meant, perhaps: `sensor.ENERGY` and `battery-level` are no identifiers."""
    if facts.budget.hints <= 0:
        return ""
    facts.budget.hints -= 1
    begins = (f"{name}.", f"{name}-", f"{name}/", f"{name} ")
    found = min((one for one in facts.properties if one.startswith(begins)), default=None)
    return "" if found is None else f': there is properties["{found}"]'


def root(name: str) -> Callable[[Any], Any]:
    """One of the roots."""
    get = operator.attrgetter(name)

    def read(facts: Any) -> Any:
        value = get(facts)
        if value is None:
            raise NoValue(f"there is no {name}: only links have one")
        return value

    return read


def member(of: Operand, key: Operand) -> Callable[[Any], Any]:
    """`of[key]`, or `of.key`: a member of an object by its name, or of a list by its number from 0."""
    (run, words), (run_key, key_words) = of, key

    def read(facts: Any) -> Any:
        value, wanted = run(facts), run_key(facts)
        if isinstance(value, Mapping):
            if not isinstance(wanted, str):
                raise NoValue(f"{key_words} is {kind(wanted)}, and members of {words} have names")
            if wanted not in value:
                raise NoValue(f"{words} has no {beginning(wanted) or wanted}")
            return value[wanted]
        if isinstance(value, list | tuple):
            if not _is_number(wanted) or wanted != int(wanted):
                raise NoValue(f"{_said(key_words, wanted)}, and {words} is a list, counted from 0")
            if not 0 <= wanted < len(value):
                raise NoValue(f"{words} has no element {int(wanted)}, it has {len(value)}")
            return value[int(wanted)]
        raise NoValue(f"{words} is {kind(value)} and has no members")

    return read


def has(of: Operand, name: str) -> Callable[[Any], bool]:
    """Whether `of.name` is there; as in CEL `of` itself has to be."""
    run, words = of

    def look(facts: Any) -> bool:
        value = run(facts)
        if not isinstance(value, Mapping):
            raise NoValue(f"{words} is {kind(value)} and has no members")
        return name in value

    return look


def size(of: Operand) -> Callable[[Any], int]:
    """The number of characters of a text, elements of a list, or members of an object."""
    run, words = of

    def count(facts: Any) -> int:
        value = run(facts)
        if isinstance(value, str | list | tuple | Mapping):
            return len(value)
        raise NoValue(f"{words} is {kind(value)} and has no size")

    return count


METHODS: dict[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": operator.contains,
}


def method(name: str, of: Operand, argument: Operand) -> Callable[[Any], bool]:
    """`of.name(argument)`, of texts."""
    (run, words), (run_argument, argument_words) = of, argument
    call = METHODS[name]

    def ask(facts: Any) -> bool:
        value, wanted = run(facts), run_argument(facts)
        for one, its_words in ((value, words), (wanted, argument_words)):
            if not isinstance(one, str):
                raise NoValue(f"{its_words} is {kind(one)}, and {name}() is of texts")
            _read(one, its_words, facts)
        return call(value, wanted)

    return ask

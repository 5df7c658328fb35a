"""Macros: `{{ name }}` in what an operation sends, filled from a fixed list and by no template language.

    id  name  properties.NAME  user.id  user.login  jobId  args.NAME  ask.NAME
    source.{id, name, properties.NAME}  target.{the same}     on links
    state                                                     where a trigger started the job

NAME is all that follows the first dot, so it may hold dots, dashes and blanks, but no braces. A
value is never read again: braces in it stay what they are. Braces that are no macro must not meet:
in a script write `'{''{.Names}}'` for `'{{.Names}}'`; elsewhere let a value carry them.

In a script a value never becomes text of the script: it travels in the environment, see `render_shell`
and `shelltext`. Two names with the same value have two variables, one name has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, cast

from iotjobs.domain.positions import line_and_column
from iotjobs.domain.shelltext import place
from iotjobs.domain.shellwords import Refused

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

SHELLS = frozenset({"sh", "bash"})

_MACRO = re.compile(r"\{\{(?!\{)([^{}\n]*)\}\}")
_SINGLE = ("id", "name", "user.id", "user.login", "jobId")
_OPEN = ("properties.", "args.", "ask.")
_ENDS = ("source.", "target.")
_EXISTING = "id, name, properties.NAME, user.id, user.login, jobId, args.NAME, ask.NAME"

_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_REMEMBERED_CHARACTERS = 1000
_TOPIC_BYTES = 65_535  # MQTT 5, 1.5.4: the longest string
# MQTT 5, 1.5.4: a receiver may close the connection that carries one of these, and Mosquitto does.
_NOT_IN_TOPIC = re.compile("[+#/\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


class MacroError(ValueError):
    """A macro that does not exist, stands in the wrong place, or has no fitting value.

    Attributes:
        message: what is wrong and what to do, without the place.
        position: where in the text, 0-based; `line` and `column` are the same, 1-based.
        name: the macro's name, None where it is about no one macro.
    """

    def __init__(self, message: str, text: str, position: int, *, name: str | None = None) -> None:
        self.message, self.position, self.name = message, position, name
        self.line, self.column = line_and_column(text, position)
        super().__init__(f"{message} (line {self.line}, column {self.column})")


@dataclass(frozen=True, slots=True)
class Macro:
    """One macro of a text.

    Attributes:
        name: what stands between the braces, without blanks around it.
        start: the position of its first brace.
        end: the position behind its last one.
    """

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ShellText:
    """A script to send, and the variables that it needs in its environment."""

    text: str
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Values:
    """What macros stand for, under the words that begin their names.

    Attributes:
        known: `{"id", "name", "properties": {}, "user": {"id", "login"}, "jobId", "args": {}, "ask": {},
            "source": {"id", "name", "properties": {}}, "target": {…}, "state"}`; any may be absent.
    """

    known: Mapping[str, JSON]

    def get(self, name: str) -> JSON:
        """The value of one macro, None where it has none."""
        found: JSON = cast("dict[str, JSON]", self.known)
        for part in _parts(name):
            found = found.get(part) if isinstance(found, dict) else None
        return found


def find(text: str) -> tuple[Macro, ...]:
    """The macros of a text in order, unknown ones too."""
    return _find_again(text) if len(text) <= _REMEMBERED_CHARACTERS else _find(text)


def _find(text: str) -> tuple[Macro, ...]:
    return tuple(Macro(found[1].strip(), found.start(), found.end()) for found in _MACRO.finditer(text))


_find_again = lru_cache(4096)(_find)  # the same few texts are rendered again and again


def names_in(value: JSON) -> set[str]:
    """The names of all macros in the strings of a JSON value.

    Raises:
        MacroError: one stands in the key of an object.
    """
    texts = (value,) if isinstance(value, str) else _strings(value)
    return {macro.name for text in texts for macro in find(text)}


def check_names(value: JSON, *, link: bool = False, triggered: bool = True) -> None:
    """Whether all macros in the strings of a value exist; the first place to call when saving.

    Args:
        value: a text or a JSON message; a position is one in the string that holds the macro.
        link: the owner is a link, so `source.…` and `target.…` exist.
        triggered: a trigger may start it, so `state` exists.

    Raises:
        MacroError: the first that does not exist, with the list of those that do.
    """
    for text in _strings(value):
        for macro in find(text):
            if not _exists(macro.name, link=link, triggered=triggered):
                existing = _EXISTING + ", source.…, target.…" * link + ", state" * triggered
                message = f"there is no macro {{{{{macro.name}}}}}; there are {existing}"
                raise MacroError(message, text, macro.start, name=macro.name)


def missing(names: Iterable[str], values: Values) -> list[str]:
    """The names, sorted, that have no value or null."""
    return sorted(name for name in names if values.get(name) is None)


def render_argument(text: str, values: Values) -> str:
    """One element of `args`, one value of `env`, a `path` or a `cwd`: what was one stays one.

    Raises:
        MacroError: a macro has no value, or one that no argument can hold (NUL, a lone surrogate).
    """
    return _substitute(text, values, _environment_text)


def render_topic(text: str, values: Values) -> str:
    """An MQTT topic; an empty value makes an empty level.

    Raises:
        MacroError: a macro has no value; a value would add a level, a wildcard or a character
            that closes the connection; the topic is empty, too long, or of the broker's own (`$SYS`)
            by a value.
    """
    topic = _substitute(text, values, _topic_text)
    if topic.startswith("$") and not text.startswith("$"):
        raise MacroError("a value cannot make the topic begin with `$`", text, 0, name=find(text)[0].name)
    if not topic or len(topic.encode()) > _TOPIC_BYTES:
        raise MacroError(f"the topic must have 1 to {_TOPIC_BYTES} bytes", text, 0)
    return topic


def render_message(message: JSON, values: Values) -> str:
    """What is published: a text with its macros replaced, everything else as compact JSON.

    In JSON, macros are replaced in string leaves; a leaf that is one macro and nothing else becomes
    the value itself, whatever its type.

    Raises:
        MacroError: a macro has no value or stands in a key; a value is no JSON (NaN, a lone surrogate).
    """
    if isinstance(message, str):
        return _substitute(message, values, _plain_text)
    names_in(message)
    return _encode(_filled(message, values), "", 0, None)


def check_shell(text: str, interpreter: str) -> None:
    """Whether every macro of a script stands where its value can travel; to call when saving.

    Raises:
        MacroError: the first that does not, with the place and what to do instead.
    """
    _places(text, find(text), interpreter)


def render_shell(text: str, values: Values, interpreter: str = "sh") -> ShellText:
    """A script in which every macro is a variable `IJ_0`, `IJ_1`, … of the environment.

    Its text depends on the names of the macros and never on a value. A value longer than the
    device's limit for one variable (128 KiB on Linux) makes every program of the script fail to
    start, which the caller must limit.

    Raises:
        MacroError: what `check_shell` raises; a macro has no value, or one that no environment holds.
    """
    macros = find(text)
    places = _places(text, macros, interpreter)
    env: dict[str, str] = {}
    variables: dict[str, str] = {}
    pieces: list[str] = []
    end = 0
    for macro in macros:
        if macro.name not in variables:
            variables[macro.name] = f"IJ_{len(variables)}"
            env[variables[macro.name]] = _environment_text(_value(text, macro, values), text, macro)
        pieces += (text[end : macro.start], places[macro.start] % variables[macro.name])
        end = macro.end
    return ShellText("".join(pieces) + text[end:], env)


def _places(text: str, macros: Sequence[Macro], interpreter: str) -> dict[int, str]:
    """The pattern of the text that takes each macro's place, by the macro's start."""
    if not macros:
        return {}
    if interpreter not in SHELLS:
        way = "raw text goes as it is" if interpreter == "raw" else "use args or env"
        message = f"a script for {interpreter} cannot hold macros ({way})"
        raise MacroError(message, text, macros[0].start, name=macros[0].name)
    try:
        placed = place(text, {macro.start: macro.end for macro in macros}, bash=interpreter == "bash")
    except Refused as refused:
        message = refused.reason
        if refused.cause is not None:
            line, column = line_and_column(text, refused.cause)
            message += (
                f" (found in line {line}, column {column}); use args or env, or give the value"
                ' to a variable first: x={{…}}, then "$x"'
            )
        name = next((macro.name for macro in macros if macro.start == refused.position), None)
        raise MacroError(message, text, refused.position, name=name) from refused
    return {start: quoting.value for start, quoting in placed.items()}


def _strings(value: JSON) -> Iterator[str]:
    """The strings of a JSON value that may hold macros; raises at a macro in a key."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for key, item in value.items():
                for macro in find(key):
                    raise MacroError(
                        "a macro cannot stand in a key of JSON", key, macro.start, name=macro.name
                    )
                yield from _strings(item)


@lru_cache(4096)
def _parts(name: str) -> tuple[str, ...]:
    """The keys that lead to a macro's value: `source.properties.a.b` is three."""
    for prefix in _ENDS:
        if name.startswith(prefix):
            return (prefix[:-1], *_parts(name.removeprefix(prefix)))
    for prefix in (*_OPEN, "user."):
        if name.startswith(prefix):
            return (prefix[:-1], name.removeprefix(prefix))
    return (name,)


def _exists(name: str, *, link: bool, triggered: bool) -> bool:
    for prefix in _ENDS if link else ():
        rest = name.removeprefix(prefix)
        if rest != name:
            return rest in ("id", "name") or (rest.startswith("properties.") and rest != "properties.")
    if any(name.startswith(prefix) and name != prefix for prefix in _OPEN):
        return True
    return name in _SINGLE or (triggered and name == "state")


def _substitute(text: str, values: Values, as_text: Callable[[JSON, str, Macro], str]) -> str:
    pieces: list[str] = []
    end = 0
    for macro in find(text):
        pieces += (text[end : macro.start], as_text(_value(text, macro, values), text, macro))
        end = macro.end
    return "".join(pieces) + text[end:]


def _filled(value: JSON, values: Values) -> JSON:
    match value:
        case str():
            macros = find(value)
            if len(macros) == 1 and (macros[0].start, macros[0].end) == (0, len(value)):
                found = _value(value, macros[0], values)
                _encode(found, value, 0, macros[0].name)
                return found
            return _substitute(value, values, _plain_text)
        case list():
            return [_filled(item, values) for item in value]
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
    return value


def _value(text: str, macro: Macro, values: Values) -> JSON:
    found = values.get(macro.name)
    if found is None:
        raise MacroError(f"{{{{{macro.name}}}}} has no value", text, macro.start, name=macro.name)
    return found


def _plain_text(value: JSON, text: str, macro: Macro) -> str:
    """A value as text: strings as they are, the rest as compact JSON."""
    encoded = _encode(value, text, macro.start, macro.name)
    return value if isinstance(value, str) else encoded


def _environment_text(value: JSON, text: str, macro: Macro) -> str:
    found = _plain_text(value, text, macro)
    if "\0" in found:
        raise MacroError(f"the value of {{{{{macro.name}}}}} holds NUL", text, macro.start, name=macro.name)
    return found


def _topic_text(value: JSON, text: str, macro: Macro) -> str:
    found = _plain_text(value, text, macro)
    odd = _NOT_IN_TOPIC.search(found)
    if odd is not None:
        message = f"the value of {{{{{macro.name}}}}} holds {odd.group()!a}, which cannot be part of a topic's level"
        raise MacroError(message, text, macro.start, name=macro.name)
    return found


def _encode(value: JSON, text: str, position: int, name: str | None) -> str:
    try:
        encoded = _COMPACT.encode(value)
        encoded.encode()
    except ValueError as error:
        what = "the message" if name is None else f"the value of {{{{{name}}}}}"
        raise MacroError(f"{what} is not JSON in UTF-8", text, position, name=name) from error
    return encoded

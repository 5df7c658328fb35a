"""Reads one word of a shell script: its quotes, its expansions and the holes in it.

See `shelltext` for what a hole is, and for when the reader gives up.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

UNKNOWN = "\0"  # in Word.text: something that only the shell can know
HOLE = "\1"  # in Word.text: the value of a macro

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=", re.ASCII)

_ENDS_WORD = frozenset(" \t\n;&|<>()")
_PLAIN = re.compile(r"[^ \t\n;&|<>()'\"\\$`{}\[]+")
_PLAIN_IN_SINGLE = re.compile(r"[^'{\n]+")
_PLAIN_IN_DOUBLE = re.compile(r"[^\"\\$`{\n]+")
_NAME = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?$!-])", re.ASCII)
# ${name}, and ${name<operator>word} while the word holds no quote, escape, brace or command: with
# those, bash and dash disagree about what ends it.
_PARAMETER = re.compile(
    r"\$\{(?:[#!]?(?:[A-Za-z_]\w*|[0-9]+|[@*#?$!-]))(?:\[[@*\w]\])?"
    r"(?:[^'\"`\\{}$()<>\n]|\$(?=[A-Za-z_])|\$\{[A-Za-z_]\w*\})*\}",
    re.ASCII,
)
_BACKTICKS = re.compile(r"`(?:[^`'\"\\#\n{}()<$]|\$(?=\w))*`", re.ASCII)
_IN_ARITHMETIC = re.compile(r"[\w \t+\-*/%<>=!&|^~?:,$]", re.ASCII)
# No escaped quote: dash takes `$` as it is and ends the text there, bash goes on.
_ANSI_C = re.compile(r"\$'[^'\\\n{]*(?:\\[^'\n{][^'\\\n{]*)*'")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_OWN_VARIABLE = re.compile(r"IJ_")


class Quoting(Enum):
    """What surrounds a hole; the value is what takes its place, with the variable's name left open."""

    BARE = '"${%s}"'
    DOUBLE = "${%s}"
    SINGLE = "'\"${%s}\"'"


class Refused(Exception):
    """A macro may not stand where it stands.

    Attributes:
        position: where, 0-based.
        reason: why, and what to write instead; one clause.
        cause: where the thing is that forbids it, when it is elsewhere.
    """

    def __init__(self, position: int, reason: str, *, cause: int | None = None) -> None:
        super().__init__(reason)
        self.position, self.reason, self.cause = position, reason, cause


class Lost(Exception):
    """From `position` on the text cannot be followed with certainty; `what` names the construct."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(what)
        self.position, self.what = position, what


@dataclass(slots=True)
class Word:
    """One word, quotes removed.

    Attributes:
        start: its first character's position.
        text: what is known of it, `UNKNOWN` and `HOLE` for the rest.
        bare: its beginning up to the first quote, escape, expansion or hole.
        plain: nothing of it is quoted or expanded.
        braces: an unquoted brace stands in it.
        brackets: an unquoted `[` stands in it.
        holes: the positions of its holes, those in its command substitutions too.
    """

    start: int
    text: str = ""
    bare: str = ""
    plain: bool = True
    braces: bool = False
    brackets: bool = False
    holes: list[int] = field(default_factory=list)

    def add(self, text: str, *, quoted: bool) -> None:
        """Append what was read."""
        self.text += text
        if quoted:
            self.plain = False
        elif self.plain:
            self.bare += text


def refuse_odd_text(text: str, holes: Mapping[int, int]) -> None:
    """Refuse what no script with holes may hold, wherever it stands."""
    odd = _CONTROL.search(text)
    if odd is not None:
        raise Refused(
            odd.start(), "a script with macros cannot hold control characters (carriage returns too)"
        )
    for own in _OWN_VARIABLE.finditer(text):
        if not any(start < own.start() < end for start, end in holes.items()):
            raise Refused(own.start(), "variables whose names begin with IJ_ carry the values of macros")


class WordReader(ABC):
    """Reads words; `position` only moves forward. What a `$(…)` holds is up to the subclass."""

    def __init__(self, text: str, holes: Mapping[int, int]) -> None:
        self.text, self.holes = text, holes
        self.position = 0
        self.placed: dict[int, Quoting] = {}
        self.substitutions = 0

    @abstractmethod
    def commands(self, ends: frozenset[str]) -> str:
        """Read commands up to one of `ends`, which is not consumed; "" at the end of the text."""

    @abstractmethod
    def line_ends_in_quotes(self) -> None:
        """A quotation goes on after the end of a line."""

    def char(self, ahead: int = 0) -> str:
        """The character `ahead` of the position, "" behind the end."""
        at = self.position + ahead
        return self.text[at : at + 1]

    def lose(self, what: str, position: int | None = None) -> NoReturn:
        """Give up: `what`, a noun phrase, cannot be followed."""
        raise Lost(self.position if position is None else position, what)

    def word(self) -> Word:
        """The word at the position, which may be empty."""
        word = Word(self.position)
        while (char := self.char()) != "" and char not in _ENDS_WORD:
            if self.position in self.holes:
                self._bare_hole(word)
            elif char == "'":
                self._single(word)
            elif char == '"':
                self._double(word)
            elif char == "\\":
                self._escape(word)
            elif char == "$":
                self._dollar(word, quoted=False)
            elif char == "`":
                self._backticks(word)
            else:
                self._literal(word)
        if word.braces and word.holes:
            raise Refused(
                word.holes[0], "a macro cannot stand in a word with braces, which bash expands (quote them)"
            )
        return word

    def _literal(self, word: Word) -> None:
        found = _PLAIN.match(self.text, self.position)
        text = self.char() if found is None else found.group()
        word.braces = word.braces or text in ("{", "}")
        word.brackets = word.brackets or text == "["
        word.add(text, quoted=False)
        self.position += len(text)

    def _bare_hole(self, word: Word) -> None:
        if word.brackets:
            raise Refused(
                self.position, "a macro cannot stand behind an unquoted `[` (an index or a pattern)"
            )
        if word.plain and word.text.endswith("~"):
            raise Refused(self.position, "a macro cannot stand behind `~`")
        self._hole(word, Quoting.BARE)

    def _hole(self, word: Word, quoting: Quoting) -> None:
        self.placed[self.position] = quoting
        word.holes.append(self.position)
        word.add(HOLE, quoted=True)
        self.position = self.holes[self.position]

    def _single(self, word: Word) -> None:
        opened = self.position
        self.position += 1
        word.add("", quoted=True)
        while (char := self.char()) != "'":
            if char == "":
                self.lose("a quotation that is not closed", opened)
            if self.position in self.holes:
                self._hole(word, Quoting.SINGLE)
                continue
            if char == "\n":
                self.line_ends_in_quotes()
            found = _PLAIN_IN_SINGLE.match(self.text, self.position)
            text = char if found is None else found.group()
            word.add(text, quoted=True)
            self.position += len(text)
        self.position += 1

    def _double(self, word: Word) -> None:
        opened = self.position
        self.position += 1
        word.add("", quoted=True)
        while (char := self.char()) != '"':
            if char == "":
                self.lose("a quotation that is not closed", opened)
            if self.position in self.holes:
                self._hole(word, Quoting.DOUBLE)
            elif char == "\\":
                self._escape_in_double(word)
            elif char == "$":
                self._dollar(word, quoted=True)
            elif char == "`":
                self._backticks(word)
            elif (found := _PLAIN_IN_DOUBLE.match(self.text, self.position)) is not None:
                word.add(found.group(), quoted=True)
                self.position = found.end()
            else:
                if char == "\n":
                    self.line_ends_in_quotes()
                word.add(char, quoted=True)
                self.position += 1
        self.position += 1

    def _escape(self, word: Word) -> None:
        if self.char(1) in ("", "\n"):
            self.lose("a line that is continued in the middle of a word")
        self._refuse_escaped_hole()
        word.add(self.char(1), quoted=True)
        self.position += 2

    def _escape_in_double(self, word: Word) -> None:
        self._refuse_escaped_hole()
        escaped = self.char(1)
        if escaped == "\n":
            self.line_ends_in_quotes()
        else:
            word.add(escaped if escaped in '$`"\\' else "\\" + escaped, quoted=True)
        self.position += 1 + len(escaped)

    def _refuse_escaped_hole(self) -> None:
        if self.position + 1 in self.holes:
            raise Refused(self.position + 1, "a macro cannot stand right behind a backslash")

    def _dollar(self, word: Word, *, quoted: bool) -> None:
        following = self.char(1)
        if self.position + 1 in self.holes:
            raise Refused(self.position + 1, "a macro cannot stand right behind `$`")
        if following == "(":
            self._arithmetic(word) if self.char(2) == "(" else self._substitution(word)
        elif following == "{":
            self._expansion(word, _PARAMETER, "`${…}` with more than a name and a simple word")
        elif following == "[":
            self.lose("arithmetic `$[…]`")
        elif following == "\\" and self.char(2) == "\n":
            self.lose("a line that is continued behind `$`")
        elif following == "'" and not quoted:
            self._expansion(word, _ANSI_C, "`$'…'`")
        elif following == '"' and not quoted:
            self.lose('`$"…"`')
        elif _NAME.match(self.text, self.position) is not None:
            self._expansion(word, _NAME, "`$`")
        else:
            word.add("$", quoted=True)
            self.position += 1

    def _backticks(self, word: Word) -> None:
        self._expansion(word, _BACKTICKS, "backticks (write `$(…)`)")

    def _expansion(self, word: Word, pattern: re.Pattern[str], what: str) -> None:
        found = pattern.match(self.text, self.position)
        # None of the patterns passes over `{{`, so no hole is skipped.
        if found is None:
            self.lose(what)
        word.add(UNKNOWN, quoted=True)
        self.position = found.end()

    def _arithmetic(self, word: Word) -> None:
        opened, depth = self.position, 2
        at = opened + len("$((")
        while depth > 1:
            char = self.text[at : at + 1]
            depth += (char == "(") - (char == ")")
            if char not in ("(", ")") and _IN_ARITHMETIC.match(char) is None:
                self.lose("arithmetic `$((…))`")
            at += 1
        # `$((a) | b)` is no arithmetic but a subshell in a substitution.
        if self.text[at : at + 1] != ")":
            self.lose("arithmetic `$((…))`")
        word.add(UNKNOWN, quoted=True)
        self.position = at + 1

    def _substitution(self, word: Word) -> None:
        opened, known = self.position, len(self.placed)
        self.position += len("$(")
        self.substitutions += 1
        if self.commands(frozenset({")"})) != ")":
            self.lose("a `$(` that is not closed", opened)
        self.substitutions -= 1
        self.position += 1
        word.holes.extend(list(self.placed)[known:])
        word.add(UNKNOWN, quoted=True)

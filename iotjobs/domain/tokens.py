"""The words and signs of the language of state conditions, and what is said of those that are none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from iotjobs.domain.positions import line_and_column

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n\f]+|//[^\n]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>&&|\|\||[=!<>]=|[-+*/<>!?:.,()\[\]])
      | (?P<end>\Z)""",
    re.VERBOSE | re.ASCII,
)
# Of other languages.
_SIGNS = {"=": "write == to compare", "&": "write &&", "|": "write ||", "%": "there is + - * /"}
_WORDS = {"and": "&&", "or": "||", "not": "!"}


class ExpressionError(ValueError):
    """A text that is no expression of this language.

    Attributes:
        message: what is wrong and what to do, without the place.
        position: where in the text, 0-based; `line` and `column` are the same, 1-based.
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        self.message, self.position = message, position
        self.line, self.column = line_and_column(text, position)
        super().__init__(f"{message} (line {self.line}, column {self.column})")


@dataclass(frozen=True, slots=True)
class Token:
    """A word or sign: `blank`, `text`, `number`, `name`, `sign` or `end`."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + len(self.text)


def tokens(text: str) -> list[Token]:
    """A text taken apart, its end included.

    Raises:
        ExpressionError: something in it is of no kind.
    """
    found: list[Token] = []
    at = 0
    while not found or found[-1].kind != "end":
        match = _TOKEN.match(text, at)
        if match is None:
            sign = text[at]
            if sign in "\"'":
                raise ExpressionError("the text is not closed", text, at)
            hint = f": {_SIGNS[sign]}" if sign in _SIGNS else ""
            raise ExpressionError(f"{sign!r} cannot stand here{hint}", text, at)
        if match.lastgroup != "blank":
            found.append(Token(str(match.lastgroup), match[0], at))
        at = match.end()
    words = ("text", "number", "name")
    for left, right in pairwise(found):
        # CEL would read these as a prefixed literal, or as one text.
        touch = left.kind in words and right.kind in words and left.end == right.start
        if touch or left.kind == right.kind == "text":
            raise ExpressionError(f"{right.text} cannot follow {left.text} directly", text, right.start)
    return found


def strange_word(*near: Token) -> tuple[str, Token] | None:
    """What to write instead of the first of these that is a word of other languages."""
    for token in near:
        sign = _WORDS.get(token.text.lower()) if token.kind == "name" else None
        if sign is not None:
            return f"write {sign} for {token.text}", token
    return None

"""The language of state conditions: a subset of CEL, parsed here and compiled to closures.

    comparisons  == != < <= > >= in        logic  && || ! ?:        arithmetic  + - * /
    members  a.b  a["b"]  list[0]          lists  [1, 2]            literals  80.5 "text" true null
    functions  has(a.b)  size(x)  and on texts  .startsWith(t)  .endsWith(t)  .contains(t)

Names: a property's own name where it is a valid identifier and not one of the roots, and always
`properties["battery-level"]`; `name`, `tags`; on links `source` and `target`, whose members are the
properties of the object at that end.

As in CEL, `&&` and `||` get by without a side that has no value when the other side decides. Unlike in
CEL numbers are all of one kind, for devices do not tell 81 from 81.0: `5 / 2` is 2.5. Nothing here
loops, so that an expression's cost is bounded by its length and the values it reads; what all conditions
of an entity may look at has a bound of its own (`operators.Budget`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from iotjobs.domain import operators
from iotjobs.domain.operators import Budget, NoValue
from iotjobs.domain.tokens import ExpressionError, Token, strange_word, tokens

MAX_CHARACTERS = 1000
MAX_DEPTH = 30
MAX_TERMS = 100  # names and literals

ROOTS = ("properties", "name", "tags", "source", "target")
_RESERVED = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
        "true",
        "false",
        "null",
    ]
)
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([0-3][0-7]{2})|(.))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"} | {
    sign: sign for sign in "\\\"'`?"
}
_RELATIONS = ("==", "!=", "<", "<=", ">", ">=", "in")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an expression may read.

    Attributes:
        properties: effective values of the entity.
        source: of a link, the properties of its first end; None for an object. `target` likewise.
        budget: of what is evaluated together; `judge` begins it anew.
    """

    properties: Mapping[str, Any]
    name: str = ""
    tags: tuple[str, ...] = ()
    source: Mapping[str, Any] | None = None
    target: Mapping[str, Any] | None = None
    budget: Budget = field(default_factory=Budget, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reference:
    """Something that an expression reads: a root, or what a path of names and numbers leads to from there."""

    root: str
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        first, rest = self.path[:1], self.path[1:]
        if self.root == "properties" and first and _is_bare(first[0]):
            return f"{first[0]}{''.join(map(_step, rest))}"
        return f"{self.root}{''.join(map(_step, self.path))}"

    def value(self, facts: Facts) -> Any:
        """What is there; `_NOTHING` where nothing is."""
        found = getattr(facts, self.root)
        for step in self.path:
            there = isinstance(found, Mapping) if isinstance(step, str) else isinstance(found, list | tuple)
            try:
                found = found[step] if there else _NOTHING
            except (KeyError, IndexError):
                found = _NOTHING
        return found


_NOTHING = object()


def _is_bare(name: str | int) -> bool:
    """Whether a property is read by its name alone."""
    return isinstance(name, str) and name.isidentifier() and name not in {*ROOTS, *_RESERVED}


def _step(step: str | int) -> str:
    if isinstance(step, str) and step.isidentifier():
        return f".{step}"
    return f"[{json.dumps(step, ensure_ascii=False)}]"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an expression says of some facts.

    Attributes:
        holds: it is true; false as well when it has no value.
        problem: why it has no value, in words that name the culprit.
    """

    holds: bool
    problem: str | None = None


_HOLDS, _HOLDS_NOT = Verdict(True), Verdict(False)
_Run = Callable[[Facts], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that was compiled. Evaluating it changes nothing and never raises.

    Attributes:
        text: as it was written.
        references: what it reads.
        senseless: why it can never be true, such as a number that is not compared; None: it may be.
        of_links: where it reads what only links have, and so has no value for an object; None: it does not.
    """

    text: str
    references: frozenset[Reference]
    senseless: ExpressionError | None = field(compare=False)
    of_links: ExpressionError | None = field(compare=False)
    _run: _Run = field(repr=False, compare=False)

    def evaluate(self, facts: Facts) -> Verdict:
        """Whether it is true of these facts."""
        try:
            value = self._run(facts)
        except NoValue as problem:
            return Verdict(False, problem.why)
        if type(value) is bool:
            return _HOLDS if value else _HOLDS_NOT
        return Verdict(False, f"{self.text} is {operators.kind(value)}, not true or false")

    def values(self, facts: Facts) -> dict[str, Any]:
        """What it read of these facts, by the names it reads them by; what is not there is left out."""
        found = {}
        for reference in sorted(self.references, key=str):
            if reference.path or reference.root in ("name", "tags"):  # all properties together tell nothing
                value = reference.value(facts)
                if value is not _NOTHING:
                    found[str(reference)] = list(value) if isinstance(value, tuple) else value
        return found


@lru_cache(maxsize=4096)
def compile_expression(text: str) -> Expression:
    """Compile an expression.

    Raises:
        ExpressionError: it is not of this language, or over a limit; names the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters", text, MAX_CHARACTERS)
    return _Parser(text).parse()


@dataclass(frozen=True, slots=True)
class _Node:
    """A part: how it is evaluated and where it stands.

    Attributes:
        reference: what it refers to, if it is a root or a path from one: noted once the path has ended.
        selected: it was written `a.b`: of this, the member of that name.
        no_truth: whatever it reads, it is neither true nor false.
    """

    run: _Run
    start: int
    end: int
    reference: Reference | None = None
    selected: tuple[operators.Operand, str] | None = None
    no_truth: bool = False


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._tokens, self._at = text, tokens(text), 0
        self._references: set[Reference] = set()
        self._depth = self._terms = 0
        self._senseless: ExpressionError | None = None
        self._of_links: ExpressionError | None = None

    def parse(self) -> Expression:
        if self._next.kind == "end":
            raise self._error("there is no expression")
        node = self._truth(self._ternary())
        if self._next.kind != "end":
            raise self._unexpected(f"{self._next.text} cannot stand here")
        read = frozenset(self._references)
        return Expression(self._text, read, self._senseless, self._of_links, node.run)

    # --- tokens ---------------------------------------------------------------------------

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _is(self, *signs: str) -> bool:
        return self._next.kind in ("sign", "name") and self._next.text in signs

    def _take(self) -> Token:
        token = self._next
        self._at += 1
        return token

    def _want(self, sign: str) -> Token:
        if not self._is(sign):
            raise self._unexpected(f"{sign} is missing before {self._next.text or 'the end'}")
        return self._take()

    def _error(self, message: str, at: int | None = None) -> ExpressionError:
        return ExpressionError(message, self._text, self._next.start if at is None else at)

    def _unexpected(self, message: str, at: int | None = None) -> ExpressionError:
        word = strange_word(*reversed(self._tokens[max(0, self._at - 1) : self._at + 1]))
        return self._error(message, at) if word is None else self._error(word[0], word[1].start)

    def _truth(self, node: _Node) -> _Node:
        """The node, which has to be true or false."""
        if node.no_truth and self._senseless is None:
            self._senseless = self._error(
                f"{self._words(node)} is never true or false: compare it", node.start
            )
        return node

    def _deeper(self, by: int = 1) -> None:
        self._depth += by
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")

    def _words(self, node: _Node) -> str:
        return self._text[node.start : node.end]

    # --- grammar, from the loosest binding to the tightest ---------------------------------

    def _ternary(self) -> _Node:
        asked = self._chain("||", partial(self._chain, "&&", self._relation))
        if not self._is("?"):
            return asked
        self._take()
        self._truth(asked)
        self._deeper()
        then = self._ternary()
        self._want(":")
        otherwise = self._ternary()
        self._depth -= 1
        run = operators.choice(asked.run, self._words(asked), then.run, otherwise.run)
        return _Node(run, asked.start, otherwise.end, no_truth=then.no_truth and otherwise.no_truth)

    def _chain(self, sign: str, part: Callable[[], _Node]) -> _Node:
        nodes = [part()]
        while self._is(sign):
            self._take()
            nodes.append(part())
        if len(nodes) == 1:
            return nodes[0]
        parts = [(node.run, self._words(node)) for node in map(self._truth, nodes)]
        return _Node(operators.logic(parts, decisive=sign == "||"), nodes[0].start, nodes[-1].end)

    def _relation(self) -> _Node:
        left = self._arithmetic(("+", "-"), partial(self._arithmetic, ("*", "/"), self._unary))
        while self._is(*_RELATIONS):
            sign = self._take().text
            right = self._arithmetic(("+", "-"), partial(self._arithmetic, ("*", "/"), self._unary))
            left = self._binary(sign, left, right)
        return left

    def _arithmetic(self, signs: tuple[str, ...], part: Callable[[], _Node]) -> _Node:
        left = part()
        while self._is(*signs):
            sign = self._take().text
            left = self._binary(sign, left, part())
        return left

    def _binary(self, sign: str, left: _Node, right: _Node) -> _Node:
        run = operators.binary(sign, (left.run, self._words(left)), (right.run, self._words(right)))
        return _Node(run, left.start, right.end, no_truth=sign not in _RELATIONS)

    def _unary(self) -> _Node:
        if not self._is("!", "-"):
            return self._members()
        sign = self._take()
        self._deeper()
        inner = self._unary()
        self._depth -= 1
        if sign.text == "!":
            self._truth(inner)
        run = operators.unary(sign.text, (inner.run, self._words(inner)))
        return _Node(run, sign.start, inner.end, no_truth=sign.text == "-")

    def _members(self) -> _Node:
        node = self._primary()
        while self._is(".", "["):
            node = self._index(node) if self._take().text == "[" else self._member(node)
        self._note(node)
        return node

    def _note(self, node: _Node) -> None:
        if node.reference is not None:
            self._references.add(node.reference)

    def _index(self, of: _Node) -> _Node:
        self._deeper()
        key_token = self._next
        key = self._ternary()
        end = self._want("]").end
        self._depth -= 1
        reference = None
        if key_token.end == key.end and (key_token.kind == "text" or key_token.text.isdigit()):
            reference = _below(of, key.run(Facts({})))
        else:
            self._note(of)  # which member is known only then
        run = operators.member((of.run, self._words(of)), (key.run, self._words(key)))
        return _Node(run, of.start, end, reference)

    def _member(self, of: _Node) -> _Node:
        if self._next.kind != "name":
            raise self._error("a name is missing behind the dot")
        name = self._take()
        if self._is("("):
            self._note(of)
            return self._method(of, name)
        self._term(name.start)
        operand = (of.run, self._words(of))
        run = operators.member(operand, (lambda _: name.text, name.text))
        return _Node(run, of.start, name.end, _below(of, name.text), (operand, name.text))

    def _method(self, of: _Node, name: Token) -> _Node:
        if name.text not in operators.METHODS:
            known = ", ".join(f"{known}()" for known in sorted(operators.METHODS))
            raise self._error(f"{name.text}() is not available here; of texts there are {known}", name.start)
        argument, end = self._argument()
        run = operators.method(name.text, (of.run, self._words(of)), (argument.run, self._words(argument)))
        return _Node(run, of.start, end)

    def _argument(self) -> tuple[_Node, int]:
        self._want("(")
        self._deeper()
        node = self._ternary()
        self._depth -= 1
        return node, self._want(")").end

    def _primary(self) -> _Node:
        token = self._take()
        match token.kind:
            case "text" | "number":
                return self._literal(token)
            case "name":
                return self._name(token)
            case "sign" if token.text == "(":
                self._deeper()
                inner = self._ternary()
                self._depth -= 1
                return _Node(inner.run, token.start, self._want(")").end, no_truth=inner.no_truth)
            case "sign" if token.text == "[":
                return self._list(token)
        raise self._error(f"a value is missing before {token.text or 'the end'}", token.start)

    def _term(self, at: int) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._error(f"more than {MAX_TERMS} names and literals", at)

    def _literal(self, token: Token) -> _Node:
        self._term(token.start)
        value: Any
        if token.kind == "text":
            value = self._unescaped(token)
        else:
            value = int(token.text) if token.text.isdigit() else float(token.text)
            if value == math.inf:
                raise self._error(f"{token.text} is too large a number", token.start)
        return _Node(lambda _: value, token.start, token.end, no_truth=True)

    def _unescaped(self, token: Token) -> str:
        def one(match: re.Match[str]) -> str:
            short, long, byte, octal, sign = match.groups()
            if sign is not None:
                if sign not in _ESCAPED:
                    raise self._error(f"\\{sign} means nothing in a text", token.start + 1 + match.start())
                return _ESCAPED[sign]
            code = int(octal, 8) if octal else int(short or long or byte, 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self._error(f"{match[0]} is no character", token.start + 1 + match.start())
            return chr(code)

        return _ESCAPE.sub(one, token.text[1:-1])

    def _list(self, opening: Token) -> _Node:
        self._deeper()
        nodes = []
        while not self._is("]"):
            nodes.append(self._ternary())
            if not self._is("]"):
                self._want(",")
        self._depth -= 1
        runs = [node.run for node in nodes]
        run_all = lambda facts: [run(facts) for run in runs]  # noqa: E731
        return _Node(run_all, opening.start, self._take().end, no_truth=True)

    def _name(self, token: Token) -> _Node:
        name = token.text
        if self._is("("):
            return self._function(token)
        self._term(token.start)
        if name in _CONSTANTS:
            value = _CONSTANTS[name]
            return _Node(lambda _: value, token.start, token.end, no_truth=value is None)
        if name in _RESERVED:
            raise self._error(f'{name} is a word of the language: write properties["{name}"]', token.start)
        if name not in ROOTS:
            return _Node(
                operators.property_of(name), token.start, token.end, Reference("properties", (name,))
            )
        if name in ("source", "target") and self._of_links is None:
            self._of_links = self._error(f"there is no {name}: only links have one", token.start)
        return _Node(operators.root(name), token.start, token.end, Reference(name), no_truth=True)

    def _function(self, token: Token) -> _Node:
        if token.text not in ("has", "size"):
            raise self._unexpected(
                f"{token.text}() is not available; there are has() and size()", token.start
            )
        argument, end = self._argument()
        if token.text == "size":
            run = operators.size((argument.run, self._words(argument)))
            return _Node(run, token.start, end, no_truth=True)
        if argument.selected is None:
            hint = 'has() takes a.b, such as has(properties.temperature); else write "battery-level" in properties'
            raise self._error(hint, argument.start)
        return _Node(operators.has(*argument.selected), token.start, end)


def _below(of: _Node, step: str | int) -> Reference | None:
    """What one step further leads to, where it is known from where."""
    return None if of.reference is None else Reference(of.reference.root, (*of.reference.path, step))

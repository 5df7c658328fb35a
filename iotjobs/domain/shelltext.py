"""Reads a shell script around its macros and says how a variable must be quoted in each place.

The script is written for `sh` (dash, BusyBox ash, bash as `sh`) or `bash`, and nobody knows which
version is on the device. So this reader follows only what all of them read alike. At the first
thing that they may read differently, or that it does not know, it is *lost*: what stands before
is certain, every macro in that command and after it is refused. Strict costs the author one line
(`x={{args.x}}` at the top, `"$x"` below); wrong would run a value as a command.

A *hole* is the place of a macro, from its `{{` to behind its `}}`. The inside of words is read in
`shellwords`; what commands do with their words is judged in `shellcommands`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from iotjobs.domain.shellcommands import disturbance, refusal
from iotjobs.domain.shellwords import ASSIGNMENT, Lost, Quoting, Refused, Word, WordReader, refuse_odd_text

# Nobody writes more by hand, and the reader recurses.
_DEEPEST = 40

_REDIRECT = re.compile(r"<<<|<<-?|<>|>>|>\||[<>]&|[<>]")
_DELIMITER = re.compile(
    r"[ \t]*(?:(?P<plain>[A-Za-z_][\w.-]*)|'(?P<single>[\w. -]+)'|\"(?P<double>[\w. -]+)\"|\\(?P<escaped>\w+))"
    r"(?=[ \t\n;&|<>)]|\Z)",
    re.ASCII,
)
_LONG_IN_DOCUMENT = re.compile(r"\\\n|`|\$\(|\$\[|\$\{(?![A-Za-z_]\w*\})", re.ASCII)
_IN = re.compile(r"in(?=[ \t\n;])")
_EMPTY_PARENTHESES = re.compile(r"\([ \t]*\)")
_BEFORE_COMMAND = frozenset({"if", "then", "elif", "else", "while", "until", "do", "{", "}", "fi", "done"})


def place(text: str, holes: Mapping[int, int], *, bash: bool) -> dict[int, Quoting]:
    """How the variable in each hole must be quoted.

    Args:
        text: the script.
        holes: the start of each hole and its end, not overlapping.
        bash: the script is run by bash and by nothing else.

    Raises:
        Refused: one of them may not stand where it stands, or nobody can be certain.
    """
    if not holes:
        return {}
    refuse_odd_text(text, holes)
    reader = _Reader(text, holes, bash=bash)
    try:
        reader.commands(frozenset())
    except Lost as lost:
        for start in sorted(holes):
            if start not in reader.settled:
                raise Refused(
                    start, f"a macro cannot stand in or after {lost.what}", cause=lost.position
                ) from lost
    return reader.placed


class _Reader(WordReader):
    """The commands of a script."""

    def __init__(self, text: str, holes: Mapping[int, int], *, bash: bool) -> None:
        super().__init__(text, holes)
        self.bash = bash
        self.settled: set[int] = set()
        self.nesting = 0
        self.documents: list[tuple[str, bool, bool]] = []

    def commands(self, ends: frozenset[str]) -> str:
        """Read up to one of `ends` in command position, or the end of the text (""); it is not consumed."""
        self.nesting += 1
        if self.nesting > _DEEPEST:
            self.lose("so deep a nesting")
        while True:
            self._blanks()
            char = self.char()
            if char == "" or (char == ")" and ")" in ends):
                break
            if char == ";" and self.char(1) in (";", "&"):
                if ";;" not in ends:
                    self.lose("a `;;` outside of `case`")
                char = ";;"
                break
            if self._separator(char):
                continue
            if char == "(":
                self._subshell()
            elif self._command("esac" in ends):
                char = "esac"
                break
        self.nesting -= 1
        return char

    def _separator(self, char: str) -> bool:
        if char == "\n":
            self._newline()
        elif char == "#":
            self._comment()
        elif char == ")":
            self.lose("a `)` that closes nothing")
        elif char == "&" and self.char(1) == ">":
            # bash: both outputs to a file. dash: a background command, then another one.
            self.lose("`&>`, which sh and bash read differently")
        elif char in ";&|":
            self.position += 1
        else:
            return False
        return True

    def _subshell(self) -> None:
        if self.char(1) == "(":
            self.lose("arithmetic `((…))`")
        opened = self.position
        self.position += 1
        if self.commands(frozenset({")"})) != ")":
            self.lose("a `(` that is not closed", opened)
        self.position += 1

    def _command(self, in_case: bool) -> bool:
        """Read one simple command, or the reserved words before one; True at the `esac` that was awaited."""
        start = self.position
        words: list[Word] = []
        assignments: list[Word] = []
        while (char := self._next_in_command()) != "":
            if char in "<>":
                self._redirect()
                continue
            if char == "(":
                if len(words) == 1 and not assignments and not words[0].holes and self._empty_parentheses():
                    return False
                self.lose("a `(` inside a command (an array, a pattern, a function)")
            word = self.word()
            if word.plain and word.text.isdecimal() and self.char() in ("<", ">"):
                continue
            fresh = not words and self.position - len(word.text) == start
            if fresh and word.plain and (done := self._reserved(word.text, in_case)) is not None:
                return done
            if not words and ASSIGNMENT.match(word.bare):
                assignments.append(word)
                continue
            if not words and word.brackets and word.text != "[":
                self.lose("an assignment to an element of an array", word.start)
            words.append(word)
        self._judge(words, assignments)
        return False

    def _next_in_command(self) -> str:
        """The character that begins the command's next part, "" where the command ends."""
        self._blanks()
        if self.char() == "#":
            self._comment()
        char = self.char()
        if char == "&" and self.char(1) == ">":
            self.lose("`&>`, which sh and bash read differently")
        return "" if char in "\n;&|)" else char

    def _judge(self, words: list[Word], assignments: list[Word]) -> None:
        if (refused := refusal(words, assignments)) is not None:
            raise Refused(*refused)
        for word in (*assignments, *words):
            self._settle(word)
        if (what := disturbance(words)) is not None:
            self.lose(what, words[0].start)

    def _reserved(self, text: str, in_case: bool) -> bool | None:
        """Act on a reserved word: None if it is none, else what `_command` answers."""
        if text == "esac" and in_case:
            return True
        match text:
            case "for" | "select":
                self._for()
            case "case":
                self._case()
            case "function":
                self._function()
            case "[[":
                self._condition()
            case "coproc" | "esac":
                self.lose(f"`{text}` here")
            case "!" | "time":
                self._prefix()
            case _ if text not in _BEFORE_COMMAND:
                return None
        return False

    def _prefix(self) -> None:
        if self.char() == "(":
            self.lose("a `(` glued to a word")
        self._blanks()
        if self.text.startswith("-", self.position):
            self.lose("an option of `time`")

    def _for(self) -> None:
        self._blanks()
        if self.char() == "(":
            self.lose("arithmetic `((…))`")
        self._literal_word("the variable of a loop")
        self._newlines()
        if not _IN.match(self.text, self.position):
            return
        self.position += len("in")
        while (char := self._next_in_command()) != "":
            if char in "<>(":
                self.lose(f"a `{char}` in the list of a loop")
            self._settle(self.word())

    def _function(self) -> None:
        self._blanks()
        self._literal_word("the name of a function")
        self._blanks()
        self._empty_parentheses()

    def _literal_word(self, what: str) -> None:
        word = self.word()
        if word.holes:
            raise Refused(word.holes[0], f"a macro cannot be {what}")
        if not word.plain:
            self.lose(what, word.start)

    def _empty_parentheses(self) -> bool:
        found = _EMPTY_PARENTHESES.match(self.text, self.position)
        if found is not None:
            self.position = found.end()
        return found is not None

    def _case(self) -> None:
        if self.substitutions:
            # The `)` of a pattern ended the substitution in bash before 4.0.
            self.lose("`case` inside `$(…)`")
        opened = self.position
        self._blanks()
        self._settle(self.word())
        self._newlines()
        word = self.word()
        if not word.plain or word.text != "in":
            self.lose("a `case` without `in`", opened)
        while self._patterns(opened):
            end = self.commands(frozenset({";;", "esac"}))
            if end == "esac":
                return
            if end == "":
                self.lose("a `case` that is not closed", opened)
            for mark in (";;&", ";;", ";&"):
                if self.text.startswith(mark, self.position):
                    self.position += len(mark)
                    break

    def _patterns(self, opened: int) -> bool:
        """Read the patterns of one branch with their `)`; False at the end of the `case`."""
        self._newlines()
        bracketed = self.char() == "("
        self.position += bracketed
        while True:
            self._blanks()
            word = self.word()
            if word.plain and word.text == "esac" and not bracketed:
                return False
            if word.holes:
                raise Refused(
                    word.holes[0], 'a macro cannot be a pattern of `case` (compare with `[ "$x" = … ]`)'
                )
            self._blanks()
            char = self.char()
            self.position += 1
            if char == ")":
                return True
            if char != "|":
                self.lose("a `case` with an odd pattern", opened)

    def _condition(self) -> None:
        # Operands of -eq and its kin are arithmetic, which runs the `$(…)` of an array index.
        while True:
            self._newlines()
            char = self.char()
            if char in ("&", "|") and self.char(1) == char:
                self.position += 2
                continue
            if char == "" or char in "()<>;&|#":
                self.lose(f"`[[ … ]]` with a `{char}`")
            word = self.word()
            if word.holes:
                raise Refused(word.holes[0], "a macro cannot stand in `[[ … ]]` (use `[ … ]`)")
            if word.plain and word.text == "]]":
                return

    # Between words

    def _blanks(self) -> None:
        while True:
            char = self.char()
            if char in (" ", "\t"):
                self.position += 1
            elif char == "\\" and self.char(1) == "\n":
                before = self.text[max(0, self.position - 2) : self.position]
                # Elsewhere the two characters glue: `<\` and `<` make a here-document.
                if before and before[-1] not in " \t\n" and before not in ("&&", "||"):
                    self.lose("a line that is continued in the middle of a word")
                if self.documents:
                    self.lose("a continued line that begins a here-document")
                self.position += 2
            else:
                return

    def _newlines(self) -> None:
        while True:
            self._blanks()
            char = self.char()
            if char == "\n":
                self._newline()
            elif char == "#":
                self._comment()
            else:
                return

    def _newline(self) -> None:
        if self.documents and self.substitutions:
            self.lose("a `$(…)` over several lines that begins a here-document")
        self.position += 1
        for delimiter, quoted, tabs in self.documents:
            self._document(delimiter, quoted, tabs)
        self.documents.clear()

    def _comment(self) -> None:
        if self.substitutions:
            # bash before 5.2 counts the quotes and parentheses of comments here.
            self.lose("a comment inside `$(…)`")
        end = self.text.find("\n", self.position)
        end = len(self.text) if end < 0 else end
        self._refuse_holes(end, "a macro cannot stand in a comment")
        self.position = end

    def _redirect(self) -> None:
        found = _REDIRECT.match(self.text, self.position)
        assert found is not None
        opened, sign = self.position, found.group()
        self.position = found.end()
        if sign in ("<<", "<<-"):
            self._delimiter(opened, tabs=sign == "<<-")
            return
        if self.char() == "(":
            self.lose("process substitution", opened)
        if sign == "<<<" and not self.bash:
            self.lose("`<<<`, which sh does not know", opened)
        self._blanks()
        if self.char() == "" or self.char() in "\n;&|()<>#":
            self.lose(f"`{sign}` without a file", opened)
        word = self.word()
        if word.holes and sign in (">&", "<&", "<>"):
            raise Refused(word.holes[0], f"a macro cannot stand after `{sign}`")
        self._settle(word)

    def _delimiter(self, opened: int, *, tabs: bool) -> None:
        found = _DELIMITER.match(self.text, self.position)
        if found is None or self.substitutions:
            self.lose("a here-document with an odd delimiter, or inside `$(…)`", opened)
        self.position = found.end()
        delimiter = next(part for part in found.groups() if part is not None)
        self.documents.append((delimiter, found["plain"] is None, tabs))

    def _document(self, delimiter: str, quoted: bool, tabs: bool) -> None:
        begin = self.position
        indent = r"\t*" if tabs else ""
        line = re.compile(rf"^{indent}{re.escape(delimiter)}$", re.MULTILINE)
        found = line.search(self.text, begin)
        self._refuse_holes(
            len(self.text) if found is None else found.start(), "a macro cannot stand in a here-document"
        )
        if found is None:
            self.lose("a here-document that does not end", begin)
        body = self.text[begin : found.start()]
        # dash reads the commands in it before it looks for the end, bash the other way round.
        if not quoted and _LONG_IN_DOCUMENT.search(body):
            self.lose("a here-document with commands or continued lines (quote its delimiter)", begin)
        self.position = min(found.end() + 1, len(self.text))

    def line_ends_in_quotes(self) -> None:
        """The body of a here-document begins at this line or behind the quotation: not all agree."""
        if self.documents:
            self.lose("a quotation over several lines that begins a here-document")

    def _refuse_holes(self, end: int, reason: str) -> None:
        """Refuse the first hole between the position and `end`."""
        at = self.text.find("{{", self.position, end)
        while at >= 0:
            if at in self.holes:
                raise Refused(at, reason)
            at = self.text.find("{{", at + 1, end)

    def _settle(self, word: Word) -> None:
        # In a substitution the word around it is still to be judged.
        if not self.substitutions:
            self.settled.update(word.holes)

"""Judges one simple command of a script: whether the values of macros may be words of it.

`shelltext` sees to it that a value stays one word and never becomes text of *our* script. That is
not enough where the command reads its words as a program again (`sh -c`, `eval`, `sed`, `ssh`), as
the name of a variable (`read`, `printf -v`: bash runs the `$(…)` in an array's index) or as the
name of a command.

What cannot be seen: aliases and functions of the author, names that are computed, what a program
does with its arguments (`find`, `docker exec`, `git -c`), options (`rm {{x}}` with a value that
begins with `-`: write `rm -- {{x}}`), and what happens to a variable that was given a macro's value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from iotjobs.domain.shellwords import ASSIGNMENT, HOLE, UNKNOWN, Word

Finding = tuple[int, str]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Assigning these has effects: bash expands prompts and reads ENV's file, and the integer ones
# evaluate their value as arithmetic, which runs commands.
_ODD_VARIABLES = _names(
    "PS0 PS1 PS2 PS3 PS4 ENV BASH_ENV PROMPT_COMMAND RANDOM SRANDOM SECONDS LINENO OPTIND HISTCMD BASHPID "
    "EPOCHSECONDS EPOCHREALTIME BASH_COMPAT SHELLOPTS BASHOPTS IFS PATH LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT"
)
_SHELLS = _names("sh bash dash ash ksh mksh pdksh yash zsh fish rbash csh tcsh hush")
_INTERPRETERS = _names(
    "awk gawk mawk nawk sed gsed perl python pypy node nodejs ruby php lua tclsh expect ed ex vi vim bc dc gdb"
)
# Their options may follow operands, or they read commands from more than the first operand.
_NEVER = _names("sed gsed ed ex vi vim gdb expect")
# They read their words as commands, or as names of variables.
_BUILT_IN_EVALUATORS = _names(
    "eval trap let alias source . read unset getopts mapfile readarray wait complete compgen bind fc enable"
)
_EVALUATORS = _names(
    "ssh slogin rsh dbclient plink autossh su runuser sg script watch at batch parallel crontab"
)
# Their first operand is a command.
_RUNNERS = _names(
    "env nohup nice ionice sudo doas xargs setsid exec busybox toybox time timeout stdbuf command builtin"
)
_DECLARERS = _names("export readonly declare typeset local")
_UNARY = _names("-n -z -e -f -d -r -w -x -s -L -h -b -c -p -S -g -u -k -O -G -N")
_BINARY = _names("= == != < > -eq -ne -lt -le -gt -ge -nt -ot -ef")

_INLINE = re.compile(r"-\w*[ce]", re.ASCII)
_DISTURBING_OPTION = re.compile(r"-\w*[in]\w*", re.ASCII)
_SHELL_OPTION = re.compile(r"[-+]\w*", re.ASCII)

_AS_ARGUMENT = """(hand it over as an argument, as in: sh -c 'echo "$1"' sh {{args.x}})"""


def refusal(words: Sequence[Word], assignments: Sequence[Word]) -> Finding | None:
    """The first macro that the command must not get, with the reason, or None."""
    for word in assignments:
        if word.holes and (found := _odd_assignment(word)) is not None:
            return found
    if not any(word.holes for word in words):
        return None
    return _computed_command(words) or _command(words)


def disturbance(words: Sequence[Word]) -> str | None:
    """What the command does to the reading or meaning of the text after it, or None."""
    for name in map(_basename, words):
        if name == "alias":
            return "`alias`"
        if name in _DECLARERS - {"export"} and _has_option(words, _DISTURBING_OPTION):
            return f"`{name} -i` or `{name} -n`, whose variables are evaluated"
    return None


def _command(words: Sequence[Word]) -> Finding | None:
    first = words[0]
    if first.holes and ("/" not in first.text.partition(HOLE)[0] or HOLE in first.text.rpartition("/")[2]):
        return first.holes[0], "a macro cannot be the name of a command"
    name = _basename(first)
    judge = _JUDGES.get(name or "")
    if judge is not None:
        return judge(words)
    if name in _EVALUATORS | _BUILT_IN_EVALUATORS:
        reason = f"`{name}` reads its words as commands or as names of variables, so it cannot get a macro"
        return _any_hole(words, reason)
    # `$SUDO {{x}}` runs the value where SUDO is empty.
    return _started(words, runner=name in _RUNNERS or first.text.strip(UNKNOWN) == "")


def _started(words: Sequence[Word], *, runner: bool) -> Finding | None:
    """Judge the commands that stand among the words of another one: `find … -exec sh -c …`."""
    operand = 0
    if runner:
        operand = next((index for index, word in enumerate(words) if index and _is_operand(word)), len(words))
        for word in words[1:operand]:
            if word.holes:
                return word.holes[0], "a macro cannot stand before the command that is started here"
    zeroth = -1
    for index, word in enumerate(words):
        name = _basename(word)
        rest = words[index:]
        found = None
        if index == zeroth:
            continue
        if name in _SHELLS:
            found, program = _shell(rest)
            # sh -c PROGRAM sh ARGUMENT…: the second `sh` is what the program calls itself.
            zeroth = index + program + 1
        elif name is not None and _family(name) in _INTERPRETERS:
            found = _interpreter(rest)
        elif runner and index and (name in _EVALUATORS or index == operand):
            found = _command(rest)
        if found is not None:
            return found
    return None


def _is_operand(word: Word) -> bool:
    known = UNKNOWN not in word.text and HOLE not in word.text
    return known and not word.text.startswith("-") and ASSIGNMENT.match(word.text) is None


def _shell(words: Sequence[Word]) -> tuple[Finding | None, int]:
    """Options and the first operand (the program, or its file) must be known; with the operand's index."""
    takes_value = False
    index = 0
    for index, word in enumerate(words[1:], start=1):
        if word.holes:
            reason = f"`{_basename(words[0])}` reads this word as a program or as an option {_AS_ARGUMENT}"
            return (word.holes[0], reason), index
        if takes_value:
            takes_value = False
        elif _SHELL_OPTION.fullmatch(word.text) or word.text.startswith("--"):
            takes_value = word.text[-1:] in ("o", "O") or word.text in ("--rcfile", "--init-file")
        elif not word.text.startswith(UNKNOWN):
            break
    return None, index


def _interpreter(words: Sequence[Word]) -> Finding | None:
    """The first word must be known and no option; then the rest are arguments, but not for sed."""
    first = words[1] if len(words) > 1 else None
    known = first is not None and not first.holes and first.text[:1] not in ("-", UNKNOWN, "")
    if known and _family(_basename(words[0]) or "") not in _NEVER:
        return None
    name = _basename(words[0])
    return _any_hole(words, f"`{name}` may read this word as a program or as an option (use args or env)")


def _family(name: str) -> str:
    """`python` for `python3.11`."""
    return name.rstrip("0123456789.")


def _computed_command(words: Sequence[Word]) -> Finding | None:
    """`$SHELL -c …`: a command whose name only the shell knows, and what looks like a program."""
    if _basename(words[0]) is not None:
        return None
    for before, word in pairwise(words):
        if word.holes and _INLINE.fullmatch(before.text):
            return word.holes[0], f"this may be read as a program {_AS_ARGUMENT}"
    return None


def _test(words: Sequence[Word]) -> Finding | None:
    """Only beside an operator, else the value could be one: `[ -v 'a[$(…)]' ]` runs the command."""
    operands = [word for word in words[1:] if not (word.plain and word.text == "]")]
    for index, word in enumerate(operands):
        before = operands[index - 1].text if index else ""
        after = operands[index + 1].text if index + 1 < len(operands) else ""
        if word.holes and not (before in _UNARY | _BINARY or after in _BINARY or len(operands) == 1):
            return word.holes[
                0
            ], "in `[ … ]` a macro must stand beside an operator such as `=` or behind `-n`"
    return None


def _printf(words: Sequence[Word]) -> Finding | None:
    index = 2 if len(words) > 1 and words[1].text == "--" else 1
    if len(words) > index and (words[index].holes or words[index].text[:1] in ("-", UNKNOWN)):
        return _any_hole(words, "the format of `printf` must be a fixed text: printf '%s' {{…}}")
    return None


def _set(words: Sequence[Word]) -> Finding | None:
    for word in words[1:]:
        if word.text == "--":
            return None
        if word.holes:
            return word.holes[0], "a macro cannot be an option of `set` (write `set -- {{…}}`)"
    return None


def _declare(words: Sequence[Word]) -> Finding | None:
    if _has_option(words, _DISTURBING_OPTION) or any(word.text.startswith(UNKNOWN) for word in words):
        return _any_hole(words, f"`{words[0].text}` with these options evaluates its values")
    for word in words[1:]:
        if word.holes and (found := _odd_assignment(word)) is not None:
            return found
    return None


def _odd_assignment(word: Word) -> Finding | None:
    found = ASSIGNMENT.match(word.bare)
    if found is None:
        return word.holes[0], "a macro cannot be the name of a variable"
    if found[1] in _ODD_VARIABLES:
        return word.holes[
            0
        ], f"a macro cannot be the value of {found[1]}, which the shell evaluates or trusts"
    return None


def _has_option(words: Sequence[Word], pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(word.text) for word in words[1:])


def _any_hole(words: Sequence[Word], reason: str) -> Finding | None:
    return next(((word.holes[0], reason) for word in words[1:] if word.holes), None)


def _basename(word: Word) -> str | None:
    """The name of the command that the word is, None if only the shell can know."""
    name = word.text.rpartition("/")[2]
    return None if UNKNOWN in name or HOLE in name else name


_JUDGES: dict[str, Callable[[Sequence[Word]], Finding | None]] = {
    "[": _test,
    "test": _test,
    "printf": _printf,
    "set": _set,
    **dict.fromkeys(_DECLARERS, _declare),
}

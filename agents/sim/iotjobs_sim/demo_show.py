"""What the demo prints: steps as they are done, the table of jobs, one job whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_WIDEST, _NARROWEST = 120, 80
_GREEN, _RED, _BOLD, _DIM = "32", "31", "1", "2"
_GAP = "  "
_HEAD = ("seq", "label", "type", "status, outcome", "exit", "took", "output, or topic and message")
_RIGHT = frozenset({"seq", "exit", "took"})


class Screen:
    """Standard output; in colour on a terminal, unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._colours = self._live and not os.environ.get("NO_COLOR")
        size = shutil.get_terminal_size((_WIDEST, 40))
        self.columns = max(_NARROWEST, min(_WIDEST, size.columns))

    def say(self, text: str = "") -> None:
        """A line."""
        print(text, flush=True)

    def bold(self, text: str) -> str:
        """The text, to stand out."""
        return self._painted(text, _BOLD)

    def good(self, text: str) -> str:
        """The text, as good news."""
        return self._painted(text, _GREEN)

    def bad(self, text: str) -> str:
        """The text, as bad news."""
        return self._painted(text, _RED)

    def dim(self, text: str) -> str:
        """The text, as an aside."""
        return self._painted(text, _DIM)

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Tell that something is under way, and when it is done; the list takes what came of it."""
        found: list[str] = []
        if self._live:
            print(f"  · {what} …", end="", flush=True)
        done = False
        try:
            yield found
            done = True
        finally:
            mark = self.good("✓") if done else self.bad("✗")
            start = "\r\x1b[K" if self._live else ""
            aside = _GAP + self.dim(", ".join(found)) if found else ""
            self.say(f"{start}  {mark} {what}{aside}")

    def table(self, jobs: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> None:
        """A row for each job; below it, where there is one, its error and its custom results.

        Args:
            jobs: records as the API gives them.
            names: of those who may append results, by their ids.
        """
        shown = list(jobs)
        rows = [_HEAD, *(_cells(job) for job in shown)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        widths[-1] = max(20, self.columns - sum(widths[:-1]) - len(_GAP) * (len(_HEAD) - 1))
        self.say(self.bold(_line(rows[0], widths)))
        for job, row in zip(shown, rows[1:], strict=True):
            line = _line(row, widths)
            self.say(self.bad(line) if job["has_errors"] else line)
            for note in _notes(job, names):
                indent = " " * (widths[0] + len(_GAP))
                self.say(self.dim(_cut(f"{indent}└ {note}", self.columns)))

    def record(self, job: Mapping[str, Any]) -> None:
        """A whole job as JSON, one line for each member that fits one."""
        members = [self._member(name, value) for name, value in job.items()]
        self.say("{\n" + ",\n".join(members) + "\n}")

    def _member(self, name: str, value: Any) -> str:
        line = f"  {json.dumps(name)}: {json.dumps(value)}"
        if len(line) < self.columns:
            return line
        return f"  {json.dumps(name)}: " + json.dumps(value, indent=2).replace("\n", "\n  ")


def first_line(job: Mapping[str, Any]) -> str:
    """The first line that a job's device wrote (of stdout, else of stderr), or topic and message."""
    described = job["description"]
    if described is None:
        return ""
    if "topic" in described:
        return f"{described['topic']} {described['message']}"
    lines: list[str] = (described["stdout"] or described["stderr"]).splitlines()
    return lines[0] if lines else ""


def _cells(job: Mapping[str, Any]) -> tuple[str, ...]:
    code = (job["description"] or {}).get("exitCode")
    return (
        str(job["seq"]),
        job["label"],
        job["operation"]["type"],
        " ".join(word for word in (job["status"], job["outcome"]) if word),
        "-" if code is None else str(code),
        "-" if job["duration"] is None else f"{job['duration']} ms",
        _plain(first_line(job)),
    )


def _notes(job: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    if job["error"] is not None and job["error"]["code"] != "exitCode":  # that has its column
        yield _plain(f"{job['error']['code']}: {job['error']['message']}")
    for result in job["results"]:
        yield _plain(f"result by {names.get(result['by'], result['by'])}: {json.dumps(result['payload'])}")


def _line(row: Iterable[str], widths: Iterable[int]) -> str:
    cells = [
        (cell.rjust if name in _RIGHT else cell.ljust)(width)
        for name, cell, width in zip(
            _HEAD, (_cut(c, w) for c, w in zip(row, widths, strict=True)), widths, strict=True
        )
    ]
    return _GAP.join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(text: str) -> str:
    """Devices' words without what would move the cursor."""
    return "".join(character if character.isprintable() else "·" for character in text)

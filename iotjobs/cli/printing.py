"""What the commands print: data to stdout, everything else to stderr, no control character of others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import typer

from iotjobs.client.errors import ClientError, NotAuthenticated, Problem, Unreachable
from iotjobs.client.shapes import Job

# C0, DEL and C1; line and paragraph separators; marks that turn the direction of text around; surrogates.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_PICTURES = 0x2400  # U+2400 ␀ and the 31 after it stand for the control characters
_LINE_CHARACTERS = 200
_HINTS: dict[type[Exception], str] = {
    NotAuthenticated: "set IOTJOBS_TOKEN to a valid token",
    Unreachable: "is `iotjobs serve` running, and is IOTJOBS_URL its address?",
}


def visible(text: str) -> str:
    """Text of others with each control character as something to look at: `␛[31m`."""
    return _UNFIT.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def first_line(text: str) -> str:
    """The first line that is not blank, made visible, and cut where it gets long."""
    line = visible(next((line for line in text.split("\n") if line.strip()), "").rstrip("\r"))
    return line if len(line) <= _LINE_CHARACTERS else line[: _LINE_CHARACTERS - 1] + "…"


def say(text: str) -> None:
    """A line about the work, to stderr."""
    typer.echo(visible(text), err=True)


def complain(error: ClientError | ValueError, *, about: str = "") -> None:
    """Say what went wrong and what to do next, to stderr."""
    say(f"iotjobs: {about}{': ' if about else ''}{error}")
    if isinstance(error, Problem):
        for field, message in error.errors:
            if message not in error.detail:
                say(f"  {field}: {message}")
        if error.request_id and error.status >= 500:
            say(f"  the server's log has it under {error.request_id}")
    if (hint := _HINTS.get(type(error))) is not None:
        say(f"  {hint}")


def put_started(job: Job) -> None:
    """A line for a job that nobody waits for: label, status, id; with tabs between."""
    typer.echo("\t".join((visible(job.label), visible(job.outcome or job.status), visible(job.id))))


def put_ended(job: Job) -> None:
    """A line for a job that was waited for: label, outcome, exit code, first line of output; tabs between."""
    exit_code = "-" if job.exit_code is None else str(job.exit_code)
    cells = (visible(job.label), visible(job.outcome or job.status), visible(exit_code), first_line(job.said))
    typer.echo("\t".join(cells))


def put_json(jobs: Iterable[Job]) -> None:
    """The job records as one JSON list. Written in ASCII: no control character gets through."""
    typer.echo(json.dumps([job.record for job in jobs], indent=2))

"""Words that stand for a hole, or for work that somebody forgot; found as text, in any file type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

FOLDERS = ("iotjobs", "agents", "deploy", "benchmarks", "tests")
SUFFIXES = frozenset(
    {".py", ".html", ".js", ".css", ".sh", ".toml", ".yaml", ".yml", ".conf", ".sql", ".mako"}
)
NOT_OURS = (".venv", "node_modules", "__pycache__", "architecture")  # this folder says the words itself

BANNED = {
    "an unchecked host key": r"known_hosts[\"']?\s*[=:]\s*None\b",
    "markup that is not escaped": r"\|\s*safe\b|autoescape\s*[=(]?\s*false\b|\bMarkup\(",
    "text as markup": r"\.(inner|outer)HTML\b|insertAdjacentHTML|document\.write\b",
    "a shell where an argv would do": r"shell\s*=\s*True\b|create_subprocess_shell|os\.(system|popen)\(",
    "unfinished work": r"\b(TODO|FIXME|XXX|HACK)\b|\bNotImplementedError\b",
}
PATTERNS = {
    what: re.compile(pattern, re.IGNORECASE if "escape" in what else 0) for what, pattern in BANNED.items()
}


def banned(text: str, where: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in PATTERNS.items():
            if pattern.search(line):
                yield f"{where}:{number}: {what}: {line.strip()[:100]}"


def files() -> Iterator[Path]:
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in SUFFIXES and not set(NOT_OURS) & set(file.parts):
                yield file


def test_no_file_says_a_banned_word() -> None:
    scanned = sorted(files())

    assert len(scanned) > 10
    assert [
        finding
        for file in scanned
        for finding in banned(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "asyncssh.connect(host, known_hosts=None)",
        "options = {'known_hosts': None}",
        "<p>{{ label | safe }}</p>",
        "<p>{{ label|safe }}</p>",
        "{% autoescape false %}",
        "Environment(autoescape=False)",
        "node.innerHTML = label",
        "node.insertAdjacentHTML('beforeend', label)",
        "subprocess.run(line, shell=True)",
        "await asyncio.create_subprocess_shell(line)",
        "# TODO: later",
        "raise NotImplementedError",
    ],
)
def test_a_banned_word_is_found(line: str) -> None:
    assert len(list(banned(line, "sample"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "known_hosts: KnownHosts | None = None",
        "is_safe = unsafe | safety",
        "node.textContent = label",
        "shell=False",
    ],
)
def test_an_innocent_line_is_no_finding(line: str) -> None:
    assert list(banned(line, "sample")) == []

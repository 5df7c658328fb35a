from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import DOCS, ROOT

SECTIONS = ["Context", "Decision", "Consequences", "Alternatives", "Check"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def links(page: Path) -> Iterator[Path]:
    """The files that a page links to; addresses and places on the same page are left out."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            yield (page.parent / target.partition("#")[0]).resolve()


def test_every_link_between_pages_leads_somewhere() -> None:
    assert [
        f"{page.name} → {target}" for page in pages() for target in links(page) if not target.exists()
    ] == []


def test_the_map_names_every_page() -> None:
    start = DOCS / "README.md"

    assert {page for page in pages() if page != start} - set(links(start)) == set()


def shortcomings(text: str) -> Iterator[str]:
    """What a decision record lacks: a section, its words, or a check that is there."""
    body = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    if list(body) != SECTIONS:
        yield f"sections {list(body)}"
    if not re.search(r"^\*\*Status\*\*: (proposed|accepted|replaced)", text, re.MULTILINE):
        yield "no status"
    yield from (f"nothing under {name}" for name, words in body.items() if not words.strip())
    named = re.findall(r"`(tests/[^`:]+)", body.get("Check", ""))
    yield from (f"{path} is not there" for path in named if not (ROOT / path).exists())
    if body.get("Check", "").strip() and not named:
        yield "the check names no test"


def test_every_decision_is_whole_and_has_its_check() -> None:
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))[1:]

    assert len(records) >= 4
    assert [
        f"{record.name}: {what}" for record in records for what in shortcomings(record.read_text("utf-8"))
    ] == []


def test_an_incomplete_decision_is_found() -> None:
    whole = "**Status**: accepted\n" + "".join(f"## {name}\nwords\n" for name in SECTIONS)

    assert list(shortcomings(whole + "`tests/conftest.py`\n")) == []
    assert list(shortcomings(whole)) == ["the check names no test"]
    assert list(shortcomings(whole + "`tests/gone.py`\n")) == ["tests/gone.py is not there"]
    assert len(list(shortcomings("## Context\n"))) == 3


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](gone.md#part) [b](https://example.org/x) [c](#here) [d](page.md)")

    assert [target.exists() for target in links(page)] == [False, True]

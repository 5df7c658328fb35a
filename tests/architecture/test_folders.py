from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import PACKAGE, ROOT, Module, modules, snippet

SHORTEST, LONGEST = 5, 15
SAID = {
    "what it may import or must never hold": r"\bimport|\bnever\b",
    "where to start reading": r"\bstart\b",
}
# Alembic loads its folder by path; it is not a package.
NO_PACKAGES = frozenset({"store/migrations", "store/migrations/versions"})


def ill_described(module: Module) -> Iterator[str]:
    """A folder's `__init__` says what the layer is for, what it may import, where to start reading."""
    match module.tree.body:
        case [ast.Expr(value=ast.Constant(value=str(text))) as docstring, *rest]:
            lines = (docstring.end_lineno or 0) - docstring.lineno + 1
            if not SHORTEST <= lines <= LONGEST:
                yield f"{module.path}: {lines} lines of docstring, {SHORTEST} to {LONGEST} are right"
            for what, words in SAID.items():
                if not re.search(words, text, re.IGNORECASE):
                    yield f"{module.path}: the docstring does not say {what}"
            if any(not is_version(node) for node in rest):
                yield f"{module.path}: code in an __init__"
        case _:
            yield f"{module.path}: no docstring"


def is_version(node: ast.stmt) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id="__version__")]):
            return True
        case _:
            return False


def test_each_folder_says_what_it_is_for_and_holds_no_code() -> None:
    inits = [module for module in modules(PACKAGE) if module.path.endswith("/__init__.py")]

    assert len(inits) > 5
    assert [finding for module in inits for finding in ill_described(module)] == []


def test_each_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    bare = {
        folder.relative_to(PACKAGE).as_posix() for folder in folders if not (folder / "__init__.py").exists()
    }

    assert bare <= NO_PACKAGES


def test_the_readers_names_stay_telling() -> None:
    vague = re.compile(r"(^|_)(utils?|common|helpers?|manager|misc)$|^.{1,2}$")
    names = [
        module.path
        for module in modules(PACKAGE, ROOT / "agents")
        if vague.search(module.name.split(".")[-1])
    ]

    assert names == []


GOOD = '"""Decides.\n\nImports nothing.\n\nStart at `statuses`.\n"""\n'


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("", "no docstring"),
        ('"""Short. Imports nothing. Start anywhere."""', "1 lines"),
        (GOOD.replace("Decides.", "Decides.\n" * 12), "18 lines"),
        (GOOD.replace("Imports", "Needs"), "must never hold"),
        (GOOD.replace("Start", "Look"), "where to start"),
        (GOOD + "from iotjobs.domain.jobs import Job\n", "code in an __init__"),
    ],
)
def test_an_ill_described_folder_is_found(text: str, finding: str) -> None:
    [found] = ill_described(snippet(text, "iotjobs/domain/__init__.py"))

    assert finding in found


def test_a_well_described_folder_is_no_finding() -> None:
    assert list(ill_described(snippet(GOOD + '__version__ = "1"\n', "iotjobs/__init__.py"))) == []

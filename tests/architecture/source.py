"""The tree as the architecture tests see it: parsed modules, and findings that name a line."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "iotjobs"
AGENTS = ROOT / "agents"
TESTS = ROOT / "tests"
DOCS = ROOT / "docs"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file; `path` is relative to the root, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def line_count(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> Iterator[FunctionNode]:
        return (node for node in ast.walk(self.tree) if isinstance(node, FunctionNode))


Rule = Callable[[Module], Iterable[str]]


def snippet(text: str, path: str = "iotjobs/engine/sample.py") -> Module:
    """A module made up for a rule's own test."""
    return Module(path, text, ast.parse(text, path))


@cache
def modules(*folders: Path) -> tuple[Module, ...]:
    """Every module below the folders but generated migrations, sorted by path."""
    files = (file for folder in folders for file in folder.rglob("*.py"))
    return tuple(
        snippet(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
        for file in sorted(files)
        if "versions" not in file.parts and ".venv" not in file.parts
    )


def findings(rule: Rule, *folders: Path) -> list[str]:
    """What a rule finds in the modules below the folders, empty when all is well."""
    return [finding for module in modules(*folders) for finding in rule(module)]


def at(module: Module, node: ast.AST, what: str) -> str:
    return f"{module.path}:{getattr(node, 'lineno', 0)}: {what}"


def dotted(node: ast.AST) -> str:
    """`os.path.join` for the expression that says so, `` for anything but names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def called(node: ast.Call) -> str:
    """The last word of what is called: `values` for `update(jobs).where(…).values(…)`."""
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def imports(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported name in full, `iotjobs.store.jobs.read` for `from iotjobs.store.jobs import read`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import pytest

from tests.architecture.source import AGENTS, PACKAGE, Module, at, called, dotted, findings, modules, snippet

BROAD_PER_RAISE = 0.1
BROAD = frozenset({"Exception", "BaseException"})
LOGGING = frozenset({"exception", "error", "warning", "critical"})
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


def is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(dotted(kind) in BROAD for kind in kinds)


def raises_on(handler: ast.ExceptHandler) -> bool:
    """Cleans up and lets the error go on: the handler's last word is a raise."""
    return isinstance(handler.body[-1], ast.Raise)


def logs_with_facts(handler: ast.ExceptHandler) -> bool:
    """Logs a phrase with fields (ids) beside it, as `extra` or as keyword arguments."""
    return any(
        isinstance(node, ast.Call)
        and called(node) in LOGGING
        and any(keyword.arg not in ("exc_info", "stack_info", "stacklevel") for keyword in node.keywords)
        for node in ast.walk(handler)
    )


def hands_on(handler: ast.ExceptHandler) -> bool:
    """Gives the error itself to somebody who waits for it: kept in a variable, or set on a future."""
    kept = (
        part
        for node in ast.walk(handler)
        if isinstance(node, ast.Assign) or (isinstance(node, ast.Call) and called(node) == "set_exception")
        for part in ([node.value] if isinstance(node, ast.Assign) else node.args)
    )
    return any(name == handler.name for part in kept for name in outcomes(part))


def outcomes(value: ast.expr) -> Iterator[str]:
    """The names that an expression may come to be."""
    if isinstance(value, ast.IfExp):
        yield from outcomes(value.body)
        yield from outcomes(value.orelse)
    elif isinstance(value, ast.Name):
        yield value.id


def swallowing(module: Module) -> Iterator[ast.ExceptHandler]:
    """Broad handlers that end the error's way."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and is_broad(node) and not raises_on(node):
            yield node


def broad_and_silent(module: Module) -> Iterator[str]:
    for handler in swallowing(module):
        if not (logs_with_facts(handler) or hands_on(handler)):
            yield at(
                module, handler, "a broad except that neither raises, hands on nor logs what it concerned"
            )


def over_budget(measured: Iterable[Module]) -> str:
    broad, raises = [], 0
    for module in measured:
        broad += [at(module, handler, "broad except") for handler in swallowing(module)]
        raises += sum(isinstance(node, ast.Raise) for node in ast.walk(module.tree))
    if len(broad) <= raises * BROAD_PER_RAISE:
        return ""
    return "\n".join([f"{len(broad)} broad excepts for {raises} raises, allowed is 1 in 10", *broad])


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below, without those of functions and handlers of their own."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, SCOPES | ast.ExceptHandler):
            yield child
            yield from inside(child)


def raised_without_cause(module: Module) -> Iterator[str]:
    for handler in ast.walk(module.tree):
        if not isinstance(handler, ast.ExceptHandler):
            continue
        for node in inside(handler):
            if (
                isinstance(node, ast.Raise)
                and node.exc
                and not node.cause
                and dotted(node.exc) != handler.name
            ):
                yield at(module, node, "raise in an except without `from`")


@pytest.mark.parametrize("rule", [broad_and_silent, raised_without_cause], ids=lambda rule: rule.__name__)
def test_errors_keep_their_story(rule) -> None:
    assert findings(rule, PACKAGE, AGENTS) == []


def test_broad_excepts_stay_within_their_budget() -> None:
    assert not over_budget(modules(PACKAGE, AGENTS)), over_budget(modules(PACKAGE, AGENTS))


def handler(kind: str, body: str) -> Module:
    return snippet(f"try:\n    go()\nexcept{kind}:\n    {body}\n")


@pytest.mark.parametrize("kind", ["", " Exception", " BaseException as error", " (ValueError, Exception)"])
def test_a_broad_silent_except_is_found(kind: str) -> None:
    assert len(list(broad_and_silent(handler(kind, "pass")))) == 1
    assert len(list(broad_and_silent(handler(kind, "log.exception('it broke')")))) == 1
    assert list(broad_and_silent(handler(kind, "log.exception('it broke', extra={'job_id': job.id})"))) == []
    assert list(broad_and_silent(handler(kind, "undo(); raise"))) == []


def test_an_error_that_is_handed_on_is_no_finding() -> None:
    assert list(broad_and_silent(handler(" Exception as error", "item.error = error"))) == []
    assert list(broad_and_silent(handler(" Exception as error", "future.set_exception(error)"))) == []
    assert len(list(broad_and_silent(handler(" Exception as error", "item.error = str(error)")))) == 1


def test_a_narrow_except_is_no_finding() -> None:
    assert list(broad_and_silent(handler(" OSError", "pass"))) == []


def test_a_broken_budget_is_found() -> None:
    broad, raising = handler(" Exception", "pass"), snippet("raise ValueError\n" * 10)

    assert "1 broad excepts for 0 raises" in over_budget([broad])
    assert over_budget([broad, raising]) == ""


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("raise NotFound('gone')", 1),
        ("if really():\n        raise NotFound('gone')", 1),
        ("raise NotFound('gone') from error", 0),
        ("raise NotFound('gone') from None", 0),
        ("raise error", 0),
        ("raise", 0),
        ("def later(): raise NotFound('gone')", 0),
    ],
)
def test_a_raise_without_its_cause_is_found(body: str, count: int) -> None:
    assert len(list(raised_without_cause(handler(" OSError as error", body)))) == count

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source import PACKAGE, Module, at, called, dotted, findings, modules, snippet

WRITER = "iotjobs/store/jobs.py"
# They hold answers of the server, never a row: a status there is a copy.
COPIES = ("iotjobs/client/", "iotjobs/cli/")
# Functions of the store that take further columns by name; a status is none of them.
TAKE_COLUMNS = frozenset({"note", "settle"})
RAW_SQL = re.compile(r"\b(update\s+jobs?\s+set\b[^;]*\bstatus\s*=|insert\s+into\s+jobs?\b)", re.IGNORECASE)


def names_status(key: ast.expr | None) -> bool:
    """`"status"`, `Job.status`, `jobs.c.status` as the key of a column's new value."""
    if isinstance(key, ast.Constant):
        return key.value == "status"
    return isinstance(key, ast.Attribute) and key.attr == "status"


def gives_status(node: ast.AST) -> bool:
    """A dict display, alone or in a list, with a value for the status."""
    return any(
        (isinstance(part, ast.Dict) and any(map(names_status, part.keys)))
        or (isinstance(part, ast.Call) and dotted(part.func) == "dict" and has_keyword(part))
        for part in ast.walk(node)
    )


def has_keyword(call: ast.Call) -> bool:
    return any(keyword.arg == "status" for keyword in call.keywords)


def word_of(node: ast.AST) -> str:
    return called(node) if isinstance(node, ast.Call) else dotted(node).rpartition(".")[2]


def is_statement(node: ast.AST, kinds: str = "insert|update") -> bool:
    """An insert or update, or something named after one: `_insert_job`, `_update(names)`."""
    return any(re.search(rf"(^|_)({kinds})(_|$)", word_of(part)) for part in ast.walk(node))


def bound_to_status(module: Module) -> frozenset[str]:
    """Names of dictionaries that hold a status: `changes = {"status": …}`, `changes["status"] = …`."""
    names = set()
    for node in ast.walk(module.tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if isinstance(value, ast.Dict | ast.Call | ast.List) and gives_status(value):
                names.add(name)
            case ast.Subscript(value=ast.Name(id=name), slice=key, ctx=ast.Store()) if names_status(key):
                names.add(name)
    return frozenset(names)


def writes_status(node: ast.AST, bound: frozenset[str] = frozenset()) -> str:
    """What writes a status here, in words; empty when nothing does."""

    def gives(argument: ast.expr) -> bool:
        return gives_status(argument) or (isinstance(argument, ast.Name) and argument.id in bound)

    match node:
        case ast.Call() if called(node) == "values" and (
            has_keyword(node)
            or any(map(gives, node.args))
            or any(keyword.arg is None and gives(keyword.value) for keyword in node.keywords)
        ):
            return "values(status=…)"
        case ast.Call(args=[statement, *parameters]) if (
            called(node) in ("execute", "exec", "scalar", "scalars")
            and is_statement(statement)
            and any(map(gives, parameters))
        ):
            return "execute(statement, {'status': …})"
        case ast.Call(func=ast.Attribute(value=statement), args=[_, *parameters]) if (
            called(node) in ("run", "insert", "insert_all", "first", "all")  # `Prepared`
            and is_statement(statement)
            and any(map(gives, parameters))
        ):
            return "statement.run(conn, {'status': …})"
        case ast.Call(args=[table, *rows]) if (
            called(node) == "append" and word_of(table) == "jobs" and any(map(gives, rows))
        ):
            return "append(jobs, {'status': …})"
        case ast.Call() if called(node) in TAKE_COLUMNS and has_keyword(node):
            return f"{called(node)}(…, status=…)"
        case ast.Call(args=[_, ast.Constant(value="status"), _]) if called(node) == "setattr":
            return "setattr(…, 'status', …)"
        case ast.Attribute(attr="status", value=value, ctx=ast.Store()) if dotted(value) != "self":
            return "an assignment of .status"
        case ast.Constant(value=str(text)) if RAW_SQL.search(text):
            return "SQL that writes jobs"
    return ""


def one_writer(module: Module) -> Iterator[str]:
    if module.path == WRITER or module.path.startswith(COPIES):
        return
    bound = bound_to_status(module)
    for node in ast.walk(module.tree):
        if what := writes_status(node, bound):
            yield at(module, node, f"{what}: only {WRITER} writes a status")


def test_only_the_job_store_writes_a_status() -> None:
    assert findings(one_writer, PACKAGE) == []


def is_update(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and any(
        is_statement(part, "update") for part in (node.func, *node.args[:1])
    )


def updating_functions(module: Module) -> list[str]:
    """The functions that change the status of a job that is there already."""
    bound = bound_to_status(module)
    return [
        function.name
        for function in module.functions()
        if any(is_update(node) and writes_status(node, bound) for node in ast.walk(function))
    ]


def test_one_function_changes_a_status() -> None:
    [writer] = [module for module in modules(PACKAGE) if module.path == WRITER]

    assert len(updating_functions(writer)) == 1


def test_a_second_function_that_changes_a_status_is_found() -> None:
    text = "def {}(db):\n    db.execute(update(jobs).where(jobs.c.id == 1).values(status='STOPPED'))\n"

    assert updating_functions(snippet(text.format("first") + text.format("second"))) == ["first", "second"]


@pytest.mark.parametrize(
    "text",
    [
        "update(jobs).where(jobs.c.id == x).values(status=wanted)",
        "update(jobs).values({'status': wanted, 'attempt': 2})",
        "update(Job).values({Job.status: wanted})",
        "insert(jobs).values([{'status': wanted}])",
        "jobs.insert().values(dict(status=wanted))",
        "db.execute(insert(jobs), [{'id': x, 'status': wanted}])",
        "job.status = wanted",
        "rows[0].status = wanted",
        "job.attempt, job.status = 1, wanted",
        "changes = {'status': wanted}\nupdate(jobs).values(**changes)",
        "changes = {}\nchanges['status'] = wanted\nupdate(jobs).values(changes)",
        "rows = [{'status': wanted}]\ndb.execute(insert(jobs), rows)",
        "tx.append(tables.jobs, {'id': x, 'status': wanted})",
        "db.execute(_update(names), {'status': wanted})",
        "jobs.note(tx, x, 1, status=wanted)",
        "_update(names).run(conn, {'status': wanted})",
        "setattr(job, 'status', wanted)",
        "db.execute(text('UPDATE job SET attempt = 2, status = :wanted'))",
    ],
)
def test_a_write_of_a_status_elsewhere_is_found(text: str) -> None:
    assert len(list(one_writer(snippet(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "select(jobs).where(jobs.c.status == wanted)",
        "update(jobs).where(jobs.c.status == 'PENDING').values(priority=1)",
        "frame = {'status': job.status}",
        "body.update({'status': 404})",
        "frame = {'status': job.status}\nupdate(jobs).values(priority=1)",
        "status = job.status",
        "tx.append(tables.events, {'kind': 'job.changed', 'data': {'status': wanted}})",
        "class Problem:\n    def __init__(self, status):\n        self.status = status",
        "db.execute(select(jobs), {'status': 1})",
    ],
)
def test_reading_a_status_is_no_finding(text: str) -> None:
    assert list(one_writer(snippet(text))) == []

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import PACKAGE, Module, at, dotted, findings, imports, snippet

READER = "iotjobs/settings.py"
WAYS_IN = frozenset(
    {
        "os.environ",
        "os.environb",
        "os.getenv",
        "os.getenvb",
        "os.putenv",
        "os.path.expandvars",
        "pydantic_settings",
    }
)


def reads_environment(module: Module) -> Iterator[str]:
    if module.path == READER:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and dotted(node) in WAYS_IN:
            yield at(module, node, f"{dotted(node)}: only {READER} reads the environment")
    for statement, name in imports(module):
        if name in WAYS_IN or name.split(".")[0] in WAYS_IN:
            yield at(module, statement, f"imports {name}: only {READER} reads the environment")


def test_only_settings_reads_the_environment() -> None:
    assert findings(reads_environment, PACKAGE) == []


@pytest.mark.parametrize(
    "text",
    [
        "import os\nhome = os.environ['HOME']",
        "import os\nhome = os.getenv('HOME')",
        "from os import environ",
        "from os import getenv as read",
        "import os\nchild = dict(os.environ)",
        "from pydantic_settings import BaseSettings",
    ],
)
def test_a_look_into_the_environment_is_found(text: str) -> None:
    assert len(list(reads_environment(snippet(text)))) == 1


def test_the_environment_of_a_run_is_no_finding() -> None:
    assert (
        list(
            reads_environment(snippet("request.env['IOTJOBS_JOB_ID'] = job.id\nimport os\nos.path.join('a')"))
        )
        == []
    )

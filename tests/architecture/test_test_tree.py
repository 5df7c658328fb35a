from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import pytest

from tests.architecture.source import (
    PACKAGE,
    TESTS,
    Module,
    at,
    called,
    dotted,
    findings,
    imports,
    modules,
    snippet,
)

# The layers whose modules need a test that names them; `domain` needs its own file for each.
TESTED = ("domain", "engine", "transports", "store", "inputs", "client", "cli", "web")
# Modules that decide nothing, each with the reason.
NO_UNIT_TEST = {
    "iotjobs.domain.errors": "facts and messages; the tests of who raises them look at both",
}
# Modules that no test imports, because they are proved through what uses them: where.
PROVED_BY = {
    "iotjobs.engine.place": "tests/faults/test_several_nodes.py",
    "iotjobs.store.lock": "tests/e2e/test_cli_run.py",
    "iotjobs.inputs.rest.workers": "tests/faults/test_several_nodes.py",
    "iotjobs.transports.base": "tests/integration/test_ssh_run.py",
    "iotjobs.transports.spool": "tests/integration/test_ssh_run.py",
    "iotjobs.transports.ssh_channel": "tests/integration/test_ssh_zoo.py",
    "iotjobs.transports.ssh_dial": "tests/integration/test_ssh_zoo.py",
    "iotjobs.transports.ssh_pool": "tests/integration/test_ssh_run.py",
    "iotjobs.store.backups": "tests/faults/test_backup.py",
    "iotjobs.store.idempotency": "tests/contract/test_store.py",
    "iotjobs.store.references": "tests/contract/test_definitions.py",
    "iotjobs.inputs.job_shapes": "tests/integration/test_rest_jobs.py",
    "iotjobs.inputs.rest.control": "tests/integration/test_rest_control.py",
    "iotjobs.inputs.rest.definitions": "tests/integration/test_rest_definitions.py",
    "iotjobs.inputs.rest.execute": "tests/integration/test_rest_jobs.py",
    "iotjobs.inputs.rest.health": "tests/faults/test_broker_faults.py",
    "iotjobs.inputs.rest.jobs": "tests/integration/test_rest_jobs.py",
    "iotjobs.inputs.rest.reach": "tests/integration/test_rest_jobs.py",
    "iotjobs.inputs.rest.site": "tests/integration/test_rest_site.py",
    "iotjobs.cli.site": "tests/e2e/test_cli_run.py",
    "iotjobs.store.past": "tests/contract/test_replays.py",
    "iotjobs.store.states": "tests/integration/test_rest_states.py",
    "iotjobs.inputs.state_shapes": "tests/integration/test_rest_states.py",
    "iotjobs.inputs.rest.states": "tests/integration/test_rest_states.py",
    "iotjobs.inputs.rest.triggers": "tests/integration/test_rest_states.py",
    "iotjobs.inputs.rest.properties": "tests/integration/test_rest_states.py",
    "iotjobs.inputs.rest.replays": "tests/integration/test_rest_states.py",
}


def modules_to_test(measured: Iterable[Module]) -> list[str]:
    """Names of modules in the tested layers, packages and migrations left out."""
    return [
        module.name
        for module in measured
        if module.name.split(".")[1:2]
        and module.name.split(".")[1] in TESTED
        and not module.path.endswith("/__init__.py")
        and "/migrations/" not in module.path
    ]


def named_in(measured: Iterable[Module]) -> set[str]:
    """Every module that a test imports, by any spelling."""
    names = {name for module in measured for _, name in imports(module)}
    return names | {name.rpartition(".")[0] for name in names}


def own_test_files(unit_tests: Iterable[str]) -> set[str]:
    """Modules that have a unit test file of their own: `tests/unit/domain/test_macros.py` and its like."""
    parts = (path.removesuffix(".py").split("/") for path in unit_tests)
    return {
        ".".join(("iotjobs", *folders[2:-1], folders[-1].removeprefix("test_")))
        for folders in parts
        if len(folders) >= 4
    }


def without_unit_test(names: Iterable[str], unit_tests: Iterable[str]) -> list[str]:
    """Modules of the domain without `tests/unit/domain/test_<module>.py`."""
    present = set(unit_tests)
    return [
        name
        for name in names
        if name.startswith("iotjobs.domain.")
        and name not in NO_UNIT_TEST
        and f"tests/unit/domain/test_{name.split('.')[-1]}.py" not in present
    ]


def astray(unit_tests: Iterable[str], names: Iterable[str]) -> list[str]:
    """Unit tests of a layer whose file name begins with no module's: left over after a move."""
    stems = {(name.split(".")[1], name.split(".")[-1]) for name in names}
    return [
        path
        for path in unit_tests
        if len(parts := path.split("/")) >= 4
        and parts[2] in TESTED
        and parts[-1].startswith("test_")
        and not any(layer == parts[2] and parts[-1][5:-3].startswith(stem) for layer, stem in stems)
    ]


def unit_test_paths() -> list[str]:
    return [module.path for module in modules(TESTS) if module.path.startswith("tests/unit/")]


def test_each_module_of_the_domain_has_its_unit_test() -> None:
    assert without_unit_test(modules_to_test(modules(PACKAGE)), unit_test_paths()) == []


def test_each_module_is_named_by_a_test() -> None:
    named = named_in(modules(TESTS)) | own_test_files(unit_test_paths())

    assert [name for name in modules_to_test(modules(PACKAGE)) if name not in named | PROVED_BY.keys()] == []


def test_unit_tests_mirror_the_tree() -> None:
    assert astray(unit_test_paths(), modules_to_test(modules(PACKAGE))) == []


def test_the_exceptions_are_still_there() -> None:
    assert {*NO_UNIT_TEST, *PROVED_BY} <= set(modules_to_test(modules(PACKAGE)))
    assert set(PROVED_BY.values()) <= {module.path for module in modules(TESTS)}


def test_a_hole_in_the_mirror_is_found() -> None:
    names = ["iotjobs.domain.macros", "iotjobs.store.jobs"]
    tests = ["tests/unit/domain/test_macros.py", "tests/unit/domain/test_macros_in_scripts.py"]

    assert without_unit_test(names, []) == ["iotjobs.domain.macros"]
    assert without_unit_test(names, tests) == []
    assert astray(tests, names) == []
    assert astray(tests, ["iotjobs.domain.jobs"]) == tests
    assert "iotjobs.store.jobs" in named_in([snippet("from iotjobs.store.jobs import read")])
    assert "iotjobs.store.jobs" in named_in([snippet("from iotjobs.store import jobs")])
    assert "iotjobs.store.queue" not in named_in([snippet("from iotjobs.store import jobs")])


# The services stand for slow devices and wait for programs that tell nobody when they are up.
MAY_SLEEP = "tests/services/"


def sleeps(module: Module) -> Iterator[str]:
    """A test waits for a signal or moves the clock; `asyncio.sleep(0)` only lets others run."""
    if module.path.startswith(MAY_SLEEP):
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        match dotted(node.func), node.args:
            case "asyncio.sleep", [ast.Constant(value=0)]:
                continue
            case "asyncio.sleep" | "time.sleep" | "anyio.sleep", _:
                yield at(module, node, "a test sleeps")
            case _ if called(node) == "wait_for_timeout":
                yield at(module, node, "a test sleeps in the browser")
    for statement, name in imports(module):
        if name in ("time.sleep", "asyncio.sleep"):
            yield at(module, statement, f"imports {name}: call it by its full name")


def test_no_test_sleeps() -> None:
    assert findings(sleeps, TESTS) == []


@pytest.mark.parametrize(
    "text",
    ["time.sleep(1)", "await asyncio.sleep(0.1)", "from time import sleep", "page.wait_for_timeout(50)"],
)
def test_a_sleep_is_found(text: str) -> None:
    assert len(list(sleeps(snippet(text, "tests/unit/test_sample.py")))) == 1


def test_what_is_no_sleep() -> None:
    assert list(sleeps(snippet("await asyncio.sleep(0)\nclock.sleep(5)", "tests/unit/test_sample.py"))) == []
    assert list(sleeps(snippet("time.sleep(0.05)", "tests/services/ssh.py"))) == []

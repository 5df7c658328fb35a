from __future__ import annotations

import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

from tests.architecture.source import AGENTS, PACKAGE, ROOT, Module, at, findings, imports, snippet

LINT = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_import_contracts_hold() -> None:
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_import_contracts_can_break(tmp_path: Path) -> None:
    for layer, text in {"upper": "", "lower": "import sample.upper.there"}.items():
        (tmp_path / "sample" / layer).mkdir(parents=True)
        (tmp_path / "sample" / layer / "__init__.py").write_text("")
        (tmp_path / "sample" / layer / "there.py").write_text(text)
    (tmp_path / "sample" / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["sample"]\n[[tool.importlinter.contracts]]\n'
        'name = "down"\ntype = "layers"\nlayers = ["sample.upper", "sample.lower"]\n'
    )

    result = lint_imports(tmp_path)

    assert result.returncode == 1
    assert "sample.lower.there -> sample.upper.there" in result.stdout


def contract_members() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    lists = [
        contract.get("layers", []) + contract.get("source_modules", []) for contract in settings["contracts"]
    ]
    return {name.strip() for entries in lists for entry in entries for name in entry.split("|")}


def test_every_layer_is_named_in_a_contract() -> None:
    layers = {f"iotjobs.{init.parent.name}" for init in PACKAGE.glob("*/__init__.py")}

    assert layers <= contract_members()


def cycle(edges: Mapping[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = grimp.build_graph("iotjobs", cache_dir=None)
    edges = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}

    assert cycle(edges) == []


def test_a_cycle_of_imports_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def agents_apart(module: Module) -> Iterator[str]:
    """Agents run on devices: the standard library and paho-mqtt, nothing of ours."""
    for node, name in imports(module):
        if name.split(".")[0] == "iotjobs":
            yield at(module, node, f"an agent imports {name}")


def client_alone(module: Module) -> Iterator[str]:
    """The SDK imports its own shapes, the command line the SDK; neither anything else of ours."""
    allowed = {"client": ("client",), "cli": ("client", "cli")}
    layer = module.name.split(".")[1] if module.name.startswith("iotjobs.") else ""
    for node, name in imports(module) if layer in allowed else ():
        first, *rest = name.split(".")
        if first == "iotjobs" and rest and rest[0] not in (*allowed[layer], "__version__"):
            yield at(module, node, f"{layer} imports {name}")


def test_agents_import_nothing_of_the_server() -> None:
    assert findings(agents_apart, AGENTS) == []


def test_the_sdk_and_the_command_line_stand_alone() -> None:
    assert findings(client_alone, PACKAGE) == []


def test_an_import_of_the_server_is_found() -> None:
    text = "from iotjobs.domain.jobs import Job\nimport iotjobs.store"

    assert len(list(agents_apart(snippet(text, "agents/posix/agent.py")))) == 2
    assert len(list(client_alone(snippet(text, "iotjobs/cli/commands.py")))) == 2
    assert list(client_alone(snippet("from iotjobs.client import Client", "iotjobs/cli/commands.py"))) == []

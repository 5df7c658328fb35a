"""`docs/reference/` names everything that the code offers, and nothing else.

Each page keeps its words in tables, one word in backticks in a row's first cell, below the heading
that says which words they are.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from iotjobs.domain import errors
from iotjobs.domain.statuses import TRANSITIONS, Outcome, Status
from tests.architecture.source import DOCS, PACKAGE, modules

ROW = re.compile(r"^\|\s*`([^`]+)`\s*\|(.*)\|\s*$")


def section(page: str, heading: str) -> str:
    """The text below a heading (of any level) of `docs/reference/<page>.md`, up to the next one."""
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/{page}.md has no heading {heading!r}"
    return found.group(1)


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows: the word in the first cell, and the other cells."""
    found = (ROW.match(line) for line in text.splitlines())
    return {match[1]: [cell.strip() for cell in match[2].split(" | ")] for match in found if match}


def words(page: str) -> set[str]:
    """Every first cell of a page's tables, whatever the heading."""
    return set(rows((DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")))


def below(base: type[Any]) -> Iterator[type[Any]]:
    for child in base.__subclasses__():
        yield child
        yield from below(child)


def test_every_status_is_described_with_what_may_follow() -> None:
    documented = {
        word: set(re.findall(r"`([A-Z]+)`", cells[-1]))
        for word, cells in rows(section("statuses", "Statuses")).items()
    }

    assert documented == {str(status): set(map(str, next_)) for status, next_ in TRANSITIONS.items()}
    assert set(documented) == set(map(str, Status))


def test_every_outcome_is_described() -> None:
    assert set(rows(section("statuses", "Outcomes"))) == set(map(str, Outcome))


def test_every_request_error_is_described_with_its_http_status() -> None:
    documented = {
        (code, int(cells[0])) for code, cells in rows(section("errors", "Refused requests")).items()
    }

    importlib.import_module("iotjobs.inputs.problems")  # it has two of its own
    known = (errors.RequestError, *below(errors.RequestError))
    assert documented == {(kind.code, kind.status) for kind in known}


def test_every_delivery_error_is_described_with_what_it_allows() -> None:
    documented = {
        code: cells[:2] for code, cells in rows(section("errors", "Deliveries that failed")).items()
    }

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    assert documented == {
        kind.code: [yes(kind.retryable), yes(kind.maybe_executed)] for kind in below(errors.DeliveryError)
    }


# Where the code says how a job ended, other than by an error of its own class.
CODE = re.compile(r'(?:error_code=|OperationFailed\(\s*|^\w+_CODE = |^NOT_CONFIRMED = )"(\w+)"', re.MULTILINE)


def test_every_other_end_of_a_job_is_described() -> None:
    said = {code for module in modules(PACKAGE) for code in CODE.findall(module.text)}

    # What no shell can carry is told by the code of a refused request.
    assert set(rows(section("errors", "Other ends of a job"))) == said | {errors.BadRequest.code}
    assert len(said) > 15


def environment_names(model: Any, prefix: str = "", delimiter: str = "__") -> set[str]:
    """The variables that a pydantic-settings class reads, those of nested groups included."""
    config = model.model_config
    prefix = config.get("env_prefix", "") or prefix
    delimiter = config.get("env_nested_delimiter") or delimiter
    names: set[str] = set()
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name}".upper()
        if isinstance(field.validation_alias, str):
            variable = field.validation_alias.upper()
        if hasattr(field.annotation, "model_fields"):
            names |= environment_names(field.annotation, f"{variable}{delimiter}", delimiter)
        else:
            names.add(variable)
    return names


def test_every_setting_is_described() -> None:
    settings = importlib.import_module("iotjobs.settings").Settings

    assert words("settings") == environment_names(settings)


def calls_of(openapi: dict[str, Any]) -> set[str]:
    methods = {"get", "put", "post", "patch", "delete"}
    return {
        f"{method.upper()} {path}"
        for path, item in openapi["paths"].items()
        for method in item
        if method in methods
    }


def test_every_rest_call_is_described() -> None:
    openapi = json.loads((DOCS / "reference" / "openapi.json").read_text(encoding="utf-8"))

    assert words("rest") == calls_of(openapi)


def commands_of(command: Any, name: str) -> Iterator[str]:
    """`iotjobs jobs list` and its like: the leaves of a Click command tree, hidden ones left out."""
    children = getattr(command, "commands", {})
    if not children:
        yield name
    for child in children.values():
        if not child.hidden:
            yield from commands_of(child, f"{name} {child.name}")


def test_every_command_is_described() -> None:
    typer = importlib.import_module("typer")
    main = importlib.import_module("iotjobs.__main__")
    [app] = [value for value in vars(main).values() if isinstance(value, typer.Typer)]

    assert words("cli") == set(commands_of(typer.main.get_command(app), "iotjobs"))


@pytest.mark.parametrize("line", ["| `PENDING` | waits | `RUNNING` |", "|`PENDING`| waits | `RUNNING`|"])
def test_a_row_is_read(line: str) -> None:
    assert rows(f"| status | meaning | next |\n|---|---|---|\n{line}\n") == {
        "PENDING": ["waits", "`RUNNING`"]
    }


def test_a_nested_command_and_a_nested_setting_are_named_in_full() -> None:
    import typer
    from pydantic import BaseModel, Field
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Mqtt(BaseModel):
        url: str = ""

    class Sample(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="IOTJOBS_", env_nested_delimiter="__")
        mqtt: Mqtt = Mqtt()
        port: int = 1
        broker: str = Field("", validation_alias="IOTJOBS_BROKER_URL")

    app, jobs = typer.Typer(), typer.Typer()
    jobs.command("list")(lambda: None)
    jobs.command("show")(lambda: None)
    app.add_typer(jobs, name="jobs")

    assert environment_names(Sample) == {"IOTJOBS_MQTT__URL", "IOTJOBS_PORT", "IOTJOBS_BROKER_URL"}
    assert set(commands_of(typer.main.get_command(app), "iotjobs")) == {
        "iotjobs jobs list",
        "iotjobs jobs show",
    }

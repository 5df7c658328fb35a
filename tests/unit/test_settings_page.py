from __future__ import annotations

from typing import Any

from iotjobs.settings import Settings
from tests.architecture.source import DOCS


def shown(field: Any) -> str:
    """A default as the page has it."""
    if field.default_factory is not None or field.default is None:
        return "none"
    return str(field.default).lower() if isinstance(field.default, bool) else f"`{field.default}`"


def test_the_page_has_each_setting_with_its_default_and_meaning() -> None:
    lines = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8").splitlines()
    rows = [
        f"| `IOTJOBS_{name.upper()}` | {name} | {shown(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]

    assert [line for line in lines if line.startswith("| `")] == rows

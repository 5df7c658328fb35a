"""Writes `docs/reference/openapi.json` and the table of `docs/reference/rest.md` from the application.

Run as `make openapi`; the test beside it holds the files equal to what this writes.
"""

from __future__ import annotations

import json
from typing import Any, cast

from iotjobs.inputs.rest.api import build_api, describe
from iotjobs.inputs.rest.services import ApiServices
from tests.architecture.source import DOCS

FILE = DOCS / "reference" / "openapi.json"
PAGE = DOCS / "reference" / "rest.md"
BEGIN, END = "<!-- calls: made by `make openapi` -->\n", "<!-- end of calls -->\n"


def document() -> dict[str, Any]:
    """The application's description of itself; its parts are not needed for that."""
    nothing = cast("Any", None)
    return describe(build_api(ApiServices(store=nothing, secrets=nothing, authenticator=nothing)))


def text_of(described: dict[str, Any]) -> str:
    return json.dumps(described, indent=1, sort_keys=True) + "\n"


def table_of(described: dict[str, Any]) -> str:
    rows = ["| call | meaning |", "|---|---|"]
    for path, item in described["paths"].items():
        for method, operation in item.items():
            meaning = (
                operation.get("description", operation["summary"]).partition("\n")[0].replace("|", "\\|")
            )
            rows.append(f"| `{method.upper()} {path}` | {meaning} |")
    return "\n".join(rows) + "\n"


def with_table(page: str, table: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


if __name__ == "__main__":
    described = document()
    FILE.write_text(text_of(described), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table_of(described)), encoding="utf-8")

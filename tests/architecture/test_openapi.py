from __future__ import annotations

from tests.architecture import openapi


def test_the_committed_description_is_the_applications_own() -> None:
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text_of(openapi.document()), (
        "run: make openapi"
    )


def test_the_page_lists_the_applications_calls() -> None:
    page = openapi.PAGE.read_text(encoding="utf-8")

    assert page == openapi.with_table(page, openapi.table_of(openapi.document())), "run: make openapi"


def test_every_call_says_what_it_answers() -> None:
    for path, item in openapi.document()["paths"].items():
        for method, operation in item.items():
            assert operation.get("description"), f"{method} {path} has no docstring"
            for status, answer in operation["responses"].items():
                answered = answer.get("content", {}).get("application/json")
                if answered is not None:
                    assert "$ref" in answered["schema"], f"{method} {path} {status} has no shape of its own"

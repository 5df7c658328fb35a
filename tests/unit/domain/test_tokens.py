from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.tokens import ExpressionError, strange_word, tokens


def test_a_text_is_taken_apart_to_its_end() -> None:
    found = tokens('a.b >= 1.5 // more\n && "x y" in c')
    assert [(token.kind, token.text) for token in found] == [
        ("name", "a"),
        ("sign", "."),
        ("name", "b"),
        ("sign", ">="),
        ("number", "1.5"),
        ("sign", "&&"),
        ("text", '"x y"'),
        ("name", "in"),
        ("name", "c"),
        ("end", ""),
    ]
    assert [token.end for token in found[:3]] == [1, 2, 3]


@given(st.text(max_size=40))
def test_any_text_is_taken_apart_or_refused_with_the_place(text: str) -> None:
    try:
        found = tokens(text)
    except ExpressionError as refused:
        place = refused.position
    else:
        place = 0
        assert all(text[token.start : token.end] == token.text for token in found)
    assert 0 <= place <= len(text)


@pytest.mark.parametrize(
    ("text", "said"), [("and", "write && for and"), ("NOT", "write ! for NOT"), ("x", None)]
)
def test_words_of_other_languages_are_known(text: str, said: str | None) -> None:
    found = strange_word(*tokens(text))
    assert (None if found is None else found[0]) == said
    assert strange_word(*tokens(f'"{text}"')) is None

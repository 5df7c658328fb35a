from __future__ import annotations

from iotjobs.store.accounts import hash_password, password_matches


def test_a_password_is_kept_as_argon2id() -> None:
    encoded = hash_password("correct horse")

    assert encoded.startswith("$argon2id$")
    assert password_matches(encoded, "correct horse")
    assert not password_matches(encoded, "correct horsf")


def test_without_a_hash_no_password_matches() -> None:
    assert not password_matches(None, "")
    assert not password_matches("no hash at all", "x")

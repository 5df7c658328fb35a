from __future__ import annotations

from argon2 import PasswordHasher

from iotjobs.store.accounts import hash_password


def test_a_password_is_kept_as_argon2id() -> None:
    encoded = hash_password("correct horse")

    assert encoded.startswith("$argon2id$")
    assert PasswordHasher().verify(encoded, "correct horse")

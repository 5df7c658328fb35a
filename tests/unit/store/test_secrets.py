from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from iotjobs.domain.errors import ConfigurationError
from iotjobs.store.secrets import Secrets, SecretUnreadable, load_or_make_key

SECRETS = Secrets(b"k" * 32)


def test_what_was_sealed_opens_in_its_place_only() -> None:
    sealed = SECRETS.seal(b"hidden", "credential:1")

    assert SECRETS.open(sealed, "credential:1") == b"hidden"
    assert b"hidden" not in sealed
    assert sealed != SECRETS.seal(b"hidden", "credential:1")
    with pytest.raises(SecretUnreadable):
        SECRETS.open(sealed, "credential:2")
    with pytest.raises(SecretUnreadable):
        Secrets(b"x" * 32).open(sealed, "credential:1")


def test_every_changed_byte_is_noticed() -> None:
    sealed = SECRETS.seal(b"hidden", "c")

    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SecretUnreadable):
            SECRETS.open(bytes(changed), "c")
    for length in range(len(sealed)):
        with pytest.raises(SecretUnreadable):
            SECRETS.open(sealed[:length], "c")


def test_the_key_is_in_no_repr() -> None:
    assert "kkk" not in repr(SECRETS)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="31 bytes"):
        Secrets(b"k" * 31)


def test_a_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"

    key = load_or_make_key(path, may_make=True)

    assert load_or_make_key(path, may_make=True) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert base64.b64decode(path.read_text()) == key
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_missing_key_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="openssl rand -base64 32"):
        load_or_make_key(tmp_path / "key", may_make=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_make_key(path, may_make=True)
    path.chmod(mode)

    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_or_make_key(path, may_make=True)


@pytest.mark.parametrize("content", ["", "short", "é" * 20, base64.b64encode(b"k" * 31).decode(), "k" * 5000])
def test_a_file_that_holds_no_key_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(ConfigurationError, match="32 bytes"):
        load_or_make_key(path, may_make=True)
    assert path.read_text() == content


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigurationError):
        load_or_make_key(tmp_path, may_make=True)


def test_a_key_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_or_make_key(tmp_path / "missing" / "key", may_make=True)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iotjobs.store import permissions
from iotjobs.store.permissions import make_private


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as a careless copy leaves it."""
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(0o755)
    for name in ("iotjobs.db", "iotjobs.db-wal", "iotjobs.db-shm", "secret.key", "worker"):
        (directory / name).touch()
        (directory / name).chmod(0o644)
    return directory


def test_the_database_and_its_directory_become_ours_alone(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_private(data)

    assert mode(data) == 0o700
    assert {mode(path) for path in data.glob("iotjobs.db*")} == {0o600}
    told = [(record.path, record.was) for record in caplog.records]  # type: ignore[attr-defined]
    assert len(told) == 4
    assert told[-1] == (str(data), "0755")
    assert mode(data / "secret.key") == 0o644  # refused with its own words a moment later

    caplog.clear()
    make_private(data)
    assert caplog.records == []


def test_a_directory_that_is_shared_is_told_and_left(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "photos").mkdir()

    make_private(data)

    assert mode(data) == 0o755
    assert mode(data / "iotjobs.db") == 0o600
    assert "holds more than ours" in caplog.records[-1].message


def test_what_is_not_ours_or_points_elsewhere_is_left(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = data.parent / "elsewhere"
    elsewhere.touch()
    elsewhere.chmod(0o644)
    (data / "iotjobs.db").unlink()
    (data / "iotjobs.db").symlink_to(elsewhere)

    make_private(data)
    assert mode(elsewhere) == 0o644

    (data / "iotjobs.db-wal").chmod(0o644)
    data.chmod(0o755)
    monkeypatch.setattr(permissions, "geteuid", lambda: os.geteuid() + 1)
    make_private(data)
    assert (mode(data), mode(data / "iotjobs.db-wal")) == (0o755, 0o644)


def test_an_empty_directory_that_somebody_else_made_for_us(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    make_private(tmp_path)

    assert mode(tmp_path) == 0o700

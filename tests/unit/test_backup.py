from __future__ import annotations

from pathlib import Path

import pytest

from iotjobs import backup
from iotjobs.backup import InTheWay, conninfo
from iotjobs.domain.errors import ConfigurationError, StoreUnavailable
from iotjobs.store.session import postgres_url

PASSFILE = Path("/p")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://ann:secret@db:5433/site?sslmode=require",
            "host='db' port='5433' user='ann' dbname='site' sslmode='require'",
        ),
        ("postgresql://ann@/it's?host=/run/pg", r"host='/run/pg' user='ann' dbname='it\'s'"),
        ("postgresql://ann:p%5Cw@h/a%5Cb", r"host='h' user='ann' dbname='a\\b'"),
    ],
)
def test_a_url_is_told_to_libpq_without_its_password(url: str, expected: str) -> None:
    said = conninfo(postgres_url(url), PASSFILE)

    assert said == f"{expected} passfile='/p' application_name='iotjobs backup'"
    assert "secret" not in said


def test_a_program_that_is_missing_or_fails_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres_url("postgresql://u:p@127.0.0.1:1/x")
    monkeypatch.setattr(backup.shutil, "which", lambda _: None)
    with pytest.raises(ConfigurationError, match="apt-get install postgresql-client"):
        backup._run("pg_dump", url)
    monkeypatch.setattr(backup.shutil, "which", lambda _: "/bin/false")
    with pytest.raises(StoreUnavailable, match="pg_dump failed"):
        backup._run("pg_dump", url)


def test_a_file_is_there_when_it_is_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "site.backup"
    with pytest.raises(FileNotFoundError), backup._new_file(file) as partial:
        (partial.parent / "another").read_text()
    assert list(tmp_path.iterdir()) == []
    with backup._new_file(file) as partial:
        partial.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    with pytest.raises(InTheWay), backup._new_file(file):
        pass
    with pytest.raises(ConfigurationError, match="no directory"), backup._new_file(tmp_path / "x" / "y"):
        pass
    assert list(tmp_path.iterdir()) == [file]

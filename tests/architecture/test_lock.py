from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.source import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def pinned(lock: str) -> dict[str, str]:
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==([\w.!+]+)", lock, re.M)
    }


def unhashed(lock: str) -> list[str]:
    return [
        entry
        for entry in re.findall(r"^[\w.-]+==.*?(?=^\S|\Z)", lock, re.M | re.S)
        if "--hash=sha256:" not in entry
    ]


def unsatisfied(requirements: list[str], lock: str) -> list[str]:
    versions = pinned(lock)
    return [
        line
        for line in requirements
        if (wanted := Requirement(line))
        and not wanted.specifier.contains(versions.get(canonicalize_name(wanted.name), "0"))
    ]


def test_the_lock_pins_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]

    assert unsatisfied(project["dependencies"] + extras, LOCK) == []


def test_the_lock_has_a_hash_for_everything_and_no_index_address() -> None:
    assert unhashed(LOCK) == []
    assert "://" not in LOCK
    assert "index-url" not in LOCK


def test_a_stale_or_bare_pin_is_found() -> None:
    lock = "alpha==1.0 \\\n    --hash=sha256:00\nbeta_x==2.0\n    # via alpha\n"

    assert pinned(lock) == {"alpha": "1.0", "beta-x": "2.0"}
    assert unsatisfied(["alpha>=1.1", "beta-x>=2", "gamma>=1"], lock) == ["alpha>=1.1", "gamma>=1"]
    assert len(unhashed(lock)) == 1

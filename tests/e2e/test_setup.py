"""What `make setup` must not touch."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

from tests.architecture.source import ROOT


async def test_the_environment_of_another_checkout_is_left_as_it_is(tmp_path: Path) -> None:
    checkout, other = tmp_path / "checkout", tmp_path / "other"
    (checkout / "deploy").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "setup.sh", checkout / "deploy")
    (other / "bin").mkdir(parents=True)
    (other / "pyvenv.cfg").write_text(f"command = python -m venv {other}\n")
    (checkout / ".venv").symlink_to(other)

    command = ["sh", str(checkout / "deploy" / "setup.sh")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "belongs to another checkout" in done.stderr
    assert sorted(path.name for path in other.iterdir()) == ["bin", "pyvenv.cfg"]

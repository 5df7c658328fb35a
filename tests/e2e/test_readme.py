"""The README's first run as a stranger types it, with a device of the machine's own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from iotjobs_sim.sshd import SshServer

from tests.architecture.source import ROOT
from tests.services.site import ADMIN_TOKEN, Rest, StartServe


def commands(heading: str) -> list[str]:
    """What stands behind the prompts below a heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [command for block in blocks for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


async def test_the_first_run_works_as_it_is_written(
    make_serve: StartServe, openssh: SshServer, tmp_path: Path
) -> None:
    serve = make_serve()
    await serve.start()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text(openssh.client_key)
    start, *typed = commands("The first run")
    assert start.startswith(".venv/bin/iotjobs serve --data ./data\n")
    assert len(typed) >= 8
    script = "".join(typed)
    for written, here in {
        "http://127.0.0.1:8000": serve.url,
        "IOTJOBS_TOKEN=1-…": f"IOTJOBS_TOKEN={ADMIN_TOKEN}",
        '"username": "root"': f'"username": {json.dumps(openssh.username)}',
        '"host": "10.0.0.57"': f'"host": "{openssh.host}", "port": {openssh.port}',
        "ssh-ed25519 AAAA…": openssh.host_keys[0],
        "systemctl restart": "echo restarting",
        ".venv/bin/iotjobs": f"{sys.executable} -m iotjobs",
    }.items():
        assert script.count(written) == 1, written
        script = script.replace(written, here)
    assert "…" not in script

    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    async with Rest(serve) as rest:
        [job] = await rest.all_jobs()
    assert (job["outcome"], job["description"]["stdout"]) == ("succeeded", "restarting nginx\n")

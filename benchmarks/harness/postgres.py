"""A PostgreSQL of the benchmark's own, with its usual durability, for as long as a benchmark runs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.harness.server import cpu_s, free_port

START_WITHIN_S = 30.0
USER = "postgres"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Its URL without the database's name; ended by its own process id.

    Raises:
        RuntimeError: it is not installed, or did not start.
    """
    programs = {name: _program(name) for name in ("initdb", "postgres")}
    folder.mkdir(mode=0o755, parents=True)
    as_owner: list[str] = []
    if os.geteuid() == 0:
        owner = pwd.getpwnam(USER)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    data, port = folder / "data", free_port()
    made = [*as_owner, programs["initdb"], "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8"]
    subprocess.run(
        [*made, "--locale=C.UTF-8", "--no-instructions"], check=True, capture_output=True, cwd=folder
    )
    command = [*as_owner, programs["postgres"], "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
    command += [f"--unix_socket_directories={folder}", "--max_connections=200"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, data)
        yield f"postgresql://{USER}@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def postgres_cpu_s(folder: Path) -> float:
    """Seconds of processor time that the server's living processes used so far."""
    server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    used = 0.0
    for pid in (server, *map(int, children)):
        with suppress(FileNotFoundError):
            used += cpu_s(pid)
    return used


def _program(name: str) -> str:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise RuntimeError(f"{name} is not installed: apt-get install postgresql")
    return found


def _wait(process: subprocess.Popen[bytes], data: Path) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            if (data / "postmaster.pid").read_text().split()[-1:] == ["ready"]:
                return
        time.sleep(0.05)
    raise RuntimeError("PostgreSQL did not start")

"""`make demo` as a stranger runs it: what it prints, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from iotjobs_sim import demo, demo_server
from iotjobs_sim.demo_jobs import Promise

from tests.architecture.source import ROOT
from tests.services.programs import require_program

JOBS = 13
COLUMNS = 120


@pytest.fixture(autouse=True)
def _programs() -> None:
    require_program("mosquitto", package="mosquitto")
    require_program("sshd", package="openssh-server")


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, with its temporary files below the folder."""
    paths = os.pathsep.join([str(ROOT / "agents" / "sim"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", "iotjobs_sim.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": paths, "COLUMNS": str(COLUMNS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints up to the line with these words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} never came in:\n{''.join(lines)}")


def left_of(folder: Path) -> list[str]:
    """Files of the demo, and processes that name its folder in their arguments or environment."""
    found = [path.name for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            said = (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
            if str(folder).encode() in said:
                found.append(said.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_the_demo_runs_through_once_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "--once") as process:
        said, _ = process.communicate(timeout=55)

    assert process.returncode == 0, said
    assert f"{JOBS} jobs: 11 succeeded, 1 failed, 1 timed_out. All of it as it was told." in said
    assert said.count("✓") == 19
    assert "✗" not in said
    assert "\x1b" not in said
    assert "gw-5, hall $(id -un), bottling, for admin" in said
    assert "not ended after 1 s; its processes were killed and are gone" in said
    assert 'result by valve-1: {"blinked": 3' in said
    assert 'result by admin: {"note": "filter changed"' in said
    assert "working -> alarm at temperature = 86" in said
    assert "working -> alarm at temperature = 70, 1 firing, nothing sent" in said
    assert "working -> alarm: temperature > 80 (temperature = 86); too hot" in said
    assert re.search(r"cool it: fired, entered alarm\n +job [0-9a-f]{32}: succeeded\n", said)
    assert "call somebody: hold canceled, left alarm for working before its time" in said
    assert '"listenerName": "cool it"' in said
    assert said.count(", the whole record:\n{\n") == 3
    assert [line for line in said.splitlines() if len(line) > COLUMNS] == []
    assert "Ctrl-C" not in said
    assert left_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_demo_stays_up_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as process:
        said = read_until(process, "docs/tutorial/first-ten-minutes.md")
        assert "export IOTJOBS_URL=http://127.0.0.1:" in said
        assert "export IOTJOBS_TOKEN=1-" in said
        assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=25)

    assert process.returncode == 0
    assert left_of(tmp_path) == []


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    tutorial = (ROOT / "docs" / "tutorial" / "first-ten-minutes.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^```text\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    (tmp_path / "bin").mkdir()
    (tmp_path / "files").mkdir()
    iotjobs = tmp_path / "bin" / "iotjobs"
    iotjobs.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iotjobs "$@"\n')
    iotjobs.chmod(0o755)

    with running(tmp_path / "files") as process:
        said = read_until(process, "docs/tutorial/first-ten-minutes.md")
        given = re.findall(r"export (IOTJOBS_\w+)=(\S+)", said)
        done = subprocess.run(
            ["bash", "-c", "\n".join(commands)],
            cwd=ROOT,
            env={
                **os.environ,
                **dict(given),
                "PATH": f"{iotjobs.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    lines = [" ".join(line.split()) for line in (said + done.stdout + done.stderr).splitlines()]
    # The first text is the demo's, with another run's processes in it; an … stands for what differs.
    told = [" ".join(line.split()) for text in shown[1:] for line in text.splitlines()]
    patterns = [re.compile(".*".join(map(re.escape, line.split("…")))) for line in told]
    assert len(commands) > 10
    assert len(told) > 20
    assert [one.pattern for one in patterns if not any(map(one.match, lines))] == [], done


@pytest.mark.parametrize("words", ["starting the server", "a script that fails"])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, words: str) -> None:
    with running(tmp_path, "--once") as process:
        read_until(process, words)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=25)

    assert process.returncode == 130, said
    assert left_of(tmp_path) == []


def test_a_demo_without_its_programs_names_the_cure(mocker, capsys) -> None:
    mocker.patch.object(demo_server.shutil, "which", return_value=None)

    assert demo.run(once=True) == 2
    said = capsys.readouterr().err
    assert "Mosquitto" in said
    assert "sshd" in said
    assert "make setup" in said


def test_a_job_that_came_out_otherwise_is_found() -> None:
    job = {
        "label": "report on gw-1",
        "cause": "user",
        "status": "FINISHED",
        "outcome": "succeeded",
        "description": {"exitCode": 0, "stdout": "fine\nmore\n", "stderr": ""},
        "error": None,
        "results": [{"by": "u1", "payload": {"a": 1}}],
    }
    names = {"u1": "admin"}
    told = Promise("report on gw-1", text="fine", result=("admin", {"a": 1}))

    assert list(told.broken_by(job, names)) == []
    for name, value, what in [
        ("outcome", "lost", "outcome"),
        ("status", "RUNNING", "status"),
        ("label", "another", "label"),
        ("cause", "trigger", "cause"),
        ("description", {"exitCode": 1, "stdout": "fine", "stderr": ""}, "exit code"),
        ("description", {"exitCode": 0, "stdout": "not fine", "stderr": ""}, "text"),
        ("description", None, "exit code"),
        ("error", {"code": "exitCode", "message": "no"}, "error"),
        ("results", [], "result"),
        ("results", [{"by": "u2", "payload": {"a": 1}}], "result"),
    ]:
        assert next(told.broken_by({**job, name: value}, names)).startswith(what)

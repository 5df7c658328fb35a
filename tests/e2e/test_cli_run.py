"""`iotjobs run` against a real `iotjobs serve`, both as a person starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.architecture.source import ROOT
from tests.services.programs import free_port

TOKEN = "1-" + "c" * 40
SCRIPT = 'echo "hello $1"; echo "second line"; exit "$2"'


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IOTJOBS_")}
    return {**kept, "PYTHONPATH": str(ROOT), **given}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `data` is its directory."""

    process: subprocess.Popen[str]
    url: str
    data: Path

    def iotjobs(self, *arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        return subprocess.run(
            [sys.executable, "-m", "iotjobs", *arguments],
            cwd=self.data.parent,
            env=environment(**{"IOTJOBS_URL": self.url, "IOTJOBS_TOKEN": TOKEN, **given}),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )


def start(folder: Path) -> Server:
    """Start a server and wait for its first words."""
    data = folder / "data"
    command = [sys.executable, "-m", "iotjobs", "serve", "--data", str(data), "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--mqtt-port", str(free_port())],
            cwd=folder,
            env=environment(IOTJOBS_ADMIN_TOKEN=TOKEN, IOTJOBS_ALLOW_LOCAL="true", IOTJOBS_STOP_GRACE_S="0"),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["API"]:
            return Server(process, line.split()[1].removesuffix("/api/v1"), data)
    raise AssertionError((folder / "log").read_text())


def define(server: Server) -> None:
    """Objects with operations that run on this host; `busy` is for what takes long, and holds its lane."""
    with httpx2.Client(
        base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
    ) as rest:
        for name in ("press-057", "press-058", "busy"):
            made = rest.post("/objects", json={"name": name})
            assert made.status_code == 201, made.text
            greeting = {"text": SCRIPT, "args": ["{{args.who}}", "{{args.code}}"]}
            if name == "press-058":
                greeting["args"][1] = "3"
            for operation, parameters in (("greet", greeting), ("sleep", {"text": "exec sleep 20"})):
                body = {"name": operation, "type": "script", "via": "local", "parameters": parameters}
                added = rest.post(f"/objects/{made.json()['id']}/operations", json=body)
                assert added.status_code == 201, added.text
        objects = {item["name"]: item["id"] for item in rest.get("/objects").json()["items"]}
        link = rest.post(
            "/links", json={"name": "line", "source": objects["press-057"], "target": objects["press-058"]}
        ).json()
        both = {"text": 'echo "$1 to $2"', "args": ["{{source.name}}", "{{target.name}}"]}
        tell = {"topic": "line/{{name}}", "message": {"zone": 1, "a": "on"}}
        for path, body in (
            (f"/links/{link['id']}", {"name": "greet", "type": "script", "via": "local", "parameters": both}),
            (f"/objects/{objects['press-057']}", {"name": "tell", "type": "mqtt", "parameters": tell}),
        ):
            added = rest.post(f"{path}/operations", json=body)
            assert added.status_code == 201, added.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(tmp_path_factory.mktemp("serve"))
    try:
        define(running)
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)
        assert running.process.stdout is not None
        running.process.stdout.close()


def greet(server: Server, *objects: str, code: str = "0") -> subprocess.CompletedProcess[str]:
    return server.iotjobs("run", "greet", *objects, "--wait", "--arg", "who=you", "--arg", f"code={code}")


def test_a_job_that_succeeds(server: Server) -> None:
    done = greet(server, "press-057")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "greet on press-057\tsucceeded\t0\thello you\n"


def test_a_job_that_fails(server: Server) -> None:
    done = greet(server, "press-057", code="4")

    assert done.returncode == 1
    assert done.stdout == "greet on press-057\tfailed\t4\thello you\n"


def test_two_objects_and_one_of_them_fails(server: Server) -> None:
    done = greet(server, "press-057", "press-058")

    assert done.returncode == 8
    assert sorted(done.stdout.splitlines()) == [
        "greet on press-057\tsucceeded\t0\thello you",
        "greet on press-058\tfailed\t3\thello you",
    ]


def test_a_links_operation(server: Server) -> None:
    done = server.iotjobs("run", "greet", "line", "--wait")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "greet on line\tsucceeded\t0\tpress-057 to press-058\n"


def test_a_message_is_told_with_its_topic(server: Server) -> None:
    done = server.iotjobs("run", "tell", "press-057", "--wait")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 'tell on press-057\tsucceeded\t-\tline/press-057 {"zone":1,"a":"on"}\n'


def test_a_job_that_goes_on_is_left_alone(server: Server) -> None:
    waited = server.iotjobs("run", "sleep", "busy", "--wait", "--timeout", "0.5")
    assert waited.returncode == 7
    assert "it goes on" in waited.stderr

    with httpx2.Client(
        base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
    ) as rest:
        job_id = waited.stderr.split()[-1]
        assert rest.get(f"/jobs/{job_id}").json()["status"] in ("PENDING", "RUNNING")


def test_a_repeat_with_the_same_key_is_the_same_job(server: Server) -> None:
    arguments = ["run", "greet", "press-058", "--arg", "who=you", "--arg", "code=0", "--json"]
    first, second = (server.iotjobs(*arguments, "--idempotency-key", "once") for _ in range(2))
    other = server.iotjobs(*arguments, "--idempotency-key", "once", "--ask", "why=more")

    assert json.loads(first.stdout)[0]["id"] == json.loads(second.stdout)[0]["id"]
    assert (first.returncode, second.returncode, other.returncode) == (0, 0, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["greet", "press-999"], 3, "there is no object or link press-999"),
        (["reboot", "press-057"], 3, "it has: greet, sleep, tell"),
        (["greet", "press-057"], 2, "args"),
    ],
)
def test_what_cannot_be_run_is_said(server: Server, arguments: list[str], code: int, said: str) -> None:
    done = server.iotjobs("run", *arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_wrong_token(server: Server) -> None:
    assert server.iotjobs("run", "greet", "press-057", IOTJOBS_TOKEN="1-wrong").returncode == 4


def test_a_drained_site_begins_nothing_until_it_is_opened(server: Server) -> None:
    drained = server.iotjobs("drain", "--wait", "--timeout", "20")
    assert (drained.returncode, drained.stdout) == (0, ""), drained.stderr
    assert "nothing runs any more" in drained.stderr
    waits = server.iotjobs(
        "run", "greet", "press-057", "--arg", "who=w", "--arg", "code=0", "--wait", "--timeout", "1"
    )
    assert waits.returncode == 7
    assert server.iotjobs("undrain").returncode == 0
    done = greet(server, "press-057")
    assert done.returncode == 0
    assert server.iotjobs("drain", "--timeout", "1").returncode == 2
    assert server.iotjobs("undrain", IOTJOBS_TOKEN="1-wrong").returncode == 4


def test_a_second_server_on_the_same_data(server: Server) -> None:
    second = server.iotjobs("serve", "--data", str(server.data), "--port", "0")

    assert second.returncode == 5
    assert str(server.process.pid) in second.stderr


def test_a_setting_that_is_wrong_keeps_the_server_from_starting(server: Server) -> None:
    wrong = server.iotjobs("serve", "--data", str(server.data), "--port", "70000")

    assert wrong.returncode == 2
    assert "port" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_doctor_knows_a_server_that_runs(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    done = server.iotjobs("doctor", "--data", str(server.data), IOTJOBS_PORT=port)

    assert done.returncode == 0, done.stdout
    assert f"an iotjobs server answers at 127.0.0.1:{port}: ready" in done.stdout
    assert "MQTT port" not in done.stdout


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    server = start(tmp_path)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert server.process.stdout is not None
    server.process.stdout.close()

    assert server.iotjobs("run", "greet", "press-057").returncode == 6

"""The demo's server: `iotjobs serve` as a child, in a folder of its own and on free loopback ports."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from iotjobs_sim.demo_api import Api, ApiError

_ELSEWHERE = "/usr/sbin:/sbin:/usr/local/sbin"
_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 15.0
_PAUSE_S = 0.05
_LOG_TAIL = 15


class ServerError(RuntimeError):
    """The server did not come up, or ended."""


def missing() -> list[str]:
    """What the demo needs and this machine lacks, in words; empty when all is there."""
    needed = {
        "mosquitto": "Mosquitto (the MQTT broker)",
        "sshd": "OpenSSH's sshd",
        "ssh-keygen": "ssh-keygen",
    }
    lacking = [
        words
        for program, words in needed.items()
        if shutil.which(program) is None and shutil.which(program, path=_ELSEWHERE) is None
    ]
    if importlib.util.find_spec("iotjobs") is None:
        lacking.append(f"iotjobs itself (for {sys.executable})")
    return lacking


class Server:
    """The child process. `start` once, then `wait_ready`; `stop` in any case."""

    def __init__(self, folder: Path) -> None:
        self.token = f"1-{secrets.token_hex(20)}"
        self._folder = folder
        self._port, self._mqtt_port = _free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the process; does not wait until it serves."""
        self._folder.mkdir()
        configuration = self._folder / "iotjobs.toml"
        configuration.touch()  # or one in the working directory would count
        command = [sys.executable, "-m", "iotjobs", "serve", "--data", str(self._folder / "data")]
        command += ["--port", str(self._port), "--mqtt-port", str(self._mqtt_port)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IOTJOBS_")}
        environment |= {
            "IOTJOBS_CONFIG": str(configuration),
            "IOTJOBS_ADMIN_TOKEN": self.token,
            "IOTJOBS_STOP_GRACE_S": "3",
        }
        with (self._folder / "log").open("wb") as log:
            # A session of its own: Ctrl-C is for us, and we end it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self, api: Api) -> None:
        """Wait until it is ready, broker included.

        Raises:
            ServerError: it ended, or did not come up; with the end of its log.
        """
        assert self._process is not None
        until, said = time.monotonic() + _READY_WITHIN_S, "no answer"
        while time.monotonic() < until:
            if (code := self._process.poll()) is not None:
                raise ServerError(f"the server ended with exit code {code}:\n{self.log_tail()}")
            try:
                answer = api.get("//readyz")
                if answer["status"] == "ready":
                    return
                said = str(answer)
            except ApiError as error:
                said = str(error)
            time.sleep(_PAUSE_S)
        raise ServerError(f"the server is not ready after {_READY_WITHIN_S:g} s ({said}):\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that it logged."""
        text = (self._folder / "log").read_text(errors="replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-_LOG_TAIL:])

    def wait(self) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> int:
        """End it, at last by force; its exit code. Safe before `start` and twice."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that were free a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

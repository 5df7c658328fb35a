"""A Mosquitto that lets everybody in, on loopback, for as long as a benchmark runs."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.server import free_port

_START_WITHIN_S = 10.0


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """Its port; ended by its own process id.

    Raises:
        RuntimeError: it is not installed, or did not start.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("mosquitto is not installed: apt-get install mosquitto")
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "log_type error"]
    lines += ["max_queued_messages 0", "set_tcp_nodelay true"]
    config = folder / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    with subprocess.Popen([program, "-c", str(config)]) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError("mosquitto did not start") from None
            time.sleep(0.02)
        else:
            return

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

_ELSEWHERE = "/usr/sbin:/sbin:/usr/local/sbin"


def require_program(name: str, *, package: str) -> str:
    """The full path of a program, or the end of the test with the line that installs it."""
    found = shutil.which(name) or shutil.which(name, path=_ELSEWHERE)
    if found is None:
        newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(newest[-1]) if newest else None
    if found is None:
        missing(f"{name} is not installed: apt-get install {package} (or make setup)")
    return found


def missing(reason: str) -> NoReturn:
    """Skip at a desk; fail where `CI` is set."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago on a loopback address."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


async def steady(measure: Callable[[], int], *, within_s: float) -> int:
    """A figure above 0 once it has stopped to change: the same twice, a fifth of a second apart."""
    last, deadline = -1, time.monotonic() + within_s
    while (now := measure()) != last or now <= 0:
        assert time.monotonic() < deadline, f"still changing, at {now}"
        last = now
        await asyncio.sleep(0.2)
    return last

"""The lock of a data directory: one process serves it, or makes it anew."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from iotjobs.domain.errors import ConfigurationError


class AlreadyRunning(ConfigurationError):
    """Another process holds the data directory."""


def take_lock(path: Path) -> int:
    """Hold the data directory for this process; the lock ends with it, however it ends.

    Raises:
        AlreadyRunning: names the process that holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise AlreadyRunning(f"{path.parent} is served by process {holder}: stop it first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor

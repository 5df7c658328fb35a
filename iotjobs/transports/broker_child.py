"""The mosquitto child process: begins, ends with its parent, and what it says goes to our log."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from iotjobs.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_END_WAIT_S = 10.0  # to save a large store
_READ_BYTES = 65_536
_ELSEWHERE = "/usr/sbin:/usr/local/sbin:/sbin"

# Looked up before any fork: a child of a process with threads must not import or load.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _tied_to(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec."""

    def prepare() -> None:
        # TERM and not KILL: it saves its store first.
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # died before the line above
            os._exit(1)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return prepare


def find_mosquitto() -> str | None:
    """The installed program's path, or None; Debian puts it where a user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_ELSEWHERE)


class BrokerChild:
    """One run of mosquitto. Make it in the main thread, within the running loop.

    Args:
        program: path of mosquitto.
        configuration: its configuration file.
        keep_open: a descriptor that the child inherits, or None.

    Raises:
        ConfigurationError: the program cannot be run.
    """

    def __init__(self, program: str, configuration: Path, *, keep_open: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            # A session of its own: Ctrl-C at the terminal is for us, the broker ends when we have drained.
            self._process = subprocess.Popen(
                [program, "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C", "PATH": os.defpath},
                pass_fds=() if keep_open is None else (keep_open,),
                start_new_session=True,
                preexec_fn=_tied_to(os.getpid()),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError(f"{program} cannot be started: {error}") from error
        self._said: deque[str] = deque(maxlen=5)
        self._line = b""
        self._ended = asyncio.Event()
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._stderr.fileno(), self._read)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    @property
    def last_words(self) -> str:
        """The last lines it wrote."""
        return "; ".join(self._said) or "it said nothing"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it is gone."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; its exit status, negative for a signal."""
        await self._ended.wait()
        return self._process.returncode

    async def end(self) -> int:
        """TERM, and KILL when it does not end; its exit status."""
        self._process.terminate()
        try:
            async with asyncio.timeout(_END_WAIT_S):
                return await self.ended()
        except TimeoutError:
            log.error("mosquitto does not end and is killed", extra={"pid": self.pid})
            self._process.kill()
            return await self.ended()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._read()
        if not self._stderr.closed:
            self._loop.remove_reader(self._stderr.fileno())
            self._stderr.close()
        self._ended.set()

    def _read(self) -> None:
        if self._stderr.closed:
            return
        try:
            data = os.read(self._stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr.fileno())
            return
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_READ_BYTES:]
        for line in lines:
            said = line.decode(errors="replace")
            self._said.append(said)
            log.info("mosquitto says", extra={"line": said})

"""The seam between the engine and a device: what a transport is asked, what it answers.

A command transport (`ssh`, `local`) runs one `CommandRequest` at a time per call and keeps nothing
between calls but connections. It never decides what an end means for a job: it returns what
it saw, or raises a `DeliveryError` that says whether the command may have run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar


class Stream(StrEnum):
    """Which of the two outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """What to run: rendered, with its secrets resolved. Lives only in memory.

    Exactly one of `script` and `argv` is given.

    Attributes:
        nonce: letters and digits, unique for each attempt; marks every process of the run.
        script: script text for `interpreter`; for `raw` it is the exec request itself.
        interpreter: `sh bash python3 perl node`, or `raw`.
        argv: program and its arguments; the arguments of a script are in `args`.
        args: arguments of a script (`$1` …).
        env: environment of the run, `IOTJOBS_JOB_ID` and the macro values included.
        cwd: directory on the device to run in, or None.
        run_as: user on the device to run as, or None.
    """

    nonce: str
    script: str | None = None
    interpreter: str = "sh"
    argv: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    run_as: str | None = None


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """How the command ended, as the device told it.

    Attributes:
        exit_code: 0 to 255; for a death by signal 128 + its number, as shells report it.
        signal: name without `SIG` (`KILL`), or None.
        whole: all that it wrote has come; False where it was cut off behind the end.
    """

    exit_code: int
    signal: str | None = None
    whole: bool = True


def _no_matter(_end: CommandEnd) -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class CommandHooks:
    """What the engine wants to be told while a command runs; each is awaited, in order.

    Attributes:
        before_send: awaited right before the first byte of the command leaves, and again where
            that was held up after it; raises to stop it.
        started: the device told the run's process id and process group (0 = no group of its own).
        output: bytes of one stream in their order; awaiting it is the back-pressure.
        exited: called at the end of the run, also of a cancelled one, if the device told its exit.
    """

    before_send: Callable[[], Awaitable[None]]
    started: Callable[[int, int], Awaitable[None]]
    output: Callable[[Stream, bytes], Awaitable[None]]
    exited: Callable[[CommandEnd], None] = _no_matter


class Gone(StrEnum):
    """What a kill could prove."""

    GONE = "gone"  # no process with the run's marker, group or session is left
    LEFT = "left"  # some are left, also after KILL
    UNCONFIRMED = "unconfirmed"  # the device could not be asked


@dataclass(frozen=True, slots=True)
class KillProof:
    """The answer to a kill.

    Attributes:
        verdict: what is proven.
        detail: one sentence for the record (pids left, or why nobody could be asked).
        found: processes of the run were there, so this is the device that it ran on.
    """

    verdict: Gone
    detail: str
    found: bool = False


Target = TypeVar("Target", contravariant=True)


class CommandTransport(Protocol[Target]):
    """Runs commands on devices. Safe for concurrent use."""

    async def run(self, target: Target, request: CommandRequest, hooks: CommandHooks) -> CommandEnd:
        """Run to the end; has no deadline of its own but those of connecting.

        Cancelling the call closes the channel and leaves the device's processes alone: call
        `kill` afterwards.

        Raises:
            DeviceUnreachable: nothing of the command left (`maybe_executed` is False).
            CredentialsRefused, HostKeyUnknown, HostKeyChanged: nothing was sent.
            LinkLost: cut, or no exit status came; it may have run.
            BadAnswer: the far side broke its protocol.
        """

    async def kill(self, target: Target, nonce: str, group: int, kill_after_s: float) -> KillProof:
        """TERM everything of the run, KILL after `kill_after_s`, and look whether it is gone.

        Never raises a `DeliveryError`: a device that cannot be asked is `UNCONFIRMED`.
        """

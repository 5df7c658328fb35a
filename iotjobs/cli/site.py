"""`iotjobs drain` and `iotjobs undrain`: let the site begin nothing, or everything again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from iotjobs.cli import exitcodes, printing, running
from iotjobs.cli.commands import CaFile, Token, Url, app
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.client.errors import ClientError
from iotjobs.client.http import Client


@app.command()
def drain(
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing runs any more.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait no longer; it stays drained.", min=0.001)
    ] = None,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Begin no more jobs. Before an upgrade: what runs goes on to its end, what comes waits."""
    if timeout is not None and not wait:
        raise typer.BadParameter("it is the time to --wait, which is not given", param_hint="--timeout")
    raise typer.Exit(_switch(url, token, ca_file, is_open=False, wait_s=_patience(timeout) if wait else None))


@app.command()
def undrain(*, url: Url = "http://127.0.0.1:8000", token: Token = None, ca_file: CaFile = None) -> None:
    """Let jobs begin again."""
    raise typer.Exit(_switch(url, token, ca_file, is_open=True, wait_s=None))


def _patience(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout


def _switch(url: str, token: str | None, ca_file: Path | None, *, is_open: bool, wait_s: float | None) -> int:
    try:
        with Client(url, token, ca_file=ca_file) as client:
            job_id = client.dispatch(is_open=is_open)
            printing.say("the site is open" if is_open else f"the site is drained, job {job_id}")
            if wait_s is None:
                return ExitCode.OK
            [answer] = running.follow(client, [client.job(job_id)], time.monotonic() + wait_s)
            if answer.result is None:
                assert answer.error is not None
                raise answer.error
            job = answer.result
            if job.ended:
                printing.say(
                    "nothing runs any more" if job.outcome == "succeeded" else f"not ended: {job.said}"
                )
            else:
                printing.say("jobs still run; the site stays drained")
            return exitcodes.of_job(job)
    except (ClientError, ValueError) as error:
        printing.complain(error)
        return exitcodes.of_error(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED

"""`iotjobs job cancel`, `stop`, `resume` and `retry`: one request for each job, in the order given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iotjobs.cli import exitcodes, printing, running
from iotjobs.cli.commands import CaFile, Token, Url, app, pairs
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.client.errors import ClientError
from iotjobs.client.http import Client
from iotjobs.client.shapes import Job

jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Cancel, stop, resume or retry jobs.")
app.add_typer(jobs, name="job")

Ids = Annotated[list[str], typer.Argument(metavar="JOB", help="Ids or numbers of jobs.")]


@jobs.command()
def cancel(
    job: Ids,
    *,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """End jobs. What runs on devices is killed, and the record says what could be confirmed."""
    _each(job, (url, token, ca_file), lambda client, id_: client.ask(id_, "cancel", {"reason": reason}))


@jobs.command()
def stop(
    job: Ids, *, url: Url = "http://127.0.0.1:8000", token: Token = None, ca_file: CaFile = None
) -> None:
    """Set jobs aside until they are resumed. What runs on devices is killed."""
    _each(job, (url, token, ca_file), lambda client, id_: client.ask(id_, "stop", {}))


@jobs.command()
def resume(
    job: Ids,
    *,
    confirm: Annotated[bool, typer.Option("--confirm", help="Run anew also what has run before.")] = False,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Let stopped jobs run anew, from their beginning."""
    body = {"confirm": confirm}
    _each(job, (url, token, ca_file), lambda client, id_: client.ask(id_, "resume", body, repeat=False))


@jobs.command()
def retry(
    job: Ids,
    *,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A secret argument, which was erased.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A repeat with the same key gets the same jobs.")
    ] = None,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Run ended jobs again. Each is a new job of the operation as it is now."""
    body, key = {"args": pairs("--arg", arg)}, idempotency_key or running.fresh_key()
    _each(job, (url, token, ca_file), lambda client, id_: client.ask(id_, "retry", body, key=key))


def _each(
    ids: list[str], server: tuple[str, str | None, Path | None], ask: Callable[[Client, str], Job]
) -> None:
    """Ask for each job and print what became of it; what one is refused does not hold up the others."""
    url, token, ca_file = server
    codes: list[ExitCode] = []
    try:
        with Client(url, token, ca_file=ca_file) as client:
            for job_id in dict.fromkeys(ids):
                try:
                    printing.put_started(ask(client, job_id))
                    codes.append(ExitCode.OK)
                except ClientError as error:
                    printing.complain(error, about=job_id)
                    codes.append(exitcodes.of_error(error))
    except ValueError as error:
        printing.complain(error)
        codes.append(exitcodes.of_error(error))
    except KeyboardInterrupt:
        codes.append(ExitCode.INTERRUPTED)
    raise typer.Exit(exitcodes.together(codes))

"""The whole command line: the client's commands, and those that are the server.

Server modules are imported within their command: `iotjobs run` must not wait for a web framework.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iotjobs.cli import control, explain, printing, site, trigger
from iotjobs.cli.commands import app
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.domain.errors import IotJobsError

if TYPE_CHECKING:
    from iotjobs.settings import Settings

__all__ = ["app", "control", "explain", "site", "trigger"]  # their commands join the app by being imported

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Directory of the database and the keys, else ./data."),
]


File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


def _end(error: IotJobsError) -> typer.Exit:
    """Say why a command of the server could not do it; the exit that follows."""
    from iotjobs.backup import InTheWay
    from iotjobs.domain.errors import StorageFull, StoreBroken, StoreUnavailable
    from iotjobs.store.lock import AlreadyRunning

    printing.say(f"iotjobs: {error}")
    match error:
        case AlreadyRunning() | InTheWay():
            return typer.Exit(ExitCode.CONFLICT)
        case StoreBroken():
            return typer.Exit(ExitCode.BROKEN)
        case StoreUnavailable() | StorageFull():
            return typer.Exit(ExitCode.UNREACHABLE)
        case _:
            return typer.Exit(ExitCode.USAGE)


@app.command()
def serve(
    *,
    data: Data = None,
    host: Annotated[
        str | None, typer.Option(help="Address that the HTTP server binds, else 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Its port, else 8000; 0 takes a free one.")] = None,
    mqtt_port: Annotated[int | None, typer.Option(help="Port of our own broker, else 1883.")] = None,
) -> None:
    """Start the server. HTTP, workers and, when mosquitto is installed, a broker."""
    from iotjobs.serving import run_server

    _run(run_server, data_dir=data, host=host, port=port, mqtt_port=mqtt_port)


@app.command()
def worker(*, data: Data = None) -> None:
    """Run jobs of a site on PostgreSQL, without HTTP. Beside any number of others."""
    from iotjobs.serving import run_worker

    _run(run_worker, data_dir=data)


def _run(main: Callable[[Settings], None], **given: Any) -> None:
    """Load the settings and run, with an exit code for what goes wrong."""
    from iotjobs import settings
    from iotjobs.domain.errors import EngineError

    try:
        main(settings.load(**given))
    except EngineError as error:
        raise _end(error) from error


@app.command()
def backup(
    file: File,
    *,
    data: Data = None,
    with_key: Annotated[
        bool, typer.Option("--with-key", help="Also copy the key that opens its secrets, to FILE.key.")
    ] = False,
) -> None:
    """Write the site into a new file. The server may run meanwhile."""
    from iotjobs import settings
    from iotjobs.backup import back_up

    try:
        for line in back_up(settings.load(data_dir=data), file, with_key=with_key):
            printing.say(line)
    except IotJobsError as error:
        raise _end(error) from error


@app.command()
def restore(
    file: File,
    *,
    data: Data = None,
    moved: Annotated[
        bool,
        typer.Option(
            "--moved",
            help="The old site was stopped before the backup and has not run since: what waited goes on.",
        ),
    ] = False,
) -> None:
    """Make a site of a backup. Into a directory without a database, or an empty PostgreSQL database."""
    from iotjobs import settings
    from iotjobs.backup import restore as restore_site

    try:
        for line in restore_site(settings.load(data_dir=data), file, moved=moved):
            printing.say(line)
    except IotJobsError as error:
        raise _end(error) from error


@app.command()
def doctor(*, data: Data = None) -> None:
    """Check host, settings, database and broker. Says what to do about what is wrong."""
    from iotjobs.doctor import run as look_at_everything

    raise typer.Exit(look_at_everything(data))

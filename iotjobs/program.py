"""The whole command line: the client's commands, and those that are the server.

Server modules are imported within their command: `iotjobs run` must not wait for a web framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iotjobs.cli import printing, site
from iotjobs.cli.commands import app
from iotjobs.cli.exitcodes import ExitCode

__all__ = ["app", "site"]  # the site's commands join the app by being imported

Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Directory of the database and the keys.")
]


@app.command()
def serve(
    *,
    data: Data = None,
    host: Annotated[str | None, typer.Option(help="Address that the HTTP server binds.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
    mqtt_port: Annotated[int | None, typer.Option(help="Port of our own broker.")] = None,
) -> None:
    """Start the server: HTTP, workers and, when mosquitto is installed, a broker."""
    from iotjobs import settings
    from iotjobs.app import AlreadyRunning
    from iotjobs.domain.errors import EngineError, StoreUnavailable
    from iotjobs.serving import run_server

    try:
        run_server(settings.load(data_dir=data, host=host, port=port, mqtt_port=mqtt_port))
    except EngineError as error:
        printing.say(f"iotjobs: {error}")
        match error:
            case AlreadyRunning():
                code = ExitCode.CONFLICT
            case StoreUnavailable():
                code = ExitCode.UNREACHABLE
            case _:
                code = ExitCode.USAGE
        raise typer.Exit(code) from error


@app.command()
def doctor(*, data: Data = None) -> None:
    """Check this host, the settings, the database and the broker; say what to do about what is wrong."""
    from iotjobs.doctor import run as look_at_everything

    raise typer.Exit(look_at_everything(data))

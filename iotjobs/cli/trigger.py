"""`iotjobs trigger ls`, `reset`, `pause` and `resume`: what the loop guard stopped, and the switch for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iotjobs.cli import exitcodes, printing
from iotjobs.cli.commands import CaFile, Token, Url, app
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.client.errors import ClientError
from iotjobs.client.http import Client

triggers = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, reset, pause or resume triggers.",
)
app.add_typer(triggers, name="trigger")


@triggers.command("ls")
def list_triggers(
    *,
    broken: Annotated[bool, typer.Option("--broken", help="Only those that the loop guard stopped.")] = False,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """List all triggers. A line each: id, name, whose it is, its states, and since when it is stopped."""

    def tell(client: Client) -> list[ExitCode]:
        for one in client.all_triggers(broken=broken or None):
            owner, states = f"{one['owner_kind']} {one['owner_id']}", ", ".join(one["states"])
            cells = (one["id"], one["name"], owner, states, one["broken_at"] or "-")
            typer.echo("\t".join(map(printing.visible, cells)))
        return []

    raise typer.Exit(_asked((url, token, ca_file), tell))


@triggers.command()
def reset(
    trigger: Annotated[list[str], typer.Argument(metavar="TRIGGER", help="Ids of triggers.")],
    *,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Let triggers fire again that the loop guard stopped. Mend what made the loop first."""

    def each(client: Client) -> list[ExitCode]:
        codes = []
        for trigger_id in dict.fromkeys(trigger):
            try:
                printing.say(f"{client.reset_trigger(trigger_id)['name']} may fire again")
                codes.append(ExitCode.OK)
            except ClientError as error:
                printing.complain(error, about=trigger_id)
                codes.append(exitcodes.of_error(error))
        return codes

    raise typer.Exit(_asked((url, token, ca_file), each))


@triggers.command()
def pause(*, url: Url = "http://127.0.0.1:8000", token: Token = None, ca_file: CaFile = None) -> None:
    """Pause all triggers of the site. Nothing starts by a change of state then; what runs goes on."""
    raise typer.Exit(_asked((url, token, ca_file), lambda client: _switch(client, paused=True)))


@triggers.command()
def resume(*, url: Url = "http://127.0.0.1:8000", token: Token = None, ca_file: CaFile = None) -> None:
    """Let the triggers of the site fire again. Changes of state meanwhile are not made up for."""
    raise typer.Exit(_asked((url, token, ca_file), lambda client: _switch(client, paused=False)))


def _switch(client: Client, *, paused: bool) -> list[ExitCode]:
    client.pause_triggers(paused=paused)
    printing.say("all triggers are paused" if paused else "triggers may fire again")
    return []


def _asked(
    server: tuple[str, str | None, Path | None], ask: Callable[[Client], list[ExitCode]]
) -> ExitCode | int:
    url, token, ca_file = server
    try:
        with Client(url, token, ca_file=ca_file) as client:
            return exitcodes.together(ask(client) or [ExitCode.OK])
    except (ClientError, ValueError) as error:
        printing.complain(error)
        return exitcodes.of_error(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED

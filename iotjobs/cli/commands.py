"""The commands that talk to a server. Each is a thin shell: parse, call, print, exit code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from iotjobs import __version__
from iotjobs.cli import exitcodes, printing, running
from iotjobs.cli.report import Report
from iotjobs.client.errors import ClientError
from iotjobs.client.http import Client

_CODES = "\n".join(f"{code:>5}  {meaning}" for code, meaning in exitcodes.MEANING.items())

app = typer.Typer(
    name="iotjobs",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option(envvar="IOTJOBS_URL", help="The server.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="IOTJOBS_TOKEN", help="Your token. As an option others can see it in ps."),
]
CaFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificates to believe instead of the system's.")
]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"iotjobs {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Runs operations on fleets of devices, and records what came of every one."""


@app.command(epilog=f"Exit codes:\n\n\b\n{_CODES}")
def run(
    operation: Annotated[str, typer.Argument(metavar="OPERATION", help="Name or id of the operation.")],
    targets: Annotated[
        list[str], typer.Argument(metavar="OBJECT", help="Names or ids of objects, or of links.")
    ],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the ends and tell them.")] = False,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A value of {{args.NAME}}.")
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A value of {{ask.NAME}}.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait no longer; the jobs go on.", min=0.001)
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A repeat with the same key gets the same jobs.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job records as one JSON list at the end.")
    ] = False,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Run an operation on objects or links. One job for each, all started at once."""
    if timeout is not None and not wait:
        raise typer.BadParameter("it is the time to --wait, which is not given", param_hint="--timeout")
    body = {"args": pairs("--arg", arg), "ask": pairs("--ask", ask)}
    _check_text(operation, *targets, *(arg or ()), *(ask or ()), idempotency_key or "")
    request = running.Request(
        body, wait_s=timeout if wait else 0.0, key=idempotency_key or running.fresh_key()
    )
    report = Report(waits=wait, as_json=as_json)
    try:
        with Client(url, token, ca_file=ca_file) as client:
            _carry_out(client, running.find_orders(client, operation, targets), request, report)
    except (ClientError, ValueError) as error:
        printing.complain(error)
        report.codes.append(exitcodes.of_error(error))
    except KeyboardInterrupt:
        report.interrupted()
    raise typer.Exit(report.end())


def _carry_out(
    client: Client, orders: Sequence[running.Order], request: running.Request, report: Report
) -> None:
    until = None if request.wait_s is None else time.monotonic() + request.wait_s
    report.orders = orders
    for started in running.start(client, orders, request):
        if started.result is not None:
            report.started(started.asked, started.result)
        elif started.error is not None:
            report.not_started(started.asked, started.error, request.key)
    if report.waits:
        for asked in running.follow(client, report.going(), until):
            report.followed(asked.asked, asked.result, asked.error)


def _check_text(*given: str) -> None:
    for text in given:
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise typer.BadParameter(f"{printing.visible(text)} is not text in UTF-8")


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping."""
    values: dict[str, str] = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter("say NAME=VALUE", param_hint=option)
        if name in values:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        values[name] = value
    return values

"""`iotjobs explain`: in plain words, in which state an entity is and what its triggers made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from iotjobs.cli import exitcodes, printing, running
from iotjobs.cli.commands import CaFile, Token, Url, app
from iotjobs.client.errors import ClientError, NotFound
from iotjobs.client.http import Client
from iotjobs.client.shapes import Named

_CHANGES = 10


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="OBJECT", help="Name or id of an object, or of a link.")],
    *,
    changes: Annotated[
        int, typer.Option(help="How many changes of state to tell.", min=1, max=100)
    ] = _CHANGES,
    url: Url = "http://127.0.0.1:8000",
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Tell why an operation did or did not run by itself.

    Shows the state and its reason, what each trigger decided at the latest changes, and what came of its jobs.
    """
    try:
        with Client(url, token, ca_file=ca_file) as client:
            for line in _told(client, running.find_owner(client, target), changes):
                typer.echo(printing.visible(line))
    except (ClientError, ValueError) as error:
        printing.complain(error)
        raise typer.Exit(exitcodes.of_error(error)) from error


def _told(client: Client, entity: Named, count: int) -> Iterator[str]:
    state = client.state(entity)
    before = _because({**state["why"], "problems": ()})  # what has no value now is told below
    yield f"{entity.name} is {state['state']} since {state['since']}: {before}"
    yield from _now(state["state"], before, state["now"])
    heard = state["heard_at"]
    yield f"  {state['reports']} reports, the last {heard}" if heard else "  never heard of"
    if state["superseded"]:
        yield f"  {state['superseded']} messages came quicker than allowed: only the last values counted"
    yield from _unheeded(state)
    if client.site()["triggers"] == "paused":
        yield "  all triggers of the site are paused now: nothing starts by itself"
    triggers = client.triggers(entity)
    yield f"  {len(triggers)} triggers" + (":" if triggers else ": nothing starts by itself")
    for trigger in triggers:
        yield f"    {trigger['name']}: {_rule(trigger)}"
    for change in client.state_changes(entity, count):
        yield ""
        yield f"{change['at']}  {change['from']} -> {change['to']}: {_because(change['why'])}"
        traces = client.traces(change["id"])
        if triggers and not traces:  # it is older than traces are kept, or they are younger
            yield "    what triggers decided then is not on record"
        for trace in reversed(traces):
            job_id = trace["job_id"]
            job = f", job {job_id}: {_became_of(client, job_id)}" if job_id else ""
            yield f"    {trace['trigger_name']}: {trace['decision']}, {trace['reason']}{job}"


def _unheeded(state: dict[str, Any]) -> Iterator[str]:
    """What of its messages had no effect of its own."""
    if state["repeated"]:
        yield f"  {state['repeated']} messages came again, and had their effect once"
    if state["refused"]:
        last = state["last_refusal"]
        yield (
            f"  {state['refused']} messages were refused, the last at {last['at']} on {last['topic']}: {last['why']}"
        )


def _became_of(client: Client, job_id: str) -> str:
    """What came of a job that a trigger started: whether it ran, and why not."""
    try:
        job = client.job(job_id)
    except NotFound:
        return "its record is not there any more"
    error = job.record.get("error")
    why = "" if error is None else f", {error['code']}: {error['message']}"
    return f"{job.outcome or job.status}{why}"


def _now(state: str, before: str, now: dict[str, Any]) -> Iterator[str]:
    """What is decided now, where that is another thing than at the last change; and what cannot be judged."""
    because = _because(now["why"])
    if now["state"] != state:
        yield f"  now it has to be {now['state']}, and has not been looked at yet: {because}"
    elif because != before:
        yield f"  now: {because}"
    for one in now["waiting"]:
        yield f"  {_to_come(one)}"
    for one in now["problems"]:
        yield f"  has no value: {one['when']}: {one['problem']}"


def _to_come(waiting: dict[str, Any]) -> str:
    """A condition that is true and does not count yet."""
    state, when = waiting["state"], waiting["when"]
    if waiting["waits_for"] == "hold":
        return f"{state} is to come: {when}, true since {waiting['since']}, counts from {waiting['counts_at']} on"
    if waiting["counts_at"] is None:
        return f"{state} never comes: {when}, true now, is outside its period"
    return f"{state} is to come: {when}, true now, counts in its period, from {waiting['counts_at']} on"


def _because(why: dict[str, Any]) -> str:
    """The reason of a state, as a half sentence."""
    match why.get("by"):
        case "condition":
            values = ", ".join(f"{name} = {_short(value)}" for name, value in why["values"].items())
            said = f"{why['when']}" + (f" ({values})" if values else "")
            return f"{said}; {why['description']}" if why.get("description") else said
        case "forced":
            until = f" until {why['until']}" if why.get("until") else ""
            return f"forced{until}: {why['reason']}"
        case "no_data":
            return f"no report for {why['no_data_after_s']:g} s"
        case "offline":
            return "the broker told that its connection ended"
        case "default":
            problems = [f"{one['when']}: {one['problem']}" for one in why.get("problems", ())]
            return "; ".join(["no condition holds", *problems])
    return "nothing has happened to it yet"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _rule(trigger: dict[str, Any]) -> str:
    parts = [f"on {', '.join(trigger['states'])}"]
    for name, said in (
        ("hold_s", "after {:g} s"),
        ("repeat_s", "again each {:g} s"),
        ("cooldown_s", "not within {:g} s"),
        ("max_per_hour", "{:g} times an hour at most"),
    ):
        if trigger[name]:
            parts.append(said.format(trigger[name]))
    if not trigger["enabled"]:
        parts.append("switched off")
    if trigger["dry"]:
        parts.append("only tries")
    if trigger["broken_at"]:
        parts.append(f"stopped by the loop guard at {trigger['broken_at']}, until it is reset")
    return ", ".join(parts)

"""`iotjobs explain`: in plain words, in which state an entity is and what its triggers made of it.

Each part of the page is a function that yields its lines. What happened is told in the order of its moments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from iotjobs.cli import exitcodes, printing, running
from iotjobs.cli.commands import CaFile, Token, Url, app
from iotjobs.client.errors import ClientError
from iotjobs.client.http import Client
from iotjobs.client.shapes import Job, Named

_CHANGES = 10
_TRACES = 500  # of one change, the newest
_JOBS = 2000  # so far back it is looked for what came of a firing
_NOT_ITS = "not_in_states"
_SHORT = 60  # characters of a value
_PENDING = {
    "lane": "until another job of the device has ended",
    "queue": "for a place in its queue",
    "offline": "for the device to be online",
    "window": "for its window to open",
    "approval": "for approval",
    "start_at": "for its moment",
    "retry": "for its next try",
    "drained": "for the site, which is drained",
}


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
    state, operations = client.state(entity), client.operations(entity)
    yield from _state(entity, state)
    yield from _heard(entity, state)
    yield from _unheeded(state)
    yield from _site(client.site())
    triggers = client.triggers(entity)
    yield from _what_starts(triggers, operations)
    yield from _what_happened(client, entity, count, decided=bool(triggers))


# --- now ----------------------------------------------------------------------------------------


def _state(entity: Named, state: dict[str, Any]) -> Iterator[str]:
    """The state, why it was entered, and what is decided now, where that is another thing; what cannot be judged."""
    now = state["now"]
    before = _because({**state["why"], "problems": ()})  # what has no value now is told below
    yield f"{entity.name} is {state['state']} since {state['since']}: {before}"
    because = _because(now["why"])
    if now["state"] != state["state"]:
        yield f"  now it has to be {now['state']}, and has not been looked at yet: {because}"
    elif because != before:
        yield f"  now: {because}"
    for one in now["waiting"]:
        yield f"  {_to_come(one)}"
    for one in now["problems"]:
        yield f"  has no value: {one['when']}: {one['problem']}"


def _heard(entity: Named, state: dict[str, Any]) -> Iterator[str]:
    """What it said, or for a link its ends."""
    heard, reports = state["heard_at"], _count(state["reports"], "report")
    if entity.folder == "links":
        ends = f"an end was last heard of at {heard}" if heard else "no end was heard of yet"
        yield f"  {reports} of its own; {ends}"
    else:
        yield f"  {reports}, last heard of at {heard}" if heard else "  never heard of"
    if state["superseded"]:
        messages = _count(state["superseded"], "message")
        yield f"  {messages} came quicker than allowed: only the last values counted"


def _unheeded(state: dict[str, Any]) -> Iterator[str]:
    """What of its messages had no effect of its own."""
    if state["repeated"]:
        yield f"  {_count(state['repeated'], 'message')} came again, and had their effect once"
    if state["refused"]:
        last = state["last_refusal"]
        refused = (
            f"{_count(state['refused'], 'message')} {'was' if state['refused'] == 1 else 'were'} refused"
        )
        yield f"  {refused}, the last at {last['at']} on {last['topic']}: {last['why']}"


def _site(site: dict[str, Any]) -> Iterator[str]:
    """What holds everything up."""
    if site["triggers"] == "paused":
        yield (
            f"  all triggers of the site are paused{_by(site.get('paused'))}: none starts anything"
            " until `iotjobs trigger resume`"
        )
    if site["dispatch"] == "drained":
        yield f"  the site is drained{_by(site.get('drained'))}: no job begins until `iotjobs undrain`"


def _by(switched: dict[str, Any] | None) -> str:
    return "" if switched is None else f" by {_who(switched['by'])} since {switched['since']}"


def _what_starts(triggers: Sequence[dict[str, Any]], operations: Sequence[Named]) -> Iterator[str]:
    """Its triggers, and the operations that run when properties are written."""
    names = {one.id: one.name for one in operations}
    on_write = [one.name for one in operations if one.record.get("run_on_property_change")]
    if triggers:
        yield f"  {_count(len(triggers), 'trigger')}:"
    else:
        yield "  no triggers" + ("" if on_write else ": nothing starts by itself")
    for trigger in triggers:
        operation = trigger["operation_id"]
        yield f"    {trigger['name']}: runs {names.get(operation, operation)} {_rule(trigger)}; id {trigger['id']}"
        if trigger["broken_at"]:
            yield (
                f"      stopped by the loop guard at {trigger['broken_at']},"
                f" until `iotjobs trigger reset {trigger['id']}`"
            )
    if on_write:
        yield f"  when somebody writes a readwrite property it runs {', '.join(on_write)}"


def _rule(trigger: dict[str, Any]) -> str:
    parts = [f"on {', '.join(trigger['states'])}"]
    for name, said in (
        ("hold_s", "after {:g} s"),
        ("repeat_s", "again each {:g} s"),
        ("cooldown_s", "not within {:g} s"),
    ):
        if trigger[name]:
            parts.append(said.format(trigger[name]))
    if trigger["max_per_hour"]:
        parts.append(f"{_count(trigger['max_per_hour'], 'time')} an hour at most")
    if not trigger["enabled"]:
        parts.append("switched off")
    if trigger["dry"]:
        parts.append("only tries")
    return ", ".join(parts)


# --- what happened ------------------------------------------------------------------------------


def _what_happened(client: Client, entity: Named, count: int, *, decided: bool) -> Iterator[str]:
    """The last changes of state and writes of properties, with what they started; `decided`: triggers decide on each."""
    changes = client.state_changes(entity, count)
    traces = {change["id"]: client.traces(change["id"]) for change in changes}
    jobs = _Jobs(client, entity, {one["job_id"] for each in traces.values() for one in each} - {None})
    told = [
        (change["at"], _change(change, traces[change["id"]], jobs, decided=decided))
        for change in reversed(changes)
    ]
    told += [(job.record["created_at"], _write(job)) for job in reversed(jobs.of_writes(count))]
    for _, lines in sorted(told, key=lambda one: one[0]):
        yield ""
        yield from lines


class _Jobs:
    """What started by itself on an entity: the newest jobs, as far back as `wanted` ones are.

    Args:
        client: asks for them, in pages.
        entity: theirs.
        wanted: ids.
    """

    def __init__(self, client: Client, entity: Named, wanted: set[str]) -> None:
        self._jobs: dict[str, Job] = {}
        self._all = True
        for page in client.jobs_by_themselves(entity):
            self._jobs.update({job.id: job for job in page})
            self._all = len(self._jobs) < _JOBS
            if wanted <= self._jobs.keys() or not self._all:
                break

    def of_writes(self, count: int) -> list[Job]:
        """Those that a write of a property started, the newest first."""
        return [job for job in self._jobs.values() if job.record.get("cause") == "property"][:count]

    def end_of(self, job_id: str | None) -> tuple[object, ...]:
        """What came of a job, without what is different each time."""
        job = None if job_id is None else self._jobs.get(job_id)
        if job is None:
            return (job_id is None,)
        error = job.record.get("error") or {}
        return (job.status, job.outcome, job.exit_code, error.get("code"))

    def became(self, job_id: str) -> str:
        """What came of a job that a trigger started: whether it ran, and why not."""
        if job_id in self._jobs:
            return _became(self._jobs[job_id])
        if self._all:
            return "its record is not there any more, or not for you to see"
        return f"{_JOBS:,} jobs have started by themselves since"


def _change(
    change: dict[str, Any], traces: Sequence[dict[str, Any]], jobs: _Jobs, *, decided: bool
) -> Iterator[str]:
    """A change of state, and what each trigger decided about it."""
    yield f"{change['at']}  {change['from']} -> {change['to']}: {_because(change['why'])}"
    if decided and not traces:  # it is older than traces are kept, or the triggers are younger
        yield "  what triggers decided then is not on record"
    if len(traces) == _TRACES:
        yield "  what was decided before is not shown"
    for group in _folded((one for one in traces if one["decision"] != _NOT_ITS), jobs):
        first, last = group[0], group[-1]
        yield f"  {first['at']}  {first['trigger_name']}: {_decided(group)}"
        if first["job_id"]:
            which = f"job {first['job_id']}" if len(group) == 1 else f"the last one's job {last['job_id']}"
            yield f"    {which}: {jobs.became(last['job_id'])}"
    others = [one["trigger_name"] for one in reversed(traces) if one["decision"] == _NOT_ITS]
    if others:
        yield f"  not on {change['to']}: {', '.join(others)}"


def _folded(traces: Iterable[dict[str, Any]], jobs: _Jobs) -> list[list[dict[str, Any]]]:
    """Decisions in the order of their moments; repeats of a trigger that came to the same stand together."""
    groups: list[list[dict[str, Any]]] = []
    newest: dict[str, tuple[object, list[dict[str, Any]]]] = {}  # of each trigger
    for one in sorted(traces, key=lambda one: (one["at"], one["id"])):
        its = (one["repeat"] > 0, one["decision"], jobs.end_of(one["job_id"]))
        before = newest.get(one["trigger_id"])
        if one["repeat"] and before is not None and before[0] == its:
            before[1].append(one)
            continue
        groups.append([one])
        newest[one["trigger_id"]] = (its, groups[-1])
    return groups


def _decided(group: Sequence[dict[str, Any]]) -> str:
    """One decision, or several repeats that are alike, in words."""
    one, last = group[0], group[-1]
    word = one["decision"].replace("_", " ")
    if len(group) > 1:
        return f"{word}, {_count(len(group), 'repeat')}, the last at {last['at']}: {last['reason']}"
    which = f"repeat {one['repeat']}"
    told = not one["repeat"] or which in one["reason"]
    return f"{word}, {one['reason']}" if told else f"{word}, {which}: {one['reason']}"


def _write(job: Job) -> Iterator[str]:
    """A write of properties, and what it started."""
    record = job.record
    who, data = record.get("run_by"), record["data"]
    yield (
        f"{record['created_at']}  {_who(who) if who else 'somebody'} wrote {data.get('listenerName', 'a property')},"
        f" which started {data.get('actionName', job.label)}"
    )
    yield f"    job {job.id}: {_became(job)}"


def _became(job: Job) -> str:
    record = job.record
    parts = [job.outcome or job.status]
    if job.exit_code is not None:
        parts.append(f"exit code {job.exit_code}")
    if not job.ended and record.get("pending_reason"):
        parts.append(f"waits {_PENDING.get(record['pending_reason'], record['pending_reason'])}")
    error = record.get("error")
    if error and error["code"] != "exitCode":  # that is told already
        parts.append(f"{error['code']}: {error['message']}")
    return ", ".join(parts)


# --- words --------------------------------------------------------------------------------------


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
            cut = why.get("cut", ())
            values = ", ".join(
                f"{name} = {_short(value, is_cut=name in cut)}" for name, value in why["values"].items()
            )
            held = f", true for {why['hold_s']:g} s" if why.get("hold_s") else ""
            said = f"{why['when']}{held}" + (f" ({values})" if values else "")
            return f"{said}; {why['description']}" if why.get("description") else said
        case "forced":
            until = f" until {why['until']}" if why.get("until") else ""
            return f"forced by {_who(why['user'])}{until}: {why['reason']}"
        case "no_data":
            return f"no report for {why['no_data_after_s']:g} s"
        case "offline":
            return "the broker told that its connection ended"
        case "default":
            problems = [f"{one['when']}: {one['problem']}" for one in why.get("problems", ())]
            return "; ".join(["no condition holds", *problems])
    return "no change since it was made"


def _who(user: dict[str, Any] | str) -> str:
    """A login; the id where that was not kept."""
    return user if isinstance(user, str) else str(user["name"] or user["id"])


def _short(value: Any, *, is_cut: bool) -> str:
    """A value as JSON; one that was cut is the beginning of that already."""
    text = str(value) if is_cut else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"

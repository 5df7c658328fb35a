"""The jobs that the demo runs, what it says will come of each, and whether that is what came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from iotjobs_sim.demo_api import Api, ApiError
from iotjobs_sim.demo_fleet import COOLING, HEATING
from iotjobs_sim.demo_show import Screen, first_line
from iotjobs_sim.demo_site import BUS, HALLS, LIMIT, LINE, LOWER_LIMIT, Site

BLINKS = 3
PERCENT = 40
NOTE = {"note": "filter changed", "shift": 2}


@dataclass(frozen=True)
class Promise:
    """What a job has to be in the end.

    Attributes:
        text: the first line of its output, or topic and message; None if that is not known before.
        result: a custom result that it has, by whoever is named.
        error: the code of its error.
        cause: what started it.
    """

    label: str
    outcome: str = "succeeded"
    exit_code: int | None = 0
    text: str | None = None
    result: tuple[str, Mapping[str, Any]] | None = None
    error: str | None = None
    cause: str = "user"

    def broken_by(self, job: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
        """How a job differs from what was promised."""
        found = {
            "label": job["label"],
            "cause": job["cause"],
            "status": job["status"],
            "outcome": job["outcome"],
            "exit code": (job["description"] or {}).get("exitCode"),
            "error": job["error"] and job["error"]["code"],
        }
        told = {
            "label": self.label,
            "cause": self.cause,
            "status": "FINISHED",
            "outcome": self.outcome,
            "exit code": self.exit_code,
            "error": self.error,
        }
        if self.text is not None:
            found["text"], told["text"] = first_line(job), self.text
        yield from (
            f"{name}: {told[name]} was told, {found[name]} came" for name in told if told[name] != found[name]
        )
        results = [(names.get(result["by"]), result["payload"]) for result in job["results"]]
        if self.result is not None and self.result not in results:
            yield f"result: {self.result} was told, {results} came"


class Story:
    """Runs the jobs.

    Attributes:
        promises: by the id of the job.
        site: what they run on.
    """

    def __init__(self, api: Api, site: Site, screen: Screen, heat_oven: Callable[[], None]) -> None:
        self.promises: dict[str, Promise] = {}
        self._api, self.site, self._screen = api, site, screen
        self._heat_oven = heat_oven

    def run(self) -> None:
        """Everything, in order."""
        self._on_all_gateways()
        self._one_program()
        self._messages()
        self._on_the_link()
        self._failing()
        self._timing_out()
        self._by_itself()

    def broken(self, jobs: list[dict[str, Any]]) -> list[str]:
        """What is not as it was told about the jobs that the API has."""
        found = []
        if sorted(job["id"] for job in jobs) != sorted(self.promises):
            found.append(f"{len(self.promises)} jobs were started, the API lists {len(jobs)}")
        for job in jobs:
            promise = self.promises.get(job["id"], Promise("no such job"))
            found += [f"job {job['seq']}, {what}" for what in promise.broken_by(job, self.site.names)]
        return found

    def job(self, label: str) -> dict[str, Any]:
        """The first job of this label, whole."""
        job_id = next(job_id for job_id, promise in self.promises.items() if promise.label == label)
        record: dict[str, Any] = self._api.get(f"/jobs/{job_id}")
        return record

    def _start(self, name: str, owner: str, args: dict[str, Any] | None = None, **told: Any) -> str:
        operation = self.site.operation(owner, name)
        job = self._api.execute(self.site.owners[owner], operation, {"args": args or {}})
        self.promises[job["id"]] = Promise(f"{name} on {owner}", **told)
        return str(job["id"])

    def _finish(self, job_id: str, found: list[str]) -> dict[str, Any]:
        job = self._api.ended_job(job_id)
        found.append(job["outcome"] or job["status"])
        return job

    def _on_all_gateways(self) -> None:
        with self._screen.step("a script on five gateways, inherited from their class") as found:
            jobs = []
            for number, hall in enumerate(HALLS, 1):
                text = f"gw-{number}, hall {hall}, {LINE}, for admin"
                jobs.append(self._start("report", f"gw-{number}", text=text))
            outcomes = [self._api.ended_job(job_id)["outcome"] for job_id in jobs]
            found.append(f"{outcomes.count('succeeded')} of {len(jobs)} succeeded")

    def _one_program(self) -> None:
        with self._screen.step("a program on gw-1") as found:
            self._finish(self._start("kernel", "gw-1"), found)

    def _messages(self) -> None:
        with self._screen.step("a message to valve-1, which appends a result over MQTT") as found:
            told: dict[str, Any] = {"blinked": BLINKS, "battery": 87}
            text = f'iotjobs/valve-1/cmd/blink {{"blink":{BLINKS}}}'
            job_id = self._start(
                "blink", "valve-1", {"times": BLINKS}, exit_code=None, text=text, result=("valve-1", told)
            )
            self._finish(job_id, found)
            job = self._api.job_when(job_id, lambda job: bool(job["results"]))
            found.append(f"{len(job['results'])} result")
        with self._screen.step("a message to valve-2, which must answer") as found:
            text = f'iotjobs/valve-2/cmd/opening {{"percent":{PERCENT}}}'
            job_id = self._start("set-opening", "valve-2", {"percent": PERCENT}, exit_code=None, text=text)
            job = self._finish(job_id, found)
            found.append(f"answered after {job['duration']} ms")

    def _on_the_link(self) -> None:
        with self._screen.step("a script on the link between gw-1 and valve-1") as found:
            text = f"gw-1 (hall {HALLS[0]}) reaches valve-1 by {BUS}"
            self._finish(self._start("trace", "gw-1 to valve-1", text=text), found)

    def _failing(self) -> None:
        with self._screen.step("a script that fails, and a person's remark on its job") as found:
            text = "pressure is 2 bar, 4 are needed"
            told: dict[str, Any] = {"outcome": "failed", "exit_code": 3, "error": "exitCode", "text": text}
            job_id = self._start("self-test", "gw-2", result=("admin", NOTE), **told)
            self._finish(job_id, found)
            self._api.call("PATCH", f"/jobs/{job_id}/results", NOTE)

    def _timing_out(self) -> None:
        with self._screen.step("a script that never ends, with a second to do so") as found:
            told: dict[str, Any] = {"outcome": "timed_out", "exit_code": None, "error": "timeOut"}
            job = self._finish(self._start("calibrate", "gw-3", **told), found)
            pids = [word for word in first_line(job).split() if word.isdecimal()]
            if len(pids) != 2:
                raise ApiError(f"{job['label']} told no two processes: {job}")
        with self._screen.step("gw-3 asked for what that left running") as found:
            args = dict(zip(("shell", "child"), pids, strict=True))
            text = f"no such processes: {' '.join(pids)}"
            job = self._finish(self._start("look-for", "gw-3", args, text=text), found)
            found.append(first_line(job))

    def _by_itself(self) -> None:
        """Nobody starts anything here: the oven reports, and that is all."""
        owner = self.site.owners["oven-1"]
        oven = owner.rpartition("/")[2]
        with self._screen.step(f"oven-1 reports {_degrees(HEATING)}, its limit is {LIMIT}") as found:
            self._heat_oven()
            alarm = self._change(oven, "alarm")
            found.append(_change_in_words(alarm))
        with self._screen.step("a trigger starts its fan, and nobody had to look") as found:
            traces = self._api.get(f"/trigger-traces?state_change_id={alarm['id']}&decision=fired")["items"]
            text = 'iotjobs/oven-1/cmd/fan {"fan":"on"}'
            for trace in traces:
                told = Promise("fan-on on oven-1", exit_code=None, text=text, cause="trigger")
                self.promises[trace["job_id"]] = told
                job = self._finish(trace["job_id"], found)
                found.append(f"{job['waiting'] + job['duration']} ms after the report")
        with self._screen.step(f"the fan cools it, {_degrees(COOLING)}") as found:
            found.append(_change_in_words(self._change(oven, "working", after=alarm["id"])))
            self._api.value_when(f"{owner}/properties", lambda now: now.get("temperature") == COOLING[-1])
        with self._screen.step(f"the same reports replayed with a limit of {LOWER_LIMIT}, on paper") as found:
            when = f"temperature > {LOWER_LIMIT}"
            proposed = {"owner_kind": "object", "owner_id": oven, "items": [{"state": "alarm", "when": when}]}
            replay = self._api.post("/state-conditions/replay", {**proposed, "since": "1h"})
            earlier = [one for one in replay["changes"] if one["to"] == "alarm"]
            found.append(f"{_change_in_words(earlier[0])}, {replay['fired']} firing, nothing sent")

    def _change(self, entity_id: str, to: str, after: str = "") -> dict[str, Any]:
        """The first change into a state behind another change, once it is there."""

        def there(answer: dict[str, Any]) -> bool:
            return any(one["to"] == to and one["id"] > after for one in answer["items"])

        answer = self._api.value_when(f"/state-changes?entity_id={entity_id}", there)
        found: list[dict[str, Any]] = [
            one for one in answer["items"] if one["to"] == to and one["id"] > after
        ]
        if not found:
            raise ApiError(f"oven-1 did not become {to}: {answer}")
        return found[-1]


def _degrees(temperatures: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, temperatures[:-1]))} and {temperatures[-1]} degrees"


def _change_in_words(change: Mapping[str, Any]) -> str:
    values = [f"{name} = {value}" for name, value in change["why"].get("values", {}).items()]
    return " at ".join([f"{change['from']} -> {change['to']}", *values])

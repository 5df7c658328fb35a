"""A first look at iotjobs: a server, eleven pretend devices, their jobs, and what came of them.

    python -m iotjobs_sim.demo          stays up until Ctrl-C
    python -m iotjobs_sim.demo --once   ends by itself; not with 0 unless everything went as told

Everything runs on loopback, in a temporary folder that is removed at the end, and everything that
is shown comes from the REST API. Start at `_show`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from iotjobs_sim.demo_api import Api, ApiError
from iotjobs_sim.demo_fleet import Oven, Things, Valve, end_left_over, mark_children, start_gateway
from iotjobs_sim.demo_jobs import Story
from iotjobs_sim.demo_server import Server, ServerError, missing
from iotjobs_sim.demo_show import Screen
from iotjobs_sim.demo_site import HALLS, define, trust
from iotjobs_sim.sshd import CannotStartError, SshServer

OK, WRONG, LACKING, INTERRUPTED = 0, 1, 2, 130
_EXPLAINED_WITHIN_S = 20.0
WHOLE = ("report on gw-5", "set-opening on valve-2", "fan-on on oven-1")


class Interrupted(BaseException):
    """Somebody wants us to end."""


class Signals:
    """The first of SIGINT, SIGTERM and SIGHUP raises `Interrupted`, where nothing is half done; others wait."""

    def __init__(self) -> None:
        self._came, self._held = False, 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if not self._came:
            self._came = True
            if not self._held:
                raise Interrupted

    @contextmanager
    def held(self) -> Iterator[None]:
        """A part that is done whole: a child that was started is in its owner's hands after it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._came:
            raise Interrupted

    def ignore(self) -> None:
        """We are ending already."""
        self._held += 1


class Demo:
    """One run; what it starts is ended by `ending`, devices last."""

    def __init__(self, screen: Screen, signals: Signals, ending: ExitStack) -> None:
        self.screen, self._signals, self._ending = screen, signals, ending
        with signals.held():
            self._folder = Path(tempfile.mkdtemp(prefix="iotjobs-demo-"))
            ending.callback(shutil.rmtree, self._folder, ignore_errors=True)
            ending.callback(end_left_over, self._folder)
            mark_children(self._folder)
        # The server ends before its devices do, or its last jobs would be lost.
        self._gateways = ending.enter_context(ExitStack())
        self.server = Server(self._folder / "server")
        self.api = Api(self.server.url, self.server.token)
        own = Path(sys.executable).with_name("iotjobs")
        self._command = [str(own)] if own.exists() else [sys.executable, "-m", "iotjobs"]

    def start(self) -> list[SshServer]:
        """Start the server and the gateways."""
        with self.screen.step("starting the server"), self._signals.held():
            self._ending.callback(self.server.stop)
            self.server.start()
        gateways = []
        with self.screen.step("five gateways, each with a real sshd") as found:
            for number in range(1, len(HALLS) + 1):
                with self._signals.held():
                    gateways.append(start_gateway(self._folder, number))
                    self._gateways.callback(gateways[-1].stop)
            found.append(f"{gateways[0].host} to {gateways[-1].host}")
        with self.screen.step("the server is ready") as found:
            self.server.wait_ready(self.api)
            found.append(self.server.url)
        return gateways

    def prepare(self, gateways: list[SshServer]) -> Story:
        """Define the site, trust its gateways, log its valves and its oven in; what is to run on it."""
        with self.screen.step("three classes, eleven objects, a credential, a link") as found:
            site = define(self.api, gateways)
            found.append(f"{len(self.api.get('/objects')['items'])} objects")
        with self.screen.step("host keys looked at, compared with the sshds' own, trusted") as found:
            prints = {trust(site, f"gw-{number}", server) for number, server in enumerate(gateways, 1)}
            found.append(f"{len(prints)} keys, {min(prints)[:16]}…")
        with self.screen.step("the connection to gw-1 tested") as found:
            steps = self.api.post(f"{site.owners['gw-1']}/check")["steps"]
            if not all(step["ok"] for step in steps):
                raise ApiError(f"gw-1 cannot be reached: {steps}")
            found += [f"{step['name']} {step['ms']} ms" for step in steps]
        with self.screen.step("five valves and an oven log in to the broker, as enrolled") as found:
            logins = [self.api.post(f"{site.owners[f'valve-{number}']}/enrol") for number in range(1, 6)]
            oven = Oven(self.api.post(f"{site.owners['oven-1']}/enrol"))
            things = Things(*map(Valve, logins), oven)
            self._ending.callback(things.stop)
            things.start()
            found.append(logins[0]["url"])
        return Story(self.api, site, self.screen, lambda: things.call(oven.heat))

    def tell(self, story: Story) -> list[str]:
        """Show the jobs that the API has now, and why one ran by itself; what is not as it was told."""
        screen = self.screen
        for label in WHOLE:
            screen.say(f"\n{screen.bold(f'{label}, the whole record:')}")
            screen.record(story.job(label))
        jobs = self.api.get("/jobs?limit=500")["items"][::-1]
        screen.say()
        screen.table(jobs, story.site.names)
        question = "Why did the fan of oven-1 run, and why was nobody called?"
        screen.say(f"\n{screen.bold(question)} iotjobs explain oven-1\n")
        screen.say(self._explained("oven-1"))
        broken = story.broken(jobs)
        counted = Counter(job["outcome"] for job in jobs)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in counted.most_common())
        screen.say()
        if broken:
            screen.say(screen.bad(f"{len(jobs)} jobs: {counts}. Not everything is as it was told:"))
            for what in broken:
                screen.say(f"  {what}")
        else:
            screen.say(screen.good(f"{len(jobs)} jobs: {counts}. All of it as it was told."))
        return broken

    def _explained(self, name: str) -> str:
        """What the command line says about an object: it asks the API too."""
        given = {"IOTJOBS_URL": self.server.url, "IOTJOBS_TOKEN": self.server.token}
        done = subprocess.run(
            [*self._command, "explain", name],
            env=os.environ | given,
            capture_output=True,
            text=True,
            timeout=_EXPLAINED_WITHIN_S,
            check=False,
        )
        if done.returncode:
            raise ApiError(f"iotjobs explain {name}: {done.stderr}")
        return "\n".join(f"  {line}".rstrip() for line in done.stdout.splitlines())

    def invite(self) -> None:
        """What to do next, here or in another terminal."""
        screen = self.screen
        command = " ".join([_near(Path(self._command[0])), *self._command[1:]])
        screen.say(f"\nThe server stays up until Ctrl-C. {screen.bold('In another terminal:')}\n")
        screen.say(f"  export IOTJOBS_URL={self.server.url}")
        screen.say(f"  export IOTJOBS_TOKEN={self.server.token}")
        screen.say(f"  {command} run report gw-1 gw-2 gw-3 gw-4 gw-5 --wait")
        screen.say(f"  {command} run set-opening valve-3 --arg percent=75 --wait --json")
        screen.say(f"  {command} explain oven-1")
        screen.say(
            '  curl -s -H "Authorization: Bearer $IOTJOBS_TOKEN" "$IOTJOBS_URL/api/v1/jobs?outcome=failed"'
        )
        screen.say("\nThe first ten minutes from here: docs/tutorial/first-ten-minutes.md")


def _near(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _show(demo: Demo, *, once: bool) -> int:
    gateways = demo.start()
    story = demo.prepare(gateways)
    story.run()
    broken = demo.tell(story)
    if not once:
        try:
            demo.invite()  # from here on being told to end is the good end
            code = demo.server.wait()
        except Interrupted:
            demo.screen.say("\nending …")
        else:
            raise ServerError(f"the server ended by itself with exit code {code}:\n{demo.server.log_tail()}")
    return WRONG if broken else OK


def run(*, once: bool) -> int:
    """The demo from its first line to its clean end; its exit code."""
    if lacking := missing():
        print(f"The demo needs {' and '.join(lacking)}, not found here. Run: make setup", file=sys.stderr)
        return LACKING
    screen, signals = Screen(), Signals()
    with ExitStack() as ending:
        try:
            demo = Demo(screen, signals, ending)
            screen.say(screen.bold("iotjobs, on eleven pretend devices") + "\n")
            return _show(demo, once=once)
        except Interrupted:
            print("\ninterrupted: ending what was started", file=sys.stderr)
            return INTERRUPTED
        except (ApiError, ServerError, CannotStartError, TimeoutError, OSError) as error:
            print(f"\nThe demo came to an end that was not planned: {error}", file=sys.stderr)
            return WRONG
        finally:
            signals.ignore()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make demo", description="A first look at iotjobs.")
    parser.add_argument("--once", action="store_true", help="run through it once and end")
    sys.exit(run(once=parser.parse_args().once))


if __name__ == "__main__":
    main()

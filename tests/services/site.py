"""A real `iotjobs serve`: its own process, data, ports and log; and a client that speaks its JSON.

Each is ended by its own pid, also by kill -9, and may be started again on the same data.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.programs import free_port

ADMIN_TOKEN = "1-" + "a" * 40
PREFIX = "/api/v1"
START_WITHIN_S = 60.0  # ten times what it takes: other tests run beside it
STOP_WITHIN_S = 20.0
LOOK_EVERY_S = 0.02

_names = itertools.count(1)


def new_name(kind: str) -> str:
    """A name that nothing else on a shared site has."""
    return f"{kind}-{os.getpid()}-{next(_names)}"


async def eventually(look: Callable[[], Any], within_s: float = 10.0, every_s: float = LOOK_EVERY_S) -> Any:
    """What `look` gives (it may be a coroutine function), once that is true; fails after `within_s`."""
    until = time.monotonic() + within_s
    while True:
        found = look()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < until, "the awaited did not happen in time"
        await asyncio.sleep(every_s)


async def pause(seconds: float) -> None:
    """Let time pass, for a load that has a length."""
    await asyncio.sleep(seconds)


def log_has(serve: Serve, text: str) -> bool:
    """Whether the log holds a text."""
    return text in serve.log


@dataclass(slots=True)
class Serve:
    """One `iotjobs serve`, or `worker`, running or not.

    Attributes:
        folder: holds the data, the key and the log.
        first: the node of the same site that it shares the secret key with.
        command: what is started.
        database_url: None is SQLite in the data directory.
        settings: further `IOTJOBS_…` settings, by their names in lower case.
        prefix: a command that runs the server, in its own place: tracing it, or with another disk.
        variables: of the environment beside its settings.
    """

    folder: Path
    database_url: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    mqtt_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    first: Serve | None = None
    command: str = "serve"
    _told: int = 0

    def beside(self, name: str, command: str = "serve", **settings: str) -> Serve:
        """Another node on the same database, not started; who calls this ends it."""
        settings = self.settings | settings
        return Serve(
            self.folder.parent / name, self.database_url, settings, first=self.first or self, command=command
        )

    @property
    def url(self) -> str:
        """Where the HTTP server is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """What every process of it wrote to stderr so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    def environment(self) -> dict[str, str]:
        """Ours without its own IOTJOBS settings, and what this site is told."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("IOTJOBS_")}
        given = {f"IOTJOBS_{name.upper()}": value for name, value in self.settings.items()}
        given.setdefault("IOTJOBS_ADMIN_TOKEN", ADMIN_TOKEN)
        if self.database_url is not None:
            key = (self.first or self).folder / "secret.key"
            if not key.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                key.touch(mode=0o600)
                key.write_text(base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
            given |= {
                "IOTJOBS_DATABASE_URL": self.database_url,
                "IOTJOBS_SECRET_KEY_FILE": str(key),
            }
        return mine | given | self.variables

    def launch(self) -> subprocess.Popen[bytes]:
        """Start a process on this data and wait for nothing; who calls this ends it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*self.prefix, sys.executable, "-m", "iotjobs", self.command, "--data", str(self.data)]
        if self.command == "serve":
            command += ["--port", str(self.port), "--mqtt-port", str(self.mqtt_port)]
        with (self.folder / "log").open("ab") as log, (self.folder / "out").open("ab") as out:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self.environment()
            )

    def begin(self) -> None:
        """Start it and wait until it says that it is ready."""
        assert self.process is None
        out = self.folder / "out"
        self._told = out.read_text().count("worker") if out.exists() else 0
        self.process = self.launch()
        until = time.monotonic() + START_WITHIN_S
        try:
            while not self._ready():
                assert self.process.poll() is None, f"serve ended: {self.log[-3000:]}"
                assert time.monotonic() < until, f"serve is not ready: {self.log[-3000:]}"
                time.sleep(LOOK_EVERY_S)
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def wait_up(self) -> None:
        """Wait until it answers, whoever starts it again."""
        until = time.monotonic() + START_WITHIN_S
        while not self._ready() and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)

    def _ready(self) -> bool:
        if self.command == "worker":
            out = (self.folder / "out").read_text()
            return out.count("worker") > self._told
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        return False

    def freeze(self) -> None:
        """SIGSTOP: it does nothing any more, and nobody is told."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = STOP_WITHIN_S) -> int:
        """Send a signal, wait for the end; the exit code. Safe when it is not running."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a frozen one takes TERM only then
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(within_s)
            raise

    async def start(self) -> None:
        """`begin`, while the test's loop goes on."""
        await asyncio.to_thread(self.begin)

    async def stop(self, within_s: float = STOP_WITHIN_S) -> int:
        """SIGTERM, and wait for the end."""
        return await asyncio.to_thread(self.end, signal.SIGTERM, within_s)

    async def kill(self) -> None:
        """kill -9."""
        await asyncio.to_thread(self.end, signal.SIGKILL)

    async def restart(self) -> None:
        """kill -9, then start again on the same data."""
        await self.kill()
        await self.start()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: JSON decoded, everything else as bytes."""

    status: int
    body: Any
    headers: httpx2.Headers


class Rest:
    """The REST API as one caller; `async with` it."""

    def __init__(self, serve: Serve, token: str = ADMIN_TOKEN) -> None:
        self.serve = serve
        self._client = httpx2.AsyncClient(
            base_url=serve.url, headers={"Authorization": f"Bearer {token}"}, timeout=70.0
        )

    async def __aenter__(self) -> Rest:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: bytes | None = None,
        query: dict[str, Any] | None = None,
        **headers: str,
    ) -> Answer:
        """One exchange; a header's underscores are hyphens."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            content = json.dumps(body).encode()
        if content is not None:
            given.setdefault("Content-Type", "application/json")
        answer = await self._client.request(
            method,
            PREFIX + path if not path.startswith("/readyz") else path,
            content=content,
            params=query,
            headers=given,
        )
        is_json = "json" in answer.headers.get("content-type", "")
        return Answer(answer.status_code, answer.json() if is_json else answer.content, answer.headers)

    async def refused(
        self, method: str, path: str, body: Any = None, *, status: int, code: str, **given: Any
    ) -> dict[str, Any]:
        """The problem that an exchange is refused with."""
        answer = await self.call(method, path, body, **given)
        assert (answer.status, answer.body.get("code")) == (status, code), answer
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.body["request_id"]
        problem: dict[str, Any] = answer.body
        return problem

    async def make(self, path: str, **members: Any) -> dict[str, Any]:
        """Create something; what the answer holds."""
        answer = await self.call("POST", path, members)
        assert answer.status == 201, answer
        made: dict[str, Any] = answer.body
        return made

    async def get(self, path: str, **query: Any) -> Any:
        """Read something."""
        answer = await self.call("GET", path, query=query or None)
        assert answer.status == 200, answer
        return answer.body

    async def user(self, role: str = "operator") -> tuple[dict[str, Any], str]:
        """A new user and a token of it."""
        user = await self.make("/users", login=new_name("user"), role=role)
        token = await self.make(f"/users/{user['id']}/tokens", name="test")
        return user, token["token"]

    async def thing(self, **members: Any) -> dict[str, Any]:
        """A new object without an SSH address."""
        return await self.make("/objects", **{"name": new_name("thing"), **members})

    async def device(self, server: SshServer, **members: Any) -> dict[str, Any]:
        """A new object for an SSH server, trusted, with its credential."""
        credential = await self.make(
            "/credentials",
            name=new_name("login"),
            kind="ssh_key",
            username=server.username,
            private_key=server.client_key,
        )
        address = {"host": server.host, "port": server.port, "credential_id": credential["id"]}
        address["host_key"] = "\n".join(server.host_keys)
        address |= members.pop("ssh", {})
        return await self.make("/objects", **{"name": new_name("device"), "ssh": address, **members})

    async def operation(
        self, owner: dict[str, Any], type: str, *, owners: str = "objects", **members: Any
    ) -> dict[str, Any]:
        """A new operation; members that are no settings of an operation are its parameters."""
        settings = {name: members.pop(name) for name in list(members) if name in _OPERATION_SETTINGS}
        parameters = members.pop("parameters", members)
        return await self.make(
            f"/{owners}/{owner['id']}/operations",
            **{"name": new_name("operation"), "type": type, "parameters": parameters, **settings},
        )

    async def script(self, owner: dict[str, Any], text: str, **members: Any) -> dict[str, Any]:
        """A new script operation."""
        return await self.operation(owner, "script", text=text, **members)

    async def execute(
        self,
        owner: dict[str, Any],
        operation: dict[str, Any],
        *,
        wait: float | None = None,
        owners: str = "objects",
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> dict[str, Any]:
        """Run an operation; the job as the answer has it."""
        answer = await self.call(
            "POST",
            f"/{owners}/{owner['id']}/operations/{operation['id']}/execute",
            body,
            query=None if wait is None else {"wait": wait},
            **(headers or {}),
        )
        assert answer.status in (200, 202), answer
        assert (answer.status == 200) == (wait is not None and ended(answer.body)), answer
        job: dict[str, Any] = answer.body
        return job

    async def run(
        self, owner: dict[str, Any], operation: dict[str, Any], *, wait: float = 15, **body: Any
    ) -> dict[str, Any]:
        """Run an operation to its end; the job."""
        job = await self.execute(owner, operation, wait=wait, **body)
        assert ended(job), job
        return job

    async def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        found: dict[str, Any] = await self.get(f"/jobs/{job_id}")
        return found

    async def job_that(
        self, job_id: str, is_so: Callable[[dict[str, Any]], object], within_s: float = 10.0
    ) -> dict[str, Any]:
        """The job, once it is as asked for."""
        last: dict[str, Any] = {}

        async def look() -> dict[str, Any] | None:
            last.update(await self.job(job_id))
            return last if is_so(last) else None

        try:
            found: dict[str, Any] = await eventually(look, within_s)
        except AssertionError as error:
            shown = {
                name: last.get(name) for name in ("id", "status", "outcome", "error", "attempt", "delivery")
            }
            raise AssertionError(f"the job is {shown}, {len(last['results'])} results") from error
        return found

    async def ended(self, job_id: str, within_s: float = 10.0) -> dict[str, Any]:
        """The job, once it has ended."""
        return await self.job_that(job_id, ended, within_s)

    async def all_jobs(self, **query: Any) -> list[dict[str, Any]]:
        """Every job of a list, page by page."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self.get("/jobs", limit=500, **query, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items


_OPERATION_SETTINGS = frozenset(
    {
        "queue",
        "name",
        "via",
        "run_on",
        "timeout_s",
        "stall_s",
        "kill_after_s",
        "ttl_s",
        "idempotent",
        "concurrent",
        "retry",
        "run_as",
        "secret_args",
    }
)


def ended(job: dict[str, Any]) -> bool:
    """Whether nothing will change the job's status any more."""
    return job["status"] in ("FINISHED", "CANCELED")


StartServe = Callable[..., Serve]


@pytest.fixture
def make_serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartServe]:
    """Makes sites that are not started yet: `make_serve("postgresql", stop_grace_s="1")`."""
    made: list[Serve] = []

    def make(database: str = "sqlite", **settings: str) -> Serve:
        url = request.getfixturevalue("fresh_database")() if database == "postgresql" else None
        serve = Serve(tmp_path / f"serve{len(made)}", url, settings)
        made.append(serve)
        return serve

    yield make
    for serve in made:
        serve.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def shared_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One site on SQLite for every test that breaks nothing; names on it are made by `new_name`."""
    serve = Serve(tmp_path_factory.mktemp("serve"))
    serve.begin()
    yield serve
    log, code = serve.log, serve.end()
    assert code == 0, f"serve ended with {code}: {log[-3000:]}"


@pytest.fixture
async def rest(shared_serve: Serve) -> AsyncIterator[Rest]:
    """The shared site's administrator."""
    async with Rest(shared_serve) as client:
        yield client

"""A backup of a site that is at work, restored elsewhere: consistent, and what may have run runs no second time."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer
from sqlalchemy import Connection, select

from iotjobs.store import events, rules, tables
from iotjobs.store.session import open_store
from tests.services.mosquitto import Mosquitto
from tests.services.programs import free_port, require_program
from tests.services.site import Rest, Serve, StartServe, eventually, pause

CALLERS = 12
RATE = 200.0
BEFORE_S, AFTER_S = 1.5, 0.5


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    text: str


async def iotjobs(serve: Serve, *arguments: str) -> Said:
    """A command of the server, with this site's settings."""
    command = [sys.executable, "-m", "iotjobs", *arguments, "--data", str(serve.data)]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=serve.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stderr)


@pytest.fixture
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Serve]:
    """A site like another, without any data."""
    numbers = itertools.count()

    def make(serve: Serve) -> Serve:
        url = None
        if serve.database_url is not None:
            url = request.getfixturevalue("fresh_database")()
        folder = tmp_path / f"elsewhere{next(numbers)}"
        made = replace(
            serve, folder=folder, database_url=url, port=free_port(), mqtt_port=free_port(), process=None
        )
        request.addfinalizer(made.end)
        return made

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


class Load:
    """Callers that submit at a rate, and what was accepted until when."""

    def __init__(self, rest: Rest, ways: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        self._rest, self._ways = rest, itertools.cycle(ways)
        self.accepted: list[tuple[float, str]] = []
        self._over = False
        self._began = 0.0
        self._turns = itertools.count()

    async def __aenter__(self) -> Load:
        self._began = time.monotonic()
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._callers)
        self.took_s = time.monotonic() - self._began

    async def _call(self) -> None:
        while not self._over:
            wait = self._began + next(self._turns) / RATE - time.monotonic()
            if wait > 0:
                await pause(wait)
            owner, operation = next(self._ways)
            job = await self._rest.execute(owner, operation)
            self.accepted.append((time.monotonic(), job["id"]))


async def history_differs(url: str) -> list[str]:
    """Jobs whose events do not add up to their row, and how many jobs there are."""
    store = open_store(url)
    await store.start()

    def query(conn: Connection) -> list[str]:
        J, E = tables.jobs.c, tables.events.c
        folded: dict[str, list[tuple[str, str | None]]] = {}
        rows = conn.execute(select(E.job_id, E.kind, E.data).order_by(E.generation, E.xid, E.id))
        for job_id, kind, data in rows:
            if kind in ("job.added", "job.changed"):
                folded.setdefault(job_id, []).append((data["status"], data["outcome"]))
        wrong = []
        for job_id, status, outcome, attempt in conn.execute(select(J.id, J.status, J.outcome, J.attempt)):
            happened = folded.pop(job_id, [])
            begun = sum(status == "RUNNING" for status, _ in happened)
            if happened[:1] != [("PENDING", None)] or happened[-1] != (status, outcome) or begun != attempt:
                wrong.append(f"{job_id}: {status} {outcome} {attempt}, events {happened}")
        return wrong + [f"events without a job: {job_id}" for job_id in folded]

    try:
        return await store.read(query)
    finally:
        await store.stop()


async def decided_in(url: str) -> list[str]:
    """What triggers decided."""
    store = open_store(url)
    await store.start()
    try:
        return [trace.decision for trace in await store.read(lambda conn: rules.trace_rows(conn, limit=9))]
    finally:
        await store.stop()


async def jobs_in(url: str) -> dict[str, tuple[str, str | None]]:
    store = open_store(url)
    await store.start()
    J = tables.jobs.c
    try:
        rows = await store.read(lambda conn: conn.execute(select(J.id, J.status, J.outcome)).all())
    finally:
        await store.stop()
    return {id_: (status, outcome) for id_, status, outcome in rows}


def url_of(serve: Serve) -> str:
    return serve.database_url or f"sqlite:///{serve.data / 'iotjobs.db'}"


@pytest.mark.check(12)
async def test_a_backup_under_load_is_consistent_and_holds_everything_that_was_accepted_before(
    make_serve: StartServe,
    elsewhere: Callable[..., Serve],
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
) -> None:
    if database == "postgresql":
        require_program("pg_dump", package="postgresql-client")
    broker = start_mosquitto()
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    file = tmp_path / "site.backup"
    async with Rest(serve) as rest:
        device, valve = await rest.device(openssh), await rest.thing(thing="valve")
        messages = {"topic": "iotjobs/valve/cmd", "message": "{{jobId}}"}
        tell = (valve, await rest.operation(valve, "mqtt", parameters=messages))
        script = (device, await rest.script(device, "echo done", concurrent=True))
        async with Load(rest, [tell] * 9 + [script]) as load:
            await pause(BEFORE_S)
            began = time.monotonic()
            said = await iotjobs(serve, "backup", str(file))
            took_s = time.monotonic() - began
            await pause(AFTER_S)
        rate = len(load.accepted) / load.took_s
    assert said.code == 0, said
    assert f"the key {serve.data if database == 'sqlite' else serve.folder}" in said.text
    assert file.stat().st_mode & 0o777 == 0o600
    assert await serve.stop() == 0

    other = elsewhere(serve)
    other.environment()  # makes the key that PostgreSQL needs; the right one is put there instead
    other.data.mkdir(parents=True)
    for site_key in (serve.data / "secret.key", serve.folder / "secret.key"):
        if site_key.exists():
            (other.folder / site_key.relative_to(serve.folder)).write_bytes(site_key.read_bytes())
            (other.folder / site_key.relative_to(serve.folder)).chmod(0o600)
    if database == "postgresql":
        require_program("pg_restore", package="postgresql-client")
    said = await iotjobs(other, "restore", str(file))
    assert said.code == 0, said

    if database == "sqlite":
        for path in (file, other.data / "iotjobs.db"):
            assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert await history_differs(url_of(other)) == []
    restored = await jobs_in(url_of(other))
    before = {job_id for at, job_id in load.accepted if at < began}
    assert before <= set(restored) <= {job_id for _, job_id in load.accepted}
    lost = [outcome for _, outcome in restored.values() if outcome == "lost"]
    print(  # noqa: T201
        f"{database}: {rate:.0f} jobs/s, backup of {len(restored)} jobs in {took_s:.2f} s, "
        f"{len(load.accepted) - len(restored)} came later, {len(lost)} had not ended"
    )
    assert len({status for status, _ in restored.values()} - {"FINISHED"}) == 0
    await other.start()
    async with Rest(other) as rest:
        assert (await rest.run(*script))["outcome"] == "succeeded"  # with the credential that the key opens
    assert await history_differs(url_of(other)) == []


async def test_what_may_have_run_since_is_lost_and_what_cannot_have_goes_on(
    make_serve: StartServe,
    elsewhere: Callable[..., Serve],
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
) -> None:
    broker = start_mosquitto()
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    async with Rest(serve) as rest:
        device, thing = await rest.device(openssh), await rest.thing(thing="valve")
        long = await rest.script(device, f"echo ran >> {tmp_path}/ran; sleep 30")
        again = await rest.script(device, "echo again", idempotent=True)
        ask = await rest.operation(
            thing, "mqtt", parameters={"topic": "x/valve", "message": "{{jobId}}", "answer": {"within_s": 60}}
        )
        made = {
            "running": await rest.execute(device, long),
            "behind it": await rest.execute(device, long),
            "may be repeated": await rest.execute(device, again),
            "to come": await rest.execute(device, long, start_at="2033-01-01T00:00:00Z"),
            "waits for an answer": await rest.execute(thing, ask),
        }
        path = f"/objects/{thing['id']}"
        items = [{"name": "hot", "states": ["alarm"], "operation_id": ask["id"], "hold_s": 3600}]
        conditions = [{"state": "alarm", "when": "t > 80"}]
        assert (await rest.call("PUT", f"{path}/state-conditions", conditions)).status == 200
        assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200
        assert (await rest.call("POST", f"{path}/report", {"t": 90})).status < 300
        await eventually((tmp_path / "ran").exists)
        await rest.job_that(made["waits for an answer"]["id"], lambda job: job["delivery"] == "acknowledged")
    for name in ("plain", "with"):
        options = ["--with-key"] if name == "with" else []
        said = await iotjobs(serve, "backup", str(tmp_path / name), *options)
        assert said.code == 0, said
    assert (tmp_path / "with.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "plain.key").exists()
    await serve.kill()

    for moved in (False, True):
        other = elsewhere(serve)
        if database == "postgresql":
            other.environment()  # makes a key: every site on PostgreSQL has been given one
            (other.folder / "secret.key").write_bytes((serve.folder / "secret.key").read_bytes())
        said = await iotjobs(other, "restore", str(tmp_path / "with"), *(["--moved"] if moved else []))
        assert said.code == 0, said
        now = await jobs_in(url_of(other))
        assert ("2 jobs had not ended" in said.text) == (not moved), said.text
        lost = ("FINISHED", "lost")
        assert {name: now[job["id"]] for name, job in made.items()} == {
            "running": ("RUNNING", None) if moved else lost,
            "behind it": ("PENDING", None) if moved else lost,
            "may be repeated": ("PENDING", None),
            "to come": ("PENDING", None),
            "waits for an answer": ("RUNNING", None),
        }
        assert await history_differs(url_of(other)) == []
        assert await decided_in(url_of(other)) == ["held" if moved else "hold_canceled"]
    store = open_store(url_of(other))
    await store.start()
    mark = await store.read(events.pruned)
    await store.stop()
    assert mark.generation > 1_700_000_000
    assert mark.number == 0


async def test_nothing_is_written_over_and_nothing_half_is_left(
    make_serve: StartServe, elsewhere: Callable[..., Serve], tmp_path: Path
) -> None:
    serve = make_serve()
    file = tmp_path / "site.backup"
    said = await iotjobs(serve, "backup", str(file))
    assert (said.code, "there is no database in" in said.text) == (2, True)
    await serve.start()
    assert (await iotjobs(serve, "backup", str(file), "--with-key")).code == 0

    said = await iotjobs(serve, "backup", str(file))
    assert (said.code, "is there already" in said.text) == (5, True)
    said = await iotjobs(serve, "restore", str(file))
    assert (said.code, f"is served by process {serve.pid}" in said.text) == (5, True)
    await serve.stop()
    said = await iotjobs(serve, "restore", str(file))
    assert (said.code, "there is a database already" in said.text) == (5, True)

    other = elsewhere(serve)
    other.folder.mkdir()
    for content, why in (
        (b"no backup at all", "is no backup of iotjobs"),
        (b"PGDMP and so on", "set IOTJOBS_DATABASE_URL"),
        (file.read_bytes()[:9000], "damaged"),
    ):
        (tmp_path / "wrong").write_bytes(content)
        said = await iotjobs(other, "restore", str(tmp_path / "wrong"))
        assert (said.code, why in said.text) == (2, True), said
    (other.data / "secret.key").write_bytes(b"A" * 43 + b"=\n")
    (other.data / "secret.key").chmod(0o600)
    said = await iotjobs(other, "restore", str(file))
    assert (said.code, "does not belong to this database" in said.text) == (2, True), said
    assert sorted(path.name for path in other.data.iterdir()) == ["lock", "secret.key"]

    (other.data / "secret.key").unlink()
    said = await iotjobs(other, "restore", str(file))
    assert said.code == 0, said
    assert (other.data / "secret.key").read_bytes() == (serve.data / "secret.key").read_bytes()
    await other.start()
    assert await other.stop() == 0


async def test_a_database_that_is_used_or_served_is_left_alone(
    make_serve: StartServe, elsewhere: Callable[..., Serve], tmp_path: Path
) -> None:
    serve = make_serve("postgresql")
    await serve.start()
    file = tmp_path / "site.backup"
    assert (await iotjobs(serve, "backup", str(file))).code == 0

    beside = replace(serve, folder=tmp_path / "beside", process=None)
    beside.environment()
    (beside.folder / "secret.key").write_bytes((serve.folder / "secret.key").read_bytes())
    said = await iotjobs(beside, "restore", str(file))
    assert (said.code, "the database is not empty" in said.text) == (5, True), said
    sqlite = make_serve()
    said = await iotjobs(sqlite, "restore", str(file))
    assert (said.code, "set IOTJOBS_DATABASE_URL" in said.text) == (2, True), said


async def test_a_restore_on_postgresql_that_fails_half_way_leaves_nothing_that_is_served(
    make_serve: StartServe,
    elsewhere: Callable[..., Serve],
    openssh: SshServer,
    tmp_path: Path,
) -> None:
    require_program("pg_restore", package="postgresql-client")
    serve = make_serve("postgresql")
    await serve.start()
    async with Rest(serve) as rest:
        device = await rest.device(openssh)
        await rest.execute(device, await rest.script(device, "sleep 30"))
    file, cut = tmp_path / "site.backup", tmp_path / "cut.backup"
    assert (await iotjobs(serve, "backup", str(file))).code == 0
    cut.write_bytes(file.read_bytes()[:-2000])
    await serve.kill()
    other = elsewhere(serve)
    other.environment()  # makes a key that is not the site's

    said = await iotjobs(other, "restore", str(cut))
    assert (said.code, "pg_restore failed" in said.text) == (6, True), said
    process = other.process = other.launch()  # and its tables are not made anew either
    assert await eventually(process.poll, 30) == 2

    said = await iotjobs(other, "restore", str(file))
    assert (said.code, "does not belong to this database" in said.text) == (2, True), said

    (other.folder / "secret.key").write_bytes((serve.folder / "secret.key").read_bytes())
    process = other.process = other.launch()
    assert await eventually(process.poll, 30) == 2
    assert "a restore into this database has not come to its end" in other.log
    said = await iotjobs(other, "restore", str(file))
    assert (said.code, "the database is not empty" in said.text) == (5, True), said
    said = await iotjobs(other, "doctor")
    assert said.code != 0

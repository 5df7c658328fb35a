"""A PostgreSQL of our own: one server per test process, one database per test.

The server listens on a free loopback port and on a socket in its own folder, asks for a password,
and dies with the test process: also after kill -9, by the parent-death signal. It runs without
fsync, so a test about durability starts its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.programs import free_port, missing, require_program

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "300",
    "autovacuum": "off",
    "log_min_messages": "warning",
}
START_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server and how to reach it as its owner.

    Attributes:
        port: on 127.0.0.1.
        password: of the superuser `postgres`.
        folder: holds the data, the log and the socket; removed at the end.
        psql: full path of the client.
    """

    port: int
    password: str
    folder: Path
    psql: str

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database, for asyncpg."""
        return f"postgresql+asyncpg://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def dsn(self, database: str = "postgres") -> str:
        """The same as libpq and asyncpg themselves want it."""
        return self.url(database).replace("+asyncpg", "")

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Run SQL by psql, outside any event loop; returns unaligned rows."""
        command = [self.psql, "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(database), "-c", sql]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{sql}: {done.stderr}"
        return done.stdout.strip()


def _as_owner(*, dies_with_us: bool = False) -> list[str]:
    """The command prefix that runs as somebody PostgreSQL accepts: it refuses root."""
    setpriv = shutil.which("setpriv")
    prefix: list[str] = []
    if os.geteuid() == 0:
        if setpriv is None:
            missing("setpriv is not installed: apt-get install util-linux")
        prefix = [setpriv, "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    if dies_with_us and setpriv is not None:
        prefix = [*(prefix or [setpriv]), "--pdeathsig", "QUIT"]
    return prefix


def _make_cluster(folder: Path, password: str) -> None:
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            missing("there is no user postgres, and PostgreSQL refuses root: apt-get install postgresql")
        for path in (folder, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    initdb = require_program("initdb", package="postgresql")
    command = [*_as_owner(), initdb, "-D", str(folder / "data"), "-U", "postgres", "-E", "UTF8"]
    options = [
        "--locale=C.UTF-8",
        "-A",
        "scram-sha-256",
        f"--pwfile={secret}",
        "--no-sync",
        "--no-instructions",
    ]
    subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True, timeout=120)


def _wait_until_ready(process: subprocess.Popen[bytes], folder: Path) -> None:
    """The last line of postmaster.pid says `ready`; there is nothing to wait on but that."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if (folder / "data" / "postmaster.pid").read_text().split()[-1:] == ["ready"]:
                return
        time.sleep(0.02)
    raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text()[-2000:]}")


@contextlib.contextmanager
def running_postgres(
    settings: dict[str, str] | None = None, variables: dict[str, str] | None = None
) -> Iterator[PostgresServer]:
    """A server of its own, for tests that stop it or want other settings or another environment."""
    password, port = secrets.token_hex(8), free_port()
    folder = Path(tempfile.mkdtemp(prefix="iotjobs-postgres-"))
    server = PostgresServer(port, password, folder, require_program("psql", package="postgresql-client"))
    try:
        _make_cluster(folder, password)
        given = {**SETTINGS, **(settings or {}), "unix_socket_directories": str(folder)}
        told = [f"{name}={value}" for name, value in (variables or {}).items()]
        command = [*_as_owner(dies_with_us=True), "env", *told]
        command += [require_program("postgres", package="postgresql")]
        command += ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port)]
        command += [f"--{name}={value}" for name, value in given.items()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, folder)
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # "immediate": nothing of it is kept
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The database that `fresh_database` clones; empty until somebody overrides this fixture."""
    postgres_server.execute("CREATE DATABASE iotjobs_template")
    return "iotjobs_template"


_numbers = itertools.count(1)


@pytest.fixture
def fresh_database(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Callable[[], str]]:
    """Makes databases like the template; each call returns the URL of another one.

    They are dropped when the test ends, whoever is still connected.
    """
    made: list[str] = []

    def make() -> str:
        name = f"test_{next(_numbers)}"
        postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
        made.append(name)
        return postgres_server.url(name)

    yield make
    for name in made:
        postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")

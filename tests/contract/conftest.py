"""A migrated store of each kind for every contract test that asks for `store`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.session import Store, open_store
from tests.services.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The database that `fresh_database` clones, at the newest revision."""
    postgres_server.execute("CREATE DATABASE iotjobs_migrated")
    with ThreadPoolExecutor(1) as elsewhere:  # a test's event loop may be running here
        elsewhere.submit(migrate, postgres_server.url("iotjobs_migrated")).result()
    return "iotjobs_migrated"


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Makes migrated databases of a kind; each call gives another one."""

    def make(kind: str) -> str:
        if kind == "postgresql":
            made: str = request.getfixturevalue("fresh_database")()
            return made
        path = tmp_path / f"iotjobs{len(list(tmp_path.glob('*.db')))}.db"
        path.write_bytes(request.getfixturevalue("migrated_file").read_bytes())
        return f"sqlite:///{path}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, make_url: Callable[[str], str]) -> str:
    return make_url(request.param)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = open_store(store_url)
    await opened.start()
    yield opened
    await opened.stop()

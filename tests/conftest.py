from __future__ import annotations

import pytest

pytest_plugins = [
    "tests.services.mosquitto",
    "tests.services.postgres",
    "tests.services.api",
    "tests.services.site",
    "tests.services.nodes",
    "tests.services.network",
    "tests.services.rows",
    "tests.services.ssh",
    "tests.services.tls",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the numbers that `make faults` asks for")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether counts are those of the promise, not those that CI has time for."""
    return bool(request.config.getoption("--full"))

from __future__ import annotations

import subprocess
import sys

from iotjobs import __version__
from tests.architecture.source import ROOT

SERVER = {
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "sqlmodel",
    "pydantic_settings",
    "asyncssh",
    "alembic",
    "paho",
    "cryptography",
}
RUN = """
import sys
from iotjobs.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_of(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that it imported for that."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


def test_the_version_comes_without_any_library() -> None:
    printed, imported = modules_of("--version")

    assert printed == f"iotjobs {__version__}\n"
    assert imported & ({"typer", "httpx2", "rich", "pydantic", "asyncio", "ssl"} | SERVER) == set()


def test_a_command_of_the_client_does_not_import_the_server() -> None:
    printed, imported = modules_of("run", "--help")

    assert "OPERATION" in printed
    assert {"typer", "httpx2"} <= imported
    assert imported & (SERVER | {"rich"}) == set()


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iotjobs", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert (done.stdout, done.stderr) == (f"iotjobs {__version__}\n", "")

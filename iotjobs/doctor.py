"""`iotjobs doctor`: is this host fit to serve, and what to do where it is not.

Looks only: it makes no file that stays, and changes nothing in the database. It may run beside a
server.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from iotjobs import __version__, clock, settings
from iotjobs.domain.errors import ConfigurationError, EngineError
from iotjobs.settings import Settings
from iotjobs.store.migrations.migrate import HEAD, REVISIONS, refuse_half_restored, revision_of
from iotjobs.store.secrets import load_or_make_key
from iotjobs.store.session import forgets_in_crash, open_store
from iotjobs.transports.broker import EVERYWHERE, BrokerProcess, cannot_listen
from iotjobs.transports.broker_child import find_mosquitto
from iotjobs.transports.broker_files import Credential, broker_username, hash_password
from iotjobs.transports.broker_probe import Trait, probe
from iotjobs.transports.mqtt_address import BrokerAddress

OLDEST_PYTHON = (3, 11)
OLDEST_MOSQUITTO = (2, 0)
_ANSWER_S = 5.0
_DISK_FAIL_BYTES, _DISK_WARN_BYTES = 100 << 20, 1 << 30
# This was written later than that: a clock before it is wrong.
_NOT_BEFORE_MS = 1_790_000_000_000  # 2026-09-21
_CLOCK_STEP_S = 60.0
_AWAY_FROM_OURS = 50


# A site's word for how it is, and the reasons by part.
State = tuple[str, dict[str, str]]


class Verdict(StrEnum):
    """How it looks; only `fail` keeps a site from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        said: what was seen.
        cure: what to do about it; empty when all is well.
    """

    verdict: Verdict
    name: str
    said: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:<5} {self.name:<18} {self.said}"
        return f"{line}\n{'':<25}{self.cure}" if self.cure else line


def ok(name: str, said: str) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, name, said)


def warn(name: str, said: str, cure: str) -> Finding:
    """It works, but not all of it, or not safely."""
    return Finding(Verdict.WARN, name, said, cure)


def fail(name: str, said: str, cure: str) -> Finding:
    """It does not work so."""
    return Finding(Verdict.FAIL, name, said, cure)


def run(data_dir: Path | None) -> int:
    """Look at everything and print it; the exit code: 0 when nothing failed, else 1."""

    async def tell() -> int:
        failed = 0
        async for finding in examine(data_dir):
            sys.stdout.write(f"{finding}\n")
            sys.stdout.flush()
            failed += finding.verdict is Verdict.FAIL
        return failed

    failed = asyncio.run(tell())
    sys.stdout.write(f"{failed} failed\n" if failed else "nothing failed\n")
    return 1 if failed else 0


async def examine(data_dir: Path | None) -> AsyncIterator[Finding]:
    """Every finding, as it is made. Call it in the main thread's loop."""
    yield python_version(sys.version_info[:3])
    try:
        chosen = settings.load(data_dir=data_dir)
    except ConfigurationError as error:
        yield fail("settings", str(error), "see docs/reference/settings.md")
        return
    yield ok("settings", f"can be read; data in {chosen.data_dir.absolute()}")
    yield data_directory(chosen.data_dir)
    yield disk_space(chosen.data_dir)
    yield clock_moment(chosen.data_dir, clock.now_ms())
    yield secret_key(chosen)
    yield await database(chosen)
    state = await asyncio.to_thread(site_state, chosen.host, chosen.port)
    yield http_port(chosen, state)
    async for finding in broker(chosen, served=state is not None):
        yield finding


# --- this host ------------------------------------------------------------------------------------


def python_version(version: tuple[int, ...]) -> Finding:
    """Whether this Python is new enough."""
    said = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return fail("python", said, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    return ok("python", f"{said}, iotjobs {__version__}")


def data_directory(directory: Path) -> Finding:
    """Whether we can write there, and nobody else can read."""
    name, there = "data directory", _nearest(directory)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        cure = f"give the user {os.geteuid()} the right to write there, or choose another with --data"
        return fail(name, f"{there} cannot be written: {error.strerror}", cure)
    if there != directory:
        return ok(name, "is made at the first start")
    if directory.stat().st_mode & 0o077:
        return warn(name, f"{directory} is open to other users of this host", f"chmod 700 {directory}")
    return ok(name, "can be written")


def _nearest(directory: Path) -> Path:
    """The directory, or the nearest above it that exists."""
    return next((path for path in (directory, *directory.absolute().parents) if path.is_dir()), Path("/"))


def disk_space(directory: Path) -> Finding:
    """Whether there is room for the database to grow."""
    free = shutil.disk_usage(_nearest(directory)).free
    said, cure = f"{free / (1 << 30):.1f} GiB free", "free space: jobs are refused when there is none"
    if free < _DISK_FAIL_BYTES:
        return fail("disk space", said, cure)
    return warn("disk space", said, cure) if free < _DISK_WARN_BYTES else ok("disk space", said)


def clock_moment(directory: Path, now_ms: int) -> Finding:
    """Whether the clock can be right: not in the past of this program, nor of its own files."""
    said, cure = f"{clock.rfc3339(now_ms)}", "set the clock, and keep it by NTP (timedatectl set-ntp true)"
    if now_ms < _NOT_BEFORE_MS:
        return fail("clock", f"{said} is in the past", cure)
    written = [path.stat().st_mtime for path in directory.glob("*") if path.is_file()]
    ahead_s = max(written, default=0.0) - now_ms / 1000
    if ahead_s > _CLOCK_STEP_S:
        return warn("clock", f"{said}: files in {directory} were written {ahead_s:.0f} s later", cure)
    return ok("clock", said)


def secret_key(chosen: Settings) -> Finding:
    """Whether the key that opens credentials is there, whole, and ours alone."""
    name = "secret key"
    if chosen.database_url is not None and chosen.secret_key_file is None:
        cure = "set IOTJOBS_SECRET_KEY_FILE: with PostgreSQL every node needs the same key"
        return fail(name, "no file is named", cure)
    if chosen.database_url is None and not chosen.key_file.exists():
        return ok(name, "is made at the first start")
    try:
        load_or_make_key(chosen.key_file, may_make=False)
    except ConfigurationError as error:
        said, _, cure = str(error).partition(": ")
        return fail(name, said, cure)
    return ok(name, f"{chosen.key_file}, for its owner only")


async def database(chosen: Settings) -> Finding:
    """Whether it answers, and of which revision it is."""
    name = "database"
    if chosen.database_url is None and not (chosen.data_dir / "iotjobs.db").exists():
        return ok(name, "SQLite, is made at the first start")
    cure = "start it, or mend IOTJOBS_DATABASE_URL"
    if chosen.database_url is None:
        cure = f"put back a good copy of {chosen.data_dir / 'iotjobs.db'}"
    try:
        store = open_store(chosen.store_url)
        try:
            await store.start()
            async with asyncio.timeout(_ANSWER_S):
                await store.read(refuse_half_restored)
                revision = await store.read(revision_of)
                forgets = await store.read(forgets_in_crash)
        finally:
            await store.stop()
    except TimeoutError:
        return fail(name, "does not answer in time", cure)
    except EngineError as error:
        return fail(name, str(error), cure)
    except DBAPIError as error:
        return fail(name, str(error.orig), cure)
    if forgets:
        cure = f"set {forgets} = on: without it a crash of the server takes back what was promised, and may repeat it"
        return warn(name, f"{forgets} is off", cure)
    if revision is None:
        return ok(name, f"empty; is brought to revision {HEAD} at the start")
    if revision not in REVISIONS:
        cure = "run the version of iotjobs that was used with it, or a newer one"
        return fail(name, f"revision {revision} is unknown, {HEAD} is the newest known", cure)
    later = "" if revision == HEAD else f"; is brought to {HEAD} at the start"
    return ok(name, f"answers, revision {revision}{later}")


# --- ports --------------------------------------------------------------------------------


def http_port(chosen: Settings, state: State | None) -> Finding:
    """Whether the port is free, or one of us answers there (`state`)."""
    name, where = "HTTP port", f"{chosen.host}:{chosen.port}"
    if state is None:
        return _port(name, chosen.host, chosen.port, "IOTJOBS_PORT")
    status, reasons = state
    said = f"an iotjobs server answers at {where}: {status}"
    if not reasons:
        return ok(name, said)
    return warn(name, said, "; ".join(f"{part}: {why}" for part, why in reasons.items()))


def _port(name: str, host: str, port: int, setting: str) -> Finding:
    problem = cannot_listen(host, port)
    if problem is None:
        return ok(name, f"{host}:{port} is free")
    if problem.errno == errno.EADDRINUSE:
        return fail(
            name, f"{host}:{port} is taken by another program", f"end it, or choose another with {setting}"
        )
    return fail(name, f"{host}:{port}: {problem.strerror}", f"choose another with {setting}")


def site_state(host: str, port: int) -> State | None:
    """What `/readyz` says, or None when it is no server of ours."""
    connection = http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/readyz")
        content = json.loads(connection.getresponse().read(65_536))
        return str(content["status"]), dict(content["reasons"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


# --- the broker -----------------------------------------------------------------------------------


async def broker(chosen: Settings, *, served: bool) -> AsyncIterator[Finding]:
    """The broker that is named in the settings, or a Mosquitto as `serve` would start it.

    `served`: a server runs here, and so does its broker.
    """
    if chosen.mqtt_url is not None:
        async for finding in _external_broker(chosen):
            yield finding
        return
    program = find_mosquitto()
    finding = mosquitto(program)
    yield finding
    if program is None or finding.verdict is Verdict.FAIL:
        return
    if not served:
        yield _port("MQTT port", chosen.mqtt_bind, chosen.mqtt_port, "IOTJOBS_MQTT_PORT")
    async for finding in _our_broker(program):
        yield finding


def mosquitto(program: str | None) -> Finding:
    """Whether the broker that `serve` starts is installed."""
    if program is None:
        cure = "apt-get install mosquitto, or name your broker in IOTJOBS_MQTT_URL"
        return warn("mosquitto", "is not installed: there is no MQTT", cure)
    # It has no option for the version alone, and its help ends with status 3.
    try:
        done = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return fail("mosquitto", f"{program} cannot be run: {error}", "install Mosquitto 2")
    found = re.search(r"version (\d+)\.(\d+)(\.\d+)?", done.stdout)
    if found is None:
        return warn("mosquitto", f"{program} does not tell its version", "install Mosquitto 2")
    if (int(found[1]), int(found[2])) < OLDEST_MOSQUITTO:
        return fail("mosquitto", f"{program}, {found[0]} is too old", "install Mosquitto 2")
    return ok("mosquitto", f"{program}, {found[0]}")


async def _external_broker(chosen: Settings) -> AsyncIterator[Finding]:
    assert chosen.mqtt_url is not None
    try:
        address = BrokerAddress.parse(chosen.mqtt_url.get_secret_value(), ca_file=chosen.mqtt_ca_file)
    except ConfigurationError as error:
        yield fail("broker", str(error), "mend IOTJOBS_MQTT_URL")
        return
    if not address.tls and address.password is not None and not _is_loopback(address.host):
        yield warn("broker's TLS", f"the password goes to {address} in clear", "use mqtts://")
    async for trait in probe(address):
        yield of_trait(trait)


async def _our_broker(program: str) -> AsyncIterator[Finding]:
    """Start one like that of `serve` elsewhere and let a device log in to it; it is gone afterwards."""
    device, password = "doctor-device", secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="iotjobs-doctor-") as folder:
        process = BrokerProcess(
            Path(folder) / "broker",
            service_username="iotjobs.doctor",
            service_password=secrets.token_hex(16),
            port=_free_port(),
            mosquitto_path=program,
        )
        process.write_credentials([Credential(device, hash_password(password))])
        try:
            await process.start()
        except ConfigurationError as error:
            yield fail("broker", str(error), "see what Mosquitto says above")
            return
        try:
            login = BrokerAddress(
                process.address.host, process.address.port, broker_username(device), password
            )
            # How much it keeps is ours to set, and it saves after each message: a few will do.
            async for trait in probe(process.address, [login], away=_AWAY_FROM_OURS):
                yield of_trait(trait)
        finally:
            await process.stop()


def of_trait(trait: Trait) -> Finding:
    """A trait of a broker as a finding."""
    if trait.holds:
        return ok(trait.name, trait.said)
    return Finding(Verdict.FAIL if trait.needed else Verdict.WARN, trait.name, trait.said, trait.cure)


def _free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

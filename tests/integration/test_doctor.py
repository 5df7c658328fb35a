from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from iotjobs import doctor
from iotjobs.doctor import Finding, Verdict
from iotjobs.settings import Settings
from iotjobs.store.migrations.migrate import HEAD, migrate
from iotjobs.store.secrets import load_or_make_key
from iotjobs.store.session import sqlite_engine
from iotjobs.transports.broker_files import hash_password
from iotjobs.transports.broker_probe import Trait, probe
from iotjobs.transports.mqtt_address import BrokerAddress
from tests.architecture.source import ROOT
from tests.services.api import Reply, Site
from tests.services.mosquitto import Mosquitto, OurBroker
from tests.services.postgres import PostgresServer, running_postgres
from tests.services.programs import free_port

StartMosquitto = Callable[..., Mosquitto]


async def traits_of(address: BrokerAddress, *devices: BrokerAddress) -> dict[str, Trait]:
    return {trait.name: trait async for trait in probe(address, devices, away=20)}


async def findings_of(**settings) -> dict[str, Finding]:
    return {finding.name: finding async for finding in doctor.broker(Settings(**settings), served=False)}


# --- the broker -----------------------------------------------------------------------------------


async def test_our_own_broker_has_every_trait(broker: OurBroker) -> None:
    password = await broker.enrol("press-057")
    traits = await traits_of(broker.address, broker.login("press-057", password))

    assert [trait for trait in traits.values() if not trait.holds] == []
    assert {"QoS 1", "retained messages", "kept session", "no login", "another device"} <= set(traits)


async def test_doctor_starts_a_broker_like_ours_and_leaves_nothing(
    tmp_path: Path, mosquitto_path: str, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    findings = await findings_of(mqtt_port=free_port())

    assert [finding for finding in findings.values() if finding.verdict is not Verdict.OK] == []
    assert {"mosquitto", "MQTT port", "broker", "another device"} <= set(findings)
    assert os.listdir(tmp_path) == []


async def test_a_broker_without_passwords_lets_strangers_speak_for_devices(
    start_mosquitto: StartMosquitto,
) -> None:
    findings = await findings_of(mqtt_url=SecretStr(str(start_mosquitto().address)))

    assert [finding.name for finding in findings.values() if finding.verdict is not Verdict.OK] == [
        "no login",
        "made-up login",
    ]
    assert findings["no login"].verdict is Verdict.WARN
    assert "anonymous" in findings["no login"].cure


async def test_a_device_that_may_write_for_another_is_found(
    tmp_path: Path, start_mosquitto: StartMosquitto
) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text(f"ours:{hash_password('o')}\npress:{hash_password('p')}\n")
    running = start_mosquitto(f"password_file {passwords}", "allow_anonymous false")
    traits = await traits_of(
        BrokerAddress("127.0.0.1", running.port, "ours", "o"),
        BrokerAddress("127.0.0.1", running.port, "press", "p"),
    )

    assert (traits["no login"].holds, traits["made-up login"].holds) == (True, True)
    assert not traits["another device"].holds


async def test_a_broker_that_drops_what_an_absent_client_should_get_is_found(
    start_mosquitto: StartMosquitto,
) -> None:
    # A later line wins: this is Mosquitto's own default.
    address = start_mosquitto("max_queued_messages 1000", "autosave_interval 1000").address
    traits = {trait.name: trait async for trait in probe(address)}

    assert not traits["kept session"].holds
    assert not traits["kept session"].needed
    assert "max_queued_messages 0" in traits["kept session"].cure


async def test_a_broker_that_keeps_no_retained_messages_is_found(start_mosquitto: StartMosquitto) -> None:
    traits = await traits_of(start_mosquitto("retain_available false").address)

    assert not traits["retained messages"].holds
    assert traits["retained messages"].needed


async def test_a_broker_that_takes_only_short_messages_is_found(start_mosquitto: StartMosquitto) -> None:
    traits = await traits_of(start_mosquitto("max_packet_size 2000").address)

    assert not traits["message size"].holds
    assert traits["QoS 1"].holds


async def test_a_login_without_rights_is_found(tmp_path: Path, start_mosquitto: StartMosquitto) -> None:
    acl = tmp_path / "acl"
    acl.touch(mode=0o600)
    acl.write_text("topic readwrite elsewhere/#\n")
    traits = await traits_of(start_mosquitto(f"acl_file {acl}").address)

    assert list(traits) == ["broker", "QoS 1"]
    assert not traits["QoS 1"].holds
    assert "right to read and write" in traits["QoS 1"].cure


async def test_a_wrong_password_is_told_from_a_broker_that_is_away(broker: OurBroker) -> None:
    refused = await traits_of(broker.login("press-057", "guessed"))
    away = await traits_of(BrokerAddress("127.0.0.1", free_port()))

    assert "user and password" in refused["broker"].cure
    assert "start it" in away["broker"].cure
    assert [trait.holds for trait in (*refused.values(), *away.values())] == [False, False]


async def test_the_retained_message_and_the_session_are_gone_afterwards(
    start_mosquitto: StartMosquitto,
) -> None:
    running = start_mosquitto()
    traits = await traits_of(running.address)
    running.stop()

    assert traits["retained messages"].holds
    stored = kept_by(running)
    assert b"-kept/" not in stored
    assert b"-away/" not in stored


def kept_by(stopped: Mosquitto) -> bytes:
    return (stopped._folder / "mosquitto.db").read_bytes()


# --- the rest -------------------------------------------------------------------------------------


def test_pythons_version() -> None:
    assert doctor.python_version((3, 11, 0)).verdict is Verdict.OK
    assert doctor.python_version((3, 10, 9)).verdict is Verdict.FAIL


def test_mosquittos_version(tmp_path: Path, mosquitto_path: str) -> None:
    old = tmp_path / "mosquitto"
    old.write_text("#!/bin/sh\necho mosquitto version 1.6.9\nexit 3\n")
    old.chmod(0o700)

    assert doctor.mosquitto(mosquitto_path).verdict is Verdict.OK
    assert doctor.mosquitto(None).verdict is Verdict.WARN
    assert "apt-get install mosquitto" in doctor.mosquitto(None).cure
    assert doctor.mosquitto(str(old)).verdict is Verdict.FAIL
    assert doctor.mosquitto("/bin/true").verdict is Verdict.WARN
    assert doctor.mosquitto(str(tmp_path / "gone")).verdict is Verdict.FAIL


def test_the_data_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    assert doctor.data_directory(tmp_path).verdict is Verdict.OK
    assert doctor.data_directory(tmp_path / "a" / "b").verdict is Verdict.OK
    assert not (tmp_path / "a").exists()
    tmp_path.chmod(0o755)
    assert doctor.data_directory(tmp_path).cure == f"chmod 700 {tmp_path}"
    assert doctor.data_directory(Path("/proc/nowhere")).verdict is Verdict.FAIL


def test_disk_space(tmp_path: Path, mocker) -> None:
    usage = mocker.patch("shutil.disk_usage")
    for free, verdict in ((2 << 30, Verdict.OK), (200 << 20, Verdict.WARN), (20 << 20, Verdict.FAIL)):
        usage.return_value.free = free
        assert doctor.disk_space(tmp_path).verdict is verdict


def test_the_clock(tmp_path: Path) -> None:
    now_ms = 1_795_000_000_000
    file = tmp_path / "iotjobs.db"
    file.touch()
    os.utime(file, (now_ms / 1000, now_ms / 1000))

    assert doctor.clock_moment(tmp_path, now_ms).verdict is Verdict.OK
    assert doctor.clock_moment(tmp_path, now_ms - 3_600_000).verdict is Verdict.WARN
    assert doctor.clock_moment(tmp_path, 0).verdict is Verdict.FAIL


def test_the_secret_key(tmp_path: Path) -> None:
    chosen = Settings(data_dir=tmp_path)
    assert doctor.secret_key(chosen).verdict is Verdict.OK
    assert list(tmp_path.iterdir()) == []

    load_or_make_key(chosen.key_file, may_make=True)
    assert doctor.secret_key(chosen).verdict is Verdict.OK
    chosen.key_file.chmod(0o644)
    assert doctor.secret_key(chosen).cure == f"chmod 600 {chosen.key_file}"

    many = Settings(data_dir=tmp_path, database_url=SecretStr("postgresql://x/y"))
    assert "IOTJOBS_SECRET_KEY_FILE" in doctor.secret_key(many).cure


async def test_the_embedded_database(tmp_path: Path) -> None:
    chosen = Settings(data_dir=tmp_path)
    assert (await doctor.database(chosen)).verdict is Verdict.OK
    assert os.listdir(tmp_path) == []

    await asyncio.to_thread(migrate, chosen.store_url)
    assert f"revision {HEAD}" in (await doctor.database(chosen)).said

    engine = sqlite_engine(str(tmp_path / "iotjobs.db"), read_only=False)
    with engine.begin() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    newer = await doctor.database(chosen)
    assert (newer.verdict, "newer" in newer.cure) == (Verdict.FAIL, True)


async def test_a_damaged_database(tmp_path: Path) -> None:
    (tmp_path / "iotjobs.db").write_text("no database" * 100)
    found = await doctor.database(Settings(data_dir=tmp_path))

    assert found.verdict is Verdict.FAIL
    assert "good copy" in found.cure


async def test_a_database_server(postgres_server: PostgresServer, fresh_database: Callable[[], str]) -> None:
    async def found(url: str) -> Finding:
        return await doctor.database(Settings(database_url=SecretStr(url)))

    url = fresh_database().replace("+asyncpg", "")
    careless = await found(url)  # the tests' server is, to be quick
    assert (careless.verdict, careless.said) == (Verdict.WARN, "fsync is off")
    with running_postgres({"fsync": "on", "full_page_writes": "on"}) as careful:
        assert "empty" in (await found(careful.url().replace("+asyncpg", ""))).said
    assert (await found(url.replace(postgres_server.password, "wrong"))).verdict is Verdict.FAIL
    assert (await found(f"postgresql://u:p@127.0.0.1:{free_port()}/x")).verdict is Verdict.FAIL
    assert (await found("mysql://u:p@127.0.0.1/x")).verdict is Verdict.FAIL


def test_the_http_port(site: Site) -> None:
    port = int(site.url.rpartition(":")[2])

    def found() -> Finding:
        return doctor.http_port(Settings(port=port), doctor.site_state("127.0.0.1", port))

    assert "another program" in found().said
    site.override = lambda _: Reply({"status": "ready", "reasons": {}})
    assert found().verdict is Verdict.OK
    site.override = lambda _: Reply({"status": "degraded", "reasons": {"broker": "is down"}})
    assert found().cure == "broker: is down"
    free = Settings(port=free_port())
    assert doctor.http_port(free, doctor.site_state(free.host, free.port)).verdict is Verdict.OK


def test_a_port_taken_by_somebody_who_says_nothing(mocker) -> None:
    mocker.patch("iotjobs.doctor._ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert doctor.site_state("127.0.0.1", port) is None
        found = doctor.http_port(Settings(port=port), None)

    assert found.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("trait", "verdict"),
    [
        (Trait("a", True, "b", "c"), Verdict.OK),
        (Trait("a", False, "b", "c"), Verdict.FAIL),
        (Trait("a", False, "b", "c", needed=False), Verdict.WARN),
    ],
)
def test_a_trait_becomes_a_finding(trait: Trait, verdict: Verdict) -> None:
    assert doctor.of_trait(trait).verdict is verdict


def run_doctor(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iotjobs", "doctor", "--data", str(tmp_path / "data")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "IOTJOBS_PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_each_finding_and_ends_with_what_it_means(
    tmp_path: Path, mosquitto_path: str
) -> None:
    well = run_doctor(tmp_path, IOTJOBS_MQTT_PORT=str(free_port()))
    assert well.returncode == 0, well.stdout + well.stderr
    assert "ok    broker" in well.stdout
    assert well.stdout.endswith("nothing failed\n")
    assert not (tmp_path / "data").exists()

    away = run_doctor(tmp_path, IOTJOBS_MQTT_URL=f"mqtt://ours:hidden@127.0.0.1:{free_port()}")
    assert away.returncode == 1
    assert away.stdout.endswith("1 failed\n")
    assert "hidden" not in away.stdout + away.stderr

    wrong = run_doctor(tmp_path, IOTJOBS_PORT="x")
    assert wrong.returncode == 1
    assert "fail  settings" in wrong.stdout

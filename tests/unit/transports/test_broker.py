from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.errors import BadRequest, ConfigurationError
from iotjobs.transports import broker_child
from iotjobs.transports.broker import BrokerProcess, connect_packet
from iotjobs.transports.broker_files import (
    Credential,
    Listener,
    acl_text,
    broker_username,
    check_credentials,
    check_service_username,
    configuration_text,
    hash_password,
    password_text,
    replace_file,
)
from iotjobs.transports.topics import is_thing_name

SERVICE = "iotjobs.service"
HASH = hash_password("secret")
LISTENER = Listener("127.0.0.1", 1883, 1000, 2000, 1)


def process(directory: Path, **more: object) -> BrokerProcess:
    return BrokerProcess(directory, service_username=SERVICE, service_password="secret", **more)


def test_a_hash_is_salted_pbkdf2_in_mosquittos_form() -> None:
    _, kind, iterations, salt, digest = hash_password("geheim").split("$")

    assert kind == "7"
    expected = hashlib.pbkdf2_hmac("sha512", b"geheim", base64.b64decode(salt), int(iterations))
    assert base64.b64decode(digest) == expected
    assert len(base64.b64decode(salt)) == 12
    assert hash_password("geheim") != hash_password("geheim")


def test_the_configuration_has_what_the_design_demands() -> None:
    lines = configuration_text(Path("/var/lib/iot jobs"), LISTENER, as_root=False).splitlines()

    assert lines[0] == "listener 1883 127.0.0.1"
    assert {
        "allow_anonymous false",
        "password_file /var/lib/iot jobs/passwords",
        "acl_file /var/lib/iot jobs/acl",
        "persistence true",
        "persistence_location /var/lib/iot jobs/",
        "autosave_on_changes true",
        "autosave_interval 1",
        "set_tcp_nodelay true",
        "max_queued_messages 100000000",
        "max_queued_bytes 2000",
        "max_inflight_messages 256",
        "max_packet_size 1000",
    } <= set(lines)
    assert "user root" not in lines
    assert "user root" in configuration_text(Path("/d"), LISTENER, as_root=True).splitlines()


def test_a_directory_with_a_line_break_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        configuration_text(Path("/a\nallow_anonymous true"), LISTENER, as_root=False)


@pytest.mark.parametrize("bind", ["", "127.0.0.1\nallow_anonymous true", "a b", "127.0.0.1 #"])
def test_an_address_that_is_none_is_refused(bind: str) -> None:
    with pytest.raises(ConfigurationError):
        Listener(bind, 1883, 1, 1, 1)


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "::1", "broker.plant.example"])
def test_an_address_to_listen_on(bind: str) -> None:
    assert Listener(bind, 1883, 1, 1, 1).bind == bind


@pytest.mark.check(20)
def test_the_acl_is_patterns_then_us_then_the_extras() -> None:
    credentials = [
        Credential("plain", HASH),
        Credential("lamp", HASH, read=("zigbee2mqtt/lamp/set",), write=("zigbee2mqtt/lamp", "a b/#")),
        Credential("aa:bb", HASH),
    ]

    assert acl_text(credentials, SERVICE).splitlines() == [
        "pattern readwrite iotjobs/%u/#",
        "pattern readwrite $aws/things/%u/#",
        "",
        "user iotjobs.service",
        "topic readwrite #",
        "topic readwrite $aws/#",
        "topic read $SYS/#",
        "",
        "user lamp",
        "topic read zigbee2mqtt/lamp/set",
        "topic write zigbee2mqtt/lamp",
        "topic write a b/#",
        "",
        "user aa.bb",
        "topic readwrite iotjobs/aa:bb/#",
        "topic readwrite $aws/things/aa:bb/#",
    ]


def test_the_password_file_has_a_line_for_each() -> None:
    assert password_text([Credential("aa:bb", HASH)], SERVICE, "h") == f"{SERVICE}:h\naa.bb:{HASH}\n"


hostile = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["+", "#", "a/b", "a\nuser root", "a\r", "a\0", "%u", "%c", " a", "a:b:$7$", "\u2028"]),
)


@pytest.mark.check(20)
@given(thing=hostile, topic_filter=hostile, password_hash=hostile)
def test_whatever_is_written_has_no_line_but_ours(thing: str, topic_filter: str, password_hash: str) -> None:
    for credential in (
        Credential(thing, HASH),
        Credential("a", password_hash),
        Credential("a", HASH, read=(topic_filter,)),
        Credential("a", HASH, write=(topic_filter,)),
    ):
        try:
            checked = check_credentials([credential], SERVICE)
        except BadRequest:
            continue
        rights = [f"topic read {name}" for name in credential.read]
        rights += [f"topic write {name}" for name in credential.write]
        if ":" in thing and credential.thing == thing:
            rights = [f"topic readwrite iotjobs/{thing}/#", f"topic readwrite $aws/things/{thing}/#"]
        extra = ["", f"user {broker_username(credential.thing)}", *rights] if rights else []
        assert acl_text(checked, SERVICE) == acl_text([], SERVICE) + "".join(f"{line}\n" for line in extra)
        assert not any(set(line) & set("\n\r\0") for line in extra)
        assert password_text(checked, SERVICE, HASH).count("\n") == 2


@pytest.mark.check(20)
@pytest.mark.parametrize(
    "credential",
    [
        Credential("+", HASH),
        Credential("#", HASH),
        Credential("a/b", HASH),
        Credential("a\0", HASH),
        Credential("%u", HASH),
        Credential("iotjobs.service", HASH),
        Credential("iotjobs:service", HASH),
        Credential("a", HASH + "\nroot:" + HASH),
        Credential("a", "plain text"),
        Credential("a", "$6$" + HASH[3:]),
        Credential("a", HASH, read=("#",)),
        Credential("a", HASH, read=("+/b",)),
        Credential("a", HASH, write=("iotjobs/b/report",)),
        Credential("a", HASH, write=("$aws/things/b/jobs/x",)),
        Credential("a", HASH, read=("$SYS/#",)),
        Credential("a", HASH, write=("x\ntopic readwrite #",)),
    ],
)
def test_a_hostile_credential_is_refused(credential: Credential, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        process(tmp_path).write_credentials([Credential("good", HASH), credential])

    assert list(tmp_path.iterdir()) == []


def test_two_things_do_not_share_a_login() -> None:
    with pytest.raises(BadRequest, match="already"):
        check_credentials([Credential("a", HASH), Credential("a", HASH)], SERVICE)


def test_a_colon_becomes_what_no_thing_name_has() -> None:
    assert broker_username("aa:bb") == "aa.bb"
    assert not is_thing_name("aa.bb")


@pytest.mark.check(20)
@pytest.mark.parametrize("username", ["iotjobs", "a:b", "", "a b.c", "a.b\nuser x", "%u.", "a.b#", "x/.y"])
def test_a_login_of_ours_that_a_thing_could_have_is_refused(username: str) -> None:
    with pytest.raises(ConfigurationError):
        check_service_username(username)


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    text = f"{process(tmp_path)!r} {process(tmp_path).address!r} {Credential('a', HASH)!r}"

    assert "secret" not in text
    assert HASH not in text


def test_a_replaced_file_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "passwords.new").symlink_to(tmp_path / "elsewhere")

    replace_file(path, "new\n")

    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["passwords"]


@pytest.mark.parametrize(
    ("bind", "host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")]
)
def test_our_own_connections_go_to_an_address_that_exists(bind: str, host: str, tmp_path: Path) -> None:
    address = process(tmp_path, bind=bind, port=7).address

    assert (address.host, address.port, address.username) == (host, 7, SERVICE)


async def test_stop_before_start(tmp_path: Path) -> None:
    broker = process(tmp_path)

    await broker.stop()

    assert (broker.running, broker.pid) == (False, None)


async def test_no_program_is_told(tmp_path: Path) -> None:
    broker = process(tmp_path, mosquitto_path=str(tmp_path / "none"))

    with pytest.raises(ConfigurationError, match="cannot be started"):
        await broker.start()
    await broker.stop()


async def test_not_installed_is_told_with_the_cure(tmp_path: Path, mocker) -> None:
    mocker.patch.object(broker_child.shutil, "which", return_value=None)

    with pytest.raises(ConfigurationError, match="apt-get install mosquitto"):
        await process(tmp_path).start()


def test_another_thread_than_the_main_one_is_refused(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            asyncio.run(process(tmp_path).start())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(5)

    assert "main thread" in str(errors[0])


async def test_a_program_that_ends_at_once_is_told_with_its_words(tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: nothing works' >&2\nexit 3\n")
    program.chmod(0o700)

    with pytest.raises(ConfigurationError, match="nothing works"):
        await process(tmp_path / "broker", mosquitto_path=str(program)).start()


async def test_a_child_that_does_not_end_is_killed(tmp_path: Path, mocker) -> None:
    mocker.patch.object(broker_child, "_END_WAIT_S", 0.1)
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho ready >&2\nwhile :; do sleep 1; done\n")
    program.chmod(0o700)
    child = broker_child.BrokerChild(str(program), tmp_path, keep_open=None)
    async with asyncio.timeout(5):
        while child.last_words != "ready":  # noqa: ASYNC110 - its pipe is the signal, and the child reads that
            await asyncio.sleep(0)

    assert await child.end() == -9
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


async def test_a_connect_packet_has_its_length_in_as_many_bytes_as_it_needs() -> None:
    short, long = connect_packet("u", "p"), connect_packet("u", "p" * 300)

    assert short[1] == len(short) - 2
    assert (long[1] & 0x7F | long[2] << 7) == len(long) - 3
    with pytest.raises(BadRequest):
        connect_packet("u", "p" * 65_536)


@pytest.mark.parametrize(
    ("bind", "name", "host"),
    [
        ("127.0.0.1", "site.example", "127.0.0.1"),
        ("10.0.0.9", "site.example", "10.0.0.9"),
        ("0.0.0.0", "site.example", "site.example"),
        ("::", "fd00::1", "[fd00::1]"),
        ("0.0.0.0", "127.0.0.1", socket.gethostname()),
        ("0.0.0.0", "localhost", socket.gethostname()),
        ("0.0.0.0", "a b\n", socket.gethostname()),
        ("::", None, socket.gethostname()),
    ],
)
def test_devices_are_told_an_address_that_they_can_use(
    tmp_path: Path, bind: str, name: str | None, host: str
) -> None:
    assert process(tmp_path, bind=bind, port=1884).found_by(name) == f"mqtt://{host}:1884"

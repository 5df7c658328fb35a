from __future__ import annotations

import asyncio
import logging
import os
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from iotjobs.domain.errors import ConfigurationError, OperationFailed
from iotjobs.transports import broker as broker_module
from iotjobs.transports.broker import BrokerProcess
from iotjobs.transports.broker_files import Credential, hash_password
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher
from iotjobs.transports.mqtt_address import BrokerAddress
from iotjobs.transports.mqtt_messages import MqttMessage, Received
from tests.services.mosquitto import SERVICE, OurBroker, nothing, until
from tests.services.programs import free_port, require_program


class People(AsyncExitStack):
    """Clients that are gone at the end."""

    async def publisher(self, address: BrokerAddress) -> MqttPublisher:
        publisher = MqttPublisher(address)
        self.push_async_callback(publisher.stop)
        await publisher.start()
        assert await publisher.wait_connected(10)
        return publisher

    async def consumer(
        self, address: BrokerAddress, *filters: str, client_id: str | None = None
    ) -> tuple[MqttConsumer, asyncio.Queue[Received]]:
        queue: asyncio.Queue[Received] = asyncio.Queue()

        def handle(received: Received) -> None:
            queue.put_nowait(received)
            received.ack()

        client_id = client_id or f"iotjobs-{secrets.token_hex(16)}"
        consumer = MqttConsumer(address, client_id=client_id, filters=filters, handler=handle)
        self.push_async_callback(consumer.stop)
        await consumer.start()
        assert await consumer.wait_connected(10)
        return consumer, queue


async def received(queue: asyncio.Queue[Received], within_s: float = 10) -> Received:
    return await asyncio.wait_for(queue.get(), within_s)


# --- the process ----------------------------------------------------------------------------------


async def test_started_twice_it_is_one_and_its_files_are_ours_alone(broker: OurBroker) -> None:
    pid = broker.process.pid

    await asyncio.gather(broker.process.start(), broker.process.start())

    assert broker.process.pid == pid
    assert stat.S_IMODE(broker.directory.stat().st_mode) == 0o700
    for name in ("passwords", "acl", "mosquitto.conf"):
        assert stat.S_IMODE((broker.directory / name).stat().st_mode) == 0o600


async def test_stopped_twice_it_is_gone_and_can_be_started_again(broker: OurBroker) -> None:
    pid = broker.process.pid
    assert pid is not None

    await broker.process.stop()
    await broker.process.stop()

    assert not broker.process.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await broker.process.start()
    assert broker.process.running


async def keep_for_an_absent_one(people: People, address: BrokerAddress, count: int) -> MqttConsumer:
    """A consumer that is away, and messages `t/0` … that wait for it."""
    consumer, _ = await people.consumer(address, "t/#", client_id="c")
    await consumer.stop()
    publisher = await people.publisher(address)
    for number in range(count):
        await publisher.publish(MqttMessage(f"t/{number}"), nothing)
    # Mosquitto saves after the acknowledgements of one turn of its loop: a round trip, and it has.
    await publisher.publish(MqttMessage("other"), nothing)
    await publisher.stop()
    return consumer


async def kill(process: BrokerProcess) -> None:
    """As a crash would; it is back when this returns."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: not process.running)
    await until(lambda: process.running, 10)


async def test_a_broker_that_dies_is_started_again_and_forgets_nothing(
    make_broker: Callable[..., BrokerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    process = make_broker(autosave_changes=1)
    await process.start()
    pid = process.pid
    async with People() as people:
        await keep_for_an_absent_one(people, process.address, 100)

        await kill(process)

        assert process.pid != pid
        assert "mosquitto ended and is started again" in caplog.messages
        _, queue = await people.consumer(process.address, "t/#", client_id="c")
        assert {(await received(queue)).topic for _ in range(100)} == {f"t/{number}" for number in range(100)}
    await process.stop()


async def test_what_few_changes_left_unsaved_is_saved_by_the_clock(
    make_broker: Callable[..., BrokerProcess], tmp_path: Path, mocker
) -> None:
    mocker.patch.object(broker_module, "_SAVE_EVERY_S", 0.05)
    process = make_broker(autosave_changes=1_000_000)
    await process.start()
    async with People() as people:
        await keep_for_an_absent_one(people, process.address, 3)
        store = tmp_path / "broker" / "mosquitto.db"
        await until(lambda: store.exists() and b"t/2" in store.read_bytes())

        await kill(process)

        _, queue = await people.consumer(process.address, "t/#", client_id="c")
        assert {(await received(queue)).topic for _ in range(3)} == {"t/0", "t/1", "t/2"}
    await process.stop()


async def test_a_taken_port_is_told_and_waited_for(tmp_path: Path, mosquitto_path: str, mocker) -> None:
    mocker.patch.object(broker_module, "_PORT_WAIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = BrokerProcess(
            tmp_path / "b",
            service_username=SERVICE,
            service_password="x",
            port=port,
            mosquitto_path=mosquitto_path,
        )
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            await process.start()
        mocker.patch.object(broker_module, "_PORT_WAIT_S", 10)
        starting = asyncio.create_task(process.start())
        await asyncio.sleep(0)
        assert not starting.done()
    await asyncio.wait_for(starting, 10)
    await process.stop()


PARENT = """
import asyncio, sys
from pathlib import Path
from iotjobs.transports.broker import BrokerProcess

async def main():
    directory, port, program = sys.argv[1:]
    broker = BrokerProcess(
        Path(directory), service_username="iotjobs.service", service_password="geheim", port=int(port),
        mosquitto_path=program,
    )
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_broker_ends_with_its_killed_parent_and_the_next_takes_over(
    tmp_path: Path, mosquitto_path: str
) -> None:
    port, directory = free_port(), tmp_path / "broker"
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(directory), str(port), mosquitto_path), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    address = BrokerAddress("127.0.0.1", port, SERVICE, "geheim")
    async with People() as people:
        consumer, queue = await people.consumer(address, "t/#", client_id="c")
        await consumer.stop()
        publisher = await people.publisher(address)
        for number in range(20):
            await publisher.publish(MqttMessage(f"t/{number}"), nothing)
        await publisher.stop()

        child = os.pidfd_open(pid)
        parent.kill()
        process = BrokerProcess(
            directory,
            service_username=SERVICE,
            service_password="geheim",
            port=port,
            mosquitto_path=mosquitto_path,
        )
        await process.start()  # at once: it waits for the earlier one's end itself
        gone, _, _ = select.select([child], [], [], 0)
        os.close(child)
        await parent.wait()

        assert gone
        await consumer.start()
        assert {(await received(queue)).topic for _ in range(20)} == {f"t/{number}" for number in range(20)}
        await consumer.stop()
        await process.stop()


async def test_a_login_reaches_neither_log_nor_command_line(broker: OurBroker, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    password = await broker.enrol("a")
    client_id = f"iotjobs-{secrets.token_hex(16)}"
    async with People() as people:
        first, _ = await people.consumer(broker.address, "t", client_id=client_id)
        await people.consumer(
            broker.address, "t", client_id=client_id
        )  # a takeover, which brokers like to tell
        await until(lambda: not first.connected)
        assert not await broker.process.test_connect("a", "wrong", within_s=0.1)
    command = Path(f"/proc/{broker.process.pid}/cmdline").read_text()  # noqa: ASYNC240 - not a disk
    environment = Path(f"/proc/{broker.process.pid}/environ").read_text()  # noqa: ASYNC240 - not a disk

    for secret in (password, client_id, broker.address.password):
        assert secret is not None
        assert secret not in f"{command}{environment}{broker.process!r}"
        assert not any(secret in str(vars(record)) for record in caplog.records)


# --- who is let in --------------------------------------------------------------------------------


async def test_a_new_thing_is_let_in_while_others_stay_connected(broker: OurBroker) -> None:
    async with People() as people:
        first = broker.login("first", await broker.enrol("first"))
        consumer, _ = await people.consumer(first, "iotjobs/first/cmd/#")
        publisher = await people.publisher(broker.address)
        before = consumer._connection, publisher._connection, broker.process.pid

        second = broker.login("second", await broker.enrol("second"))
        _, queue = await people.consumer(second, "iotjobs/second/cmd/#")
        await publisher.publish(MqttMessage("iotjobs/second/cmd/x"), nothing)

        assert (await received(queue)).topic == "iotjobs/second/cmd/x"
        assert (consumer._connection, publisher._connection, broker.process.pid) == before


async def test_a_withdrawn_thing_is_thrown_out(broker: OurBroker) -> None:
    async with People() as people:
        password = await broker.enrol("a")
        consumer, _ = await people.consumer(broker.login("a", password), "iotjobs/a/cmd/#")
        await broker.enrol("b")
        del broker.credentials["a"]

        broker.process.write_credentials(broker.credentials.values())

        await until(lambda: not consumer.connected)
        assert not await broker.process.test_connect("a", password, within_s=0.2)


@pytest.mark.parametrize("password", ["a:b", "pass wörd 😀", "$7$101$x", "#", " lead", "x" * 500])
async def test_any_password_works(password: str, broker: OurBroker) -> None:
    broker.process.write_credentials([Credential("a", hash_password(password))])

    assert await broker.process.test_connect("a", password)
    assert not await broker.process.test_connect("a", password + "x", within_s=0.1)


async def test_our_hash_is_one_that_mosquittos_own_tool_makes(tmp_path: Path) -> None:
    tool = require_program("mosquitto_passwd", package="mosquitto")
    file = tmp_path / "passwords"
    process = await asyncio.create_subprocess_exec(tool, "-b", "-c", str(file), "a", "geheim")
    assert await process.wait() == 0

    theirs = file.read_text().strip().removeprefix("a:").split("$")
    ours = hash_password("geheim").split("$")

    assert [len(part) for part in theirs] == [len(part) for part in ours]
    assert theirs[:3] == ours[:3]


async def test_a_thing_with_a_colon_logs_in_with_a_dot(broker: OurBroker) -> None:
    async with People() as people:
        thing = "aa:bb:cc"
        address = broker.login(thing, await broker.enrol(thing))
        assert address.username == "aa.bb.cc"
        _, mine = await people.consumer(address, f"iotjobs/{thing}/cmd/#")
        _, service = await people.consumer(broker.address, "iotjobs/+/report")

        await (await people.publisher(broker.address)).publish(MqttMessage(f"iotjobs/{thing}/cmd/x"), nothing)
        await (await people.publisher(address)).publish(MqttMessage(f"iotjobs/{thing}/report"), nothing)

        assert (await received(mine)).topic == f"iotjobs/{thing}/cmd/x"
        assert (await received(service)).topic == f"iotjobs/{thing}/report"


async def test_credentials_written_before_the_start_are_there(tmp_path: Path, mosquitto_path: str) -> None:
    process = BrokerProcess(
        tmp_path / "b",
        service_username=SERVICE,
        service_password="x",
        port=free_port(),
        mosquitto_path=mosquitto_path,
    )
    process.write_credentials([Credential("a", hash_password("geheim"))])
    starting = asyncio.create_task(process.start())
    await asyncio.sleep(0)
    process.write_credentials([Credential("b", hash_password("geheim"))])
    await starting

    assert await process.test_connect("b", "geheim")
    assert not await process.test_connect("a", "geheim", within_s=0.1)
    await process.stop()


async def test_nobody_is_let_in_without_a_login(broker: OurBroker) -> None:
    publisher = MqttPublisher(BrokerAddress(broker.address.host, broker.address.port))
    await publisher.start()

    assert not await publisher.wait_connected(0.3)
    await publisher.stop()


# --- check 20 -------------------------------------------------------------------------------------

HOSTILE_FILTERS = (
    "#",
    "+",
    "+/#",
    "+/+/+",
    "/#",
    "iotjobs/#",
    "iotjobs/+/report",
    "iotjobs/+/cmd/#",
    "iotjobs/b/#",
    "iotjobs/b/report",
    "iotjobs/b",
    "iotjobs/a/../b/#",
    "iotjobs/%u/#",
    "iotjobs/B/#",
    "$aws/things/b/#",
    "$aws/things/+/jobs/#",
    "$aws/#",
    "$SYS/#",
    "$SYS/broker/uptime",
    "$SYS/broker/clients/connected",
    "$CONTROL/#",
    "tele/#",
    "$share/theirs/iotjobs/#",
    "$share/theirs/#",
    "$share/theirs/iotjobs/b/#",
    "$share/theirs/$aws/things/b/#",
)

OF_B = (
    "iotjobs/b",
    "iotjobs/b/report",
    "iotjobs/b/status",
    "iotjobs/b/cmd/restart",
    "iotjobs/b/jobs/1/results",
    "iotjobs/b/jobs/1/answer",
    "iotjobs/b/jobs/1/output/stdout",
    "$aws/things/b/shadow/update",
    "$aws/things/b/jobs/start-next",
)

NOBODYS = (
    "iotjobs",
    "iotjobs/",
    "other",
    "$aws/things",
    "$SYS/broker/uptime",
    "tele/b",
    "/iotjobs/a/report",
    "iotjobs//report",
)


@pytest.mark.check(20)
async def test_a_device_receives_nothing_of_others_whatever_it_subscribes_to(broker: OurBroker) -> None:
    async with People() as people:
        mallory = broker.login("a", await broker.enrol("a"))
        victim = broker.login("b", await broker.enrol("b", write=("tele/b",)))
        from_victim = await people.publisher(victim)
        from_service = await people.publisher(broker.address)
        for topic in (*OF_B, "tele/b"):  # retained ones that are there already
            await from_victim.publish(MqttMessage(topic, b"retained", retain=True), nothing)
        consumer, stolen = await people.consumer(mallory, *HOSTILE_FILTERS, "iotjobs/a/cmd/#")

        for publisher in (from_victim, from_service):
            for topic in OF_B:
                await publisher.publish(MqttMessage(topic, b"live"), nothing)
        await from_victim.publish(MqttMessage("tele/b", b"live"), nothing)
        await from_service.publish(MqttMessage("iotjobs/a/cmd/end", b"mine"), nothing)

        # Delivered in order: what came before its own message is all that it will ever see of these.
        topics = set()
        while (topic := (await received(stolen)).topic) != "iotjobs/a/cmd/end":
            topics.add(topic)
        assert topics == set()
        assert consumer.connected


@pytest.mark.check(20)
async def test_a_device_publishes_nowhere_but_on_its_own(broker: OurBroker) -> None:
    async with People() as people:
        mallory = await people.publisher(
            broker.login("a", await broker.enrol("a", write=("tele/a",), read=("tele/r",)))
        )
        await broker.enrol("b")
        _, service = await people.consumer(broker.address, "#", "$aws/#", "$SYS/broker/uptime/none")

        for topic in (*OF_B, *NOBODYS, "tele/r", "tele/a/x"):
            with pytest.raises(OperationFailed, match="Not authorized"):
                await mallory.publish(MqttMessage(topic, b"forged"), nothing)
            await mallory.publish(MqttMessage(topic, b"forged", qos=0), nothing)
            with pytest.raises(OperationFailed, match="Not authorized"):
                await mallory.publish(MqttMessage(topic, b"forged", retain=True), nothing)
        for topic in ("tele/a", "$aws/things/a/shadow/update", "iotjobs/a", "iotjobs/a/report"):
            await mallory.publish(MqttMessage(topic, b"honest"), nothing)

        seen = [await received(service) for _ in range(4)]
        assert [message.topic for message in seen] == [
            "tele/a",
            "$aws/things/a/shadow/update",
            "iotjobs/a",
            "iotjobs/a/report",
        ]


@pytest.mark.check(20)
async def test_a_last_will_on_anothers_topic_is_not_sent(broker: OurBroker, mosquitto_sub_path: str) -> None:
    async with People() as people:
        password = await broker.enrol("a")
        await broker.enrol("b")
        _, service = await people.consumer(broker.address, "iotjobs/+/status")
        publisher = await people.publisher(broker.address)

        for victim in ("b", "a"):  # its own is the proof that a will is sent at all
            login = ("-p", str(broker.address.port), "-u", "a", "-P", password, "-V", "5")
            client = await asyncio.create_subprocess_exec(
                *(mosquitto_sub_path, *login, "-t", f"iotjobs/a/cmd/{victim}", "-q", "1"),
                *("--will-topic", f"iotjobs/{victim}/status", "--will-payload", "offline"),
                stdout=subprocess.PIPE,
            )
            assert client.stdout is not None
            async with asyncio.timeout(10):
                while True:
                    end = await publisher.publish(MqttMessage(f"iotjobs/a/cmd/{victim}", b"up"), nothing)
                    if not end.no_subscriber:
                        break
            assert await asyncio.wait_for(client.stdout.readline(), 10) == b"up\n"
            client.kill()
            await client.wait()

        assert (await received(service)).topic == "iotjobs/a/status"


@pytest.mark.check(20)
@pytest.mark.parametrize("username", ["+", "#", "a/b", "%u", "", "a\x01", "iotjobs.service", "a:x", "A"])
async def test_a_login_that_was_never_given_is_refused(username: str, broker: OurBroker) -> None:
    password = await broker.enrol("a")

    assert not await broker.process.test_connect(username, password, within_s=0.1)


@pytest.mark.check(20)
async def test_the_service_sees_everything(broker: OurBroker) -> None:
    async with People() as people:
        _, queue = await people.consumer(
            broker.address, "$SYS/broker/version", "iotjobs/#", "$aws/#", "zigbee2mqtt/#"
        )
        assert (await received(queue)).topic == "$SYS/broker/version"
        publisher = await people.publisher(broker.address)

        for topic in ("iotjobs/a/cmd/x", "$aws/things/a/jobs/notify", "zigbee2mqtt/lamp/set"):
            await publisher.publish(MqttMessage(topic), nothing)
            assert (await received(queue)).topic == topic

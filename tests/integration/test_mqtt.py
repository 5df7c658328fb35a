from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice

from iotjobs.domain.errors import CredentialsRefused, DeviceUnreachable, LinkLost, OperationFailed
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher, PublishEnd
from iotjobs.transports.mqtt_address import BrokerAddress, ConnectionEnded
from iotjobs.transports.mqtt_messages import MqttMessage, Received, pack_varint
from iotjobs.transports.topics import JOB_ID_PROPERTY
from tests.services.fleet import ALONE_S
from tests.services.mosquitto import Mosquitto, OurBroker, nothing, until

JOB = "0199f3c2a7d47c4e9f0b6f6f6c1f2a10"
Start = Callable[..., Mosquitto]


class Inbox:
    """Keeps what comes, acknowledged at once unless told otherwise."""

    def __init__(self, *, ack: bool = True) -> None:
        self.ack, self.all, self._queue = ack, list[Received](), asyncio.Queue[Received]()

    def __call__(self, received: Received) -> None:
        self.all.append(received)
        self._queue.put_nowait(received)
        if self.ack:
            received.ack()

    async def next(self, within_s: float = 10) -> Received:
        return await asyncio.wait_for(self._queue.get(), within_s)

    async def take(self, count: int) -> list[Received]:
        return [await self.next() for _ in range(count)]


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[MqttPublisher]]]:
    publishers: list[MqttPublisher] = []

    async def make(address: BrokerAddress, **more: float) -> MqttPublisher:
        publisher = MqttPublisher(address, **more)
        publishers.append(publisher)
        await publisher.start()
        assert await publisher.wait_connected(10)
        return publisher

    yield make
    for publisher in publishers:
        await publisher.stop()


@pytest.fixture
async def consume() -> AsyncIterator[Callable[..., Awaitable[MqttConsumer]]]:
    consumers: list[MqttConsumer] = []

    async def make(
        address: BrokerAddress,
        handler: Callable[[Received], None],
        *filters: str,
        client_id: str = "",
        **more: int,
    ) -> MqttConsumer:
        consumer = MqttConsumer(
            address,
            client_id=client_id or f"iotjobs-{secrets.token_hex(16)}",
            filters=filters,
            handler=handler,
            **more,
        )
        consumers.append(consumer)
        await consumer.start()
        assert await consumer.wait_connected(10)
        return consumer

    yield make
    for consumer in consumers:
        await consumer.stop()


@pytest.fixture
async def devices() -> AsyncIterator[Callable[..., Awaitable[PretendDevice]]]:
    started: list[PretendDevice] = []

    async def make(thing: str, address: BrokerAddress, **more: object) -> PretendDevice:
        given = {"spread_s": ALONE_S, **more}
        device = PretendDevice(thing, address.host, address.port, address.username, address.password, **given)
        started.append(device)
        await device.start()
        return device

    yield make
    for device in started:
        await device.stop()


# --- one message ----------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_arrives_with_all_it_carries(
    qos: int, start_mosquitto: Start, connect, consume
) -> None:
    address = start_mosquitto().address
    inbox = Inbox()
    await consume(address, inbox, "t/#")
    publisher = await connect(address)
    message = MqttMessage(
        "t/ä/1",
        b"\0\xff{}",
        qos=qos,
        expiry_s=60,
        user_properties=((JOB_ID_PROPERTY, JOB), ("x", "")),
        response_topic="iotjobs/a/jobs/1/answer",
        correlation_data=b"\0\1",
        content_type="application/json",
    )

    end = await publisher.publish(message, nothing)

    assert end == PublishEnd(0, "Success")
    received = await inbox.next()
    assert (received.topic, received.payload, received.qos, received.retain) == (
        "t/ä/1",
        b"\0\xff{}",
        qos,
        False,
    )
    assert received.user_properties == message.user_properties
    assert received.user_property(JOB_ID_PROPERTY) == JOB
    assert (received.response_topic, received.correlation_data) == ("iotjobs/a/jobs/1/answer", b"\0\1")
    assert received.content_type == "application/json"


async def test_a_foreign_client_sees_the_job_id_and_the_rest(
    start_mosquitto: Start, connect, mosquitto_sub_path: str
) -> None:
    mosquitto = start_mosquitto()
    publisher = await connect(mosquitto.address)
    retained = MqttMessage(
        "t",
        b"hello",
        retain=True,
        expiry_s=1000,
        user_properties=((JOB_ID_PROPERTY, JOB),),
        response_topic="r",
    )
    await publisher.publish(retained, nothing)

    client = await asyncio.create_subprocess_exec(
        *(mosquitto_sub_path, "-p", str(mosquitto.port), "-V", "5", "-t", "t", "-C", "1", "-W", "10"),
        *("-F", "%p|%q|%r|%P|%R|%E"),
        stdout=subprocess.PIPE,
    )
    out, _ = await client.communicate()

    payload, qos, retain, properties, response, expiry = out.decode().strip().split("|")
    assert (payload, qos, retain, properties, response) == (
        "hello",
        "0",
        "1",
        f"{JOB_ID_PROPERTY}:{JOB}",
        "r",
    )
    assert 990 <= int(expiry) <= 1000


async def test_nobody_listening_is_told(start_mosquitto: Start, connect) -> None:
    publisher = await connect(start_mosquitto().address)

    end = await publisher.publish(MqttMessage("nobody"), nothing)

    assert end.no_subscriber
    assert (end.reason_code, end.reason) == (0x10, "No matching subscribers")


async def test_a_retained_message_waits_for_its_reader(start_mosquitto: Start, connect, consume) -> None:
    address = start_mosquitto().address
    publisher = await connect(address)
    await publisher.publish(MqttMessage("t", b"kept", retain=True), nothing)
    inbox = Inbox()
    await consume(address, inbox, "t")

    received = await inbox.next()

    assert (received.payload, received.retain) == (b"kept", True)


async def test_an_expired_message_is_not_delivered(start_mosquitto: Start, connect, consume) -> None:
    address = start_mosquitto().address
    await (await consume(address, Inbox(), "t", client_id="c")).stop()
    publisher = await connect(address)
    await publisher.publish(MqttMessage("t", b"short", expiry_s=1), nothing)
    await publisher.publish(MqttMessage("t", b"long", expiry_s=1000), nothing)

    # Time has to pass in the broker, which has whole seconds.
    await (await asyncio.create_subprocess_exec("sleep", "2.2")).wait()
    inbox = Inbox()
    await consume(address, inbox, "t", client_id="c")

    assert (await inbox.next()).payload == b"long"


async def test_twenty_megabytes_arrive_whole(start_mosquitto: Start, connect, consume) -> None:
    address = start_mosquitto().address
    inbox = Inbox()
    await consume(address, inbox, "t")
    publisher = await connect(address)
    payload = secrets.token_bytes(20 << 20)

    await asyncio.gather(
        publisher.publish(MqttMessage("t", payload), nothing),
        publisher.publish(MqttMessage("t", b"", qos=0), nothing),
    )

    assert [len(message.payload) for message in await inbox.take(2)] == [20 << 20, 0]
    assert inbox.all[0].payload == payload


async def test_what_is_too_large_for_the_broker_is_refused_and_the_connection_stays(
    start_mosquitto: Start, connect, mocker
) -> None:
    publisher = await connect(start_mosquitto("max_packet_size 2000").address)
    before_send = mocker.AsyncMock()

    with pytest.raises(OperationFailed, match="2000"):
        await publisher.publish(MqttMessage("t", b"x" * 2000), before_send)

    before_send.assert_not_awaited()
    # Exactly the limit passes: 1 + 2 bytes of header, 3 of topic, 2 of packet id, 1 of properties.
    assert (await publisher.publish(MqttMessage("t", b"x" * (2000 - 9)), nothing)).no_subscriber
    with pytest.raises(OperationFailed):
        await publisher.publish(MqttMessage("t", b"x" * (2000 - 8)), nothing)


async def test_a_flood_of_large_messages_does_not_stop_the_rest(
    start_mosquitto: Start, connect, consume
) -> None:
    address = start_mosquitto().address
    inbox = Inbox()
    await consume(address, inbox, "t", receive_maximum=2)
    publisher = await connect(address)

    for _ in range(5):
        await publisher.publish(MqttMessage("t", b"x" * (1 << 20)), nothing)
    await publisher.publish(MqttMessage("t", b"small"), nothing)

    assert (await inbox.take(6))[-1].payload == b"small"


# --- refusals -------------------------------------------------------------------------------------


async def test_a_wrong_password_is_told(broker: OurBroker, mocker) -> None:
    before_send = mocker.AsyncMock()
    publisher = MqttPublisher(broker.login("a", "wrong"), connect_wait_s=0.5)
    await publisher.start()

    with pytest.raises(CredentialsRefused, match="Not authorized"):
        await publisher.publish(MqttMessage("iotjobs/a/report"), before_send)

    before_send.assert_not_awaited()
    await publisher.stop()


async def test_a_topic_that_the_broker_forbids_is_told(broker: OurBroker, connect) -> None:
    password = await broker.enrol("a")
    publisher = await connect(broker.login("a", password))

    with pytest.raises(OperationFailed, match="Not authorized") as error:
        await publisher.publish(MqttMessage("iotjobs/b/report"), nothing)

    assert error.value.code == "brokerRefused"
    assert publisher.connected


# --- TLS ------------------------------------------------------------------------------------------


async def test_over_tls_many_and_large_messages_arrive(
    start_mosquitto: Start, certificates: Path, connect, consume
) -> None:
    mosquitto = start_mosquitto(f"certfile {certificates}/server.pem", f"keyfile {certificates}/key.pem")
    address = BrokerAddress.parse(f"mqtts://127.0.0.1:{mosquitto.port}", ca_file=certificates / "ca.pem")
    inbox = Inbox()
    await consume(address, inbox, "t")
    publisher = await connect(address)

    await asyncio.gather(
        *(publisher.publish(MqttMessage("t", b"%d" % number), nothing) for number in range(500)),
        publisher.publish(MqttMessage("t", b"x" * (3 << 20)), nothing),
    )

    assert len(await inbox.take(501)) == 501
    assert {int(message.payload) for message in inbox.all if len(message.payload) < 10} == set(range(500))


async def test_a_certificate_of_an_unknown_ca_is_not_trusted(
    start_mosquitto: Start, certificates: Path
) -> None:
    mosquitto = start_mosquitto(f"certfile {certificates}/server.pem", f"keyfile {certificates}/key.pem")
    publisher = MqttPublisher(
        BrokerAddress.parse(f"mqtts://u:geheim@127.0.0.1:{mosquitto.port}"), connect_wait_s=0.5
    )
    await publisher.start()

    with pytest.raises(DeviceUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
        await publisher.publish(MqttMessage("t"), nothing)

    await publisher.stop()


async def test_what_tls_holds_decrypted_is_not_left_lying(certificates: Path, consume) -> None:
    # paho stops after 100 reads of one message; here the hundredth record ends it and has the next one too.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "key.pem")
    large = b"\0\5t/big\0\1\0" + b"x" * 100_000
    records = [
        b"\x32" + pack_varint(len(large)),
        *(large[at : at + 1001] for at in range(0, len(large), 1001)),
    ]
    assert len(records) == 101
    records[:2] = [records[0] + records[1]]
    records += [records.pop() + b"\x32\x0c\0\7t/small\0\2\0"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\3\0\0\0")
        subscribe = await reader.read(1000)
        writer.write(b"\x90\4" + subscribe[2:4] + b"\0\1")
        for record in records:
            writer.write(record)
            await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        inbox = Inbox()
        address = BrokerAddress("127.0.0.1", port, tls=True, ca_file=certificates / "ca.pem")
        consumer = await consume(address, inbox, "t/#")

        assert [message.topic for message in (await inbox.next(3), await inbox.next(3))] == [
            "t/big",
            "t/small",
        ]
        await consumer.stop()


# --- brokers that go and come ---------------------------------------------------------------------


async def test_a_broker_that_is_down_sends_nothing_and_comes_back(
    start_mosquitto: Start, connect, mocker
) -> None:
    mosquitto = start_mosquitto()
    publisher = await connect(mosquitto.address, connect_wait_s=0.3)
    mosquitto.stop()
    await until(lambda: not publisher.connected)
    before_send = mocker.AsyncMock()

    with pytest.raises(DeviceUnreachable) as error:
        await publisher.publish(MqttMessage("t"), before_send)

    assert not error.value.maybe_executed
    before_send.assert_not_awaited()
    mosquitto.start()
    assert await publisher.wait_connected(10)
    assert (await publisher.publish(MqttMessage("t"), nothing)).no_subscriber


async def test_a_killed_broker_ends_every_publish_and_none_arrives_twice(
    start_mosquitto: Start, connect, consume
) -> None:
    mosquitto = start_mosquitto()
    inbox = Inbox()
    await consume(mosquitto.address, inbox, "t/#", client_id="counter")
    publisher = await connect(mosquitto.address, window=100, connect_wait_s=10)
    sent: list[int] = []

    async def publish(number: int) -> PublishEnd:
        async def before_send() -> None:
            sent.append(number)

        return await publisher.publish(MqttMessage(f"t/{number}"), before_send)

    mosquitto.freeze()  # 100 of the 150 are under way and none can be acknowledged
    publishing = [asyncio.create_task(publish(number)) for number in range(150)]
    await until(lambda: len(sent) == 100)
    await publisher_flushed(publisher)
    mosquitto.kill()
    mosquitto.start()
    ends = await asyncio.wait_for(asyncio.gather(*publishing, return_exceptions=True), 30)

    outcomes = Counter(type(end) for end in ends)
    assert outcomes[LinkLost] == 100
    assert outcomes[PublishEnd] == 50
    assert len(sent) == 150
    assert len(await inbox.take(50)) >= 50
    await publisher.publish(MqttMessage("t/end"), nothing)
    while inbox.all[-1].topic != "t/end":
        await inbox.next()
    twice = [topic for topic, count in Counter(message.topic for message in inbox.all).items() if count > 1]
    assert all(any(message.duplicate for message in inbox.all if message.topic == topic) for topic in twice)
    assert {f"t/{number}" for number, end in enumerate(ends) if isinstance(end, PublishEnd)} <= {
        message.topic for message in inbox.all
    }


async def publisher_flushed(publisher: MqttPublisher) -> None:
    """Everything is in the kernel's hands."""
    connection = publisher._connection
    assert connection is not None
    await until(lambda: not connection._client.want_write())


async def test_a_broker_killed_under_load_leaves_no_publish_without_an_end(
    start_mosquitto: Start, connect, consume
) -> None:
    mosquitto = start_mosquitto()
    inbox = Inbox()
    await consume(mosquitto.address, inbox, "t/#", client_id="counter")
    publisher = await connect(mosquitto.address, connect_wait_s=10)
    ends: Counter[str] = Counter()
    acknowledged: set[str] = set()
    numbers = iter(range(3000))

    async def publish_on() -> None:
        for number in numbers:
            try:
                await publisher.publish(MqttMessage(f"t/{number}"), nothing)
                ends["acknowledged"] += 1
                acknowledged.add(f"t/{number}")
            except (LinkLost, DeviceUnreachable) as error:
                ends[type(error).__name__] += 1

    workers = [asyncio.create_task(publish_on()) for _ in range(100)]
    for _ in range(3):
        seen = len(inbox.all)
        while len(inbox.all) < seen + 200:
            await inbox.next()
        mosquitto.kill()
        mosquitto.start()
    await asyncio.wait_for(asyncio.gather(*workers), 60)
    await publisher.publish(MqttMessage("t/end"), nothing)
    while inbox.all[-1].topic != "t/end":
        await inbox.next()

    assert ends.total() == 3000
    assert ends["LinkLost"] > 0
    counts = Counter(message.topic for message in inbox.all)
    for topic in (topic for topic, count in counts.items() if count > 1):
        assert any(message.duplicate for message in inbox.all if message.topic == topic), topic


async def test_a_frozen_broker_is_noticed_and_left(start_mosquitto: Start, connect, mocker) -> None:
    mocker.patch("iotjobs.transports.mqtt_adapter._KEEPALIVE_S", 1)
    mosquitto = start_mosquitto()
    publisher = await connect(mosquitto.address)
    mosquitto.freeze()

    with pytest.raises(LinkLost):
        await asyncio.wait_for(publisher.publish(MqttMessage("t"), nothing), 10)

    mosquitto.thaw()
    assert await publisher.wait_connected(20)


async def test_a_cancelled_publish_leaves_the_window_as_it_was(start_mosquitto: Start, connect) -> None:
    mosquitto = start_mosquitto()
    publisher = await connect(mosquitto.address, window=10)
    mosquitto.freeze()
    publishing = [asyncio.create_task(publisher.publish(MqttMessage("t"), nothing)) for _ in range(50)]
    await asyncio.sleep(0)
    await publisher_flushed(publisher)
    for task in publishing:
        task.cancel()
    await asyncio.gather(*publishing, return_exceptions=True)
    mosquitto.thaw()

    ends = await asyncio.wait_for(
        asyncio.gather(*(publisher.publish(MqttMessage("u"), nothing) for _ in range(50))), 10
    )

    assert len(ends) == 50
    connection = publisher._connection
    assert connection is not None
    assert (connection._acks, connection.window._free) == ({}, 10)


# --- consuming ------------------------------------------------------------------------------------


async def test_unacknowledged_messages_are_held_back_and_come_again(
    start_mosquitto: Start, connect, consume
) -> None:
    address = start_mosquitto().address
    first = Inbox(ack=False)
    consumer = await consume(address, first, "t/#", client_id="c", receive_maximum=5)
    publisher = await connect(address)
    for number in range(20):
        await publisher.publish(MqttMessage(f"t/{number}"), nothing)
    await first.take(5)
    assert len(first.all) == 5
    first.all[0].ack()
    assert (await first.next()).topic == "t/5"
    await consumer.stop()

    second = Inbox()
    await consume(address, second, "t/#", client_id="c", receive_maximum=5)
    again = await second.take(19)

    assert [message.topic for message in again] == [f"t/{number}" for number in range(1, 20)]
    assert all(message.duplicate for message in again[:5])


CONSUMER = """
import asyncio, sys
from iotjobs.transports.mqtt import MqttConsumer
from iotjobs.transports.mqtt_address import BrokerAddress

async def main():
    def handle(received):
        if int(received.topic[2:]) < int(sys.argv[2]):
            received.ack()
        print(received.topic, flush=True)
    address = BrokerAddress("127.0.0.1", int(sys.argv[1]))
    consumer = MqttConsumer(address, client_id="c", filters=["t/#"], handler=handle)
    await consumer.start()
    await consumer.wait_connected(10)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.check(15)
async def test_a_consumer_killed_between_receive_and_ack_gets_them_again(
    start_mosquitto: Start, connect, consume
) -> None:
    mosquitto = start_mosquitto()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONSUMER, str(mosquitto.port), "40", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 10) == b"ready\n"
    publisher = await connect(mosquitto.address)
    await asyncio.gather(*(publisher.publish(MqttMessage(f"t/{number}"), nothing) for number in range(100)))
    for _ in range(100):
        await asyncio.wait_for(process.stdout.readline(), 10)
    process.send_signal(signal.SIGKILL)
    await process.wait()

    inbox = Inbox()
    await consume(mosquitto.address, inbox, "t/#", client_id="c")
    wanted = {f"t/{number}" for number in range(40, 100)}
    while not wanted <= {message.topic for message in inbox.all}:
        await inbox.next()

    # An acknowledgement can die with its process: others may come again too, marked.
    assert all(message.duplicate for message in inbox.all)


async def test_a_session_that_the_broker_forgot_is_subscribed_anew(
    start_mosquitto: Start, connect, consume
) -> None:
    mosquitto = start_mosquitto("persistence false")
    inbox = Inbox()
    consumer = await consume(mosquitto.address, inbox, "t/#")
    publisher = await connect(mosquitto.address, connect_wait_s=10)
    mosquitto.kill()
    await until(lambda: not consumer.connected and not publisher.connected)
    mosquitto.start()
    assert await consumer.wait_connected(10)

    assert not (await publisher.publish(MqttMessage("t/1"), nothing)).no_subscriber
    assert (await inbox.next()).topic == "t/1"


async def test_what_an_earlier_run_subscribed_to_and_this_one_does_not_is_taken_back(
    start_mosquitto: Start, connect
) -> None:
    mosquitto, inbox = start_mosquitto(), Inbox()
    publisher = await connect(mosquitto.address)
    for filters in (["old/#", "t/#"], ["t/#", "new/#"]):
        consumer = MqttConsumer(
            mosquitto.address,
            client_id="iotjobs-one",
            filters=filters,
            earlier=["old/#", "t/#"],
            handler=inbox,
        )
        await consumer.start()
        assert await consumer.wait_connected(10)
        heard = [topic for topic in ("old/1", "t/1", "new/1") if not (await told(publisher, topic))]
        await consumer.stop()
        assert heard == [one.replace("#", "1") for one in filters]


async def told(publisher: MqttPublisher, topic: str) -> bool:
    """Whether nobody has subscribed to it."""
    return (await publisher.publish(MqttMessage(topic), nothing)).no_subscriber


async def test_a_new_session_is_told_before_anything_comes_of_it_and_subscribed_also_after_a_failure(
    start_mosquitto: Start, connect
) -> None:
    mosquitto, inbox, told = start_mosquitto("persistence false"), Inbox(), []

    async def is_new() -> None:
        told.append(len(inbox.all))
        if len(told) == 2:
            raise ConnectionEnded("the connection ended before it had subscribed")

    consumer = MqttConsumer(
        mosquitto.address, client_id="c", filters=["t/#"], handler=inbox, on_new_session=is_new
    )
    await consumer.start()
    try:
        assert await consumer.wait_connected(10)
        consumer._connection._drop(ConnectionEnded("cut"))  # type: ignore[union-attr]
        await until(lambda: not consumer.connected)
        assert await consumer.wait_connected(10)
        assert told == [0]
        mosquitto.kill()
        mosquitto.start()
        await until(lambda: len(told) == 3, 20)
        assert await consumer.wait_connected(10)
        publisher = await connect(mosquitto.address, connect_wait_s=10)
        await publisher.publish(MqttMessage("t/1"), nothing)
        assert (await inbox.next()).topic == "t/1"
    finally:
        await consumer.stop()
    assert told == [0, 0, 0]


async def test_a_stalled_consumer_loses_nothing(broker: OurBroker, connect, consume) -> None:
    inbox = Inbox(ack=False)
    await consume(broker.address, inbox, "iotjobs/+/report")
    publisher = await connect(broker.address)

    workers = [
        publisher.publish(MqttMessage("iotjobs/a/report", b"%d" % number), nothing) for number in range(3000)
    ]
    await asyncio.gather(*workers)
    inbox.ack = True
    for message in inbox.all:
        message.ack()

    numbers = {int(message.payload) for message in await inbox.take(3000)}
    assert numbers == set(range(3000))


async def test_a_refused_subscription_is_told(broker: OurBroker, connect, consume) -> None:
    consumer = await consume(broker.address, Inbox(), "iotjobs/+/report", "a/b")

    assert consumer.refused == {}


async def test_a_second_consumer_with_our_id_takes_the_session(
    start_mosquitto: Start, connect, consume
) -> None:
    address = start_mosquitto().address
    old, new = Inbox(), Inbox()
    first = await consume(address, old, "t", client_id="c")
    await consume(address, new, "t", client_id="c")
    await until(lambda: not first.connected)
    publisher = await connect(address)

    await publisher.publish(MqttMessage("t", b"x"), nothing)

    assert (await new.next()).payload == b"x"
    assert old.all == []


# --- pretend devices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "answer"),
    [
        (Behaviour.ANSWER, b'{"ok": true, "thing": "press", "jobId": "%s"}' % JOB.encode()),
        (Behaviour.SLOW, b'{"ok": true, "thing": "press", "jobId": "%s"}' % JOB.encode()),
        (Behaviour.REFUSE, b'{"ok": false, "error": "the valve is stuck"}'),
    ],
)
async def test_a_device_answers(
    behaviour: Behaviour, answer: bytes, broker: OurBroker, connect, consume, devices
) -> None:
    inbox = Inbox()
    await consume(broker.address, inbox, "iotjobs/+/jobs/+/answer", "iotjobs/+/jobs/+/results")
    address = broker.login("press", await broker.enrol("press"))
    device = await devices("press", address, behaviour=behaviour, answer_after_s=0.05, result={"seen": 1})
    publisher = await connect(broker.address)
    message = MqttMessage(
        "iotjobs/press/cmd/restart",
        b"{}",
        user_properties=((JOB_ID_PROPERTY, JOB),),
        response_topic=f"iotjobs/press/jobs/{JOB}/answer",
        correlation_data=b"\1\2",
    )

    end = await publisher.publish(message, nothing)

    assert not end.no_subscriber
    received = {message.topic.rsplit("/", 1)[1]: message for message in await inbox.take(2)}
    assert received["results"].payload == b'{"seen": 1}'
    assert (received["answer"].payload, received["answer"].correlation_data) == (answer, b"\1\2")
    assert received["answer"].user_property(JOB_ID_PROPERTY) == JOB
    assert (device.received, device.payloads) == ({JOB: 1}, {JOB: b"{}"})


async def test_a_silent_device_counts_and_says_nothing(broker: OurBroker, connect, consume, devices) -> None:
    inbox = Inbox()
    await consume(broker.address, inbox, "iotjobs/+/#")
    device = await devices(
        "press",
        broker.login("press", await broker.enrol("press")),
        behaviour=Behaviour.SILENT,
        commands="iotjobs/press/x",
    )
    publisher = await connect(broker.address)

    for _ in range(3):
        await publisher.publish(MqttMessage("iotjobs/press/x", response_topic="iotjobs/press/y"), nothing)
    await device.wait_for(lambda: device.received[""] == 3)
    device.report({"temperature": 3}, report_id="1")

    assert [message.topic for message in await inbox.take(4)] == [
        *["iotjobs/press/x"] * 3,
        "iotjobs/press/report",
    ]


async def test_two_hundred_devices_share_a_loop_and_come_back(
    start_mosquitto: Start, connect, devices
) -> None:
    mosquitto = start_mosquitto()
    fleet = await asyncio.gather(*(devices(f"d{number}", mosquitto.address) for number in range(200)))
    publisher = await connect(mosquitto.address, connect_wait_s=10)

    async def to_all(job_id: str) -> None:
        pairs = ((JOB_ID_PROPERTY, job_id),)
        await asyncio.gather(
            *(
                publisher.publish(
                    MqttMessage(f"iotjobs/{device.thing}/cmd/x", user_properties=pairs), nothing
                )
                for device in fleet
            )
        )
        await asyncio.gather(*(device.wait_for(lambda d=device: d.received[job_id] == 1) for device in fleet))

    await to_all("1")
    mosquitto.stop()
    mosquitto.start()
    await until(lambda: not publisher.connected)
    await to_all("2")


async def test_a_device_stops_twice_and_before_its_start() -> None:
    device = PretendDevice("a", "127.0.0.1", 1)
    await device.stop()
    with contextlib.suppress(TimeoutError):
        await device.start(within_s=0.05)
    await device.stop()
    await device.stop()
    assert not device.connected

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from iotjobs.domain.errors import (
    BadRequest,
    ConfigurationError,
    CredentialsRefused,
    DeviceUnreachable,
    LinkLost,
    OperationFailed,
)
from iotjobs.transports import mqtt, mqtt_adapter
from iotjobs.transports.mqtt import MqttConsumer, MqttPublisher
from iotjobs.transports.mqtt_address import BrokerAddress, ConnectionEnded, Refusal
from iotjobs.transports.mqtt_messages import (
    MalformedMessage,
    MqttMessage,
    Received,
    pack_properties,
    pack_varint,
    packet_bytes,
    read_publish,
)
from iotjobs.transports.mqtt_paho import PahoClient
from iotjobs.transports.mqtt_window import Window
from tests.services.mosquitto import nothing, until
from tests.services.programs import free_port

JOB = "0199f3c2a7d47c4e9f0b6f6f6c1f2a10"
FULL = MqttMessage(
    "iotjobs/a/cmd/restart",
    b'{"x": 1}',
    expiry_s=60,
    user_properties=(("job-id", JOB), ("traceparent", "00-ab")),
    response_topic=f"iotjobs/a/jobs/{JOB}/answer",
    correlation_data=b"\0\xff",
    content_type="application/json",
)


def ignore(*_: object) -> None:
    """A callback that has nothing to do."""


# --- a broker that does as the test says ----------------------------------------------------------


class ScriptedBroker:
    """Speaks just enough MQTT 5; the test decides what it answers.

    Attributes:
        connack: properties of its CONNACK, packed.
        refusal: reason code of its CONNACK.
        on_publish: gets each PUBLISH's packet id and the connection to answer on.
    """

    def __init__(self) -> None:
        self.connack = b""
        self.refusal = 0
        self.on_publish: Callable[[int, asyncio.StreamWriter], None] = lambda mid, writer: writer.write(
            puback(mid)
        )
        self.published: list[bytes] = []
        self.connects: list[bytes] = []
        self.acknowledged: asyncio.Queue[int] = asyncio.Queue()
        self.publishes: asyncio.Queue[int] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.greeting = b""
        self.silent = False
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self.port)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.writers.append(writer)
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._take(*await read_packet(reader), writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _take(self, header: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        match header >> 4:
            case 1:
                self.connects.append(body)
                if self.silent:
                    return
                writer.write(
                    packet(0x20, bytes((0, self.refusal)) + pack_varint(len(self.connack)) + self.connack)
                )
                writer.write(self.greeting)
            case 3:
                self.published.append(body)
                topic_bytes = struct.unpack_from("!H", body)[0]
                mid = struct.unpack_from("!H", body, 2 + topic_bytes)[0] if header & 6 else 0
                self.publishes.put_nowait(mid)
                if mid:
                    self.on_publish(mid, writer)
            case 4:
                self.acknowledged.put_nowait(struct.unpack_from("!H", body)[0])
            case 8:
                writer.write(packet(0x90, body[:2] + b"\0\x01"))
            case 12:
                writer.write(b"\xd0\0")
            case 14:
                writer.close()


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header = (await reader.readexactly(1))[0]
    size, shift = 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return header, await reader.readexactly(size)


def packet(header: int, body: bytes) -> bytes:
    return bytes((header,)) + pack_varint(len(body)) + body


def puback(mid: int, reason: int = 0) -> bytes:
    return packet(0x40, struct.pack("!HB", mid, reason) + b"\0")


def publish_packet(topic: bytes, mid: int, properties: bytes = b"", payload: bytes = b"") -> bytes:
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", mid)
    return packet(0x32, body + pack_varint(len(properties)) + properties + payload)


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker()
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def publisher(scripted: ScriptedBroker) -> AsyncIterator[MqttPublisher]:
    publisher = MqttPublisher(scripted.address, connect_wait_s=3)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def consume(scripted: ScriptedBroker) -> AsyncIterator[Callable[..., MqttConsumer]]:
    consumers: list[MqttConsumer] = []

    def start(handler: Callable[[Received], None], **more: object) -> MqttConsumer:
        consumer = MqttConsumer(
            scripted.address, client_id="iotjobs-0", filters=["t/#"], handler=handler, **more
        )
        consumers.append(consumer)
        return consumer

    yield start
    for consumer in consumers:
        await consumer.stop()


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtt://u:p%40%2Fss@10.0.0.1:18/", BrokerAddress("10.0.0.1", 18, "u", "p@/ss")),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://u@[::1]:1", BrokerAddress("::1", 1, "u")),
    ],
)
def test_a_brokers_url_is_read(url: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == expected


def test_a_ca_file_goes_with_the_url() -> None:
    address = BrokerAddress.parse("mqtts://a:b@h", ca_file=Path("/ca.pem"))

    assert address == BrokerAddress("h", 8883, "a", "b", tls=True, ca_file=Path("/ca.pem"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:1883",
        "http://h",
        "mqtt://",
        "mqtt://u:geheim/1@h",
        "mqtt://u:geheim@h:port",
        "mqtt://u:geheim@h/x",
    ],
)
def test_a_bad_url_is_refused_and_its_password_not_told(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        BrokerAddress.parse(url)

    assert "geheim" not in str(error.value)


def test_no_password_is_printed() -> None:
    address = BrokerAddress.parse("mqtt://u:geheim@h")

    consumer = MqttConsumer(address, client_id="iotjobs-geheim", filters=[], handler=ignore)
    assert (
        "geheim" not in f"{address} {address!r} {MqttPublisher(address)!r} {consumer!r} {consumer._session!r}"
    )


# --- messages -------------------------------------------------------------------------------------


def test_packed_properties_are_what_paho_reads() -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.unpack(pack_properties(FULL))

    assert properties.json() == {
        "MessageExpiryInterval": 60,
        "ContentType": "application/json",
        "ResponseTopic": FULL.response_topic,
        "CorrelationData": "00ff",
        "UserProperty": list(FULL.user_properties),
    }


@pytest.mark.parametrize("message", [FULL, MqttMessage("a"), MqttMessage("ä/b", b"x" * 300, qos=0)])
def test_the_size_is_the_packets(message: MqttMessage) -> None:
    packed = pack_properties(message)
    topic = message.topic.encode()
    body = (
        struct.pack("!H", len(topic)) + topic + (b"\0\1" if message.qos else b"") + packed + message.payload
    )

    assert packet_bytes(message, packed) == len(packet(0x30, body))


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn")), max_size=40)


@given(
    st.lists(st.tuples(texts, texts), max_size=4),
    st.binary(max_size=200),
    st.integers(1, 65_535),
    st.integers(0, 15),
)
def test_what_is_sent_is_read_back(
    pairs: list[tuple[str, str]], payload: bytes, mid: int, flags: int
) -> None:
    flags = flags & 0b1001 | 0b0010
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = payload
    properties.SubscriptionIdentifier = 300
    properties.PayloadFormatIndicator = 1
    for pair in pairs:
        properties.UserProperty = pair
    body = b"\0\1t" + struct.pack("!H", mid) + properties.pack() + payload

    received = read_publish(0x30 | flags, body, ignore)

    assert (received.topic, received.payload, received.mid) == ("t", payload, mid)
    assert (received.retain, received.duplicate, received.qos) == (bool(flags & 1), bool(flags & 8), 1)
    assert (received.user_properties, received.correlation_data) == (tuple(pairs), payload)


@given(st.integers(0x30, 0x3F), st.binary(max_size=80))
@example(0x32, b"")
@example(0x32, b"\0\0\0\1\0")
@example(0x32, b"\0\1t\0\1\x05\x26\xff\xff\0\0")
@example(0x32, b"\0\1t\0\1\xff\xff\xff\xff\x01")
@example(0x32, b"\0\2\xff\xfe\0\1\0")
@example(0x32, b"\0\1t\0\1\x02\x63\0")
def test_any_bytes_are_a_message_or_malformed(header: int, body: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        read_publish(header, body, ignore)


def test_a_malformed_message_tells_its_id() -> None:
    with pytest.raises(MalformedMessage) as error:
        read_publish(0x32, b"\0\2\xff\xfe\1\2\0", ignore)

    assert error.value.mid == 0x102


def test_twice_acknowledged_is_once_acknowledged() -> None:
    acknowledged: list[int] = []
    received = read_publish(0x32, b"\0\1t\0\7\0", acknowledged.append)

    received.ack()
    received.ack()
    read_publish(0x30, b"\0\1t\0", acknowledged.append).ack()

    assert acknowledged == [7]


def test_a_user_property_is_found_by_its_first_value() -> None:
    received = Received("t", b"", 1, False, False, 1, user_properties=(("a", "1"), ("a", "2")))

    assert (received.user_property("a"), received.user_property("b")) == ("1", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"topic": "a/#"},
        {"topic": "a\nb"},
        {"qos": 2},
        {"expiry_s": 0},
        {"expiry_s": 1 << 32},
        {"user_properties": (("a", "b\0"),)},
        {"user_properties": (("\ufeff", "b"),)},
        {"user_properties": (("a", "b" * 65_536),)},
        {"response_topic": "a/+"},
        {"content_type": "\x1b"},
        {"correlation_data": b"x" * 65_536},
    ],
)
def test_a_message_that_a_broker_would_close_the_connection_over(wrong: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        MqttMessage(**{"topic": "t", **wrong})


# --- the window -----------------------------------------------------------------------------------


async def test_a_window_lets_so_many_in_and_the_next_in_order() -> None:
    window, entered = Window(2), []

    async def enter(name: str) -> None:
        await window.enter()
        entered.append(name)

    tasks = [asyncio.create_task(enter(name)) for name in "abcd"]
    await asyncio.sleep(0)
    assert entered == ["a", "b"]
    window.leave()
    await tasks[2]
    assert entered == ["a", "b", "c"]
    window.leave()
    await tasks[3]


async def test_one_who_stands_for_many_waits_behind_one_of_the_others_only() -> None:
    window, entered = Window(1), []
    await window.enter()

    async def enter(name: str, *, soon: bool = False) -> None:
        await window.enter(soon=soon)
        entered.append(name)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(enter(name))
        await asyncio.sleep(0)
        group.create_task(enter("many", soon=True))
        await asyncio.sleep(0)
        for _ in range(4):
            window.leave()

    assert entered == ["a", "many", "b", "c"]


async def test_a_cancelled_wait_takes_no_place() -> None:
    window = Window(1)
    await window.enter()
    waiting, next_one = asyncio.create_task(window.enter()), asyncio.create_task(window.enter())
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    window.leave()

    await asyncio.wait_for(next_one, 1)


async def test_a_place_given_in_the_turn_of_the_cancel_goes_on() -> None:
    window = Window(1)
    await window.enter()
    waiting, next_one = asyncio.create_task(window.enter()), asyncio.create_task(window.enter())
    await asyncio.sleep(0)

    window.leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await asyncio.wait_for(next_one, 1)


async def test_a_closed_window_sends_everyone_away() -> None:
    window = Window(1)
    await window.enter()
    waiting = asyncio.create_task(window.enter())
    await asyncio.sleep(0)

    window.close()

    with pytest.raises(ConnectionEnded):
        await waiting
    with pytest.raises(ConnectionEnded):
        await window.enter()


# --- publishing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [True, False], ids=["started", "never started"])
async def test_without_a_broker_nothing_is_sent(start: bool, mocker) -> None:
    before_send = mocker.AsyncMock()
    publisher = MqttPublisher(BrokerAddress("127.0.0.1", free_port()), connect_wait_s=0.2)
    if start:
        await publisher.start()

    with pytest.raises(DeviceUnreachable) as error:
        await publisher.publish(MqttMessage("t"), before_send)

    assert (error.value.maybe_executed, error.value.retryable) == (False, True)
    before_send.assert_not_awaited()
    await publisher.stop()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "." * 70, "a" * 300])
async def test_a_name_that_is_none_is_unreachable(host: str) -> None:
    publisher = MqttPublisher(BrokerAddress(host, 1), connect_wait_s=0.3)
    await publisher.start()

    with pytest.raises(DeviceUnreachable):
        await publisher.publish(MqttMessage("t"), nothing)

    await publisher.stop()


async def test_stop_before_start_and_everything_twice(scripted: ScriptedBroker) -> None:
    publisher = MqttPublisher(scripted.address)
    await publisher.stop()
    await publisher.start()
    await publisher.start()
    assert await publisher.wait_connected(3)
    assert len(scripted.connects) == 1
    await publisher.stop()
    await publisher.stop()
    assert not publisher.connected
    await publisher.start()
    assert await publisher.wait_connected(3)
    await publisher.stop()


async def test_a_refused_login_is_told_as_such(scripted: ScriptedBroker) -> None:
    scripted.refusal = 0x86
    publisher = MqttPublisher(scripted.address, connect_wait_s=0.3)
    await publisher.start()

    with pytest.raises(CredentialsRefused, match="Bad user name or password"):
        await publisher.publish(MqttMessage("t"), nothing)

    await publisher.stop()


async def test_a_broker_that_never_answers_is_given_up(scripted: ScriptedBroker, mocker) -> None:
    mocker.patch.object(mqtt_adapter, "_CONNACK_TIMEOUT_S", 0.05)
    scripted.silent = True
    publisher = MqttPublisher(scripted.address, connect_wait_s=0.3)
    await publisher.start()

    with pytest.raises(DeviceUnreachable, match="does not answer"):
        await publisher.publish(MqttMessage("t"), nothing)

    await publisher.stop()


async def test_before_send_stops_a_message(scripted: ScriptedBroker) -> None:
    publisher = MqttPublisher(scripted.address, window=1)
    await publisher.start()

    async def refuse() -> None:
        raise KeyError("no")

    for _ in range(3):
        with pytest.raises(KeyError):
            await publisher.publish(MqttMessage("t"), refuse)

    assert (await publisher.publish(MqttMessage("t"), nothing)).reason_code == 0
    assert len(scripted.published) == 1
    await publisher.stop()


async def test_a_connection_that_drops_before_the_puback_is_a_lost_link(
    scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    scripted.on_publish = lambda _, writer: writer.close()

    with pytest.raises(LinkLost) as error:
        await publisher.publish(MqttMessage("t"), nothing)

    assert error.value.maybe_executed
    assert await publisher.wait_connected(3)
    scripted.on_publish = lambda mid, writer: writer.write(puback(mid))
    await publisher.publish(MqttMessage("u"), nothing)
    assert len(scripted.published) == 2


async def test_a_connection_that_drops_during_before_send_has_sent_nothing(
    scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    async def lose() -> None:
        scripted.writers[-1].close()
        connection = publisher._connection
        assert connection is not None
        await connection.lost.wait()

    with pytest.raises(DeviceUnreachable) as error:
        await publisher.publish(MqttMessage("t"), lose)

    assert not error.value.maybe_executed
    assert scripted.published == []


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_that_no_byte_was_written_of_was_not_sent(
    qos: int, scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    assert await publisher.wait_connected(3)
    connection = publisher._connection
    assert connection is not None
    await connection.window.enter()

    waiting = connection.send(MqttMessage("t", qos=qos))
    connection._drop(ConnectionEnded("cut"))  # in the same turn: before the flush

    with pytest.raises(DeviceUnreachable) as error:
        await waiting
    assert not error.value.maybe_executed


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_of_which_a_part_was_written_may_have_arrived(
    qos: int, scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    assert await publisher.wait_connected(3)
    scripted.writers[-1].transport.pause_reading()  # type: ignore[attr-defined]
    publishing = asyncio.create_task(publisher.publish(MqttMessage("t", b"x" * (32 << 20), qos=qos), nothing))
    connection = publisher._connection
    assert connection is not None
    await until(lambda: any(packet["pos"] for packet in connection._client._out_packet))

    assert not publishing.done()
    scripted.writers[-1].transport.abort()

    with pytest.raises(LinkLost):
        await publishing


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (0x80, "Unspecified error"),
        (0x83, "Implementation specific error"),
        (0x87, "Not authorized"),
        (0x90, "Topic name invalid"),
        (0x91, "Packet identifier in use"),
        (0x99, "Payload format invalid"),
    ],
)
async def test_a_refused_message_tells_the_brokers_reason(
    reason: int, name: str, scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    scripted.on_publish = lambda mid, writer: writer.write(puback(mid, reason))

    with pytest.raises(OperationFailed, match=name) as error:
        await publisher.publish(MqttMessage("t"), nothing)

    assert error.value.code == "brokerRefused"


async def test_a_full_quota_passes(scripted: ScriptedBroker, publisher: MqttPublisher) -> None:
    scripted.on_publish = lambda mid, writer: writer.write(puback(mid, 0x97))

    with pytest.raises(DeviceUnreachable, match="Quota exceeded") as error:
        await publisher.publish(MqttMessage("t"), nothing)

    assert (error.value.retryable, error.value.maybe_executed) == (True, False)


def test_every_puback_reason_has_its_meaning() -> None:
    reasons = ReasonCode(PacketTypes.PUBACK).names
    for value, names in reasons.items():
        if any(PacketTypes.PUBACK in packets for packets in names.values()):
            reason = ReasonCode(PacketTypes.PUBACK, identifier=value)
            if reason.is_failure:
                assert isinstance(mqtt.refused(reason), OperationFailed | DeviceUnreachable)
            else:
                assert value in (0, 0x10)


async def test_the_brokers_receive_maximum_is_kept(scripted: ScriptedBroker) -> None:
    scripted.connack = b"\x21\0\2"
    waiting: list[tuple[int, asyncio.StreamWriter]] = []
    scripted.on_publish = lambda mid, writer: waiting.append((mid, writer))
    publisher = MqttPublisher(scripted.address, window=100)
    await publisher.start()

    publishing = [asyncio.create_task(publisher.publish(MqttMessage("t"), nothing)) for _ in range(5)]
    for _ in range(5):
        await asyncio.wait_for(scripted.publishes.get(), 3)
        if len(scripted.published) == 2:
            # A round trip later there is still no third.
            await publisher.publish(MqttMessage("round trip", qos=0), nothing)
            await asyncio.wait_for(scripted.publishes.get(), 3)
            assert len(waiting) == 2
        if waiting and len(scripted.published) >= 3:
            mid, writer = waiting.pop(0)
            writer.write(puback(mid))
    for mid, writer in waiting:
        writer.write(puback(mid))

    assert len(await asyncio.gather(*publishing)) == 5
    await publisher.stop()


async def test_cancelled_publishes_leave_the_window_when_the_broker_acknowledges(
    scripted: ScriptedBroker,
) -> None:
    waiting: list[tuple[int, asyncio.StreamWriter]] = []
    scripted.on_publish = lambda mid, writer: waiting.append((mid, writer))
    publisher = MqttPublisher(scripted.address, window=1)
    await publisher.start()
    first = asyncio.create_task(publisher.publish(MqttMessage("t"), nothing))
    await asyncio.wait_for(scripted.publishes.get(), 3)
    second = asyncio.create_task(publisher.publish(MqttMessage("u"), nothing))

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not second.done()
    assert len(scripted.published) == 1
    waiting[0][1].write(puback(waiting[0][0]))

    await asyncio.wait_for(scripted.publishes.get(), 3)
    waiting[1][1].write(puback(waiting[1][0]))
    assert (await second).reason_code == 0
    connection = publisher._connection
    assert connection is not None
    assert connection._acks == {}
    await publisher.stop()


async def test_those_who_wait_for_a_place_go_on_with_the_next_connection(scripted: ScriptedBroker) -> None:
    scripted.on_publish = ignore
    publisher = MqttPublisher(scripted.address, window=1)
    await publisher.start()
    first = asyncio.create_task(publisher.publish(MqttMessage("t"), nothing))
    await asyncio.wait_for(scripted.publishes.get(), 3)
    second = asyncio.create_task(publisher.publish(MqttMessage("u"), nothing))
    await asyncio.sleep(0)

    scripted.on_publish = lambda mid, writer: writer.write(puback(mid))
    scripted.writers[-1].close()

    with pytest.raises(LinkLost):
        await first
    assert (await asyncio.wait_for(second, 3)).reason_code == 0
    await publisher.stop()


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_connection_that_ended_in_this_turn_is_not_used(
    qos: int, scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    assert await publisher.wait_connected(3)
    connection = publisher._connection
    assert connection is not None

    connection._drop(ConnectionEnded("cut"))

    assert not publisher.connected
    assert (await publisher.publish(MqttMessage("t", qos=qos), nothing)).reason_code == 0
    assert len(scripted.connects) == 2


@pytest.mark.parametrize(
    ("connack", "message", "code"),
    [
        (b"\x27\0\0\0\x40", MqttMessage("t", b"x" * 60), "messageTooLarge"),
        (b"\x24\0", MqttMessage("t"), "brokerRefused"),
        (b"\x25\0", MqttMessage("t", retain=True), "brokerRefused"),
    ],
    ids=["maximum packet size", "maximum QoS", "retain available"],
)
async def test_what_the_broker_said_it_does_not_take_is_not_sent(
    connack: bytes, message: MqttMessage, code: str, scripted: ScriptedBroker, mocker
) -> None:
    scripted.connack = connack
    publisher = MqttPublisher(scripted.address)
    await publisher.start()
    before_send = mocker.AsyncMock()

    with pytest.raises(OperationFailed) as error:
        await publisher.publish(message, before_send)

    assert error.value.code == code
    before_send.assert_not_awaited()
    assert scripted.published == []
    await publisher.stop()


async def test_packet_ids_in_use_are_passed_over(scripted: ScriptedBroker, publisher: MqttPublisher) -> None:
    kept: list[tuple[int, asyncio.StreamWriter]] = []
    scripted.on_publish = lambda mid, writer: kept.append((mid, writer))
    stuck = asyncio.create_task(publisher.publish(MqttMessage("t"), nothing))
    mid = await asyncio.wait_for(scripted.publishes.get(), 3)
    connection = publisher._connection
    assert connection is not None

    connection._client._last_mid = mid - 1 or 65_535
    await publisher.publish(MqttMessage("u", qos=0), nothing)
    assert not stuck.done()
    kept[0][1].write(puback(mid))

    assert (await stuck).reason_code == 0


async def test_while_the_broker_is_away_tries_are_few_and_none_is_far_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    turn = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await turn(0)

    def away() -> mqtt.Connection:
        raise ConnectionEnded("away")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    link = mqtt.Link("test", away)
    await link.start()
    await until(lambda: len(waits) >= 200)
    await link.stop()

    assert 0.1 <= waits[0] <= 0.2
    assert max(waits) <= 5  # and the check for an outage of any length is ten
    assert min(waits[10:]) >= 2.5
    assert len({round(wait, 3) for wait in waits[10:]}) > 100  # no two of us keep step


async def test_each_connection_has_a_name_of_its_own(
    scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    assert await publisher.wait_connected(3)
    scripted.writers[-1].close()
    await until(lambda: len(scripted.connects) == 2 and publisher.connected)

    assert scripted.connects[0][-40:] != scripted.connects[1][-40:]
    assert b"iotjobs-" in scripted.connects[0]


@pytest.mark.parametrize(
    "garbage", [b"\xf1\0", b"\x40\1\0", b"\x90\3\0\1\xff", b"\x20\xff\xff\xff\xff\xff", b"\0" * 40]
)
async def test_a_broker_that_breaks_the_protocol_is_left(
    garbage: bytes, scripted: ScriptedBroker, publisher: MqttPublisher
) -> None:
    scripted.on_publish = lambda _, writer: writer.write(garbage)

    with pytest.raises(LinkLost):
        await asyncio.wait_for(publisher.publish(MqttMessage("t"), nothing), 3)

    assert await publisher.wait_connected(3)


# --- consuming ------------------------------------------------------------------------------------


async def test_messages_come_in_order_and_are_acknowledged_when_told(
    scripted: ScriptedBroker, consume
) -> None:
    scripted.greeting = b"".join(publish_packet(b"t/%d" % mid, mid) for mid in range(1, 200))
    got: asyncio.Queue[Received] = asyncio.Queue()
    consumer = consume(got.put_nowait)
    await consumer.start()
    received = [await asyncio.wait_for(got.get(), 3) for _ in range(199)]

    assert [message.topic for message in received] == [f"t/{mid}" for mid in range(1, 200)]
    assert scripted.acknowledged.empty()
    for message in received:
        message.ack()
    assert [await asyncio.wait_for(scripted.acknowledged.get(), 3) for _ in range(199)] == list(range(1, 200))


async def test_a_handler_that_raises_ends_with_the_message_acknowledged(
    scripted: ScriptedBroker, consume, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.greeting = publish_packet(b"t/bad", 7) + publish_packet(b"t/good", 8)
    topics: list[str] = []

    def handle(received: Received) -> None:
        topics.append(received.topic)
        if received.topic == "t/bad":
            raise ValueError("cannot")
        received.ack()

    consumer = consume(handle)
    with caplog.at_level(logging.ERROR):
        await consumer.start()
        assert [await asyncio.wait_for(scripted.acknowledged.get(), 3) for _ in range(2)] == [7, 8]

    assert (topics, consumer.poisoned) == (["t/bad", "t/good"], 1)
    assert [record.__dict__["topic"] for record in caplog.records] == ["t/bad"]


@pytest.mark.check(19)
@pytest.mark.parametrize(
    "hostile",
    [
        publish_packet(b"t/\xff\xfe", 7),
        publish_packet(b"t", 7, b"\x26\0\1a\0\2\xc3\x28"),
        publish_packet(b"t", 7, b"\x63"),
        publish_packet(b"t", 7, b"\x26\xff\xff"),
        publish_packet(b"", 7, b"\x23\0\1"),
    ],
    ids=["topic is not UTF-8", "property is not UTF-8", "unknown property", "cut property", "topic alias"],
)
async def test_an_unreadable_message_is_acknowledged_and_the_next_comes(
    hostile: bytes, scripted: ScriptedBroker, consume
) -> None:
    scripted.greeting = hostile + publish_packet(b"t/good", 8)
    got: asyncio.Queue[Received] = asyncio.Queue()
    consumer = consume(got.put_nowait)
    await consumer.start()

    assert await asyncio.wait_for(scripted.acknowledged.get(), 3) == 7
    assert (await asyncio.wait_for(got.get(), 3)).topic == "t/good"
    assert consumer.poisoned == 1


@pytest.mark.check(19)
async def test_a_byte_order_mark_does_not_end_the_connection(scripted: ScriptedBroker, consume) -> None:
    mark = "\ufeff".encode()
    scripted.greeting = publish_packet(b"t", 7, b"\x26\0\1a" + struct.pack("!H", len(mark)) + mark)
    got: asyncio.Queue[Received] = asyncio.Queue()
    await consume(got.put_nowait).start()

    assert (await asyncio.wait_for(got.get(), 3)).user_properties == (("a", "\ufeff"),)
    assert len(scripted.connects) == 1


async def test_a_message_of_a_connection_that_is_gone_is_not_acknowledged(
    scripted: ScriptedBroker, consume
) -> None:
    scripted.greeting = publish_packet(b"t", 7)
    got: asyncio.Queue[Received] = asyncio.Queue()
    await consume(got.put_nowait).start()
    old = await asyncio.wait_for(got.get(), 3)
    scripted.writers[-1].close()
    new = await asyncio.wait_for(got.get(), 3)

    old.ack()
    scripted.greeting = b""
    assert scripted.acknowledged.empty()
    new.ack()

    assert await asyncio.wait_for(scripted.acknowledged.get(), 3) == 7
    assert scripted.acknowledged.empty()


@pytest.mark.parametrize("garbage", [b"\x32\1\0", b"\xf1\0", b"\x90\1\0"])
async def test_a_consumer_comes_back_after_a_broken_packet(
    garbage: bytes, scripted: ScriptedBroker, consume
) -> None:
    scripted.greeting = garbage
    got: asyncio.Queue[Received] = asyncio.Queue()
    await consume(got.put_nowait).start()
    await until(lambda: scripted.connects)

    scripted.greeting = publish_packet(b"t", 7)
    for writer in scripted.writers:
        writer.close()

    assert (await asyncio.wait_for(got.get(), 3)).topic == "t"


async def test_a_takeover_is_not_taken_back_at_once(scripted: ScriptedBroker, consume, caplog) -> None:
    scripted.greeting = packet(0xE0, b"\x8e\0")
    consumer = consume(ignore)
    with caplog.at_level(logging.WARNING):
        await consumer.start()
        await until(lambda: caplog.records)

    assert consumer._why.refusal is Refusal.TAKEN_OVER
    assert not await consumer.wait_connected(0.5)
    assert len(scripted.connects) == 1


def test_more_than_256_unacknowledged_are_not_asked_for() -> None:
    consumer = MqttConsumer(
        BrokerAddress("h", 1), client_id="c", filters=[], handler=ignore, receive_maximum=9_999
    )

    assert consumer._session.receive_maximum == 256


def test_the_private_parts_of_paho_that_we_lean_on_are_there() -> None:
    theirs = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)

    names = (
        "_handle_publish",
        "_packet_read",
        "_ssl_wrap_socket",
        "_out_packet",
        "_mid_generate",
        "_last_mid",
        "_sock_close",
        "_in_packet",
        "_sock_recv",
        "_handle_pubackcomp",
        "_do_on_publish",
        "_out_messages",
        "_packet_queue",
    )
    assert [name for name in names if not hasattr(theirs, name)] == []
    assert issubclass(PahoClient, paho.Client)

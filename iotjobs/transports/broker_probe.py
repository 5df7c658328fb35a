"""Tests a broker for everything that we rely on, by using it: what it says of itself is not enough.

Leaves nothing behind: topics have random names that nobody of ours listens to, the retained message
is taken back, the kept session is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from paho.mqtt.reasoncodes import ReasonCode

from iotjobs import clock
from iotjobs.domain.errors import DeliveryError
from iotjobs.transports.mqtt_adapter import Connection
from iotjobs.transports.mqtt_address import BrokerAddress, ConnectionEnded, Refusal, Session
from iotjobs.transports.mqtt_messages import MqttMessage, Received
from iotjobs.transports.topics import ROOT, results_topic

_WITHIN_S = 5.0
_TICK_S = 1.0
_KEPT_S = 60
# Mosquitto and EMQX keep 1,000 for a client that is away unless told otherwise, and drop the rest.
AWAY = 1_100
_NO_SUBSCRIBER = 0x10
_PACKET_BYTES = 1 << 20

_CLOSE_IT = "allow no anonymous logins, and let each device write below `iotjobs/{its own name}/` only"


@dataclass(frozen=True, slots=True)
class Trait:
    """One thing that we rely on.

    Attributes:
        holds: whether the broker does it.
        said: what was seen, for a person.
        cure: what to do when it does not hold.
        needed: nothing works without it; else only a part, or safety, is missing.
    """

    name: str
    holds: bool
    said: str
    cure: str = ""
    needed: bool = True


async def probe(
    address: BrokerAddress, devices: Sequence[BrokerAddress] = (), *, away: int = AWAY
) -> AsyncIterator[Trait]:
    """Try everything on a broker, one after the other; ends early when the connection does.

    Args:
        address: with our own login.
        devices: logins of devices, which must not speak for another device.
        away: how many messages are sent to a client that is away.
    """
    inbox = _Inbox()
    connected = False
    try:
        async with _connected(address, on_message=inbox.take) as ours:
            connected = True
            yield Trait("broker", True, f"{address} takes MQTT 5 connections")
            tour = _Tour(address, ours, inbox, away)
            delivery = await tour.delivery()
            yield delivery
            if not delivery.holds:
                return  # nothing else could be seen
            for trait in (tour.size, tour.nobody, tour.aws, tour.retained, tour.away):
                yield await trait()
            made_up = replace(
                address, username=f"doctor-{secrets.token_hex(8)}", password=secrets.token_hex(8)
            )
            yield await tour.stranger("no login", replace(address, username=None, password=None))
            yield await tour.stranger("made-up login", made_up)
            for device in devices:
                yield await tour.stranger("another device", device)
    except (ConnectionEnded, DeliveryError, TimeoutError) as error:
        yield _broken(address, error, connected=connected)


def _broken(address: BrokerAddress, error: Exception, *, connected: bool) -> Trait:
    why = str(error) or "no answer in time"
    if connected:
        return Trait("broker", False, f"{address} ended the test: {why}", "see the broker's log")
    cure = "start it, or mend IOTJOBS_MQTT_URL"
    if isinstance(error, ConnectionEnded) and error.refusal is Refusal.CREDENTIALS:
        cure = "mend user and password in IOTJOBS_MQTT_URL"
    elif "protocol" in why.lower():
        cure = "use a broker that speaks MQTT 5, such as Mosquitto 2"
    return Trait("broker", False, why, cure)


class _Inbox:
    """What came, acknowledged as it came."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._more = asyncio.Event()

    def take(self, message: Received) -> None:
        """A message came."""
        self.received.append(message)
        message.ack()
        self._more.set()

    async def holds(self, payload: bytes, *, retain: bool | None = None) -> bool:
        """Wait for a message with this payload; False when it did not come in time."""

        def is_there() -> bool:
            return any(
                message.payload == payload and retain in (None, message.retain) for message in self.received
            )

        return await self.until(is_there)

    async def until(self, enough: Callable[[], bool]) -> bool:
        """Wait as long as messages come; False when they ceased before it was enough."""
        with contextlib.suppress(TimeoutError):
            while not enough():
                self._more.clear()
                async with asyncio.timeout(_WITHIN_S):
                    await self._more.wait()
        return enough()


@asynccontextmanager
async def _connected(
    address: BrokerAddress,
    session: Session | None = None,
    on_message: Callable[[Received], None] | None = None,
) -> AsyncIterator[Connection]:
    if session is None:
        session = Session(client_id=f"iotjobs-{secrets.token_hex(16)}")
    connection = Connection(address, session, on_message=on_message)
    ticking = asyncio.create_task(_tick(connection), name="probe ticks")
    try:
        await connection.open()
        yield connection
    finally:
        ticking.cancel()
        connection.close()


async def _tick(connection: Connection) -> None:
    while True:
        await clock.sleep(_TICK_S)
        connection.tick()


async def _publish(connection: Connection, message: MqttMessage) -> ReasonCode:
    async with asyncio.timeout(_WITHIN_S):
        await connection.window.enter()
        return await connection.send(message)


async def _subscribe(connection: Connection, topic_filter: str) -> str:
    """Why the broker does not grant it, or nothing."""
    reason = (await connection.subscribe([topic_filter]))[topic_filter]
    return reason.getName() if reason.is_failure else ""


class _Tour:
    """The tests, on one connection with our own login. They raise what ends the connection."""

    def __init__(self, address: BrokerAddress, ours: Connection, inbox: _Inbox, away: int) -> None:
        self._address, self._ours, self._inbox, self._away = address, ours, inbox, away
        self._thing = f"doctor-{secrets.token_hex(8)}"

    def _topic(self, last: str) -> str:
        return f"{ROOT}/{self._thing}/{last}"

    async def size(self) -> Trait:
        """The largest message."""
        most = self._ours.maximum_packet_bytes
        return Trait(
            "message size",
            most >= _PACKET_BYTES,
            f"takes packets of {most} bytes",
            "let it take 1 MiB (Mosquitto: max_packet_size)",
            needed=False,
        )

    async def delivery(self) -> Trait:
        """QoS 1 there and back, by a filter with a wildcard."""
        name, cure = "QoS 1", f"give our login the right to read and write everything below {ROOT}/"
        if refusal := await _subscribe(self._ours, self._topic("#")):
            return Trait(name, False, f"a subscription is refused: {refusal}", cure)
        payload = secrets.token_bytes(16)
        reason = await _publish(self._ours, MqttMessage(self._topic("probe"), payload))
        if reason.is_failure:
            return Trait(name, False, f"a message is refused: {reason.getName()}", cure)
        if not await self._inbox.holds(payload):
            return Trait(name, False, "an acknowledged message did not come back", cure)
        return Trait(name, True, "a message was acknowledged and came back")

    async def nobody(self) -> Trait:
        """Whether PUBACK tells that there is no subscriber (MQTT 5 §3.4.2.1)."""
        topic = f"{ROOT}/{self._thing}-nobody/probe"
        reason = await _publish(self._ours, MqttMessage(topic, b"probe"))
        return Trait(
            "no subscriber",
            reason.value == _NO_SUBSCRIBER,
            f"a message to nobody is answered: {reason.getName()}",
            "do not rely on `require_subscriber`: the broker, or somebody who reads everything, hides it",
            needed=False,
        )

    async def aws(self) -> Trait:
        """Topics of the AWS IoT wire protocol."""
        topic = f"$aws/things/{self._thing}/probe"
        name, cure = "$aws topics", "let clients publish below `$aws/`, or do without agents"
        if refusal := await _subscribe(self._ours, topic):
            return Trait(name, False, f"a subscription is refused: {refusal}", cure, needed=False)
        payload = secrets.token_bytes(16)
        reason = await _publish(self._ours, MqttMessage(topic, payload))
        came = not reason.is_failure and await self._inbox.holds(payload)
        return Trait(name, came, "are carried" if came else "are not carried", cure, needed=False)

    async def retained(self) -> Trait:
        """A message that is kept for later subscribers."""
        name, cure = "retained messages", "let the broker keep retained messages: they say who is online"
        topic, payload = f"{ROOT}/{self._thing}-kept/probe", secrets.token_bytes(16)
        if not self._ours.retain_available:
            return Trait(name, False, "the broker keeps none", cure)
        reason = await _publish(self._ours, MqttMessage(topic, payload, retain=True))
        if reason.is_failure:
            return Trait(name, False, f"one is refused: {reason.getName()}", cure)
        try:
            refusal = await _subscribe(self._ours, topic)
            came = not refusal and await self._inbox.holds(payload, retain=True)
        finally:
            await _publish(self._ours, MqttMessage(topic, b"", retain=True))
        return Trait(name, came, "one was kept" if came else "one was not kept", cure)

    async def away(self) -> Trait:
        """A session over a disconnect, and all that was sent meanwhile."""
        name = "kept session"
        topic, client_id = f"{ROOT}/{self._thing}-away/probe", f"iotjobs-{secrets.token_hex(16)}"
        kept = Session(client_id=client_id, clean_start=False, expiry_s=_KEPT_S)
        inbox = _Inbox()
        try:
            async with _connected(self._address, kept) as first:
                if refusal := await _subscribe(first, topic):
                    return Trait(name, False, f"a subscription is refused: {refusal}")
            await self._publish_many(topic)
            async with _connected(self._address, kept, inbox.take) as second:
                if not second.session_present:
                    cure = "let sessions outlive their connection (MQTT 5 session expiry)"
                    return Trait(name, False, "the broker forgot it at the disconnect", cure)
                whole = await inbox.until(lambda: len(inbox.received) >= self._away)
        finally:
            async with _connected(self._address, Session(client_id=client_id)):
                pass
        said = f"{len(inbox.received)} of {self._away} messages came after a disconnect"
        cure = "let it keep more for a client that is away (Mosquitto: max_queued_messages 0)"
        return Trait(name, whole, said, cure, needed=not inbox.received)

    async def _publish_many(self, topic: str) -> None:
        acknowledged = []
        async with asyncio.timeout(_WITHIN_S * 6):
            for number in range(self._away):
                await self._ours.window.enter()
                acknowledged.append(self._ours.send(MqttMessage(topic, str(number).encode())))
            await asyncio.gather(*acknowledged)

    async def stranger(self, who: str, address: BrokerAddress) -> Trait:
        """Somebody else writes a result in a device's name."""
        payload = secrets.token_hex(16).encode()
        said = "its message is acknowledged and dropped"
        try:
            async with _connected(address) as theirs:
                topic = results_topic(self._thing, clock.new_id())
                reason = await _publish(theirs, MqttMessage(topic, payload))
                if reason.is_failure:
                    said = f"its message is refused: {reason.getName()}"
        except (ConnectionEnded, DeliveryError, TimeoutError) as error:
            said = f"is refused: {error}"
        # What it wrote, if it was taken, comes before what we write after it.
        marker = secrets.token_bytes(16)
        await _publish(self._ours, MqttMessage(self._topic("marker"), marker))
        await self._inbox.holds(marker)
        if any(message.payload == payload for message in self._inbox.received):
            said = "can append results to the jobs of any device: on this broker the topic is the identity"
            return Trait(who, False, said, _CLOSE_IT, needed=False)
        return Trait(who, True, said)

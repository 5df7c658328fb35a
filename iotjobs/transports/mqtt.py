"""MQTT: publish to devices and consume what they send, over connections that come back by themselves.

`MqttPublisher` and `MqttConsumer` have a connection each: a publish never waits behind incoming
messages, and losing one says nothing about the other. We never send a message twice: what had no
PUBACK when its connection dropped is `LinkLost`, and the engine decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from paho.mqtt.reasoncodes import ReasonCode

from iotjobs.domain.errors import CredentialsRefused, DeliveryError, DeviceUnreachable, OperationFailed
from iotjobs.transports.mqtt_adapter import Connection
from iotjobs.transports.mqtt_address import BrokerAddress, ConnectionEnded, Refusal, Session
from iotjobs.transports.mqtt_messages import (
    MalformedMessage,
    MqttMessage,
    Received,
    pack_properties,
    packet_bytes,
)
from iotjobs.transports.topics import check_filter

log = logging.getLogger(__name__)

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 5.0  # a node has two connections; what devices send waits for one
_STEADY_S = 5.0  # a connection that lasted so long ends the back-off
# Two nodes with one client id throw each other out: slow enough for the ingest lease to decide.
_TAKEN_OVER_DELAY_S = 10.0
_TICK_S = 1.0

_NO_SUBSCRIBER = 0x10
_QUOTA_EXCEEDED = 0x97


class Link:
    """Keeps one connection up: connects, waits for its end, connects again with jittered back-off.

    It is usable, and counts as connected, when `on_up` (the subscriptions, say) has succeeded too.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        on_up: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self._name, self._connect, self._on_up = name, connect, on_up
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._connection: Connection | None = None
        self._why = ConnectionEnded("not started")
        self._down_at = 0.0  # when there was a usable connection last; of the loop's clock

    async def start(self) -> None:
        """Begin to connect; does not wait for it. Starting twice is starting once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"mqtt {self._name}")

    async def stop(self) -> None:
        """Disconnect; what waits for a PUBACK ends as `LinkLost`. Safe before `start` and twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._why = ConnectionEnded("stopped")

    @property
    def connected(self) -> bool:
        """Whether there is a usable connection now."""
        return self._usable() is not None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Wait for a usable connection; False when none came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._usable() is None:
                    await self._up.wait()
        return self.connected

    @property
    def free_places(self) -> int:
        """How many messages would leave at once; 0 without a usable connection."""
        connection = self._usable()
        return 0 if connection is None else connection.window.free

    @property
    def waiting(self) -> int | None:
        """How many wait for a place in that window; None without a connection."""
        connection = self._usable()
        return None if connection is None else connection.window.waiting

    async def connection(self, within_s: float, since: float | None = None) -> Connection:
        """The usable connection.

        Args:
            within_s: how long to wait for one.
            since: when the caller began to wait for something else, of the loop's clock: so much of that as
                there was no connection counts.

        Raises:
            DeviceUnreachable: none came up in time.
            CredentialsRefused: none came up in time, and last the broker refused our login.
        """
        if self._usable() is None:
            if since is not None:
                within_s -= asyncio.get_running_loop().time() - max(since, self._down_at)
            await self.wait_connected(within_s)
        if (connection := self._usable()) is None:
            if self._why.refusal is Refusal.CREDENTIALS:
                raise CredentialsRefused(str(self._why), maybe_executed=False)
            raise DeviceUnreachable(f"no connection to the broker: {self._why}", maybe_executed=False)
        return connection

    def _usable(self) -> Connection | None:
        # An ended connection is none at once, not only when `_live` has its turn: who tries again
        # without giving it one would never stop.
        if self._connection is not None and self._connection.lost.is_set():
            self._connection = None
            self._went_down()
        return self._connection

    def _went_down(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._down_at = asyncio.get_running_loop().time()

    async def _run(self) -> None:
        delay = _FIRST_DELAY_S
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._live(self._connect())
            except ConnectionEnded as ended:
                self._why = ended
                log.warning("mqtt connection ended", extra={"link": self._name, "why": str(ended)})
            except Exception as error:
                # The top of this loop: without it a fault of ours would end it silently.
                self._why = ConnectionEnded(repr(error))
                log.exception("mqtt connection failed", extra={"link": self._name})
            if clock() - began >= _STEADY_S:
                delay = _FIRST_DELAY_S
            taken_over = self._why.refusal is Refusal.TAKEN_OVER
            await asyncio.sleep(_TAKEN_OVER_DELAY_S if taken_over else delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _LONGEST_DELAY_S)

    async def _live(self, connection: Connection) -> None:
        """From opening to the end, which is always an exception."""
        try:
            await connection.open()
            if self._on_up is not None:
                await self._on_up(connection)
            log.info("mqtt connected", extra={"link": self._name})
            self._connection = connection
            self._up.set()
            while not connection.lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await connection.lost.wait()
                connection.tick()
            raise connection.why
        finally:
            self._went_down()
            self._connection = None
            connection.close()


@dataclass(frozen=True, slots=True)
class PublishEnd:
    """What became of a message that the broker took.

    Attributes:
        reason_code: PUBACK's (MQTT 5 §3.4.2.1); 0 for QoS 0.
        reason: its name, as in "No matching subscribers".
    """

    reason_code: int
    reason: str

    @property
    def no_subscriber(self) -> bool:
        """Nobody had subscribed; Mosquitto says it for QoS 1 only."""
        return self.reason_code == _NO_SUBSCRIBER


Acknowledged: TypeAlias = "asyncio.Future[ReasonCode]"


def end_of(reason: ReasonCode) -> PublishEnd:
    """What PUBACK's reason says of a message.

    Raises:
        DeviceUnreachable: the broker's quota was full.
        OperationFailed: `brokerRefused`; nobody got it.
    """
    if reason.is_failure:
        raise refused(reason)
    return PublishEnd(reason.value, reason.getName())


class MqttPublisher(Link):
    """Publishes on a connection of its own; safe for concurrent use within one loop.

    Args:
        address: the broker.
        connect_wait_s: how long `publish` waits for a connection.
        window: QoS 1 messages on their way at once; the broker's Receive Maximum may lower it.
    """

    def __init__(self, address: BrokerAddress, *, connect_wait_s: float = 5.0, window: int = 256) -> None:
        self._address, self._connect_wait_s, self._window = address, connect_wait_s, window
        super().__init__("publisher", self._make_connection)

    def __repr__(self) -> str:
        return f"MqttPublisher({self._address})"

    async def publish(self, message: MqttMessage, before_send: Callable[[], Awaitable[None]]) -> PublishEnd:
        """Send one message, once.

        QoS 1 ends with the broker's PUBACK, QoS 0 when the kernel has the whole packet. There is
        no deadline but that of connecting: cancel it. Cancelled after `before_send` the message
        may have left.

        Args:
            message: what to send.
            before_send: awaited right before the message leaves, with a connection up and a place
                in the window taken; raises to stop it.

        Raises:
            DeviceUnreachable: nothing was sent, or the broker's quota was full; `before_send` may
                have been called.
            CredentialsRefused: nothing was sent, the broker refuses our login.
            LinkLost: sent, wholly or in part, and the connection ended before the PUBACK.
            OperationFailed: `brokerRefused`, `messageTooLarge`; nobody got it.
        """
        return end_of(await (await self.hand_over(message, before_send)))

    async def hand_over(
        self,
        message: MqttMessage,
        before_send: Callable[[], Awaitable[None]],
        *,
        since: float | None = None,
    ) -> Acknowledged:
        """The first half of `publish`: send one message, once; the broker's word is still to come (`end_of`).

        Args:
            message: what to send.
            before_send: see `publish`.
            since: when it began to wait in a line, of which one comes here at a time: it has waited for a
                connection too, and only one of the others that wait for a place is before it.

        Raises:
            DeviceUnreachable, CredentialsRefused, OperationFailed: nothing was sent; see `publish`.
        """
        packed = pack_properties(message)
        connection = await self._place(message, packet_bytes(message, packed), since)
        handed_over = False
        try:
            await before_send()
            acknowledged = connection.send(message, packed)
            handed_over = True
        finally:
            if message.qos and not handed_over:
                connection.window.leave()
        return acknowledged

    async def _place(self, message: MqttMessage, size: int, since: float | None) -> Connection:
        """A connection that takes this message, with a place in its window for QoS 1."""
        while True:
            connection = await self.connection(self._connect_wait_s, since)
            _check_limits(connection, message, size)
            if not message.qos:
                return connection
            try:
                await connection.window.enter(soon=since is not None)
            except ConnectionEnded:
                continue
            return connection

    def _make_connection(self) -> Connection:
        session = Session(client_id=f"iotjobs-{secrets.token_hex(16)}")
        return Connection(self._address, session, window=self._window)


def _check_limits(connection: Connection, message: MqttMessage, size: int) -> None:
    """Refuse what the broker would end the whole connection over (MQTT 5 §3.2.2.3)."""
    if size > connection.maximum_packet_bytes:
        limit = connection.maximum_packet_bytes
        raise OperationFailed("messageTooLarge", f"the message has {size} bytes, the broker takes {limit}")
    if message.qos > connection.maximum_qos:
        raise OperationFailed("brokerRefused", f"the broker takes QoS {connection.maximum_qos} at most")
    if message.retain and not connection.retain_available:
        raise OperationFailed("brokerRefused", "the broker keeps no retained messages")


def refused(reason: ReasonCode) -> DeliveryError | OperationFailed:
    """The error for a PUBACK of 0x80 or more: nobody got the message (MQTT 5 §3.4.2.1)."""
    name = reason.getName()
    if reason.value == _QUOTA_EXCEEDED:  # the one that passes by itself
        return DeviceUnreachable(f"the broker refused the message: {name}", maybe_executed=False)
    return OperationFailed("brokerRefused", f"the broker refused the message: {name}")


class MqttConsumer(Link):
    """Receives with QoS 1 in a session that outlives the connection; messages are acknowledged by the caller.

    What is not acknowledged when the connection ends comes again on the next, with `duplicate`.
    When another client comes with our id (a takeover) it waits ten seconds before it comes back.

    Args:
        address: the broker.
        client_id: `iotjobs-<128 random bits>`, kept in the store, never logged.
        filters: what to subscribe to.
        earlier: what the session may be subscribed to: of these, the others are taken back.
        handler: called in the loop for each message, in the order of arrival; it must not block.
            What it raises is logged, and the message acknowledged.
        session_expiry_s: how long the broker keeps the session while we are away.
        receive_maximum: unacknowledged messages at once, 256 at most: the back-pressure.
        on_new_session: awaited when the broker does not know the session (any more), before the first
            message of the new one can come.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        filters: Sequence[str],
        earlier: Iterable[str] = (),
        handler: Callable[[Received], None],
        session_expiry_s: int = 7 * 86_400,
        receive_maximum: int = 256,
        on_new_session: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._filters = tuple(check_filter(topic_filter) for topic_filter in filters)
        self._stale = sorted({*earlier} - {*filters})
        self._address, self._handler, self._on_new_session = address, handler, on_new_session
        self._session = Session(
            client_id=client_id,
            clean_start=False,
            expiry_s=session_expiry_s,
            receive_maximum=min(receive_maximum, 256),
        )
        self._subscribed, self._is_told = False, True
        super().__init__("consumer", self._make_connection, self._subscribe)
        self.poisoned = 0  # messages acknowledged without effect: unreadable, or the handler raised
        self.refused: dict[str, str] = {}  # filters that the broker did not grant, with its reason

    def __repr__(self) -> str:
        return f"MqttConsumer({self._address})"

    def _make_connection(self) -> Connection:
        return Connection(
            self._address, self._session, on_message=self._arrived, on_malformed=self._arrived_malformed
        )

    async def start(self) -> None:
        """See `Link`."""
        if self._task is None:
            self._subscribed = False  # another node, of other settings, may have had the session meanwhile
        await super().start()

    async def _subscribe(self, connection: Connection) -> None:
        if not connection.session_present:
            # Also for the next one, should this connection end before it is done: that finds the session there.
            self._subscribed, self._is_told = False, False
        if not self._is_told and self._on_new_session is not None:
            await self._on_new_session()
        self._is_told = True
        # Once in every run even when the session is known: an earlier one may have had other filters.
        if self._subscribed:
            return
        granted = await connection.subscribe(self._filters) if self._filters else {}
        if self._stale and connection.session_present:
            await connection.unsubscribe(self._stale)  # behind it: what both take is not missed between
        self.refused = {name: reason.getName() for name, reason in granted.items() if reason.is_failure}
        for topic_filter, reason in self.refused.items():
            log.error("mqtt subscription refused", extra={"filter": topic_filter, "reason": reason})
        self._subscribed = True

    def _arrived(self, received: Received) -> None:
        try:
            self._handler(received)
        except Exception:
            # The edge of one message: raised further it would end the connection, and come again.
            self.poisoned += 1
            log.exception("mqtt message not handled", extra={"topic": received.topic})
            received.ack()

    def _arrived_malformed(self, malformed: MalformedMessage) -> None:
        self.poisoned += 1
        log.warning("mqtt message not readable", extra={"why": str(malformed)})

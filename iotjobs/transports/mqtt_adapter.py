"""One MQTT 5 connection: paho's client driven by the running loop, without a thread of its own.

A `Connection` is used once, with a new paho client each time: paho 2.2 sends everything that was
unacknowledged again, by itself and with DUP, when a client reconnects. Only the blocking connect
(DNS, TCP, TLS) runs in a worker thread. `mqtt.Link` makes connections one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from typing import cast

import paho.mqtt.client as mqtt
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from iotjobs.domain.errors import DeviceUnreachable, LinkLost
from iotjobs.transports.mqtt_address import BrokerAddress, ConnectionEnded, Refusal, Session
from iotjobs.transports.mqtt_messages import (
    MalformedMessage,
    MqttMessage,
    PackedProperties,
    Received,
    pack_properties,
    read_publish,
)
from iotjobs.transports.mqtt_paho import PahoClient
from iotjobs.transports.mqtt_window import Window

_KEEPALIVE_S = 15  # a dead broker is noticed within twice this
_CONNECT_TIMEOUT_S = 5.0  # of DNS, TCP and TLS each
_CONNACK_TIMEOUT_S = 10.0
_READS_PER_TURN = 64  # packets, then the loop's other tasks have their turn (about 1 ms)
# Mosquitto 2.0.11 answers with 0x87 where the standard has 0x86.
_CREDENTIAL_REASONS = frozenset({0x86, 0x87, 0x8C})


class Connection:
    """One connection to a broker, from `open` to `lost`. All calls in the loop's thread.

    Attributes:
        lost: set once it has ended, for whatever reason; `why` then says it.
        session_present: the broker knew our client id and kept its subscriptions and messages.
        window: places for unacknowledged messages: ours or the broker's Receive Maximum.
        maximum_packet_bytes: the largest packet that the broker takes.
        maximum_qos: the highest QoS that the broker takes.
        retain_available: the broker keeps retained messages.
    """

    def __init__(
        self,
        address: BrokerAddress,
        session: Session,
        *,
        window: int = 256,
        on_message: Callable[[Received], None] | None = None,
        on_malformed: Callable[[MalformedMessage], None] | None = None,
    ) -> None:
        self._address, self._session, self._window_size = address, session, window
        self._on_message, self._on_malformed = on_message, on_malformed
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._acks: dict[int, tuple[asyncio.Future[ReasonCode], int]] = {}  # by packet id; with the QoS
        self._subscribing: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._done: list[int] = []  # packet ids that are to be acknowledged
        self._flushing = self._writer_on = False
        self.lost = asyncio.Event()
        self.why = ConnectionEnded("not connected")
        self.session_present = False
        self.window = Window(window)
        self.maximum_packet_bytes, self.maximum_qos, self.retain_available = 268_435_455, 2, True
        self._client = self._make_client()

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and wait for the broker's word.

        Raises:
            ConnectionEnded: no address, no TCP, no TLS, no CONNACK in time, or a refusal.
        """
        # Shielded: the thread cannot be stopped, and a socket that it opens later has to be closed.
        connecting = asyncio.ensure_future(asyncio.to_thread(self._client.reconnect))
        try:
            await asyncio.shield(connecting)
            async with asyncio.timeout(_CONNACK_TIMEOUT_S):
                await asyncio.shield(self._welcome)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._drop_late)
            self._drop(ConnectionEnded("given up while connecting"))
            raise
        except TimeoutError as error:
            ended = ConnectionEnded(f"{self._address} does not answer")
            self._drop(ended)
            raise ended from error
        except (OSError, ValueError) as error:  # ValueError: a host that is no name at all (idna)
            ended = ConnectionEnded(f"{self._address}: {error}")
            self._drop(ended)
            raise ended from error

    def close(self) -> None:
        """Say goodbye and end; what was not acknowledged fails. Safe to call twice."""
        if self.lost.is_set():
            return
        self._write_done()
        self._client.disconnect()
        with contextlib.suppress(MQTTException, ValueError):
            self._client.loop_write()
        self._drop(ConnectionEnded("closed by us"))

    def tick(self) -> None:
        """Ping, and notice a silent broker: call it about once a second."""
        self._client.loop_misc()

    # --- use ----------------------------------------------------------------------------------

    def send(self, message: MqttMessage, packed: bytes | None = None) -> asyncio.Future[ReasonCode]:
        """Hand one message over. For QoS 1 the caller has entered `window`; the PUBACK leaves it.

        Args:
            message: what to send.
            packed: its properties, if they are packed already.

        Returns:
            PUBACK's reason; for QoS 0 a success as soon as the kernel has the whole packet. It
            fails with `DeviceUnreachable` when the connection ended before the first byte was
            written, with `LinkLost` when after.

        Raises:
            DeviceUnreachable: the connection has ended already; `window` is still entered.
        """
        if self.lost.is_set():
            raise DeviceUnreachable(f"not sent: {self.why}", maybe_executed=False)
        self._client.skip_ids(self._acks)
        properties = cast(Properties, PackedProperties(packed or pack_properties(message)))
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise DeviceUnreachable(f"not sent: {mqtt.error_string(info.rc)}", maybe_executed=False)
        acknowledged: asyncio.Future[ReasonCode] = self._loop.create_future()
        # Read in a later turn of this same loop: neither the write nor the PUBACK can come before.
        self._acks[info.mid] = (acknowledged, message.qos)
        return acknowledged

    async def subscribe(self, filters: Sequence[str]) -> dict[str, ReasonCode]:
        """Subscribe with QoS 1; retained messages come for new subscriptions only.

        Raises:
            ConnectionEnded: it ended before the broker answered.
        """
        if self.lost.is_set():
            raise self.why
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        asked = self._client.subscribe([(topic_filter, options) for topic_filter in filters])
        return dict(zip(filters, await self._reasons(*asked), strict=True))

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Take subscriptions back, also such as are not there.

        Raises:
            ConnectionEnded: it ended before the broker answered.
        """
        await self._reasons(*self._client.unsubscribe(list(filters)))

    async def _reasons(self, rc: MQTTErrorCode, mid: int | None) -> list[ReasonCode]:
        """The broker's answer to what was asked with this packet id."""
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise ConnectionEnded(mqtt.error_string(rc))
        answered: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._subscribing[mid] = answered
        try:
            async with asyncio.timeout(_CONNACK_TIMEOUT_S):
                return await answered
        except TimeoutError as error:
            raise ConnectionEnded(f"{self._address} does not answer a subscription") from error

    # --- paho's callbacks ---------------------------------------------------------------------

    def _make_client(self) -> PahoClient:
        session, address = self._session, self._address
        client = PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=session.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # paho's own window ignores the broker's; ours is `window`
        client.username_pw_set(address.username, address.password)
        if address.tls:
            client.tls_context = ssl.create_default_context(cafile=address.ca_file)
            client.tls_set_context(client.tls_context)
        client.on_publish_packet = self._arrived
        client.on_socket_open, client.on_socket_close = self._opened, self._closed
        client.on_socket_register_write = self._wants_write
        client.on_connect, client.on_disconnect = self._answered, self._disconnected
        client.on_publish, client.on_subscribe = self._published, self._subscribed
        client.on_unsubscribe = self._subscribed
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = session.expiry_s
        properties.ReceiveMaximum = session.receive_maximum
        client.connect_async(
            address.host,
            address.port,
            keepalive=_KEEPALIVE_S,
            clean_start=session.clean_start,
            properties=properties,
        )
        return client

    def _in_loop(self, call: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            call()
        else:
            with contextlib.suppress(RuntimeError):  # the loop was closed while the thread connected
                self._loop.call_soon_threadsafe(call)

    def _opened(self, _client: mqtt.Client, _data: object, sock: mqtt.SocketLike) -> None:
        # Without it an answer to a lone message waits 40 ms for a delayed ACK.
        cast(socket.socket, sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in_loop(lambda: self._watch(sock))

    def _watch(self, sock: mqtt.SocketLike) -> None:
        if self.lost.is_set() or self._client.socket() is not sock:  # given up meanwhile
            return
        self._loop.add_reader(sock.fileno(), self._readable)

    def _closed(self, _client: mqtt.Client, _data: object, sock: mqtt.SocketLike) -> None:
        # Called before the descriptor is closed: a number that the loop still watches is reused.
        if not self._loop.is_closed() and (descriptor := sock.fileno()) >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
        self._writer_on = False

    def _wants_write(self, _client: mqtt.Client, _data: object, _sock: mqtt.SocketLike) -> None:
        self._in_loop(self._flush_soon)

    def _flush_soon(self) -> None:
        # One flush a turn, not a pair of epoll_ctl calls a packet.
        if not self._flushing and not self._writer_on:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        client = self._client
        if not self.lost.is_set() and client.socket() is not None:
            self._write_done()  # while this is on, so that it asks for no further flush
        self._flushing = False
        if self.lost.is_set() or client.socket() is None:
            return
        client.loop_write()
        if (sock := client.socket()) is None:
            return
        if client.want_write() != self._writer_on:
            self._writer_on = not self._writer_on
            if self._writer_on:
                self._loop.add_writer(sock.fileno(), self._flush)
            else:
                self._loop.remove_writer(sock.fileno())

    def _readable(self) -> None:
        client = self._client
        try:
            for _ in range(_READS_PER_TURN):
                if self.lost.is_set() or client.socket() is None:
                    return
                client.loop_read()
                if client.drained:
                    return
        except (MQTTException, LookupError, ValueError, AssertionError, struct.error) as error:
            self._drop(ConnectionEnded(f"{self._address} broke the protocol: {error!r}"))
            return
        # TLS may hold decrypted packets that no longer make the descriptor readable.
        self._loop.call_soon(self._readable)

    def _answered(
        self,
        _client: mqtt.Client,
        _data: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            refusal = Refusal.CREDENTIALS if reason.value in _CREDENTIAL_REASONS else Refusal.UNREACHABLE
            self._end(ConnectionEnded(f"{self._address} refuses us: {reason.getName()}", refusal))
            return
        said = vars(properties) if properties is not None else {}
        self.session_present = flags.session_present
        self.window = Window(min(self._window_size, said.get("ReceiveMaximum", 65_535)))
        self.maximum_packet_bytes = said.get("MaximumPacketSize", self.maximum_packet_bytes)
        self.maximum_qos = said.get("MaximumQoS", 2)
        self.retain_available = bool(said.get("RetainAvailable", 1))
        if not self._welcome.done():
            self._welcome.set_result(None)

    def _disconnected(
        self,
        _client: mqtt.Client,
        _data: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        taken_over = flags.is_disconnect_packet_from_server and reason.value == 0x8E
        refusal = Refusal.TAKEN_OVER if taken_over else Refusal.UNREACHABLE
        self._end(ConnectionEnded(f"{self._address} ended the connection: {reason.getName()}", refusal))

    def _published(
        self, _client: mqtt.Client, _data: object, mid: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        waiting = self._acks.pop(mid, None)
        if waiting is None:
            return
        acknowledged, qos = waiting
        if qos:
            self.window.leave()  # also when nobody waits any more: until now the broker counted it
        if not acknowledged.done():
            acknowledged.set_result(reason)

    def _subscribed(
        self,
        _client: mqtt.Client,
        _data: object,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        answered = self._subscribing.pop(mid, None)
        if answered is not None and not answered.done():
            answered.set_result(reasons)

    def _arrived(self, header: int, body: bytes) -> None:
        try:
            received = read_publish(header, body, self._acknowledge)
        except MalformedMessage as malformed:
            # Unacknowledged it would come again on every connection, for ever.
            if malformed.mid:
                self._acknowledge(malformed.mid)
            if self._on_malformed is not None:
                self._on_malformed(malformed)
            return
        if self._on_message is not None:
            self._on_message(received)

    def _acknowledge(self, mid: int) -> None:
        if not self.lost.is_set():
            self._done.append(mid)
            self._flush_soon()

    def _write_done(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._client.ack_all(done)

    # --- the end ------------------------------------------------------------------------------

    def _drop(self, why: ConnectionEnded) -> None:
        """End it and close the socket: not within a callback of paho's."""
        self._end(why)
        self._client.close_socket()

    def _end(self, why: ConnectionEnded) -> None:
        """Settle everything that waits, once; the first reason stays. paho closes the socket itself."""
        if self.lost.is_set():
            return
        self.why = why
        self.lost.set()
        self.window.close()
        if not self._welcome.done():
            self._welcome.set_exception(why)
            self._welcome.exception()  # nobody waits for it when the thread failed first
        unwritten = self._client.unwritten()
        for mid, (acknowledged, _) in self._acks.items():
            if acknowledged.done():
                continue
            if mid in unwritten:
                acknowledged.set_exception(DeviceUnreachable(f"not sent: {why}", maybe_executed=False))
            else:
                acknowledged.set_exception(LinkLost(f"sent, not acknowledged: {why}", maybe_executed=True))
        for answered in self._subscribing.values():
            if not answered.done():
                answered.set_exception(why)
        self._acks.clear()
        self._subscribing.clear()

    def _drop_late(self, connecting: asyncio.Future[MQTTErrorCode]) -> None:
        if not connecting.cancelled():
            connecting.exception()
        self._client.close_socket()

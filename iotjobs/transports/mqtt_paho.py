"""paho's client with what it lacks: the one place that leans on its private members.

They are those of paho 2.2.0; `tests/unit/transports/test_mqtt.py` looks whether they are still there.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Container, Sequence
from typing import Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MessageType, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

_READ_BYTES = 16_384
_MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)  # Linux
_TAKEN, _NOTHING_MORE = ReasonCode(PacketTypes.PUBACK), Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


class PahoClient(mqtt.Client):
    """paho's client, but PUBLISH is read by us, and a reader can tell when the socket is empty.

    It serves one connection: what was read ahead of it is kept.
    """

    drained = False
    _ahead, _at = b"", 0  # what was read, and how much of it paho has had
    on_publish_packet: Callable[[int, bytes], None]
    tls_context: ssl.SSLContext

    def _packet_read(self) -> MQTTErrorCode:
        rc = super()._packet_read()
        # paho also says so after 100 reads of one large message, which for TLS is not the socket's word.
        held = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        self.drained = rc == MQTTErrorCode.MQTT_ERR_AGAIN and not held and self._at >= len(self._ahead)
        return rc

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for one byte, another one, and then the rest of each packet: three calls of the system.
        if self._at >= len(self._ahead):
            self._ahead, self._at = super()._sock_recv(max(bufsize, _READ_BYTES)), 0
        found = self._ahead[self._at : self._at + bufsize]
        self._at += len(found)
        return found

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if (
            not self._out_packet
            or not isinstance(self._sock, socket.socket)
            or isinstance(self._sock, ssl.SSLSocket)
        ):
            return super()._sock_send(buf)
        # More follows in the same turn: the broker is not to be woken up for each packet.
        return self._sock.send(buf, _MORE_FOLLOWS)

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if len(packet) != 2:
            return super()._handle_pubackcomp(cmd)
        # The plain word, without a reason (MQTT 5 §3.4.2.1); paho's reading of it costs as much as sending did.
        number = packet[0] << 8 | packet[1]
        if number not in self._out_messages:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._do_on_publish(number, _TAKEN, _NOTHING_MORE)

    def ack_all(self, numbers: Sequence[int]) -> None:
        """Acknowledge PUBLISHes of QoS 1 by one write."""
        packets = b"".join(struct.pack("!BBH", MessageType.PUBACK, 2, number) for number in numbers)
        self._packet_queue(MessageType.PUBACK, packets, numbers[0], 1)

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        # paho 2.2 leaves the socket open when the handshake fails, at each try to connect.
        sock = self.tls_context.wrap_socket(
            tcp_sock, server_hostname=self._host, do_handshake_on_connect=False
        )
        try:
            sock.settimeout(self.connect_timeout)
            sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        return sock

    def _handle_publish(self) -> MQTTErrorCode:
        self.on_publish_packet(self._in_packet["command"], bytes(self._in_packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def skip_ids(self, used: Container[int]) -> None:
        """Let the next packet id be none of these: paho counts around, and takes one for QoS 0 too."""
        while self._last_mid % 65_535 + 1 in used:
            self._mid_generate()

    def unwritten(self) -> set[int]:
        """Packet ids of the PUBLISHes of which the kernel has not taken a single byte."""
        return {
            packet["mid"]
            for packet in self._out_packet
            if packet["command"] & 0xF0 == MessageType.PUBLISH and packet["pos"] == 0
        }

    def close_socket(self) -> None:
        """Close it without a word; never within a callback of paho's, whose lock would be taken twice."""
        self._sock_close()

"""paho's client with what it lacks: the one place that leans on its private members.

They are those of paho 2.2.0; `tests/unit/transports/test_mqtt.py` looks whether they are still there.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Container

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MessageType, MQTTErrorCode


class PahoClient(mqtt.Client):
    """paho's client, but PUBLISH is read by us, and a reader can tell when the socket is empty."""

    drained = False
    on_publish_packet: Callable[[int, bytes], None]
    tls_context: ssl.SSLContext

    def _packet_read(self) -> MQTTErrorCode:
        rc = super()._packet_read()
        # paho also says so after 100 reads of one large message, which for TLS is not the socket's word.
        held = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        self.drained = rc == MQTTErrorCode.MQTT_ERR_AGAIN and not held
        return rc

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

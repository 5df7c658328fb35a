"""Publishers of reports that keep each message until the broker has it, also when their connection is cut."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

# paho sends again what was not acknowledged right behind its `on_connect`.
SENT_AGAIN_S = 0.05
CONNECTED_WITHIN_S = 30


class Reporter:
    """One client that reports for many things; `with` it. What it publishes waits for its PUBACK.

    What is published while paho connects again overtakes what it then sends again: a device that says things out of
    their order. So it publishes while it is connected only.
    """

    def __init__(self, port: int, name: str) -> None:
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"reporter-{name}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.max_inflight_messages_set(20)
        self._client.max_queued_messages_set(0)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_publish = self._acknowledged
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._in_order = threading.Event()
        self._port, self._lock = port, threading.Lock()
        self.sent = self.acknowledged = 0

    def __enter__(self) -> Reporter:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", self._port, clean_start=False, properties=properties)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, *_: object) -> None:
        timer = threading.Timer(SENT_AGAIN_S, self._in_order.set)
        timer.daemon = True
        timer.start()

    def _disconnected(self, *_: object) -> None:
        self._in_order.clear()

    def _acknowledged(self, *_: object) -> None:
        with self._lock:
            self.acknowledged += 1

    def report(
        self, thing: str, values: dict[str, Any], report_id: str | None = None, *, retain: bool = False
    ) -> None:
        """Publish a report with QoS 1, and do not wait for it; while the connection is down that is waited for."""
        assert self._in_order.wait(CONNECTED_WITHIN_S), "no connection to the broker"
        properties = Properties(PacketTypes.PUBLISH)
        if report_id is not None:
            properties.UserProperty = ("report-id", report_id)
        self._client.publish(f"iotjobs/{thing}/report", json.dumps(values).encode(), 1, retain, properties)
        self.sent += 1

    def say(self, thing: str, word: str, *, retain: bool = False) -> None:
        """Publish the word of a thing's connection with QoS 1, and do not wait for it."""
        self._client.publish(f"iotjobs/{thing}/status", word.encode(), 1, retain)
        self.sent += 1

    @property
    def all_taken(self) -> bool:
        """Whether the broker has acknowledged everything."""
        return self.acknowledged >= self.sent

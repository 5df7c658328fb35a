"""paho alone: QoS 1 publishes on one connection, a window of them unacknowledged, nothing recorded.

`python bare_paho.py PORT COUNT WINDOW`; each line on stdin is one round of COUNT messages.
"""

from __future__ import annotations

import sys
import threading

import fan_out
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

WITHIN_S = 120

port, count, window = (int(text) for text in sys.argv[1:4])
places = threading.Semaphore(window)
client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
client.max_inflight_messages_set(window)
client.on_publish = lambda *_: places.release()
client.connect("127.0.0.1", port)
client.loop_start()


def run() -> int:
    for _ in range(count):
        if not places.acquire(timeout=WITHIN_S):
            return 1
        client.publish("benchmark/device", b'{"on":true}', 1)
    for _ in range(window):  # all acknowledged
        if not places.acquire(timeout=WITHIN_S):
            return 1
    places.release(window)
    return 0


fan_out.serve(run)
client.disconnect()

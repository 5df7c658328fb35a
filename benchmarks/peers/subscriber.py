"""The device that all messages go to: subscribes with QoS 1 and does nothing with them.

`python subscriber.py PORT`; says `ready`, ends with its standard input.
"""

from __future__ import annotations

import sys

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
client.on_connect = lambda *_: client.subscribe("benchmark/#", 1)
client.on_subscribe = lambda *_: print('{"ready": true}', flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
sys.stdin.read()
client.disconnect()

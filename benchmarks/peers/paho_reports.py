"""paho alone: takes reports in its callback, keeps each thing's state in a dict, publishes a command.

`python paho_reports.py PORT`; says `ready`, ends with its standard input. It records nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

states: dict[str, str] = {}


def took(client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
    thing = message.topic.split("/")[1]
    temperature = json.loads(message.payload)["temperature"]
    state = "alarm" if temperature > 90 else "overloaded" if temperature > 80 else "working"
    if state != states.get(thing):
        states[thing] = state
        if state != "working":
            client.publish(f"benchmark/{thing}/cmd", json.dumps({"temperature": temperature}), 1)


client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
client.max_inflight_messages_set(1000)
client.on_message = took
client.on_connect = lambda *_: client.subscribe("iotjobs/+/report", 1)
client.on_subscribe = lambda *_: print('{"ready": true}', flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
sys.stdin.read()
client.disconnect()

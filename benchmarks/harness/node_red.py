"""Node-RED with one flow, in a folder of its own and on a free loopback port, as long as a benchmark runs.

The flow is the rule that the others have too: mqtt in, a function that keeps each thing's state and lets
a message through when it has become another one, mqtt out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.peer import ROOT
from benchmarks.harness.server import free_port

PROGRAM = ROOT / ".benchmark-env" / "node" / "node_modules" / "node-red" / "red.js"
STOP_WITHIN_S = 20.0
_RULE = """
const thing = msg.topic.split('/')[1];
const temperature = msg.payload.temperature;
const state = temperature > 90 ? 'alarm' : temperature > 80 ? 'overloaded' : 'working';
const before = context.get(thing);
if (state === before) return null;
context.set(thing, state);
if (state === 'working') return null;
return {topic: 'benchmark/' + thing + '/cmd', payload: {temperature: temperature}};
"""
_SETTINGS = {
    "uiHost": "127.0.0.1",
    "httpAdminRoot": False,
    "httpNodeRoot": False,
    "flowFile": "flows.json",
    "credentialSecret": False,
    "logging": {"console": {"level": "warn"}},
    "telemetry": {"enabled": False, "updateNotification": False},
    "runtimeState": {"enabled": False},
}


def is_installed() -> bool:
    """Whether there is a Node-RED, and a Node.js to run it."""
    return PROGRAM.exists() and shutil.which("node") is not None


def flow(port: int) -> list[dict[str, object]]:
    """The flow, at the broker of this port."""
    broker: dict[str, object] = {
        "id": "broker",
        "type": "mqtt-broker",
        "broker": "127.0.0.1",
        "port": str(port),
        "clientid": "node-red",
        "autoConnect": True,
        "usetls": False,
        "protocolVersion": "4",
        "keepalive": "60",
        "cleansession": True,
    }
    place = {"z": "tab", "x": 0, "y": 0}
    reports = {"type": "mqtt in", "topic": "iotjobs/+/report", "qos": "1", "datatype": "json", "inputs": 0}
    commands = {"type": "mqtt out", "topic": "", "qos": "1", "retain": "false", "wires": []}
    rule = {"type": "function", "func": _RULE, "outputs": 1, "wires": [["out"]], "libs": []}
    return [
        {"id": "tab", "type": "tab", "label": "reports"},
        broker,
        {**reports, **place, "id": "in", "broker": "broker", "wires": [["rule"]]},
        {**rule, **place, "id": "rule"},
        {**commands, **place, "id": "out", "broker": "broker"},
    ]


@contextmanager
def node_red(folder: Path, port: int) -> Iterator[int]:
    """Its process id, as soon as it was started; ended by it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flows.json").write_text(json.dumps(flow(port)))
    settings = {**_SETTINGS, "uiPort": free_port()}
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};\n")
    command = ["node", str(PROGRAM), "--userDir", str(folder), "--settings", str(folder / "settings.js")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

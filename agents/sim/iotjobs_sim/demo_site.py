"""What the demo defines: three classes with their operations, eleven objects, a credential, a link."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

from iotjobs_sim.demo_api import Api, ApiError
from iotjobs_sim.sshd import SshServer

_REPORT = 'echo "{{name}}, hall {{properties.hall}}, {{properties.line}}, for {{user.login}}"'
_SELF_TEST = 'echo "pressure is 2 bar, 4 are needed" >&2; exit 3'
# Never ends by itself, and has a child that does not either.
_CALIBRATE = 'sleep 600 & echo "processes $$ and $!"; wait'
# A dead process whose parent has not collected it yet (Z) runs no more.
_LOOK_FOR = """for process do
  stat=
  { read -r stat <"/proc/$process/stat"; } 2>/dev/null
  case $stat in
    '' | *') Z '*) ;;
    *) echo "still there: $stat"; exit 1 ;;
  esac
done
echo "no such processes: $*"
"""
_TRACE = (
    'echo "{{source.name}} (hall {{source.properties.hall}}) reaches {{target.name}} by {{properties.bus}}"'
)

GATEWAY_OPERATIONS: tuple[dict[str, Any], ...] = (
    {"name": "report", "type": "script", "parameters": {"text": _REPORT}},
    {"name": "kernel", "type": "program", "parameters": {"path": "uname", "args": ["-s", "-r", "-m"]}},
    {"name": "self-test", "type": "script", "parameters": {"text": _SELF_TEST}},
    {
        "name": "calibrate",
        "type": "script",
        "parameters": {"text": _CALIBRATE},
        "timeout_s": 1,
        "kill_after_s": 1,
    },
    {
        "name": "look-for",
        "type": "script",
        "parameters": {"text": _LOOK_FOR, "args": ["{{args.shell}}", "{{args.child}}"]},
    },
)
VALVE_OPERATIONS: tuple[dict[str, Any], ...] = (
    {
        "name": "blink",
        "type": "mqtt",
        "parameters": {"topic": "iotjobs/{{name}}/cmd/blink", "message": {"blink": "{{args.times}}"}},
    },
    {
        "name": "set-opening",
        "type": "mqtt",
        "parameters": {
            "topic": "iotjobs/{{name}}/cmd/opening",
            "message": {"percent": "{{args.percent}}"},
            "answer": {"within_s": 10},
        },
    },
)
OVEN_OPERATIONS: tuple[dict[str, Any], ...] = (
    {
        "name": "fan-on",
        "type": "mqtt",
        "parameters": {"topic": "iotjobs/{{name}}/cmd/fan", "message": {"fan": "on"}},
    },
    {
        "name": "call-for-help",
        "type": "mqtt",
        "parameters": {"topic": "site/help", "message": "{{name}} has been in {{state}} for a minute"},
    },
)
LIMIT, LOWER_LIMIT = 80, 65
OVEN_CONDITIONS: tuple[dict[str, Any], ...] = (
    {"state": "alarm", "when": f"temperature > {LIMIT}", "description": "too hot"},
)
# By the names of their operations.
OVEN_TRIGGERS: dict[str, dict[str, Any]] = {
    "fan-on": {"name": "cool it", "states": ["alarm"]},
    "call-for-help": {"name": "call somebody", "states": ["alarm"], "hold_s": 60},
}
LINK_OPERATION: dict[str, Any] = {"name": "trace", "type": "script", "parameters": {"text": _TRACE}}

# The last one shows that a value never becomes a part of a script.
HALLS = ("A", "A", "B", "B", "$(id -un)")
LINE = "bottling"
BUS = "RS-485"


@dataclass
class Site:
    """What was defined, by name.

    Attributes:
        owners: paths such as `/objects/ID`.
        names: of users and objects, by id.
    """

    api: Api
    owners: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def operation(self, owner: str, name: str) -> str:
        """The id of an owner's operation, its class's included, as the API lists them."""
        for operation in self.api.get(f"{self.owners[owner]}/operations")["items"]:
            if operation["name"] == name:
                return str(operation["id"])
        raise ApiError(f"{owner} has no operation {name}")

    def add_class(self, name: str, properties: dict[str, Any], operations: tuple[dict[str, Any], ...]) -> str:
        """Define a class; its id."""
        made = self.api.post("/classes", {"name": name, "properties": properties})
        for operation in operations:
            self.api.post(f"/classes/{made['id']}/operations", operation)
        return str(made["id"])

    def add_rules(self, class_id: str) -> None:
        """Give the class of ovens what decides their state, and what a change of it starts."""
        path = f"/classes/{class_id}"
        self.api.call("PUT", f"{path}/state-conditions", {"items": list(OVEN_CONDITIONS)})
        operations = {one["name"]: one["id"] for one in self.api.get(f"{path}/operations")["items"]}
        items = [{**rule, "operation_id": operations[name]} for name, rule in OVEN_TRIGGERS.items()]
        self.api.call("PUT", f"{path}/state-triggers", {"items": items})

    def add_object(self, definition: dict[str, Any]) -> str:
        """Define an object; its path."""
        made = self.api.post("/objects", definition)
        path = f"/objects/{made['id']}"
        self.owners[made["name"]], self.names[made["id"]] = path, made["name"]
        return path


def define(api: Api, gateways: list[SshServer]) -> Site:
    """Define everything; no host key is trusted yet."""
    site = Site(api)
    site.names.update({user["id"]: user["login"] for user in api.get("/users")["items"]})
    login = {"name": "fleet key", "kind": "ssh_key", "username": gateways[0].username}
    credential = api.post("/credentials", {**login, "private_key": gateways[0].client_key})
    gateway = site.add_class("gateway", {"line": LINE}, GATEWAY_OPERATIONS)
    valve = site.add_class("valve", {}, VALVE_OPERATIONS)
    for number, (server, hall) in enumerate(zip(gateways, HALLS, strict=True), 1):
        ssh = {"host": server.host, "port": server.port, "credential_id": credential["id"]}
        properties = {"hall": hall}
        site.add_object({"name": f"gw-{number}", "class_id": gateway, "properties": properties, "ssh": ssh})
        name = f"valve-{number}"
        site.add_object({"name": name, "class_id": valve, "thing": name})
    oven = site.add_class("oven", {}, OVEN_OPERATIONS)
    site.add_rules(oven)
    site.add_object({"name": "oven-1", "class_id": oven, "thing": "oven-1"})
    ends = {
        end: site.owners[name].rpartition("/")[2] for end, name in (("source", "gw-1"), ("target", "valve-1"))
    }
    link = api.post("/links", {"name": "gw-1 to valve-1", **ends, "properties": {"bus": BUS}})
    site.owners[link["name"]] = f"/links/{link['id']}"
    api.post(f"/links/{link['id']}/operations", LINK_OPERATION)
    return site


def trust(site: Site, name: str, server: SshServer) -> str:
    """Look at a gateway's host key, compare it with the one that its sshd has, trust it; its fingerprint.

    Raises:
        ApiError: it is another key.
    """
    [real] = server.host_keys
    scanned = site.api.post(f"{site.owners[name]}/host-key/scan")["keys"]
    for key in scanned:
        if key["host_key"] == real and key["fingerprint"] == _fingerprint(real):
            site.api.call("PUT", f"{site.owners[name]}/host-key", {"host_key": real})
            return str(key["fingerprint"])
    raise ApiError(f"{name} shows other host keys than its own, {_fingerprint(real)}: {scanned}")


def _fingerprint(public_key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

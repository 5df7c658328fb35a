from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncssh
import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from iotjobs import clock
from iotjobs.domain.rights import Role
from iotjobs.inputs import auth
from iotjobs.inputs.auth import Authenticator
from iotjobs.inputs.rest import classes, credentials, links, objects, operations, scripts, users
from iotjobs.inputs.rest.api import build_api, describe
from iotjobs.inputs.rest.services import ApiServices
from iotjobs.store import accounts, entities, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store, open_store

NONE = "0" * 32
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


@dataclass
class Api:
    """A served application and a client that is its administrator."""

    app: FastAPI
    store: Store
    secrets: Secrets
    client: httpx2.AsyncClient
    token: str
    changes: list[str]

    async def __call__(self, method: str, path: str, **given: Any) -> httpx2.Response:
        return await self.client.request(method, f"/api/v1{path}", **given)

    async def make(self, path: str, **members: Any) -> dict[str, Any]:
        answer = await self("POST", path, json=members)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def as_user(self, role: Role) -> dict[str, str]:
        """The header of a new user's token."""

        def item(tx: Any) -> str:
            user = accounts.create_user(tx, clock.new_id(), None, role, clock.now_ms())
            return accounts.make_token(tx, user.id, "test", None, clock.now_ms()).text

        return {"Authorization": f"Bearer {await self.store.write(item)}"}


@pytest.fixture
async def api(sqlite_url: str) -> AsyncIterator[Api]:
    store = open_store(sqlite_url)
    await store.start()
    token = await store.write(lambda tx: accounts.ensure_admin(tx, None, clock.now_ms()))
    changes: list[str] = []
    secrets = Secrets(b"k" * 32)
    app = build_api(
        ApiServices(
            store=store,
            secrets=secrets,
            authenticator=Authenticator(store),
            definitions_changed=lambda: changes.append("changed"),
        )
    )
    headers = {"Authorization": f"Bearer {token}"}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield Api(app, store, secrets, client, token, changes)
    await store.stop()


def problem_of(answer: httpx2.Response, status: int, code: str) -> list[str]:
    """Check the problem and give the names of its fields."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {
        *("type", "title", "status", "code", "detail", "instance", "request_id", "errors"),
    }
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    return [error["field"] for error in problem["errors"]]


SSH = {"host": "127.0.0.1"}


async def test_a_definition_is_made_read_listed_changed_and_deleted(api: Api) -> None:
    made = await api("POST", "/classes", json={"name": "press", "properties": {"a": 1, "b": {"c": 2}}})
    assert made.status_code == 201
    assert made.headers["etag"] == '"1"'
    path = made.headers["location"].removeprefix("/api/v1")
    assert (await api("GET", path)).json() == made.json()
    assert (await api("GET", "/classes?name=press")).json() == {"items": [made.json()], "next": None}

    patch = {"properties": {"a": None, "b": {"d": 3}}}
    changed = await api("PATCH", path, json=patch, headers={"If-Match": '"1"'})
    assert changed.json()["properties"] == {"b": {"c": 2, "d": 3}}
    assert changed.headers["etag"] == '"2"'
    assert changed.json()["created_at"] == made.json()["created_at"]

    gone = await api("DELETE", path, headers={"If-Match": 'W/"2", "2"'})
    assert (gone.status_code, gone.content) == (204, b"")
    problem_of(await api("GET", path), 404, "notFound")


async def test_every_kind_of_definition_goes_round(api: Api) -> None:
    one = await api.make("/objects", name="a", ssh=SSH, thing="t-1", mqtt={"read": ["site/#"], "write": []})
    two = await api.make("/objects", name="b")
    link = await api.make("/links", name="line", source=one["id"], target=two["id"])
    script = await api.make("/scripts", name="s", text="echo {{id}}")
    credential = await api.make("/credentials", name="root", kind="password", password="hidden-7")
    user = await api.make("/users", login="bob", password="long enough", role="operator")

    for path in (
        *(f"/objects/{one['id']}", f"/links/{link['id']}", f"/scripts/{script['id']}"),
        *(f"/credentials/{credential['id']}", f"/users/{user['id']}"),
    ):
        answer = await api("GET", path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["etag"] == '"1"'
        assert (await api("GET", path.rpartition("/")[0])).json()["items"]
    for path in (f"/links/{link['id']}", f"/objects/{one['id']}", f"/users/{user['id']}"):
        assert (await api("DELETE", path)).status_code == 204


async def test_lists_go_on_behind_their_cursor(api: Api) -> None:
    for number in range(5):
        await api.make("/objects", name=f"o{number}", tags=["x"])
    names, query = [], "/objects?limit=2&tag=x"
    while query:
        part = (await api("GET", query)).json()
        names += [item["name"] for item in part["items"]]
        query = part["next"] and f"/objects?limit=2&tag=x&cursor={part['next']}"

    assert sorted(names) == [f"o{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("cursor=zz", "cursor"),
        ("tagg=x", "tagg"),
        ("name=%00", "name"),
        ("tag=a%0Ab", "tag"),
    ],
)
async def test_a_query_that_means_nothing_is_refused(api: Api, query: str, field: str) -> None:
    assert problem_of(await api("GET", f"/objects?{query}"), 400, "badRequest") == [field]


SCRIPT = {"name": "op", "type": "script", "parameters": {"text": "true"}}
MQTT = {"name": "op", "type": "mqtt", "parameters": {"topic": "a/b", "message": {"on": True}}}


def operation(base: dict[str, Any], **given: Any) -> dict[str, Any]:
    return base | given | {"parameters": base["parameters"] | given.get("parameters", {})}


async def test_an_operation_is_answered_whole_with_its_defaults(api: Api) -> None:
    owner = await api.make("/objects", name="a", ssh=SSH)

    made = await api.make(f"/objects/{owner['id']}/operations", **SCRIPT)

    assert {name: made[name] for name in ("via", "run_on", "ttl_s", "queue", "retry", "inherited")} == {
        "via": "auto",
        "run_on": "source",
        "ttl_s": 3600.0,
        "queue": "mix",
        "inherited": False,
        "retry": {"attempts": 1, "on": ["unreachable"], "backoff_s": 2.0, "max_backoff_s": 300.0},
    }
    assert made["parameters"] == {
        "text": "true",
        "script_id": None,
        "interpreter": "sh",
        "args": [],
        "env": {},
    }
    assert (made["owner_kind"], made["owner_id"], made["version"]) == ("object", owner["id"], 1)


async def test_operations_are_inherited_and_changed_at_their_owner_only(api: Api) -> None:
    template = await api.make("/classes", name="press")
    entity = await api.make("/objects", name="a", class_id=template["id"], ssh=SSH)
    other = await api.make("/objects", name="b")
    inherited = await api.make(f"/classes/{template['id']}/operations", **MQTT)
    own = await api.make(f"/objects/{entity['id']}/operations", **SCRIPT)

    found = (await api("GET", f"/objects/{entity['id']}/operations")).json()["items"]
    assert [(item["id"], item["inherited"]) for item in found] == [
        (own["id"], False),
        (inherited["id"], True),
    ]
    path = f"/objects/{entity['id']}/operations/{inherited['id']}"
    assert (await api("GET", path)).json()["inherited"] is True
    for method in ("PATCH", "DELETE"):
        answer = await api(method, path, **({"json": {"timeout_s": 5}} if method == "PATCH" else {}))
        problem_of(answer, 404, "notFound")
        assert f"/classes/{template['id']}" in answer.json()["detail"]
    foreign = f"/objects/{other['id']}/operations/{own['id']}"
    for method in ("GET", "DELETE"):
        problem_of(await api(method, foreign), 404, "notFound")

    patched = await api("PATCH", f"/objects/{entity['id']}/operations/{own['id']}", json={"timeout_s": 5})
    assert (patched.json()["timeout_s"], patched.json()["version"]) == (5.0, 2)
    assert (await api("DELETE", f"/objects/{entity['id']}/operations/{own['id']}")).status_code == 204


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (operation(SCRIPT, colour="red"), "colour"),
        (operation(SCRIPT, parameters={"colour": "red"}), "parameters.colour"),
        (operation(SCRIPT, parameters={"text": 5}), "parameters.text"),
        (operation(SCRIPT, parameters={"args": ["a", 5]}), "parameters.args[1]"),
        (operation(SCRIPT, parameters={"args": "a"}), "parameters.args"),
        (operation(SCRIPT, parameters={"env": {"IJ_0": "x"}}), "parameters.env.IJ_0"),
        (operation(SCRIPT, parameters={"env": {"IOTJOBS_X": "x"}}), "parameters.env.IOTJOBS_X"),
        (operation(SCRIPT, parameters={"env": {"1A": "x"}}), "parameters.env.1A"),
        (operation(SCRIPT, parameters={"text": "x" * (256 * 1024 + 1)}), "parameters.text"),
        (operation(SCRIPT, parameters={"text": "echo {{nobody}}"}), "parameters.text"),
        (operation(SCRIPT, parameters={"args": ["{{source.name}}"]}), "parameters.args[0]"),
        (operation(SCRIPT, parameters={"interpreter": "fish"}), "parameters.interpreter"),
        (operation(SCRIPT, parameters={"script_id": NONE, "text": None}), "parameters.script_id"),
        (operation(SCRIPT, parameters={"script_id": None, "text": None}), "parameters"),
        (operation(SCRIPT, name="x" * 10_000), "name"),
        (operation(SCRIPT, name="a\nb"), "name"),
        (operation(SCRIPT, name=None), "name"),
        (operation(SCRIPT, timeout_s="5"), "timeout_s"),
        (operation(SCRIPT, timeout_s=0), "timeout_s"),
        (operation(SCRIPT, timeout_s=7 * 86_400 + 1), "timeout_s"),
        (operation(SCRIPT, timeout_s=True), "timeout_s"),
        (operation(SCRIPT, idempotent=1), "idempotent"),
        (operation(SCRIPT, via="local"), "via"),
        (operation(SCRIPT, via="agent"), "via"),
        (operation(SCRIPT, type="shell"), "type"),
        (operation(SCRIPT, retry={"attempts": 2, "on": ["failed"]}), "retry.on"),
        (operation(MQTT, parameters={"topic": "a/#"}), "parameters.topic"),
        (operation(MQTT, parameters={"topic": ""}), "parameters.topic"),
        (operation(MQTT, parameters={"qos": 2}), "parameters.qos"),
        (operation(MQTT, parameters={"qos": True}), "parameters.qos"),
        (operation(MQTT, parameters={"message": "x" * 65_537}), "parameters.message"),
        (operation(MQTT, parameters={"answer": {"within_s": 5}}), "parameters.answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_an_operation_that_cannot_be_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    owner = await api.make("/objects", name="a", ssh=SSH)

    fields = problem_of(await api("POST", f"/objects/{owner['id']}/operations", json=body), 400, "badRequest")

    assert field in fields
    assert (await api("GET", f"/objects/{owner['id']}/operations")).json()["items"] == []


async def test_an_operation_that_cannot_run_on_its_owner_is_refused(api: Api) -> None:
    bare = await api.make("/objects", name="bare")

    path = f"/objects/{bare['id']}/operations"
    assert problem_of(await api("POST", path, json=SCRIPT), 400, "badRequest") == ["via"]
    problem_of(await api("POST", f"/objects/{NONE}/operations", json=SCRIPT), 404, "notFound")


async def test_a_shared_scripts_macros_must_fit_the_owner(api: Api) -> None:
    owner = await api.make("/objects", name="a", ssh=SSH)
    script = await api.make("/scripts", name="s", text="echo {{source.name}}")
    body = {"name": "op", "type": "script", "parameters": {"script_id": script["id"]}}

    answer = await api("POST", f"/objects/{owner['id']}/operations", json=body)
    assert problem_of(answer, 400, "badRequest") == ["parameters.script_id"]
    answer = await api("POST", "/scripts", json={"name": "t", "text": "# {{id}}"})
    assert problem_of(answer, 400, "badRequest") == ["text"]


async def test_the_type_of_an_operation_stays(api: Api) -> None:
    owner = await api.make("/objects", name="a", ssh=SSH)
    made = await api.make(f"/objects/{owner['id']}/operations", **SCRIPT)

    path = f"/objects/{owner['id']}/operations/{made['id']}"
    assert problem_of(await api("PATCH", path, json={"type": "mqtt"}), 400, "badRequest") == ["type"]
    assert (await api("PATCH", path, json={"type": "script"})).json()["version"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a", "ssh": {"host": "h", "credential_id": NONE}}, "ssh.credential_id"),
        ({"name": "a", "ssh": {"host": "h", "port": "22"}}, "ssh.port"),
        ({"name": "a", "ssh": {"host": "h", "port": 0}}, "ssh.port"),
        ({"name": "a", "ssh": {"host": "-oProxyCommand=x"}}, "ssh.host"),
        ({"name": "a", "ssh": {"host": "a b"}}, "ssh.host"),
        ({"name": "a", "ssh": {"host": "h", "username": "-l"}}, "ssh.username"),
        ({"name": "a", "ssh": {"host": "h", "host_key": "AAAA"}}, "ssh.host_key"),
        ({"name": "a", "class_id": NONE}, "class_id"),
        ({"name": "a", "thing": "a/b"}, "thing"),
        ({"name": "a", "thing": "a\n"}, "thing"),
        ({"name": "a", "thing": "x" * 129}, "thing"),
        ({"name": "a", "mqtt": {"read": ["$SYS/#"]}}, "mqtt.read[0]"),
        ({"name": "a", "mqtt": {"write": ["iotjobs/b/#"]}}, "mqtt.write[0]"),
        ({"name": "a", "tags": [5]}, "tags[0]"),
        ({"name": "a", "property_types": {"x": "write"}}, "property_types.x"),
        ({"name": "a", "properties": {"x": 2**64}}, "properties.x"),
        ({"name": "x" * 10_000}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a", "id": NONE}, "id"),
        ({}, "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_an_object_that_cannot_be_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    assert field in problem_of(await api("POST", "/objects", json=body), 400, "badRequest")
    assert (await api("GET", "/objects")).json()["items"] == []


BODIES: dict[str, tuple[bytes, str | None]] = {
    "no JSON": (b"{", None),
    "empty": (b"", None),
    "a list": (b"[]", None),
    "a hundred thousand deep": (b"[" * 100_000, None),
    "a hundred thousand deep and closed": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None),
    "33 deep": (b'{"properties":' + b'{"a":' * 32 + b"1" + b"}" * 33, None),
    "NUL": (b'{"name":"a\\u0000b"}', "name"),
    "NUL in a key": (b'{"name":"a","properties":{"a\\u0000":1}}', "properties"),
    "NUL far inside": (b'{"name":"a","properties":{"a":[1,{"b":"\\u0000"}]}}', "properties.a[1].b"),
    "lone surrogate": (b'{"name":"\\ud800"}', "name"),
    "lone surrogate in a key": (b'{"name":"a","properties":{"\\udc00":1}}', "properties"),
    "not UTF-8": (b'{"name":"\xff"}', None),
    "NaN": (b'{"name":"a","properties":{"a":NaN}}', "properties.a"),
    "infinite": (b'{"name":"a","properties":{"a":1e999}}', "properties.a"),
    "huge integer": (b'{"name":"a","properties":{"a":' + b"9" * 5000 + b"}}", None),
}


@pytest.mark.parametrize("which", BODIES)
async def test_a_body_that_cannot_be_kept_is_refused(api: Api, which: str) -> None:
    raw, field = BODIES[which]

    fields = problem_of(await api("POST", "/classes", content=raw), 400, "badRequest")

    assert fields == ([] if field is None else [field])
    assert (await api("GET", "/classes")).json()["items"] == []


async def test_another_media_type_is_refused(api: Api) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await api("POST", "/classes", content=b'{"name":"a"}', headers={"Content-Type": kind})
        problem_of(answer, 400, "badRequest")
    kind = "application/merge-patch+json; charset=utf-8"
    assert (await api("POST", "/classes", content=b'{"name":"a"}', headers={"Content-Type": kind})).is_success


async def test_a_body_over_its_limit_is_too_large(api: Api) -> None:
    body = {"name": "a", "properties": {"x": "y" * 2 * 1024 * 1024}}

    problem_of(await api("POST", "/classes", json=body), 413, "tooLarge")
    assert (await api("GET", "/classes")).json()["items"] == []


async def test_what_is_in_use_or_taken_is_a_conflict(api: Api) -> None:
    template = await api.make("/classes", name="press")
    await api.make("/objects", name="one", class_id=template["id"], thing="t-1")

    answer = await api("DELETE", f"/classes/{template['id']}")
    problem_of(answer, 409, "conflict")
    assert "one" in answer.json()["detail"]
    assert problem_of(await api("POST", "/classes", json={"name": "press"}), 409, "conflict") == ["name"]
    answer = await api("POST", "/objects", json={"name": "x", "thing": "t-1"})
    assert problem_of(answer, 409, "conflict") == ["thing"]


async def test_a_wrong_if_match_changes_nothing(api: Api) -> None:
    made = await api.make("/classes", name="press")
    path = f"/classes/{made['id']}"
    for tag in ('"2"', 'W/"1"', '"x"', '""', '"99999999999999999999"'):
        answer = await api("PATCH", path, json={"name": "x"}, headers={"If-Match": tag})
        problem_of(answer, 412, "preconditionFailed")
        problem_of(await api("DELETE", path, headers={"If-Match": tag}), 412, "preconditionFailed")
    assert problem_of(await api("DELETE", path, headers={"If-Match": "1"}), 400, "badRequest") == ["If-Match"]
    assert (await api("GET", path)).json() == made
    assert (await api("PATCH", path, json={"name": "x"}, headers={"If-Match": "*"})).is_success


PRIVATE = asyncssh.generate_private_key("ssh-ed25519")
PLAIN_KEY = PRIVATE.export_private_key().decode()
LOCKED_KEY = PRIVATE.export_private_key("pkcs8-pem", passphrase="open sesame").decode()


async def everything_stored(api: Api) -> str:
    def query(conn: Any) -> str:
        return "".join(repr(conn.execute(select(table)).all()) for table in tables.metadata.sorted_tables)

    return await api.store.read(query)


async def test_a_credentials_secrets_are_sealed_and_never_given_back(api: Api) -> None:
    made = await api.make(
        "/credentials", name="k", kind="ssh_key", private_key=LOCKED_KEY, passphrase="open sesame"
    )
    path = f"/credentials/{made['id']}"

    changed = await api("PATCH", path, json={"username": "root"})

    assert set(made) == {"id", "name", "kind", "username", "version", "created_at"}
    assert (changed.json()["username"], changed.json()["version"]) == ("root", 2)
    listed = (await api("GET", "/credentials")).text
    for text in (changed.text, listed, (await api("GET", path)).text, await everything_stored(api)):
        assert "PRIVATE KEY" not in text
        assert "sesame" not in text
    opened = await api.store.read(lambda conn: entities.open_credential(conn, made["id"], api.secrets))
    assert (opened.private_key, opened.passphrase, opened.username) == (LOCKED_KEY, "open sesame", "root")
    assert "sesame" not in repr(opened)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"kind": "ssh_key"}, "private_key"),
        ({"kind": "ssh_key", "private_key": "hidden-7"}, "private_key"),
        ({"kind": "ssh_key", "private_key": LOCKED_KEY}, "passphrase"),
        ({"kind": "ssh_key", "private_key": LOCKED_KEY, "passphrase": "hidden-7"}, "passphrase"),
        ({"kind": "ssh_key", "private_key": PLAIN_KEY, "password": "hidden-7"}, "password"),
        ({"kind": "password"}, "password"),
        ({"kind": "password", "password": "hidden-7", "private_key": PLAIN_KEY}, "private_key"),
        ({"kind": "ssh_agent", "password": "hidden-7"}, "password"),
        ({"kind": "vault"}, "kind"),
    ],
)
async def test_a_credential_that_could_not_be_used_is_refused(
    api: Api, caplog: pytest.LogCaptureFixture, members: dict[str, str], field: str
) -> None:
    caplog.set_level(logging.DEBUG)

    answer = await api("POST", "/credentials", json={"name": "k", **members})

    assert field in problem_of(answer, 400, "badRequest")
    assert "hidden-7" not in answer.text + caplog.text
    assert "PRIVATE KEY" not in answer.text + caplog.text
    assert (await api("GET", "/credentials")).json()["items"] == []


async def test_host_keys_are_trusted_by_their_lines(api: Api) -> None:
    made = await api.make("/objects", name="a", ssh=SSH)
    path = f"/objects/{made['id']}/host-key"
    lines = f"# the device\n{HOST_KEY} comment\n\n@cert-authority {HOST_KEY}\n"

    answer = await api("PUT", path, json={"host_key": lines})

    plain = " ".join(HOST_KEY.split()[:2])
    assert answer.json()["ssh"]["host_key"] == f"{plain}\n@cert-authority {plain}"
    for wrong in ("", "AAAA", f"host {HOST_KEY}", PLAIN_KEY, "@cert-authority", HOST_KEY[:40]):
        fields = problem_of(await api("PUT", path, json={"host_key": wrong}), 400, "badRequest")
        assert fields == ["host_key"]
    assert (await api("PUT", path, json={"host_key": None})).json()["ssh"]["host_key"] is None
    bare = await api.make("/objects", name="b")
    answer = await api("PUT", f"/objects/{bare['id']}/host-key", json={"host_key": HOST_KEY})
    problem_of(answer, 409, "conflict")


async def test_others_are_told_after_a_change_and_another_thing_ends_the_enrolment(api: Api) -> None:
    made = await api.make("/objects", name="a", thing="t-1")
    await api.store.write(lambda tx: entities.set_mqtt_password(tx, made["id"], "$7$hash"))
    assert api.changes == ["changed"]

    await api("PATCH", f"/objects/{made['id']}", json={"name": "b"})
    assert len(await api.store.read(entities.broker_entries)) == 1
    await api("PATCH", f"/objects/{made['id']}", json={"thing": "t-2"})

    assert await api.store.read(entities.broker_entries) == []
    problem_of(await api("POST", "/objects", json={"name": ""}), 400, "badRequest")
    assert api.changes == ["changed"] * 3


ADMIN_ONLY = [
    *(
        ("POST", f"/{folder}")
        for folder in ("classes", "objects", "links", "scripts", "credentials", "users")
    ),
    *(("PATCH", f"/{folder}/{NONE}") for folder in ("classes", "objects", "links", "scripts", "users")),
    *(("DELETE", f"/{folder}/{NONE}") for folder in ("classes", "objects", "links", "scripts", "users")),
    *(("GET", "/credentials"), ("GET", f"/credentials/{NONE}"), ("GET", "/users"), ("GET", f"/users/{NONE}")),
    *(("POST", f"/objects/{NONE}/operations"), ("PATCH", f"/classes/{NONE}/operations/{NONE}")),
    *(
        ("PUT", f"/objects/{NONE}/host-key"),
        ("POST", f"/users/{NONE}/tokens"),
        ("GET", f"/users/{NONE}/tokens"),
    ),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_ONLY, ids=lambda value: value.replace(NONE, "ID"))
async def test_only_administrators_change_definitions_and_see_users(api: Api, method: str, path: str) -> None:
    engineer = await api.as_user(Role.ENGINEER)

    # Rights come before the body: what is no JSON at all is not even read.
    problem_of(await api(method, path, content=b"[" * 2_000_000, headers=engineer), 403, "notAllowed")


async def test_everybody_reads_definitions(api: Api) -> None:
    viewer = await api.as_user(Role.VIEWER)
    made = await api.make("/objects", name="a")

    for path in ("/classes", "/objects", f"/objects/{made['id']}", f"/objects/{made['id']}/operations"):
        assert (await api("GET", path, headers=viewer)).status_code == 200


async def test_every_route_below_the_api_wants_a_token(api: Api) -> None:
    tried = 0
    for path, methods in describe(api.app)["paths"].items():
        if not path.startswith("/api/v1"):
            assert path in ("/healthz", "/readyz")
            continue
        for method in methods:
            url = path.replace("{", "").replace("}", "")
            for header in ({"Authorization": ""}, {"Authorization": "Bearer 1-" + "a" * 44}):
                answer = await api.client.request(method, url, content=b"[", headers=header)
                problem_of(answer, 401, "notAuthenticated")
                assert answer.headers["www-authenticate"].startswith("Bearer")
                tried += 1
    assert tried > 60
    problem_of(await api("GET", "/openapi.json", headers={"Authorization": ""}), 401, "notAuthenticated")


async def test_tokens_are_made_listed_and_withdrawn(api: Api) -> None:
    user = await api.make("/users", login="bob", role="viewer")
    path = f"/users/{user['id']}/tokens"
    made = await api.make(path, name="ci", expires_at="2999-01-31T12:00:00+01:00")
    assert made["expires_at"] == "2999-01-31T11:00:00.000Z"
    bearer = {"Authorization": f"Bearer {made['token']}"}

    listed = await api("GET", path)
    assert listed.json()["items"] == [
        {name: made[name] for name in ("number", "name", "created_at", "expires_at")}
    ]
    assert made["token"] not in listed.text
    assert (await api("GET", "/classes", headers=bearer)).status_code == 200

    assert (await api("DELETE", f"{path}/{made['number']}")).status_code == 204
    problem_of(await api("GET", "/classes", headers=bearer), 401, "notAuthenticated")
    for wrong in ("2999-01-31T12:00:00", "soon", "2001-01-01T00:00:00Z", 5):
        answer = await api("POST", path, json={"name": "x", "expires_at": wrong})
        assert problem_of(answer, 400, "badRequest") == ["expires_at"]


async def test_a_token_ends_at_its_moment_also_while_it_is_remembered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await api.make("/users", login="bob", role="viewer")
    made = await api.make(f"/users/{user['id']}/tokens", name="ci", expires_at="2999-01-01T00:00:00Z")
    bearer = {"Authorization": f"Bearer {made['token']}"}
    assert (await api("GET", "/classes", headers=bearer)).status_code == 200

    moment = 32_472_144_000_000  # 2999-01-01T00:00:00Z
    monkeypatch.setattr(auth.clock, "now_ms", lambda: moment)

    problem_of(await api("GET", "/classes", headers=bearer), 401, "notAuthenticated")


async def test_a_change_of_a_user_counts_at_once(api: Api) -> None:
    user = await api.make("/users", login="bob", role="admin")
    token = (await api.make(f"/users/{user['id']}/tokens", name="ci"))["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await api("GET", "/users", headers=bearer)).status_code == 200

    await api("PATCH", f"/users/{user['id']}", json={"role": "viewer"})
    problem_of(await api("GET", "/users", headers=bearer), 403, "notAllowed")
    await api("DELETE", f"/users/{user['id']}")
    problem_of(await api("GET", "/classes", headers=bearer), 401, "notAuthenticated")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"login": "bob", "password": "short", "role": "viewer"}, "password"),
        ({"login": "b ob", "role": "viewer"}, "login"),
        ({"login": "", "role": "viewer"}, "login"),
        ({"login": "bob", "role": "root"}, "role"),
        ({"login": "bob"}, "role"),
        ({"login": "bob", "role": "viewer", "admin": True}, "admin"),
    ],
)
async def test_a_user_that_cannot_be_is_refused(api: Api, body: dict[str, Any], field: str) -> None:
    assert problem_of(await api("POST", "/users", json=body), 400, "badRequest") == [field]
    assert len((await api("GET", "/users")).json()["items"]) == 1


async def test_a_password_is_stored_as_a_hash_and_null_does_not_take_it(api: Api) -> None:
    user = await api.make("/users", login="bob", password="long enough", role="viewer")
    assert user["has_password"] is True
    assert "long enough" not in await everything_stored(api)
    for name in ("password", "role"):
        answer = await api("PATCH", f"/users/{user['id']}", json={name: None})
        assert problem_of(answer, 400, "badRequest") == [name]
    admin = (await api("GET", "/users")).json()["items"][0]
    problem_of(await api("DELETE", f"/users/{admin['id']}"), 409, "conflict")


async def test_every_router_is_served(api: Api) -> None:
    paths = set(describe(api.app)["paths"])

    for module in (classes, objects, links, scripts, credentials, users):
        assert f"/api/v1{module.router.prefix}" in paths
    for kind in (Kind.CLASS, Kind.OBJECT, Kind.LINK):
        assert f"/api/v1{operations.operations_of(kind).prefix}" in paths


async def test_the_description_names_bodies_and_problems(api: Api) -> None:
    document = (await api("GET", "/openapi.json")).json()

    body = document["paths"]["/api/v1/objects"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/ObjectBody"
    assert document["openapi"].startswith("3.1")
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    for members in document["paths"].values():
        for method, described in members.items():
            assert "default" in described["responses"]
            if method in ("post", "patch", "put") and "requestBody" not in described:
                assert "execute" not in described["operationId"]


async def test_the_frameworks_own_errors_are_problems_too(api: Api) -> None:
    for odd in ("%00", "a%20b", "x" * 65, "%ED%A0%80"):
        assert problem_of(await api("GET", f"/objects/{odd}"), 400, "badRequest") == ["object_id"]
    problem_of(await api("GET", "/nothing"), 404, "notFound")
    answer = await api("PUT", "/classes")
    problem_of(answer, 405, "methodNotAllowed")
    assert answer.headers["allow"]
    assert problem_of(await api("DELETE", f"/users/{NONE}/tokens/x"), 400, "badRequest") == ["number"]


async def test_a_request_keeps_the_id_that_it_came_with(api: Api) -> None:
    answer = await api("GET", "/classes", headers={"X-Request-ID": "trace-7"})
    assert answer.headers["x-request-id"] == "trace-7"
    answer = await api("GET", "/classes", headers={"X-Request-ID": "no\ttabs"})
    assert answer.headers["x-request-id"] != "no\ttabs"


async def test_an_error_of_ours_tells_nothing_but_its_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    @api.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("hidden-7")

    answer = await api.client.get("/broken")

    problem_of(answer, 500, "internal")
    assert "hidden-7" not in answer.text
    assert any(record.request_id == answer.headers["x-request-id"] for record in caplog.records)


async def test_a_store_that_does_not_answer_is_not_ready(api: Api) -> None:
    await api("GET", "/classes")
    await api.store.stop()

    answer = await api("GET", "/classes")

    problem_of(answer, 503, "notReady")
    assert answer.headers["retry-after"]


@pytest.fixture
async def served(api: Api) -> AsyncIterator[int]:
    """The port of a real server."""
    server = uvicorn.Server(uvicorn.Config(api.app, lifespan="off", log_config=None, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def exchange(port: int, head: str, body: bytes) -> bytes:
    """Send everything before reading anything, as many clients do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    await writer.drain()
    answer = await reader.readuntil(b"}")
    writer.close()
    return answer


async def test_the_answer_to_a_refused_body_arrives(api: Api, served: int) -> None:
    size = 3 * 1024 * 1024
    for token, status in ((api.token, b"413"), ("1-nobody", b"401")):
        head = (
            f"POST /api/v1/classes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        )
        async with asyncio.timeout(20):
            answer = await exchange(served, head, b"x" * size)
        assert answer.split()[1] == status

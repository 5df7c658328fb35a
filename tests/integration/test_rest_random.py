"""Calls with what comes to mind at random, of every route there is: none may end in an error of ours.

The routes and the members of their bodies are read off the server's own description, so a new route
is tried as soon as it is there.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.services.site import Rest, StartServe

CALLS = 700
JUNK: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 2**64, 1e308, 1.5, "", " ", "a", "x" * 300, "\u202e", "\n", "\ud7ff"),
    *(
        "{{args.x}}",
        "{{",
        "a/b",
        "..",
        "0" * 32,
        "2026-11-22T10:00:00Z",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
        {"": None},
    ),
]
LEFT_OUT = ("/check", "/scan")  # they ask the network


class Caller:
    """Makes up calls; knows ids from earlier answers, so that some of them lead somewhere."""

    def __init__(self, described: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._schemas = described["components"]["schemas"]
        self._ids = ["nope", "x" * 65, "%00", "9" * 18, "mix", "1", "2"]
        self.routes = [
            (method.upper(), path, operation)
            for path, item in described["paths"].items()
            for method, operation in item.items()
            if path.startswith("/api/v1/") and not path.endswith(LEFT_OUT)
        ]

    def learn(self, body: Any) -> None:
        if isinstance(body, dict) and "id" in body:
            self._ids.append(body["id"])

    def call(self) -> tuple[str, str, Any, dict[str, str]]:
        method, path, operation = self._random.choice(self.routes)
        while "{" in path:
            known = self._ids if self._random.random() < 0.4 else self._ids[-12:]
            hole = path[path.index("{") : path.index("}") + 1]
            path = path.replace(hole, self._random.choice(known), 1)
        asked = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
        query = {one["name"]: self._text() for one in asked if self._random.random() < 0.2}
        body = None
        if "requestBody" in operation:
            [content] = operation["requestBody"]["content"].values()
            schema = content["schema"]
            if "$ref" not in schema and "properties" not in schema:  # a patch: a part of something
                schema = self._random.choice([one for one in self._schemas.values() if "properties" in one])
            body = self._value(schema)
        return method, path.removeprefix("/api/v1"), _on_this_host(body), query

    def _text(self) -> str:
        return str(
            self._random.choice(["1", "0", "-1", "x", "PENDING", "stdout", "2026-11-22T10:00:00Z", "9" * 30])
        )

    def _value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        chance = self._random.random
        if chance() < 0.06 or depth > 6:
            return self._random.choice(JUNK)
        if "$ref" in schema:
            return self._value(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        for some in ("anyOf", "oneOf"):
            if some in schema:
                return self._value(self._random.choice(schema[some]), depth + 1)
        if "const" in schema or "enum" in schema:
            return schema["const"] if "const" in schema else self._random.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                needed = schema.get("required", ())
                members = schema.get("properties", {"p": {}})
                return {
                    name: self._value(member, depth + 1)
                    for name, member in members.items()
                    if chance() < (0.97 if name in needed else 0.4)
                }
            case "array":
                return [self._value(schema.get("items", {}), depth + 1) for _ in range(int(3 * chance()))]
            case "integer":
                return int(4 * chance())
            case "number":
                return 4 * chance()
            case "boolean":
                return chance() < 0.5
            case "string":
                word = f"n{self._random.randrange(10**6)}"
                return self._random.choice([word, word, word, "echo {{args.x}}", *self._ids[-20:]])
        return self._random.choice(JUNK)


def _on_this_host(body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("ssh"), dict) and "host" in body["ssh"]:
        body["ssh"] = {**body["ssh"], "host": "127.0.0.1", "port": 1}
    return body


@pytest.mark.check(29)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_no_call_whatever_it_holds_ends_in_an_error_of_ours(
    make_serve: StartServe, database: str
) -> None:
    serve = make_serve(database)
    await serve.start()
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    statuses: dict[int, int] = {}
    async with Rest(serve) as rest:
        caller = Caller(await rest.get("/openapi.json"), seed)
        for _ in range(CALLS):
            method, path, body, query = caller.call()
            answer = await rest.call(method, path, body, query=query)
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            ours = answer.status >= 500 and answer.body["code"] != "notReady"
            assert not ours, (method, path, body, query, answer)
            caller.learn(answer.body)
    print(statuses)  # noqa: T201
    assert statuses[200] + statuses[201] > CALLS / 20
    assert "Traceback" not in serve.log

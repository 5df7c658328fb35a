from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.requests import ClientDisconnect

from iotjobs.domain.errors import BadRequest, FieldError, IotJobsError, NotAuthenticated, RequestError
from iotjobs.inputs import problems
from iotjobs.inputs.problems import Envelope, Internal, MethodNotAllowed, bad_request, dotted, problem


def scope(path: str = "/api/v1/x", *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "state": {"request_id": "r"},
    }


def kinds(root: type[RequestError]) -> set[type[RequestError]]:
    return {root}.union(*(kinds(kind) for kind in root.__subclasses__()))


def test_codes_and_statuses_tell_each_other() -> None:
    codes: dict[str, int] = {}
    for kind in kinds(RequestError):
        assert codes.setdefault(kind.code, kind.status) == kind.status
        assert kind.code.isalpha()
    assert {MethodNotAllowed.code, Internal.code} <= codes.keys()
    assert issubclass(Internal, IotJobsError)


def test_a_problem_names_its_fields() -> None:
    error = BadRequest("two are wrong", errors=(FieldError("a", "no"), FieldError("b[0]", "never")))

    content = msgspec.json.decode(problem(scope(), error).body)

    assert content["errors"] == [{"field": "a", "message": "no"}, {"field": "b[0]", "message": "never"}]
    assert (content["instance"], content["request_id"], content["type"]) == (
        *("/api/v1/x", "r", "urn:iotjobs:problem:badRequest"),
    )


def test_text_that_utf8_cannot_carry_does_not_break_the_answer() -> None:
    content = msgspec.json.decode(problem(scope("/\udcff"), BadRequest("\udcff")).body)

    assert content["code"] == "badRequest"


def test_who_is_not_authenticated_is_told_how() -> None:
    assert problem(scope(), NotAuthenticated("x")).headers["www-authenticate"].startswith("Bearer")


def test_paths_are_written_as_people_do() -> None:
    assert dotted(["parameters", "args", 0, "x"]) == "parameters.args[0].x"
    assert bad_request((FieldError("a", "no"), FieldError("b", "no"))).detail == "a: no (and 1 more)"


class Wire:
    """A server's side of one exchange."""

    def __init__(self, *chunks: bytes, ends: bool = True) -> None:
        last = len(chunks) - 1
        self.incoming = [
            {"type": "http.request", "body": chunk, "more_body": not ends or number < last}
            for number, chunk in enumerate(chunks)
        ]
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self.incoming:
            await asyncio.Event().wait()
        return self.incoming.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


def answering(status: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_a_refused_body_is_read_to_its_end_first() -> None:
    wire = Wire(b"a", b"b", b"c")
    await Envelope(answering(413))(scope(), wire.receive, wire.send)

    assert wire.incoming == []
    assert b"connection" not in wire.headers


async def test_a_body_that_does_not_end_is_cut_off_after_4_mib() -> None:
    wire = Wire(*[b"x" * 1024 * 1024] * 9, ends=False)
    await Envelope(answering(413))(scope(), wire.receive, wire.send)

    assert len(wire.incoming) == 4
    assert wire.headers[b"connection"] == b"close"


async def test_a_body_that_stalls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "DRAIN_S", 0.01)
    wire = Wire(b"a", ends=False)
    await Envelope(answering(401))(scope(), wire.receive, wire.send)

    assert wire.headers[b"connection"] == b"close"


async def test_a_client_that_waits_for_leave_is_not_asked_for_its_body() -> None:
    wire = Wire(b"a")
    await Envelope(answering(401))(scope("/", (b"expect", b"100-continue")), wire.receive, wire.send)

    assert len(wire.incoming) == 1


async def test_an_answer_that_is_no_refusal_reads_nothing() -> None:
    wire = Wire(b"a")
    await Envelope(answering(200))(scope(), wire.receive, wire.send)

    assert len(wire.incoming) == 1
    assert wire.headers[b"x-content-type-options"] == b"nosniff"


async def test_an_error_after_the_first_byte_cuts_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    wire = Wire(b"")
    with pytest.raises(RuntimeError):
        await Envelope(app)(scope(), wire.receive, wire.send)
    assert len(wire.sent) == 1


async def test_a_client_that_went_away_is_no_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    wire = Wire(b"")
    await Envelope(app)(scope(), wire.receive, wire.send)
    assert wire.sent == []

"""Why an answer has the HTTP status that it has: every error as problem+json (RFC 9457).

`Envelope` is the outermost of our layers: it names the request, keeps a refused body from cutting
off the answer, and is where an error that nobody expected ends, without a word of its trace.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iotjobs import clock
from iotjobs.domain.errors import (
    BadRequest,
    FieldError,
    NotAuthenticated,
    NotFound,
    NotReady,
    RequestError,
    StoreUnavailable,
    TooLarge,
)
from iotjobs.inputs.shapes import FORMS

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
DRAIN_BYTES = 4 * 1024 * 1024
DRAIN_S = 10.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")

ErrorItem = Mapping[str, Any]  # one of pydantic's


class MethodNotAllowed(RequestError):
    """The path is right and the method is not; the header Allow says which are."""

    code = "methodNotAllowed"
    status = 405
    title = "Method not allowed"


class Internal(RequestError):
    """Ours; the log has the trace under the request's id."""

    code = "internal"
    status = 500
    title = "Internal error"


_BY_STATUS: dict[int, type[RequestError]] = {
    kind.status: kind for kind in (NotAuthenticated, NotFound, MethodNotAllowed, TooLarge, NotReady)
}


def request_id_of(scope: Scope) -> str:
    """The id that a request is known by, its own or ours."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem(scope: Scope, error: RequestError) -> Response:
    """The answer for an error."""
    content = {
        "type": f"urn:iotjobs:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "instance": scope["path"],
        "request_id": request_id_of(scope),
        "errors": [{"field": item.field, "message": item.message} for item in error.errors],
    }
    # A path, and so a message, may hold what UTF-8 cannot: lone surrogates of a wrong escape.
    response = Response(_encode(content), error.status, media_type=MEDIA_TYPE)
    if isinstance(error, NotAuthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="iotjobs"'
    if isinstance(error, NotReady):
        response.headers["Retry-After"] = "2"
    return response


def _encode(content: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        return msgspec.json.encode({**content, "instance": "", "detail": content["title"], "errors": []})


def dotted(location: Sequence[int | str]) -> str:
    """A path as people write it: `parameters.args[0]`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def field_errors(errors: Sequence[ErrorItem], value: Any = None, *, skip: int = 0) -> tuple[FieldError, ...]:
    """Pydantic's errors in our words; never what was sent, which may be a secret.

    Args:
        errors: as pydantic gives them.
        value: what was validated: steps that name a variant of a union are found by it and left out.
        skip: leading steps to leave out (`body`, `query`).
    """
    return tuple(
        FieldError(dotted(_as_written(error["loc"][skip:], value, error)), _message(error))
        for error in errors
    )


def _as_written(location: Sequence[int | str], value: Any, error: ErrorItem) -> list[int | str]:
    if not location and "discriminator" in error.get("ctx", {}):
        return [str(error["ctx"]["discriminator"]).strip("'")]
    path: list[int | str] = []
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if step == "[key]" or (isinstance(value, dict) and step not in value and not last):
            continue
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        path.append(step)
    return path


def _message(error: ErrorItem) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown field"
        case "missing" | "union_tag_not_found":
            return "this field is required"
        case "union_tag_invalid":
            return f"must be one of {error['ctx']['expected_tags']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a JSON object"
        case "string_pattern_mismatch" if (form := FORMS.get(error["ctx"]["pattern"])) is not None:
            return f"must be {form}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case _:
            return str(error["msg"])


def bad_request(errors: tuple[FieldError, ...]) -> BadRequest:
    """One error for all the fields that are wrong."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = f"{first.field}: " if first.field else ""
    return BadRequest(f"{where}{first.message}{more}", errors=errors)


def install(app: FastAPI) -> None:
    """Answer every error of an application as a problem; to be called before its first request."""

    async def on_request_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return problem(request.scope, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(request.scope, bad_request(field_errors(error.errors(), skip=1)))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_of_http(request.scope, error)

    async def on_store(request: Request, error: Exception) -> Response:
        log.warning(
            "the store does not answer",
            extra={"request_id": request_id_of(request.scope), "error": str(error)},
        )
        return problem(request.scope, NotReady("the store does not answer; try again"))

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(StoreUnavailable, on_store)
    app.add_middleware(Envelope)


def problem_of_http(scope: Scope, error: HTTPException) -> Response:
    """The answer for an error of the framework's own."""
    kind = _BY_STATUS.get(error.status_code, BadRequest if error.status_code < 500 else Internal)
    match kind.code:
        case "notFound":
            detail = f"there is nothing at {scope['path']}"
        case "methodNotAllowed":
            detail = f"{scope['method']} is not possible at {scope['path']}"
        case _:
            detail = str(error.detail)
    response = problem(scope, kind(detail))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


class Envelope:
    """Around every HTTP request: its id, its unread body, its unexpected end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # The server stops and waits no longer. The task ends here anyway, so its caller is told.
            if exchange.answering:
                raise
            response = problem(
                scope, NotReady("the server stops; this may be done or not: look, or repeat it with its key")
            )
            await response(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("a request ended in an error of ours", extra={"request_id": exchange.request_id})
            if exchange.answering:
                raise  # half an answer is out: the connection must be cut
            response = problem(
                scope, Internal(f"an error of ours; the log has it under {exchange.request_id}")
            )
            await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.match(given) else clock.new_id()
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.answering = False
        self._private = scope["path"].startswith("/api/")
        self._waits_for_go = headers.get("expect", "").lower() == "100-continue"
        self._taken = 0
        self._read_to_end = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._waits_for_go = False
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            self._read_to_end = not message.get("more_body", False)
        else:
            self._read_to_end = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answering = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers.setdefault("X-Content-Type-Options", "nosniff")
            if self._private:
                headers.setdefault("Cache-Control", "no-store")
            if message["status"] >= 400 and not await self._drained():
                headers["Connection"] = "close"
        await self._send(message)

    async def _drained(self) -> bool:
        """Read on to the end of a refused body: a client that still sends may never see the answer."""
        if self._waits_for_go:
            return True  # it has not begun to send
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._read_to_end and self._taken <= DRAIN_BYTES:
                    await self.receive()
        except TimeoutError:
            return False
        return self._read_to_end

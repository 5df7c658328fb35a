"""What can go wrong between a caller of the API and its answer.

ClientError
  Unreachable   no answer: no server, no TLS, no end of the answer in time
  BadAnswer     something answered that is not the API
  Problem       the server's refusal, as problem+json has it; `code` is stable
    Refused (400, 413 …) · NotAuthenticated (401) · NotAllowed (403) · NotFound (404)
    Conflict (409, 412, 422) · NotNow (429, 5xx)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """The root of the tree."""


class Unreachable(ClientError):
    """There is no answer.

    Attributes:
        url: the server that was asked.
        why: what happened instead.
        maybe_done: the request may have reached it and taken effect.
    """

    def __init__(self, url: str, why: str, *, maybe_done: bool) -> None:
        super().__init__(f"{url} cannot be reached: {why}")
        self.url, self.why, self.maybe_done = url, why, maybe_done


class BadAnswer(ClientError):
    """What answered is not an iotjobs server of this version."""


class Problem(ClientError):
    """The server's refusal.

    Attributes:
        code: decide by it; see `docs/reference/errors.md`.
        status: of HTTP.
        detail: what is wrong and what to do, for a person.
        request_id: what the server's log has it under, or "".
        errors: the fields it concerns: (`field`, `message`) pairs.
    """

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        request_id: str = "",
        errors: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.code, self.status, self.detail = code, status, detail
        self.request_id, self.errors = request_id, errors


class Refused(Problem):
    """A request that is wrong in itself."""


class NotAuthenticated(Problem):
    """No token, or one that is unknown, expired or withdrawn."""


class NotAllowed(Problem):
    """The caller is known and may not do this."""


class NotFound(Problem):
    """No such thing, or none that the caller may see."""


class Conflict(Problem):
    """The present state of things does not admit it."""


class NotNow(Problem):
    """The server cannot take it at the moment; another time it may."""


_KINDS: Mapping[int, type[Problem]] = {
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    422: Conflict,
    429: NotNow,
}


def problem_of(status: int, content: Any, request_id: str) -> Problem:
    """The error for an answer of 400 and more.

    Args:
        status: of HTTP.
        content: the decoded problem+json; anything else when something in between answered.
        request_id: of the answer's header, for when the content has none.
    """
    members = content if isinstance(content, dict) else {}
    kind = _KINDS.get(status, NotNow if status >= 500 else Refused)
    fields = members.get("errors")
    return kind(
        str(members.get("code", "")),
        status,
        str(members.get("detail") or members.get("title") or f"HTTP status {status}"),
        request_id=str(members.get("request_id") or request_id),
        errors=tuple(
            (str(one.get("field", "")), str(one.get("message", "")))
            for one in (fields if isinstance(fields, list) else ())
            if isinstance(one, dict)
        ),
    )

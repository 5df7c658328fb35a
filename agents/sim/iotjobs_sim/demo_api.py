"""The demo's way to the server: REST with the standard library, and nothing else."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

_ANSWER_WITHIN_S = 30.0
_PAUSE_S = 0.05
ENDED = frozenset({"FINISHED", "CANCELED"})


class ApiError(RuntimeError):
    """The server did not answer as hoped."""


class Api:
    """Calls below one address, with one token."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        # Whatever proxy the environment names: loopback is not behind it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON.

        Args:
            method: of HTTP.
            path: below `/api/v1`, or from the root with two slashes before it (`//readyz`).
            body: is sent as JSON.

        Raises:
            ApiError: refused, with the server's own words; or no answer.
        """
        root = path[1:] if path.startswith("//") else f"/api/v1{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{root}", data, headers, method=method)
        try:
            with self._opener.open(request, timeout=_ANSWER_WITHIN_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise ApiError(f"{method} {root}: {error.code} {_detail(said)}") from error
        except (OSError, ValueError) as error:
            raise ApiError(f"{method} {root}: {error}") from error

    def get(self, path: str) -> Any:
        """GET."""
        return self.call("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST; without a body `{}` is sent."""
        return self.call("POST", path, body or {})

    def execute(self, owner: str, operation_id: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start an operation of an owner such as `/objects/ID`: the job as it is then."""
        job: dict[str, Any] = self.post(f"{owner}/operations/{operation_id}/execute", body)
        return job

    def job_when(
        self, job_id: str, condition: Callable[[dict[str, Any]], bool], within_s: float = 15.0
    ) -> dict[str, Any]:
        """The job as soon as the condition holds for it, or as it is when the time is over."""
        return self.value_when(f"/jobs/{job_id}", condition, within_s)

    def value_when(
        self, path: str, condition: Callable[[dict[str, Any]], bool], within_s: float = 15.0
    ) -> dict[str, Any]:
        """What is at a path as soon as the condition holds for it, or as it is when the time is over."""
        until = time.monotonic() + within_s
        while True:
            value: dict[str, Any] = self.get(path)
            if condition(value) or time.monotonic() > until:
                return value
            time.sleep(_PAUSE_S)

    def ended_job(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended, or as it is after 15 seconds."""
        return self.job_when(job_id, lambda job: job["status"] in ENDED)


def _detail(said: str) -> str:
    try:
        return str(json.loads(said)["detail"])
    except (ValueError, LookupError, TypeError):
        return said[:200]

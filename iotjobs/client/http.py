"""The API's calls as methods, over one pool of connections. Safe for use by several threads."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from iotjobs.client.errors import BadAnswer, NotFound, Unreachable, problem_of
from iotjobs.client.shapes import Job, Named

PREFIX = "/api/v1"
WAIT_LIMIT_S = 60.0  # the longest `?wait=` that the server takes
_PAGE = 500  # the largest `limit` that the server takes
_JOBS_PAGE = 100  # their records are long
_TIMEOUT_S = 30.0
_TRIES = 3
_CONNECTIONS = 100


class Client:
    """A caller of one server.

    Args:
        url: the server's, such as `https://jobs.example.org`; what it is behind a path keeps the path.
        token: sent as a bearer token; without one only public calls succeed.
        timeout_s: for connecting, and for each wait for the server's next bytes.
        ca_file: certificates (PEM) that are believed instead of the system's.

    Raises:
        ValueError: the URL is none of HTTP, the token is none, or the file holds no certificate.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = _TIMEOUT_S,
        ca_file: Path | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        _check_url(self.url)
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {_checked_token(token)}"
        self._http = httpx2.Client(
            base_url=self.url + PREFIX,
            headers=headers,
            timeout=timeout_s,
            # Proxies and certificates of the environment would be settings that nobody sees.
            trust_env=False,
            verify=_trust(self.url, ca_file),
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self._http.close()

    # --- objects, links and their operations ----------------------------------------------------

    def owners(self, folder: str, name: str) -> list[Named]:
        """The `objects` or `links` of exactly this name; names are not unique.

        Raises:
            ClientError: see `errors`, here and in every other method.
        """
        answer = self._call("GET", f"/{folder}", params={"name": name, "limit": str(_PAGE)})
        return [found for found in _items(answer, folder) if found.name == name]

    def owner(self, folder: str, owner_id: str) -> Named:
        """The one of `objects` or `links` that has this id.

        Raises:
            NotFound: there is none.
        """
        return _named(self._call("GET", f"/{folder}/{_segment(owner_id)}"), folder)

    def operations(self, owner: Named) -> list[Named]:
        """The operations of an object or a link: its own, then those of its class."""
        return _items(self._call("GET", f"/{owner.folder}/{_segment(owner.id)}/operations"))

    # --- states and triggers --------------------------------------------------------------------

    def state(self, entity: Named) -> dict[str, Any]:
        """The state of an object or a link, and why: `EntityStateOut` of the API."""
        return _record(self._call("GET", f"/{entity.folder}/{_segment(entity.id)}/state"), "state")

    def triggers(self, entity: Named) -> list[dict[str, Any]]:
        """Its triggers, then those of its class: `TriggerOut`."""
        return _records(self._call("GET", f"/{entity.folder}/{_segment(entity.id)}/state-triggers"))

    def state_changes(self, entity: Named, limit: int) -> list[dict[str, Any]]:
        """Its newest changes of state, the newest first: `StateChangeOut`."""
        query = {"entity_id": entity.id, "limit": str(limit)}
        return _records(self._call("GET", "/state-changes", params=query))

    def traces(self, state_change_id: str) -> list[dict[str, Any]]:
        """What triggers decided at one change, the newest first: `TraceOut`, 500 at most."""
        query = {"state_change_id": state_change_id, "limit": str(_PAGE)}
        return _records(self._call("GET", "/trigger-traces", params=query))

    def all_triggers(self, *, broken: bool | None = None) -> Iterator[dict[str, Any]]:
        """All triggers of the site, `TriggerOut`; `broken`: those that the loop guard stopped, or did not."""
        query = {} if broken is None else {"broken": "true" if broken else "false"}
        for page in self._pages("/triggers", query, _PAGE):
            yield from page

    def reset_trigger(self, trigger_id: str) -> dict[str, Any]:
        """Let a trigger fire again that the loop guard stopped: `TriggerOut`.

        Raises:
            NotFound: there is none.
        """
        return _record(self._call("POST", f"/triggers/{_segment(trigger_id)}/reset"), "broken_at")

    # --- jobs -----------------------------------------------------------------------------------

    def execute(
        self,
        owner: Named,
        operation_id: str,
        body: Mapping[str, Any] | None = None,
        *,
        wait_s: float = 0.0,
        key: str | None = None,
    ) -> Job:
        """Run an operation on an object or a link.

        Args:
            owner: the object or link.
            operation_id: one of its operations.
            body: `args`, `ask` and what else the call takes.
            wait_s: let the server wait for the end, 60 seconds at most.
            key: the Idempotency-Key: with one, a request whose answer got lost is sent again and
                gets the same job.

        Returns:
            The job as it is after the wait: perhaps ended, perhaps not.
        """
        wait_s = min(wait_s, WAIT_LIMIT_S)
        answer = self._call(
            "POST",
            f"/{owner.folder}/{_segment(owner.id)}/operations/{_segment(operation_id)}/execute",
            params={"wait": f"{wait_s:.3f}"} if wait_s > 0 else None,
            json=dict(body or {}),
            headers={"Idempotency-Key": key} if key else None,
            timeout=httpx2.Timeout(self._timeout_s, read=self._timeout_s + wait_s),
            repeat=key is not None,
        )
        return _job(answer)

    def job(self, job_id: str) -> Job:
        """The job of an id (32 hex digits) or number.

        Raises:
            NotFound: there is none.
        """
        return _job(self._call("GET", f"/jobs/{_segment(job_id)}"))

    def jobs_by_themselves(self, entity: Named) -> Iterator[list[Job]]:
        """What triggers and writes of properties started on an object or a link, the newest first, in pages."""
        query = {"owner_id": entity.id, "type": "EXECUTE_LISTENER"}
        for page in self._pages("/jobs", query, _JOBS_PAGE):
            yield [_job(record) for record in page]

    def ask(
        self, job_id: str, what: str, body: Mapping[str, Any], *, key: str | None = None, repeat: bool = True
    ) -> Job:
        """Ask something of a job: `cancel`, `stop`, `resume`, `retry`; the job (of a retry the new one).

        Args:
            job_id: its id or number.
            what: the last part of the path.
            body: what the call takes.
            key: an Idempotency-Key.
            repeat: asking again changes nothing.

        Raises:
            NotFound: there is none.
            Conflict: its status does not admit it.
        """
        headers = {"Idempotency-Key": key} if key else None
        path = f"/jobs/{_segment(job_id)}/{what}"
        return _job(self._call("POST", path, json=dict(body), headers=headers, repeat=repeat))

    # --- the site -------------------------------------------------------------------------------

    def site(self) -> dict[str, Any]:
        """Whether the site dispatches, and its triggers may fire: `SiteOut`."""
        return _record(self._call("GET", "/site"), "triggers")

    def dispatch(self, *, is_open: bool) -> str:
        """Open the site, or drain it; the id of the job that stands for it.

        A drain's job ends when nothing holds a worker any more.
        """
        answer = self._call("PUT", "/site", json={"dispatch": "open" if is_open else "drained"}, repeat=False)
        try:
            return str(answer["job_id"])
        except (KeyError, TypeError) as error:
            raise BadAnswer("the server's answer has no job_id") from error

    def pause_triggers(self, *, paused: bool) -> dict[str, Any]:
        """Pause all triggers of the site, or let them fire again: `SiteOut`."""
        body = {"triggers": "paused" if paused else "open"}
        return _record(self._call("PUT", "/site", json=body), "triggers")

    # --- the exchange ---------------------------------------------------------------------------

    def _pages(self, path: str, query: Mapping[str, str], limit: int) -> Iterator[list[dict[str, Any]]]:
        cursor: dict[str, str] = {}
        while True:
            answer = self._call("GET", path, params={**query, "limit": str(limit), **cursor})
            yield _records(answer)
            if not answer.get("next"):
                return
            cursor = {"cursor": str(answer["next"])}

    def _call(self, method: str, path: str, *, repeat: bool = True, **options: Any) -> Any:
        """One call; `repeat` says that asking again changes nothing."""
        sent = False
        for left in reversed(range(_TRIES)):
            try:
                return self._answer(self._http.request(method, path, **options))
            except httpx2.TransportError as error:
                sent = sent or _sent(error)
                late = isinstance(error, httpx2.TimeoutException)
                # A kept connection that the server closed meanwhile shows itself only now.
                if not (left and repeat and _sent(error)) or late:
                    why = "no answer in time" if late else str(error) or type(error).__name__
                    raise Unreachable(self.url, why, maybe_done=sent) from error
        raise AssertionError("the last try returns or raises")

    def _answer(self, response: httpx2.Response) -> Any:
        content: Any = None
        readable = "json" in response.headers.get("content-type", "")
        if readable:
            try:
                content = response.json()
            except ValueError:
                readable = False
        if response.is_error:
            raise problem_of(response.status_code, content, response.headers.get("x-request-id", ""))
        if not readable or not response.is_success:
            raise BadAnswer(
                f"{self.url} answers {response.status_code} without JSON: is it the address of an iotjobs server?"
            )
        return content


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no http:// or https:// URL")


def _trust(url: str, ca_file: Path | None) -> ssl.SSLContext:
    """The system's certificates, where a site's own authority may be installed, or those of a file."""
    if url.startswith("https:"):
        try:
            return ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ValueError(f"{ca_file} holds no certificates that can be read: {error}") from error
    # Loading them takes 40 ms. This one trusts nobody, and nothing asks it.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _checked_token(token: str) -> str:
    # Sent as it is it would fail deep in the HTTP library, with the token in the message.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token has characters that no token has: was it copied whole?")
    return token


def _sent(error: httpx2.TransportError) -> bool:
    """Whether the request may have left; a connection that was never made has sent nothing."""
    return not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def _segment(text: str) -> str:
    # "." and ".." are the two that quoting leaves alone and that URLs drop.
    if text in ("", ".", ".."):
        raise NotFound("notFound", 404, f"there is nothing of the id {text!r}")
    return quote(text, safe="")


def _record(answer: Any, member: str) -> dict[str, Any]:
    if not isinstance(answer, dict) or member not in answer:
        raise BadAnswer(f"the server's answer has no {member}")
    return answer


def _records(answer: Any) -> list[dict[str, Any]]:
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        raise BadAnswer("the server's answer is no list")
    return list(answer["items"])


def _items(answer: Any, folder: str = "") -> list[Named]:
    return [_named(item, folder) for item in _records(answer)]


def _named(record: Any, folder: str = "") -> Named:
    try:
        return Named(str(record["id"]), str(record["name"]), record, folder)
    except (KeyError, TypeError) as error:
        raise BadAnswer("the server's answer has no id and name") from error


def _job(record: Any) -> Job:
    try:
        return Job.of(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadAnswer("the server's answer is no job") from error

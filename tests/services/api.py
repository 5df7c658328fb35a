"""A small HTTP server that speaks the API's shapes: what a test says comes back, what came is kept."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

PREFIX = "/api/v1"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `body` of bytes goes out as it is, `cut` ends the connection without an answer."""

    body: Any = None
    status: int = 200
    kind: str = "application/json"
    cut: bool = False


Route = Callable[[Seen], Reply]


def problem(status: int, code: str, detail: str = "no", **more: Any) -> Reply:
    """A refusal."""
    content = {"type": "about:blank", "title": detail, "status": status, "code": code, "detail": detail}
    return Reply(
        {**content, "request_id": "req-1", "errors": [], **more}, status, kind="application/problem+json"
    )


def job(
    outcome: str | None = "succeeded", *, number: int = 1, status: str = "FINISHED", **more: Any
) -> dict[str, Any]:
    """A job record, as far as clients read it."""
    described = {"exitCode": 0, "stdout": "done\nmore\n", "stderr": ""}
    record = {
        "id": f"{number:032x}",
        "label": f"restart on press-{number}",
        "status": status,
        "outcome": outcome,
        "error": None,
        "description": described,
    }
    return {**record, **more}


@dataclass(slots=True)
class Site:
    """What the server holds.

    Attributes:
        objects, links: ids by name; each has the operation `restart` (id `op-1`).
        execute: answers an execute, given the object's id.
        jobs: answers a look at a job.
        seen: every request, in the order of arrival.
    """

    objects: dict[str, str] = field(default_factory=lambda: {"press-057": "a" * 32, "press-058": "b" * 32})
    links: dict[str, str] = field(default_factory=lambda: {"line-1": "d" * 32})
    execute: Route = lambda _: Reply(job(), 202)
    jobs: Route = lambda _: Reply(job())
    override: Callable[[Seen], Reply | None] = lambda _: None
    url: str = ""
    seen: list[Seen] = field(default_factory=list)

    def answer(self, seen: Seen) -> Reply:
        """Route one request."""
        self.seen.append(seen)
        if (reply := self.override(seen)) is not None:
            return reply
        match seen.method, seen.path.removeprefix(PREFIX).strip("/").split("/"):
            case "GET", ["objects" | "links" as folder]:
                known = getattr(self, folder)
                return self._list([(id_, name) for name, id_ in known.items()], seen.query.get("name"))
            case "GET", ["objects" | "links" as folder, owner_id] if (
                owner_id in getattr(self, folder).values()
            ):
                [name] = [name for name, id_ in getattr(self, folder).items() if id_ == owner_id]
                return Reply({"id": owner_id, "name": name})
            case "GET", ["objects" | "links", _, "operations"]:
                return self._list([("op-1", "restart"), ("op-2", "read log")], None)
            case "POST", ["objects" | "links", _, "operations", _, "execute"]:
                return self.execute(seen)
            case "GET", ["jobs", _]:
                return self.jobs(seen)
        return problem(404, "notFound", f"there is nothing at {seen.path}")

    @staticmethod
    def _list(pairs: list[tuple[str, str]], name: str | None) -> Reply:
        items = [{"id": id_, "name": called} for id_, called in pairs if name in (None, called)]
        return Reply({"items": items, "next": None})

    def requests(self, method: str, ending: str) -> list[Seen]:
        """Those of a kind."""
        return [seen for seen in self.seen if seen.method == method and seen.path.endswith(ending)]


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on a free loopback port."""
    yield from _served(None)


@pytest.fixture
def tls_site(certificates: Path) -> Iterator[Site]:
    """The same over TLS, with a certificate of `certificates / "ca.pem"`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "key.pem")
    yield from _served(context)


def _served(tls: ssl.SSLContext | None) -> Iterator[Site]:
    held = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = json.loads(raw) if raw else None
            reply = held.answer(Seen(self.command, unquote(parts.path), query, headers, body))
            if reply.cut:
                self.close_connection = True
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    if tls is not None:
        # The handshake belongs to the connection's thread: one that fails must not end the accepting.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        held.url = held.url.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield held
    server.shutdown()
    thread.join()
    server.server_close()

from __future__ import annotations

import pytest

from iotjobs.client.errors import (
    BadAnswer,
    Conflict,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotNow,
    Problem,
    Refused,
    Unreachable,
)
from iotjobs.client.http import Client
from iotjobs.client.shapes import Named
from tests.services.api import Reply, Site, job, problem
from tests.services.programs import free_port

PRESS = Named("a" * 32, "press-057", {}, "objects")


def test_calls_carry_the_token_and_no_one_elses_settings(site: Site, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Client(f"{site.url}/", "1-abc") as client:
        assert client.owners("objects", "press-057")[0].id == "a" * 32

    assert site.seen[0].headers["authorization"] == "Bearer 1-abc"
    assert site.seen[0].path == "/api/v1/objects"


def test_without_a_token_none_is_sent(site: Site) -> None:
    with Client(site.url) as client:
        client.owner("objects", "a" * 32)

    assert "authorization" not in site.seen[0].headers


def test_objects_are_those_of_exactly_the_name(site: Site) -> None:
    site.override = lambda _: Reply({"items": [{"id": "1", "name": "press-057 old"}], "next": None})
    with Client(site.url) as client:
        assert client.owners("objects", "press-057") == []


def test_execute_says_how_long_to_wait_and_by_which_key(site: Site) -> None:
    with Client(site.url) as client:
        done = client.execute(PRESS, "op-1", {"args": {"unit": "nginx"}}, wait_s=600, key="k-1")

    [seen] = site.requests("POST", "/execute")
    assert seen.path == f"/api/v1/objects/{'a' * 32}/operations/op-1/execute"
    assert (float(seen.query["wait"]), seen.headers["idempotency-key"]) == (60.0, "k-1")
    assert seen.body == {"args": {"unit": "nginx"}}
    assert (done.outcome, done.exit_code, done.ended) == ("succeeded", 0, True)


def test_execute_without_a_wait_asks_for_none(site: Site) -> None:
    site.execute = lambda _: Reply(job(None, status="PENDING", description=None), 202)
    with Client(site.url) as client:
        pending = client.execute(PRESS, "op-1")

    assert site.seen[0].query == {}
    assert (pending.ended, pending.exit_code, pending.said) == (False, None, "")


def test_an_id_stays_one_step_of_the_path(site: Site) -> None:
    with Client(site.url) as client:
        with pytest.raises(NotFound):
            client.job("../users?x=1")
        for nothing in ("", ".", ".."):
            with pytest.raises(NotFound):
                client.job(nothing)

    assert [(seen.path, seen.query) for seen in site.seen] == [("/api/v1/jobs/../users?x=1", {})]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "badRequest", Refused),
        (401, "notAuthenticated", NotAuthenticated),
        (403, "notAllowed", NotAllowed),
        (404, "notFound", NotFound),
        (409, "conflict", Conflict),
        (412, "preconditionFailed", Conflict),
        (413, "tooLarge", Refused),
        (422, "idempotencyMismatch", Conflict),
        (429, "tooMany", NotNow),
        (503, "notReady", NotNow),
        (507, "storageFull", NotNow),
    ],
)
def test_a_problem_becomes_an_error_with_all_that_it_says(site: Site, status, code, kind) -> None:
    fields = [{"field": "args.unit", "message": "is missing"}]
    site.override = lambda _: problem(status, code, "what to do", errors=fields)
    with Client(site.url) as client, pytest.raises(Problem) as caught:
        client.job("1")

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (code, status, "req-1")
    assert (str(caught.value), caught.value.errors) == ("what to do", (("args.unit", "is missing"),))


def test_a_refusal_of_something_in_between_is_a_problem_too(site: Site) -> None:
    site.override = lambda _: Reply(b"<h1>Bad gateway</h1>", 502, kind="text/html")
    with Client(site.url) as client, pytest.raises(NotNow) as caught:
        client.job("1")

    assert (caught.value.code, str(caught.value)) == ("", "HTTP status 502")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<h1>hello</h1>", kind="text/html"),
        Reply(b"{", kind="application/json"),
        Reply(b"", 302),
        Reply([1]),
        Reply({"id": "1"}),
    ],
    ids=["a page", "half an answer", "elsewhere", "a list", "no job"],
)
def test_what_is_no_answer_of_ours_is_named(site: Site, reply: Reply) -> None:
    site.override = lambda _: reply
    with Client(site.url) as client, pytest.raises(BadAnswer):
        client.job("1")


def test_a_list_that_is_none_is_named(site: Site) -> None:
    site.override = lambda _: Reply({"things": []})
    with Client(site.url) as client, pytest.raises(BadAnswer):
        client.operations(PRESS)


def test_nobody_listens() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable) as caught:
        client.job("1")

    assert not caught.value.maybe_done
    assert "Connection refused" in str(caught.value)


def test_a_cut_answer_is_asked_for_again_when_that_changes_nothing(site: Site) -> None:
    replies = [Reply(cut=True), Reply(job())]
    site.jobs = lambda _: replies.pop(0)
    with Client(site.url) as client:
        assert client.job("1").ended

    site.execute = lambda _: Reply(cut=True)
    with Client(site.url) as client, pytest.raises(Unreachable) as caught:
        client.execute(PRESS, "op-1")
    assert caught.value.maybe_done
    assert len(site.requests("POST", "/execute")) == 1

    with Client(site.url) as client, pytest.raises(Unreachable):
        client.execute(PRESS, "op-1", key="k-1")
    assert len(site.requests("POST", "/execute")) == 1 + 3


def test_an_answer_that_does_not_come_is_named(site: Site) -> None:
    import threading

    asked_enough = threading.Event()
    site.jobs = lambda _: Reply(job()) if asked_enough.wait(10) else Reply(cut=True)
    with Client(site.url, timeout_s=0.05) as client, pytest.raises(Unreachable, match="in time") as caught:
        client.job("1")
    asked_enough.set()

    assert caught.value.maybe_done


@pytest.mark.parametrize("url", ["", "jobs.example.org", "ftp://jobs.example.org", "http://", "http://a:b"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Client(url)


@pytest.mark.parametrize("token", ["1-abc\n", "1-abc x", "1-ä"])
def test_a_token_that_cannot_be_sent_is_refused_without_being_told(token: str) -> None:
    with pytest.raises(ValueError) as caught:
        Client("http://127.0.0.1", token)

    assert "abc" not in str(caught.value)

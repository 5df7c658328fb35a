from __future__ import annotations

import pytest

from iotjobs.cli.running import AT_ONCE, Order, Request, follow, side_by_side, start
from iotjobs.client.errors import NotFound, Unreachable
from iotjobs.client.http import Client
from iotjobs.client.shapes import Job, Named
from tests.services.api import Reply, Site, job

ORDER = Order(Named("a" * 32, "press-057", {}, "objects"), Named("op-1", "restart", {}))


@pytest.fixture(autouse=True)
def slept(mocker) -> list[float]:
    """Nothing waits: what would have been slept moves the clock."""
    sleeps: list[float] = []
    mocker.patch("iotjobs.cli.running.sleep", side_effect=sleeps.append)
    mocker.patch("iotjobs.cli.running.monotonic", side_effect=lambda: sum(sleeps))
    return sleeps


def test_each_input_has_one_answer() -> None:
    def call(number: int) -> int:
        if number % 2:
            raise NotFound("notFound", 404, str(number))
        return number

    answers = list(side_by_side(call, range(100)))

    assert sorted(answer.asked for answer in answers) == list(range(100))
    assert sorted(answer.result for answer in answers if answer.error is None) == list(range(0, 100, 2))


def test_a_fault_of_ours_is_raised_and_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda number: 1 // number, [0]))


def test_many_jobs_do_not_wait_for_each_others_ends(site: Site) -> None:
    orders = [ORDER] * (AT_ONCE + 1)
    with Client(site.url) as client:
        list(start(client, orders, Request({}, None, "k")))
        assert all("wait" not in seen.query for seen in site.seen)
        list(start(client, orders[:2], Request({}, None, "k")))
        assert float(site.seen[-1].query["wait"]) > 0


def test_an_execute_whose_answer_got_lost_is_asked_again_by_its_key(site: Site) -> None:
    replies = [Reply(cut=True)] * 4 + [Reply(job(), 202)]
    site.execute = lambda _: replies.pop(0)
    with Client(site.url) as client:
        [answer] = start(client, [ORDER], Request({}, 0.0, "k"))

    assert answer.result is not None
    assert {seen.headers["idempotency-key"] for seen in site.seen} == {"k"}


def test_patience_with_lost_answers_ends(site: Site) -> None:
    site.execute = lambda _: Reply(cut=True)
    with Client(site.url) as client:
        [answer] = start(client, [ORDER], Request({}, 0.0, "k"))

    assert isinstance(answer.error, Unreachable)
    assert answer.error.maybe_done


def test_a_server_that_stays_away_is_told_in_the_end(site: Site, slept: list[float]) -> None:
    site.jobs = lambda _: Reply(cut=True)
    with Client(site.url) as client:
        [answer] = follow(client, [Job.of(job(None, status="RUNNING"))], None)

    assert isinstance(answer.error, Unreachable)
    assert sum(slept) >= 15


def test_pauses_grow_and_the_deadline_cuts_them(site: Site, slept: list[float]) -> None:
    running = job(None, status="RUNNING")
    site.jobs = lambda _: Reply(running)
    with Client(site.url) as client:
        [answer] = follow(client, [Job.of(running)], 10.0)

    assert answer.result is not None
    assert not answer.result.ended
    assert sum(slept) == pytest.approx(10.0)
    assert max(slept) == 2.0
    assert slept[0] < slept[1]

from __future__ import annotations

import pytest

from iotjobs.client.shapes import Job
from tests.services.api import job


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "done\nmore\n"),
        ({"description": {"exitCode": 1, "stdout": " \n", "stderr": "no such unit"}}, "no such unit"),
        ({"description": None, "error": {"code": "unreachable", "message": "no route"}}, "no route"),
        (
            {
                "description": {"exitCode": None, "stdout": "step 1\n", "stderr": ""},
                "error": {"code": "timeOut", "message": "its processes are gone"},
            },
            "its processes are gone",
        ),
        (
            {
                "description": {"exitCode": 3, "stdout": "step 1\n", "stderr": ""},
                "error": {"code": "exitCode", "message": "exit code 3"},
            },
            "step 1\n",
        ),
        ({"description": {"topic": "a/b", "message": '{"on": true}'}}, 'a/b {"on": true}'),
        ({"description": {"topic": "a/b", "message": {"on": True}}}, 'a/b {"on": true}'),
        ({"description": {"topic": "a/b", "message": ""}}, "a/b "),
        ({"description": None}, ""),
    ],
    ids=[
        "stdout",
        "stderr",
        "error",
        "no exit",
        "exit",
        "message",
        "JSON message",
        "empty message",
        "nothing",
    ],
)
def test_what_a_job_has_to_say(more, said: str) -> None:
    assert Job.of(job(**more)).said == said


@pytest.mark.parametrize(
    ("status", "ended"),
    [("PENDING", False), ("RUNNING", False), ("STOPPED", False), ("FINISHED", True), ("CANCELED", True)],
)
def test_when_a_job_has_ended(status: str, ended: bool) -> None:
    assert Job.of(job(status=status)).ended is ended


def test_the_record_is_kept_whole_and_out_of_sight() -> None:
    record = job(secret="x")

    assert Job.of(record).record is record
    assert "secret" not in repr(Job.of(record))

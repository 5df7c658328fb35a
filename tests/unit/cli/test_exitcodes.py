from __future__ import annotations

import re

import pytest

from iotjobs.cli.exitcodes import MEANING, ExitCode, of_error, of_job, together
from iotjobs.client import errors
from iotjobs.client.errors import ClientError
from iotjobs.client.shapes import Job
from tests.architecture.source import DOCS
from tests.services.api import job


def leaves(kind: type[ClientError]) -> set[type[ClientError]]:
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {kind}


def test_every_error_of_the_client_has_a_code() -> None:
    known = leaves(ClientError)

    assert errors.NotNow in known
    for kind in known:
        error = kind.__new__(kind)
        assert of_error(error) not in (ExitCode.OK, ExitCode.PARTIAL)


def test_every_code_is_explained_here_and_in_the_reference() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    documented = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}

    assert set(MEANING) == set(ExitCode)
    assert documented == {int(code): text for code, text in MEANING.items()}


@pytest.mark.parametrize(
    ("codes", "one"),
    [
        ([], 0),
        ([0, 0], 0),
        ([1, 1], 1),
        ([0, 1], 8),
        ([0, 4], 8),
        ([1, 5], 1),
        ([5, 2], 5),
        ([0, 1, 9], 9),
        ([0, 9, 7], 7),
        ([7, 6], 6),
        ([6, 130], 130),
    ],
)
def test_several_codes_become_one_that_promises_no_more_than_is_known(codes, one) -> None:
    assert together(map(ExitCode, codes)) == one
    assert together(map(ExitCode, reversed(codes))) == one


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        ("FINISHED", "succeeded", 0),
        ("FINISHED", "lost", 9),
        ("FINISHED", "failed", 1),
        ("CANCELED", "canceled", 1),
        ("STOPPED", None, 7),
        ("RUNNING", None, 7),
    ],
)
def test_the_code_of_a_job(status, outcome, code) -> None:
    assert of_job(Job.of(job(outcome, status=status))) == code

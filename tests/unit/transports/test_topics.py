from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.errors import BadRequest
from iotjobs.transports import topics
from iotjobs.transports.topics import DeviceTopic, TopicKind

JOB = "0199f3c2a7d47c4e9f0b6f6f6c1f2a10"
NAMES = st.from_regex(r"[a-zA-Z0-9:_-]{1,128}", fullmatch=True)


@pytest.mark.parametrize("name", ["press-057", "aa:bb:cc:dd:ee:ff", "a", "_", "x" * 128])
def test_a_thing_name_is_letters_digits_colon_underscore_hyphen(name: str) -> None:
    assert topics.check_thing_name(name) == name


@pytest.mark.check(20)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 129,
        "+",
        "#",
        "a/b",
        "a\0",
        "a\n",
        "a\nuser root",
        "%u",
        "%c",
        "a b",
        "a.b",
        "ä",
        "$SYS",
        "a\u2028",
    ],
)
def test_a_hostile_thing_name_is_refused(name: str) -> None:
    assert not topics.is_thing_name(name)
    with pytest.raises(BadRequest):
        topics.check_thing_name(name)
    with pytest.raises(BadRequest):
        topics.results_topic(name, JOB)


@given(NAMES, st.sampled_from([JOB, "1", "123456789012345678"]))
def test_what_is_built_is_parsed_back(thing: str, job_id: str) -> None:
    assert topics.parse_topic(f"iotjobs/{thing}/report") == DeviceTopic(TopicKind.REPORT, thing)
    assert topics.parse_topic(f"iotjobs/{thing}/status") == DeviceTopic(TopicKind.STATUS, thing)
    results = DeviceTopic(TopicKind.RESULTS, thing, job_id)
    assert topics.parse_topic(topics.results_topic(thing, job_id)) == results
    answer = DeviceTopic(TopicKind.ANSWER, thing, job_id)
    assert topics.parse_topic(topics.answer_topic(thing, job_id)) == answer


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "iotjobs",
        "iotjobs/a",
        "iotjobs//report",
        "iotjobs/a/report/",
        "iotjobs/a.b/report",
        "iotjobs/+/report",
        "other/a/report",
        "/iotjobs/a/report",
        f"iotjobs/a/jobs/{JOB}",
        f"iotjobs/a/jobs/{JOB.upper()}/results",
        f"iotjobs/a/jobs/{JOB}x/answer",
        f"iotjobs/a/jobs/{JOB}/output",
        "iotjobs/a/jobs//results",
        "iotjobs/a/cmd/restart",
    ],
)
def test_other_topics_are_none_of_ours(topic: str) -> None:
    assert topics.parse_topic(topic) is None


@pytest.mark.parametrize(
    ("topic", "thing"),
    [
        ("iotjobs/a/report", "a"),
        ("iotjobs/a/jobs/n1/results", "a"),
        ("iotjobs/a", "a"),
        ("$aws/things/a/shadow/update", "a"),
        ("$aws/things/a", "a"),
        ("iotjobs", None),
        ("iotjobs/a.b/report", None),
        ("iotjobs//report", None),
        ("$aws/a/a", None),
        ("other/a/report", None),
    ],
)
def test_a_topic_says_whose_it_is_also_where_it_is_none_we_know(topic: str, thing: str | None) -> None:
    assert topics.speaker(topic) == thing


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_is_none(topic: str) -> None:
    topics.parse_topic(topic)
    topics.parse_topic(f"iotjobs/{topic}")


@pytest.mark.parametrize("job_id", ["", "+", "../x", JOB + "0", "-1", "\u0661"])
def test_a_job_id_that_is_none_makes_no_topic(job_id: str) -> None:
    with pytest.raises(BadRequest):
        topics.answer_topic("a", job_id)


@pytest.mark.parametrize(
    "topic", ["a", "/", "a//b", "$aws/things/x", " a ", "a" * 65_535, "/".join("x" * 200), "😀"]
)
def test_a_topic_to_publish_on(topic: str) -> None:
    assert topics.check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "a/+",
        "a/#",
        "a+b",
        "a" * 65_536,
        "ä" * 32_768,
        "/".join("x" * 201),
        "a\0b",
        "a\nb",
        "\x7f",
        "\x85",
        "\ud800",
        "\ufdd0",
        "\uffff",
        "\U0010ffff",
        "\ufeffa",
    ],
)
def test_a_topic_that_a_broker_would_close_the_connection_over(topic: str) -> None:
    with pytest.raises(BadRequest):
        topics.check_topic(topic)


@pytest.mark.parametrize("topic_filter", ["#", "+", "a/+/b/#", "+/+", "$share/g/a/#", "a", "/#"])
def test_a_filter(topic_filter: str) -> None:
    assert topics.check_filter(topic_filter) == topic_filter


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a#", "#/", "a+/b", "+a", "##", "a\nb"])
def test_a_filter_with_a_misplaced_wildcard(topic_filter: str) -> None:
    with pytest.raises(BadRequest):
        topics.check_filter(topic_filter)


@pytest.mark.parametrize(
    "topic_filter", ["tele/x/#", "zigbee2mqtt/lamp", "/leading", "a b/c", "iotjobs2/x", "a/%u"]
)
def test_a_filter_that_a_device_may_be_granted(topic_filter: str) -> None:
    assert topics.check_own_filter(topic_filter) == topic_filter


@pytest.mark.check(20)
@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+",
        "+/b/report",
        "iotjobs",
        "iotjobs/b/#",
        "$SYS/#",
        "$aws/things/b/#",
        "$share/g/#",
        "a\ntopic readwrite #",
        "a\rb",
        " a",
        "a ",
        "\ta",
    ],
)
def test_a_filter_that_reaches_others_is_refused(topic_filter: str) -> None:
    with pytest.raises(BadRequest):
        topics.check_own_filter(topic_filter)

from __future__ import annotations

import pytest

from iotjobs.domain.errors import BadRequest, ConfigurationError
from iotjobs.transports.ingest_rules import IngestRule, Match


@pytest.mark.parametrize(
    ("pattern", "topic", "match"),
    [
        ("zigbee2mqtt/{thing}", "zigbee2mqtt/lamp", Match(("thing", "lamp"), None)),
        ("zigbee2mqtt/{thing}", "zigbee2mqtt/lamp/availability", None),
        ("tele/{external_id}/SENSOR", "tele/a b/SENSOR", Match(("external_id", "a b"), None)),
        ("tele/{external_id}/SENSOR", "tele/x/STATE", None),
        ("shellies/{external_id}/{property}", "shellies/s1/relay", Match(("external_id", "s1"), "relay")),
        ("hall/+/{thing}/#", "hall/3/press/a/b", Match(("thing", "press"), None)),
        ("hall/+/{thing}/#", "hall/3", None),
    ],
)
def test_a_topic_tells_whose_it_is_and_which_property(pattern: str, topic: str, match: Match | None) -> None:
    assert IngestRule(pattern).match(topic) == match


def test_a_pattern_is_subscribed_to_with_wildcards() -> None:
    assert IngestRule("shellies/{external_id}/{property}").filter == "shellies/+/+"
    assert IngestRule("a/{thing}/#").filter == "a/+/#"


@pytest.mark.parametrize(
    "pattern",
    [
        "zigbee2mqtt/lamp",
        "{thing}/state",
        "iotjobs/{thing}/report",
        "$aws/things/{thing}",
        "a/{name}",
        "a/{thing}/{external_id}",
        "a/x{thing}",
        "a/{thing}/x{property}",
        "a/{thing}/{property}x",
        "a/{thing}/{property}/{property}",
    ],
)
def test_a_pattern_that_names_nobody_or_meddles_with_ours_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        IngestRule(pattern)


@pytest.mark.parametrize("pattern", ["a/{thing}/#/b", "+/+/{thing}", "$share/g/a/{thing}", "$SYS/{thing}"])
def test_a_pattern_that_cannot_be_subscribed_to_or_reaches_into_ours_is_refused(pattern: str) -> None:
    with pytest.raises(BadRequest):
        IngestRule(pattern)

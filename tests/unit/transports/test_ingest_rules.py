from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from iotjobs.domain.errors import BadRequest, ConfigurationError
from iotjobs.transports.ingest_rules import IngestRule, Match, subscriptions


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
        ("shellies/{external_id}/{path}", "shellies/s1/online", Match(("external_id", "s1"), "online")),
        ("shellies/{external_id}/{path}", "shellies/s1/relay/0", Match(("external_id", "s1"), "relay/0")),
        ("shellies/{external_id}/{path}", "shellies/s1", None),
        ("shellies/{external_id}/{path}", "shellies/s1/a//b/", Match(("external_id", "s1"), "a//b/")),
        ("a/{thing}/+/{path}", "a/t/x/b/c", Match(("thing", "t"), "b/c")),
        (
            "zigbee2mqtt/{external_id}",
            "zigbee2mqtt/Kitchen lamp",
            Match(("external_id", "Kitchen lamp"), None),
        ),
    ],
)
def test_a_topic_tells_whose_it_is_and_which_property(pattern: str, topic: str, match: Match | None) -> None:
    assert IngestRule(pattern).match(topic) == match


def test_a_pattern_is_subscribed_to_with_wildcards() -> None:
    assert IngestRule("shellies/{external_id}/{property}").filter == "shellies/+/+"
    assert IngestRule("a/{thing}/#").filter == "a/+/#"
    assert IngestRule("a/{thing}/{path}").filter == "a/+/+/#"  # not `a/+/#`, which `a/t` fits too


def test_what_two_rules_fit_is_subscribed_to_once_and_what_is_ignored_not_at_all() -> None:
    rules = [
        IngestRule("s/{thing}/online", online=("true",), offline=("false",)),
        IngestRule("s/{thing}/+/command", ignore=True),
        IngestRule("s/{thing}/{path}"),
        IngestRule("tele/{thing}/set", ignore=True),
        IngestRule("tele/{thing}/STATE"),
        IngestRule("tele/{thing}/{property}"),
        IngestRule("s/{external_id}"),
    ]
    assert subscriptions(rules) == ["s/+/+/#", "tele/+/+", "s/+"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/{thing}/{path}", "a/{thing}/online"),
        ("a/{thing}/{path}", "a/{thing}/b/{path}"),
        ("a/{thing}/#", "a/{external_id}"),
        ("a/{thing}/#", "a/{thing}/#"),
        ("a/{thing}/{property}", "a/{external_id}/state"),
    ],
)
def test_a_rule_behind_one_that_takes_all_its_topics_is_refused(first: str, second: str) -> None:
    with pytest.raises(ConfigurationError, match="never reached"):
        subscriptions([IngestRule(first), IngestRule(second)])
    if first != second:
        subscriptions([IngestRule(second), IngestRule(first)])


@pytest.mark.parametrize(
    ("pattern", "members"),
    [
        ("a/{thing}/LWT", {"online": ("Online",)}),
        ("a/{thing}/LWT", {"online": ("Online",), "offline": ("",)}),
        ("a/{thing}/LWT", {"online": ("x", "y"), "offline": ("y",)}),
        ("a/{thing}/LWT", {"online": ("x",), "offline": ("y",), "prefix": "p"}),
        ("a/{thing}/LWT", {"online": ("x",), "offline": ("y",), "ignore": True}),
        ("a/{thing}/{property}", {"online": ("x",), "offline": ("y",)}),
        ("a/{thing}/{path}", {"online": ("x",), "offline": ("y",)}),
    ],
)
def test_members_that_do_not_go_together_are_refused(pattern: str, members: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        IngestRule(pattern, **members)


@pytest.mark.check(19)
@given(st.lists(st.sampled_from(["", "a", "s", "t1", "online", "{path}", "+", "#", "\ud800"]), max_size=6))
def test_any_topic_fits_a_rule_or_not_and_what_fits_was_subscribed_to(levels: list[str]) -> None:
    for pattern in ("s/{thing}/{path}", "s/{external_id}/online", "s/+/{thing}/#", "a/{thing}/{property}"):
        rule = IngestRule(pattern)
        found = rule.match("/".join(levels))
        if "#" not in levels:  # no topic has one
            assert (found is not None) == topic_matches_sub(rule.filter, "/".join(levels))
        assert found is None or found.name is None or found.name in "/".join(levels)


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
        "a/{thing}/{path}/{property}",
        "a/{thing}/{path}/#",
        "a/{path}/{thing}",
        "a/{path}",
    ],
)
def test_a_pattern_that_names_nobody_or_meddles_with_ours_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        IngestRule(pattern)


@pytest.mark.parametrize("pattern", ["a/{thing}/#/b", "+/+/{thing}", "$share/g/a/{thing}", "$SYS/{thing}"])
def test_a_pattern_that_cannot_be_subscribed_to_or_reaches_into_ours_is_refused(pattern: str) -> None:
    with pytest.raises(BadRequest):
        IngestRule(pattern)

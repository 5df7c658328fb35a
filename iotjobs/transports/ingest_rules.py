"""Topics of other makers as reports: a pattern tells whose they are, and which property.

    zigbee2mqtt/{external_id}          a JSON object of values
    tele/{external_id}/SENSOR          the same, below a prefix
    shellies/{external_id}/{property}  one value, JSON or plain text
    shellies/{external_id}/{path}      the same, of all levels that are left: `relay/0`

With words for `online` and `offline` the message is the word of the connection, as on `…/status`. Of a rule
that says `ignore` nothing counts: our own commands, where a wider rule would take them for reports.

Pure. A capture stands for one whole level, `{path}` at the end for one or more; `#` may end a pattern, and what it
matches is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iotjobs.domain.errors import ConfigurationError
from iotjobs.transports.topics import check_own_filter

WHO = ("thing", "external_id")
_WHAT = ("property", "path")
_CAPTURE = re.compile(r"\{([a-z_]+)\}\Z")


@dataclass(frozen=True, slots=True)
class Match:
    """What a topic says by itself.

    Attributes:
        who: `thing` or `external_id`, and its value.
        name: of the one property that the message holds; None: it holds an object of them.
    """

    who: tuple[str, str]
    name: str | None


@dataclass(frozen=True, slots=True)
class IngestRule:
    """A pattern of topics, and what its messages are.

    Attributes:
        prefix: what is put before the names of properties.
        online, offline: the messages that say it of the device's connection; none: it holds values.
        ignore: its messages have no effect.
        words: what each of these messages says: whether it is online.

    Raises:
        ConfigurationError: the pattern names nobody, or its members do not go together.
        BadRequest: it cannot be subscribed to, or is not of other makers' topics alone.
    """

    topic: str
    prefix: str = ""
    online: tuple[str, ...] = ()
    offline: tuple[str, ...] = ()
    ignore: bool = False
    words: Mapping[bytes, bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        levels = self.topic.split("/")
        captures = [found[1] for level in levels if (found := _CAPTURE.match(level))]
        unknown = sorted(set(captures) - {*WHO, *_WHAT})
        if unknown or any("{" in level and not _CAPTURE.match(level) for level in levels):
            what = ", ".join(unknown) or self.topic
            raise self._refused("a level is {thing}, {external_id}, {property} or {path}", what)
        if len([name for name in captures if name in WHO]) != 1:
            raise self._refused("give {thing} or {external_id} once")
        if len([name for name in captures if name in _WHAT]) > 1:
            raise self._refused("give {property} or {path} once")
        if "path" in captures and levels[-1] != "{path}":
            raise self._refused("{path} stands at the end")
        if levels[0] in ("iotjobs", "$aws") or _CAPTURE.match(levels[0]):
            raise self._refused("the first level is a plain name, not one of ours")
        check_own_filter(self.filter, field="ingest")
        self._check_words(captures)
        words = dict.fromkeys(map(str.encode, self.online), True)
        words |= dict.fromkeys(map(str.encode, self.offline), False)
        object.__setattr__(self, "words", words)

    def _check_words(self, captures: Sequence[str]) -> None:
        has_words = bool(self.online or self.offline)
        if has_words and not (self.online and self.offline and all((*self.online, *self.offline))):
            raise self._refused("give words for both, online and offline")
        if set(self.online) & set(self.offline):
            raise self._refused("a word cannot say both, online and offline")
        if has_words and (self.prefix or self.ignore or not set(captures) <= set(WHO)):
            raise self._refused("words of a connection have no {property}, {path}, prefix or ignore")

    def _refused(self, why: str, what: str | None = None) -> ConfigurationError:
        return ConfigurationError(f"ingest: {what or self.topic}: {why}")

    @property
    def filter(self) -> str:
        """What to subscribe to: all its topics and no others."""
        levels = (_CAPTURE.sub("+", level) for level in self.topic.split("/"))
        return "/".join(levels) + ("/#" if self.topic.endswith("/{path}") else "")

    def match(self, topic: str) -> Match | None:
        """What a topic says; None when it is not of this pattern."""
        pattern, levels = self.topic.split("/"), topic.split("/")
        if pattern[-1] == "#":
            pattern, levels = pattern[:-1], levels[: len(pattern) - 1]
        elif pattern[-1] == "{path}" and len(levels) > len(pattern):
            last = len(pattern) - 1
            levels = [*levels[:last], "/".join(levels[last:])]
        if len(pattern) != len(levels):
            return None
        captured: dict[str, str] = {}
        for wanted, level in zip(pattern, levels, strict=True):
            capture = _CAPTURE.match(wanted)
            if capture is not None:
                captured[capture[1]] = level
            elif wanted not in ("+", level):
                return None
        who = next((kind, captured[kind]) for kind in WHO if kind in captured)
        return Match(who, captured.get("property", captured.get("path")))


def subscriptions(rules: Sequence[IngestRule]) -> list[str]:
    """What to subscribe to for these rules, of which the first that fits is taken.

    A filter that another one covers is left out: brokers deliver once for each that fits.

    Raises:
        ConfigurationError: a rule is never reached, for one before it takes all its topics.
    """
    for at, rule in enumerate(rules):
        before = next((one for one in rules[:at] if _covers(one.filter, rule.filter)), None)
        if before is not None:
            raise ConfigurationError(f"ingest: {rule.topic} is never reached: put it before {before.topic}")
    filters = dict.fromkeys(rule.filter for rule in rules if not rule.ignore)
    return [
        narrow for narrow in filters if not any(wide != narrow and _covers(wide, narrow) for wide in filters)
    ]


def _covers(wide: str, narrow: str) -> bool:
    """Whether every topic that `narrow` fits is one that `wide` fits."""
    levels, of = wide.split("/"), narrow.split("/")
    if levels[-1] == "#":
        levels, of = levels[:-1], of[: len(levels) - 1]
    elif of[-1] == "#":
        return False
    return len(levels) == len(of) and all(
        level in ("+", other) and other != "#" for level, other in zip(levels, of, strict=True)
    )

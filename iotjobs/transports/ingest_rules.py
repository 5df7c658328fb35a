"""Topics of other makers as reports: a pattern tells whose they are, and which property.

    zigbee2mqtt/{thing}                a JSON object of values
    tele/{external_id}/SENSOR          the same, below a prefix
    shellies/{external_id}/{property}  one value, JSON or plain text

Pure. A capture stands for one whole level; `#` may end a pattern, and what it matches is not looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iotjobs.domain.errors import ConfigurationError
from iotjobs.transports.topics import check_own_filter

WHO = ("thing", "external_id")
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
    """A pattern of topics, and what is put before the names of properties.

    Raises:
        ConfigurationError: the pattern names nobody.
        BadRequest: it cannot be subscribed to, or is not of other makers' topics alone.
    """

    topic: str
    prefix: str = ""

    def __post_init__(self) -> None:
        levels = self.topic.split("/")
        captures = [found[1] for level in levels if (found := _CAPTURE.match(level))]
        unknown = sorted(set(captures) - {*WHO, "property"})
        if unknown or any("{" in level and not _CAPTURE.match(level) for level in levels):
            what = ", ".join(unknown) or self.topic
            raise ConfigurationError(f"ingest: {what}: a level is {{thing}}, {{external_id}} or {{property}}")
        if len([name for name in captures if name in WHO]) != 1 or captures.count("property") > 1:
            raise ConfigurationError(f"ingest: {self.topic}: give {{thing}} or {{external_id}} once")
        if levels[0] in ("iotjobs", "$aws") or _CAPTURE.match(levels[0]):
            raise ConfigurationError(
                f"ingest: {self.topic}: the first level is a plain name, not one of ours"
            )
        check_own_filter(self.filter, field="ingest")

    @property
    def filter(self) -> str:
        """What to subscribe to."""
        return "/".join("+" if _CAPTURE.match(level) else level for level in self.topic.split("/"))

    def match(self, topic: str) -> Match | None:
        """What a topic says; None when it is not of this pattern."""
        pattern, levels = self.topic.split("/"), topic.split("/")
        if pattern[-1] == "#":
            pattern, levels = pattern[:-1], levels[: len(pattern) - 1]
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
        return Match(who, captured.get("property"))

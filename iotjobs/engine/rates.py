"""How often a device may speak of itself: a bucket of tokens each, and what becomes of what is above it.

Above the rate the last value wins: a report waits for its token, and one that comes meanwhile is merged
into it; so does the word of its connection, `online` or `offline`, behind the report that came before it. So
a device that floods us costs the others nothing and loses nothing but values that were old.

What has an id that came before takes no part in it: it would take newer values back. Who asks here knows what the
store has seen (`known`); ids of what waits are known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from iotjobs.engine.happenings import Connection, Reported
from iotjobs.store.standings import REPORT_IDS_KEPT
from iotjobs.store.taken import Key
from iotjobs.transports.mqtt_messages import Received

BURST_S = 5  # of the rate
# Keys of messages that are no longer waited with, of all: the broker waits for no more acknowledgements.
LET_GO = 256
# Messages that wait with one report: what is not acknowledged takes places of all devices. Those of a device that says
# so many names one by one have their effect before its token comes.
EARLIER = 16
_MOST = 10_000  # buckets, before those that are full again are let go of

_HEARD_OF, _WORD = 0, 1  # what a message says beside values

Who = tuple[str, str]  # `thing` or `external_id`, and its value
Said: TypeAlias = Reported | Connection
_Name: TypeAlias = str | int | tuple[str]  # of a property; one of these; or in a tuple an id
_Slot: TypeAlias = tuple[_Name, int]  # and the QoS


@dataclass(slots=True)
class _Place:
    """What a message says, and how many of its names no later one has."""

    said: Said
    names: int = 0


@dataclass(slots=True)
class Held:
    """What a device said that waits for its token; of what it said twice the later.

    Attributes:
        reported: its reports, merged.
        connection: the word of its connection that came after them.
        let_go: keys of messages that it stands for beside its own, and that may come again all the same.
    """

    reported: Reported | None = None
    connection: Connection | None = None
    let_go: deque[Key] = field(default_factory=deque)
    _all_let_go: deque[deque[Key]] = field(default_factory=deque, repr=False)  # of all devices: whose is next
    # The newest message of each. One of QoS 0 takes the place of no other: that one has to come again, and this one
    # does not, should we die before their effects are committed.
    _newest: dict[_Slot, Received] = field(default_factory=dict)
    _places: dict[Received, _Place] = field(default_factory=dict)  # in their order
    # Of all that was said, the newest; and the QoS it came with.
    _ids: dict[str, int] = field(default_factory=dict)

    @property
    def messages(self) -> list[Received]:
        """Those that have values, or the word, which no later one has; in their order."""
        return list(self._places)

    @property
    def is_empty(self) -> bool:
        """Whether it stands for nothing."""
        return self.reported is None and self.connection is None

    @property
    def is_too_much(self) -> bool:
        """Whether more messages wait here than may."""
        return len(self._places) > EARLIER

    @property
    def parts(self) -> list[tuple[list[Received], Said]]:
        """What it stands for in the order of its effects, each with its messages."""
        words: list[Received] = []
        if self.connection is not None:
            words = [one for one, place in self._places.items() if isinstance(place.said, Connection)]
        found: list[tuple[list[Received], Said]] = []
        if self.reported is not None:
            waiting = [one for one in self._places if one not in words]
            found.append((waiting, self._with_parts(self.reported, waiting)))
        if self.connection is not None:
            found.append((words, self.connection))
        return found

    def _with_parts(self, reported: Reported, messages: Sequence[Received]) -> Reported:
        """With the reports of messages, which were merged; what the broker had kept is older than the others."""
        reports = [said for one in messages if isinstance(said := self._places[one].said, Reported)]
        if len(reports) == 1 and not reported.superseded:
            return reported
        return replace(reported, parts=tuple(sorted(reports, key=lambda one: not one.retained)))

    @property
    def ids(self) -> Mapping[str, int]:
        """Of all that it stands for, the newest, each with the QoS that it came with first."""
        return self._ids

    def came_before(self, message: Received) -> bool:
        """Whether the broker brings again what waits here, or what this stands for: it has its place already."""
        mid, key = message.mid, message.key
        before = next((one for one in self._places if one.mid == mid and one.key == key), None)
        if before is None:
            stands_for = key in self.let_go
            if stands_for:
                message.ack()
            return stands_for
        # The connection on which the other one could be acknowledged is lost.
        self._places = {message if one is before else one: place for one, place in self._places.items()}
        self._newest = {slot: message if one is before else one for slot, one in self._newest.items()}
        return True

    def add(self, message: Received, what: Said, known: int | None = None) -> None:
        """Merge a later one into it; messages that then have no effect any more are acknowledged.

        Args:
            message: the one that says it.
            what: what it says.
            known: its id came before, with this QoS; None: as far as is known elsewhere it did not.
        """
        report_id = what.report_id
        came = None if report_id is None else self._ids.get(report_id, known)
        if came is not None:
            assert report_id is not None
            self._again(message, what, () if came >= message.qos else ((report_id,),))
            return
        if report_id is not None:
            self._ids[report_id] = message.qos
            if len(self._ids) > REPORT_IDS_KEPT:
                del self._ids[next(iter(self._ids))]
        if isinstance(what, Connection):
            self._say(message, what)
        else:
            self._report(message, what)

    def _again(self, message: Received, what: Said, names: tuple[_Name, ...]) -> None:
        """An id came again: of a report that is a sign of life, and says nothing.

        Args:
            message: the one that says it.
            what: what it says.
            names: what it stands for beside that, as the first one is not sent again.
        """
        if isinstance(what, Reported) and (not what.retained or self.reported is None):
            self._report(message, replace(what, values={}, job_ids=()), names, again=True)
        elif isinstance(what, Connection) and self.is_empty and names:
            self._say(message, what)
        else:
            self._place(message, what, names)

    def _report(
        self, message: Received, report: Reported, names: tuple[_Name, ...] = (), *, again: bool = False
    ) -> None:
        said = report
        if again and self.reported is not None:
            # It is known, and all that was merged must not be taken for it.
            report = replace(report, report_id=None)
        if self.connection is not None and not report.retained:  # it is heard of, whatever was said before
            before_ids = (*self.connection.ids, *report.earlier_ids)
            report = replace(report, superseded=self.connection.superseded + 1, earlier_ids=before_ids)
            self.connection = None
            self._clear(_WORD, message.qos)
        before = self.reported
        self.reported = report if before is None else _merged(before, report)
        is_older = before is not None and _is_older(report, before)
        self._place(message, said, (_HEARD_OF, *report.values, *names), is_older=is_older)

    def _say(self, message: Received, word: Connection) -> None:
        before = self.connection
        if before is not None and word.retained and not before.retained:
            self._end(message)  # what the broker had kept is older
            ids = (*word.ids, *before.earlier_ids)[-REPORT_IDS_KEPT:]
            self.connection = replace(before, superseded=before.superseded + 1, earlier_ids=ids)
            return
        if before is not None:
            ids = before.ids[-REPORT_IDS_KEPT:]
            word = replace(word, superseded=before.superseded + 1, earlier_ids=ids)
        self.connection = word
        self._place(message, word, (_WORD,))

    def _place(
        self, message: Received, said: Said, names: Iterable[_Name], *, is_older: bool = False
    ) -> None:
        place = self._places[message] = _Place(said)
        for name in names:
            if not is_older:
                self._clear(name, message.qos)
            if self._newest.setdefault((name, message.qos), message) is message:
                place.names += 1
        if not place.names:
            self._end(message)

    def _clear(self, name: _Name, qos: int) -> None:
        """Let a newer message of this QoS take the place of what was said before."""
        for lower in range(qos + 1):
            before = self._newest.pop((name, lower), None)
            if before is not None:
                place = self._places[before]
                place.names -= 1
                if not place.names:
                    self._end(before)

    def _end(self, superseded: Received) -> None:
        self._places.pop(superseded, None)
        if superseded.qos:
            superseded.ack()
            self.let_go.append(superseded.key)
            self._all_let_go.append(self.let_go)
            if len(self._all_let_go) > LET_GO:
                self._all_let_go.popleft().popleft()


def _is_older(later: Reported, before: Reported) -> bool:
    """Whether what comes later was said before: the broker had kept it."""
    return later.retained and not before.retained


def _merged(before: Reported, later: Reported) -> Reported:
    """Two reports in one; what the broker kept is older than what came as it was sent."""
    first, last = (later, before) if _is_older(later, before) else (before, later)
    return Reported(
        {**first.values, **last.values},
        last.report_id,
        tuple(dict.fromkeys((*first.job_ids, *last.job_ids)))[-REPORT_IDS_KEPT:],
        superseded=before.superseded + later.superseded + 1,
        earlier_ids=(
            *first.earlier_ids,
            *(() if first.report_id is None else (first.report_id,)),
            *last.earlier_ids,
        )[-REPORT_IDS_KEPT:],
        retained=last.retained,
    )


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(slots=True)
class Rates:
    """The buckets of all devices, by what names them.

    Attributes:
        per_s: reports, and words of its connection, a second, of each; 0 is any number.
        held: what waits.
    """

    per_s: float
    held: dict[Who, Held] = field(default_factory=dict)
    _buckets: dict[Who, _Bucket] = field(default_factory=dict)
    _most: int = 0
    _let_go: deque[deque[Key]] = field(default_factory=deque)

    def is_short(self, who: Who, messages: int, now: float) -> bool:
        """Whether one of so many messages that a device sent would be held now."""
        if not self.per_s:
            return False
        bucket = self._buckets.get(who)
        tokens = self._burst if bucket is None else self._tokens(bucket, now)
        return who in self.held or tokens < messages

    def admit(self, who: Who, message: Received, what: Said, now: float, known: int | None = None) -> bool:
        """Whether it may have its effect now; else it is held.

        Args:
            who: the device.
            message: the one that says it.
            what: what it says.
            now: of the monotonic clock, seconds.
            known: see `Held.add`.
        """
        waiting = self.held.get(who)
        if waiting is None:
            if self._take(who, now):
                return True
            waiting = self.held[who] = Held(_all_let_go=self._let_go)
        waiting.add(message, what, known)
        if waiting.is_empty:
            del self.held[who]
        return False

    def came_before(self, who: Who, message: Received) -> bool:
        """Whether the broker brings again what waits, or what something that waits stands for."""
        waiting = self.held.get(who)
        return waiting is not None and waiting.came_before(message)

    def due(self, now: float) -> Iterator[tuple[Who, Held]]:
        """Those that have got their token."""
        for who in [who for who, held in self.held.items() if held.is_too_much or self._take(who, now)]:
            yield who, self.held.pop(who)

    def wait_s(self) -> float | None:
        """When to look for those that are due; None while nothing is held."""
        return 1 / self.per_s if self.held else None

    def _take(self, who: Who, now: float) -> bool:
        if not self.per_s:
            return True
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= max(_MOST, self._most):
                self._forget_full(now)
            bucket = self._buckets[who] = _Bucket(self._burst, now)
        bucket.tokens, bucket.at = self._tokens(bucket, now), now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    @property
    def _burst(self) -> float:
        return max(1.0, self.per_s * BURST_S)

    def _tokens(self, bucket: _Bucket, now: float) -> float:
        return min(self._burst, bucket.tokens + (now - bucket.at) * self.per_s)

    def _forget_full(self, now: float) -> None:
        """Forget the buckets that are full again: anybody may make up names."""
        full_after_s = max(BURST_S, 1 / self.per_s)
        self._buckets = {
            who: bucket for who, bucket in self._buckets.items() if now - bucket.at < full_after_s
        }
        self._most = 2 * len(self._buckets)  # not at each new name, when there are many at once

"""Takes what devices send over MQTT, in order and in batches, and acknowledges it once its effect is on disk.

Who speaks is the thing in the topic: the broker's access list lets a device publish under its own
name only. What can have no effect is logged, counted (`tally`) and acknowledged, never raised into the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import LeaseLost, RequestError, StorageFull, StoreUnavailable
from iotjobs.domain.payloads import RESULT_LIMIT_BYTES, check_payload
from iotjobs.engine.answers import take_word
from iotjobs.engine.happenings import Happening
from iotjobs.engine.leases import Standing
from iotjobs.engine.rates import Held, Rates, Said, Who
from iotjobs.engine.reactions import Reactions, Turn
from iotjobs.engine.reports import (
    in_words,
    read_ingested,
    read_payload,
    read_report,
    read_shadow,
    read_status,
)
from iotjobs.engine.settle import STORE_RETRY_S, Settler
from iotjobs.engine.tally import Tally
from iotjobs.store import entities, standings, unheeded
from iotjobs.store.session import Store
from iotjobs.store.taken import Key, Taken
from iotjobs.store.unheeded import Unheeded
from iotjobs.store.writer import Transaction
from iotjobs.transports.ingest_rules import IngestRule
from iotjobs.transports.mqtt_messages import Received
from iotjobs.transports.topics import DeviceTopic, TopicKind, parse_topic, speaker

log = logging.getLogger(__name__)

# What may wait here: 64 MB at most, of a device that floods us.
INBOX_MESSAGES = 1000
STUCK_S = 1.5  # as a rule a commit takes some milliseconds
BATCH_MESSAGES = 64  # their effects hold the loop for some hundredths of a second
LINES_A_SECOND = 50
SLICE_S = 0.003  # other work of the loop waits so long for what is read here; the worst message takes as long


@dataclass(slots=True)
class _Heard:
    """A message that was read.

    Attributes:
        who: `thing` or `external_id`, and its value.
        effect: what it does, given the id of that object.
        earlier: messages whose values are among its own, or that say what one of this batch says.
        let_go: keys of messages that are acknowledged already, for it stands for them.
        count: how many messages it is, with all that it stands for.
        settled: it was given its effect, or has none.
    """

    message: Received
    who: tuple[str, str]
    effect: Callable[[Transaction, Turn, str], object]
    earlier: list[Received] = field(default_factory=list)
    let_go: Sequence[Key] = ()
    count: int = 1
    settled: bool = False

    @property
    def keys(self) -> Iterator[Key]:
        """Those of all messages that are done with it."""
        yield from self.let_go
        for message in (*self.earlier, self.message):
            yield message.key


# Who speaks and what it says; what it does; why that is nothing; or None, for it is nothing.
_Read: TypeAlias = tuple[Who, Said] | _Heard | str | None
_Known: TypeAlias = dict[tuple[Who, str], int]  # ids of reports that came before, and the QoS


class DeviceMessages:
    """The inbox of all devices.

    `receive` is the consumer's handler; `start` begins the loop that works through what came.
    The consumer's Receive Maximum and our own bound for QoS 0 limit what can pile up here.

    Args:
        store: where effects go.
        settler: ends jobs that wait for an answer.
        reactions: what reports lead to.
        standing: whether this node is the one that listens.
        reports_per_s: of one device; 0 is any number.
        ingest: topics of other makers, the first that fits is taken.
    """

    def __init__(
        self,
        store: Store,
        settler: Settler,
        reactions: Reactions,
        *,
        standing: Standing,
        reports_per_s: float,
        ingest: Sequence[IngestRule] = (),
    ) -> None:
        self._store, self._settler, self._reactions = store, settler, reactions
        self._standing = standing
        self._inbox: asyncio.Queue[Received] = asyncio.Queue()
        self._rates, self._ingest = Rates(reports_per_s), ingest
        self._taken, self._taking = Taken(), asyncio.Lock()
        self._unsure: Sequence[_Heard] = ()  # of a transaction that was not answered, and may be on disk
        self._writing_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._tally = Tally()
        self._second, self._told = 0.0, 0
        self.dropped = self.repeated = 0

    def receive(self, message: Received) -> None:
        """Take a message from the consumer; it is acknowledged once its effect is on disk.

        QoS 0 beyond what we hold has no effect: the broker's Receive Maximum bounds QoS 1 only. Of what is
        too large no more is held than tells that.
        """
        if message.qos == 0 and self._inbox.qsize() >= INBOX_MESSAGES:
            self._drop(message, "too many at once with QoS 0")
        else:
            message.payload = message.payload[: RESULT_LIMIT_BYTES + 1]
            self._inbox.put_nowait(message)

    def _drop(self, message: Received, why: str, count: int = 1) -> None:
        """Count what has no effect, and tell the log, but not as often as a flood comes."""
        self.dropped += count
        who = self._who_says(message)
        if who is not None:
            self._tally.refuse(who, message.topic, why, count)
        if clock.monotonic() >= self._second + 1:
            self._second, self._told = clock.monotonic(), 0
        self._told += 1
        if self._told <= LINES_A_SECOND:
            facts = {"topic": message.topic[:200], "why": why[:200], "dropped": self.dropped}
            log.warning("a device message has no effect", extra=facts)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return self._inbox.empty()

    @property
    def is_stuck(self) -> bool:
        """Whether what was taken has waited for its commit for long: a row of one job may be locked by a frozen node."""
        if self._task is not None and self._task.done():  # by a fault of ours, or until it begins anew
            return True
        return self._writing_since is not None and clock.monotonic() - self._writing_since > STUCK_S

    async def start(self) -> None:
        """Begin; a second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop(), name="device messages")

    async def stop(self) -> None:
        """End; what was not acknowledged comes again from the broker."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._inbox, self._writing_since = asyncio.Queue(), None
        self._rates.held.clear()

    async def new_session(self) -> None:
        """The broker knows nothing of what it sent before; to be called before anything comes of the new session."""
        await self._until_taken(self._taken.clear)

    async def _until_taken(self, item: Callable[[Transaction], None]) -> None:
        while True:
            try:
                async with self._taking:
                    await self._store.write(item, reserved=True)
                return
            except (StoreUnavailable, StorageFull):
                await clock.sleep(STORE_RETRY_S)

    async def _loop(self) -> None:
        await self._until_taken(lambda tx: self._taken.load(tx.conn))
        while True:
            self._writing_since = None
            batch = await self._next_batch()
            self._writing_since = clock.monotonic()
            try:
                while not await self._commit(batch):
                    await clock.sleep(STORE_RETRY_S)
            except LeaseLost:
                # Not acknowledged: it comes to the node that took over, or here on a new connection (`ingest`). What
                # came behind it must not be taken before it.
                return
            for heard in batch:
                for message in (*heard.earlier, heard.message):
                    message.ack()
            await self._reactions.parts.at_once.breathe()

    # --- reading --------------------------------------------------------------------------

    async def _next_batch(self) -> list[_Heard]:
        """What has come, in its order; waits for something. Nothing when there is only something to count."""
        batch: list[_Heard] = []
        done: dict[Key, _Heard] = {}
        slice_ends = 0.0
        while not batch and self._tally.wait_s() != 0:
            goes_on = not self._inbox.empty()
            try:
                async with asyncio.timeout(self._wait_s()):
                    messages = [await self._inbox.get()]
            except TimeoutError:
                messages = []
            while not self._inbox.empty() and len(messages) < BATCH_MESSAGES:
                messages.append(self._inbox.get_nowait())
            if not goes_on:
                slice_ends = clock.monotonic() + SLICE_S
            read: list[tuple[Received, _Read]] = []
            for message in messages:
                if clock.monotonic() >= slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = clock.monotonic() + SLICE_S
                read.append((message, self._read(message)))
            known = await self._known_among([what for _, what in read])
            now = clock.monotonic()
            for who, held in self._rates.due(now):
                batch += _held(who, held)
                known.update(((who, one), qos) for one, qos in held.ids.items() if (who, one) not in known)
            done.update((key, heard) for heard in batch for key in heard.keys)
            for message, what in read:
                if clock.monotonic() >= slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = clock.monotonic() + SLICE_S
                if not self._came_before(message, done):
                    more = self._heard(message, what, known, now)
                    batch += more
                    done.update((key, heard) for heard in more for key in heard.keys)
        return batch

    async def _known_among(self, read: Sequence[_Read]) -> _Known:
        """Which ids came before, of those that may have to wait: what waits tells of no other."""
        told = [one for one in read if isinstance(one, tuple)]
        if not any(what.report_id for _, what in told):
            return {}
        counts, now = Counter(who for who, _ in told), clock.monotonic()
        short = {who for who, count in counts.items() if self._rates.is_short(who, count, now)}
        wanted = {(who, what.report_id) for who, what in told if what.report_id and who in short}
        while wanted:
            try:
                return await self._store.read(lambda conn: _came(conn, wanted))
            except (StoreUnavailable, StorageFull):
                await clock.sleep(STORE_RETRY_S)
            except Exception:
                devices = sorted({name for (_, name), _ in wanted})[:5]
                log.exception("ids could not be looked up: they pass for new", extra={"devices": devices})
                break
        return {}

    def _wait_s(self) -> float | None:
        waits = [wait for wait in (self._rates.wait_s(), self._tally.wait_s()) if wait is not None]
        return min(waits, default=None)

    def _came_before(self, message: Received, done: Mapping[Key, _Heard]) -> bool:
        """Whether the broker brings again what was taken, or what is about to be: it has its effect once."""
        if not message.duplicate:
            self._taken.free(message.mid)
            return False
        before = done.get(message.key)
        if before is not None:
            before.earlier.append(message)
        elif self._taken.holds(message.key):
            message.ack()
        else:
            return False
        self._count_repeated(message)
        return True

    def _count_repeated(self, message: Received) -> None:
        self.repeated += 1
        who = self._who_says(message)
        if who is not None:
            self._tally.repeat(who)
        log.debug("the broker brought a message again", extra={"topic": message.topic[:200]})

    def _read(self, message: Received) -> _Read:
        """Who speaks, and what it says; or what it does; or why that is nothing. Changes nothing."""
        try:
            if len(message.payload) > RESULT_LIMIT_BYTES:
                raise ValueError(f"more than {RESULT_LIMIT_BYTES} bytes")
            topic = parse_topic(message.topic)
            if topic is None:
                who, what = self._ingested(message)
            elif topic.job_id is not None:
                return self._word(message, topic)
            else:
                who, what = ("thing", topic.thing), _said(message, topic.kind)
        except (ValueError, RecursionError, RequestError) as error:
            return in_words(error)  # what a device sends wrong must not stop the others
        if what is None:
            return None
        return who, replace(what, retained=True) if message.retain else what

    def _heard(self, message: Received, read: _Read, known: _Known, now: float) -> list[_Heard]:
        """What a message does; nothing when it has to wait."""
        if isinstance(read, _Heard):
            return [read]
        if not isinstance(read, tuple):
            if read is not None:
                self._drop(message, read)
            message.ack()
            return []
        who, what = read
        if message.duplicate and self._rates.came_before(who, message):
            self._count_repeated(message)
            return []
        came = None if what.report_id is None else known.get((who, what.report_id))
        if not self._rates.admit(who, message, what, now, came):
            return []
        if what.report_id is not None and came is None:
            known[who, what.report_id] = message.qos
        return [_happening([message], who, what)]

    def _who_says(self, message: Received) -> Who | None:
        """Whom a message is of, whatever it says; None where its topic names nobody."""
        thing = speaker(message.topic)
        if thing is not None:
            return "thing", thing
        matches = (rule.match(message.topic) for rule in self._ingest)
        return next((match.who for match in matches if match is not None), None)

    def _ingested(self, message: Received) -> tuple[Who, Said | None]:
        for rule in self._ingest:
            match = rule.match(message.topic)
            if match is not None:
                if rule.ignore:
                    return match.who, None
                if rule.words:
                    return match.who, read_status(message, rule.words)
                return match.who, read_ingested(message, match.name, rule.prefix)
        raise ValueError("the topic is not one of ours")

    def _word(self, message: Received, topic: DeviceTopic) -> _Heard:
        payload = check_payload(read_payload(message.payload))

        def effect(tx: Transaction, _turn: Turn, object_id: str) -> None:
            take_word(tx, self._settler, topic, object_id, payload, retained=message.retain)

        return _Heard(message, ("thing", topic.thing), effect)

    # --- writing --------------------------------------------------------------------------

    async def _commit(self, batch: Sequence[_Heard]) -> bool:
        """Give a batch its effects in one transaction; False when the store cannot take it now."""
        try:
            try:
                await self._write(batch, self._tally.take())
            except (StoreUnavailable, StorageFull, LeaseLost):
                raise
            except Exception as error:  # noqa: BLE001 - the edge of one batch: it is told by the one that fails
                log.warning("messages are taken one by one", extra={"count": len(batch), "why": repr(error)})
                for heard in batch:
                    await self._write_alone(heard)
        except (StoreUnavailable, StorageFull):
            log.warning("the store cannot take device messages", extra={"count": len(batch)})
            return False
        return True

    async def _write_alone(self, heard: _Heard) -> None:
        try:
            await self._write([heard], {})
        except (StoreUnavailable, StorageFull, LeaseLost):
            raise
        except Exception:
            heard.settled = True
            self._drop(heard.message, "it failed in us: the server's log has the error", heard.count)
            log.exception("a device message failed in us", extra={"topic": heard.message.topic[:200]})

    async def _write(self, batch: Sequence[_Heard], counted: Mapping[Who, Unheeded]) -> None:
        refused = await self._store.write(lambda tx: self._apply(tx, batch, counted))
        self._tally.written(counted)
        for heard, why in refused:
            self._drop(heard.message, why, heard.count)
        self._unsure = ()
        for heard in batch:
            heard.settled = True

    def _apply(
        self, tx: Transaction, batch: Sequence[_Heard], counted: Mapping[Who, Unheeded]
    ) -> list[tuple[_Heard, str]]:
        """Give each its effect, and keep what was counted; those that have none, and why."""
        self._standing.check(tx)
        if self._unsure and self._taken.unheard(tx.conn):
            for heard in self._unsure:
                heard.settled = True
        self._unsure = [heard for heard in batch if not heard.settled]
        refused = []
        turn = self._reactions.turn(tx)
        objects = entities.objects_of(tx.conn, {heard.who for heard in batch} | counted.keys())
        standings.lock(tx, OwnerType.OBJECT, objects.values())
        turn.read_ahead(objects[heard.who] for heard in batch if heard.who in objects)
        for heard in self._unsure:
            try:
                object_id = objects.get(heard.who)
                if object_id is None:
                    kind, name = heard.who
                    raise ValueError(f"no object has the {kind.replace('_', ' ')} {name}")
                heard.effect(tx, turn, object_id)
            except (ValueError, RequestError) as error:
                refused.append((heard, str(error)))
        turn.finish()
        unheeded.add(tx, [(objects[who], more) for who, more in counted.items() if who in objects])
        if self._unsure:
            self._taken.add(tx, (key for heard in self._unsure for key in heard.keys))
        return refused


def _came(conn: Connection, wanted: Iterable[tuple[Who, str]]) -> _Known:
    """Of what is on disk nobody has to say again what came with a lower QoS."""
    objects = entities.objects_of(conn, {who for who, _ in wanted})
    came = standings.known_reports(conn, objects.values(), {one for _, one in wanted})
    return {(who, one): 2 for who, one in wanted if (objects.get(who), one) in came}


def _said(message: Received, kind: TopicKind) -> Said | None:
    match kind:
        case TopicKind.STATUS:
            return read_status(message)
        case TopicKind.SHADOW:
            return read_shadow(message)
    return read_report(message)


def _happening(messages: Sequence[Received], who: Who, what: Said) -> _Heard:
    def effect(_tx: Transaction, turn: Turn, object_id: str) -> None:
        turn.take(Happening(OwnerType.OBJECT, object_id, what))

    return _Heard(messages[-1], who, effect, list(messages[:-1]), count=1 + what.superseded)


def _held(who: Who, held: Held) -> list[_Heard]:
    """Those of what waited. What came too quickly is done with the first: the others come after it in any case."""
    found = [_happening(messages, who, what) for messages, what in held.parts]
    found[0].let_go = tuple(held.let_go)
    return found

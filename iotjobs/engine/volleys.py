"""Messages that one transaction began: they leave one behind the other, and those that the broker takes end together.

A task, a deadline and a write of its own cost more than a message, so each is spared them as long as the
broker's plain word comes soon. Everything else (a cancel, a cut connection, a refusal, nobody who has
subscribed, a broker that takes its time) goes on alone, from where it stands, as every other attempt does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from iotjobs.domain.errors import IotJobsError
from iotjobs.engine.publishing import Publishing, taken_plainly
from iotjobs.engine.sending import Begun, Sending
from iotjobs.engine.settle import Settler
from iotjobs.transports.mqtt import Acknowledged

log = logging.getLogger(__name__)

PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was handed over, and what the broker will say."""

    begun: Begun
    sending: Sending
    answer: Acknowledged


class Volley:
    """Sends and ends messages; used once.

    Args:
        publishing: the way to the broker.
        settler: ends those that it took.
        sending: the step before the first byte of one.
        alone: runs an attempt to its end, also one whose message was handed over.
        asked: jobs whose attempts are to be ended.
    """

    def __init__(
        self,
        publishing: Publishing,
        settler: Settler,
        *,
        sending: Callable[[Begun], Sending],
        alone: Callable[[Begun, Sent | None], Awaitable[None]],
        asked: Collection[str],
    ) -> None:
        self._publishing, self._settler = publishing, settler
        self._sending, self._run_alone, self._asked = sending, alone, asked
        self._open: dict[str, Sent] = {}
        self._answered: list[Sent] = []
        self._news = asyncio.Event()
        self._all_sent = self._is_slow = False

    def stir(self) -> None:
        """One of `asked` may be among those that were sent."""
        self._news.set()

    async def run(self, messages: Sequence[Begun]) -> None:
        """Send them and end them."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._end_all(), name="ends of messages")
            for begun in messages:
                await self._send(begun)
            self._all_sent = True
            self._news.set()

    async def _send(self, begun: Begun) -> None:
        job_id = begun.job.id
        if self._is_slow or job_id in self._asked or begun.plan.timeout_s <= PATIENCE_S:
            self._go_alone(begun)
            return
        sending = self._sending(begun)
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await self._publishing.hand_over(begun.job, begun.plan, sending.before_send)
        except TimeoutError:
            self._is_slow = True
            self._go_alone(begun)
        except Exception as error:  # noqa: BLE001 - nothing has left: its record tells what it meets again when alone
            log.warning("a message goes alone", extra={"job_id": job_id, "why": repr(error)})
            self._go_alone(begun)
        else:
            self._open[job_id] = Sent(begun, sending, answer)
            answer.add_done_callback(partial(self._came, job_id))

    def _came(self, job_id: str, _answer: Acknowledged) -> None:
        sent = self._open.pop(job_id, None)
        if sent is not None:
            self._answered.append(sent)
            self._news.set()

    def _go_alone(self, begun: Begun, sent: Sent | None = None) -> None:
        self._open.pop(begun.job.id, None)
        self._group.create_task(self._alone(begun, sent), name=f"job {begun.job.id}")

    async def _alone(self, begun: Begun, sent: Sent | None) -> None:
        try:
            await self._run_alone(begun, sent)
        except IotJobsError as error:
            log.info("its end came first", extra={"job_id": begun.job.id, "why": str(error)})

    async def _end_all(self) -> None:
        while self._open or self._answered or not self._all_sent:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._news.wait()
            except TimeoutError:
                leaving = list(self._open.values())
            else:
                leaving = [self._open[job_id] for job_id in self._asked if job_id in self._open]
            self._news.clear()
            for sent in leaving:
                self._go_alone(sent.begun, sent)
            answered, self._answered = self._answered, []
            taken = []
            for sent in answered:
                if taken_plainly(sent.answer):
                    taken.append(sent)
                else:
                    self._go_alone(sent.begun, sent)
            await self._end(taken)

    async def _end(self, taken: Sequence[Sent]) -> None:
        try:
            if taken:
                await self._settler.end_messages([sent.begun for sent in taken])
        except Exception as error:  # noqa: BLE001 - one of them is not as it was read: each finds out by itself
            log.warning("messages end alone", extra={"job_id": taken[0].begun.job.id, "why": repr(error)})
            for sent in taken:
                self._go_alone(sent.begun, sent)

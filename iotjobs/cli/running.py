"""`iotjobs run`: find objects or links and their operations, start a job for each at once, wait for the ends."""

from __future__ import annotations

import queue
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from iotjobs.client.errors import ClientError, NotFound, Unreachable
from iotjobs.client.http import Client
from iotjobs.client.shapes import Job, Named

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16  # calls under way
# Short jobs are told the moment they end; of long ones we know the id soon, for whoever presses Ctrl-C.
_FIRST_WAIT_S = 5.0
# Between two rounds of questions about the jobs that go on.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_PATIENCE_S = 15.0  # a server that is being restarted is asked again for so long
_ID = re.compile(r"[0-9a-f]{32}")
_FOLDERS = ("objects", "links")  # in the order in which a name is looked for


class Ambiguous(ValueError):
    """A name that several things have."""


@dataclass(frozen=True, slots=True)
class Order:
    """One job to be: an operation on an object or a link."""

    owner: Named
    operation: Named


@dataclass(frozen=True, slots=True)
class Request:
    """What every job of one command is started with.

    Attributes:
        wait_s: how long to wait for the ends: 0 not at all, None until they have come.
        key: the Idempotency-Key; the server knows it for each owner apart.
    """

    body: dict[str, Any]
    wait_s: float | None
    key: str


def fresh_key() -> str:
    """An Idempotency-Key for work that is asked for once."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Answer(Generic[T, R]):
    """What became of one call: a result or an error."""

    asked: T
    result: R | None = None
    error: ClientError | None = None


def find_owner(client: Client, wanted: str) -> Named:
    """The object of this name or id; where there is none the link.

    Raises:
        NotFound: there is neither.
        Ambiguous: several have the name.
    """
    if _ID.fullmatch(wanted):
        for folder in _FOLDERS:
            with suppress(NotFound):  # it may still be somebody's name
                return client.owner(folder, wanted)
    for folder in _FOLDERS:
        found = client.owners(folder, wanted)
        if len(found) > 1:
            ids = ", ".join(one.id for one in found)
            raise Ambiguous(f"{len(found)} {folder} are called {wanted}; say which by its id: {ids}")
        if found:
            return found[0]
    raise NotFound("notFound", 404, f"there is no object or link {wanted}")


def find_operation(client: Client, on: Named, wanted: str) -> Named:
    """The owner's operation of this name or id; one of its own comes before one of its class.

    Raises:
        NotFound: there is none.
    """
    known = client.operations(on)
    for operation in known:
        if wanted in (operation.name, operation.id):
            return operation
    names = ", ".join(sorted({operation.name for operation in known})) or "none"
    raise NotFound("notFound", 404, f"{on.name} has no operation {wanted}; it has: {names}")


def find_orders(client: Client, operation: str, owners: Iterable[str]) -> list[Order]:
    """Everything that is to be run, looked up before anything is started; an owner named twice is one.

    Raises:
        ClientError, Ambiguous: the first that went wrong.
    """

    def find(wanted: str) -> Order:
        found = find_owner(client, wanted)
        return Order(found, find_operation(client, found, operation))

    wanted = list(dict.fromkeys(owners))
    orders = {answer.asked: _given(answer) for answer in side_by_side(find, wanted)}
    by_id = {orders[name].owner.id: orders[name] for name in wanted}
    return list(by_id.values())


def _given(answer: Answer[T, R]) -> R:
    if answer.error is not None:
        raise answer.error
    assert answer.result is not None
    return answer.result


def start(client: Client, orders: Sequence[Order], request: Request) -> Iterator[Answer[Order, Job]]:
    """Start every job; the answers come as they arrive.

    The server waits with us for a moment, as long as no job has to wait for its start because of that.
    """
    wait_s = _FIRST_WAIT_S if request.wait_s is None else min(request.wait_s, _FIRST_WAIT_S)
    if len(orders) > AT_ONCE:
        wait_s = 0.0
    return side_by_side(lambda order: _execute(client, order, request, wait_s), orders)


def _execute(client: Client, order: Order, request: Request, wait_s: float) -> Job:
    """Start one job. When the answer got lost ask again, by the same key: it is the same job."""
    lost_at: float | None = None
    while True:
        try:
            return client.execute(
                order.owner, order.operation.id, request.body, wait_s=wait_s, key=request.key
            )
        except Unreachable as error:
            now = monotonic()
            if lost_at is None:
                if not error.maybe_done:
                    raise
                lost_at = now
            if now - lost_at > _PATIENCE_S:
                raise Unreachable(error.url, error.why, maybe_done=True) from error
            sleep(_LONGEST_PAUSE_S)


def follow(client: Client, jobs: Iterable[Job], until: float | None) -> Iterator[Answer[Job, Job]]:
    """Ask for jobs until each has ended; those that have not at the deadline come as they are.

    Args:
        client: the server.
        jobs: none of which has ended.
        until: a moment of `time.monotonic`, or None.
    """
    going, pause_s = list(jobs), _FIRST_PAUSE_S
    heard_at = monotonic()
    while going:
        left_s = pause_s if until is None else until - monotonic()
        if left_s > 0:
            sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        last, still = until is not None and monotonic() >= until, []
        for answer in side_by_side(lambda job: client.job(job.id), going):
            now = answer.result
            if isinstance(answer.error, Unreachable) and not last:
                if monotonic() - heard_at < _PATIENCE_S:
                    still.append(answer.asked)
                    continue
            elif answer.error is None:
                heard_at = monotonic()
            if now is not None and not now.ended and not last:
                still.append(now)
            else:
                yield answer
        going = still


def side_by_side(call: Callable[[T], R], inputs: Sequence[T]) -> Iterator[Answer[T, R]]:
    """Call for each input, several at once; the answers come as they arrive.

    The threads are daemons: Ctrl-C must not wait for a server that takes its time.

    Raises:
        Exception: what a call raised that is no `ClientError`.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[Answer[T, R] | Exception] = queue.SimpleQueue()
    for one in inputs:
        waiting.put(one)

    def work() -> None:
        while True:
            try:
                one = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answer: Answer[T, R] | Exception = Answer(one, call(one))
            except ClientError as error:
                answer = Answer(one, error=error)
            except Exception as error:  # noqa: BLE001 - raised again by whoever takes the answers
                answer = error
            done.put(answer)

    for _ in range(min(AT_ONCE, len(inputs))):
        threading.Thread(target=work, daemon=True).start()
    for _ in inputs:
        answer = done.get()
        if isinstance(answer, Exception):
            raise answer
        yield answer

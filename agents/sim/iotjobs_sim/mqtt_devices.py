"""Pretend devices on a broker: they take commands, count them by job, and answer as they are told.

All devices of a process share the running asyncio loop; a thousand of them cost one socket, one
task and about 60 kB each. They know the topics and the payloads of iotjobs and nothing else of it.

    python -m iotjobs_sim.mqtt_devices --port 1883 logins.txt

runs one for each line of the file (thing name, username and password, with blanks between).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

KEEPALIVE_S = 60
SESSION_EXPIRY_S = 3600
# A broker that comes back is met by all of its devices. Spread over so long, two hundred of them are some twenty
# connections a second, 50 at most, and 95 of 100 are back within ten seconds.
SPREAD_S = 9.0
REPORTS_KEPT = 1000
STARTS_PER_S = 40


class Behaviour(StrEnum):
    """What a device does with a command."""

    ANSWER = "answer"
    SILENT = "silent"
    REFUSE = "refuse"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class _Report:
    properties: dict[str, Any]
    pairs: tuple[tuple[str, str | None], ...]


class PretendDevice:
    """One device; keeps its session while it is away, and connects again by itself.

    Attributes:
        received: messages by job id; those without one count under the empty string.
        redelivered: those among them that the broker marked as possibly sent before.
        payloads: the last payload by job id.
        behaviour: may be changed at any time.
        result: a custom result that it appends to each job, or None.
        spread_s: after its connection was lost it connects again at a moment within so long, and where that fails,
            half as long to as long after each try.
    """

    def __init__(
        self,
        thing: str,
        host: str,
        port: int,
        username: str | None = None,
        password: str | None = None,
        *,
        behaviour: Behaviour = Behaviour.ANSWER,
        commands: str | None = None,
        answer_after_s: float = 1.0,
        error: str = "the valve is stuck",
        result: dict[str, Any] | None = None,
        spread_s: float = SPREAD_S,
    ) -> None:
        self.thing, self.behaviour, self.result, self.spread_s = thing, behaviour, result, spread_s
        self.received: Counter[str] = Counter()
        self.redelivered: Counter[str] = Counter()
        self.payloads: dict[str, bytes] = {}
        self._host, self._port, self._username, self._password = host, port, username, password
        self._commands = commands if commands is not None else f"iotjobs/{thing}/cmd/#"
        self._answer_after_s, self._error = answer_after_s, error
        self._client_id = f"pretend-{thing}-{random.getrandbits(64):016x}"
        self._client: mqtt.Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready, self._lost = asyncio.Event(), asyncio.Event()
        self._news = asyncio.Condition()
        self._news_told = False
        self._number = 0
        self._reports: dict[int, _Report] = {}  # which the broker has not acknowledged, in their order
        self._on_way: dict[int, int] = {}  # of this connection: the number of each, by its packet id
        self._later: set[asyncio.TimerHandle] = set()
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether it is connected and subscribed."""
        return self._ready.is_set()

    @property
    def unacknowledged(self) -> int:
        """How many reports with QoS 1 the broker has not acknowledged."""
        return len(self._reports)

    async def start(self, within_s: float = 10.0) -> None:
        """Connect and subscribe.

        Raises:
            TimeoutError: the broker did not let it in in time; it goes on trying.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"device {self.thing}")
        async with asyncio.timeout(within_s):
            await self._ready.wait()

    async def stop(self) -> None:
        """Go away; the broker keeps the session. Safe before `start` and twice."""
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait_for(self, condition: Callable[[], bool], within_s: float = 10.0) -> None:
        """Wait until `condition` holds; it is asked after each message.

        Raises:
            TimeoutError: it did not in time.
        """
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(condition)

    def report(
        self,
        properties: dict[str, Any],
        *,
        report_id: str | None = None,
        job_id: str | None = None,
        qos: int = 1,
    ) -> None:
        """Send a report; `job_id`: of the command that led to it.

        With QoS 1 it is kept until the broker has acknowledged it, and sent again on the next connection; of these
        the last `REPORTS_KEPT`. One that may come twice so is known by its id.
        """
        pairs = (("report-id", report_id), ("job-id", job_id))
        if not qos:
            self._publish(f"iotjobs/{self.thing}/report", properties, pairs, qos=qos)
            return
        self._number += 1
        self._reports[self._number] = _Report(properties, pairs)
        while len(self._reports) > REPORTS_KEPT:
            del self._reports[next(iter(self._reports))]
        self._send(self._number)

    def _send(self, number: int) -> None:
        report = self._reports[number]
        sent = self._publish(f"iotjobs/{self.thing}/report", report.properties, report.pairs)
        if sent is not None:
            self._on_way[sent.mid] = number

    def _acknowledged(self, _client: mqtt.Client, _data: object, mid: int, *_: object) -> None:
        number = self._on_way.pop(mid, None)
        if number is not None:
            self._reports.pop(number, None)

    def append_result(self, job_id: str, payload: dict[str, Any]) -> None:
        """Append a custom result to a job."""
        self._publish(f"iotjobs/{self.thing}/jobs/{job_id}/results", payload, (("job-id", job_id),))

    # --- what it does with a command ----------------------------------------------------------

    def _took(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        said = vars(message.properties)
        job_id = next((value for name, value in said.get("UserProperty", ()) if name == "job-id"), "")
        self.received[job_id] += 1
        if message.dup:
            self.redelivered[job_id] += 1
        self.payloads[job_id] = bytes(message.payload)
        self._tell_news()
        if self.result is not None and job_id:
            self.append_result(job_id, self.result)
        response_topic = said.get("ResponseTopic")
        if response_topic is None:
            return
        answer: dict[str, Any] = {"ok": True, "thing": self.thing, "jobId": job_id}
        match self.behaviour:
            case Behaviour.SILENT:
                return
            case Behaviour.REFUSE:
                answer = {"ok": False, "error": self._error}
            case Behaviour.ANSWER | Behaviour.SLOW:
                pass
        delay = self._answer_after_s if self.behaviour is Behaviour.SLOW else 0
        self._after(delay, lambda: self._answer(response_topic, answer, job_id, said.get("CorrelationData")))

    def _answer(self, topic: str, answer: dict[str, Any], job_id: str, correlation: bytes | None) -> None:
        self._publish(topic, answer, (("job-id", job_id),), correlation=correlation)

    def _after(self, delay: float, call: Callable[[], None]) -> None:
        if not delay:
            call()
            return
        timer: asyncio.TimerHandle

        def due() -> None:
            self._later.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(delay, due)
        self._later.add(timer)

    def _publish(
        self,
        topic: str,
        payload: dict[str, Any],
        pairs: tuple[tuple[str, str | None], ...] = (),
        *,
        correlation: bytes | None = None,
        qos: int = 1,
    ) -> mqtt.MQTTMessageInfo | None:
        if self._client is None or not self._ready.is_set():
            return None
        properties = _properties(PacketTypes.PUBLISH)
        for name, value in pairs:
            if value:
                properties.UserProperty = (name, value)
        if correlation is not None:
            properties.CorrelationData = correlation
        return self._client.publish(topic, json.dumps(payload).encode(), qos, properties=properties)

    def _tell_news(self) -> None:
        if self._news_told:
            return
        self._news_told = True  # one wake-up for all messages of a turn
        task = asyncio.get_running_loop().create_task(self._notify())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _notify(self) -> None:
        async with self._news:
            self._news_told = False
            self._news.notify_all()

    # --- the connection -----------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            client = self._make_client()
            try:
                await self._connect(client)
                while not self._lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(KEEPALIVE_S / 4):
                            await self._lost.wait()
                    client.loop_misc()
            except OSError:
                pass
            finally:
                was_ready = self._ready.is_set()
                self._client = None
                self._ready.clear()
                client.disconnect()
                client.loop_write()
                client._sock_close()
            await asyncio.sleep(self.spread_s * random.uniform(0.0 if was_ready else 0.5, 1.0))

    async def _connect(self, client: mqtt.Client) -> None:
        self._lost.clear()
        connecting = asyncio.ensure_future(asyncio.to_thread(client.reconnect))
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # The thread goes on and may open a socket after we have left.
            connecting.add_done_callback(lambda _: client._sock_close())
            raise
        self._watch(client)
        self._client = client

    def _make_client(self) -> mqtt.Client:
        # A new one each time: paho sends unacknowledged answers again on the same one.
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.username_pw_set(self._username, self._password)
        client.on_connect, client.on_subscribe = self._let_in, self._subscribed
        client.on_message, client.on_disconnect = self._took, lambda *_: self._lost.set()
        client.on_publish = self._acknowledged
        self._on_way.clear()
        client.on_socket_close = self._closed
        client.on_socket_register_write = lambda *_: None  # nothing to watch before `_watch`
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        client.connect_async(
            self._host, self._port, keepalive=KEEPALIVE_S, clean_start=False, properties=properties
        )
        return client

    def _watch(self, client: mqtt.Client) -> None:
        loop = asyncio.get_running_loop()
        connection = cast(socket.socket, client.socket())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def flush() -> None:
            client.loop_write()
            if client.socket() is None:
                return
            if client.want_write():
                loop.add_writer(connection.fileno(), flush)
            else:
                loop.remove_writer(connection.fileno())

        client.on_socket_register_write = lambda *_: cast(None, loop.call_soon(flush))
        loop.add_reader(connection.fileno(), client.loop_read)
        flush()

    def _closed(self, _client: mqtt.Client, _data: object, closing: mqtt.SocketLike) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(closing.fileno())
        loop.remove_writer(closing.fileno())
        self._lost.set()

    def _let_in(
        self, client: mqtt.Client, _data: object, _flags: mqtt.ConnectFlags, reason: Any, _properties: object
    ) -> None:
        if not reason.is_failure:
            client.subscribe(self._commands, qos=1)

    def _subscribed(self, *_: object) -> None:
        self._ready.set()
        for number in list(self._reports):
            self._send(number)


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


async def run(devices: list[PretendDevice]) -> None:
    """Run devices until SIGINT or SIGTERM, then say what each received."""
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    starting = []
    for device in devices:  # not all at once
        starting.append(asyncio.ensure_future(device.start(within_s=60)))
        await asyncio.sleep(1 / STARTS_PER_S)
    await asyncio.gather(*starting)
    print(f"{len(devices)} devices are up", flush=True)
    await over.wait()
    await asyncio.gather(*(device.stop() for device in devices))
    for device in devices:
        print(f"{device.thing} {device.received.total()}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretend devices that take commands over MQTT.")
    parser.add_argument("logins", type=Path, help="a file with a line for each: thing, username, password")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    given = parser.parse_args()
    logins = [line.split() for line in given.logins.read_text().splitlines() if line.strip()]
    asyncio.run(
        run(
            [PretendDevice(thing, given.host, given.port, name, password) for thing, name, password in logins]
        )
    )


if __name__ == "__main__":
    main()

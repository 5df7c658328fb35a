"""Our own Mosquitto: its configuration, its child process, the people it lets in.

Used when no broker is configured. `BrokerProcess` keeps one `mosquitto` running, which ends when we
do, also by kill -9. `write_credentials` decides who may log in and what each may see: everyone below
`iotjobs/{thing}/` and `$aws/things/{thing}/`, and what the object itself names. `broker_files` has
the files' text.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

from iotjobs.domain.errors import BadRequest, ConfigurationError
from iotjobs.transports.broker_child import BrokerChild, find_mosquitto
from iotjobs.transports.broker_files import (
    Credential,
    Listener,
    acl_text,
    check_credentials,
    check_service_username,
    configuration_text,
    hash_password,
    is_reachable,
    password_text,
    replace_file,
)
from iotjobs.transports.mqtt_address import BrokerAddress
from iotjobs.transports.mqtt_messages import pack_varint

log = logging.getLogger(__name__)

_PORT_WAIT_S = 10.0  # a previous broker saves its store before it lets go of the port
_UP_WAIT_S = 20.0  # loading a large store
_POLL_S = 0.05
_CONNECT_S = 2.0
_SAVE_EVERY_S = 300.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 30.0
# What to connect to on this host where it listens on all addresses.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class BrokerProcess:
    """One Mosquitto of ours, kept running. Everything in the main thread's loop.

    Args:
        directory: its configuration, passwords, ACL and store; made, and closed to others.
        service_username: our own login, which may see everything; no possible thing name.
        service_password: ours; random for each start will do.
        bind: address to listen on.
        port: port to listen on.
        mosquitto_path: the program; None looks for the installed one.
        max_packet_bytes: the largest packet that a device may send.
        max_queued_bytes: what is kept for one absent or slow client; beyond it messages are dropped.
        autosave_changes: the store is saved after so many changes, and every five minutes besides
            (Mosquitto 2.0.11 has no timer for the rest). What a kill -9 of the broker or a power
            cut costs; our own end costs nothing. With 1 it costs what was acknowledged in one turn
            of its loop (tried: 1 of 100), but a save is of the whole store: with 1,000 devices
            1,000 commands and their answers took 5.6 s, with 100 changes 2.0 s.
    """

    def __init__(
        self,
        directory: Path,
        *,
        service_username: str,
        service_password: str,
        bind: str = "127.0.0.1",
        port: int = 1883,
        mosquitto_path: str | None = None,
        max_packet_bytes: int = 4 << 20,
        max_queued_bytes: int = 64 << 20,
        autosave_changes: int = 100,
    ) -> None:
        self._directory = directory
        self._service = check_service_username(service_username)
        self._service_password = service_password
        self._service_hash = hash_password(service_password)
        self._listener = Listener(bind, port, max_packet_bytes, max_queued_bytes, autosave_changes)
        self._mosquitto = mosquitto_path
        self._credentials: tuple[Credential, ...] = ()
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._child: BrokerChild | None = None
        self._lock_file: int | None = None
        self._up = asyncio.Event()

    def __repr__(self) -> str:
        return f"BrokerProcess({self.address})"

    @property
    def address(self) -> BrokerAddress:
        """Where our own connections go, with the service's login."""
        host = EVERYWHERE.get(self._listener.bind, self._listener.bind)
        return BrokerAddress(host, self._listener.port, self._service, self._service_password)

    def found_by(self, name: str | None) -> str:
        """The URL for devices: where it listens, or the name that somebody found this host by.

        That counts where it listens everywhere; without a name that others could use it is the host's own.
        """
        host = self._listener.bind
        if host in EVERYWHERE:
            host = name if name is not None and is_reachable(name) else socket.gethostname()
        return str(BrokerAddress(host, self._listener.port))

    @property
    def running(self) -> bool:
        """Whether the broker is up and lets us in."""
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        """The broker's process id, None while there is none."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start it and return once it lets us in; from then on it is restarted when it dies.

        Starting twice is starting once. Call it in the main thread: the kernel ends the child when
        the *thread* that made it ends.

        Raises:
            ConfigurationError: no such program, or it did not come up; says why.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start the broker from the main thread")
        async with self._starting:
            if self._task is not None:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            configuration = configuration_text(self._directory, self._listener, as_root=os.geteuid() == 0)
            replace_file(self._directory / "mosquitto.conf", configuration)
            self._write_access()
            try:
                self._child = await self._bring_up()
            except BaseException:
                self._release_directory()
                raise
            self._now_up()
            self._task = asyncio.create_task(self._supervise(), name="mosquitto")

    async def stop(self) -> None:
        """End the broker, which saves its store. Safe before `start` and twice."""
        async with self._starting:
            task, self._task = self._task, None
            if task is None:
                return
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            child, self._child = self._child, None
            if child is not None:
                await child.end()
            self._up.clear()
            self._release_directory()

    def write_credentials(self, credentials: Iterable[Credential]) -> None:
        """Replace who may log in and what each may see; takes effect at once, without a restart.

        The list is the whole: a thing that is not in it is thrown out. Before `start` it is kept
        for it. Writes two small files; `test_connect` tells when the broker has read them.

        Raises:
            BadRequest: a name, hash or topic that has no place in the broker's files; nothing was written.
        """
        checked = check_credentials(credentials, self._service)
        self._credentials = checked
        if self._task is not None or self._starting.locked():
            self._write_access()
            self._reload()

    async def test_connect(self, username: str, password: str, *, within_s: float = 5.0) -> bool:
        """Log in like a device until it succeeds; False when it did not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    if await self._lets_in(username, password):
                        return True
                    await asyncio.sleep(_POLL_S)
        return False

    # --- files --------------------------------------------------------------------------------

    def _write_access(self) -> None:
        replace_file(self._directory / "acl", acl_text(self._credentials, self._service))
        passwords = password_text(self._credentials, self._service, self._service_hash)
        replace_file(self._directory / "passwords", passwords)

    def _reload(self) -> None:
        # Before it is up the signal would end it; `_now_up` sends one more.
        if self._child is not None and self._up.is_set():
            self._child.signal(signal.SIGHUP)

    def _take_directory(self) -> bool:
        # The broker inherits this lock: whoever gets it knows that no earlier one is still saving its store.
        if self._lock_file is not None:
            return True
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock_file = descriptor
        return True

    def _release_directory(self) -> None:
        descriptor, self._lock_file = self._lock_file, None
        if descriptor is not None:
            os.close(descriptor)

    # --- process ------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        delay = _FIRST_DELAY_S
        while True:
            child = self._child
            if child is not None:
                status = await self._until_ended(child)
                self._up.clear()
                self._child = None
                log.error(
                    "mosquitto ended and is started again", extra={"status": status, "said": child.last_words}
                )
            await asyncio.sleep(delay)
            try:
                self._child = await self._bring_up()
            except (ConfigurationError, OSError) as error:
                delay = min(delay * 2, _LONGEST_DELAY_S)
                log.error("mosquitto does not start", extra={"why": str(error)})
            else:
                delay = _FIRST_DELAY_S
                self._now_up()

    async def _until_ended(self, child: BrokerChild) -> int:
        while True:
            try:
                async with asyncio.timeout(_SAVE_EVERY_S):
                    return await child.ended()
            except TimeoutError:
                child.signal(signal.SIGUSR1)  # save now

    def _now_up(self) -> None:
        self._up.set()
        self._reload()  # the files may have been replaced while it read them

    async def _bring_up(self) -> BrokerChild:
        """Start it once the port and the directory are free, and wait until it lets us in."""
        where = f"{self._listener.bind}:{self._listener.port}"
        try:
            async with asyncio.timeout(_PORT_WAIT_S):
                while True:
                    if self._take_directory() and self._port_is_free():
                        break
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise ConfigurationError(f"{where} or {self._directory} is taken by another process") from error
        program = self._mosquitto or find_mosquitto()
        if program is None:
            raise ConfigurationError("mosquitto is not installed: apt-get install mosquitto")
        child = BrokerChild(program, self._directory / "mosquitto.conf", keep_open=self._lock_file)
        try:
            async with asyncio.timeout(_UP_WAIT_S):
                # A foreign broker without passwords lets everyone in: ours does not.
                while not await self._lets_in(self._service, self._service_password) or await self._lets_in(
                    self._service, secrets.token_hex(16)
                ):
                    if child.has_ended:
                        raise ConfigurationError(f"mosquitto does not start on {where}: {child.last_words}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            await child.end()
            raise ConfigurationError(f"mosquitto does not answer on {where}: {child.last_words}") from error
        except BaseException:
            await child.end()
            raise
        log.info("mosquitto is up", extra={"where": where, "pid": child.pid})
        return child

    def _port_is_free(self) -> bool:
        problem = cannot_listen(self._listener.bind, self._listener.port)
        if isinstance(problem, PermissionError):
            raise ConfigurationError(f"port {self._listener.port} may not be opened: {problem}") from problem
        return problem is None

    async def _lets_in(self, username: str, password: str) -> bool:
        """Whether a CONNECT with these succeeds now (MQTT 5 §3.1; an empty client id takes over nobody's session)."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
                try:
                    writer.write(connect_packet(username, password))
                    answer = await reader.readexactly(4)
                    if answer[0] == 0x20 and answer[3] == 0:
                        writer.write(b"\xe0\x00")
                        return True
                    return False
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, EOFError):
            return False


def cannot_listen(host: str, port: int) -> OSError | None:
    """Why no program of ours could listen there now; None when it could."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probing:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probing.bind(address)
            probing.listen()
    except OSError as error:
        return error
    return None


def connect_packet(username: str, password: str) -> bytes:
    """An MQTT 5 CONNECT with a clean start, no client id and a login.

    Raises:
        BadRequest: longer than the packet can say.
    """
    login = username.encode(), password.encode()
    if any(len(part) > 65_535 for part in login):
        raise BadRequest("longer than 65535 bytes", field="password")
    body = b"\x00\x04MQTT\x05\xc2\x00\x0f\x00" + b"\x00\x00"
    body += b"".join(len(part).to_bytes(2) + part for part in login)
    return b"\x10" + pack_varint(len(body)) + body

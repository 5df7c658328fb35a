"""`iotjobs serve` and `iotjobs worker`: one process, from its first line to its clean end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import uvicorn

from iotjobs import __version__, logs
from iotjobs.app import Site
from iotjobs.domain.errors import ConfigurationError, StoreBroken
from iotjobs.settings import Settings

log = logging.getLogger(__name__)

# What an open HTTP exchange may still take after SIGTERM before it is cut.
HTTP_GRACE_S = 2
INTERRUPTED = 130
# A batch of reports makes some thousands of objects that live until its commit: no garbage to be looked for.
YOUNG_OBJECTS = 10_000


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the signals are ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second signal leaves at once.

    Raises:
        ConfigurationError: it could not be started; the message says why.
        StoreBroken: the disk has failed under it.
        AlreadyRunning: another process serves the same data.
    """
    _run(settings, _serve(settings))


def run_worker(settings: Settings) -> None:
    """Run jobs without serving HTTP until SIGTERM or SIGINT; otherwise as `run_server`."""
    _run(settings, _work(settings))


def _run(settings: Settings, main: Coroutine[None, None, None]) -> None:
    os.umask(0o077)  # what is in the data directory is nobody else's
    logs.configure(settings.log_level, settings.log_style)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where the extra `fast` is installed, else None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings) -> None:
    stopping = _stopping()
    listener = _listen(settings)
    site = Site(settings)
    try:
        if await _started(site, stopping):
            await _serve_http(site, listener, stopping)
    finally:
        listener.close()
        await _stop(site)


async def _work(settings: Settings) -> None:
    stopping = _stopping()
    site = Site(settings, with_api=False)
    try:
        if await _started(site, stopping):
            sys.stdout.write(f"iotjobs {__version__} worker\n  data   {settings.data_dir}\n")
            sys.stdout.flush()
            await stopping.wait()
    finally:
        await _stop(site)


async def _stop(site: Site) -> None:
    log.info("stopping")
    await site.stop()
    if site.disk_failed.is_set():
        raise StoreBroken("the disk did not keep what was written: look at it, then start again")


def _set_aside_what_stays() -> None:
    """Spare the garbage collector what was loaded at the start: searching it held the loop for 0.1 s each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def _stopping() -> asyncio.Event:
    """Set by the first signal; the second leaves at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _on_signal, stopping)
    return stopping


async def _started(site: Site, stopping: asyncio.Event) -> bool:
    """Start the site; False when a signal came first, and its start was given up."""
    starting = asyncio.create_task(site.start(), name="start")
    try:
        await _first(starting, stopping, site.disk_failed)
        if starting.done():
            await starting
            _set_aside_what_stays()
            return True
        return False
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def _serve_http(site: Site, listener: socket.socket, stopping: asyncio.Event) -> None:
    assert site.api is not None
    config = uvicorn.Config(
        site.api,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=HTTP_GRACE_S,
        server_header=False,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    _announce(site, listener)
    await _first(serving, stopping, site.disk_failed)
    site.let_go()
    server.should_exit = True
    await serving


async def _first(task: asyncio.Task[None], *reasons: asyncio.Event) -> None:
    """Wait until the task is done or there is a reason to stop."""
    waits = {asyncio.create_task(reason.wait(), name="reason to stop") for reason in reasons}
    await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _on_signal(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(INTERRUPTED)
    stopping.set()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted; without it the second part
    # of an answer waits 40 ms for the client's delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot bind {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
        ) from error
    listener.listen(2048)
    return listener


def _announce(site: Site, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    lines = [
        f"iotjobs {__version__}",
        f"  API    http://{host}:{port}/api/v1",
        f"  MQTT   {site.mqtt_url or 'none, see /readyz'}",
        f"  data   {site.settings.data_dir}",
    ]
    if site.admin_token is not None:
        lines.append(f"  admin's token, shown this once: {site.admin_token}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()

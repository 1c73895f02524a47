"""Run the application until a signal, then drain: answer what was accepted, save, exit 0."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from service.connection import KEEP_ALIVE_SECONDS, SPARE_CONNECTIONS, Connection, Served
from service.settings import Settings

log = logging.getLogger(__name__)

# Files, pipes and threads' sockets that are opened beside the connections.
SPARE_DESCRIPTORS = 32
# Of the time to end in, how much open connections get.
DRAIN_SHARE = 0.7
SAME_SIGNAL_SECONDS = 1.0


class Ending(Served, Protocol):
    """What a server that is told to end has to know besides, and to say.

    Attributes:
        draining: told: it is about to end, and ready for nothing new.
        stop_reason: told: why.
        saved: whether all that was to be kept has been, once it has ended.
    """

    ready: bool
    draining: bool
    stop_reason: str
    saved: bool

    @property
    def waiting_images(self) -> int: ...

    @property
    def unsaved_streams(self) -> int: ...

    def drain(self) -> None:
        """Take nothing more, and answer what was taken."""

    def reload_soon(self) -> None:
        """Load the model anew, or say why not."""


class Server(uvicorn.Server):
    """uvicorn with our end: the first signal drains, a later one ends at once; SIGHUP ends nothing.

    One that comes with the first is the same: supervisors signal a process and its group.

    uvicorn itself raises the signal again once it is done, so that a drained server would look
    as if it had been killed.
    """

    def __init__(self, config: uvicorn.Config, service: Callable[[], Ending | None]) -> None:
        super().__init__(config)
        self._service = service
        self._stop_at: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number.name)
        # Ignored under nohup, which has it that a closed terminal is nothing to us.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def _reload(self) -> None:
        service = self._service()
        if service is None or not service.ready:
            log.warning("SIGHUP loads nothing anew: the service is starting or shutting down.")
        else:
            service.reload_soon()

    def _stop(self, reason: str) -> None:
        service, now = self._service(), time.monotonic()
        if self._stop_at is not None:
            if now - self._stop_at >= SAME_SIGNAL_SECONDS:
                _end(service, f"second {reason}")
            return
        self._stop_at = now
        if service is None:
            self.should_exit = True
            return
        service.draining = True  # readiness tells; balancers have the delay to notice
        service.stop_reason = reason
        service.events.note("draining", reason=reason, waiting_images=service.waiting_images)
        loop = asyncio.get_running_loop()
        loop.call_later(service.settings.drain_delay, self._drain, service)
        # Past its time something hangs; waiting for the kill would not help it.
        total = service.settings.drain_delay + service.settings.drain_timeout
        loop.call_later(total, _end, service, f"not drained in {total:g} seconds")

    def _drain(self, service: Ending) -> None:
        service.drain()
        self.should_exit = True


def foreign_server_is_ending() -> bool:
    """Whether a uvicorn that serves an application around ours has been told to end.

    It waits for our readers, and says so to nobody; but the signal's handler is a method of its.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return isinstance(server, uvicorn.Server) and server.should_exit


def _end(service: Ending | None, reason: str) -> None:
    """End the process at once, saving no more."""
    if service is not None:
        unsaved = service.unsaved_streams
        service.events.note(
            "stopped",
            message=f"ended at once; what {unsaved} streams learned last is not saved",
            level=logging.ERROR,
            reason=reason,
            unsaved_streams=unsaved,
        )
    os._exit(1)


def bind(host: str, port: int) -> socket.socket:
    """Take the address; connections are refused until the service runs on it.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
        UnicodeError: the name is none.
    """
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    # A name for both kinds of address: clients of ours try the older one first.
    family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Else an answer's body waits 40 ms for the client to acknowledge its headers; asyncio sets this
    # only on sockets it made itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def most_connections(wanted: int) -> int:
    """How many connections may be open, at most `wanted`: the rest of the descriptors is ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = len(os.listdir("/proc/self/fd")) + SPARE_DESCRIPTORS + SPARE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted + ours:
        soft = wanted + ours if hard == resource.RLIM_INFINITY else min(hard, wanted + ours)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted + ours:
        return wanted
    fits = max(1, soft - ours)
    log.warning(
        f"{fits} connections are kept at a time, not {wanted}: the process may have {soft} files "
        "open (ulimit -n)."
    )
    return fits


def configure(app: ASGIApp, settings: Settings, service: Callable[[], Served]) -> uvicorn.Config:
    """Say how the application is served; `service` gives the running one, once it runs."""
    most = most_connections(settings.max_connections)
    return uvicorn.Config(
        app,
        http=partial(Connection, service=service, most=most),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Connections that linger must leave time for saving.
        timeout_graceful_shutdown=DRAIN_SHARE * settings.drain_timeout,  # type: ignore[arg-type]
    )


def run(
    app: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    service: Callable[[], Ending | None],
) -> bool:
    """Serve on a bound socket until a signal; return whether all went well to the end.

    Args:
        service: gives what runs behind `app`; None: it has not started.
    """

    def running() -> Ending:
        found = service()
        assert found is not None
        return found

    server = Server(configure(app, settings, running), service)
    server.run(sockets=[listener])
    ended = service()
    return server.started and ended is not None and ended.saved

"""Run the application until a signal, then drain: answer what was accepted, save, exit 0."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from service.routes.context import Service
from service.settings import Settings

# Above the idle time of common load balancers, so that they close connections, not we.
KEEP_ALIVE_SECONDS = 75
# Of the time to end in, how much open connections get.
DRAIN_SHARE = 0.7


class Server(uvicorn.Server):
    """uvicorn with our end: the first signal drains, a second one ends at once.

    uvicorn itself raises the signal again once it is done, so that a drained server would look
    as if it had been killed.
    """

    def __init__(self, config: uvicorn.Config, service: Callable[[], Service | None]) -> None:
        super().__init__(config)
        self._service = service
        self._stopping = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number.name)
        yield

    def _stop(self, reason: str) -> None:
        service = self._service()
        if self._stopping:
            _end(service, f"second {reason}")
        self._stopping = True
        if service is None:
            self.should_exit = True
            return
        service.draining = True  # readiness tells; balancers have the delay to notice
        service.stop_reason = reason
        service.engine.events.note(
            "draining", reason=reason, waiting_images=service.batcher.waiting_images
        )
        loop = asyncio.get_running_loop()
        loop.call_later(service.settings.drain_delay, self._drain, service)
        # Past its time something hangs; waiting for the kill would not help it.
        total = service.settings.drain_delay + service.settings.drain_timeout
        loop.call_later(total, _end, service, f"not drained in {total:g} seconds")

    def _drain(self, service: Service) -> None:
        service.batcher.drain()
        self.should_exit = True


def _end(service: Service | None, reason: str) -> None:
    """End the process at once, saving nothing."""
    if service is not None:
        service.engine.events.note(
            "stopped", message="ended at once, saving nothing", level=logging.ERROR, reason=reason
        )
    os._exit(1)


def bind(host: str, port: int) -> socket.socket:
    """Take the address; connections are refused until the service runs on it.

    Raises:
        OSError: the port is in use, or the address is not one of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Else an answer's body waits 40 ms for the client to acknowledge its headers; asyncio sets this
    # only on sockets it made itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> bool:
    """Serve on a bound socket until a signal; return whether all went well to the end."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Connections that linger must leave time for saving.
        timeout_graceful_shutdown=DRAIN_SHARE * settings.drain_timeout,  # type: ignore[arg-type]
    )
    server = Server(config, lambda: getattr(app.state, "service", None))
    server.run(sockets=[listener])
    service = getattr(app.state, "service", None)
    return server.started and service is not None and service.saved

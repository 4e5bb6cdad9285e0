"""Runs a server in this process, from opening its address to its graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from sdexport.engines.messages import one_line
from sdexport.server.app import create_app
from sdexport.server.http_protocol import MAX_HEADER, protocol_with
from sdexport.server.image_service import ImageService
from sdexport.server.server_metrics import ServerMetrics

_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SWITCH = 0.001
"""Seconds after which the thread that runs jobs lets the event loop work; Python's are 0.005."""
_SPARE = 64
"""Connections beyond those that requests may use, so that the state can be asked for."""
_LAST_RESPONSES = 3
"""Seconds in which connections may end after the last job."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # signals are handled here


def run_server(
    service: ImageService,
    metrics: ServerMetrics,
    on_ready: Callable[[str], object] = lambda address: None,
) -> int | None:
    """Serve until a signal arrives, then let jobs end; a second signal cancels them.

    Args:
      on_ready: called with the server's address when it is ready for jobs.
    Returns: the signal; None if the server ended by itself.
    Raises: OSError: the address cannot be used. What ImageService.start raises.
    """
    settings = service.settings
    bound = listening_socket(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{bound.getsockname()[1]}"
    config = server_config(service, metrics)
    sys.setswitchinterval(_SWITCH)
    return asyncio.run(_Serving(service, _Server(config), address, on_ready).run(bound))


def server_config(service: ImageService, metrics: ServerMetrics) -> uvicorn.Config:
    """How uvicorn serves: slow clients, large headers and many connections have limits."""
    settings = service.settings
    return uvicorn.Config(
        create_app(service, settings, metrics),
        http=protocol_with(
            settings.header_seconds, settings.send_seconds, settings.max_connections + _SPARE
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_LAST_RESPONSES,
        proxy_headers=False,
    )


class _Serving:
    def __init__(
        self,
        service: ImageService,
        server: uvicorn.Server,
        address: str,
        on_ready: Callable[[str], object],
    ) -> None:
        self._service, self._server = service, server
        self._address, self._on_ready = address, on_ready
        self._signal: int | None = None
        self._failure: BaseException | None = None

    async def run(self, bound: socket.socket) -> int | None:
        loop = asyncio.get_running_loop()
        with _handlers(lambda number: loop.call_soon_threadsafe(self._stop, number)):
            threading.Thread(target=self._start, args=(loop,), name="start", daemon=True).start()
            await self._server.serve(sockets=[bound])
        if self._failure is not None:
            raise self._failure
        return self._signal

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the first model, outside of the event loop."""
        try:
            self._service.start()
            self._on_ready(self._address)
        except BaseException as error:  # noqa: BLE001  raised again by `run`
            self._failure = error
            loop.call_soon_threadsafe(self._exit)

    def _exit(self) -> None:
        self._server.should_exit = True

    def _stop(self, number: int) -> None:
        if self._signal is not None:
            _log.warning("a second signal: jobs are cancelled")
            self._finish_in_thread(0.0)
            return
        self._signal = number
        _log.info(
            "%s: no more jobs are taken; those that wait or run have %g s",
            *(signal.Signals(number).name, self._service.settings.grace),
        )
        self._finish_in_thread(self._service.settings.grace)

    def _finish_in_thread(self, grace: float) -> None:
        arguments = asyncio.get_running_loop(), grace
        threading.Thread(target=self._finish, args=arguments, daemon=True).start()

    def _finish(self, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        try:
            self._service.close(grace)
        except Exception as error:  # noqa: BLE001  the server must end
            _log.error("closing failed: %s", one_line(error))
        loop.call_soon_threadsafe(self._exit)


@contextlib.contextmanager
def _handlers(call: Callable[[int], object]) -> Generator[None]:
    """Have a function called for each signal inside of the block, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        call(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one.

    Raises: OSError: the address cannot be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda each: each[0] != socket.AF_INET)  # localhost is 127.0.0.1 to most clients
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows the option lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        error.filename = f"{host}:{port}"
        raise
    return bound

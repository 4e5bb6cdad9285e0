"""A server on a free port of this machine, in a thread of the test's process, and its client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from sdexport.server.image_service import ImageService
from sdexport.server.model_store import ModelStore
from sdexport.server.registered_names import RegisteredNames
from sdexport.server.server_metrics import ServerMetrics
from sdexport.server.server_process import listening_socket, server_config
from sdexport.server.server_settings import ServerSettings

PATIENCE = 120.0
"""Seconds for which a test waits for something that must happen."""


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until a condition holds, and return its value."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen")


class LiveServer:
    """A running server.

    Attributes:
      service, port: of the server. loop: its event loop.
    """

    def __init__(
        self,
        service: ImageService,
        port: int,
        headers: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.service, self.port, self.headers = service, port, dict(headers)
        self.loop = loop

    def with_headers(self, headers: Mapping[str, str]) -> LiveServer:
        """The same, for a client that sends these headers alone."""
        return LiveServer(self.service, self.port, headers, self.loop)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (in lower case) and body of a response; `body` is bytes or JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = self.headers | dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} | sent
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            found = {key.lower(): value for key, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a response."""
        status, _, content = self.request(method, path, body, headers)
        return status, json.loads(content)

    def finished(self, body: Mapping[str, Any]) -> Any:
        """The state of a job after it has ended."""
        status, job = self.json("POST", "/v1/jobs", body)
        assert status == 202, job

        def ended() -> Any:
            state = self.json("GET", job["url"])[1]
            return state if state["status"] not in ("queued", "running") else None

        return wait_until(ended)

    def socket(self) -> socket.socket:
        """A connection on which a test sends what it wants."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


@contextmanager
def live_server(
    packages: Mapping[str, Path],
    *,
    lora_dir: Path | None = None,
    adapters: Mapping[str, Mapping[str, Path]] | None = None,
    headers: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[LiveServer]:
    """Serve packages while a block runs; `settings` are those of ServerSettings."""
    made = ServerSettings(**settings)
    options = {} if lora_dir is None else {"lora_dir": lora_dir}
    models = ModelStore(packages, options, memory_limit=made.memory_limit, max_batch=made.max_batch)
    metrics = ServerMetrics()
    service = ImageService(models, RegisteredNames(lora_dir, adapters), made, metrics)
    server = uvicorn.Server(server_config(service, metrics))
    bound = listening_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server", daemon=True)
    thread.start()
    service.start()
    wait_until(lambda: server.started)
    try:
        yield LiveServer(service, port, headers or {}, loops[0])
    finally:
        service.close(0.0)
        server.should_exit = True
        thread.join(PATIENCE)

"""Servers of the demo model for tests of the page: one that anybody may use, and one with a key."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from sdexport.server.app import create_app
from sdexport.server.image_service import ImageService
from sdexport.server.model_store import ModelStore
from sdexport.server.server_settings import ServerSettings

KEY = "a-key-for-the-tests-of-the-page"


@dataclass(frozen=True)
class Addresses:
    """Of a server that needs no key, and of one that does."""

    open: str
    closed: str


@contextmanager
def page_servers(package: Path) -> Iterator[Addresses]:
    """Both servers, over one queue."""
    settings = ServerSettings()
    service = ImageService(ModelStore({"demo": package}), settings=settings)
    service.start()
    closed = replace(settings, api_keys=(KEY,))
    try:
        with ExitStack() as stack:
            apps = create_app(service), create_app(service, closed)
            yield Addresses(*(stack.enter_context(listening(app)) for app in apps))
    finally:
        service.close(0.0)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """An application on a free port of this machine, in a thread."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()

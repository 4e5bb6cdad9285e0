"""`sdexport serve` in a process of its own, and a client of its native API."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines.closing import ClosesOnExit

PATIENCE = 300.0
"""Seconds for which a response is awaited."""


class ServerProcess(ClosesOnExit):
    """A server on a free port, ended with the block.

    seconds_to_ready: from the start of the process until /readyz answers 200.
    """

    def __init__(
        self, package: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "sdexport", "serve", f"model={package}", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--json", "-q", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("the server ended before it was ready")
            text += line
        self.port = int(json.loads(text)["address"].rpartition(":")[2])
        if Client(self.port).get("/readyz")[0] != 200:
            raise RuntimeError("the server says that it is ready, and is not")
        self.seconds_to_ready = time.perf_counter() - began

    def close(self) -> None:
        """End the server; closing twice is allowed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in Client(self.port).get("/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise KeyError(name)


class Client:
    """A client with a connection of its own, which stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """A response that is not read yet."""
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        return self._connection.getresponse()

    def get(self, path: str) -> tuple[int, bytes]:
        response = self.ask("GET", path)
        return response.status, response.read()

    def submit(self, body: Mapping[str, Any]) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON and headers (in lower case) of POST /v1/jobs."""
        response = self.ask("POST", "/v1/jobs", body)
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(response.read()), headers

    def wait(self, url: str) -> tuple[str, Any]:
        """The last event of a job, read as it comes."""
        response = self.ask("GET", f"{url}/events")
        blocks = response.read().decode().strip().split("\n\n")
        lines = dict(line.split(": ", 1) for line in blocks[-1].split("\n"))
        return lines["event"], json.loads(lines["data"])

    def events(self, url: str) -> Iterator[tuple[str, Any]]:
        """The events of a job, each as it comes; the connection is opened at once."""
        response = self.ask("GET", f"{url}/events")

        def read() -> Iterator[tuple[str, Any]]:
            kind = ""
            for line in iter(response.readline, b""):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)

        return read()

    def state(self, job: Mapping[str, Any]) -> Any:
        """The state of a job."""
        return json.loads(self.get(job["url"])[1])

    def generate(self, body: Mapping[str, Any]) -> tuple[str, Any]:
        """Submit a job and wait for its end.

        Raises: RuntimeError: it was not accepted.
        """
        status, job, _ = self.submit(body)
        if status != 202:
            raise RuntimeError(f"{status}: {job}")
        return self.wait(job["url"])

    def pixels(self, url: str) -> np.ndarray:
        """(H, W, 3) uint8 of an image of a job."""
        with Image.open(io.BytesIO(self.get(url)[1])) as image:
            return np.asarray(image)

    def close(self) -> None:
        self._connection.close()

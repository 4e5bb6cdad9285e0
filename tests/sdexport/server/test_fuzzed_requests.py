"""Fuzzed requests to every API: no status 5xx, no traceback, no hang, and nothing that stays.

The images are not generated: what is fuzzed is what stands between a client and the engine.
`make fuzz-server` sends 100,000 requests of our own, and those that schemathesis makes of the
OpenAPI document.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from sdexport.engines.process_memory import resident_mb
from sdexport.runtime.images.metadata import to_image
from sdexport.runtime.images.parameters import Parameters
from sdexport.server import automatic1111_api, openai_api
from sdexport.server.automatic1111_fields import COMMON, IMAGES, WITHOUT_EFFECT
from sdexport.server.jobs import Job
from sdexport.server.request_checks import argument_names
from tests.helpers.live_server import PATIENCE, LiveServer, live_server, wait_until
from tests.tolerances import FUZZ_SERVER_MB

ALLOWED = (501, 503)
"""Of the statuses from 500 on: not supported, and too busy."""
ROUNDS = 100_000
"""Requests of our own in a whole run, of `-m fuzz`."""
FEW = 150
"""Of every run."""
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 8, 64, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308),
    *("", "a", "x" * 30_000, "\0", "\ud800", "/etc/passwd", "../..", "http://127.0.0.1/", "NaN"),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "<lora:a:1>", "euler_a", "\u202e"),
    *([], {}, [[]], [{}], [None], ["a"] * 20, [1, 2], {"name": "x"}, [{"name": "x"}]),
)
HEADERS = (
    *("Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Content-Length: 3"),
    *("Content-Length: 0, 0", "Expect: 100-continue", "Upgrade: websocket", "Connection: upgrade"),
    *("Range: bytes=0-", "Host: evil.example", "Origin: null", "X-Request-Id: \x1b[0m", "X: \xff"),
    *("Authorization: Basic ==", "Content-Type: multipart/form-data", "Accept-Encoding: *", "X"),
)
"""Of requests that are sent byte by byte."""
PARTS = ("0", "x", "-1", "%00", "..%2f", "9" * 40)
SMALL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4APMOGVHbHSAEEsAQ+HyZ0mAAAAAElFTkSuQmCC"  # noqa: E501


def answer_at_once(live: LiveServer) -> None:
    """Let jobs be done with a small image, without an engine."""

    parameters = Parameters(
        prompt="a star", seed=1, width=8, height=8, num_inference_steps=1, scheduler="ddim"
    )
    image = to_image(np.zeros((8, 8, 3), np.uint8), parameters)

    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.note_step(1, 1, 1.0, Image.new("RGB", (8, 8)))
            images = [image] * job.count
            job.succeed(images, [parameters] * job.count, {"encode": 0.0})

    live.service.queue._run = run


@pytest.fixture(scope="module")
def quick(demo_package: Path) -> Iterator[LiveServer]:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    with live_server({"demo": demo_package}, keep_jobs=20, max_body=200_000) as live:
        answer_at_once(live)
        yield live
    logging.getLogger().removeHandler(errors)
    assert errors.found == []


class Errors(logging.Handler):
    """Keeps what is logged as an error, of the server, of uvicorn and of asyncio."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record)[-2000:])


Route = tuple[str, str, dict[str, Any], list[str]]


def routes(live: LiveServer) -> list[Route]:
    """Method, path, a body that is accepted, and names of fields, of every operation."""
    document = live.json("GET", "/openapi.json")[1]
    found: list[Route] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            contents = operation.get("requestBody", {}).get("content", {})
            content = next(iter(contents.values()), {})
            example = content.get("example", {"prompt": "a star", "num_inference_steps": 1})
            fields = [*argument_names(), "model", "previews", "timeout"]
            if path.startswith(automatic1111_api.PATHS):
                fields = [*COMMON, *IMAGES, *WITHOUT_EFFECT]
            elif path.startswith(openai_api.PATHS):
                fields += ["n", "size", "response_format", "output_format", "quality", "stream"]
                fields += ["output_compression", "partial_images", "background", "user"]
            body = {name: SMALL if "image" in name else value for name, value in example.items()}
            if "init_images" in body:
                body["init_images"] = [SMALL]
            found.append((method.upper(), path, body, fields))
    return found


def body_of(draw: random.Random, body: Mapping[str, Any], fields: Sequence[str]) -> Any:
    """A body with some odd values; most of them reach the checks behind the first one."""
    if draw.random() < 0.05:
        return draw.choice(ODD)
    changed = dict(body)
    for _ in range(draw.randint(0, 3)):
        name = draw.choice(fields) if draw.random() < 0.95 else str(draw.choice(ODD))
        value = draw.choice(ODD)
        if draw.random() < 0.2:
            value = [value, draw.choice(ODD)]
        if draw.random() < 0.1:
            value = SMALL
        changed[name] = value
    return changed


def damaged(draw: random.Random, content: bytes) -> bytes:
    """JSON with some bytes exchanged, left out or repeated."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) + 1)
        kind = draw.random()
        if kind < 0.4 and data:
            data[place % len(data)] = draw.randrange(256)
        elif kind < 0.7:
            del data[place : place + draw.randint(1, 20)]
        else:
            data[place:place] = data[place : place + draw.randint(1, 50)] * draw.randint(1, 5)
    return bytes(data)


def check(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    content: bytes | None,
    kind: str,
) -> None:
    connection.request(method, path, content, {"Content-Type": kind})
    response = connection.getresponse()
    answer = response.read()
    assert response.status < 500 or response.status in ALLOWED, (method, path, content, answer)
    assert b"Traceback" not in answer and b"site-packages" not in answer
    if response.status >= 400:
        found = str(response.getheader("content-type"))
        assert found.startswith("application/json"), (method, path, answer)
        json.loads(answer)


def check_raw(
    live: LiveServer, draw: random.Random, method: str, path: str, content: bytes
) -> None:
    """Send a request whose headers and form are odd, and read what is answered."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}"]
    lines[2:] = draw.sample(lines[2:], draw.randint(0, 1))
    lines += draw.sample(HEADERS, draw.randint(0, 3))
    data = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content
    data = damaged(draw, data) if draw.random() < 0.7 else data
    answer = b""
    with live.socket() as connection, suppress(OSError):
        connection.sendall(data)
        connection.settimeout(0.2)  # then it waits for more, perhaps
        while part := connection.recv(65536):
            answer += part
    allowed = tuple(f"HTTP/1.1 {status}".encode() for status in ALLOWED)
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(allowed), (data, answer)
    assert b"Traceback" not in answer and b"site-packages" not in answer


def fuzz(live: LiveServer, rounds: int, seed: int) -> None:
    draw = random.Random(seed)
    known = routes(live)
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=PATIENCE)
    kinds = ("application/json",) * 8 + ("text/plain", "multipart/form-data; boundary=x", "")
    for _ in range(rounds):
        method, path, body, fields = draw.choice(known)
        if draw.random() < 0.05:
            method = draw.choice(("GET", "POST", "DELETE", "PUT", "HEAD", "PATCH", "TRACE"))
        for name in ("job_id", "index", "name"):
            path = path.replace(f"{{{name}}}", draw.choice(PARTS))
        if method == "HEAD" or path.endswith("/events"):
            continue
        content = None
        if method not in ("GET", "DELETE"):
            content = json.dumps(body_of(draw, body, fields)).encode()
            content = damaged(draw, content) if draw.random() < 0.3 else content
        if draw.random() < 0.05:
            check_raw(live, draw, method, path, content or b"")
            continue
        check(connection, method, path, content, draw.choice(kinds))
    connection.close()


@contextmanager
def watched_threads() -> Iterator[list[BaseException | None]]:
    """What threads fail with during a block, which pytest only warns of."""
    failures: list[BaseException | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda found: failures.append(found.exc_value))
        yield failures


def held(live: LiveServer) -> Mapping[str, float]:
    wait_until(lambda: not live.service.queue.busy and not live.service.queue.waiting)
    return {"threads": threading.active_count(), "memory": resident_mb()["private_mb"] or 0.0}


def test_bodies_of_another_kind_are_rejected_by_every_route(quick: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", quick.port, timeout=PATIENCE)
    for method, path, body, _ in routes(quick):
        for content in (
            (b"[]", b"null", b'"x"', b"1", b"", b"{}") if body and method == "POST" else ()
        ):
            check(connection, method, path, content, "application/json")
    connection.close()


def test_some_fuzzed_requests(quick: LiveServer) -> None:
    fuzz(quick, FEW, 1)
    assert quick.json("GET", "/healthz")[0] == 200


@pytest.mark.fuzz
def test_many_fuzzed_requests_leave_nothing(
    quick: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzz(quick, 2000, 2)
    before = held(quick)
    threads = [
        threading.Thread(target=fuzz, args=(quick, ROUNDS // 4, seed)) for seed in range(10, 14)
    ]
    with watched_threads() as failures:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    after = held(quick)
    with capsys.disabled():
        print(f"\n{ROUNDS:,} requests: {before} before, {after} after")  # noqa: T201
    assert failures == []
    assert after["threads"] <= before["threads"] + 8  # the pool for images
    assert after["memory"] <= before["memory"] + FUZZ_SERVER_MB
    wait_until(lambda: len(quick.service.queue.jobs()) <= 2 * 20)  # done, and others


@pytest.mark.fuzz
@pytest.mark.parametrize("negative", [False, True])
def test_requests_that_the_openapi_document_suggests(quick: LiveServer, negative: bool) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    mode = (
        schemathesis.GenerationMode.NEGATIVE if negative else schemathesis.GenerationMode.POSITIVE
    )
    address = f"http://127.0.0.1:{quick.port}"
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            response = case.call(base_url=address, timeout=60)
            assert response.status_code < 500 or response.status_code in ALLOWED, response.text
            assert "Traceback" not in response.text

        with suppress(Unsatisfiable):  # nothing about the request can be wrong
            run()

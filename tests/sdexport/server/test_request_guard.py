"""Hostile clients: wrong keys, hosts and origins, large and slow requests, and clients that go."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h11
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdexport.engines.errors import EngineError, PackageError
from sdexport.server.error_bodies import ErrorBodies
from sdexport.server.http_protocol import _closable, protocol_with
from sdexport.server.request_context import RELEASE_BODY
from sdexport.server.request_guard import RequestGuard
from sdexport.server.server_metrics import ServerMetrics
from sdexport.server.server_settings import ServerSettings
from tests.helpers.live_server import LiveServer, live_server, wait_until

KEY, OTHER = "k" * 32, "another-key-of-some-length"
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n"
JOB = {"prompt": "a star", "num_inference_steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def guarded(demo_package: Path) -> Iterator[LiveServer]:
    """A server with keys, small limits and little patience."""
    with live_server(
        {"demo": demo_package},
        headers={"X-API-Key": KEY},
        api_keys=(KEY, OTHER),
        allowed_hosts=("images.example",),
        cors_origins=("https://page.example", "https://Other.Example/"),
        max_body=50_000,
        body_seconds=1.5,
        header_seconds=1.5,
        send_seconds=1.0,
        reconnect_seconds=0.1,
        max_connections=64,
    ) as live:
        yield live


def raw(live: LiveServer, content: bytes, *, answer: int = 65536) -> bytes:
    """What the server sends until it closes the connection."""
    with live.socket() as connection:
        connection.sendall(content)
        found = b""
        while len(found) < answer:
            try:
                part = connection.recv(65536)
            except ConnectionResetError:
                return found
            if not part:
                return found
            found += part
        return found


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"user:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"X-API-Key": KEY},
        {"Authorization": basic(KEY)},
    ],
)
def test_a_key_opens_the_server(guarded: LiveServer, headers: Mapping[str, str]) -> None:
    status, _, _ = guarded.with_headers(headers).request("GET", "/v1/server")
    assert status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic !!"},
        {"Authorization": basic("")},
        {"Authorization": KEY},
        {"X-API-Key": "\xff" * 32},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_without_a_right_key_nothing_is_done(
    guarded: LiveServer, headers: Mapping[str, str]
) -> None:
    client = guarded.with_headers(headers)
    before = len(guarded.service.queue.jobs())
    for method, path in (
        ("GET", "/v1/server"),
        ("POST", "/v1/jobs"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/none"),
        ("DELETE", "/v1/jobs/x"),
        ("OPTIONS", "/v1/jobs"),
        ("GET", "//v1/server"),
        ("GET", "/page/../v1/server"),
        ("GET", "/healthz/../v1/server"),
    ):
        status, found, content = client.request(method, path, JOB if method == "POST" else None)
        assert status == 401, (method, path)
        assert found["www-authenticate"] == "Bearer"
        assert json.loads(content)["error"]["type"] == "unauthorized"
    assert len(guarded.service.queue.jobs()) == before
    for path in ("/healthz", "/readyz", "/"):  # nothing of the server's is in these
        assert client.request("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("localhost:8000", True),
        ("[::1]:8000", True),
        ("LOCALHOST", True),
        ("192.0.2.7:80", True),  # an address is no name that could be rebound
        ("images.example", True),
        ("images.example:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:127.0.0.1", False),
        ("images.example.evil", False),
        ("", False),
    ],
)
def test_host_must_be_known(guarded: LiveServer, host: str, allowed: bool) -> None:
    status, _, content = guarded.request("GET", "/v1/server", headers={"Host": host})
    assert (status == 200) is allowed, content
    if not allowed:
        assert status in (400, 403)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://page.example", True),
        ("https://other.example", True),
        ("http://127.0.0.1:{port}", True),
        ("http://127.0.0.1", False),
        ("https://evil.example", False),
        ("https://page.example.evil.example", False),
        ("http://page.example", False),
        ("null", False),
        ("file://", False),
        ("", False),
    ],
)
def test_origin_must_be_known(guarded: LiveServer, origin: str, allowed: bool) -> None:
    headers = {"Origin": origin.format(port=guarded.port)}
    status, found, _ = guarded.request("GET", "/v1/server", headers=headers)
    assert (status == 200) is allowed
    of_others = ("https://page.example", "https://other.example")
    assert ("access-control-allow-origin" in found) is (origin in of_others)


def test_pages_of_allowed_origins_can_read_rejections(guarded: LiveServer) -> None:
    client = guarded.with_headers({})
    for origin, readable in (("https://page.example", True), ("https://evil.example", False)):
        status, found, _ = client.request("GET", "/v1/server", headers={"Origin": origin})
        assert status == (401 if readable else 403)
        assert found.get("access-control-allow-origin") == (origin if readable else None)
        assert ("vary" in found) is readable


def test_preflight_of_an_allowed_origin_needs_no_key(guarded: LiveServer) -> None:
    client = guarded.with_headers({})
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization, content-type"
    status, found, _ = client.request("OPTIONS", "/v1/jobs", headers=headers)
    assert status == 200 and "POST" in found["access-control-allow-methods"]
    headers["Origin"] = "https://evil.example"
    assert client.request("OPTIONS", "/v1/jobs", headers=headers)[0] == 403


def test_every_response_has_the_security_headers(guarded: LiveServer) -> None:
    for path in ("/", "/healthz", "/none"):
        _, found, _ = guarded.request("GET", path, headers={"X-Request-Id": "abc-1"})
        assert found["x-content-type-options"] == "nosniff" and found["x-frame-options"] == "DENY"
        assert found["x-request-id"] == "abc-1" and "server" not in found
    for sent in ("", "a b", "x" * 65, "<script>"):
        _, found, _ = guarded.request("GET", "/healthz", headers={"X-Request-Id": sent})
        assert found["x-request-id"] != sent and len(found["x-request-id"]) == 32
    assert "default-src 'none'" in guarded.request("GET", "/")[1]["content-security-policy"]


def test_large_bodies_are_413(guarded: LiveServer) -> None:
    status, _, content = guarded.request("POST", "/v1/jobs", {"prompt": "x" * 60_000})
    assert status == 413 and b"50,000 bytes" in content
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n".encode()
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    found = raw(guarded, head + chunks + (b"2710\r\n" + b"x" * 10_000 + b"\r\n") * 9)
    assert found.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["POST /healthz", "GET /page/x.js", "OPTIONS /v1/jobs"])
def test_requests_without_a_key_have_no_large_body(guarded: LiveServer, path: str) -> None:
    head = f"{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://page.example\r\n".encode()
    found = raw(guarded, head + b"Content-Length: 1025\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413 ") and b"1,024 bytes" in found


def test_a_body_counts_until_its_job_waits() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 8}

    async def call(seen: list[int], app: ASGIApp) -> None:
        async def send(message: Message) -> None:
            seen.append(message.get("status", 0))

        guard._app = app
        scope = {"type": "http", "method": "POST", "path": "/v1/jobs"}
        await guard({**scope, "headers": [(b"host", b"localhost")]}, receive, send)

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"x" * 8
        release = RELEASE_BODY.get()
        await call(early, PlainTextResponse("done"))
        release()
        await call(late, PlainTextResponse("done"))
        await PlainTextResponse("done")(scope, receive, send)

    early: list[int] = []
    late: list[int] = []
    settings = ServerSettings(max_bodies=12)
    guard = RequestGuard(PlainTextResponse("x"), settings, ErrorBodies({}), ServerMetrics())
    asyncio.run(call([], waiting))
    assert (early[0], late[0]) == (503, 200)


@pytest.mark.parametrize("at_once", [False, True])
def test_many_requests_leave_room_for_the_state(demo_package: Path, at_once: bool) -> None:
    """at_once: the server is busy while clients connect, and finds all of them together."""
    head = b"Content-Length: 100\r\n\r\n{"
    with live_server({"demo": demo_package}, max_connections=3) as live, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(live.socket()).sendall(POST + head)
        status, found, content = wait_until(lambda: unless_ok(live.request("GET", "/v1/server")))
        assert status == 503 and found["retry-after"] == "1" and b"3 requests" in content
        for path in ("/healthz", "/readyz"):
            assert live.request("GET", path)[0] == 200
        goes_on = threading.Event()
        if at_once:
            live.loop.call_soon_threadsafe(goes_on.wait)
        idle = [stack.enter_context(live.socket()) for _ in range(2 * (3 + 64))]
        goes_on.set()
        for path in ("/healthz", "/readyz"):  # the oldest that say nothing make room
            assert live.request("GET", path)[0] == 200
        assert idle[0].recv(1) == b""
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle[-1].recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("is_body", [False, True])
def test_room_is_made_by_the_address_with_most_connections(is_body: bool) -> None:
    kind = protocol_with(10.0, 60.0, 3)
    connections: set[Any] = set()

    def opened(address: str, time: float, is_body: bool = is_body) -> Any:
        protocol: Any = kind.__new__(kind)  # without a loop
        protocol.conn, protocol.client = h11.Connection(h11.SERVER), (address, 1)
        protocol.transport = Mock(is_closing=Mock(return_value=False))
        protocol._waits_since = time
        if is_body:
            protocol.conn.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            protocol.conn.next_event()
        connections.add(protocol)
        return protocol

    quiet, first, second = opened("192.0.2.1", 1), opened("192.0.2.2", 2), opened("192.0.2.2", 3)
    # a request that is on its way is lost, so one of them makes room for one
    assert _closable(connections, 36) == [first, second][: 1 if is_body else 2]
    assert _closable(connections, 1) == [first]
    later = opened("192.0.2.2", 4, is_body=False)
    assert _closable(connections, 36) == ([later] if is_body else [first, second, later])
    for each in (quiet, second, first, later):
        assert _closable(connections, 36) != []
        each.conn = Mock(their_state=h11.DONE)  # it has sent its request
    assert _closable(connections, 36) == []


def unless_ok(answer: Any) -> Any:
    """An answer, or None if its status is 200."""
    return None if answer[0] == 200 else answer


def test_slow_bodies_are_408_and_slow_headers_are_closed(guarded: LiveServer) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n".encode()
    found = raw(guarded, head + b"Content-Length: 100\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408 ")
    for start in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
        assert raw(guarded, start) == b""  # closed, without an answer
    with guarded.socket() as connection:  # a byte now and then does not keep it open
        began = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            while time.monotonic() - began < 30:
                connection.sendall(b"G")
                time.sleep(0.05)


@pytest.mark.parametrize(
    "large",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: x\r\n" * 20_000,
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: 127.0.0.1",
        b"GET /?" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: 127.0.0.1",
    ],
)
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_large_headers_are_rejected(guarded: LiveServer, large: bytes, end: bytes) -> None:
    found = raw(guarded, large + end)
    assert found.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or not found


def test_a_body_has_one_length(guarded: LiveServer) -> None:
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    found = raw(guarded, b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + both + POST + both)
    assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\rb\r\n\r\n",
    ],
)  # fmt: skip
def test_broken_requests_are_answered_or_closed(guarded: LiveServer, content: bytes) -> None:
    found = raw(guarded, content)
    assert not found or found.startswith(b"HTTP/1.1 4"), found
    assert b"Traceback" not in found
    assert guarded.request("GET", "/healthz")[0] == 200


def test_a_broken_body_is_answered_once(
    guarded: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n".encode()
    for chunks in (b"-1\r\nx", b"3\r\nabcdef\r\n0\r\n\r\n"):
        begin = head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        found = raw(guarded, begin + chunks)
        assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1") == 1
    assert guarded.request("GET", "/healthz")[0] == 200
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


def test_a_client_that_takes_nothing_is_disconnected(guarded: LiveServer) -> None:
    head = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n"
    assert len(guarded.request("GET", "/openapi.json")[2]) > 20_000
    request = head.encode()
    with guarded.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for _ in range(400):
            try:
                connection.sendall(request)
            except OSError:
                break
        connection.settimeout(0.01)

        def closed() -> bool:
            try:
                connection.send(b"x")
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        wait_until(closed)


def test_a_client_that_reads_slowly_stays_connected() -> None:
    kind = protocol_with(10.0, 60.0, 100)
    protocol: Any = kind.__new__(kind)  # without a loop
    unsent, later = Mock(return_value=2_000_000), Mock()
    protocol.loop, protocol.flow = Mock(call_later=later), Mock()
    protocol.transport = Mock(get_write_buffer_size=unsent)
    protocol.pause_writing()
    for left, aborts in ((1_900_000, False), (1_800_000, False), (1_799_000, True)):
        unsent.return_value = left
        seconds, look = later.call_args.args
        look()
        assert seconds == 60.0 and protocol.transport.abort.called is aborts
    assert later.call_count == 3
    protocol.pause_writing()
    protocol.resume_writing()
    later.return_value.cancel.assert_called_once()


def test_closing_the_stream_of_events_cancels_the_job(guarded: LiveServer) -> None:
    def opened(url: str) -> socket.socket:
        connection = guarded.socket()
        head = f"GET {url}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(10).startswith(b"HTTP/1.1 2")
        return connection

    _, job = guarded.json("POST", "/v1/jobs", {**JOB, "num_inference_steps": 150})
    first, second = opened(job["url"]), opened(job["url"])
    first.close()
    wait_until(lambda: guarded.json("GET", job["url"])[1]["step"] > 2)
    assert guarded.json("GET", job["url"])[1]["status"] == "running"  # somebody reads still
    second.close()
    wait_until(lambda: guarded.json("GET", job["url"])[1]["status"] == "cancelled")
    assert "closed the stream" in guarded.json("GET", job["url"])[1]["error"]["message"]


def test_errors_of_the_engine_and_bugs_say_nothing_of_the_inside(
    guarded: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        EngineError("/secret/path failed"),
        PackageError("/secret/path changed"),
        RuntimeError("/secret/path"),
        MemoryError(),
        OSError(28, "No space left", "/secret/path"),
    ):

        def failing(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(guarded.service.models, "open", failing)
            job = guarded.finished(JOB)
        assert job["status"] == "failed"
        text = json.dumps(job)
        assert "secret" not in text and "Traceback" not in text
        assert type(error).__name__ in job["error"]["message"] and job["id"] in text
    with monkeypatch.context() as patch:
        patch.setattr(guarded.service, "describe", failing)
        status, found = guarded.json("GET", "/v1/server")
    assert status == 500 and "secret" not in json.dumps(found)
    assert found["error"]["message"] == "internal error; the server's log has the details"


def test_folders_of_the_server_are_not_in_messages(
    guarded: LiveServer, monkeypatch: pytest.MonkeyPatch, demo_package: Path
) -> None:
    from sdexport.engines.errors import InvalidArgumentError

    def failing(*_: object, **__: object) -> None:
        raise InvalidArgumentError(f"{demo_package}/unet: no such input")

    monkeypatch.setattr(guarded.service.models, "open", failing)
    job = guarded.finished(JOB)
    assert job["error"]["message"] == "demo/unet: no such input"


def test_jobs_belong_to_the_key_that_sent_them(guarded: LiveServer) -> None:
    clients = []
    for key in (KEY, OTHER, KEY):
        client = guarded.with_headers({"X-API-Key": key})
        _, job = client.json("POST", "/v1/jobs", JOB)
        clients.append(guarded.service.job(job["id"]).client)
    assert clients[0] == clients[2] != clients[1]
    assert KEY not in clients[0]

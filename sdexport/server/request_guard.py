"""What every request passes first: key, Host, Origin, size, and the time that it may take.

A body is received whole before the application sees the request, so that a slow client holds a
connection and no more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdexport.server.error_bodies import ErrorBodies
from sdexport.server.http_protocol import MAX_HEADER
from sdexport.server.job_tracing import join_trace
from sdexport.server.request_context import CLIENT, RELEASE_BODY, REQUEST_ID
from sdexport.server.server_metrics import ServerMetrics
from sdexport.server.server_settings import ServerSettings

_log = logging.getLogger(__name__)
PUBLIC = re.compile(r"/(healthz|readyz|favicon\.ico|page/[\w.-]+)?")
"""Paths that need no key: they hold nothing of the server's but its state."""
_SMALL_BODY = 1024
"""Bytes of a body of a request that needs no key."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
EXPOSED_HEADERS = ("Retry-After", "X-Request-Id")
"""Headers that pages of other origins may read."""
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def cors_origins(settings: ServerSettings) -> frozenset[str]:
    """The origins of other sites, as browsers send them: in lower case and without a slash."""
    return frozenset(origin.lower().rstrip("/") for origin in settings.cors_origins)


class _Rejected(Exception):  # noqa: N818  not an error of the server's
    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class RequestGuard:
    """Rejects requests that are not allowed, and gives the others to an application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        errors: ErrorBodies,
        metrics: ServerMetrics,
    ) -> None:
        self._app, self._settings, self._errors, self._metrics = app, settings, errors, metrics
        self._hosts = {name.lower() for name in (settings.host, *settings.allowed_hosts)}
        self._hosts.update(_LOOPBACK)
        self._origins = cors_origins(settings)
        self._receiving = 0  # bytes of all bodies
        self._requests = 0  # that are answered now, without those that need no key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _Headers(scope)
        given = headers.one("x-request-id") or ""
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        join_trace(headers.first)
        response = _Response(send, request_id)
        origin = headers.one("origin")
        if origin is not None and origin.lower() in self._origins:
            response.readable_from(origin)
        began, received = time.perf_counter(), 0

        def release() -> None:
            nonlocal received
            self._receiving -= received
            received = 0

        RELEASE_BODY.set(release)
        try:
            self._check_head(scope, headers)
            with self._counted(scope, headers) as is_small:
                parts = await self._body(headers, receive, is_small=is_small)
                received = sum(map(len, parts))
                await self._app(scope, _replay(parts, receive), response)
        except _Rejected as rejected:
            await self._reject(scope, response, rejected)
        except Exception as error:
            if response.started:
                _log.error("a response failed", exc_info=error)
                raise
            answer = self._errors.of(scope["path"], error)
            await answer(scope, receive, response)
        finally:
            release()
            self._note(scope, response, time.perf_counter() - began)

    @contextmanager
    def _counted(self, scope: Scope, headers: _Headers) -> Iterator[bool]:
        """Count a request while it is answered; yields whether it needs no key.

        Raises: _Rejected: as many are answered as may be.
        """
        if _needs_no_key(scope, headers):
            yield True
            return
        most = self._settings.max_connections
        if self._requests >= most:
            raise _Rejected(503, f"{most:,} requests at once, the limit", {"Retry-After": "1"})
        self._requests += 1
        try:
            yield False
        finally:
            self._requests -= 1

    async def _reject(self, scope: Scope, response: _Response, rejected: _Rejected) -> None:
        answer = self._errors.response(
            scope["path"],
            rejected.status,
            str(rejected),
            headers={**(rejected.headers or {}), "Connection": "close"},
        )
        await answer(scope, _nothing, response)

    def _note(self, scope: Scope, response: _Response, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "other"
        self._metrics.request(scope["method"], route, response.status, seconds)
        _log.info(
            "%s %s %s in %.1f ms",
            *(scope["method"], scope["path"][:200], response.status, seconds * 1000),
            extra={"status": response.status, "path": scope["path"][:200], "seconds": seconds},
        )

    def _check_head(self, scope: Scope, headers: _Headers) -> None:
        target = (scope.get("raw_path") or b"") + scope.get("query_string", b"")
        if headers.size + len(target) > MAX_HEADER:  # it arrived in one piece
            raise _Rejected(431, f"the header is larger than {MAX_HEADER:,} bytes")
        if headers.all("content-length") and headers.all("transfer-encoding"):
            raise _Rejected(400, "the body has a Content-Length and a Transfer-Encoding")
        host = self._check_host(headers)
        self._check_origin(scope, headers, host)
        if not _needs_no_key(scope, headers):
            CLIENT.set(self._check_key(headers) or _address(scope))
            self._check_client(scope)

    def _check_host(self, headers: _Headers) -> str:
        """The Host header, which a page that rebinds its name to this address cannot choose."""
        given = headers.one("host")
        if given is None:
            raise _Rejected(400, "the request has no Host header, or several")
        name = _host_name(given)
        if name not in self._hosts and not _is_address(name):
            raise _Rejected(
                403, "this Host is not allowed; start the server with --allowed-host NAME"
            )
        return given

    def _check_origin(self, scope: Scope, headers: _Headers, host: str) -> None:
        origins = headers.all("origin")
        for origin in origins:
            own = origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
            if not own and origin.lower() not in self._origins:
                raise _Rejected(
                    403, "this Origin is not allowed; start the server with --cors-origin ORIGIN"
                )
        if len(origins) > 1:
            raise _Rejected(400, "the request has several Origin headers")

    def _check_key(self, headers: _Headers) -> str:
        """Which of the keys a request has; an empty text if none is needed."""
        if not self._settings.api_keys:
            return ""
        given = _given_key(headers)
        # every key is compared, so that the time says nothing
        fits = [hmac.compare_digest(given, key.encode()) for key in self._settings.api_keys]
        if not any(fits):
            raise _Rejected(
                401,
                "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        return f"key {fits.index(True)}"

    def _check_client(self, scope: Scope) -> None:
        """Without a key, a server that does not know where it listens serves this machine alone."""
        if self._settings.api_keys or not self._settings.needs_key_beyond_loopback:
            return
        if not _is_loopback(_address(scope)):
            raise _Rejected(
                403, "without a key only this machine is served; set api_key_file on the server"
            )

    async def _body(self, headers: _Headers, receive: Receive, *, is_small: bool) -> list[bytes]:
        limit = self._settings.max_body
        limit = min(limit, _SMALL_BODY) if is_small else limit
        option = "" if limit < self._settings.max_body else " (--max-body)"
        too_large = _Rejected(413, f"the body is larger than {limit:,} bytes{option}")
        length = headers.one("content-length") or "0"
        if not length.isdecimal() or int(length[:20]) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Rejected(400, "the client closed the connection")
                    part = message.get("body", b"")
                    size += len(part)
                    self._receiving += len(part)
                    if size > limit:
                        raise too_large
                    if self._receiving > self._settings.max_bodies:
                        raise _Rejected(503, "too many bodies at once", {"Retry-After": "1"})
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            self._receiving -= size
            raise _Rejected(
                408, f"the body did not arrive within {self._settings.body_seconds:g} s"
            ) from None
        except BaseException:
            self._receiving -= size
            raise
        return parts


class _Headers:
    """The headers of a request, by lower-case name."""

    def __init__(self, scope: Scope) -> None:
        self._all = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(len(key) + len(value) + 4 for key, value in self._all)

    @property
    def first(self) -> dict[str, str]:
        """The first value of each."""
        return dict(reversed(self._all))

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._all if key == name]

    def one(self, name: str) -> str | None:
        """The only value of a header; None if there is none, or several."""
        found = self.all(name)
        return found[0] if len(found) == 1 else None


class _Response:
    """Sends the response of an application with common headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = {**_SECURITY_HEADERS, "x-request-id": request_id}
        self.status, self.started = 0, False

    def readable_from(self, origin: str) -> None:
        """Let pages of another origin read the response, also one that rejects their request."""
        self._headers |= {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": ", ".join(EXPOSED_HEADERS),
            "vary": "Origin",
        }

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            present = {key.lower() for key, _ in message.get("headers", ())}
            added = [(k.encode(), v.encode()) for k, v in self._headers.items()]
            message["headers"] = [
                *message.get("headers", ()),
                *(pair for pair in added if pair[0] not in present),
            ]
        await self._send(message)


def _address(scope: Scope) -> str:
    """The address of a request's client; empty if it is not known, as with sockets of Unix."""
    return (scope.get("client") or ("",))[0]


def _needs_no_key(scope: Scope, headers: _Headers) -> bool:
    """Whether it is a preflight, or holds nothing of the server's."""
    is_preflight = scope["method"] == "OPTIONS" and headers.one("origin") is not None
    return is_preflight or PUBLIC.fullmatch(scope["path"]) is not None


def _replay(parts: list[bytes], receive: Receive) -> Receive:
    """A `receive` that gives the whole body first, and keeps none of it; then what the client does.

    Args:
      parts: of the body; the list is emptied.
    """
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        body = b"".join(parts)
        parts.clear()
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _host_name(host: str) -> str:
    """The name in a Host header, without the port and without brackets."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _given_key(headers: _Headers) -> bytes:
    """The key of a request: a bearer token, the password of basic authentication, or X-API-Key."""
    scheme, _, value = (headers.one("authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            return b""
        return decoded.partition(b":")[2]
    return (headers.one("x-api-key") or "").encode("latin-1")

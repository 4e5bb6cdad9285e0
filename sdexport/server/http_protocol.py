"""uvicorn's HTTP protocol, with limits for clients that send or read too slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER = 32_768
"""Bytes of a request's header, its first line included."""
SLOWEST = 1024
"""Bytes that a client must read in a second, on average over `send_seconds`."""

_AWAITED = (h11.IDLE, h11.SEND_BODY)
"""States of a client that has not sent the whole of a request."""


def protocol_with(header_seconds: float, send_seconds: float, most: int) -> type[H11Protocol]:
    """A protocol that ends connections of clients that are too slow, or too many.

    Args:
      header_seconds: in which the whole header of a request must arrive.
      send_seconds: in which a client must take a part of what waits to be sent; see SLOWEST.
      most: connections that are open at a time. For another one, some of those are closed whose
        clients say nothing; see _closable.
    """

    class TimedProtocol(H11Protocol):
        _waits_since = 0.0
        _header_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None
        _unsent = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waits_since = self.loop.time()
            is_full = len(self.connections) > most
            if is_full and not _make_room(self.connections - {self}, most):
                transport.abort()
                return
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if before is not None and before.response_complete and self._header_timer is None:
                self._wait_for_header()
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self.resume_writing()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()  # there was a response already
                return
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # the application need not answer any more
                self.cycle.message_event.set()
            super().send_400_response(msg)

        def on_response_complete(self) -> None:
            self._waits_since = self.loop.time()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._abort_later()

        def resume_writing(self) -> None:
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._abort_later()  # closing waits for what was not taken

        def _abort_later(self) -> None:
            if self._send_timer is None:
                self._unsent = self.transport.get_write_buffer_size()
                self._send_timer = self.loop.call_later(send_seconds, self._abort_unless_read)

        def _abort_unless_read(self) -> None:
            self._send_timer = None
            if self._unsent - self.transport.get_write_buffer_size() < SLOWEST * send_seconds:
                self.transport.abort()
            else:
                self._abort_later()

        def _wait_for_header(self) -> None:
            self._header_timer = self.loop.call_later(header_seconds, self._close_late)

        def _stop_waiting(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_late(self) -> None:
            self._header_timer = None
            if not self.transport.is_closing():
                self.transport.abort()

    return TimedProtocol


def _make_room(connections: Iterable[Any], most: int) -> bool:
    """Close some connections if as many as `most` are open; False if all wait for this server."""
    # those that are closing are among them until the event loop goes on
    is_open = [each for each in connections if not each.transport.is_closing()]
    if len(is_open) < most:
        return True
    closable = _closable(is_open, max(most // 16, 1))
    for each in closable:
        each.transport.abort()
    return bool(closable)


def _closable(connections: Iterable[Any], most: int) -> list[Any]:
    """The connections that are closed to make room; none if no client keeps the server waiting.

    They are of the address that has most of those that wait: the oldest whose header is awaited,
    up to `most` at a time, as looking for them takes time. Where there are none, one whose body is
    awaited, as that is a request which is lost.
    """
    waiting: dict[str, list[Any]] = {}
    for each in connections:
        if isinstance(each, H11Protocol) and each.conn.their_state in _AWAITED:
            waiting.setdefault(_address(each), []).append(each)
    of_one = max(waiting.values(), key=len, default=[])
    of_one.sort(key=lambda each: each._waits_since)
    idle = [each for each in of_one if each.conn.their_state is h11.IDLE]
    return idle[:most] or of_one[:1]


def _address(connection: H11Protocol) -> str:
    return connection.client[0] if connection.client else ""

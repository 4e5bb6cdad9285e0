"""uvicorn's HTTP protocol, with a time in which the header of a request must arrive."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER = 32_768
"""Bytes of a request's header, its first line included."""


def protocol_with(header_seconds: float) -> type[H11Protocol]:
    """A protocol that closes a connection on which no whole header arrives in that time."""

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
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
            super().connection_lost(exc)

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

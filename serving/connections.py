"""Connections that are kept open for nothing are closed: there are only so many of them."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

CHECK_S = 10.0
"""A header that is not there after this time, twice at most, does not come; nor does what follows an answer."""
STALLED_CHECKS = 6
"""So many checks may pass while a client takes nothing of its answer."""


class TimedProtocol(H11Protocol):
    """uvicorn's protocol; by itself it waits for ever for the end of a header, or for a client that does not read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to watch."""
        # What listens on a port has connections that are written to as well.
        super().connection_made(cast(asyncio.Transport, transport))
        self._waiting: object = object()
        self._left_bytes, self._stalled = 0, 0
        self._check = self.loop.call_later(CHECK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._check.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        # Between requests, or before the first one.
        idle = self.cycle is None or self.cycle.response_complete
        left_bytes = self.transport.get_write_buffer_size()
        is_stalled = left_bytes > 0 and left_bytes == self._left_bytes
        self._stalled = self._stalled + 1 if is_stalled else 0
        self._left_bytes = left_bytes
        if (idle and not left_bytes and self._waiting is self.cycle) or self._stalled >= STALLED_CHECKS:
            self.transport.abort()
            return
        self._waiting = self.cycle if idle else object()
        self._check = self.loop.call_later(CHECK_S, self._look)

"""Connections that say nothing: closed after a time, and refused where there are too many.

uvicorn waits without end for the first request of a connection. Enough of them would take every file descriptor.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

FIRST_REQUEST_SECONDS = 5.0  # for the head of the first request
SPARE_DESCRIPTORS = 100  # for weights, the ledger, expert files, and the engine behind this server


def most_connections() -> int:
    """How many connections may be open at a time, by this process's limit of file descriptors."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(limit - SPARE_DESCRIPTORS, 4096))


class LimitedConnection(H11Protocol):
    """uvicorn's connection with these limits."""

    first_request_seconds = FIRST_REQUEST_SECONDS

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > most_connections():
            self.transport.abort()
            return
        self._timer = self.loop.call_later(self.first_request_seconds, self._close_if_quiet)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _close_if_quiet(self) -> None:
        if self.cycle is None:  # no request has begun
            self.transport.abort()

"""uvicorn, with what it lacks: a limit on how long a head takes, a drain, and an end in order."""

import asyncio
import signal
import socket
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from seriatim.errors import SeriatimError
from seriatim.serve.shared import Shared

BACKLOG = 4096
FLUSH = 5  # seconds in which answers that were ended say so


class Server(uvicorn.Server):
    """Serves until a signal; then finishes what is under way, or ends it with an error.

    Meanwhile the listener stays open, so that nobody is reset: what is new is told to go elsewhere.

    Args:
        app: what answers.
        shared: its state.
        ready: called once connections are taken.
    """

    def __init__(self, app: FastAPI, shared: Shared, ready: Callable[[], object]) -> None:
        self.shared, self.ready = shared, ready
        self.received: signal.Signals | None = None
        self._deadline = 0.0
        config = uvicorn.Config(
            app,
            http=_protocol(shared),
            ws="none",
            lifespan="on",
            loop="asyncio",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(shared.limits.idle_seconds),
            timeout_graceful_shutdown=FLUSH,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one aborts."""
        if self.received is None:
            self.received = signal.Signals(sig)
            self.shared.models.draining = True
            self._deadline = monotonic() + self.shared.limits.drain_seconds
        else:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def on_tick(self, counter: int) -> bool:
        drained = self.received is not None and not self.shared.models.busy
        if drained or (self.received is not None and monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.shared.end)  # what is still under way is told so
        await super().shutdown(sockets)


def _protocol(shared: Shared) -> type[H11Protocol]:
    limits = shared.limits

    class Timed(H11Protocol):
        """A connection whose request heads must arrive in time, of a bounded number of them."""

        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()
            if len(self.connections) > limits.connections:
                self._make_room()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._head_came()
            elif self._head is None and not self.transport.is_closing():
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head = self.loop.call_later(limits.header_seconds, self._too_late)

        def _head_came(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _too_late(self) -> None:
            self._head = None
            self.transport.close()

        def _make_room(self) -> None:
            """Close one that waits for nothing; if none does, this one."""
            idle = (c for c in self.connections if _is_idle(c) and c is not self)
            next(idle, self).transport.close()

    return Timed


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or connection.cycle.response_complete


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SeriatimError: the address is taken, or none of this machine's.
    """
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(*info[:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(info[4])
        listener.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise SeriatimError(
            f"cannot listen on {host} port {port}: {error}", fix="choose another --port or --host"
        ) from None
    return listener


def url(listener: socket.socket) -> str:
    """Where a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

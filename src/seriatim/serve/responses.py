"""What goes back: JSON, or server-sent events; and the end of what nobody waits for any more."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from seriatim.serve import own
from seriatim.serve.errors import Fault, Gone, fault_of
from seriatim.serve.fields import Given
from seriatim.serve.shared import Shared

T = TypeVar("T")

END = {"type": "http.response.body", "body": b"", "more_body": False}
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Json(Response):
    """JSON in ASCII: whatever a client sent comes back as valid UTF-8."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status, HEADERS | dict(headers or {}))

    def render(self, content: Any) -> bytes:
        return dumped(content).encode()


async def respond(
    shared: Shared,
    request: Request,
    given: Given,
    *,
    whole: Callable[[], Coroutine[Any, Any, Any]],
    frames: Callable[[], AsyncGenerator[str, None]],
    failed: Callable[[Fault], str],
) -> Response:
    """The whole answer, or its stream if that was asked for.

    Args:
        failed: the frame that says what ended a stream.
    """
    headers = own.headers(given)
    if given.get("stream"):
        return Events(shared, frames(), failed, headers)
    return Json(await unless_gone(request.receive, whole()), headers=headers)


class Events(Response):
    """Frames as they come. Its status is that of the first: until then an error has its own.

    Args:
        frames: server-sent events, whole.
        failed: the frame that says what ended them.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        shared: Shared,
        frames: AsyncGenerator[str, None],
        failed: Callable[[Fault], str],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(None, 200, HEADERS | {"x-accel-buffering": "no"} | dict(headers))
        del self.headers["content-length"]
        self._shared, self._frames, self._failed = shared, frames, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            first = await anext(frames)
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await self._send(send, first)
            try:
                async for frame in frames:
                    await self._send(send, frame)
            except Exception as error:
                if not isinstance(error, Gone):
                    await self._send(send, self._failed(fault_of(error)))
                    await send(END)
                raise  # what it was, the log says
        await send(END)

    async def _send(self, send: Send, frame: str) -> None:
        """One frame; a client that reads nothing for too long counts as gone."""
        message = {"type": "http.response.body", "body": frame.encode(), "more_body": True}
        try:
            async with asyncio.timeout(self._shared.limits.write_seconds):
                await send(message)
        except TimeoutError:
            raise Gone from None


def event(data: Any, name: str = "") -> str:
    """A server-sent event of JSON, which has no line breaks."""
    return f"event: {name}\n" * bool(name) + f"data: {dumped(data)}\n\n"


def dumped(value: Any) -> str:
    """JSON: ASCII, and no NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled as soon as the client is gone.

    Args:
        receive: of a request whose body was read.

    Raises:
        Gone: the client is.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

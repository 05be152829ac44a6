"""The application: every protocol's routes behind one door.

A protocol is a file with `ROUTES`; what it adds is listed in `PROTOCOLS`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from seriatim import __version__
from seriatim.serve import (
    chat,
    completions,
    health,
    listing,
    llamacpp,
    messages,
    openai_responses,
    page,
)
from seriatim.serve.door import Door, refusal
from seriatim.serve.errors import Fault
from seriatim.serve.routes import Route
from seriatim.serve.shared import Shared

PROTOCOLS = (health, listing, completions, chat, openai_responses, messages, llamacpp, page)
ROUTES: tuple[Route, ...] = tuple(route for protocol in PROTOCOLS for route in protocol.ROUTES)


def make(shared: Shared) -> FastAPI:
    """The application of a server.

    Args:
        shared: its models, limits and books.

    Example:
        >>> import seriatim
        >>> from seriatim.serve.served import Served
        >>> shared = Shared()
        >>> shared.models.add(Served("tales", seriatim.load("tales", threads=1), shared.limits))
        >>> shared.models.loading = False
        >>> make(shared).title
        'seriatim'
        >>> shared.stop()
    """
    app = FastAPI(
        title="seriatim",
        version=__version__,
        docs_url=None,  # its pages fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_life(shared),
    )
    for route in ROUTES:
        app.add_api_route(
            route.path,
            _bound(route, shared),
            methods=[route.method],
            response_class=Response,
            summary=route.about,
            openapi_extra=route.openapi,
            operation_id=f"{route.method.lower()}{route.path}",
        )
    for route in page.ROUTES:
        app.add_api_route(
            route.path, _bound(route, shared), methods=["HEAD"], include_in_schema=False
        )
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Door, shared=shared)
    return app


def _bound(route: Route, shared: Shared) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await route.handle(shared, request)

    return handle


def _life(shared: Shared) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        shared.stop()

    return life


async def _refused(request: Request, error: Any) -> Response:
    """No such route, or no such method of it."""
    fault = Fault(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")
    said = refusal(request.scope, fault, request.state.visit.id)
    said.headers.update(error.headers or {})
    return said

"""Whether the server lives, whether it takes requests, and what it did."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from seriatim.serve.responses import Json
from seriatim.serve.routes import ERROR, Route
from seriatim.serve.shared import Shared


async def live(shared: Shared, request: Request) -> Response:
    """The process answers."""
    return Json({"status": "ok"})


async def ready(shared: Shared, request: Request) -> Response:
    """Requests are taken; else why not."""
    why = shared.models.unready
    return Json({"status": "ok"}) if why is None else Json({"status": why}, 503)


async def metrics(shared: Shared, request: Request) -> Response:
    """For Prometheus."""
    return Response(shared.metrics.text(), media_type=CONTENT_TYPE_LATEST)


UNREADY = {"anyOf": [ERROR, {"type": "object", "required": ["status"]}]}
ROUTES = (
    Route("GET", "/livez", live, "The process answers."),
    Route("GET", "/readyz", ready, "Requests are taken.", error=UNREADY),
    Route("GET", "/health", ready, "The same.", error=UNREADY),
    Route("GET", "/metrics", metrics, "For Prometheus.", media="text/plain"),
)

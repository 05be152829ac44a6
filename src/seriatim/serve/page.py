"""The playground: a page in the browser that writes with a model, watching every id.

It is static, the same for everybody and without a key; what it shows it asks of the public API, as
any client does. It loads nothing from elsewhere and runs no script but its own.
"""

from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from seriatim.serve.routes import Route
from seriatim.serve.shared import Shared

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/objects.js": ("objects.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # kept, and asked for again by its tag
}


async def page(shared: Shared, request: Request) -> Response:
    """A file of the page; 304 for whoever has it."""
    name, kind = FILES[request.scope["route"].path]
    body, tag = _file(name)
    headers = HEADERS | {"etag": tag}
    known = request.headers.get("if-none-match", "").split(",")
    if any(given.strip().removeprefix("W/") in (tag, "*") for given in known):
        return Response(None, 304, headers)
    return Response(body, 200, headers, f"{kind}; charset=utf-8")


@cache
def _file(name: str) -> tuple[bytes, str]:
    """A file of the package and its tag."""
    body = files("seriatim.serve").joinpath("static", name).read_bytes()
    return body, f'"{sha256(body).hexdigest()[:32]}"'


ROUTES = tuple(
    Route("GET", path, page, "The playground." if path == "/" else "Of the playground.", media=kind)
    for path, (_, kind) in FILES.items()
)

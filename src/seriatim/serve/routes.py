"""A route: what a protocol's file offers to `app.py`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim.serve.fields import Table
from seriatim.serve.shared import Shared


@dataclass(frozen=True)
class Route:
    """Where it is, what it does, and what its body may hold."""

    method: str
    path: str
    handle: Callable[[Shared, Request], Awaitable[Response]]
    about: str
    table: Table | None = None

    @property
    def openapi(self) -> dict[str, Any]:
        """What the OpenAPI document says of its body."""
        if self.table is None:
            return {}
        body = {"required": True, "content": {"application/json": {"schema": self.table.schema}}}
        return {"requestBody": body}

"""A route: what a protocol's file offers to `app.py`, and what the OpenAPI document says of it."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim.serve.fields import Schema, Table
from seriatim.serve.shared import Shared

JSON, EVENTS = "application/json", "text/event-stream"
ANY = {"type": "object"}
ERROR = {  # in OpenAI's words as well as in Anthropic's
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["type", "message"]}},
}


@dataclass(frozen=True)
class Route:
    """Where it is, what it does, and what its body may hold.

    Attributes:
        media: the type of its answers.
        error: the schema of any other answer.
    """

    method: str
    path: str
    handle: Callable[[Shared, Request], Awaitable[Response]]
    about: str
    table: Table | None = None
    media: str = JSON
    error: Schema | None = None

    @property
    def openapi(self) -> dict[str, Any]:
        """What the OpenAPI document says of it."""
        answer = {self.media: {"schema": ANY if self.media == JSON else {"type": "string"}}}
        if self.table is not None and "stream" in self.table.names:
            answer[EVENTS] = {"schema": {"type": "string"}}
        error = {JSON: {"schema": self.error or ERROR}}
        said: dict[str, Any] = {
            "responses": {
                "200": {"description": "The answer.", "content": answer},
                "default": {"description": "Why there is none.", "content": error},
            },
            "parameters": [_parameter(name) for name in re.findall(r"{(\w+)", self.path)],
        }
        if self.table is not None:
            body = {"required": True, "content": {JSON: {"schema": self.table.schema}}}
            said["requestBody"] = body
        return said


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}

"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

Source: https://docs.anthropic.com/en/api/messages
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim import chatting
from seriatim.chatting import Turn
from seriatim.engine.request import Usage
from seriatim.errors import RequestError, shown
from seriatim.results import Result
from seriatim.serve import own
from seriatim.serve.answers import Answer, answering
from seriatim.serve.errors import Fault
from seriatim.serve.fields import (
    Field,
    Flag,
    Given,
    Ignored,
    Only,
    Real,
    Refused,
    Shaped,
    Table,
    Whole,
)
from seriatim.serve.responses import Json, event, respond
from seriatim.serve.routes import Route
from seriatim.serve.served import Asked, Served
from seriatim.serve.shared import Shared

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "not_found_error", 413: "request_too_large", 429: "overloaded_error",
         503: "overloaded_error", 529: "overloaded_error"}  # fmt: skip


def error(fault: Fault, id: str = "") -> tuple[int, dict[str, Any]]:
    """Status and body of a fault; a busy server is 529 here."""
    status = 529 if fault.status == 429 else fault.status
    other = "api_error" if status >= 500 else "invalid_request_error"
    said = {"type": KINDS.get(status, other), "message": fault.message}
    return status, {"type": "error", "error": said, "request_id": id or None}


# ---- fields ------------------------------------------------------------------------------------


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Messages as templates take them; neighbours of one role are one."""
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name} is {shown(value)}", expected="a list of messages")
    made: list[dict[str, Any]] = []
    for place, message in enumerate(value):
        one = _message(f"{name}[{place}]", message)
        if made and made[-1]["role"] == one["role"]:
            one["content"] = f"{made.pop()['content']}\n{one['content']}"
        made.append(one)
    return made


def _message(name: str, message: Any) -> dict[str, Any]:
    match message:
        case {"role": "user" | "assistant" as role, "content": content, **rest} if not rest:
            return {"role": role, **_content(f"{name}.content", content, role)}
    raise RequestError(
        f"{name} is {shown(message)}", expected='{"role": "user" or "assistant", "content": ...}'
    )


def _content(name: str, content: Any, role: str) -> dict[str, str]:
    """Text, and of an assistant what it thought."""
    if isinstance(content, str):
        return {"content": content}
    if not isinstance(content, list):
        raise RequestError(f"{name} is {shown(content)}", expected="text, or a list of blocks")
    texts, thoughts = [], []
    for place, block in enumerate(content):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking", "thinking": str(thought)} if role == "assistant":
                thoughts.append(thought)
            case _:
                seen = f"{name}[{place}] is {shown(block)}"
                raise RequestError(seen, expected="a block of text: only text is taken")
    thought = {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
    return {"content": "\n".join(texts)} | thought


def _system(name: str, value: Any) -> str:
    return _content(name, value, "system")["content"]


def _stops(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        raise RequestError(f"{name} is {shown(value)}", expected="a list of strings")
    return own.stops(name, value)


def _thinking(name: str, value: Any) -> dict[str, Any]:
    """What a chat's options make of it."""
    match value:
        case {"type": "enabled", "budget_tokens": budget}:
            return {"think_budget": Whole(1).check(f"{name}.budget_tokens", budget)}
        case {"type": "disabled"}:
            return {"variables": {"enable_thinking": False}}
        case {"type": "adaptive"}:
            return {}
    raise RequestError(
        f"{name} is {shown(value)}", expected='{"type": "enabled", "budget_tokens": ...} or others'
    )


def _output(name: str, value: Any) -> dict[str, Any]:
    match value:
        case {"format": {"type": "json_schema", "schema": dict(schema)}, **rest} if not rest:
            return schema
    raise RequestError(
        f"{name} is {shown(value)}", expected='{"format": {"type": "json_schema", "schema": ...}}'
    )


OBJECT, ARRAY = {"type": "object"}, {"type": "array"}
TALK = (
    own.MODEL,
    Field("messages", Shaped(_messages, ARRAY | {"items": OBJECT}),
          "of `user` and `assistant`; text, or blocks of text; an assistant's at the end goes on",
          required=True),
    Field("system", Shaped(_system, {}), "text, or blocks of text"),
    Field("thinking", Shaped(_thinking, OBJECT),
          "`enabled` with its budget, `disabled` (the template is told `enable_thinking`), "
          "`adaptive`"),
    Field("output_config", Shaped(_output, OBJECT), "`format`: a JSON schema of the text"),
    Field("tools", Refused("tool calls are not parsed by this server"), ""),
    Field("tool_choice", Refused(), ""),
    Field("cache_control", Ignored(), "prompts are always cached"),
)  # fmt: skip
COUNTED = Table(TALK)
TABLE = Table(
    (
        *TALK,
        Field("max_tokens", Whole(1), "an upper bound", "max_tokens", required=True),
        Field("temperature", Real(0, 1), "0 is greedy", "temperature", 1.0),
        Field("top_p", Real(0, 1, above=True), "", "top_p", 1.0),
        Field("stop_sequences", Shaped(_stops, own.STRINGS), "the text ends before them"),
        Field("stream", Flag(), "server-sent events"),
        own.SEED,
        *own.OWN,
        Field("metadata", Ignored(), ""),
        Field("service_tier", Only(("auto", "standard_only")), "there is one"),
        Field("container", Refused(), ""),
        Field("mcp_servers", Refused(), ""),
        Field("context_management", Refused(), ""),
    )
)


# ---- the routes ---------------------------------------------------------------------------------


async def messages(shared: Shared, request: Request) -> Response:
    """An answer to a conversation, whole or as a stream."""
    given = await shared.read(request, TABLE)
    served = shared.models.get(given.get("model"))
    return await respond(
        shared,
        request,
        given,
        whole=lambda: _whole(shared, served, given, request),
        frames=lambda: _frames(shared, served, given, request),
        failed=_failed,
    )


async def count_tokens(shared: Shared, request: Request) -> Response:
    """How many ids a conversation is."""
    given = await shared.read(request, COUNTED)
    served = shared.models.get(given.get("model"))
    async with answering(shared, served, 1, COUNTED.names, request) as answer:
        turn = await answer.run(lambda: _turn(served, given))
    return Json({"input_tokens": len(turn.ids)}, headers=own.headers(given))


@dataclass(frozen=True)
class Message:
    """A message under way."""

    given: Given
    served: Served
    answer: Answer
    turn: Turn
    id: str

    def whole(self, content: Sequence[Any], usage: Usage) -> dict[str, Any]:
        """The message, with what was said and counted so far."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.served.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def ended(self, result: Result) -> dict[str, Any]:
        """Why it ended, in the protocol's words."""
        if result.finish_reason == "length":
            full = result.stop == "context"
            why = "model_context_window_exceeded" if full else "max_tokens"
            return {"stop_reason": why, "stop_sequence": None}
        met = result.stop if result.stop in self.given.get("stop_sequences", ()) else None
        return {"stop_reason": "stop_sequence" if met else "end_turn", "stop_sequence": met}

    def account(self, result: Result) -> dict[str, Any]:
        """What the protocol has no words for."""
        more = {"seed": result.seed, "stop": result.stop, "token_ids": result.ids}
        return {"seriatim": own.account(self.given) | more}


@asynccontextmanager
async def _open(
    shared: Shared, served: Served, given: Given, request: Request
) -> AsyncIterator[Message]:
    async with answering(shared, served, 1, TABLE.names, request) as answer:
        turn = await answer.run(lambda: _turn(served, given))
        options = given.options | {"tenant": request.state.tenant}
        if schema := given.get("output_config"):
            options["json_schema"] = schema
        stop = given.get("stop_sequences", ())
        await answer.open(Asked([turn.ids], options, 1, stop, turn.extras))
        yield Message(given, served, answer, turn, f"msg_{token_hex(12)}")


def _turn(served: Served, given: Given) -> Turn:
    """The conversation as the model reads it. For a worker."""
    talk = given.get("messages")
    if (system := given.get("system")) is not None:
        talk = [{"role": "system", "content": system}, *talk]
    served.check_text("".join(m["content"] for m in talk))
    goes_on = talk[-1]["role"] == "assistant"
    how = given.get("thinking", {})
    return chatting.turn(served.model, talk, served.template, continue_final=goes_on, **how)


async def _whole(shared: Shared, served: Served, given: Given, request: Request) -> dict[str, Any]:
    async with _open(shared, served, given, request) as made:
        (result,) = await made.answer.results()
        parts = _parts(*made.turn.split(result.text))
        content = [_block(kind) | {kind: text} for kind, text in parts]
        whole = made.whole(content, result.usage)
        return whole | made.ended(result) | made.account(result)


async def _frames(
    shared: Shared, served: Served, given: Given, request: Request
) -> AsyncGenerator[str, None]:
    """The events of a message: its start, its blocks, why it ended, its end."""
    async with _open(shared, served, given, request) as made:
        blocks, splitter = Blocks(), made.turn.splitter()
        usage = made.answer.streams[0].request.usage
        started = False
        async with aclosing(made.answer.follow()) as steps:
            async for _, what in steps:
                if not started:
                    started = True
                    yield _event("message_start", message=made.whole([], usage))
                ended = isinstance(what, Result)
                pair = splitter.finish() if ended else splitter.feed(what.text)
                for frame in blocks.add(_parts(*pair)):
                    yield frame
                if ended:
                    for frame in blocks.close():
                        yield frame
                    last = {"delta": made.ended(what), "usage": _usage(what.usage)}
                    yield _event("message_delta", **last, **made.account(what))
    yield _event("message_stop")


class Blocks:
    """The blocks of a stream: thinking, then text, each opened when it has something."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""

    def add(self, parts: Sequence[tuple[str, str]]) -> list[str]:
        """What texts add, each with its kind."""
        frames: list[str] = []
        for kind, text in parts:
            if kind != self._kind:
                frames += [*self.close(), self._opened(kind)]
            delta = {"type": f"{kind}_delta", kind: text}
            frames.append(_event("content_block_delta", index=self._index, delta=delta))
        return frames

    def close(self) -> list[str]:
        """The end of the open one, if there is one."""
        open, self._kind = self._kind, ""
        return [_event("content_block_stop", index=self._index)] if open else []

    def _opened(self, kind: str) -> str:
        self._kind, self._index = kind, self._index + 1
        return _event("content_block_start", index=self._index, content_block=_block(kind))


def _parts(thought: str, said: str) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in (("thinking", thought), ("text", said)) if text]


def _block(kind: str) -> dict[str, str]:
    """An empty block; nobody signs what was thought."""
    return {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})


def _usage(usage: Usage) -> dict[str, int]:
    """Counts of ids; those from the cache are counted apart."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.generated,
    }


def _event(name: str, **data: Any) -> str:
    return event({"type": name, **data}, name)


def _failed(fault: Fault) -> str:
    return event(error(fault)[1], "error")


ROUTES = (
    Route("POST", "/v1/messages", messages, "A conversation goes on.", TABLE),
    Route("POST", "/v1/messages/count_tokens", count_tokens, "How many ids it is.", COUNTED),
)

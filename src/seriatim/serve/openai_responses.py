"""OpenAI's `/v1/responses`, stateless: nothing is stored, and the whole conversation is given.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seriatim.chatting import Turn
from seriatim.errors import RequestError, shown
from seriatim.results import Result
from seriatim.serve import calling, openai, openai_input, own
from seriatim.serve.answers import Answer, answering
from seriatim.serve.calling import Wanted
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
    Text,
    Whole,
)
from seriatim.serve.hearing import Hearing, heard, thought_ids
from seriatim.serve.openai_items import Items
from seriatim.serve.responses import event, respond
from seriatim.serve.routes import Route
from seriatim.serve.served import Asked, Served
from seriatim.serve.shared import Shared
from seriatim.serve.tools import Calling


def _include(name: str, value: Any) -> list[str]:
    if value != []:
        raise RequestError(f"{name} is {shown(value)}", expected="an empty list")
    return []


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or any(v is not None for v in value.values()):
        raise RequestError(
            f"{name} is {shown(value)}", fix="give chat_template_kwargs or think_budget"
        )
    return {}


OBJECT, ARRAY = {"type": "object"}, {"type": "array"}
STORED = Refused("nothing is stored: send the whole conversation as input")
TABLE = Table(
    (
        own.MODEL,
        Field("input", Shaped(openai_input.messages, openai_input.INPUT),
              "a text, or items: messages of text, `function_call`, `function_call_output`, "
              "`reasoning`", required=True),
        Field("instructions", Text(), "a system message before all others"),
        Field("max_output_tokens", Whole(1), "an upper bound", "max_tokens",
              "until the context is full"),
        Field("temperature", Real(0, 2), "0 is greedy", "temperature", 1.0),
        Field("top_p", Real(0, 1, above=True), "", "top_p", 1.0),
        Field("text", Shaped(openai_input.text, OBJECT),
              "`format`: `text`, `json_object` or `json_schema`"),
        Field("tools", Shaped(openai_input.offered, ARRAY | {"items": OBJECT}),
              "functions, shown by the template; with `strict` arguments are by their schema"),
        Field("tool_choice", Shaped(openai_input.choice, openai.CHOICE),
              "`none`: they are not shown; `auto`; `required`, or one by its name: a call comes"),
        Field("parallel_tool_calls", Flag(), "false: one call at most"),
        Field("stream", Flag(), "server-sent events"),
        Field("stream_options", Only(({"include_obfuscation": False}, {})), "only with `stream`"),
        Field("store", Only((False,)), "nothing is stored"),
        Field("previous_response_id", STORED, ""),
        Field("conversation", STORED, ""),
        Field("background", Only((False,)), "answers are waited for"),
        Field("include", Shaped(_include, ARRAY), "nothing more than there is"),
        Field("reasoning", Shaped(_reasoning, OBJECT), "no more than empty"),
        Field("truncation", Only(("disabled",)), "nothing is cut"),
        Field("chat_template_kwargs", Shaped(own.variables, OBJECT),
              "what else the template knows"),
        Field("think_budget", Whole(0), "the most ids of reasoning"),
        own.SEED,
        *own.OWN,
        Field("max_tool_calls", Refused(), ""),
        Field("prompt", Refused(), ""),
        Field("top_logprobs", Refused("/v1/chat/completions gives them"), ""),
        Field("context_management", Refused(), ""),
        Field("service_tier", Only(("auto", "default")), "there is one"),
        Field("prompt_cache_retention", Ignored(), ""),
        *openai.IGNORED,
    )
)  # fmt: skip


async def responses(shared: Shared, request: Request) -> Response:
    """An answer to a conversation, whole or as a stream."""
    given = await shared.read(request, TABLE)
    openai.check_streaming(given)
    served = shared.models.get(given.get("model"))
    telling = Telling()
    frames = partial(_frames, telling=telling)
    return await respond(
        shared, served, given, request, whole=_whole, frames=frames, failed=telling.failed
    )


class Telling:
    """Makes the frames of one stream: each event has a number."""

    def __init__(self) -> None:
        self._number = -1

    def __call__(self, name: str, /, **what: Any) -> str:
        """An event."""
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **what}, name)

    def failed(self, fault: Fault) -> str:
        """What ends a stream that failed; `error` is where their client looks."""
        said = openai.error(fault)[1]
        told = {key: said["error"][key] for key in ("code", "message", "param")}
        return self("error", **told, **said)


@dataclass(frozen=True)
class Reply:
    """A response under way: the same facts in each of its events."""

    given: Given
    served: Served
    answer: Answer
    turn: Turn
    calling: Calling | None  # None: no tools
    id: str
    created: int

    def begun(self) -> dict[str, Any]:
        """The response before anything was said."""
        given, offered = self.given, self.given.get("tools", [])
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": self.served.name,
            "output": [],
            "usage": None,
            "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"),
            "temperature": given.get("temperature", 1.0),
            "top_p": given.get("top_p", 1.0),
            "text": given.get("text") or {"format": {"type": "text"}},
            "tools": [_flat(tool["function"]) for tool in offered],
            "tool_choice": _chosen(given.get("tool_choice", "auto")),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "metadata": given.get("metadata", {}),
            "previous_response_id": None,
            "background": False,
            "store": False,
            "truncation": "disabled",
            "service_tier": "default",
        }

    def ended(self, result: Result, items: Items) -> dict[str, Any]:
        """The response as it is at its end."""
        cut = result.finish_reason == "length"
        more = {"seed": result.seed, "stop": result.stop, "token_ids": result.ids}
        return self.begun() | {
            "status": _status(result),
            "completed_at": None if cut else int(time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": items.done,
            "usage": self._usage(result),
            "seriatim": own.account(self.given) | more,
        }

    def _usage(self, result: Result) -> dict[str, Any]:
        usage = result.usage
        thought = thought_ids(self.served.model, self.turn, result.ids)
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.generated,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": usage.prompt + usage.generated,
        }


@asynccontextmanager
async def _open(
    shared: Shared, served: Served, given: Given, request: Request
) -> AsyncIterator[Reply]:
    async with answering(shared, served, 1, TABLE.names, request) as answer:
        options, wanted = _options(given) | {"tenant": request.state.tenant}, _wanted(given)
        turn, reading = await answer.run(
            lambda: calling.turn(
                served,
                _talk(given),
                wanted,
                options,
                think_budget=given.get("think_budget"),
                variables=given.get("chat_template_kwargs"),
            )
        )
        slow = wanted is not None and wanted.constrained
        await answer.open(Asked([turn.ids], options, 1, (), turn.extras, slow=slow))
        yield Reply(given, served, answer, turn, reading, f"resp_{token_hex(12)}", int(time()))


def _wanted(given: Given) -> Wanted | None:
    """What it says of tools; None where none are shown."""
    single = given.get("parallel_tool_calls") is False
    return calling.wanted(given.get("tools"), given.get("tool_choice", "auto"), single=single)


def _talk(given: Given) -> list[dict[str, Any]]:
    first = given.get("instructions")
    before = [] if first is None else [{"role": "system", "content": first}]
    return [*before, *given.get("input")]


def _options(given: Given) -> dict[str, Any]:
    options = given.options
    if (schema := openai_input.schema(given.get("text", {}))) is not None:
        if "json_schema" in options:
            raise Fault(400, "json_schema and text.format are both given", param="json_schema")
        options["json_schema"] = schema
    return options


async def _whole(shared: Shared, served: Served, given: Given, request: Request) -> dict[str, Any]:
    async with _open(shared, served, given, request) as made:
        (result,) = await made.answer.results()
        items = Items(Telling())
        items.add(heard(made.turn, made.calling, result.text))
        items.finish(_status(result))
        return made.ended(result, items)


async def _frames(
    shared: Shared, served: Served, given: Given, request: Request, telling: Telling
) -> AsyncGenerator[str, None]:
    """The events of a response: its beginning, its items, its end."""
    async with _open(shared, served, given, request) as made:
        items, hearing, started = Items(telling), Hearing(made.turn, made.calling), False
        async with aclosing(made.answer.follow()) as steps:
            async for _, what in steps:
                if not started:
                    started = True
                    yield telling("response.created", response=made.begun())
                    yield telling("response.in_progress", response=made.begun())
                ended = isinstance(what, Result)
                said = hearing.finish() if ended else hearing.feed(what.text)
                for frame in items.add(said):
                    yield frame
                if ended:
                    for frame in items.finish(_status(what)):
                        yield frame
                    whole = made.ended(what, items)
                    yield telling(f"response.{_status(what)}", response=whole)


def _status(result: Result) -> str:
    return "incomplete" if result.finish_reason == "length" else "completed"


def _flat(function: dict[str, Any]) -> dict[str, Any]:
    """A tool as it is given here."""
    default = {"description": None, "parameters": None, "strict": False}
    return {"type": "function", **default, **function}


def _chosen(choice: str) -> Any:
    return {"type": "function", "name": choice[1:]} if choice.startswith("=") else choice


ROUTES = (Route("POST", "/v1/responses", responses, "A conversation goes on, stateless.", TABLE),)

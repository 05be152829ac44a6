"""What a caller gives a chat template: checked, and marked as the caller's."""

import re
from collections.abc import Mapping
from typing import Any

from seriatim.codecs._traced import GIVEN, Traced
from seriatim.errors import RequestError, shown

MOST_MESSAGES, DEEPEST = 100_000, 32
TAKEN = {"messages", "tools", "documents", "add_generation_prompt"}
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages with roles and contents; a content in parts of text is one text, a line each part.

    Raises:
        RequestError: the first that is none, by its place.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(
            f"messages is {shown(messages)}", expected='a list of {"role": ..., "content": ...}'
        )
    if len(messages) > MOST_MESSAGES:
        raise RequestError(f"there are {len(messages)} messages", expected=f"up to {MOST_MESSAGES}")
    return [_message(f"messages[{place}]", message) for place, message in enumerate(messages)]


def _message(name: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {shown(message)}", expected="a role and a content")
    role = message.get("role")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise RequestError(
            f"{name} has the role {shown(role)}", expected="user, assistant, system or another word"
        )
    if message.get("content") is None and not message.get("tool_calls"):
        raise RequestError(f"{name} has no content", expected="text")
    _check_json(name, message)
    return {**message, "content": _content(f"{name}['content']", message.get("content"))}


def _content(name: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(f"{name} is {shown(content)}", expected="text")
    texts = []
    for place, part in enumerate(content):
        match part:
            case {"type": "text", "text": str(words), **rest} if not rest:
                texts.append(words)
            case _:
                expected = '{"type": "text", "text": ...}: only text is taken'
                raise RequestError(f"{name}[{place}] is {shown(part)}", expected=expected)
    return "\n".join(texts)


def _check_json(name: str, value: Any, depth: int = 0) -> None:
    """Refuses what JSON does not have: templates see data, never objects."""
    if depth > DEEPEST:
        raise RequestError(f"{name} is nested deeper than {DEEPEST}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RequestError(f"{name} has the key {shown(key)}", expected="text")
            _check_json(f"{name}[{shown(key)}]", item, depth + 1)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_json(f"{name}[{place}]", item, depth + 1)
    elif not isinstance(value, str | int | float | None):
        raise RequestError(f"{name} is {shown(value)}", expected="what JSON can say")


def checked_tools(tools: Any) -> list[Any]:
    """JSON schemas of functions.

    Raises:
        RequestError: they are none.
    """
    known = isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)
    if not known:
        raise RequestError(f"tools is {shown(tools)}", expected="a list of JSON schemas")
    _check_json("tools", tools)
    return list(tools)


def checked_variables(variables: Any) -> Mapping[str, Any]:
    """What else a template knows, by names that mean nothing else.

    Raises:
        RequestError: they are none.
    """
    if not isinstance(variables, Mapping):
        raise RequestError(f"variables is {shown(variables)}", expected="values by name")
    _check_json("variables", variables)
    if taken := sorted(TAKEN & variables.keys()):
        raise RequestError(f"variables has {taken[0]!r}", fix="give it by its own option")
    return variables


def traced(value: Any) -> Any:
    """The same data, all its text the caller's own."""
    if isinstance(value, str):
        return Traced(value, GIVEN)
    if isinstance(value, Mapping):
        return {Traced(name, GIVEN): traced(item) for name, item in value.items()}
    return [traced(item) for item in value] if isinstance(value, list | tuple) else value


def size(value: Any) -> int:
    """How many characters of text, and other values."""
    if isinstance(value, Mapping):
        return sum(size(name) + size(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(size, value))
    return len(value) if isinstance(value, str) else 1

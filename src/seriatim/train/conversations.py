"""Conversations to ids by a model's own chat template, and which of them are to be learned.

Learned is what the assistant says: of each of its turns the ids that follow those with which the
model would be asked for it, up to the one that ends it. That is read off the template's own
renderings, so it is exact or refused; an id that is only read is given as `~id`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.codecs import Codec
from seriatim.codecs._messages import checked_messages
from seriatim.codecs._wrapped import Wrapped
from seriatim.codecs.chat import ChatCodec, Template, Templates
from seriatim.errors import RequestError, shown
from seriatim.train import shards
from seriatim.train.batches import Group
from seriatim.train.report import Note, Report

if TYPE_CHECKING:
    from seriatim.train.data import Prepared

ROLES = ("assistant", "developer", "function", "system", "tool", "user")
PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Conversations(Wrapped):
    """A text codec that also reads conversations, as JSON: {"messages": [...], "tools": [...]}.

    Args:
        base: the model's codec.
        templates: of the model.

    Raises:
        RequestError: the model has no template, or one by which no id ends an answer.
    """

    def __init__(self, base: Codec, templates: Templates) -> None:
        super().__init__(base)
        self.name, self.templates = base.name, templates
        template = templates.get(None)
        end = _end(template, template.render(PROBE, answer=False).tail)
        self.ends = tuple(dict.fromkeys([*base.ends, end]))

    def cut(self, data: bytes, /) -> int:
        """Nowhere."""
        return 0

    def encode_many(self, pieces: Sequence[bytes], /) -> list[np.ndarray]:
        """The ids of each conversation, `~id` where they are only read: int32 [id].

        Raises:
            RequestError: a conversation that is none, or that cannot be told apart exactly.
        """
        return [self._learned(json.loads(piece)) for piece in pieces]

    def prompt(self, raw: str, /) -> list[int]:
        """The ids by which the model is asked for an answer to a message."""
        template = self.templates.get(None)
        return self._ids(template, template.render([{"role": "user", "content": raw}]).parts)

    def save(self, folder: Path, /) -> None:
        """Writes the files of the codec below, and the templates."""
        self.base.save(folder)
        self.templates.save(folder)

    def _ids(self, template: Template, parts: Sequence[str | int]) -> list[int]:
        return self.base.weave(parts, quoted=template.controls)

    def _learned(self, record: Mapping[str, Any]) -> np.ndarray:
        messages, tools = _checked(record["messages"]), record.get("tools") or None
        template = self.templates.get(None, tools=bool(tools))
        rendered = template.render(messages, tools=tools, answer=False)
        ids = np.array(self._ids(template, rendered.parts), np.int32)
        mark = np.zeros(len(ids), bool)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                before = template.render(messages[:place], tools=tools)
                begin = _prefix(place, self._ids(template, before.parts), ids)
                turn = template.render(messages[: place + 1], tools=tools, answer=False)
                ends = np.flatnonzero(ids[begin:] == _end(template, turn.tail))
                if not len(ends):
                    raise _otherwise(place)
                if not ends[0]:
                    raise RequestError(f"the chat template writes nothing of messages[{place}]")
                mark[begin : begin + ends[0] + 1] = True
        return np.where(mark, ids, ~ids)


def of(
    codec: Codec, path: Path, metadata: Mapping[str, Any] = MappingProxyType({})
) -> Conversations:
    """The codec of a model folder, or of a GGUF file with its metadata, and the templates there.

    Raises:
        RequestError: it has none that can be learned by.
    """
    base = codec.base if isinstance(codec, ChatCodec) else codec
    return Conversations(base, Templates.of(path, metadata, base))


def fitting(parts: "Prepared", context: int, say: Report) -> "Prepared":
    """Without conversations longer than `context`, which are counted: none is cut.

    It says which share of the ids is learned.

    Raises:
        RequestError: all are longer, or all that are held out.
    """
    groups = tuple(_short(group, context) for group in parts.groups)
    held = tuple(ids for ids in parts.held if len(ids) <= context + 1)
    documents = sum(len(group.starts) for group in groups)
    every, kept = parts.documents + len(parts.held), documents + len(held)
    if not documents or not held:
        which = "conversation" if not documents else "held-out conversation"
        raise RequestError(f"every {which} is longer than {context} ids", fix="raise the context")
    if long := every - kept:
        seen = f"{long:,} of {every:,} conversations are longer than {context} ids"
        say(Note(f"{seen} and left out: raise the context to learn from them"))
    ids, learned = sum(group.pairs for group in groups), sum(map(_count, groups))
    say(Note(f"{learned:,} of {ids:,} ids are learned ({learned / ids:.1%}): the assistant's"))
    return replace(parts, groups=groups, held=held, documents=documents, ids=ids)


def _short(group: Group, context: int) -> Group:
    fits = group.ends - group.starts - 1 <= context
    return replace(group, starts=group.starts[fits], ends=group.ends[fits])


def _count(group: Group) -> int:
    """How many ids of a group are learned."""
    spans = zip(group.starts.tolist(), group.ends.tolist(), strict=True)
    found = (group.corpus.ids(start, end - start) for start, end in spans)
    return sum(int(shards.learned(ids[1:]).sum()) for ids in found)


def _checked(messages: Any) -> list[dict[str, Any]]:
    """Messages that an answer can be learned from.

    Raises:
        RequestError: they are none.
    """
    checked = checked_messages(messages)
    for place, message in enumerate(checked):
        if message["role"] not in ROLES:
            seen = f"messages[{place}] has the role {shown(message['role'])}"
            raise RequestError(seen, expected=f"one of {', '.join(ROLES)}")
        if message["role"] == "assistant" and not (message["content"] or message.get("tool_calls")):
            raise RequestError(f"messages[{place}] is empty", expected="what the assistant says")
    if checked[0]["role"] == "assistant":
        raise RequestError("messages[0] is the assistant's", expected="what it answers")
    if all(message["role"] != "assistant" for message in checked):
        raise RequestError("no message is the assistant's", expected="one to learn")
    return checked


def _prefix(place: int, before: Sequence[int], ids: np.ndarray) -> int:
    """How many ids the model is given before it answers: those with which the whole begins."""
    if not np.array_equal(before, ids[: len(before)]):
        raise _otherwise(place)
    return len(before)


def _otherwise(place: int) -> RequestError:
    return RequestError(
        f"the chat template writes messages[{place}] and what stands before it otherwise than it "
        "asks for that message, so what is to be learned cannot be told apart"
    )


def _end(template: Template, tail: str) -> int:
    """The id that ends a turn: the first special one after its last word, else the first added."""
    ids = [part for part in template.cut(tail) if isinstance(part, int)]
    special = [id for id in ids if id in template.specials]
    if not ids:
        raise RequestError(
            "the chat template ends an answer with no id of its own",
            expected="one that tells the model to stop, such as <|im_end|>",
        )
    return (special or ids)[0]

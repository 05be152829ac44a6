"""`Model.chat`: messages to a request, its text to a message. Used by `api.py`.

A chat is a request like any other: `codecs/chat.py` makes its prompt, a guide keeps the budget of
its reasoning, and what it says is told apart afterwards, from the text alone.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from seriatim import requesting
from seriatim.codecs import Codec
from seriatim.codecs import Stream as Decoding
from seriatim.codecs._messages import checked_messages
from seriatim.codecs._reasoning import Markers, Splitter, of_template
from seriatim.codecs.chat import Message, Template, Templates
from seriatim.engine.options import whole
from seriatim.errors import RequestError, shown
from seriatim.requesting import Asked, Extras, Visible, codec_of
from seriatim.results import Piece, Result, Stream, with_samples

Fresh = Callable[[], tuple[Decoding, Splitter]]  # what reads an answer, at its beginning


class Talks(Asked, Protocol):
    """What is asked of a model here."""

    @property
    def templates(self) -> Templates: ...


@dataclass(frozen=True)
class Turn:
    """One answer to come: its prompt, what the request needs beside its options, how it is read."""

    ids: list[int]
    extras: Extras
    splitter: Callable[[], Splitter]
    begun: str  # content that the answer continues

    def split(self, text: str) -> tuple[str, str]:
        """What of a text was thought, and what was said after it."""
        splitter = self.splitter()
        (thought, said), (more, rest) = splitter.feed(text), splitter.finish()
        return thought + more, said + rest

    def message(self, text: str) -> dict[str, Any]:
        """The message that a text is."""
        thought, said = self.split(text)
        message = {"role": "assistant", "content": self.begun + said}
        return message | ({"reasoning_content": thought} if thought else {})


class ChatStream:
    """A message under way: an iterator over its pieces. To close or drop it ends the request."""

    def __init__(self, stream: Stream, turn: Turn) -> None:
        self._stream, self._turn, self._splitter = stream, turn, turn.splitter()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        try:
            return self._split(next(self._stream))
        except StopIteration:
            thought, said = self._splitter.finish()
            if not thought and not said:
                raise
            return Piece(said, [], thought)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for piece in self._stream:
            yield self._split(piece)
        for piece in self:  # what was held back
            yield piece

    def close(self) -> None:
        """Abort the request and free its cache."""
        self._stream.close()

    def result(self) -> Result:
        """The whole answer: what the pieces fold into."""
        result = self._stream.result()
        return replace(result, message=self._turn.message(result.text))

    def _split(self, piece: Piece) -> Piece:
        thought, said = self._splitter.feed(piece.text)
        return Piece(said, piece.ids, thought)


class Budget:
    """A guide: after so many ids of reasoning, only the marker that ends it may come.

    Which id may come depends on the ids so far alone; they are read once where one call's ids
    continue those of the last.
    """

    def __init__(self, ids: int, close: Sequence[int], size: int, fresh: Fresh) -> None:
        self._ids, self._close, self._size, self._fresh = ids, close, size, fresh
        self._restart()

    def mask(self, ids: Sequence[int], /) -> np.ndarray | None:
        """The one id of the marker that is due, or None: anything may come."""
        if list(ids[: len(self._read)]) != self._read:
            self._restart()
        for id in ids[len(self._read) :]:
            self._spent += self._splitter.reasoning
            self._splitter.feed(self._decoding.feed(id))
            self._read.append(id)
        due = self._spent - self._ids
        if not self._splitter.reasoning or not 0 <= due < len(self._close):
            return None
        words = np.zeros(-(-self._size // 32), np.uint32)
        words[self._close[due] // 32] = 1 << self._close[due] % 32
        return words

    def complete(self, ids: Sequence[int], /) -> bool:
        """Never: an answer follows."""
        return False

    def _restart(self) -> None:
        self._read: list[int] = []
        self._spent = 0
        self._decoding, self._splitter = self._fresh()


def chat(
    model: Talks,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str | Path | None = None,
    continue_final: bool = False,
    think_budget: int | None = None,
    variables: Mapping[str, Any] | None = None,
    stream: bool = False,
    n: int = 1,
    stop: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """Answer a conversation, by the model's own template.

    Args:
        messages: {"role": ..., "content": ...} each; no content is ever read as special ids.
        tools: JSON schemas of functions, for templates that show them.
        template: Jinja, or a `Path` to it, instead of the model's own.
        continue_final: go on with the last message, an assistant's, instead of a new one.
        think_budget: the most ids of reasoning; then the marker that ends it is forced.
        variables: what else the template knows, such as {"enable_thinking": False}.
        stream: give the pieces as they come: each has `.text` and `.reasoning`.
        n, stop, options: as `generate`.

    Returns:
        A `Result` with `.message`, whose reasoning_content is kept apart from its content; or,
        with `stream`, an iterator over pieces whose `.result()` is that.

    Raises:
        RequestError: messages that are none, a template that is missing, that refuses them or
            that does what no template may; options as for `generate`.

    Example:
        >>> import seriatim
        >>> model = seriatim.load("tales", threads=1)
        >>> plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
        >>> told = [{"role": "user", "content": "Once upon a time"}]
        >>> model.chat(told, template=plain, max_tokens=8, seed=1).message["role"]
        'assistant'
    """
    count = whole("n", n, 1, requesting.MOST_SAMPLES)
    if not isinstance(stream, bool):
        raise RequestError(f"stream is {shown(stream)}", expected="True or False")
    if stream and count > 1:
        raise RequestError(f"n is {n} and stream is True", expected="one sample of it")
    asked = turn(
        model, messages, template, tools=tools, continue_final=continue_final,
        think_budget=think_budget, variables=variables,
    )  # fmt: skip
    if stream:
        opened = requesting.open_stream(model, asked.ids, stop, options, extras=asked.extras)
        return ChatStream(opened, asked)
    result = requesting.run(model, [asked.ids], count, stop, options, asked.extras)[0]
    return with_samples([replace(s, message=asked.message(s.text)) for s in result.samples])


def turn(
    model: Talks,
    messages: Sequence[Message],
    template: str | Path | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final: bool = False,
    think_budget: int | None = None,
    variables: Mapping[str, Any] | None = None,
    marks: Sequence[str] = (),
) -> Turn:
    """What a conversation asks for, checked before any work; arguments as for `chat`.

    Special ids of the texts `marks` are part of the answer's text, as reasoning's markers are.
    """
    codec = codec_of(model, "a chat")
    if not isinstance(continue_final, bool):
        raise RequestError(f"continue_final is {shown(continue_final)}", expected="True or False")
    made = model.templates.get(template, tools=bool(tools))
    begun = _begun(messages) if continue_final else ""
    given = {} if variables is None else variables
    rendered = made.render(messages, tools=tools, continue_final=continue_final, variables=given)
    ids = codec.weave(rendered.parts, quoted=made.controls)
    markers = of_template(made.source)
    visible = _shown(made, (*(markers or ()), *marks))

    def fresh() -> tuple[Decoding, Splitter]:
        return Visible(codec.stream(after=ids), visible), Splitter(markers, rendered.tail)

    budget: list[Callable[[], Budget]] = []
    if think_budget is not None:
        most, close = whole("think_budget", think_budget, 0), _close(codec, made, markers)
        budget = [lambda: Budget(most, close, model.vocab_size, fresh)]
    return Turn(ids, Extras(visible, budget), lambda: fresh()[1], begun)


def _close(codec: Codec, template: Template, markers: Markers | None) -> list[int]:
    """The ids that end reasoning."""
    if markers is None:
        raise RequestError(
            "think_budget is given and the template has no markers of reasoning", fix="leave it out"
        )
    return codec.weave(template.cut(markers.close))


def _begun(messages: Sequence[Message]) -> str:
    """The content of the message that is to go on."""
    last = checked_messages(messages)[-1]
    if last["role"] != "assistant" or not last["content"]:
        raise RequestError(
            f"continue_final is True and the last message is {shown(messages[-1])}",
            expected="an assistant's, with a content",
        )
    return last["content"]


def _shown(template: Template, markers: Sequence[str]) -> dict[int, str]:
    """Special ids that markers are made of, by which an answer is told apart, as text."""
    ids = [part for marker in markers for part in template.cut(marker)]
    texts = {id: text for text, id in template.controls.items()}
    return {id: texts[id] for id in ids if isinstance(id, int)}

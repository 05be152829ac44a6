"""Messages to ids by a model's own chat template; ids back to text by the codec it is made of.

A template puts the texts of special ids around what people wrote. Only what it writes itself is
read as special: every character of the rendered text carries its origin through whatever the
template does to it (`_traced`), and a special text counts only if all its characters are the
template's own. So a message that says <|im_end|> says just that, also in pieces that a template
puts together, and a template may still search, trim or split contents: they are what they were.

    template = chat.Templates.of(folder, {}, codec).get(None)
    codec.weave(template.render([{"role": "user", "content": "Hi"}]).parts)
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from seriatim.codecs import Codec, _templates, text
from seriatim.codecs._files import read_text, write_json
from seriatim.codecs._messages import (
    checked_messages,
    checked_tools,
    checked_variables,
    size,
    traced,
)
from seriatim.codecs._traced import FINAL, GIVEN, OWN, Traced, origin
from seriatim.codecs._wrapped import Wrapped
from seriatim.errors import FileError, RequestError, shown
from seriatim.files.jsonfile import read_object

Message = Mapping[str, Any]
Parts = list[str | int]  # text, and ids between

LONGEST = 1 << 20  # characters of a template; the longest in use has 30,000
MARKS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # what templates call bos_token, ...
GGUF_MARKS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
              "cls": "cls", "mask": "mask"}  # fmt: skip  # the format's own spelling


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        parts: text, and ids between.
        tail: what comes after all that was given: how the answer is begun.
    """

    parts: Parts
    tail: str


class Template:
    """A chat template: messages in, text and special ids out.

    Args:
        source: Jinja.
        codec: whose special ids it writes.
        marks: what the template calls bos_token, eos_token, ...

    Raises:
        RequestError: it does not compile, or uses what a template may not.
    """

    def __init__(
        self, source: str, codec: Codec, marks: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        from seriatim.codecs._sandbox import Sandbox

        if len(source) > LONGEST:
            raise _failed(f"it has {len(source)} characters; at most {LONGEST} are read")
        self.source, self.marks, self._lock = source, marks, Lock()
        self.controls = {
            t: id for t, id in codec.added.items() if t in codec.specials or t in source
        }
        self.specials = frozenset(codec.specials.values())
        longest = sorted(filter(None, self.controls), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._sandbox = Sandbox(self.controls)
        try:
            self._compiled = self._sandbox.from_string(source)
        except Exception as error:  # Jinja's, Python's compiler's, of a hostile source
            raise _failed(_about(error)) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        answer: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> Rendered:
        """The conversation as the model reads it.

        Args:
            messages: {"role": ..., "content": ...} and what else the template knows.
            tools: JSON schemas of functions.
            answer: end with what begins an assistant's message.
            continue_final: end within the last message, so that it goes on.
            variables: what else the template knows (`enable_thinking`, ...).

        Raises:
            RequestError: messages that are none, or that the template refuses; a template that
                fails, or does too much.
        """
        checked = checked_messages(messages)
        given = [{**traced(message), "role": message["role"]} for message in checked]
        if continue_final:
            given[-1]["content"] = Traced(checked[-1]["content"], FINAL)
        rendered = self._rendered(
            {
                **traced(checked_variables(variables)),
                **{f"{name}_token": text for name, text in self.marks.items()},
                "messages": given,
                "tools": None if tools is None else traced(checked_tools(tools)),
                "documents": None,
                "add_generation_prompt": answer and not continue_final,
            }
        )
        if continue_final:
            rendered = _up_to_final(rendered)
        tail = rendered[origin(rendered).rfind(GIVEN) + 1 :]
        return Rendered(self.cut(rendered), str.__getitem__(tail, slice(None)))

    def _rendered(self, variables: dict[str, Any]) -> str:
        from seriatim.codecs._sandbox import BUDGET, Meter, Refusal

        with self._lock:
            self._sandbox.meter = Meter(BUDGET + 256 * size(variables))
            try:
                return self._sandbox.concat(list(self._compiled.generate(variables)))
            except Refusal as error:
                raise RequestError(f"the chat template refuses: {error}") from error
            except Exception as error:  # anything that a hostile or careless template can cause
                raise _failed(_about(error)) from error

    def cut(self, rendered: str) -> Parts:
        """Texts of ids, where they are the template's own, as ids; all else stays text."""
        parts: Parts = []
        for run in re.finditer(rb"t+|[^t]+", origin(rendered)):
            piece, at = str.__getitem__(rendered, slice(*run.span())), 0
            for found in self._control.finditer(piece) if run[0][:1] == OWN else ():
                parts += [piece[at : found.start()], self.controls[found[0]]]
                at = found.end()
            parts.append(piece[at:])
        return _fused(parts)


class Templates:
    """The chat templates of a model, by name."""

    def __init__(self, sources: Mapping[str, str], codec: Codec, marks: Mapping[str, str]) -> None:
        self.sources, self._codec, self._marks = sources, codec, marks
        self._made: dict[str, Template] = {}

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, Any], codec: Codec) -> "Templates":
        """Those of a model folder, or of a GGUF file by its metadata.

        Raises:
            FileError: a file is damaged, or a template is no text.
        """
        if path.is_dir():
            return cls(_templates.of_folder(path), codec, _marks_of_folder(path))
        return cls(_templates.of_gguf(metadata), codec, _marks_of_gguf(metadata))

    def get(self, asked: str | Path | None, *, tools: bool = False) -> Template:
        """The template that is asked for, or the model's own.

        Args:
            asked: Jinja, or the file it is in.
            tools: whether there are any: some models have a template of its own for them.

        Raises:
            RequestError: the model has none.
        """
        source = self._source(asked, tools)
        made = self._made.get(source)
        if made is None:
            made = Template(source, self._codec, self._marks)
            self._made = {source: made}  # of several threads the last one's is kept
        return made

    def save(self, folder: Path) -> None:
        """Writes the templates beside a tokenizer's files, and what they call bos_token, ..."""
        path = folder / "tokenizer_config.json"
        said: dict[str, Any] = {f"{name}_token": text for name, text in self._marks.items()}
        if set(self.sources) == {"default"}:
            (folder / "chat_template.jinja").write_text(self.sources["default"], encoding="utf-8")
        else:
            named = [{"name": name, "template": text} for name, text in self.sources.items()]
            said["chat_template"] = named
        write_json(path, (read_object(path) if path.exists() else {}) | said)

    def _source(self, asked: str | Path | None, tools: bool) -> str:
        if isinstance(asked, Path):
            return read_text(asked)
        if asked is not None:
            if not isinstance(asked, str):
                raise RequestError(f"template is {shown(asked)}", expected="Jinja, or a Path to it")
            return asked
        names = ("tool_use", "default") if tools else ("default",)
        found = next((self.sources[name] for name in names if name in self.sources), None)
        if found is None:
            others = f" named default, but {', '.join(sorted(self.sources))}" * bool(self.sources)
            raise RequestError(
                f"the model has no chat template{others}",
                expected="chat_template.jinja beside its weights",
                fix="give one: template=Path(...), --template FILE",
            )
        return found


class ChatCodec(Wrapped):
    """Messages by a template, over the codec of a text model. A `str` is plain text."""

    name = "chat"

    def __init__(self, base: Codec, template: Template) -> None:
        super().__init__(base)
        self.template = template

    def encode(self, raw: Sequence[Message] | str, /) -> list[int]:
        """The ids of a conversation that is whole."""
        return self.base.weave(self._parts(raw), quoted=self.template.controls)

    def canonical(self, raw: Sequence[Message] | str, /) -> str:
        """The text that the template makes, special ids left out."""
        texts = [part for part in self._parts(raw) if isinstance(part, str)]
        return self.base.canonical("".join(texts))

    def examples(self) -> list[Any]:
        """A conversation, and a message that looks like a template."""
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " 日本\n"}]
        return [talk, [{"role": "user", "content": "<|end|> {{ bos_token }} <s>"}]]

    def read(self, path: Path, /) -> Any:
        """Messages from a JSON file."""
        try:
            return json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path} is not JSON: {error}") from error

    def write(self, raw: Sequence[Message] | str, path: Path, /) -> None:
        """Messages as JSON."""
        path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")

    def save(self, folder: Path, /) -> None:
        """Writes the files of the codec below, codec.json and chat_template.jinja."""
        super().save(folder)
        template = self.template
        Templates({"default": template.source}, self.base, template.marks).save(folder)

    def _parts(self, raw: Sequence[Message] | str) -> Parts:
        if isinstance(raw, str):
            return [raw]
        if not isinstance(raw, list | tuple):
            raise RequestError(
                f"{type(raw).__name__} given to codec chat", expected="messages or str"
            )
        return self.template.render(raw, answer=False).parts


def load(folder: Path, options: dict[str, Any]) -> ChatCodec | None:
    """The codec of a folder with tokenizer files and a chat template.

    Raises:
        FileError: a file is damaged, or `options` holds what the text codec does not know.
        RequestError: there is no template, or one that does not compile.
    """
    if (base := text.load(folder, options)) is None:
        return None
    return ChatCodec(base, Templates.of(folder, {}, base).get(None))


def specimens() -> list[ChatCodec]:
    """Codecs for the law tests."""
    body = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    return [ChatCodec(base, Template(body, base)) for base in text.specimens()[:1]]


def _fused(parts: Parts) -> Parts:
    """Text without cuts between ids."""
    fused: Parts = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
        some = list(run)
        fused += filter(None, ["".join(map(str, some))]) if is_text else some
    return fused


def _up_to_final(rendered: str) -> str:
    """Up to the last character of the content that is to go on."""
    end = origin(rendered).rfind(FINAL) + 1
    if not end:
        raise RequestError("the template shows nothing of the last message, so it cannot go on")
    return rendered[:end]


# ---- what files say ----------------------------------------------------------------------------


def _marks_of_folder(folder: Path) -> dict[str, str]:
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).exists():
            said |= {k: v for k, v in read_object(path).items() if v is not None}
    marks = {}
    for name in MARKS:
        match said.get(f"{name}_token"):
            case str(text) | {"content": str(text)}:
                marks[name] = text
    return marks


def _marks_of_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {
        name: metadata.get(f"tokenizer.ggml.{long}_token_id") for name, long in GGUF_MARKS.items()
    }
    return {
        name: tokens[id] for name, id in ids.items() if type(id) is int and 0 <= id < len(tokens)
    }


def _failed(why: str) -> RequestError:
    return RequestError(f"the chat template cannot be used: {why}", fix="give another template")


def _about(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"

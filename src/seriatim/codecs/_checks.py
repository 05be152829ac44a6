"""What a tokenizer.json must not say: `tokenizers` would lose text by it, draw lots, or abort.

A merge with a subword prefix, a template that names a token it does not give: these end the whole
process inside the library, so they are refused before it sees the file.
"""

from collections.abc import Iterator
from typing import Any

from seriatim.errors import FileError


def check(content: dict[str, Any]) -> None:
    """Refuses, by name, the first thing in the content of a tokenizer.json that cannot be honoured.

    Raises:
        FileError: an option of the model, a shared id, or a template that drops or invents tokens.
    """
    model = content.get("model")
    if not isinstance(model, dict):
        raise FileError("the tokenizer has no model")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise FileError(f"the tokenizer's {name} is {model[name]!r}", expected="none")
    _distinct(content, model.get("vocab"))
    for template in _templates(content.get("post_processor")):
        _complete(template)


def _distinct(content: dict[str, Any], vocabulary: Any) -> None:
    """No two texts share an id."""
    texts = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in content.get("added_tokens") or []:
        match token:
            case {"content": str(text), "id": int(id)}:
                texts.setdefault(text, id)
    if len(set(map(repr, texts.values()))) == len(texts):
        return
    seen: dict[str, str] = {}
    for text, id in texts.items():
        if (other := seen.setdefault(repr(id), text)) != text:
            raise FileError(f"the tokenizer gives {other!r} and {text!r} the same id {id}")


def _templates(processor: Any) -> Iterator[dict[str, Any]]:
    match processor:
        case {"type": "TemplateProcessing"}:
            yield processor
        case {"type": "Sequence", "processors": list(parts)}:
            for part in parts:
                yield from _templates(part)


def _complete(template: dict[str, Any]) -> None:
    """A template holds each text once and gives each token that it names."""
    for kind, wanted in (("single", ["A"]), ("pair", ["A", "B"])):
        texts = []
        for part in template.get(kind) or []:
            match part:
                case {"Sequence": {"id": text}}:
                    texts.append(text)
                case {"SpecialToken": {"id": name}} if name in (
                    template.get("special_tokens") or {}
                ):
                    pass
                case _:
                    raise FileError(f"the tokenizer's template names {part!r}, which it lacks")
        if sorted(map(str, texts)) != wanted:
            raise FileError(f"the tokenizer's {kind} template holds {texts}", expected=f"{wanted}")

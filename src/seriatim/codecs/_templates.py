"""Where chat templates are kept: as text, by name; nothing here reads what they say.

The template that is meant where none is named is "default".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seriatim.codecs._files import read_text
from seriatim.errors import FileError, shown
from seriatim.files.jsonfile import read_object

KEY, NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"


def of_folder(folder: Path) -> dict[str, str]:
    """The templates of a model folder: chat_template.jinja, else those of tokenizer_config.json.

    Raises:
        FileError: a file is damaged, or a template is no text.
    """
    if (path := folder / "chat_template.jinja").exists():
        return {"default": read_text(path)}
    if not (path := folder / "tokenizer_config.json").exists():
        return {}
    match read_object(path).get("chat_template"):
        case None:
            return {}
        case str(text):
            return {"default": text}
        case list(several):
            return dict(_named(path, entry) for entry in several)
        case other:
            raise FileError(f"{path} has the chat_template {shown(other)}", expected="text")


def of_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates in a GGUF file's metadata.

    Raises:
        FileError: a template is no text.
    """
    found = {
        key.removeprefix(KEY).removeprefix(".") or "default": metadata[key]
        for key in metadata
        if key == KEY or key.startswith(f"{KEY}.")
    }
    for name, text in found.items():
        if not isinstance(text, str):
            raise FileError(f"the chat template {name} is {shown(text)}", expected="text")
    return found


def to_gguf(templates: Mapping[str, str]) -> dict[str, Any]:
    """Templates as GGUF metadata."""
    named = {name: text for name, text in templates.items() if name != "default"}
    made: dict[str, Any] = {f"{KEY}.{name}": text for name, text in named.items()}
    if named:
        made[NAMES] = sorted(named)
    return made | ({KEY: templates["default"]} if "default" in templates else {})


def _named(path: Path, entry: Any) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(text)}:
            return name, text
    raise FileError(
        f"{path} has the chat template {shown(entry)}", expected="a name and a template"
    )

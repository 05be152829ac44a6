"""`export`: a model's folder or file as a file that other programs run."""

from pathlib import Path

from seriatim.codecs import _templates
from seriatim.codecs._gguf_out import metadata_of
from seriatim.errors import RequestError, did_you_mean
from seriatim.loading import codec_of, find, label_of
from seriatim.models import checkpoint
from seriatim.models.checkpoint import Checkpoint
from seriatim.quant.export import TYPES, Exported, write


def export(model: str | Path, out: Path, *, to: str = "gguf", type: str = "f16") -> Exported:
    """Write a model in another program's format: with its tokenizer, special ids and chat template.

    Args:
        model: a shipped name, a path or a hub id, as `seriatim.load` takes it.
        out: the file to make; it appears when it is whole, and nothing is overwritten.
        to: "gguf", the format of llama.cpp.
        type: of the matrices: "f32", "f16", "bf16", or blocks of 32: "q8_0", "q4_0".

    Raises:
        RequestError: an unknown format or type, or one that cannot hold a weight.
        FileError: a file that is damaged, or that exists already.
        ModelError: what the format, or llama.cpp, cannot express.
        SeriatimError: the package gguf is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export("tales", Path(folder) / "tales.gguf", type="q8_0").architecture
        'llama'
    """
    if to != "gguf":
        raise RequestError(f"to is {to!r:.80}", expected="'gguf'")
    if type not in TYPES:
        raise RequestError(f"type is {type!r:.80}", fix=did_you_mean(str(type), TYPES))
    path = find(model)
    source = checkpoint.read(path)
    codec = codec_of(path, source)
    notes = list(source.notes)
    tokenizer = metadata_of(codec, size=source.spec.vocab_size, ends=source.ends, say=notes.append)
    return write(
        out,
        source.spec,
        source.weights,
        tokenizer | _templates.to_gguf(_templates_of(source)),
        type=type,
        name=label_of(model, path),
        notes=notes,
    )


def _templates_of(source: Checkpoint) -> dict[str, str]:
    if source.path.is_dir():
        return _templates.of_folder(source.path)
    return _templates.of_gguf(source.metadata)

"""Chat templates as models publish them, and tokenizers that have their special ids.

A plain module for tests: `TEMPLATES["qwen3"]` is a `Published`; `codec("qwen3")` is a small
vocabulary with its ids; `folder("qwen3")` is a model that has both.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import checkpoints
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from seriatim.codecs import text


class Published(NamedTuple):
    """A template, the special texts it writes, others that are only added, and its marks."""

    source: str
    specials: tuple[str, ...]
    plain: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    spaces: bool = False  # SentencePiece's way: a space goes in front of every text


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATES = {
    "chatml": Published(_source("chatml"), _IM, end="<|im_end|>"),
    "qwen3": Published(
        _source("qwen3"),
        _IM,
        ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"),
        end="<|im_end|>",
    ),
    "llama2": Published(_source("llama2"), ("<s>", "</s>"), start="<s>", end="</s>", spaces=True),
    "llama3": Published(
        _source("llama3"),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        start="<|begin_of_text|>",
        end="<|eot_id|>",
    ),
    "mistral": Published(_source("mistral"), ("<s>", "</s>"), start="<s>", end="</s>", spaces=True),
    "gemma": Published(
        _source("gemma"),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        start="<bos>",
        end="<end_of_turn>",
    ),
    "phi3": Published(
        _source("phi3"),
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        start="<s>",
        end="<|endoftext|>",
        spaces=True,
    ),
    "deepseek": Published(
        _source("deepseek"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
        start="<｜begin▁of▁sentence｜>",
        end="<｜end▁of▁sentence｜>",
    ),
    "zephyr": Published(
        _source("zephyr"), ("<s>", "</s>", "<unk>"), start="<s>", end="</s>", spaces=True
    ),
}


def tokenizer(published: Published) -> Tokenizer:
    """Byte-level BPE, or BPE over SentencePiece's spelling, with the template's added ids."""
    return _spaced(published) if published.spaces else _bytelevel(published)


@cache
def codec(name: str) -> text.TextCodec:
    """The codec of a template's tokenizer."""
    published = TEMPLATES[name]
    made = tokenizer(published)
    return text.TextCodec(made, ends=[made.token_to_id(published.end)])


@cache
def folder(name: str) -> Path:
    """A model folder: random weights, the tokenizer, the template."""
    published, place = TEMPLATES[name], Path(_scratch().name) / name
    own = codec(name)
    checkpoints._llama(
        vocab_size=own.size,
        num_hidden_layers=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=own.ends[0],
    )(place)
    own.save(place)
    _complete(place, published)
    return place


def _complete(place: Path, published: Published) -> None:
    """What transformers needs beside: the template and its marks."""
    (place / "chat_template.jinja").write_text(published.source, encoding="utf-8")
    path = place / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": published.end}
    config |= {"bos_token": published.start} if published.start else {}
    path.write_text(json.dumps(config))


def _add(made: Tokenizer, published: Published) -> None:
    tight = {"<|end|>", "<|user|>", "<|system|>", "<|assistant|>"}  # Phi-3's take what follows
    for content in published.specials:
        rstrip = content in tight
        made.add_special_tokens(
            [AddedToken(content, special=True, normalized=False, rstrip=rstrip)]
        )
    made.add_tokens([AddedToken(content, normalized=False) for content in published.plain])


def _bytelevel(published: Published) -> Tokenizer:
    made = Tokenizer.from_str(text.train(text.EXAMPLES, 320)._tokenizer.to_str())
    _add(made, published)
    return made


def _spaced(published: Published) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    made.train_from_iterator(["the user said hello to the assistant system. "] * 3, trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = []  # bytes are ordinary
    made = Tokenizer.from_str(json.dumps(state))
    _add(made, published)
    return made


@cache
def _scratch() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="seriatim-test-")

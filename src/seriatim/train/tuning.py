"""A run that goes on from a model: all of its weights are learned, or an adapter beside them.

Its numbers, each overridable by the option of the same name; "a new model" is what `dial.py` says
of one with as many parameters:

- `context`: that of a new model, or the model's own if that is shorter.
- `batch`: a quarter of the ids of a new model's.
- `optimizer`: adamw.
- `learning_rate`: a tenth of a new model's; for an adapter as a new model's, ten times that of all
  weights (where its best rate lies: Schulman and others 2025, "LoRA Without Regret"); two digits.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from seriatim.codecs import Codec
from seriatim.errors import ModelError, RequestError, shown
from seriatim.kernels.torch_runtime import tensor
from seriatim.loading import base_of, codec_of, find, label_of
from seriatim.models import checkpoint, peft
from seriatim.models.checkpoint import GENERATION, Checkpoint, write_json
from seriatim.models.peft import DOWN, UP, Adapter
from seriatim.models.spec import Spec
from seriatim.models.standard import standard
from seriatim.models.weights import DTYPES, convert, digest
from seriatim.train import adapting, card, dial
from seriatim.train.adapting import Beside
from seriatim.train.dial import Tuning
from seriatim.train.model import Model, drawn
from seriatim.train.options import Options

NEW = "lora"  # what `adapter` is for a new one; anything else is the folder of one
RANK, ALPHA = 8, 16.0
Place = tuple[Path, Mapping[str, Any]]  # a folder or file, and a GGUF file's metadata
ADAPTING = ("lora_rank", "lora_alpha", "lora_targets")
# What lies beside the weights of a folder and belongs to the model.
KEPT = (
    "added_tokens.json", "codec.json", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.bpe",
    "vocab.json", "*.jinja", "*.model", "LICENSE*",
)  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """A model that is there, as `starting.Start`."""

    options: Options
    name: str  # of the model, as it was asked for
    source: Checkpoint  # in the layout of a folder, its weights floats
    codec: Codec
    adapter: Adapter | None = None  # what is learned beside the weights

    @property
    def place(self) -> Place:
        return self.source.path, self.source.metadata

    @property
    def vocab_size(self) -> int:
        return self.codec.size

    @property
    def about(self) -> str:
        label = label_of(self.name, self.source.path)
        if self.adapter is None:
            return f"The model {label}, trained further"
        if self.options.merge:
            return f"The model {label} with an adapter in its weights, {self.adapter.facts}"
        return f"A LoRA adapter of {label}, {self.adapter.facts}"

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes + (self.adapter.notes if self.adapter else ())

    @property
    def agreed(self) -> dict[str, Any]:
        found: dict[str, Any] = {"init": self.source.digest}
        if self.adapter is not None:
            found["lora_targets"] = list(self.adapter.config["target_modules"])
            found["start_adapter"] = _digest(self.adapter)  # compared last: it says least
        return found

    def numbers(self, vocab_size: int) -> Tuning:
        o, size = self.options, self.source.parameters
        rate = dial.rate_of(size, o.optimizer or "adamw") * (0.1 if self.adapter is None else 1.0)
        context = min(dial.context_of(size), self.source.spec.context)
        context = context if o.context is None else o.context
        found = Tuning(
            parameters=size if self.adapter is None else self.adapter.parameters,
            frozen=0 if self.adapter is None else size,
            context=context,
            batch=o.batch or max(1, round(dial.ids_of(size) / 4 / context)),
            learning_rate=float(f"{rate:.2g}") if o.learning_rate is None else o.learning_rate,
            optimizer=o.optimizer or "adamw",
        )
        dial.check_numbers({n: v for n, v in vars(found).items() if n != "frozen"})
        return found

    def spec(self, vocab_size: int) -> Spec:
        context = self.numbers(vocab_size).context
        if context == self.source.spec.context:
            return self.source.spec
        return standard(checkpoint.read(self.source.path, context=context)).spec

    def weights(
        self, spec: Spec, extra: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Tensor], Beside | None]:
        wide = convert(self.source.weights, "f32")
        there = {name: tensor(np.asarray(array)) for name, array in wide.items()}
        if self.adapter is None:
            return there | drawn(extra, seed=self.options.seed), None
        if extra:
            raise RequestError(
                f"objective {self.options.objective} learns weights of its own",
                expected="one that learns the model's, for an adapter",
            )
        beside = Beside(self.adapter, there)
        return beside.factors, beside

    def write(self, out: Path, model: Model, codec: Codec) -> None:
        store = self.options.store
        if model.beside is not None:
            peft.write(out, model.beside.now(model.weights), store)
            return
        own, more = card.stored(model.weights, model.spec, store)
        checkpoint.write_again(out, self.source, own)
        card.write_more(out, more)
        _along(self.source, out, codec)


def tuned(options: Options) -> Tuned:
    """What a run goes on from.

    Raises:
        RequestError: options that contradict the model or each other.
        FileError, ModelError: a checkpoint or an adapter that cannot be gone on from.
    """
    o, path = options, _base(options)
    source = _read(path)
    _check(o, source)
    codec = codec_of(path, source)
    if codec is None:
        raise RequestError(f"{path} has no codec", expected="a model with its tokenizer")
    name = str(path if o.init is None else o.init)
    start = Tuned(o, name, source, codec, _adapter(o, name, source))
    start.spec(codec.size)  # a context that the model has not is refused here
    if start.adapter is None or o.merge:
        _check_writable(source)
    return start


def _base(o: Options) -> Path:
    """Where the model lies: as asked, or as the adapter to go on with says."""
    if o.init is not None:
        return find(o.init)
    if o.adapter == NEW:
        raise RequestError("adapter is 'lora' without a model", fix="name one with init")
    return base_of(find(o.adapter or ""))


def _read(path: Path) -> Checkpoint:
    source = checkpoint.read(path)
    if blocks := [kind for kind in source.dtypes if kind not in DTYPES]:
        raise ModelError(
            f"{path} holds {' and '.join(blocks)} weights",
            expected="floats, which alone can be learned",
            fix="go on from the model that it was made from",
        )
    return standard(source)


def _check(o: Options, source: Checkpoint) -> None:
    """Refuse what the model itself decides."""
    layer = source.spec.layers[0]
    known = {
        "vocab_size": source.spec.vocab_size,
        "width": source.spec.width,
        "depth": len(source.spec.layers),
        "heads": layer.attention.heads,
        "kv_heads": layer.attention.kv_heads,
        "ffn": layer.mlp.width,
    }
    for name, own in known.items():
        if getattr(o, name) not in (None, own):
            seen = f"{name} is {getattr(o, name)}"
            raise RequestError(seen, expected=f"{own}, as the model has it", fix="leave it out")
    for name in ("size", "codec"):
        if (given := getattr(o, name)) is not None:
            fix = "leave it out: a model that is gone on from has its own"
            raise RequestError(f"{name} is {shown(given)}", fix=fix)


def _check_writable(source: Checkpoint) -> None:
    try:
        checkpoint.described(source)
    except ModelError as error:
        fix = "learn an adapter beside it: adapter='lora'"
        raise ModelError(error.seen, expected=error.expected, fix=fix) from None


def _adapter(o: Options, name: str, source: Checkpoint) -> Adapter | None:
    if o.adapter is None:
        return None
    if o.adapter == NEW:
        rank = RANK if o.lora_rank is None else o.lora_rank
        alpha = ALPHA if o.lora_alpha is None else o.lora_alpha
        if rank > source.spec.width:
            expected = f"1 to {source.spec.width}, the model's width"
            raise RequestError(f"lora_rank is {rank}", expected=expected)
        if not math.isfinite(alpha):
            raise RequestError(f"lora_alpha is {alpha}", expected="a finite number")
        targets = _targets(o.lora_targets)
        return adapting.new(source, name=name, targets=targets, rank=rank, alpha=alpha, seed=o.seed)
    for option in ADAPTING:
        if getattr(o, option) is not None:
            raise RequestError(
                f"{option} is {shown(getattr(o, option))}",
                fix="leave it out: the adapter has its own",
            )
    found = peft.read(find(o.adapter), source)
    own = {} if o.init is None else {"base_model_name_or_path": name}
    return replace(found, config={**found.config, "lora_dropout": 0.0, **own})


def _targets(given: Any) -> list[str] | None:
    """Names, given as a list of them or with commas between."""
    if given is None:
        return None
    every = [given] if isinstance(given, str) else given
    if not isinstance(every, list | tuple) or not all(isinstance(text, str) for text in every):
        raise RequestError(f"lora_targets is {shown(given)}", expected="names such as q_proj")
    names = [name for text in every for name in text.replace(",", " ").split()]
    if not names:
        raise RequestError("lora_targets is empty", expected="names such as q_proj")
    return list(dict.fromkeys(names))


def _digest(adapter: Adapter) -> str:
    """SHA-256 of its factors and scales."""
    sides = ((f"{p.module.name} {p.scale} {side}", a) for p in adapter.pairs
             for side, a in ((DOWN, p.down), (UP, p.up)))  # fmt: skip
    return digest(dict(sides))


def _along(source: Checkpoint, out: Path, codec: Codec) -> None:
    """What belongs to a model beside its weights: its files as they are, or made of one file."""
    if not source.path.is_dir():
        codec.save(out)
        ends = list(source.ends) or None
        write_json(out / GENERATION, {"bos_token_id": source.start, "eos_token_id": ends})
        return
    for file in sorted({file for pattern in KEPT for file in source.path.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    if not (out / "codec.json").exists():
        write_json(out / "codec.json", {"codec": codec.name, "version": 1, "options": {}})

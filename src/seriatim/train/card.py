"""What a run leaves behind: the model folder, and its README.md, the card."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16
from torch import Tensor

from seriatim.codecs import Codec
from seriatim.files import safetensors
from seriatim.files.regular import listed
from seriatim.models import checkpoint
from seriatim.models.spec import Spec
from seriatim.models.spec import weights as shapes
from seriatim.train.data import Prepared
from seriatim.train.dial import THETA, Dial, Tuning
from seriatim.train.options import Options, changed
from seriatim.train.report import Score

Arrays = dict[str, np.ndarray]
NAMED = 100  # files, on the card
QUIET = (  # what the card does not ask for
    "resume", "threads", "parallel", "timeout", "save_every", "keep", "cache", "tensorboard",
)  # fmt: skip


def write_model(
    out: Path, spec: Spec, weights: Mapping[str, Tensor], codec: Codec, *, store: str
) -> None:
    """Write config.json, model.safetensors, generation_config.json and the codec's files.

    What an objective learned beside the model, named "WHAT.*", becomes WHAT.safetensors.

    Args:
        store: "f32", or "bf16" (rounded to nearest even).
    """
    own, more = stored(weights, spec, store)
    ids = {
        "bos_token_id": next(iter(codec.start), None),
        "eos_token_id": _one(codec.ends),
    }
    checkpoint.write(out, spec, own, config=ids | {"rope_theta": THETA})
    write_more(out, more)
    codec.save(out)


def stored(weights: Mapping[str, Tensor], spec: Spec, store: str) -> tuple[Arrays, Arrays]:
    """A model's own weights as they are stored, and those that an objective brought.

    Args:
        store: "f32", or "bf16" (rounded to nearest even).
    """
    more = {name: _array(tensor, store) for name, tensor in weights.items()}
    return {name: more.pop(name) for name in shapes(spec)}, more


def write_more(out: Path, arrays: Arrays) -> None:
    """Write what an objective brought, in files by the first part of their names."""
    for what, names in groupby(sorted(arrays), lambda name: name.split(".")[0]):
        beside = {name: arrays[name] for name in names}
        safetensors.write(out / f"{what}.safetensors", beside, {"format": "pt"})


def _array(tensor: Tensor, store: str) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if store == "bf16":
        return tensor.to(torch.bfloat16).view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def _one(ids: Sequence[int]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else list(ids) or None


def command(data: Any, options: Options, *, quiet: Collection[str] = QUIET, ranks: int = 1) -> str:
    """The command line that asks for the same: options that differ from their defaults."""
    words = _many(data)
    for name, value in changed(options).items():
        flag = f"--{name.replace('_', '-')}"
        if name not in quiet:
            words += [flag] if value is True else [w for v in _many(value) for w in (flag, v)]
    started = ["torchrun", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return shlex.join([*(started if ranks > 1 else []), "seriatim", "train", *words])


def _many(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{path}={weight}" for path, weight in value.items()]
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def write_card(
    out: Path,
    *,
    about: str,
    command: str,
    dial: Dial | Tuning,
    steps: int,
    parts: Prepared,
    score: Score,
    samples: Sequence[tuple[str, str]],
) -> None:
    """Write README.md: command, size, data, score with its standard error, samples as they came.

    Args:
        about: what the folder holds.
    """
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    trained, held_out = (listed(names, NAMED) for names in (parts.trained, parts.held_out))
    shape = "\n".join(f"| {name} | {value} |" for name, value in vars(dial).items())
    shown = "\n\n".join(f"> {_bold(prompt)}{_quoted(text)}" for prompt, text in samples)
    card = f"""# {out.name}

{about}: {dial.parameters:,} parameters, {size:,} bytes of weights, trained with
seriatim in {steps:,} steps of {dial.batch * dial.context:,} ids.

    {command}

**Score:** {score.sentence}.

## Data

Trained on {trained}.

Held out: {held_out}.

## Numbers

| number | value |
|---|---|
{shape}

## Samples

Temperature 0.8, the first that came.

{shown}
"""
    (out / "README.md").write_text(card, encoding="utf-8")


def _bold(prompt: str) -> str:
    return f"**{prompt}**" if prompt else ""


def _quoted(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\n> ")


def write_plain_template(out: Path, codec: Codec) -> None:
    """Write chat_template.jinja: the start text, then the contents, each ended by a blank line."""
    texts = {id: text for text, id in codec.specials.items()}
    lead = "".join(texts[id] for id in codec.start)
    body = "{% for message in messages %}{{ message['content'] }}{{ '\\n\\n' }}{% endfor %}"
    (out / "chat_template.jinja").write_text(lead + body, encoding="utf-8")

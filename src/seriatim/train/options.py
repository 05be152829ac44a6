"""The options of `train`: names, defaults and meaning in one place, for Python and for the shell.

It needs no torch, so that the command's help does not wait for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, TypeVar, get_args

from seriatim import registry
from seriatim.errors import RequestError, did_you_mean, shown

Train = TypeVar("Train", bound=Callable[..., Any])


# What options are about: their order, and the panels of the command's help.
RUN, MACHINE, DATA = "The run", "The machine", "The data"
MODEL, AIM, UPDATE = "The model", "What is learned", "How it is learned"
BASE = "From another model"


def _option(panel: str, default: Any, help: str, **limits: Any) -> Any:
    """A field with its meaning, and what it may be: `among` some values, `least`, `most`.

    With `of` it is an objective's own: refused beside another, and no part of such a run. With
    `like` it is, where it is not given, what another option is.
    """
    return field(default=default, metadata={"panel": panel, "help": help, **limits})


def _free(panel: str, default: Any, help: str, **limits: Any) -> Any:
    """An option that may change when a run goes on, or whose effect is compared in another form.

    Those are the numbers of the dial, the plan of the rate, and digests of data and codec.
    """
    return _option(panel, default, help, free=True, **limits)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked of a run beside its data; each field says what it is in its metadata."""

    size: str | None = _free(
        RUN, None, "0.01M to 1B parameters: the one dial; needed but with init or an adapter."
    )
    steps: int = _free(RUN, MISSING, "Optimizer steps.", least=1)
    out: str | Path = _free(RUN, MISSING, "The run folder; it becomes the model.")
    seed: int = _option(
        RUN, 0, "Of weights, batches and split: equal runs give equal bits.", least=0
    )
    resume: bool = _free(RUN, False, "Go on from the newest whole checkpoint, or start.")
    save_every: int | None = _free(
        RUN, None, "Steps between checkpoints; default: a twentieth.", least=1
    )
    keep: int = _free(RUN, 2, "How many of the last checkpoints stay.", least=1)
    tensorboard: bool = _free(RUN, False, "Event files beside log.csv.")
    prompt: str | None = _free(
        RUN, None, "What samples begin with; default: the start of a document."
    )

    threads: int | None = _free(MACHINE, None, "Of torch; default: its own.", least=1)
    device: str = _option(MACHINE, "cpu", "Where to compute, as torch names it.")
    parallel: str | None = _free(
        MACHINE,
        None,
        "Over the ranks of torchrun: ddp, or fsdp, which divides the weights; default: ddp.",
        among=("ddp", "fsdp"),
    )
    timeout: int = _free(MACHINE, 300, "Seconds after which a silent rank ends the run.", least=1)
    precision: str = _option(MACHINE, "f32", "Of the products.", among=("f32", "bf16"))
    recompute: bool = _option(
        MACHINE, False, "Compute layers again instead of keeping what they gave."
    )
    compile: bool = _option(MACHINE, False, "Through torch.compile: faster, with other rounding.")

    codec: str | None = _free(
        DATA,
        None,
        "text (default) or code: a tokenizer is learned; NAME or NAME:option=value,... of another; "
        "or a folder that holds one.",
    )
    validation: str | Path | float | Sequence[str | Path] | None = _free(
        DATA, None, "Held-out files, names among DATA, or a share; default: about a tenth."
    )
    field: str = _free(DATA, "text", "Of .jsonl lines, the text.")
    separator: str | None = _free(DATA, None, "Between the documents of a plain file.")
    cache: str | Path | None = _free(DATA, None, "Where encoded data is kept.")
    isolate: bool = _option(DATA, False, "Attention stays within each document of a row.")

    vocab_size: int | None = _free(MODEL, None, "Ids of a tokenizer to learn.", least=1)
    width: int | None = _free(MODEL, None, "Channels.", least=1)
    depth: int | None = _free(MODEL, None, "Layers.", least=1)
    heads: int | None = _free(MODEL, None, "Of the queries.", least=1)
    kv_heads: int | None = _free(MODEL, None, "Of keys and values.", least=1)
    ffn: int | None = _free(MODEL, None, "Channels within the MLP.", least=1)
    context: int | None = _free(MODEL, None, "Ids in a row.", least=1)
    store: str = _free(MODEL, "f32", "Type of the weights in the folder.", among=("f32", "bf16"))

    init: str | None = _free(
        BASE, None, "Go on from a model: what load takes; its shape and codec stay."
    )
    adapter: str | None = _free(
        BASE, None, "lora, to learn one beside it, or the folder of one to go on with."
    )
    lora_rank: int | None = _option(BASE, None, "Of the factors; default: 8.", least=1)
    lora_alpha: float | None = _option(
        BASE, None, "Their product is scaled by it over the rank; default: 16.", least=0
    )
    lora_targets: str | Sequence[str] | None = _free(
        BASE, None, "Which matrices, such as q_proj,v_proj; default: of attention and MLP."
    )
    merge: bool = _option(BASE, False, "Write the whole model instead of the adapter.")

    objective: str = _option(AIM, "next", "A file of seriatim.train.objectives, such as next.")
    fim_rate: float = _option(
        AIM, 0.5, "fim: share of the pieces that get a gap.", of="fim", least=0, most=1
    )
    fim_lines: float = _option(
        AIM, 0.5, "fim: share of the gaps that are whole lines.", of="fim", least=0, most=1
    )
    fim_order: str = _option(
        AIM,
        "both",
        "fim: what comes before and after a gap as prefix, suffix or suffix, prefix.",
        of="fim",
        among=("psm", "spm", "both"),
    )
    own_share: float = _option(
        AIM,
        0.25,
        "scheduled: share of the inputs that become the model's own.",
        of="scheduled",
        least=0,
        most=1,
    )
    own_ramp: int | None = _option(
        AIM,
        None,
        "scheduled: steps in which that share rises from 0; default: all.",
        of="scheduled",
        like="steps",
        least=1,
    )
    ahead: int = _option(
        AIM, 3, "ahead: ids beyond the next that are predicted too.", of="ahead", least=1
    )
    ahead_weight: float = _option(
        AIM,
        0.2,
        "ahead: of each further id in the loss, against the id before it.",
        of="ahead",
        least=0,
        most=1,
    )

    batch: int | None = _free(UPDATE, None, "Rows of `context` ids in a step.", least=1)
    accumulate: int = _option(UPDATE, 1, "Parts of a batch that are computed one by one.", least=1)
    optimizer: str | None = _free(UPDATE, None, "muon (hidden matrices) or adamw.")
    learning_rate: float | None = _free(
        UPDATE, None, "Of hidden matrices; under adamw of everything."
    )
    embedding_rate: float = _option(
        UPDATE, 0.004, "Of embedding, norms and biases under muon.", least=0
    )
    weight_decay: float = _option(UPDATE, 0.0, "Of hidden matrices, times the rate.", least=0)
    schedule: str = _free(UPDATE, "wsd", "wsd or cosine.", among=("wsd", "cosine"))
    warmup: int | None = _free(
        UPDATE, None, "Steps up to the full rate; default: 50, or a tenth.", least=0
    )
    decay: float = _free(UPDATE, 0.5, "Share of the steps in which wsd falls.", least=0, most=1)
    clip: float = _option(UPDATE, 1.0, "Largest norm of the whole gradient.", least=0)
    ema: float = _option(
        UPDATE,
        0.0,
        "Decay of an average of the weights, which is what the run gives; 0 is off.",
        least=0,
        most=1,
    )
    norm_limit: float = _option(
        UPDATE, math.inf, "A gradient norm beyond it makes a step bad.", least=0
    )
    bad_step: str = _option(
        UPDATE,
        "stop",
        "What a loss or norm that is not finite, or too large, does.",
        among=("stop", "skip"),
    )


def asked(given: Mapping[str, Any]) -> Options:
    """Options with their defaults.

    Raises:
        RequestError: an unknown name, a missing one, or a value that cannot be honoured.
    """
    known = {f.name: f for f in fields(Options)}
    for name in given:
        if name not in known:
            raise RequestError(f"unknown option {name!r}", fix=did_you_mean(name, known))
    for name, f in known.items():
        started = name == "size" and given.get("init") is None and given.get("adapter") is None
        if (needed(f) or started) and given.get(name) is None:
            raise RequestError(f"{name} is missing", expected=f.metadata["help"])
    for name, value in given.items():
        _check(name, value, known[name].type, known[name].metadata)
    options = Options(**given)
    registry.get("seriatim.train.objectives", options.objective)
    for name, value in changed(options).items():
        if not _concerns(options, own := known[name].metadata.get("of")):
            raise RequestError(
                f"{name} is {shown(value)} with the objective {options.objective!r}",
                expected=f"the objective {own!r}",
                fix=f"objective={own!r}, or no {name}",
            )
    return replace(options, **_alike(options))


def needed(f: Field[Any]) -> bool:
    """Whether an option has to be given."""
    return f.default is MISSING


def fixing(options: Options) -> dict[str, Any]:
    """The options, by name, that a run's numbers follow from, beside those in another form."""
    fixed = [f for f in fields(options) if not f.metadata.get("free")]
    return {
        f.name: getattr(options, f.name) for f in fixed if _concerns(options, f.metadata.get("of"))
    }


def changed(options: Options) -> dict[str, Any]:
    """Those that are not as they are by default."""
    return {
        f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default
    }


def documented(train: Train) -> Train:
    """Gives `train` the options as its signature, and their meaning as part of its docstring."""
    own = [p for p in signature(train).parameters.values() if p.kind != Parameter.VAR_KEYWORD]
    named = [_parameter(f) for f in fields(Options)]
    train.__signature__ = Signature([own[0], *named, *own[1:]])
    lines = "".join(f"\n        {f.name}: {_meaning(f)}" for f in fields(Options))
    if train.__doc__:  # python -OO has none
        train.__doc__ = train.__doc__.replace("\n        report:", f"{lines}\n        report:")
    return train


def _alike(options: Options) -> dict[str, Any]:
    """Options that were not given and are what another is."""
    return {
        f.name: getattr(options, f.metadata["like"])
        for f in fields(options)
        if "like" in f.metadata
        and getattr(options, f.name) is None
        and _concerns(options, f.metadata.get("of"))
    }


def _concerns(options: Options, own: str | None) -> bool:
    """Whether an option of the objective `own`, or of every one, has a meaning here."""
    return own in (None, options.objective)


def _parameter(f: Field[Any]) -> Parameter:
    default = Parameter.empty if needed(f) else f.default
    return Parameter(f.name, Parameter.KEYWORD_ONLY, default=default, annotation=f.type)


def _meaning(f: Field[Any]) -> str:
    said = f.metadata["help"]
    return said[0].lower() + said[1:] if said[1:2].islower() else said


def _check(name: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value of another type, or beyond the option's limits."""
    kinds = set(get_args(kind)) or {kind}
    if value is None and type(None) in kinds:
        return
    among = limits.get("among")
    if among and value not in among:
        raise RequestError(f"{name} is {shown(value)}", expected=" or ".join(map(repr, among)))
    whole, number = int in kinds, float in kinds and str not in kinds
    least, most = limits.get("least", -math.inf), limits.get("most", math.inf)
    if kind is bool:
        if type(value) is not bool:
            raise RequestError(f"{name} is {shown(value)}", expected="True or False")
    elif kind is str and not isinstance(value, str):
        raise RequestError(f"{name} is {shown(value)}", expected="a text")
    elif whole and (type(value) is not int or not least <= value <= most):
        raise RequestError(f"{name} is {shown(value)}", expected=f"a whole number from {least} on")
    elif number and not (type(value) in (int, float) and least <= value <= most):
        raise RequestError(f"{name} is {shown(value)}", expected=f"a number in [{least}, {most}]")

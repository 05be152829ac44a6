"""One dial: from a size such as "2.5M" to every number of a Llama model and of its training.

The rules, each overridable by the option of the same name:

- `vocab_size`: the power of two nearest to 1.3 * sqrt(size), at least 512; a codec that learns
  nothing has its own.
- `width`, `depth`: the pair nearest to the size and to depth = 0.45 * sqrt(width).
- `heads`: of 64 channels from width 128 on, of 32 below; `kv_heads`: a third of them where that
  divides, else a half, else all.
- `ffn`: 8/3 of the width, rounded up to a multiple of 32.
- `context`: 512 ids; 256 below 1M, 1024 from 50M on.
- `batch`: windows of `context`, 1,024 ids in all at 0.1M, growing as the square root of the size.
- `learning_rate`: 0.02 for hidden matrices under Muon; under AdamW 0.003 * sqrt(1M / size), at
  most 0.005.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from seriatim.errors import RequestError
from seriatim.models.rope import rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Spec, weights
from seriatim.train.options import Options

THETA, EPS = 10000.0, 1e-5  # rotary base and norm guard of Llama


@dataclass(frozen=True)
class Dial:
    """Every number that a size stands for."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    batch: int  # windows of `context` ids in a step
    learning_rate: float  # of the hidden matrices
    optimizer: str = "muon"

    @property
    def spec(self) -> Spec:
        """The Llama model of these numbers."""
        channels = self.width // self.heads
        turns = {"rope_type": "default", "rope_theta": THETA}
        rotary = rope(turns, channels, trained=self.context, context=self.context)
        norm = Norm("rms", EPS)
        attention = Attention(self.heads, self.kv_heads, channels, channels**-0.5, rotary)
        layer = Layer(attention, MLP(self.ffn, "silu", gated=True), norm)
        return Spec(
            self.vocab_size,
            self.width,
            self.context,
            (layer,) * self.depth,
            norm,
            tied=True,
        )

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape) for shape in weights(self.spec).values())


@dataclass(frozen=True)
class Tuning:
    """The numbers of a run whose model was there before (`tuning.py`)."""

    parameters: int  # that are learned
    frozen: int  # that are not
    context: int
    batch: int  # windows of `context` ids in a step
    learning_rate: float
    optimizer: str = "adamw"


def parse(size: str) -> int:
    """Parameters that a size such as "2.5M" asks for.

    Raises:
        RequestError: not of that form, or outside 0.01M .. 1B.

    Example:
        >>> parse("2.5M")
        2500000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", str(size).upper())
    wanted = match and round(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[match[2]])
    if not wanted or not 10_000 <= wanted <= 1_000_000_000:
        raise RequestError(f"size is {size!r}", expected='"0.01M" to "1B", such as "2.5M"')
    return wanted


def vocabulary(parameters: int) -> int:
    """Ids of a text tokenizer for a model of this size: a power of two, 256 to 65,536."""
    return min(65536, max(512, 2 ** round(math.log2(1.3 * math.sqrt(parameters)))))


def of(options: Options, vocab_size: int) -> Dial:
    """The numbers for a run's options and the size of its codec."""
    names = vars(options).keys() & {f.name for f in fields(Dial)} - {"vocab_size"}
    chosen = {name: getattr(options, name) for name in names}
    return dial(str(options.size), vocab_size, **chosen)


def dial(size: str, vocab_size: int, **chosen: Any) -> Dial:
    """The numbers for `size`; those in `chosen` that are not `None` are kept as given.

    Raises:
        RequestError: a size out of range, or chosen numbers that do not fit together.
    """
    wanted = parse(size)
    given = {name: value for name, value in chosen.items() if value is not None}
    optimizer = given.get("optimizer", "muon")
    widths = [given["width"]] if "width" in given else _widths()
    depths = [given["depth"]] if "depth" in given else range(1, 65)
    shapes = (_shape(vocab_size, width, depth, given) for width in widths for depth in depths)
    best = min(shapes, key=lambda shape: _misfit(shape, wanted, vocab_size))
    context = given.get("context", context_of(wanted))
    batch = max(1, round(ids_of(wanted) / context))
    numbers = {
        "context": context,
        "batch": batch,
        "learning_rate": rate_of(wanted, optimizer),
        "optimizer": optimizer,
    }
    return _checked(Dial(vocab_size, **best, **(numbers | _only(given, numbers))))


def context_of(parameters: int) -> int:
    """Ids in a row."""
    short = 512 if parameters >= 1_000_000 else 256
    return 1024 if parameters >= 50_000_000 else short


def ids_of(parameters: int) -> float:
    """Ids in a step."""
    return 1024 * math.sqrt(parameters / 1e5)


def rate_of(parameters: int, optimizer: str) -> float:
    """The full learning rate."""
    return 0.02 if optimizer == "muon" else min(0.005, 0.003 * math.sqrt(1e6 / parameters))


def _only(given: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _widths() -> list[int]:
    return [32, 64, 96, *range(128, 1024, 64), *range(1024, 4097, 128)]


def _shape(vocab_size: int, width: int, depth: int, given: dict[str, Any]) -> dict[str, int]:
    heads = given.get("heads", width // (64 if width >= 128 else 32) or 1)
    shared = next(heads // n for n in (3, 2, 1) if heads % n == 0)
    shape = {"width": width, "depth": depth, "heads": heads, "kv_heads": shared}
    shape["ffn"] = math.ceil(width * 8 / 3 / 32) * 32
    return shape | _only(given, shape)


def _misfit(shape: dict[str, int], wanted: int, vocab_size: int) -> float:
    """Distance from the size and from the rule for the depth, which weighs half as much."""
    width, ratio = shape["width"], shape["kv_heads"] / shape["heads"]
    layer = 2 * width * width * (1 + ratio) + 3 * width * shape["ffn"] + 2 * width
    count = vocab_size * width + shape["depth"] * layer + width
    rule = 0.45 * math.sqrt(width)
    return abs(math.log(count / wanted)) + abs(math.log(shape["depth"] / rule)) / 2


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuse a number that is not above 0, or an optimizer that there is not.

    Raises:
        RequestError: its name and value.
    """
    for name, value in numbers.items():
        if name != "optimizer" and not value > 0:
            raise RequestError(f"{name} is {value}", expected="a number above 0")
    if numbers["optimizer"] not in ("muon", "adamw"):
        raise RequestError(f"optimizer is {numbers['optimizer']!r}", expected='"muon" or "adamw"')


def _checked(d: Dial) -> Dial:
    check_numbers(vars(d))
    if d.width % d.heads or (d.width // d.heads) % 2:
        raise RequestError(
            f"width {d.width} with {d.heads} heads",
            expected="an even number of channels per head",
        )
    if d.heads % d.kv_heads:
        raise RequestError(f"{d.heads} heads over {d.kv_heads} kv_heads", expected="a multiple")
    return d

"""Where a run starts: from nothing, or from a model that is there (`tuning.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from seriatim.codecs import Codec
from seriatim.errors import RequestError
from seriatim.models.spec import Spec
from seriatim.train import card, dial
from seriatim.train.adapting import Beside
from seriatim.train.dial import Dial, Tuning
from seriatim.train.model import Model, initial
from seriatim.train.options import Options
from seriatim.train.tuning import ADAPTING, Place, Tuned, tuned


class Start(Protocol):
    """What a run begins with."""

    @property
    def codec(self) -> str | Codec:
        """Of the ids: there, or to be learned."""
        ...

    @property
    def place(self) -> Place | None:
        """Where the codec was read, which may have a chat template too."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids of a codec that learns them."""
        ...

    @property
    def about(self) -> str:
        """What the run's folder will hold."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What its reader should know."""
        ...

    @property
    def agreed(self) -> Mapping[str, Any]:
        """What must be the same for the run to go on, beside its options and numbers."""
        ...

    def numbers(self, vocab_size: int) -> Dial | Tuning:
        """Of the run, for a codec of so many ids."""
        ...

    def spec(self, vocab_size: int) -> Spec:
        """The model of these numbers."""
        ...

    def weights(
        self, spec: Spec, extra: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Tensor], Beside | None]:
        """What is learned, with what an objective brings; and what stays beside it."""
        ...

    def write(self, out: Path, model: Model, codec: Codec) -> None:
        """What was learned, as `seriatim.load` takes it."""
        ...


@dataclass(frozen=True)
class New:
    """A model of the dial's, drawn from the seed."""

    options: Options
    about = "A model of the Llama family"
    notes = ()

    @property
    def codec(self) -> str:
        return self.options.codec or "text"

    @property
    def place(self) -> Place | None:
        return (Path(self.codec), {}) if Path(self.codec).is_dir() else None

    @property
    def vocab_size(self) -> int:
        return self.options.vocab_size or dial.vocabulary(dial.parse(str(self.options.size)))

    @property
    def agreed(self) -> dict[str, Any]:
        return {}

    def numbers(self, vocab_size: int) -> Dial:
        return dial.of(self.options, vocab_size)

    def spec(self, vocab_size: int) -> Spec:
        return self.numbers(vocab_size).spec

    def weights(
        self, spec: Spec, extra: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Tensor], None]:
        return initial(spec, seed=self.options.seed, extra=extra), None

    def write(self, out: Path, model: Model, codec: Codec) -> None:
        card.write_model(out, model.spec, model.weights, codec, store=self.options.store)


def of(options: Options) -> New | Tuned:
    """What a run's options begin with.

    Raises:
        RequestError: options that contradict each other, or that nothing would read.
        FileError, ModelError: a checkpoint or an adapter that cannot be gone on from.
    """
    alone = (*ADAPTING, "merge") if options.adapter is None else ()
    for name in alone:
        if getattr(options, name):
            raise RequestError(f"{name} is given without an adapter", fix="add adapter='lora'")
    if options.init is not None or options.adapter is not None:
        return tuned(options)
    dial.parse(str(options.size))
    return New(options)

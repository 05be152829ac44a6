"""seriatim: trains, measures, runs and serves autoregressive models over any sequence.

    import seriatim
    model = seriatim.load("tales")
    print(model.generate("Once upon a time", max_tokens=64, seed=1).output)

The public names are few and lazy: importing the package loads neither numpy nor torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # what typing's is too; its import takes longer than all of the rest here
if TYPE_CHECKING:
    from typing import Any

    from seriatim.api import Model
    from seriatim.engine.engine import Engine
    from seriatim.errors import (
        FileError,
        ModelError,
        NumericError,
        RequestError,
        ResourceError,
        SeriatimError,
    )
    from seriatim.loading import load
    from seriatim.train.loop import train

__version__ = "0.1.0"

_WHERE = {
    "load": "loading",
    "train": "train.loop",
    "Model": "api",
    "Engine": "engine.engine",
    "SeriatimError": "errors",
    "RequestError": "errors",
    "FileError": "errors",
    "ModelError": "errors",
    "NumericError": "errors",
    "ResourceError": "errors",
}

__all__ = [
    "Engine",
    "FileError",
    "Model",
    "ModelError",
    "NumericError",
    "RequestError",
    "ResourceError",
    "SeriatimError",
    "load",
    "train",
]


def __getattr__(name: str) -> "Any":
    if name not in _WHERE:
        raise AttributeError(f"module 'seriatim' has no attribute {name!r}")
    return getattr(import_module(f"seriatim.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

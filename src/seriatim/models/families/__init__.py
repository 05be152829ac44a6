"""Families: a foreign config and its tensor names, as a `Spec` and a table. One file each.

A family is a module with the functions of `Family`; its file's name, or an entry point in the
group `seriatim.models.families` named after its model_type, is its registration.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from seriatim import registry
from seriatim.errors import ModelError, did_you_mean
from seriatim.models.config import Say
from seriatim.models.spec import Spec


@dataclass(frozen=True)
class Source:
    """Where a weight is stored: a tensor, transposed if it is [in, out], then some of its rows."""

    name: str
    transpose: bool = False
    rows: slice | None = None  # of a fused tensor; the parts together are all its rows
    dealt: tuple[int, int, int] | None = None  # groups of rows, parts of each group, which part


class Family(Protocol):
    """What a family's module offers."""

    MODEL_TYPES: tuple[str, ...]  # values of the config's model_type
    ARCHITECTURES: tuple[str, ...]  # values of the config's architectures that are accepted

    def spec(self, config: Mapping[str, Any], context: int | None = None, say: Say = ...) -> Spec:
        """The model that a config describes.

        Args:
            config: config.json.
            context: the length to load for; default: the model's own.
            say: told of everything ignored, defaulted or chosen.

        Raises:
            ModelError: a key that is missing, out of range, unknown or not supported.
        """
        ...

    def sources(self, spec: Spec, names: Collection[str]) -> dict[str, Source]:
        """Where each weight of `spec.weights(spec)` is stored, given the names of all tensors."""
        ...

    def duplicates(self, spec: Spec, names: Collection[str]) -> dict[str, str]:
        """Stored tensors that nothing reads but which must equal another: a tied head."""
        ...

    def ignored(self, name: str) -> bool:
        """Whether a stored tensor is known to be computed anew, such as a mask."""
        ...


def of(config: Mapping[str, Any]) -> tuple[str, Family]:
    """The name and module of the family that a config belongs to.

    Raises:
        ModelError: its model_type or its architecture is not one that seriatim runs.
    """
    kind, found = config.get("model_type"), _found()
    if isinstance(kind, str) and kind not in found and kind in registry.names(__name__):
        found[kind] = kind
    if not isinstance(kind, str) or kind not in found:
        seen = f"model_type = {kind!r}" if "model_type" in config else "no model_type"
        hint = did_you_mean(str(kind), found)
        raise ModelError(f"config.json has {seen}", expected="a known architecture", fix=hint)
    name, family = by_name(found[kind])
    _check_architecture(config, family)
    return name, family


def by_name(name: str) -> tuple[str, Family]:
    """The family registered as `name`."""
    return name, cast(Family, registry.get(__name__, name))


def _found() -> dict[str, str]:
    """model_type -> family, of the families that ship."""
    modules = [by_name(module.name) for module in iter_modules(__path__)]
    return {kind: name for name, module in modules for kind in module.MODEL_TYPES}


def _check_architecture(config: Mapping[str, Any], family: Family) -> None:
    named = config.get("architectures")
    if named is None or named == []:
        return
    if not isinstance(named, list) or not all(name in family.ARCHITECTURES for name in named):
        raise ModelError(
            f"config.json has architectures = {named!r}",
            expected=f"one of {', '.join(family.ARCHITECTURES)}",
        )

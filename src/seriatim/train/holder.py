"""Weights by name as torch's parallel engines want them: parameters of modules that they hook."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class Holder(nn.Module):
    """Some weights as the module that torch's engines ask for; it runs whatever it is given."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(weight.detach()))

    def forward(self, work: Callable[..., Any], *inputs: Any) -> Any:
        return work(*inputs)


class View(Mapping[str, Tensor]):
    """Weights by name, wherever they lie: whole while their module computes, else own rows."""

    def __init__(self, holders: Mapping[str, Holder]) -> None:
        self._holders = holders

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self._holders[name], name.replace(".", "/"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

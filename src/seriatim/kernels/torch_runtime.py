"""The reference ops as a `Runtime` on any torch device: what the native one is checked against."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from seriatim.kernels.formats import Array, Blocks, expand
from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import Cache, Expanded, ReferenceOps

KV = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


class TorchRuntime:
    """Runs a forward pass on torch tensors with a paged cache.

    Args:
        forward: logits from (ops, weights).
        weights: numpy arrays by name; copied to the device.
        layers: (kv heads, channels) of each layer.
        kv: "f32", "bf16" or "int8", how keys and values are stored.
        device: any torch device.
        names: what weights are called on disk, for `trace`.
    """

    def __init__(
        self,
        forward: Callable[[ReferenceOps, Mapping[str, Tensor | Expanded]], Tensor],
        weights: Mapping[str, Array],
        layers: Sequence[tuple[int, int]],
        *,
        vocab_size: int,
        kv: str,
        device: str,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.forward, self.device, self.vocab_size, self.kv = forward, device, vocab_size, kv
        self._names = names or {}
        self.weights = {name: _on(device, array) for name, array in weights.items()}
        self.cache = Cache(list(layers), KV[kv], device)
        stored = (*self.cache.keys, *self.cache.values)
        self.block_bytes = sum(t.shape[1:].numel() * t.element_size() for t in stored)
        self.blocks = 0
        self._logits = np.empty((0, vocab_size), np.float32)

    def resize(self, blocks: int) -> None:
        blocks = max(blocks, self.blocks)
        self.cache.resize(blocks)
        self.blocks = blocks

    def copy(self, source: int, target: int) -> None:
        self.cache.copy(source, target)

    def read(self, block: int, positions: int) -> np.ndarray:
        return self.cache.read(block, positions).cpu().numpy()

    def write(self, block: int, data: np.ndarray) -> None:
        self.cache.restore(block, tensor(data).to(self.device))

    @torch.inference_mode()
    def step(self, batch: Batch) -> np.ndarray:
        ops = ReferenceOps(batch, self.device, self.cache)
        self._logits = self.forward(ops, self.weights).float().cpu().numpy()
        return self._logits

    @property
    def facts(self) -> str:
        return f"torch on {self.device}"

    @property
    def arithmetic(self) -> str:
        return f"torch {torch.__version__} on {self.device}"

    def finite(self) -> np.ndarray:
        return np.asarray(np.isfinite(self._logits).all(-1), np.uint8)

    def best(self) -> np.ndarray:
        return self._logits.argmax(-1).astype(np.int32)

    def trace(self, batch: Batch) -> str:
        """The first weight that is not finite, or the logits themselves."""
        values = {n: w.values if isinstance(w, Expanded) else w for n, w in self.weights.items()}
        bad = (name for name, value in values.items() if not value.isfinite().all())
        found = next(bad, "logits")
        return self._names.get(found, found)


def _on(device: str, array: Array) -> Tensor | Expanded:
    if isinstance(array, Blocks):
        return Expanded(torch.from_numpy(expand(array)).to(device))
    return tensor(array).to(device)


def tensor(array: np.ndarray) -> Tensor:
    """A torch copy of a numpy array; numpy's bfloat16 is ml_dtypes', which torch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))

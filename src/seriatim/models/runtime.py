"""From a spec and weights to something that runs steps: the native plan or the torch reference."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from seriatim.errors import RequestError
from seriatim.kernels.formats import Array
from seriatim.kernels.native import NativeRuntime
from seriatim.kernels.ops import Runtime
from seriatim.kernels.record import record
from seriatim.models.forward import forward
from seriatim.models.spec import Spec
from seriatim.models.spec import weights as shapes


def native(
    spec: Spec,
    weights: Mapping[str, Array],
    *,
    names: Mapping[str, str],
    threads: int | None,
    kv: str,
    isa: str | None,
) -> NativeRuntime:
    """The model as a plan for the C++ runtime."""
    plan = record(lambda ops, handles: forward(ops, spec, handles), shapes(spec))
    return NativeRuntime(plan, weights, threads=threads, kv=kv, isa=isa, names=names)


def torch(
    spec: Spec,
    weights: Mapping[str, Array],
    *,
    names: Mapping[str, str],
    kv: str,
    device: str,
) -> Runtime:
    """The model as torch ops on a device.

    Raises:
        RequestError: torch is not installed, or knows no such device.
    """
    if find_spec("torch") is None:
        raise RequestError(
            "backend 'torch' needs torch, which is not installed",
            fix="pip install 'seriatim[train]', or use backend='native'",
        )
    from seriatim.kernels.torch_runtime import TorchRuntime

    layers = [(l.attention.kv_heads, l.attention.channels) for l in spec.layers]
    run: Any = partial(_run, spec)
    options: dict[str, Any] = {"kv": kv, "device": device, "names": names}
    try:
        return TorchRuntime(run, weights, layers, vocab_size=spec.vocab_size, **options)
    except (RuntimeError, AssertionError) as error:  # the latter: a torch without CUDA
        raise RequestError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}",
            fix="use device='cpu'",
        ) from None


def _run(spec: Spec, ops: Any, weights: Mapping[str, Any]) -> Any:
    return forward(ops, spec, weights)

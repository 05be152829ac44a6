"""One attention layer as plans: the fused `attend`, and the records that it stands for."""

from dataclasses import dataclass

import numpy as np
from native_runs import normal

from seriatim.kernels.native import NativeRuntime
from seriatim.kernels.record import Buffer, Plan, Record, Recorder, Weight


@dataclass(frozen=True)
class Layer:
    """What comes between the projections and the mixed values."""

    heads: int
    kv_heads: int
    channels: int
    turned: int = 0  # channels that angles turn; 0: no rope
    layout: str = "half"
    norm: str | None = None
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.3

    def options(self):
        return {
            "layer": 0,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "window": self.window,
            "scale": self.scale,
            "softcap": self.softcap,
        }

    def frequencies(self):
        return tuple(1.0 / 100 ** (i / self.turned) for i in range(0, self.turned, 2))

    def eps(self):
        return {"query": 1e-5, "key": 1e-3}


def weights(layer, tokens, seed=0):
    """Tables of projected queries, keys and values [token, ...], and the norms' vectors."""
    c = layer.channels
    made = {
        "query": normal(seed, tokens, layer.heads * c),
        "key": normal(seed + 1, tokens, layer.kv_heads * c),
        "value": normal(seed + 2, tokens, layer.kv_heads * c),
    }
    if layer.norm:
        made["query.weight"], made["key.weight"] = normal(seed + 3, c), normal(seed + 4, c)
    if layer.norm == "layer":
        made["query.bias"], made["key.bias"] = normal(seed + 5, c), normal(seed + 6, c)
    return made


def unfused(layer):
    """The forward pass, on reference ops too."""

    def forward(ops, w):
        angles = ops.rotary(layer.frequencies(), scale=1.1) if layer.turned else None

        def project(name, heads):
            x = ops.embed(w[name], source="ids")
            if layer.norm:
                vectors = w[f"{name}.weight"], w.get(f"{name}.bias")
                eps = layer.eps()[name]
                x = ops.norm(x, *vectors, kind=layer.norm, eps=eps, heads=heads)
            return ops.rope(x, angles, heads=heads, layout=layer.layout) if layer.turned else x

        query, key = project("query", layer.heads), project("key", layer.kv_heads)
        return ops.attention(query, key, ops.embed(w["value"], source="ids"), **layer.options())

    return forward


def unfused_plan(layer, tables):
    recorder = Recorder()
    handles = {name: Weight(name, array.shape) for name, array in tables.items()}
    return Plan(recorder.records, recorder.constants, unfused(layer)(recorder, handles))


def fused_plan(layer, tables):
    """The same in one record, over tables laid side by side."""
    recorder = Recorder()
    whole = Weight("projected", side_by_side(tables).shape)
    buffers = [recorder.embed(whole, source="ids")]
    if layer.turned:
        buffers.append(recorder.rotary(layer.frequencies(), scale=1.1))
    names = ("query.weight", "query.bias", "key.weight", "key.bias")
    vectors = [Weight(n, tables[n].shape) if n in tables else None for n in names]
    output = Buffer(len(recorder.records), "T", layer.heads * layer.channels)
    attributes = layer.options() | {
        "visible": "causal",
        "norm": layer.norm,
        "layout": layer.layout if layer.turned else None,
        "query_eps": layer.eps()["query"],
        "key_eps": layer.eps()["key"],
    }
    attend = Record("attend", (*buffers, *vectors), output, attributes)
    return Plan((*recorder.records, attend), recorder.constants, output)


def side_by_side(tables):
    return np.concatenate([tables[name] for name in ("query", "key", "value")], axis=1)


def make_fused(layer, tables, **options):
    tables = tables | {"projected": side_by_side(tables)}
    return NativeRuntime(fused_plan(layer, tables), tables, **options)


def make_unfused(layer, tables, **options):
    return NativeRuntime(unfused_plan(layer, tables), tables, **options)

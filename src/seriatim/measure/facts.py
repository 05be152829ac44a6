"""What a model is and what this machine offers, as plain values to print."""

import json
from typing import Any

from seriatim import __version__, zoo
from seriatim.api import Model
from seriatim.kernels import native


def of(model: Model) -> dict[str, Any]:
    """Facts of a loaded model; what was ignored or chosen at load is under `notes`."""
    source, spec = model.checkpoint, model.checkpoint.spec
    attention = spec.layers[0].attention
    return {
        "model": source.path.resolve().name,
        "type": source.model_type,
        "weights": source.parameters,
        "stored": [f"{name} {count:,}" for name, count in source.dtypes.items()],
        "layers": len(spec.layers),
        "width": spec.width,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "vocabulary": model.vocab_size,
        "context": model.context,
        "codec": model.codec.name if model.codec else None,
        "unit": model.codec.unit if model.codec else None,
        "ends": list(model.ends),
        "start": list(model.start),
        "not_applied": [f"{k}={v}" for k, v in source.defaults.items() if not k.endswith("_id")],
        "notes": list(source.notes),
    }


def machine() -> dict[str, Any]:
    """Facts of this machine: the instruction sets it runs, best first, and the processors."""
    return {
        "seriatim": __version__,
        "isa": native.isas(),
        "why": native.why(),
        "features": native.features(),
        "processors": native.available_cpus(),
    }


def shipped() -> dict[str, dict[str, Any]]:
    """Each shipped model: the first sentence of its card and its size in bytes."""
    return {name: _card(name) for name in zoo.names()}


def _card(name: str) -> dict[str, Any]:
    folder = zoo.folder(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    about = next((l for l in lines if l.strip() and not l.startswith(("#", "-", "|", ">"))), "")
    return {"about": about.strip(), "type": config["model_type"], "bytes": size}

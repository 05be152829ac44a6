"""Quantisation beside llama.cpp's of the same weights, on the same ids: KL to the original.

    python benchmarks/quantisation.py --llama PY [--json FILE] [--only tales]

PY is an interpreter with llama_cpp and gguf. Keys and values are f32 on both sides, the reference
is the model computed in f32. llama.cpp keeps a head (and a table that serves as one) at a higher
type, and rows that are no multiple of 32 at F16: that is "default"; "pure" gives int4 to every
tensor whose rows allow it. The pass is against the default; both ratios are printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

import seriatim
from seriatim import zoo
from seriatim.measure.compare import windows
from seriatim.models import checkpoint
from seriatim.models.weights import convert
from seriatim.quantising import quantize

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
NOVELS = DATA / "text" / "novels100"
STORIES = DATA / "weights" / "stories260K" / "stories260K.bin"
CALIBRATION = ("Stevenson_Treasure_1883", "Eliot_Felix_1866", "Woolf_Lighthouse_1927")
COUNT, LENGTH = 24, 512  # windows compared, ids in each

WAYS = {  # name -> bits, method, with a text, llama.cpp's, pass
    "int8 round": ("int8", "round", False, "Q8_0", 1.1),
    "int8 search": ("int8", "search", False, "Q8_0", 1.1),
    "int4 round": ("int4", "round", False, "Q4_0", 1.0),
    "int4 search": ("int4", "search", False, "Q4_0", 0.7),
    "int4 feedback, own draws": ("int4", "feedback", False, "Q4_0", 0.7),
    "int4 feedback, a text": ("int4", "feedback", True, "Q4_0", 0.5),
}


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KL(A || B) of each row of logits, in nats."""
    parts = []
    for p, q in zip(np.array_split(a, 64), np.array_split(b, 64), strict=True):
        p, q = (x - x.max(-1, keepdims=True) for x in (p.astype(float), q.astype(float)))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        parts.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(parts)


def texts(name: str, model: seriatim.Model, folder: Path) -> tuple[list[list[int]], Path]:
    """Windows to compare on, held out, and a file of text to keep the outputs on."""
    path = folder / "importance.txt"
    if name == "tales":
        sources = [
            (NOVELS / f"{book}.txt").read_text("utf-8")[50_000:130_000] for book in CALIBRATION
        ]
        path.write_text("\n".join(sources), encoding="utf-8")
        held_out = (NOVELS / "Doyle_Hound_1902.txt").read_text("utf-8")[20_000:90_000]
        return windows(model, held_out, length=LENGTH)[:COUNT], path
    options = {"max_tokens": LENGTH - 1, "ignore_end": True}
    drawn = model.generate(n=COUNT, seed=1, **options)
    other = model.generate(n=2 * COUNT, seed=2, **options)
    path.write_text("\n".join(sample.text for sample in other.samples), encoding="utf-8")
    return [[*drawn.prompt_ids, *sample.ids] for sample in drawn.samples], path


def llama(python: str, source: Path, ids: list[list[int]], folder: Path) -> tuple[dict, dict]:
    """llama.cpp's logits of each of its types, and what its files hold."""
    model = checkpoint.read(source)
    np.savez(folder / "weights.npz", **convert(model.weights, "f32"))
    np.save(folder / "windows.npy", np.array(ids))
    (folder / "model.json").write_text(json.dumps(numbers(model)))
    worker = str(HERE / "workers" / "run_llama_quantised.py")
    done = subprocess.run([python, worker, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    files = {path.stem: path for path in folder.glob("llama-*.npy")}
    report = json.loads(done.stdout)
    return {kind: np.load(files[f"llama-{kind.replace(' ', '-')}"]) for kind in report}, report


def numbers(model: checkpoint.Checkpoint) -> dict:
    spec, attention = model.spec, model.spec.layers[0].attention
    assert attention.rope is not None
    return {
        "context": spec.context,
        "width": spec.width,
        "layers": len(spec.layers),
        "ffn": spec.layers[0].mlp.width,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "channels": attention.channels,
        "rope_theta": 10000.0,
        "eps": spec.norm.eps,
        "vocabulary": spec.vocab_size,
        "layout": attention.rope.layout,
    }


def logits(model: seriatim.Model, ids: list[list[int]]) -> np.ndarray:
    return np.concatenate([model.logits(window) for window in ids])


def line(name: str, values: np.ndarray, size: int) -> dict:
    return {
        "row": name,
        "kl": float(values.mean()),
        "kl_error": float(values.std() / len(values) ** 0.5),
        "kl_99": float(np.quantile(values, 0.99)),
        "kl_worst": float(values.max()),
        "bytes": size,
    }


def measure(name: str, source: Path, python: str, folder: Path) -> list[dict]:
    exact = seriatim.load(source, precision="f32", kv="f32")
    ids, text = texts(name, exact, folder)
    reference = logits(exact, ids)
    theirs, report = llama(python, source, ids, folder)
    rows = [
        line(f"{name} llama.cpp {k}", kl(reference, theirs[k]), report[k]["bytes"]) for k in theirs
    ]
    peers = {kind: row["kl"] for kind, row in zip(theirs, rows, strict=True)}
    for way, (to, method, uses_text, peer, limit) in WAYS.items():
        out, begin = folder / way.replace(" ", "-"), perf_counter()
        done = quantize(
            source, to=to, out=out, method=method, importance=text if uses_text else None
        )
        seconds = perf_counter() - begin
        values = kl(reference, logits(seriatim.load(out, kv="f32"), ids))
        row = line(f"{name} {way}", values, done.bytes_after) | {"seconds": seconds, "pass": limit}
        row["ratio"] = row["kl"] / peers[peer]
        row["ratio_pure"] = row["kl"] / peers.get(f"{peer} pure", peers[peer])
        rows.append(row)
    return rows


def shown(row: dict) -> str:
    text = (
        f"{row['row']:38} KL {row['kl']:.3e} ± {row['kl_error']:.0e}  99% {row['kl_99']:.2e}"
        f"  worst {row['kl_worst']:.1e}  {row['bytes']:,} bytes"
    )
    if "ratio" not in row:
        return text
    ratios = f"  x default {row['ratio']:.3f}  x pure {row['ratio_pure']:.3f}  pass {row['pass']}"
    return f"{text}{ratios}  {row['seconds']:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", required=True, metavar="PY")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["tales", "stories260K"])
    args = parser.parse_args()
    models = {"tales": zoo.folder("tales"), "stories260K": STORIES}
    rows = []
    for name in [args.only] if args.only else models:
        with tempfile.TemporaryDirectory() as root:
            found = measure(name, models[name], args.llama, Path(root))
        for row in found:
            print(shown(row), flush=True)
        rows += found
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

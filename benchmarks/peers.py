"""seriatim beside its peers: in turn, in one run, several rounds; ratios of medians count.

    python benchmarks/peers.py --transformers PY [--json FILE] [--rounds 5] [--only 15M]
        [--shape DIM,FFN,LAYERS,HEADS,KV,VOCAB]

Each peer runs under its own interpreter. Random weights of real shapes: valid for speed only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import limits
from shapes import SHAPES, make

HERE = Path(__file__).parent
PASS = {"15M decode bf16": 1.0, "135M decode bf16": 1.0}


def measure(python: str, worker: str, folder: Path, threads: int, tokens: int) -> float:
    """Tokens per second of one fresh process."""
    words = [python, str(HERE / "workers" / worker), str(folder), str(threads), str(tokens)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["tokens_per_s"]


def row(name: str, folder: Path, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """One line of the table, and the machine's limits in each round."""
    ours, theirs, machines = [], [], []
    for _ in range(args.rounds):
        machines.append(limits())
        theirs.append(
            measure(args.transformers, "run_transformers.py", folder, args.threads, args.tokens)
        )
        ours.append(measure(sys.executable, "run_seriatim.py", folder, args.threads, args.tokens))
    line = {
        "row": f"{name} decode bf16",
        "peer": "transformers bf16",
        "peer_value": median(theirs),
        "peer_range": [min(theirs), max(theirs)],
        "seriatim_value": median(ours),
        "seriatim_range": [min(ours), max(ours)],
        "ratio": median(ours) / median(theirs),
        "pass": PASS.get(f"{name} decode bf16"),
        "bytes_per_token": (folder / "model.safetensors").stat().st_size,
    }
    return line, machines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformers", default=sys.executable, metavar="PY")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=65)
    parser.add_argument("--only", choices=["15M", "135M"])
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    args = parser.parse_args()
    shapes = {"own": args.shape} if args.shape else {n: SHAPES[n] for n in ("15M", "135M")}
    rows, machines = [], []
    with tempfile.TemporaryDirectory() as root:
        for name in [args.only] if args.only else shapes:
            line, seen = row(name, make(Path(root) / name, shapes[name]), args)
            rows.append(line)
            machines += seen
            print(
                f"{line['row']:20} transformers {line['peer_value']:8.1f}  seriatim "
                f"{line['seriatim_value']:8.1f}  ratio {line['ratio']:.2f}  pass {line['pass']}"
            )
    machine = {key: median(m[key] for m in machines) for key in machines[0]}
    print("machine", {key: round(value, 1) for key, value in machine.items()})
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

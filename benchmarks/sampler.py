"""Microseconds for one id: the C++ sampler, and the definition that it equals.

python benchmarks/sampler.py [--rounds 200] [--scale 3.0]
"""

import argparse
from statistics import median
from time import perf_counter

import numpy as np

from seriatim.engine import sampler, sampler_reference
from seriatim.engine.sampling import Sampling

SETTINGS = {
    "greedy": (Sampling(temperature=0), None),
    "temperature": (Sampling(temperature=0.8), None),
    "temperature, top-k, top-p": (Sampling(temperature=0.8, top_k=50, top_p=0.95), None),
    "temperature, top-p": (Sampling(temperature=0.8, top_p=0.95), None),
    "temperature, min-p": (Sampling(temperature=0.8, min_p=0.05), None),
    "greedy, logprobs": (Sampling(temperature=0), 0),
    "top-k, top-p, 5 logprobs": (Sampling(temperature=0.8, top_k=50, top_p=0.95), 5),
    "all penalties over 1000 ids": (Sampling(1.1, 0.5, 0.5, temperature=0.8, top_k=50), None),
}


def microseconds(draw, rows: list[np.ndarray], rounds: int, how: Sampling, top: int | None):
    """Median and best over `rounds` calls, each on the next of a few rows."""
    times = []
    ids = [i * 7 % len(rows[0]) for i in range(1000)]
    for i in range(rounds):
        begin = perf_counter()
        draw(rows[i % len(rows)], how, ids=ids, prompt=100, seed=i, top=top)
        times.append(1e6 * (perf_counter() - begin))
    return median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--scale", type=float, default=3.0, help="spread of the random logits")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'vocabulary':>10}  {'setting':28} {'median us':>10} {'best':>8} {'definition':>11}")
    for size in (512, 32_000, 128_256):
        rows = [rng.normal(0, given.scale, size).astype(np.float32) for _ in range(4)]
        for name, (how, top) in SETTINGS.items():
            mid, best = microseconds(sampler.draw, rows, given.rounds, how, top)
            slow, _ = microseconds(
                sampler_reference.draw, rows, max(3, given.rounds // 40), how, top
            )
            print(f"{size:10}  {name:28} {mid:10.1f} {best:8.1f} {slow:11.1f}", flush=True)


if __name__ == "__main__":
    main()

"""Microseconds for one id: the C++ sampler, and the definition that it equals.

python benchmarks/sampler.py [--rounds 200] [--scale 3.0] [--sizes 512 32000 128256] [--fast]
"""

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from seriatim.engine import sampler, sampler_reference
from seriatim.engine.sampling import Sampling

WARM = dict(temperature=0.8)
USUAL = dict(temperature=0.8, top_k=50, top_p=0.95)
MANY = 4000  # ids of history


def settings(size: int) -> dict[str, tuple[Sampling, dict[str, Any]]]:
    """What is measured, by name: how an id is drawn, and what else a call is given."""
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**32, -(-size // 32), dtype=np.uint32)
    long, loop = rng.integers(0, size, MANY).tolist(), [i % 50 for i in range(MANY)]
    last = dict(filters=("min_p", "temperature"))
    made: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "greedy": (dict(temperature=0), {}),
        "greedy, the best known": (dict(temperature=0), dict(best=7)),
        "temperature": (WARM, {}),
        "temperature, top-k, top-p": (USUAL, {}),
        "temperature, top-p": (dict(WARM, top_p=0.95), {}),
        "temperature, min-p": (dict(WARM, min_p=0.05), {}),
        "min-p, temperature last": (dict(WARM, min_p=0.05, **last), {}),
        "temperature, typical": (dict(WARM, typical_p=0.95), {}),
        "top-k, typical, top-p": (dict(USUAL, typical_p=0.95), {}),
        "xtc": (dict(WARM, xtc_probability=1.0, xtc_threshold=0.01), {}),
        "min-p, xtc": (dict(WARM, min_p=0.05, xtc_probability=1.0, xtc_threshold=0.01), {}),
        "dynamic temperature": (dict(WARM, dynatemp_range=0.5), {}),
        "all penalties, 4000 ids": (
            dict(WARM, top_k=50, repetition_penalty=1.1, presence_penalty=0.5),
            dict(ids=long),
        ),
        "dry, 4000 ids": (dict(WARM, top_k=50, dry_multiplier=0.8), dict(ids=long)),
        "dry, a loop of 4000": (dict(WARM, top_k=50, dry_multiplier=0.8), dict(ids=loop)),
        "a mask": (USUAL, dict(masks=[words])),
        "two masks": (USUAL, dict(masks=[words, np.roll(words, 1)])),
        "a 25th banned": (dict(USUAL, banned_ids=tuple(range(0, size, 25))), {}),
        "a 25th biased": (
            dict(USUAL, logit_bias=tuple((i, 1.0) for i in range(0, size, 25))),
            {},
        ),
        "greedy, logprobs": (dict(temperature=0), dict(top=0, best=7)),
        "top-k, top-p, 5 logprobs": (USUAL, dict(top=5)),
    }
    return {name: (Sampling(**how), facts) for name, (how, facts) in made.items()}


def microseconds(draw, rows: list[np.ndarray], rounds: int, how: Sampling, facts: dict):
    """Median and best over `rounds` calls, each on the next of a few rows."""
    times, facts = [], dict(ids=[0] * 20, prompt=10, top=None) | facts
    for i in range(rounds):
        begin = perf_counter()
        draw(rows[i % len(rows)], how, seed=i, **facts)
        times.append(1e6 * (perf_counter() - begin))
    return median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--scale", type=float, default=3.0, help="spread of the random logits")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 32_000, 128_256])
    parser.add_argument("--fast", action="store_true", help="leave the definition out")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'vocabulary':>10}  {'setting':28} {'median us':>10} {'best':>8} {'definition':>11}")
    for size in given.sizes:
        rows = [rng.normal(0, given.scale, size).astype(np.float32) for _ in range(4)]
        for name, (how, facts) in settings(size).items():
            mid, best = microseconds(sampler.draw, rows, given.rounds, how, facts)
            slow = float("nan")
            if not given.fast:
                known = {k: v for k, v in facts.items() if k != "best"}
                few = max(3, given.rounds // 40)
                slow, _ = microseconds(sampler_reference.draw, rows, few, how, known)
            print(f"{size:10}  {name:28} {mid:10.1f} {best:8.1f} {slow:11.1f}", flush=True)


if __name__ == "__main__":
    main()

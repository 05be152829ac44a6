"""What a newcomer waits for: import, first token of the command, and the memory that loading takes.

python benchmarks/startup.py [--rounds 9]
"""

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter


def seconds(words: list[str], first_byte: bool) -> float:
    """Until the process ends, or until it writes its first byte."""
    begin = perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        if first_byte:
            process.stdout.read(1)
            spent = perf_counter() - begin
            process.kill()
            return spent
        process.wait()
        return perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    python = [sys.executable, "-c"]
    cases = {
        "python alone": ([*python, "pass"], False),
        "import seriatim": ([*python, "import seriatim"], False),
        "import seriatim and numpy": ([*python, "import seriatim, numpy"], False),
        "seriatim.load": ([*python, "import seriatim; seriatim.load('tales')"], False),
        "first token": ([sys.executable, "-m", "seriatim", "generate", "Once upon a time"], True),
    }
    for name, (words, first) in cases.items():
        times = [seconds(words, first) for _ in range(rounds)]
        print(f"{name:28} {median(times):.3f} s  ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()

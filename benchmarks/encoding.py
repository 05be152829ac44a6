"""How fast files become shards, beside the tokenizer library's own `encode_batch`, in one run.

    python benchmarks/encoding.py TEXT... [--tokenizer FOLDER] [--megabytes 24] [--rounds 3]

The texts, repeated with a number in front so that no two documents are equal, become one .jsonl of
documents of 4,000 characters. The peer gets them from memory, in one call, with as many threads as
we have processes, and its ids stay Python objects; ours are read, parsed, hashed, encoded, written
and verified. Rounds alternate, so that a busy machine is busy for both; ratios are medians. The
last column counts processor seconds of all processes instead, which others' work stretches less.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from seriatim import codecs
from seriatim.codecs import Codec
from seriatim.codecs.byte import ByteCodec
from seriatim.train import encoding, reading, run
from seriatim.train.reading import Reading

LENGTH = 4000  # characters of a document
TALES = Path(codecs.__file__).parents[1] / "zoo" / "tales"


def made(paths: list[Path], size: int) -> list[str]:
    """Documents of `size` bytes in all, no two equal."""
    text = "".join(path.read_text(errors="replace") for path in paths)
    found: list[str] = []
    while size > 0:
        at = len(found) * LENGTH % max(1, len(text) - LENGTH)
        found.append(f"{len(found)} {text[at : at + LENGTH]}")
        size -= len(found[-1].encode())
    return found


def ours(path: Path, codec: Codec, processes: int) -> None:
    """From a file to verified shards, its own hash included."""
    with tempfile.TemporaryDirectory() as cache:
        how = Reading(text=codec.name != "byte")
        encoder = encoding.Encoder(codec, run.digest(codec), how, Path(cache))
        encoding.encode(encoder, encoding.parts(reading.spans(path, how)), processes=processes)


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds with those of processes that have ended."""
    begun, used = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - begun, sum(os.times()[:4]) - used


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding beside the tokenizer library.")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=TALES, help="a folder")
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(asked.processes)
    from tokenizers import Tokenizer

    codec = codecs.load(asked.tokenizer)
    if codec is None:
        sys.exit(f"{asked.tokenizer} holds no codec")
    documents = made(asked.texts, asked.megabytes << 20)
    size = sum(len(text.encode()) for text in documents) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        codec.save(Path(folder))
        peer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        lines, plain = Path(folder) / "x.jsonl", Path(folder) / "x.txt"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        plain.write_text("".join(documents))
        byte, count = ByteCodec(), asked.processes
        work: dict[str, Callable[[], object]] = {
            "tokenizers' encode_batch": lambda: peer.encode_batch(documents),
            "text, .jsonl": lambda: ours(lines, codec, count),
            "text, one plain file": lambda: ours(plain, codec, count),
            "byte, .jsonl": lambda: ours(lines, byte, count),
            "byte, one plain file": lambda: ours(plain, byte, count),
        }
        rounds = [{name: spent(f) for name, f in work.items()} for _ in range(asked.rounds)]
    print(f"{size:.0f} MB, {count} processes; x: the library's speed")
    print(f"{'':26}{'MB/s':>8}{'x':>7}{'MB/cpu-s':>10}{'x':>7}")
    for name in work:
        cells = []
        for which, width in ((0, 8), (1, 10)):
            times = [found[name][which] for found in rounds]
            base = [found["tokenizers' encode_batch"][which] for found in rounds]
            ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
            cells.append(f"{size / statistics.median(times):{width}.1f}{ratio:7.2f}")
        print(f"{name:26}{''.join(cells)}")


if __name__ == "__main__":
    main()

"""Microseconds that a constraint takes for one id, and milliseconds before the first.

A document is spelt by a vocabulary of 49,152 and of 128,256 ids; at each of its ids the guide is
asked as the engine asks it: a mask, then whether the text is complete. Each time is the least of
several, of guides that know nothing yet.

python benchmarks/constraints.py [--tiktoken FILE] [--step-us 4000] [--repeats 5]
"""

import argparse
import base64
import json
from pathlib import Path
from statistics import mean, median
from time import perf_counter

from seriatim.codecs import byte
from seriatim.constraints import constraining
from seriatim.engine.constrain import GrammarGuide, allows

TIKTOKEN = Path(__file__).parents[2] / "shared/data/tokenizers/ort/phi-3-small/cl100k_base.tiktoken"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"},
        "born": {"type": "string", "format": "date"},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "tags", "email", "born", "note"],
    "additionalProperties": False,
}
WIDE = {
    "type": "object",
    "properties": {f"field{n}": {"type": ["integer", "null"]} for n in range(200)},
    "required": [f"field{n}" for n in range(200)],
}
NOTE = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
DOCUMENTS = {
    "json_schema": (PERSON, json.dumps({
        "name": "Winston Smith", "age": 39, "tags": ["red", "blue"], "email": "smith@minitrue.com",
        "born": "1945-05-08", "note": NOTE})),
    "json_schema, any": ({"type": "object"}, json.dumps({"a": [1, 2.5, None], "note": NOTE})),
    "json_schema, 200 fields": (WIDE, json.dumps({f"field{n}": n for n in range(200)})),
    "regex": (r"[A-Z][a-z]+( [a-z]+){3,60}\.", f"It {'was cold and bright ' * 8}then."),
    "choices": ([f"the choice {n * 7919 % 100_003}" for n in range(1000)], "the choice 7919"),
    "grammar": ('start: sum\nsum: term ("+" term)*\nterm: NUM | "(" sum ")"\nNUM: /[0-9]+/\n',
                "(1+22+(333+4))+" * 10 + "5"),
}  # fmt: skip


def pieces(path: Path, size: int) -> list[bytes]:
    """The tokens of a tiktoken file, and as many made from them as are missing."""
    listed = [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]
    made = [*listed, *(piece + b"s" for piece in listed[-size:])]
    return list(dict.fromkeys(made))[:size]


def spelt(text: bytes, ids: dict[bytes, int], longest: int = 24) -> list[int]:
    """The longest token first: not the ids of a tokenizer, but as long."""
    said = []
    while text:
        piece = next(text[:n] for n in range(longest, 0, -1) if text[:n] in ids)
        said.append(ids[piece])
        text = text[len(piece) :]
    return said


class Codec(byte.ByteCodec):
    """A vocabulary of its own."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces, self.size = pieces, len(pieces)

    def pieces(self) -> list[bytes]:
        return self._pieces


def asked(guide: GrammarGuide, ids: list[int]) -> tuple[list[float], list[float]]:
    """Microseconds of each mask, and of each question whether the text is complete."""
    masks, ends = [], []
    for place, id in enumerate(ids):
        begin = perf_counter()
        words = guide.mask(ids[:place])
        masks.append(1e6 * (perf_counter() - begin))
        assert allows(words, id), f"id {id} at {place}"
        begin = perf_counter()
        guide.complete(ids[: place + 1])
        ends.append(1e6 * (perf_counter() - begin))
    return masks, ends


def least(runs: list[list[float]]) -> list[float]:
    return [min(times) for times in zip(*runs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiktoken", type=Path, default=TIKTOKEN, help="a vocabulary")
    parser.add_argument("--step-us", type=float, default=4000, help="of the model it runs beside")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    head = "ids  start ms   mask us: median  mean   max  complete us  share of a step"
    print(f"{'vocabulary':>10}  {'constraint':24}{head}")
    for size in (49_152, 128_256):
        codec = Codec(pieces(given.tiktoken, size))
        known = {piece: id for id, piece in enumerate(codec.pieces())}
        constraints = constraining.Constraints(codec, size, (size - 1,))
        begin = perf_counter()
        constraints.guides((), {"regex": "a"})
        print(f"{size:10}  {'(the vocabulary, once)':27}{1e3 * (perf_counter() - begin):10.1f}")
        for name, (constraint, text) in DOCUMENTS.items():
            options = {name.split(",")[0]: constraint}
            ids, starts, runs = spelt(text.encode(), known), [], []
            for _ in range(given.repeats):
                begin = perf_counter()
                (guide,) = constraints.guides((), options)
                starts.append(1e3 * (perf_counter() - begin))
                runs.append(asked(guide, ids))
            masks, ends = (least([run[part] for run in runs]) for part in (0, 1))
            share = (mean(masks) + mean(ends)) / given.step_us
            print(
                f"{size:10}  {name:24}{len(ids):3}{min(starts):10.1f}{median(masks):17.0f}"
                f"{mean(masks):6.0f}{max(masks):6.0f}{mean(ends):13.1f}{share:17.1%}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()

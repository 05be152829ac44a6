"""What guesses bring: the same ids with and without each speculator, in turn.

python benchmarks/speculation.py --cache FOLDER [--shape 135M 1B] [--speculate ngram suffix]
    [--task edit code chat random tales] [--rounds 3] [--json FILE]

The shapes have random weights, which soon repeat themselves, and that would not count: their
choices are forced to real text, so that only the cost of a step is the shape's. "tales" is the
shipped model, which says what it says.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from shapes import SHAPES, Files

import seriatim
from seriatim.codecs import _gguf
from seriatim.files import gguf

DATA = Path(__file__).parents[2] / "shared" / "data"
COUNT = 240  # ids that are generated, at most
GOALS = {"edit": 2.0, "quote": 2.0, "chat": 1.2, "code chat": 1.2, "random": 0.98}


class Text(NamedTuple):
    """What is given, and what is said."""

    prompt: list[int]
    answer: list[int]


# ---- texts -------------------------------------------------------------------------------------


def texts(task: str, count: int) -> list[Text]:
    """Some texts of a kind, as ids of a vocabulary of 32,000."""
    if task == "random":
        draw = random.Random(0)
        return [
            Text(*([draw.randrange(32_000) for _ in range(COUNT)] for _ in range(2)))
            for _ in range(count)
        ]
    codec = _gguf.from_gguf(
        gguf.read(DATA / "tokenizers/ggml-vocab/ggml-vocab-phi-3.gguf").metadata
    )
    assert codec is not None
    makers = {"edit": _edits, "quote": _quotes, "chat": _chats, "code chat": _code_chats}
    pairs = islice(makers[task](), count)
    return [Text(codec.encode(p), codec.encode(a)[:COUNT]) for p, a in pairs]


def _programs() -> list[dict[str, Any]]:
    lines = (DATA / "code/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line.replace("\\r\\n", "\\n")) for line in lines]


def _edits() -> Iterator[tuple[str, str]]:
    """Code to be given back with its longest-named variable renamed in one of its functions."""
    programs = _programs()
    for at in range(0, len(programs), 4):
        codes = [program["code"] for program in programs[at : at + 4]]
        names = sorted(set(re.findall(r"\b[a-z_]{3,}\b(?=,|\))", codes[1])), key=len)
        if names:
            code = "\n\n".join(codes)
            edited = [codes[0], re.sub(rf"\b{names[-1]}\b", "values", codes[1]), *codes[2:]]
            ask = f"Rename {names[-1]} to values:\n\n{code}\n\nHere is the new file:\n\n"
            yield ask, "\n\n".join(edited)


def _quotes() -> Iterator[tuple[str, str]]:
    """An article, then every second of its sentences: what an extractive summary says."""
    text = (DATA / "text/wikitext-2/valid.txt").read_text(encoding="utf-8")
    for paragraph in text.split("\n"):
        sentences = re.findall(r"[^.]+ \.", paragraph)
        if len(sentences) >= 8:
            yield f"{paragraph}\nSummary:", "".join(sentences[::2])


def _chats() -> Iterator[tuple[str, str]]:
    """A talk of four questions; the last is answered."""
    lines = (DATA / "reasoning/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line) for line in lines[:4000]]
    for at in range(0, len(turns), 4):
        asked = [f"User: {t['question']}\nAssistant: {t['answer']}\n" for t in turns[at : at + 4]]
        question, answer = asked[-1].split("Assistant: ")
        yield "".join(asked[:-1]) + question + "Assistant:", " " + answer


def _code_chats() -> Iterator[tuple[str, str]]:
    """A task with its tests, then the program, two turns before it."""
    programs = _programs()
    for at in range(0, len(programs), 3):
        asked = [
            f"User: {p['text']} Your code should pass:\n{chr(10).join(p['test_list'])}\n"
            f"Assistant:\n```python\n{p['code']}\n```\n"
            for p in programs[at : at + 3]
        ]
        question, answer = asked[-1].split("Assistant:")
        yield "".join(asked[:-1]) + question + "Assistant:", answer


# ---- runs --------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """What one way of generating took for some texts, and what it counted."""

    ms: float
    generated: int
    steps: int
    drafted: int
    accepted: int


def compare(
    model: seriatim.Model, asks: list[dict[str, Any]], ways: dict[str, dict[str, Any]], rounds: int
) -> dict[str, Ran]:
    """Each way's counts, and the sum of its median times: for each text all ways take turns.

    The reading of prompts does not count.
    """
    ran = dict.fromkeys(ways, Ran(0.0, 0, 0, 0, 0))
    for ask in asks:
        usages = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, how in ways.items():
                usages[name].append(model.generate(**ask, **how).usage)
        for name, found in usages.items():
            time = median(usage.decode_ms for usage in found[1:])  # the first maps the weights
            old, new = ran[name], found[-1]
            ran[name] = Ran(
                old.ms + time,
                old.generated + new.generated,
                old.steps + new.steps,
                old.drafted + new.drafted,
                old.accepted + new.accepted,
            )
    return ran


def forced(task: str, count: int) -> list[dict[str, Any]]:
    return [
        dict(prompt=t.prompt, forced_ids=t.answer, max_tokens=len(t.answer), temperature=0)
        for t in texts(task, count)
    ]


def own(count: int) -> list[dict[str, Any]]:
    """What a trained model says of itself, at the temperature of its own distribution."""
    starts = ["Once upon a time", "Lily and Tom went to the park.", "The big dog", "One day, a"]
    greedy, sampled = dict(temperature=0), dict(temperature=0.8, seed=1)
    return [
        dict(prompt=start, max_tokens=COUNT, **how)
        for start in starts[:count]
        for how in (greedy, sampled)
    ]


def report(shape: str, task: str, results: dict[str, Ran]) -> list[dict[str, Any]]:
    plain, rows = results["plain"], []
    for name, ran in results.items():
        if name != "plain":
            ratio, goal = plain.ms / ran.ms, GOALS.get(task)
            rows.append(
                dict(shape=shape, task=task, speculate=name, ratio=ratio, goal=goal)
                | dict(ids_per_step=ran.generated / ran.steps, **ran._asdict())
            )
            print(
                f"{shape:6} {task:10} {name:8} {ratio:5.2f} x plain  "
                f"{rows[-1]['ids_per_step']:5.2f} ids/step  {ran.drafted} drafted, "
                f"{ran.accepted} accepted in {ran.steps} steps" + f"  (goal {goal})" * bool(goal),
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, help="where the shapes are, or are made")
    parser.add_argument("--shape", nargs="*", default=["135M", "1B"], choices=list(SHAPES))
    parser.add_argument("--task", nargs="*", default=[*GOALS, "tales"])
    parser.add_argument("--speculate", nargs="*", default=["ngram", "suffix"])
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ways: dict[str, dict[str, Any]] = {"plain": {}}
    ways |= {name: dict(speculate=name) for name in given.speculate}
    for shape in given.shape if given.cache else ():
        path = Files(given.cache, SHAPES[shape], {}).path("int4")
        model = seriatim.load(path, context=2048)
        for task in given.task:
            if task != "tales":
                asks = forced(task, given.texts)
                rows += report(shape, task, compare(model, asks, ways, given.rounds))
    if "tales" in given.task:
        model, small = seriatim.load("tales"), seriatim.load("tales", precision="int4")
        ways["draft int4"] = dict(draft=small)
        rows += report("tales", "own", compare(model, own(given.texts), ways, given.rounds))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What calls of `Model` promise beside the engine's laws: text that matches, prefixes in files."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seriatim.engine.options import SPECULATORS
from seriatim.errors import RequestError
from seriatim.kernels.ops import BLOCK
from seriatim.verify.lab import SEED, Lab, need
from seriatim.verify.report import Broken, Check, LeftOut, Seen

PATTERN = r"(cat|dog)s? (sat|ran) [a-d]{2,4}( and [a-d]{2,4}){0,2}\."
CHOICES = ["the cat sat", "the cats", "a dog", "the dog ran and ran and ran"]
LONGEST = 48  # bytes of both, and so ids


def constraints(lab: Lab) -> Seen:
    """Answers under a regex and choices: each whole by `re` and `in`, with guesses and without."""
    need(lab.model.codec is not None, "the model has no codec: ids in, ids out")
    need(lab.model.context > LONGEST + 12, "the context is too short")
    ways = [
        ({"regex": PATTERN}, re.compile(PATTERN).fullmatch),
        ({"choices": CHOICES}, CHOICES.count),
    ]
    answers = 0
    for number, (constraint, fits) in enumerate(ways):
        for temperature in (0, 2.0) if lab.small else (2.0,):
            how = {**constraint, "temperature": temperature, "max_tokens": LONGEST, "seed": SEED}
            prompt = list(lab.ids(12, stem=330 + number))
            plain = _answered(lab, prompt, how)
            if plain.finish_reason == "length" or not fits(plain.text):
                raise Broken("an answer", expected=constraint, seen=plain.text, ids=plain.ids)
            for name in SPECULATORS if lab.exact else ():
                seen = _answered(lab, prompt, {**how, "speculate": name})
                if (seen.ids, seen.text, seen.stop) != (plain.ids, plain.text, plain.stop):
                    raise Broken(
                        f"an answer with speculate={name!r}", **constraint,
                        expected=[plain.ids, plain.text], seen=[seen.ids, seen.text],
                    )  # fmt: skip
            answers += 1
    return Seen(answers, "an answer that does not match, or another with guesses")


def _answered(lab: Lab, prompt: list[int], how: dict[str, Any]) -> Any:
    try:
        return lab.private().generate(prompt, **how)
    except RequestError as error:
        raise LeftOut(f"no constraint can be tried: {error}") from error


def prefix_files(lab: Lab) -> Seen:
    """A prompt saved, its blocks filled with NaN, and loaded: the answer after it, and cold."""
    need(lab.most > BLOCK + 16, f"no context for more than one block of {BLOCK} positions")
    case = lab.case("plain", BLOCK + 9, most=6, stem=340)
    alone, count = lab.alone(case), len(case.ids) - 3
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prefix.safetensors"
        lab.private().save_prefix(list(case.ids[:count]), path)
        own = lab.private(poison=lab.exact)
        own.load_prefix(path)
    [seen] = lab.run(own, [lab.asked(case)])
    if seen.usage.cached != count:
        raise Broken("usage.cached", expected=f"{count}, which were loaded", seen=seen.usage.cached)
    equal = lab.compare(case, alone, seen, f"{count} of its ids loaded from a file")
    return Seen(equal, f"{lab.finest} after {count} positions from a file")


HELP = "report this with the table"
CHECKS = [
    Check("constraints", "answers and what they must match, with guesses and without", HELP,
          constraints),
    Check("prefix files", "what follows a saved and loaded prompt, and the same computed",
          "compute prompts instead of loading them, and report this with the table", prefix_files),
]  # fmt: skip

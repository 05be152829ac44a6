"""What calls of `Model` promise beside the engine's laws: text that matches, prefixes in files."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from seriatim.engine.options import SPECULATORS
from seriatim.errors import SeriatimError
from seriatim.kernels.ops import BLOCK
from seriatim.verify.lab import SEED, Lab, need
from seriatim.verify.report import Broken, Check, LeftOut, Seen

PATTERN = r"(cat|dog)s? (sat|ran) [a-d]{2,4}( and [a-d]{2,4}){0,2}\."
CHOICES = ["the cat sat", "the cats", "a dog", "the dog ran and ran and ran"]
TEXT = (
    "cats sat ab and cd. the cats ran and ran. a dog ran ab and cd. the cat sat."  # to guess from
)
LONGEST = 48  # bytes of both, and so ids


def constraints(lab: Lab) -> Seen:
    """Answers under a regex and choices: each whole by `re` and `in`, with guesses and without."""
    need(hasattr(lab.model.codec, "pieces"), "constraints need a codec of text")
    prompt = _prompt(lab)
    need(lab.model.context > LONGEST + len(prompt), "the context is too short")
    ways = [
        ({"regex": PATTERN}, re.compile(PATTERN).fullmatch),
        ({"choices": CHOICES}, CHOICES.count),
    ]
    answers = 0
    for constraint, fits in ways:
        for temperature in (0, 2.0) if lab.small else (2.0,):
            how = {**constraint, "temperature": temperature, "max_tokens": LONGEST, "seed": SEED}
            plain = lab.private().generate(prompt, **how)
            if plain.finish_reason == "length" or not fits(plain.text):
                raise Broken("an answer", expected=constraint, seen=plain.text, ids=plain.ids)
            for name in SPECULATORS if lab.exact else ():
                seen = lab.private().generate(prompt, speculate=name, **how)
                if (seen.ids, seen.text, seen.stop) != (plain.ids, plain.text, plain.stop):
                    raise Broken(
                        f"an answer with speculate={name!r}", **constraint,
                        expected=[plain.ids, plain.text], seen=[seen.ids, seen.text],
                    )  # fmt: skip
            answers += 1
    return Seen(answers, "an answer that does not match, or another with guesses")


def _prompt(lab: Lab) -> list[int]:
    try:
        return lab.model.codec.encode(TEXT)
    except SeriatimError as error:
        raise LeftOut("the codec's objects are no text") from error


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

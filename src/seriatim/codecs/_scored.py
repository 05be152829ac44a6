"""BPE whose merges are ordered by scores, as SentencePiece and llama2.c do it, for `tokenizers`.

Both merge, again and again, the adjacent pair whose union is the piece of the highest score, the
leftmost of equals. `tokenizers` takes ranked pairs: every way to cut a piece into two others, best
score first. Equal while pieces that can overlap differ in score, which training sees to. Those that
do not (Llama's runs of spaces) are tried, and refused if they come out otherwise.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from seriatim.codecs._pieces import BYTE_TOKENS
from seriatim.errors import FileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

LONGEST = 1024  # letters in a piece; the cuts of a hostile one would take for ever
LONGEST_TIE, MOST_TIES = 96, 10_000  # letters, and texts, that are tried; Llama needs 31 and 416


def build(
    pieces: Sequence[str],
    scores: Mapping[str, float],
    *,
    space: str,
    prefix: bool,
    specials: Sequence[str],
    start: str | None,
) -> "Tokenizer":
    """The tokenizer of a scored vocabulary.

    Args:
        pieces: the text of each id.
        scores: those that merging may make, with their scores.
        space: how the vocabulary spells a space.
        prefix: whether a space goes in front of a text.
        specials: pieces that no text gives.
        start: the special piece that goes in front of a prompt, if any.

    Raises:
        FileError: a piece appears twice or is too long, bytes have no tokens to fall back on, or
            pieces of one score come out in another order.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocabulary = _vocabulary(pieces)
    pairs = merges(scores)
    model = models.BPE(vocabulary, pairs, byte_fallback=True)
    _refuse_ties(model, pairs, scores)
    tokenizer = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(space)] * prefix
    undo: list[decoders.Decoder] = [decoders.ByteFallback(), decoders.Fuse()]
    if space != " ":
        steps.append(normalizers.Replace(" ", space))
        undo.insert(0, decoders.Replace(space, " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([*undo, *[decoders.Strip(" ", 1, 0)] * prefix])
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in specials]
    )
    if start is not None:
        first = [(start, vocabulary[start])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[start, "$A"], pair=[start, "$A", start, "$B:1"], special_tokens=first
        )
    return tokenizer


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every cut of a piece into two pieces, best score first."""
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _refuse_ties(
    model: "BPE", pairs: Sequence[tuple[str, str]], scores: Mapping[str, float]
) -> None:
    """Where two pieces of one score overlap, the leftmost must come first, as it does by scores."""
    begins: dict[tuple[float, str], list[str]] = {}
    for left, right in pairs:
        begins.setdefault((scores[left + right], left), []).append(right)
    tried: set[str] = set()
    for left, right in pairs:
        for rest in begins.get((scores[left + right], right), ()):
            if (text := left + right + rest) in tried:
                continue
            tried.add(text)
            few = len(text) <= LONGEST_TIE and len(tried) <= MOST_TIES
            if not few or [t.value for t in model.tokenize(text)] != _by_score(text, scores):
                seen = f"the pieces {left + right!r:.80} and {right + rest!r:.80} have one score"
                raise FileError(seen, expected="different scores, as they overlap")


def _by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """The pieces of a text by the rule itself."""
    parts = list(text)
    while True:
        unions = [(at, a + b) for at, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not unions:
            return parts
        at, union = max(unions, key=lambda found: (scores[found[1]], -found[0]))
        parts[at : at + 2] = [union]


def _vocabulary(pieces: Sequence[str]) -> dict[str, int]:
    made: dict[str, int] = {}
    for id, piece in enumerate(pieces):
        if len(piece) > LONGEST:
            raise FileError(f"piece {id} has {len(piece)} letters", expected=f"at most {LONGEST}")
        if (first := made.setdefault(piece, id)) != id:
            raise FileError(f"pieces {first} and {id} are both {piece!r}")
    if missing := [token for token in BYTE_TOKENS if token not in made]:
        raise FileError(f"the vocabulary has no {missing[0]}", expected="a token for every byte")
    return made

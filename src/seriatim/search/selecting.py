"""Selection: sample, then choose. Best-of-n, self-consistency and minimum Bayes risk.

Candidate i is `generate(..., n=n, seed=seed).samples[i]`, with log-probabilities; the prompt is
computed once. What is chosen is a function of these samples alone.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from math import exp, fsum, isfinite, nan
from numbers import Real
from typing import Any

from seriatim import requesting
from seriatim.engine.options import whole
from seriatim.errors import RequestError, shown
from seriatim.requesting import MOST_SAMPLES, Asked, Prompt, codec_of, several
from seriatim.results import Result, with_samples
from seriatim.search.answers import canonical, final_answer
from seriatim.search.candidates import Candidate, Choice, Vote, by_score
from seriatim.search.overlap import overlap, profile

Extract = Callable[[Any], str | int | float | None]


def best_of(
    model: Asked,
    prompt: Prompt = None,
    *,
    n: int = 8,
    by: str | Callable[[Result], float] = "likelihood",
    stop: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """Sample `n` times and choose the sample of the highest score.

    Args:
        prompt: as for `generate`; a list of prompts gives a list of choices.
        n: how many samples.
        by: "likelihood" (the sum of log-probabilities under the model, the end id's too), "mean
            likelihood" (that over their number) or a function of a `Result`.
        stop, options: as for `generate`.

    Returns:
        a `Choice`; of equal scores the lowest sample wins.

    Raises:
        RequestError: as `generate`, or a candidate that `by` fails on or gives no finite number.

    Example:
        >>> import seriatim
        >>> model = seriatim.load("tales", threads=1)
        >>> choice = model.best_of("Once", n=3, by=lambda r: len(r.ids), max_tokens=8, seed=1)
        >>> choice.score == max(c.score for c in choice.candidates)
        True
    """
    measure = by if callable(by) else _measure("by", by)

    def choose(samples: list[Result]) -> Choice:
        scores = [_judged("by", measure, i, result) for i, result in enumerate(samples)]
        return _choice(samples, scores)

    return _each(model, prompt, whole("n", n, 1, MOST_SAMPLES), stop, options, choose)


def vote(
    model: Asked,
    prompt: Prompt = None,
    *,
    n: int = 16,
    extract: str | re.Pattern[str] | Extract | None = None,
    weights: str | None = None,
    stop: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """Self-consistency: sample `n` chains of thought and take the answer that most of them reach.

    Wang et al., arXiv:2203.11171. Answers that are numbers are compared as numbers: 1,000.0 is
    1000.

    Args:
        prompt: as for `generate`; a list of prompts gives a list of votes.
        n: how many samples.
        extract: a regular expression (its last match in the text counts: its group, or all of it);
            a function of the codec's object (without a codec: of the ids) that gives text, a
            number or None; the default reads what follows the last `####`, else the last number.
            An expression is run by Python's `re`: one that backtracks without end does so here.
        weights: None (one voice each), "likelihood" or "mean likelihood" (the voice of a candidate
            is its probability, or the geometric mean of its ids'; relative to the largest).
        stop, options: as for `generate`.

    Returns:
        a `Vote`; of equal answers the first seen (by the lowest sample) wins.

    Raises:
        RequestError: as `generate`; an expression that is none or has several groups; a candidate
            that `extract` fails on.

    Example:
        >>> import seriatim
        >>> model = seriatim.load("tales", threads=1)
        >>> said = model.vote("She was ", n=4, extract=r"(\\w+)", max_tokens=8, seed=1)
        >>> said.answer in said.counts, sum(said.counts.values()) + said.unanswered
        (True, 4)
    """
    read = _reader(extract)
    voices = None if weights is None else _measure("weights", weights)
    if not callable(extract):
        codec_of(model, "an answer that is read in text")

    def count(samples: list[Result]) -> Vote:
        answers = [_answer(read, i, result) for i, result in enumerate(samples)]
        return _counted(samples, answers, _voices(samples, voices))

    return _each(model, prompt, whole("n", n, 1, MOST_SAMPLES), stop, options, count)


def mbr(
    model: Asked,
    prompt: Prompt = None,
    *,
    n: int = 16,
    similarity: Callable[[Any, Any], float] | None = None,
    stop: str | Sequence[str] = (),
    **options: Any,
) -> Any:
    """Minimum Bayes risk: sample `n` times and choose the sample that is most like the others.

    The score of a candidate is the mean of its similarity to every other sample, itself left out
    (Eikema and Aziz, arXiv:2108.04718, with the samples as hypotheses).

    Args:
        prompt: as for `generate`; a list of prompts gives a list of choices.
        n: how many samples, at least 2; n * (n - 1) pairs are compared.
        similarity: a function of two of the codec's objects (without a codec: of the ids),
            candidate and reference; the default is chrF with beta 1 of their text (of the ids
            where none has text).
        stop, options: as for `generate`.

    Returns:
        a `Choice`; of equal scores the lowest sample wins.

    Raises:
        RequestError: as `generate`, or a pair that `similarity` fails on or gives no finite number.

    Example:
        >>> import seriatim
        >>> model = seriatim.load("tales", threads=1)
        >>> choice = model.mbr("Once upon a time", n=4, max_tokens=8, seed=1)
        >>> len(choice.candidates), 0 <= choice.score <= 1
        (4, True)
    """
    if similarity is not None and not callable(similarity):
        raise RequestError(f"similarity is {shown(similarity)}", expected="a function of two")

    def choose(samples: list[Result]) -> Choice:
        return _choice(samples, _utilities(samples, similarity))

    return _each(model, prompt, whole("n", n, 2, MOST_SAMPLES), stop, options, choose)


# ---- samples -----------------------------------------------------------------------------------


def _each(
    model: Asked, prompt: Prompt, n: int, stop: Any, options: dict[str, Any], choose: Callable
) -> Any:
    """What is chosen from the `n` samples of each prompt; all of them run together."""
    options = options | {"logprobs": options.get("logprobs") or True}
    prompts = requesting.numbered(model, prompt if several(prompt) else [prompt])
    found = [choose(r.samples) for r in requesting.run(model, prompts, n, stop, options)]
    return found if several(prompt) else found[0]


def _choice(samples: list[Result], scores: list[float]) -> Choice:
    ranked = by_score(map(Candidate, samples, scores, range(len(samples))))
    return Choice(with_samples([c.result for c in ranked]), ranked[0].score, ranked)


def _object(result: Result) -> Any:
    """What users' functions are given."""
    return result.ids if result.output is None else result.output


# ---- scores ------------------------------------------------------------------------------------


def _likelihood(result: Result) -> float:
    """log p of all that was sampled, the end id included."""
    return fsum([*(result.logprobs or ()), *_ending(result)])


def _mean_likelihood(result: Result) -> float:
    return _likelihood(result) / (len(result.ids) + len(_ending(result)))


def _ending(result: Result) -> list[float]:
    return [] if result.stop_logprob is None else [result.stop_logprob]


MEASURES = {"likelihood": _likelihood, "mean likelihood": _mean_likelihood}


def _measure(name: str, value: Any) -> Callable[[Result], float]:
    if not isinstance(value, str) or value not in MEASURES:
        raise RequestError(f"{name} is {shown(value)}", expected=" or ".join(map(repr, MEASURES)))
    return MEASURES[value]


def _judged(name: str, how: Callable[..., Any], which: int | str, *things: Any) -> float:
    """A user's number about candidates."""
    value = _called(name, how, which, *things)
    try:
        number = float(value) if isinstance(value, Real) else nan
    except OverflowError:
        number = nan
    if not isfinite(number):
        raise RequestError(
            f"{name} gives {shown(value)} for candidate {which}", expected="a finite number"
        )
    return number


def _called(name: str, how: Callable[..., Any], which: int | str, *things: Any) -> Any:
    try:
        return how(*things)
    except Exception as error:
        raise RequestError(
            f"{name} fails on candidate {which}: {type(error).__name__}: {error}"
        ) from error


# ---- votes -------------------------------------------------------------------------------------


def _reader(extract: Any) -> Callable[[Result], Any]:
    """From a result to its answer, or None."""
    if extract is None:
        return lambda result: final_answer(result.text)
    if callable(extract):
        return lambda result: extract(_object(result))
    pattern = _pattern(extract)
    return lambda result: _last(pattern, result.text)


def _pattern(extract: Any) -> re.Pattern[str]:
    text = extract.pattern if isinstance(extract, re.Pattern) else extract
    if not isinstance(text, str):
        expected = "None, a regular expression or a function"
        raise RequestError(f"extract is {shown(extract)}", expected=expected)
    try:
        pattern = re.compile(extract)
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"extract is {shown(extract)}: {error}") from error
    if pattern.groups > 1:
        raise RequestError(
            f"extract is {shown(extract)}, which has {pattern.groups} groups",
            expected="at most one",
            fix="write the others as (?:...)",
        )
    return pattern


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """The group of its last match in the text, or all of it."""
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0][pattern.groups] if found else None


def _answer(read: Callable[[Result], Any], sample: int, result: Result) -> str | None:
    """In the form that is counted."""
    return _called("extract", lambda: _as_text(read(result)), sample)


def _as_text(answer: Any) -> str | None:
    if not isinstance(answer, str | Real | None) or answer != answer:
        raise TypeError(f"it gives {shown(answer)}, which is no text, number or None")
    return None if answer is None else canonical(str(answer)) or None


def _voices(samples: list[Result], measure: Callable[[Result], float] | None) -> list[float]:
    """The weight of each candidate: 1, or its probability relative to the largest."""
    if measure is None:
        return [1.0] * len(samples)
    logs = [measure(result) for result in samples]
    return [exp(x - max(logs)) for x in logs]


def _counted(samples: list[Result], answers: list[str | None], voices: list[float]) -> Vote:
    said = [(answer, voice) for answer, voice in zip(answers, voices, strict=True) if answer]
    counts = dict(Counter(answer for answer, _ in said))  # in the order of the samples
    weights = {answer: fsum(v for a, v in said if a == answer) for answer in counts}
    best = max(weights, key=weights.__getitem__, default=None)  # the first of equals
    return Vote(
        answer=best,
        counts=counts,
        weights=weights,
        share=weights[best] / fsum(voices) if best else 0.0,
        unanswered=len(samples) - len(said),
        candidates=list(map(Candidate, samples, voices, range(len(samples)), answers)),
    )


# ---- risk --------------------------------------------------------------------------------------


def _utilities(samples: list[Result], similarity: Any) -> list[float]:
    """The mean similarity of each sample to every other one."""
    alike, places = _comparison(samples, similarity), range(len(samples))
    return [fsum(alike(i, j) for j in places if j != i) / (len(samples) - 1) for i in places]


def _comparison(samples: list[Result], similarity: Any) -> Callable[[int, int], float]:
    """How alike two samples are, by their places."""
    if similarity is not None:
        seen = [_object(result) for result in samples]
        return lambda i, j: _judged("similarity", similarity, f"{i} with {j}", seen[i], seen[j])
    written = any(result.text for result in samples)
    profiles = [profile(result.text if written else result.ids) for result in samples]
    return lambda i, j: overlap(profiles[i], profiles[j])

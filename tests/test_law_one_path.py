"""Law 6: the whole answer folds the stream, a list is its items, a score generates nothing.

And the native numbers are those of the torch reference, over windows of long sequences too.
"""

import itertools
import json
import subprocess
import sys
from functools import cache
from math import log

import numpy as np
import pytest
import small

from seriatim.scoring import windows

kinds = pytest.mark.parametrize("kind", [*small.KINDS, "bytes", "text"])
TEXT = "Once upon a time, in a place far away, there lived a naïve cat — and it ate. " * 9


@cache
def on_torch(kind: str):
    return small.load(kind, threads=None, backend="torch")


def some_ids(model, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, model.vocab_size - 1, count).tolist()


# ---- generate ----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_the_fold_of_the_stream(kind, seed):
    model = small.shared(kind)
    how = dict(max_tokens=40, seed=seed, logprobs=2, prompt_logprobs=True, top_p=0.95)
    how |= dict(stop=["a", "th"]) if model.codec else {}
    prompt = some_ids(model, 70, seed)
    whole, stream = model.generate(prompt, **how), model.stream(prompt, **how)
    pieces = list(stream)
    assert [i for piece in pieces for i in piece.ids] == whole.ids
    assert "".join(piece.text for piece in pieces) == whole.text
    last = stream.result()
    for name in (
        "ids",
        "output",
        "text",
        "finish_reason",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
        "stop_logprob",
        "prompt_logprobs",
        "prompt_ids",
        "reencodes",
    ):
        assert getattr(last, name) == getattr(whole, name), name


@kinds
def test_a_list_is_its_prompts_one_by_one(kind):
    model = small.shared(kind)
    prompts = [some_ids(model, n, n) for n in (1, 5, 64, 65, 130, 3)]
    how = dict(max_tokens=15, seed=6, logprobs=1, temperature=1.5)
    model.pool.forget()
    for prompt, r in zip(prompts, model.generate(prompts, **how), strict=True):
        one = model.generate(prompt, **how)
        assert (r.ids, r.logprobs, r.stop, r.stop_logprob, r.top_logprobs) == (
            one.ids, one.logprobs, one.stop, one.stop_logprob, one.top_logprobs,
        )  # fmt: skip
        assert r.prompt_ids == prompt


def test_a_program_with_its_own_loop_gets_the_same(tmp_path):
    from seriatim import Engine

    model = small.load("bytes")
    expected = model.generate("Tell", max_tokens=20, seed=1)
    engine = Engine(model)
    request = engine.add(model.prompt_ids("Tell"), max_tokens=20, seed=1)
    while not request.done:
        assert engine.step() == [request]
    assert request.ids[request.prompt :] == expected.ids
    assert request.stop == expected.stop


def test_the_command_line_gives_the_librarys_ids():
    """Another process, its own engine: the same ids, counts and log-probabilities."""
    how = dict(max_tokens=12, temperature=0.8, top_p=0.9, seed=3)
    flags = [part for k, v in how.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "seriatim", "generate", "The cat"]
    model = ["--model", str(small.folder("text")), "--threads", "1"]
    ran = subprocess.run(
        [*command, *model, *flags, "--n", "2", "--logprobs", "2", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    samples = small.shared("text").generate("The cat", n=2, logprobs=2, **how).samples
    for line, sample in zip(lines, samples, strict=True):
        assert (line["ids"], line["prompt_ids"]) == (sample.ids, sample.prompt_ids)
        assert (line["logprobs"], line["text"]) == (sample.logprobs, sample.text)
        assert (line["finish_reason"], line["seed"]) == (sample.finish_reason, 3)
        assert line["usage"]["generated"] == sample.usage.generated


# ---- score -------------------------------------------------------------------------------------


@kinds
def test_scores_are_prompt_logprobs_and_near_the_reference(kind):
    model = small.shared(kind)
    ids = some_ids(model, 200)
    score = model.score(ids)
    assert score.unscored == 1
    assert score.ids == ids[1:]
    read = model.generate(ids, max_tokens=1, prompt_logprobs=True).prompt_logprobs
    assert score.logprobs == read[1:]
    reference = on_torch(kind).score(ids)
    close = 1e-5 if "bf16" not in kind else 0.05  # a sum that rounds the other way is 2^-8 off
    assert abs(score.nats - reference.nats) / len(score.ids) < close
    assert np.abs(np.subtract(score.logprobs, reference.logprobs)).max() < 3 * close
    assert (score.units, score.windows, score.unit) == (
        reference.units, reference.windows, reference.unit,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [k for k in (*small.KINDS, "bytes") if "bf16" not in k])
def test_greedy_ids_are_the_references(kind):
    """In f32: at bf16 a sum that rounds the other way may decide between two ids."""
    prompt = some_ids(small.shared(kind), 30)
    how = dict(max_tokens=30, temperature=0, ignore_end=True)
    assert (
        small.shared(kind).generate(prompt, **how).ids == on_torch(kind).generate(prompt, **how).ids
    )


def windowed(model, ids: list[int], lead: int) -> np.ndarray:
    """contracts.md, 26, by the torch logits: windows of `context` ids that begin with the start id.

    The first scores all its ids, each later one the half a context that follows.
    """
    context, start = model.context, ids[:lead]
    first = max(lead, 1)
    ends = [min(context, len(ids)), *range(context + context // 2, len(ids), context // 2)]
    ends = [*ends, len(ids)] if len(ids) > context else ends
    scored = []
    for begin, end in itertools.pairwise([first, *ends]):
        window = [*start, *ids[lead:end][-(context - lead) :]]
        logits = model.logits(window)[-(end - begin) - 1 : -1].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        scored.append(logits[np.arange(end - begin), ids[begin:end]] - norm)
    return np.concatenate(scored)


@pytest.mark.parametrize("length", [256, 257, 300, 384, 385, 1000])
@pytest.mark.parametrize("lead", [0, 1])
def test_a_long_sequence_is_scored_as_the_reference_scores_the_same_windows(length, lead):
    model = small.shared("bytes")
    ids = [*model.start[:lead], *some_ids(model, length - lead)]
    score = model.score(ids)
    assert score.unscored == 1 - lead
    assert score.ids == ids[1:]
    assert score.windows == 1 + -(-(length - 256) // 128)
    expected = windowed(on_torch("bytes"), ids, lead)
    assert len(expected) == len(score.logprobs)
    assert np.abs(score.logprobs - expected).max() < 1e-4
    assert abs(score.nats + expected.sum()) / len(score.ids) < 1e-5


def test_a_model_without_a_codec_begins_its_windows_with_its_start_id_too():
    model = small.shared("llama3")
    ids = [*model.start, *some_ids(model, 500)]
    score = model.score(ids)
    assert score.unscored == 0
    assert np.abs(score.logprobs - windowed(on_torch("llama3"), ids, 1)).max() < 1e-4


@pytest.mark.parametrize("before", [1, 100, 255, 256, 300, 500])
def test_what_is_given_is_conditioned_on_and_not_scored(before):
    model = small.shared("bytes")
    ids = some_ids(model, before + 60)
    score = model.score(ids[before:], given=ids[:before])
    assert (score.ids, score.unscored) == (ids[before:], 0)
    assert score.units == 60
    if before + 60 <= 256:
        assert score.logprobs == model.score(ids).logprobs[before - 1 :]
    reference = on_torch("bytes").score(ids[before:], given=ids[:before])
    assert np.abs(np.subtract(score.logprobs, reference.logprobs)).max() < 1e-4


@pytest.mark.parametrize("kind", ["bytes", "text"])
def test_bits_per_unit_are_those_of_the_bytes(kind):
    model = small.shared(kind)
    score = model.score(TEXT)
    assert model.decode(score.ids) in (TEXT, TEXT.encode())
    assert (score.units, score.unit, score.unscored) == (len(TEXT.encode()), "byte", 0)
    assert score.bits_per_unit == score.nats / log(2) / score.units
    assert score.nats == pytest.approx(-sum(score.logprobs))
    assert 0 < score.error < score.bits_per_unit


@pytest.mark.parametrize("context", [2, 3, 5, 8, 64])
@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("first", [1, 4, 9, 100])
def test_windows_score_each_id_once_and_hold_a_context(context, lead, first):
    for count in range(first + 1, first + 40):
        seen: list[int] = []
        for w in windows(count, context=context, lead=lead, first=max(first, lead)):
            ids = [*range(w.lead), *range(w.start, w.end)]
            assert w.first >= 1, "an id needs one before it"
            assert len(ids) <= context
            assert ids[:lead] == list(range(lead))
            seen += ids[w.first :]
        assert seen == list(range(max(first, lead), count))


@pytest.mark.parametrize("raw, given", [("", None), (b"", "a"), ([256], None)])
def test_nothing_to_score_is_refused(raw, given):
    from seriatim import RequestError

    with pytest.raises(RequestError, match=r"nothing to score|start id"):
        small.shared("bytes").score(raw, given=given)


@kinds
def test_logits_are_the_references(kind):
    model, reference = small.shared(kind), on_torch(kind)
    ids = some_ids(model, 150)
    seen, expected = model.logits(ids), reference.logits(ids)
    assert (seen.shape, seen.dtype) == ((150, model.vocab_size), np.float32)
    close = 2e-5 if "bf16" not in kind else 0.02
    assert np.abs(seen - expected).max() <= close * np.abs(expected).max()

"""Beam search equals `transformers`' and a plain definition; selections equal choosing by hand."""

import json
import math
import re
from collections import Counter
from dataclasses import asdict
from functools import cache, partial
from importlib import import_module
from itertools import product
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import small
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim import cli
from seriatim.engine.beams import ranked
from seriatim.engine.engine import Engine
from seriatim.engine.sampler_reference import dry
from seriatim.engine.sampling import Sampling
from seriatim.errors import NumericError, RequestError, SeriatimError
from seriatim.search.answers import canonical, final_answer
from seriatim.search.overlap import overlap, profile

END = 2  # of the checkpoints


@cache
def peer(kind: str):
    return transformers.AutoModelForCausalLM.from_pretrained(
        small.folder(kind), dtype=torch.float32
    )


def expected(kind: str, ids: list[int], most: int, **how) -> tuple[list[list[int]], list[float]]:
    """What `transformers` finds: new ids without the end id, and scores."""
    given = torch.tensor([ids])
    with torch.no_grad():
        out = peer(kind).generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **how,
        )
    new = [
        ids_[: ids_.index(END)] if END in ids_ else ids_
        for ids_ in out.sequences[:, len(ids) :].tolist()
    ]
    return new, out.sequences_scores.tolist()


# ---- beam: the same as transformers ------------------------------------------------------------

HOW = [
    dict(beams=beams, length_penalty=penalty, early_finish=early)
    for beams, penalty, early in product((2, 5), (0.0, 1.0, 2.0, -0.5), (True, False, "never"))
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_beams_are_those_of_transformers(how):
    """With an end that is likely here and there, so that some end early and others at the limit."""
    ids, lengths = checkpoints.prompt(12), set()
    for bias, most in ((0.0, 7), (2.5, 20), (5.0, 20)):
        seen = small.shared("llama3").beam(
            ids, n=how["beams"], max_tokens=most, logit_bias={END: bias}, **how
        )
        new, scores = expected(
            "llama3", ids, most,
            num_beams=how["beams"],
            num_return_sequences=how["beams"],
            length_penalty=how["length_penalty"],
            early_stopping=how["early_finish"],
            sequence_bias={(END,): bias} if bias else None,
        )  # fmt: skip
        assert [c.ids for c in seen.candidates] == new
        assert [c.score for c in seen.candidates] == pytest.approx(scores, abs=1e-4)
        lengths |= {(len(c.ids), c.result.finish_reason) for c in seen.candidates}
    assert {reason for _, reason in lengths} == {"stop", "length"}


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (dict(repetition_penalty=1.4), dict(repetition_penalty=1.4)),
        (dict(min_tokens=5), dict(min_new_tokens=5)),
        (dict(banned_ids=[5, 17, 40]), dict(suppress_tokens=[5, 17, 40])),
    ],
    ids=str,
)
def test_options_act_on_log_probabilities_as_in_transformers(ours, theirs):
    ids = checkpoints.prompt(12)
    seen = small.shared("mistral").beam(
        ids, beams=4, n=4, max_tokens=9, logit_bias={END: 3}, **ours
    )
    new, scores = expected(
        "mistral", ids, 9, num_beams=4, num_return_sequences=4,
        sequence_bias={(END,): 3.0}, **theirs,
    )  # fmt: skip
    assert [c.ids for c in seen.candidates] == new
    assert [c.score for c in seen.candidates] == pytest.approx(scores, abs=1e-4)


# ---- beam: the same as its definition ----------------------------------------------------------


def plain_beams(model, ids, *, beams, groups, diversity, penalty, most, bias):
    """Diverse beam search, from the paper: no cache, no batch, every id of every beam ranked."""
    width = beams // groups
    live = [[(0.0, [])] for _ in range(groups)]
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(groups)]
    while any(live):
        said = Counter()
        for g in range(groups):
            if not live[g]:
                continue
            found = []
            for b, (total, new) in enumerate(live[g]):
                row = model.logits([*ids, *new])[-1].astype(np.float64)
                own = row - row.max() - math.log(np.exp(row - row.max()).sum())
                own[END] += bias
                for id, p in enumerate(own):
                    found.append((-(total + p - diversity * said[id]), b, id))
            found.sort()
            going = []
            for rank, (loss, b, id) in enumerate(found[: 3 * width]):
                new = [*live[g][b][1], id]
                if id == END or len(new) == most:
                    if rank < width:
                        done[g].append((-loss / len(new) ** penalty, new))
                elif len(going) < width:
                    going.append((-loss, new))
            done[g] = sorted(done[g], key=lambda d: -d[0])[:width]
            reach = going[0][0] / len(going[0][1]) ** penalty if going else 0
            full = len(done[g]) == width
            live[g] = [] if full and reach <= done[g][-1][0] else going
            said.update(new[-1] for _, new in going)
    every = sorted((d for some in done for d in some), key=lambda d: -d[0])
    return [[i for i in new if i != END] for _, new in every], [score for score, _ in every]


@pytest.mark.parametrize("bias", [0.0, 4.0])
@pytest.mark.parametrize("groups, diversity", [(1, 0.0), (2, 0.7), (3, 2.0), (6, 1.0)])
def test_groups_are_those_of_the_definition(groups, diversity, bias):
    model, ids = small.shared("llama3"), checkpoints.prompt(9)
    how = dict(beams=6, groups=groups, diversity=diversity)
    seen = model.beam(ids, max_tokens=6, length_penalty=0.8, logit_bias={END: bias}, **how)
    new, scores = plain_beams(model, ids, penalty=0.8, most=6, bias=bias, **how)
    assert [c.ids for c in seen.candidates] == new
    assert [c.score for c in seen.candidates] == pytest.approx(scores, abs=1e-9)
    assert bias == 0 or END in {c.result.stop for c in seen.candidates}


def test_groups_differ_where_diversity_is_asked_for():
    model, ids = small.shared("llama3"), checkpoints.prompt(9)
    firsts = {
        tuple(sorted(c.ids[0] for c in model.beam(ids, beams=4, max_tokens=3, **how).candidates))
        for how in (dict(), dict(groups=4, diversity=1e4))
    }
    assert len(firsts) == 2
    assert len(set(max(firsts, key=lambda f: len(set(f))))) == 4  # no id was taken twice


def test_all_beams_of_a_small_space_are_the_exhaustive_best():
    """Three ids, three places, as many beams as prefixes: nothing can be missed."""
    model, ids, allowed = small.shared("llama3"), checkpoints.prompt(6), [11, 12, 13]
    seen = model.beam(
        ids, beams=27, n=27, max_tokens=3, allowed_ids=allowed, ignore_end=True, length_penalty=0
    )
    found = {}
    for new in product(allowed, repeat=3):
        score = model.score([*ids, *new])
        found[new] = sum(score.logprobs[-3:])
    best = sorted(found, key=lambda new: -found[new])
    assert [tuple(c.ids) for c in seen.candidates] == best
    assert [c.score for c in seen.candidates] == pytest.approx([found[n] for n in best], abs=1e-5)


def test_one_beam_is_greedy_and_log_probabilities_are_the_models_own():
    model, ids = small.shared("mistral"), checkpoints.prompt(70)
    how = dict(max_tokens=8, repetition_penalty=1.3, ignore_end=True)
    seen = model.beam(ids, beams=1, **how)
    score = model.score([*ids, *seen.ids])
    assert seen.result.logprobs == score.logprobs[-8:]
    plain = model.beam(ids, beams=1, max_tokens=8, ignore_end=True)
    greedy = model.generate(ids, temperature=0, max_tokens=8, ignore_end=True, logprobs=True)
    assert (plain.ids, plain.result.logprobs) == (greedy.ids, greedy.logprobs)
    assert plain.score == pytest.approx(sum(greedy.logprobs) / 8)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -math.inf]) | st.floats(-5, 5), max_size=900))
def test_ranked_is_a_stable_sort_however_much_is_read(values):
    array = np.array(values, np.float64)
    places = [i for i in np.argsort(-array, kind="stable").tolist() if array[i] > -math.inf]
    assert list(ranked(array)) == places


# ---- beam: how candidates end ------------------------------------------------------------------


@pytest.mark.parametrize("minimum", [0, 9])
def test_stop_strings_end_a_beam_as_they_end_a_sample(stories, minimum):
    how = dict(stop=[" time", "ittle g", "."], max_tokens=20, min_tokens=minimum)
    seen = stories.beam("Once upon a", beams=5, **how)
    assert {c.result.stop for c in seen.candidates} & {*how["stop"]}
    for c in seen.candidates:
        same = stories.generate(
            "Once upon a",
            forced_ids=c.ids,
            logprobs=True,
            seed=0,
            **how | {"max_tokens": len(c.ids)},
        )
        for name in ("ids", "text", "output", "logprobs", "reencodes"):
            assert getattr(c.result, name) == getattr(same, name), name
        if c.result.stop in how["stop"]:
            assert (same.stop, same.finish_reason) == (c.result.stop, "stop")


def test_a_full_context_ends_every_beam():
    model = small.load("llama3", context=40)
    seen = model.beam(checkpoints.prompt(34), beams=3, ignore_end=True)
    assert {(c.result.stop, len(c.ids)) for c in seen.candidates} == {("context", 6)}
    with pytest.raises(RequestError, match=r"40 ids and the context is 40.*at most 39"):
        model.beam(checkpoints.prompt(40))


def test_processors_see_log_probabilities_and_move_scores():
    def processor(ids, scores):
        assert np.exp(scores, dtype=np.float64).sum() == pytest.approx(1, abs=1e-5)
        return scores + np.where(np.arange(len(scores)) == 7, 8, 0).astype(np.float32)

    model, ids = small.shared("llama3"), checkpoints.prompt(12)
    seen = model.beam(ids, beams=4, max_tokens=6, processors=[processor])
    biased = model.beam(ids, beams=4, max_tokens=6, logit_bias={7: 8.0})
    plain = model.beam(ids, beams=4, max_tokens=6)
    assert [c.ids for c in seen.candidates] == [c.ids for c in biased.candidates]
    assert [c.score for c in seen.candidates] == pytest.approx([c.score for c in biased.candidates])
    assert exact(biased) != exact(plain)
    allowed = [*range(0, 101, 3)]
    some = model.beam(ids, beams=4, max_tokens=6, allowed_ids=allowed, banned_ids=[0, 3])
    assert {i for c in some.candidates for i in c.ids} <= {*allowed} - {0, 3}


class Words:
    """A guide: only these lists of ids, each whole at its end."""

    def __init__(self, *words: list[int], size: int = checkpoints.VOCAB) -> None:
        self.words, self.size = words, size

    def mask(self, ids, /) -> np.ndarray:
        bits = np.zeros(-(-self.size // 32) * 32, np.uint8)
        done = len(ids)
        bits[[w[done] for w in self.words if w[:done] == [*ids] and len(w) > done]] = 1
        return np.packbits(bits, bitorder="little").view("<u4")

    def complete(self, ids, /) -> bool:
        return [*ids] in self.words


def test_guides_leave_only_what_they_allow():
    model, ids = small.shared("gpt2"), checkpoints.prompt(20)
    words = [[5, 6, 7], [5, 6, 8], [9, 10, 11], [12, 13, 14]]
    seen = model.beam(ids, beams=6, n=6, guides=[Words(*words)], length_penalty=0)
    likelihood = {tuple(w): sum(model.score([*ids, *w]).logprobs[-3:]) for w in words}
    assert [tuple(c.ids) for c in seen.candidates] == sorted(
        likelihood, key=lambda w: -likelihood[w]
    )
    assert {c.result.stop for c in seen.candidates} == {"complete"}
    assert len(seen.samples) == 4  # there are no more
    with pytest.raises(RequestError, match="leave no beam an id"):
        model.beam(ids, guides=[Words([5, 6]), Words([7, 8])])


# ---- beam: independent of the machinery --------------------------------------------------------


def exact(choice):
    return [(c.ids, c.score.hex(), [p.hex() for p in c.result.logprobs]) for c in choice.candidates]


@cache
def alone(kind: str, length: int):
    return exact(small.load(kind).beam(checkpoints.prompt(length), **WIDE))


WIDE = dict(beams=4, groups=2, diversity=0.4, max_tokens=10, frequency_penalty=0.2)


@settings(max_examples=12)
@given(
    st.sampled_from(list(small.KINDS)[:4]),
    st.sampled_from([5, 64, 100]),
    st.integers(3, 200),
    st.integers(1, 70),
    st.integers(1, 8),
    st.integers(0, 6),
)
def test_beams_do_not_depend_on_company_budget_or_cache(kind, length, budget, chunk, most, others):
    """A crowded engine, cut into pieces, over a cache that knows some of it."""
    model = small.load(kind)
    model.engine = Engine(model, budget=budget, chunk=chunk, most=most)
    guests = [
        model.engine.add(checkpoints.prompt(30 + 9 * i, seed=i), max_tokens=4 * i + 1, seed=i)
        for i in range(others)
    ]
    model.generate(checkpoints.prompt(length), max_tokens=1)  # its blocks are known now
    assert exact(model.beam(checkpoints.prompt(length), **WIDE)) == alone(kind, length)
    model.engine.check()
    for i, guest in enumerate(guests):
        while not guest.done:
            model.engine.step()
        same = small.shared(kind).generate(guest.ids[: guest.prompt], max_tokens=4 * i + 1, seed=i)
        assert guest.answer == same.ids


def test_beams_do_not_depend_on_the_size_of_the_cache():
    """Blocks for two beams: the others wait, and what was cached is evicted again and again."""
    model, ids = small.load("llama3"), checkpoints.prompt(100)
    model.pool.limit = 4
    assert exact(model.beam(ids, **WIDE)) == alone("llama3", 100)
    model.engine.check()


def test_a_list_gives_a_list_each_as_alone():
    model = small.shared("llama3")
    prompts = [checkpoints.prompt(5), checkpoints.prompt(64)]
    seen = model.beam(prompts, **WIDE)
    assert [exact(c) for c in seen] == [alone("llama3", 5), alone("llama3", 64)]


def test_a_beam_starts_from_its_parents_blocks():
    model, ids = small.load("llama3"), checkpoints.prompt(130)
    assert model.beam(ids, beams=2, max_tokens=2).result.usage.cached == 0
    again = model.beam(ids, beams=2, max_tokens=2).result.usage
    assert (again.prompt, again.generated) == (130, 2)
    assert again.cached >= 128


# ---- beam: bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(beams=0), "beams is 0.*1 to 101"),
        (dict(beams=102), "beams is 102.*1 to 101"),
        (dict(beams=True), "beams is True"),
        (dict(beams=2.0), "beams is 2.0"),
        (dict(n=0), "n is 0.*1 to 4"),
        (dict(n=5), "n is 5.*1 to 4"),
        (dict(groups=3, diversity=1.0), "groups is 3 and beams is 4.*divide"),
        (dict(groups=0), "groups is 0"),
        (dict(groups=2), "groups is 2 and diversity is 0"),
        (dict(diversity=1.0), "groups is 1 and diversity is 1"),
        (dict(groups=2, diversity=math.nan), "diversity is nan"),
        (dict(length_penalty=math.inf), "length_penalty is inf"),
        (dict(length_penalty="long"), "length_penalty is 'long'"),
        (dict(length_penalty=10**400), "length_penalty is"),
        (dict(early_finish="ever"), "early_finish is 'ever'.*'never'"),
        (dict(early_finish=1), "early_finish is 1"),
        (dict(temperature=0.7), "cannot honour temperature"),
        (dict(top_k=5), "cannot honour top_k"),
        (dict(seed=1), "cannot honour seed"),
        (dict(logprobs=3), "cannot honour logprobs"),
        (dict(max_token=3), "unknown option 'max_token'; did you mean max_tokens"),
        (dict(max_tokens=0), "max_tokens is 0"),
        (dict(min_tokens=9, max_tokens=3), "min_tokens is 9"),
        (dict(allowed_ids=[101]), "allowed_ids"),
        (dict(stop="x"), "stop strings need a codec"),
    ],
)
def test_what_a_search_cannot_honour_is_refused_by_name(bad, message):
    with pytest.raises(RequestError, match=message):
        small.shared("llama3").beam([1, 2, 3], **bad)


def test_one_bad_prompt_refuses_the_list_before_any_work():
    model = small.load("llama3", context=16)
    with pytest.raises(RequestError, match=r"prompt 1 of 2.*101"):
        model.beam([[1, 2], [1, 101]], max_tokens=2)
    with pytest.raises(RequestError, match="16"):
        model.beam([[1, 2], [1] * 16], max_tokens=2)
    assert model.pool.total == 0


@pytest.mark.parametrize(
    "processor, error",
    [(lambda ids, x: 1 / 0, SeriatimError), (lambda ids, x: x * math.nan, NumericError)],
)
def test_a_processor_that_fails_ends_the_search_and_nothing_else(processor, error):
    model = small.load("llama3")
    guest = model.engine.add([5, 6, 7], max_tokens=6, seed=3)
    with pytest.raises(error):
        model.beam([1, 2, 3], max_tokens=5, processors=[processor])
    while not guest.done:
        model.engine.step()
    assert guest.answer == small.shared("llama3").generate([5, 6, 7], max_tokens=6, seed=3).ids
    model.engine.check()
    assert not model.engine.busy


def test_repetitions_are_penalised_in_a_search_too():
    how = dict(dry_multiplier=5.0, dry_base=1.5, dry_allowed_length=1)
    chain = Sampling(**how)

    def processor(ids, scores):
        for id, penalty in dry(ids, chain).items():
            scores[id] -= penalty
        return scores

    model, ids = small.shared("llama3"), [4, 5, 6, 4, 5, 6, 4, 5]
    penalised = model.beam(ids, max_tokens=6, **how)
    assert exact(penalised) != exact(model.beam(ids, max_tokens=6))
    same = model.beam(ids, max_tokens=6, processors=[processor])
    assert [c.ids for c in penalised.candidates] == [c.ids for c in same.candidates]
    assert model.beam(ids, max_tokens=6, **how, dry_breakers=[5]).ids != []


# ---- selections equal choosing by hand ---------------------------------------------------------

ASKED = dict(max_tokens=12, seed=11, temperature=0.8, top_k=40)


def samples(model, prompt, n, **options):
    return model.generate(prompt, n=n, logprobs=True, **ASKED | options).samples


def same(result):
    """All of a result but its times."""
    return {k: v for k, v in vars(result).items() if k not in ("usage", "samples")}


def likelihood(r):
    return math.fsum([*r.logprobs, *([] if r.stop_logprob is None else [r.stop_logprob])])


@pytest.mark.parametrize(
    "by, score",
    [
        ("likelihood", likelihood),
        ("mean likelihood", lambda r: likelihood(r) / r.usage.generated),
        (lambda r: r.text.count("e"), lambda r: r.text.count("e")),
    ],
    ids=["likelihood", "mean", "function"],
)
def test_best_of_is_the_best_of_the_samples(stories, by, score):
    drawn = samples(stories, "Once", 6)
    seen = stories.best_of("Once", n=6, by=by, **ASKED)
    order = sorted(range(6), key=lambda i: (-score(drawn[i]), i))
    assert [c.sample for c in seen.candidates] == order
    assert [c.score for c in seen.candidates] == [score(drawn[i]) for i in order]
    assert [same(c.result) for c in seen.candidates] == [same(drawn[i]) for i in order]
    assert same(seen.result) == same(seen.samples[0]) == same(drawn[order[0]])
    assert seen.score == seen.candidates[0].score


def test_a_seed_that_was_drawn_is_said_and_gives_the_same_again(stories):
    seen = stories.best_of("Once", n=4, max_tokens=8)
    again = stories.generate("Once", n=4, max_tokens=8, seed=seen.result.seed, logprobs=True)
    for c in seen.candidates:
        assert same(c.result) == same(again.samples[c.sample])


def test_the_likelihood_counts_the_end_id(stories):
    seen = stories.best_of("The end", n=3, logit_bias={1: 1e3}, seed=2, max_tokens=3)
    assert {c.result.stop for c in seen.candidates} == {1}
    assert [c.score for c in seen.candidates] == [c.result.stop_logprob for c in seen.candidates]


@pytest.mark.parametrize("weights", [None, "likelihood", "mean likelihood"])
def test_a_vote_is_the_count_of_what_was_read(stories, weights):
    drawn = samples(stories, "She was", 12)
    seen = stories.vote("She was", n=12, extract=r"\b([a-l]\w*)\W*$", weights=weights, **ASKED)
    read = [re.findall(r"\b([a-l]\w*)\W*$", r.text) for r in drawn]
    answers = [found[-1] if found else None for found in read]
    score = {
        None: lambda r: 0.0,
        "likelihood": likelihood,
        "mean likelihood": lambda r: likelihood(r) / r.usage.generated,
    }[weights]
    top = max(map(score, drawn))
    voices = [math.exp(score(r) - top) for r in drawn]
    totals = {}
    for answer, voice in zip(answers, voices, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0) + voice
    assert len(totals) > 1
    assert seen.answer == max(totals, key=lambda a: totals[a])
    assert seen.counts == Counter(a for a in answers if a is not None)
    assert seen.weights == pytest.approx(totals)
    assert seen.share == pytest.approx(totals[seen.answer] / sum(voices))
    assert seen.unanswered == answers.count(None)
    assert [c.answer for c in seen.candidates] == answers
    assert [same(c.result) for c in seen.candidates] == [same(r) for r in drawn]


def test_equal_votes_go_to_the_first_seen(stories):
    hot = ASKED | dict(temperature=3.0)
    texts = [r.text.strip() for r in samples(stories, "A", 4, **hot)]
    assert len(set(texts)) == 4
    assert stories.vote("A", n=4, extract=lambda text: text, **hot).answer == texts[0]
    late = stories.vote("A", n=4, extract=lambda t: None if t.strip() == texts[0] else t, **hot)
    assert (late.answer, late.unanswered, late.share) == (texts[1], 1, 0.25)


def test_no_answer_at_all_is_said(stories):
    seen = stories.vote("A", n=3, extract="(xyzzy)", **ASKED)
    assert (seen.answer, seen.counts, seen.share, seen.unanswered) == (None, {}, 0.0, 3)


def test_numbers_vote_as_numbers(stories):
    spelt = iter(["1,000", 1000.0, "$1000.", 999])
    seen = stories.vote("A", n=4, extract=lambda text: next(spelt), **ASKED)
    assert (seen.answer, seen.counts) == ("1000", {"1000": 3, "999": 1})


@pytest.mark.parametrize("own", [True, False])
def test_mbr_is_the_sample_most_like_the_others(stories, own):
    def alike(a, b):
        return len(set(a.split()) & set(b.split())) / (1 + len(b))

    drawn = samples(stories, "One day", 6)
    seen = stories.mbr("One day", n=6, similarity=alike if own else None, **ASKED)
    like = alike if own else lambda a, b: overlap(profile(a), profile(b))
    utility = [
        math.fsum(like(a.text, b.text) for j, b in enumerate(drawn) if j != i) / 5
        for i, a in enumerate(drawn)
    ]
    order = sorted(range(6), key=lambda i: (-utility[i], i))
    assert [c.sample for c in seen.candidates] == order
    assert [c.score for c in seen.candidates] == [utility[i] for i in order]


def test_lists_of_prompts_and_models_without_a_codec():
    model, prompts = small.shared("llama3"), [checkpoints.prompt(5), checkpoints.prompt(7)]
    for call in (model.best_of, model.mbr):
        seen = call(prompts, n=3, **ASKED)
        assert [c.ids for c in seen] == [call(p, n=3, **ASKED).ids for p in prompts]
    with pytest.raises(RequestError, match="needs a codec"):
        model.vote(prompts, n=3)
    votes = model.vote(prompts, n=3, extract=lambda ids: ids[0], **ASKED)
    assert [v.answer for v in votes] == [
        model.vote(p, n=3, extract=lambda ids: ids[0], **ASKED).answer for p in prompts
    ]


def test_samples_share_their_prompt():
    model = small.load("llama3")
    seen = model.best_of(checkpoints.prompt(150), n=8, max_tokens=3, seed=1)
    cached = [c.result.usage.cached for c in sorted(seen.candidates, key=lambda c: c.sample)]
    assert cached[0] == 0
    assert sum(c >= 128 for c in cached) >= 6  # those that were admitted after the first step


def test_a_search_runs_on_an_engine_with_a_thread_of_its_own():
    model = small.load("llama3")
    model.engine.start()
    try:
        assert exact(model.beam(checkpoints.prompt(64), **WIDE)) == alone("llama3", 64)
    finally:
        model.engine.stop()


def test_an_interrupted_search_leaves_nothing_behind():
    def interrupt(ids, scores):
        if len(ids) > 5:
            raise KeyboardInterrupt
        return scores

    model = small.load("llama3")
    with pytest.raises(KeyboardInterrupt):
        model.beam([1, 2, 3], max_tokens=9, processors=[interrupt])
    assert not model.engine.busy
    model.engine.check()


def test_results_are_json(stories):
    choice = stories.beam("Once", beams=2, max_tokens=4)
    for found in (choice, stories.mbr("Once", n=2, **ASKED), stories.vote("Once", n=2, **ASKED)):
        assert json.loads(json.dumps(asdict(found)))["candidates"]
        assert "candidates" not in repr(found)


# ---- selections: bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, bad, message",
    [
        ("best_of", dict(n=0), "n is 0.*1 to 128"),
        ("best_of", dict(n=10**9), "n is 1000000000"),
        ("best_of", dict(by="luck"), "by is 'luck'.*likelihood"),
        ("best_of", dict(by=3), "by is 3"),
        ("best_of", dict(tempreature=1), "did you mean temperature"),
        ("best_of", dict(by=lambda r: math.nan), "by gives nan for candidate 0"),
        ("best_of", dict(by=lambda r: "good"), "by gives 'good' for candidate 0"),
        ("best_of", dict(by=lambda r: 10**400), "for candidate 0"),
        ("best_of", dict(by=lambda r: 1 / 0), "by fails on candidate 0: ZeroDivisionError"),
        ("vote", dict(n=129), "n is 129"),
        ("vote", dict(extract="("), r"extract is '\(': missing"),
        ("vote", dict(extract="(a)(b)"), "has 2 groups.*at most one"),
        ("vote", dict(extract=b"a"), "extract is b'a'"),
        ("vote", dict(extract=re.compile(b"a")), "extract is"),
        ("vote", dict(extract=lambda text: [text]), "extract fails on candidate 0.*no text"),
        ("vote", dict(extract=lambda text: text.nope), "extract fails on candidate 0: Attribute"),
        ("vote", dict(extract=lambda text: math.nan), "extract fails on candidate 0"),
        ("vote", dict(weights="votes"), "weights is 'votes'"),
        ("vote", dict(weights=len), "weights is"),
        ("mbr", dict(n=1), "n is 1.*2 to 128"),
        ("mbr", dict(similarity="chrF"), "similarity is 'chrF'"),
        ("mbr", dict(similarity=lambda a, b: math.inf), "gives inf for candidate 0 with 1"),
        ("mbr", dict(similarity=lambda a, b: a - b), "fails on candidate 0 with 1: TypeError"),
    ],
)
def test_what_a_selection_cannot_honour_is_refused_by_name(stories, call, bad, message):
    with pytest.raises(RequestError, match=message):
        getattr(stories, call)("Once", **{"n": 3, "max_tokens": 3, "seed": 1} | bad)


# ---- answers and similarity --------------------------------------------------------------------


def test_every_reference_answer_of_gsm8k_is_read(data):
    lines = (data / "reasoning" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 7473
    for answer in answers:
        stated = re.search(r"#### (-?[0-9.,]+)", answer)[1].replace(",", "")
        assert float(final_answer(answer)) == float(stated)
        assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d*[1-9])?", final_answer(answer))


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so it is 18.\n#### 18\nThanks, 5 of you", "18"),
        ("#### 3\n#### 4", "4"),
        ("#### $1,234.50 dollars", "1234.5"),
        ("#### blue", "blue"),
        ("#### ", None),
        ("the answer is -7", "-7"),
        ("from 10-7", "7"),
        ("1,2 and 3,45", "45"),
        ("a ratio of .50", "0.5"),
        ("$-3.0", "-3"),
        ("no number", None),
        ("", None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@given(st.text(max_size=40))
def test_a_canonical_answer_stays_as_it_is(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.text("ab c", max_size=30), st.text("ab c", max_size=30))
def test_overlap_is_symmetric_and_one_for_equals(a, b):
    there, back = overlap(profile(a), profile(b)), overlap(profile(b), profile(a))
    assert there == pytest.approx(back, abs=1e-15)
    assert 0 <= there <= 1 + 1e-12
    assert overlap(profile(a), profile(a)) == pytest.approx(1)


def test_overlap_is_chrf():
    """By hand: "cats" and "cat" share 3 of 4 and 3, 2 of 3 and 2, 1 of 2 and 1 n-grams."""
    precision, recall = (3 / 4 + 2 / 3 + 1 / 2) / 3, 1
    expected = 2 * precision * recall / (precision + recall)
    assert overlap(profile("cats"), profile("cat")) == pytest.approx(expected)


# ---- the command line ----------------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    """What `seriatim generate` says of a prompt: exit code, objects or the error."""

    def run(*words: object):
        base = ["generate", "ab", "-m", small.folder("bytes"), "--threads", 1, "--json"]
        with pytest.raises(SystemExit) as done:
            cli.main([str(word) for word in (*base, *words)])
        out, err = capsys.readouterr()
        return done.value.code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_the_command_searches_and_selects(command):
    model = small.shared("bytes")
    code, rows, _ = command("--beams", 3, "-n", 2, "--max-tokens", 4, "--frequency-penalty", 0.1)
    best = model.beam("ab", beams=3, max_tokens=4, frequency_penalty=0.1).candidates[:2]
    assert (code, [(r["ids"], r["score"]) for r in rows]) == (0, [(c.ids, c.score) for c in best])
    code, rows, _ = command("--best-of", 5, "-n", 2, "--max-tokens", 4, "--seed", 1)
    best = model.best_of("ab", n=5, max_tokens=4, seed=1).candidates[:2]
    assert code == 0
    assert [(r["ids"], r["score"], r["sample"]) for r in rows] == [
        (c.ids, c.score, c.sample) for c in best
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--beams", 0], "beams is 0"),
        (["--beams", 2, "-n", 3], "n is 3"),
        (["--beams", 2, "--temperature", 0.5], "cannot honour temperature"),
        (["--beams", 2, "--best-of", 2], "--beams and --best-of are given"),
        (["--best-of", 2, "-n", 3], "--n is 3"),
        (["--best-of", 2, "-n", 0], "--n is 0"),
        (["--best-of", 0], "n is 0"),
        (["--best-of", 1000], "n is 1000"),
    ],
    ids=str,
)
def test_the_command_refuses_what_cannot_be(command, words, message):
    code, rows, err = command(*words, "--max-tokens", 2)
    assert (code, rows) == (2, [])
    assert message in err


# ---- what is published ---------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def test_the_documents_examples_run():
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {"print": lambda *_: None})


@pytest.fixture
def reasoning(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("reasoning")


def test_the_benchmark_finds_the_references_right(reasoning, data):
    found = reasoning.problems(data / "reasoning" / "gsm8k" / "train.jsonl")
    right = [final_answer(p.solved() + "\n") == p.answer for p in found]
    assert (len(right), reasoning.figure(list(map(float, right)))) == (7473, (1.0, 0.0))


def test_the_benchmark_counts_what_is_right_both_ways(reasoning, monkeypatch):
    """A model made to say 12: two of four problems are right, greedy and voted."""
    model = small.shared("bytes")
    monkeypatch.setattr(
        model.engine, "add", partial(model.engine.add, forced_ids=[*b"so #### 12."])
    )
    asked = [reasoning.Problem("How many?", f"#### {n}") for n in (12, 5, 12, 7)]
    seen = reasoning.measure(model, asked[:1], asked, n=3, seed=1, max_tokens=11)
    half = pytest.approx((0.5, math.sqrt(1 / 3) / 2))
    assert seen["greedy"] == seen["vote"] == half
    assert (seen["vote - greedy"], seen["samples without an answer"]) == ((0, 0), 0)


def test_the_benchmark_refuses_a_file_without_answers(reasoning, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "?", "answer": "none"}\n')
    with pytest.raises(SystemExit, match=r"no answer in lines \[1\]"):
        reasoning.problems(tmp_path / "p.jsonl")

"""What sampling options do to whole requests: loops that end, prompts' log-probabilities and the
memory they take, breakers given as text, processors that fail.
"""

import tracemalloc

import numpy as np
import pytest
import small
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

import seriatim
from seriatim.engine.engine import LOGITS, Engine
from seriatim.engine.loops import looping
from seriatim.errors import RequestError


@pytest.fixture
def model():
    """Bytes in, bytes out; context 256."""
    return small.shared("bytes")


def says(model, text: str, **options):
    """What comes of a request that is made to say `text`."""
    forced = [*text.encode()]
    how = dict(max_tokens=len(forced), ignore_end=True, forced_ids=forced)
    return model.generate("p", **how | options)


# ---- loops -------------------------------------------------------------------------------------


@example([0, 0], 0, 2, 1)
@example([1, 0, 0], 2, 2, 1)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=24), st.integers(0, 3),
       st.integers(2, 4), st.integers(1, 9))  # fmt: skip
def test_a_loop_is_a_cycle_that_stands_so_often_at_the_end(ids, first, times, longest):
    own = ids[first:]
    expected = any(
        own[-times * n :] == own[-n:] * times and len(own) >= times * n
        for n in range(1, longest + 1)
    )
    assert looping(ids, first, times=times, longest=longest) == expected


def test_a_request_that_goes_round_in_circles_ends_where_asked(model):
    text = "so, one two one two one two one two"
    assert says(model, text).stop == "max_tokens"
    for limit, end in ((2, 19), (3, 27), (4, 35)):
        r = says(model, text, loop_limit=limit)
        assert (r.stop, r.finish_reason) == ("loop", "length")
        assert r.text == text[: len(r.ids)]
        assert len(r.ids) <= end
    assert says(model, text, loop_limit=2, loop_length=7).stop == "max_tokens"
    assert says(model, text, loop_limit=2, loop_length=8).stop == "loop"
    assert says(model, text, loop_limit=5).stop == "max_tokens"


def test_the_prompt_is_no_part_of_a_loop(model):
    r = model.generate([7] * 50, forced_ids=[7, 7], max_tokens=2, loop_limit=3)
    assert r.stop == "max_tokens"


def test_a_stop_string_wins_over_a_loop_and_a_loop_over_a_full_length(model):
    assert says(model, "ababab", loop_limit=3, stop=["bab"]).stop == "bab"
    assert says(model, "xababab", loop_limit=3, stop=["ababab"]).stop == "ababab"
    assert says(model, "ababab", loop_limit=3).stop == "loop"


def test_a_piece_of_a_stream_shows_all_of_a_loop(model):
    forced = [*b"abab"]
    stream = model.stream("p", forced_ids=forced, max_tokens=9, loop_limit=2)
    assert "".join(piece.text for piece in stream) == "abab"
    assert stream.result().stop == "loop"


# ---- log-probabilities of a prompt -------------------------------------------------------------


def test_the_likeliest_ids_of_a_prompt_are_those_of_its_logits(model):
    prompt = [5, 9, 200, 7]
    r = model.generate(prompt, max_tokens=1, prompt_logprobs=3, seed=1)
    logits = model.logits(prompt).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert r.prompt_logprobs[0] is None
    assert r.prompt_top_logprobs[0] is None
    for place in range(1, 4):
        row = logprobs[place - 1]
        best = np.argsort(-row, kind="stable")[:3].tolist()
        assert [id for id, _ in r.prompt_top_logprobs[place]] == best
        assert [p for _, p in r.prompt_top_logprobs[place]] == pytest.approx(row[best], abs=1e-5)
        assert r.prompt_logprobs[place] == pytest.approx(row[prompt[place]], abs=1e-5)


def test_without_alternatives_each_place_of_a_prompt_lists_none(model):
    r = model.generate([5, 9], max_tokens=1, prompt_logprobs=True, seed=1)
    assert r.prompt_top_logprobs == [None, []]
    assert len(r.prompt_logprobs) == 2
    assert model.generate([5, 9], max_tokens=1, seed=1).prompt_top_logprobs is None


def test_a_long_prompt_over_a_large_vocabulary_needs_a_few_rows_at_a_time(tmp_path):
    """128,256 ids by 200 places would be 103 MB of logits; a step holds at most 16 MiB of them."""
    size, count = 128_256, 200
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                 num_key_value_heads=1)  # fmt: skip
    tiny.write(tmp_path, codec=False, ids={}, vocab_size=size, **shape)
    model = seriatim.load(str(tmp_path), threads=1)
    sizes: list[int] = []
    step = model.runtime.step
    model.runtime.step = lambda batch: sizes.append(len(batch.rows) * size) or step(batch)
    prompt = np.random.default_rng(0).integers(0, size, count).tolist()
    tracemalloc.start()
    try:
        r = model.generate(prompt, max_tokens=1, prompt_logprobs=2, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) >= count * size, "every place was computed"
    assert max(sizes) <= LOGITS
    assert peak < 4 * LOGITS, "nothing beside them is kept"
    assert len(r.prompt_logprobs) == len(r.prompt_top_logprobs) == count


# ---- breakers ----------------------------------------------------------------------------------


def test_breakers_may_be_text(model):
    """Bytes: the id of a character is its own."""
    prompt, how = "abcd abcd ab", dict(max_tokens=1, temperature=0, dry_multiplier=1e6)
    ids = [model.generate(prompt, dry_breakers=b, **how).ids for b in (["b"], [98], ["b", 98])]
    assert ids[0] == ids[1] == ids[2]
    seen = model.engine.add([*prompt.encode()], dry_breakers=[98], seed=0)
    model.engine.abort(seen)
    assert seen.options.sampling.dry_breakers == (98,)


@pytest.mark.parametrize("wrong", [["ab"], [""], ["a", "xy"], [257], "ab", None, [1.5]])
def test_a_breaker_that_no_id_is_is_refused(model, wrong):
    with pytest.raises(RequestError, match="dry_breakers"):
        model.generate("x", max_tokens=1, dry_multiplier=1.0, dry_breakers=wrong)


def test_breakers_as_text_need_a_codec(tmp_path):
    bare = seriatim.load(str(tiny.write(tmp_path, codec=False)), threads=1)
    with pytest.raises(RequestError, match="no codec"):
        bare.generate([1], max_tokens=1, dry_breakers=["a"])


def test_dry_keeps_a_request_from_repeating_itself(model):
    """What random weights say greedily soon goes round; with DRY it does not."""
    how = dict(max_tokens=120, temperature=0, ignore_end=True, loop_limit=3)
    assert model.generate("p", **how).stop == "loop"
    assert (
        model.generate("p", dry_multiplier=100.0, dry_allowed_length=1, **how).stop == "max_tokens"
    )


# ---- processors --------------------------------------------------------------------------------


def fails(ids, x):
    raise OSError("no such file")


@pytest.mark.parametrize(
    "bad, words",
    [
        (fails, "'fails' raised OSError: no such file"),
        (lambda ids, x: x[:3], "another shape, [3]"),
        (lambda ids, x: np.where(x > 0, np.nan, x), "NaN"),
        (lambda ids, x: x + np.inf, "infinite"),
        (lambda ids, x: x.astype(complex), "type complex"),
        (lambda ids, x: x > 0, "type bool"),
        (lambda ids, x: ["a"] * len(x), "type <U1"),
        (lambda ids, x: [[1.0], 2.0], "raised ValueError"),
        (lambda ids, x: None, "type object"),
        (lambda ids, x: np.full(len(x), -np.inf), "leave no id"),
    ],
)
def test_a_processor_at_fault_is_named_and_others_keep_their_bits(bad, words):
    def alone(engine: Engine):
        return engine.add([4] * 9, max_tokens=6, ignore_end=True, seed=1, logprobs=True)

    def finished(engine: Engine, *requests):
        while not all(r.done for r in requests):
            engine.step()
            engine.check()
        return requests

    model = small.shared("llama3")
    expected = finished(engine := Engine(model), alone(engine))[0]
    with np.errstate(invalid="ignore"):
        ok, failed = finished(
            engine := Engine(model), alone(engine), engine.add([4] * 9, processors=[bad], seed=1)
        )
    assert words in str(failed.error)
    assert ok.ids == expected.ids
    assert ok.draws == expected.draws

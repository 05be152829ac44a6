"""How requests begin and end, what they report, and that a fault stays its own.

Most answers here are forced (`forced_ids`), so that a model with random weights says exactly what a
test needs; the log-probabilities stay real.
"""

import gc
import json
import shutil
import threading
from typing import Any

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import seriatim
from seriatim.engine.cache import BlockPool
from seriatim.engine.engine import Engine
from seriatim.engine.request import Request
from seriatim.errors import NumericError, RequestError, ResourceError, SeriatimError
from seriatim.kernels.ops import BLOCK

END = 256  # of the byte codec


@pytest.fixture
def model():
    """Bytes in, bytes out; context 256."""
    return small.shared("bytes")


@pytest.fixture
def engine():
    """An engine of a model of its own."""
    return Engine(small.load("llama3"))


def run(engine: Engine, *requests: Request) -> None:
    for _ in range(5000):
        if all(r.done for r in requests):
            return
        engine.step()
        engine.check()
    raise AssertionError("the engine makes no progress")


def says(model: Any, text: str, **options: Any) -> Any:
    """What comes of a request that is made to say `text`."""
    forced = [*text.encode()]
    how = dict(max_tokens=max(len(forced), 1), ignore_end=True)
    return model.generate("p", forced_ids=forced, **how | options)


# ---- stops -------------------------------------------------------------------------------------


def test_the_end_id_is_not_among_the_ids_but_is_counted(model):
    r = model.generate("p", forced_ids=[*b"ab", END], logprobs=True)
    assert (r.ids, r.output) == ([*b"ab"], b"ab")
    assert (r.finish_reason, r.stop) == ("stop", END)
    assert r.usage.generated == 3
    assert len(r.logprobs) == 2
    assert r.stop_logprob < 0


def test_without_an_end_there_is_no_log_probability_of_it(model):
    r = model.generate("p", max_tokens=2, ignore_end=True, logprobs=True)
    assert r.stop_logprob is None
    assert (r.finish_reason, r.stop, r.usage.generated) == ("length", "max_tokens", 2)


def test_log_probabilities_come_only_where_they_are_asked_for(model):
    r = model.generate("p", max_tokens=2)
    assert (r.logprobs, r.top_logprobs, r.prompt_logprobs, r.stop_logprob) == (None,) * 4
    r = model.generate("p", max_tokens=2, logprobs=3, ignore_end=True)
    assert [len(top) for top in r.top_logprobs] == [3, 3]
    assert all(top[0][1] >= top[1][1] >= top[2][1] for top in r.top_logprobs)


def test_max_tokens_is_met_before_the_end_id_that_would_follow(model):
    r = model.generate("p", forced_ids=[*b"ab"], max_tokens=2)
    assert (r.finish_reason, r.stop) == ("length", "max_tokens")


def test_a_stop_at_the_last_allowed_id_is_a_stop(model):
    end = model.generate("p", forced_ids=[*b"ab", END], max_tokens=3)
    assert (end.finish_reason, end.stop) == ("stop", END)
    text = says(model, "abc", stop="c")
    assert (text.finish_reason, text.stop, text.output) == ("stop", "c", b"ab")
    full = model.generate([65] * 255, forced_ids=[*b"c"], stop=["c"])
    assert (full.finish_reason, full.stop) == ("stop", "c")
    both = model.generate([65] * 255, forced_ids=[66], max_tokens=1)
    assert (both.finish_reason, both.stop) == ("length", "max_tokens")


def test_an_ignored_end_is_an_id_like_any_other(model):
    r = model.generate("p", forced_ids=[97, END, 98], max_tokens=3, ignore_end=True)
    assert (r.ids, r.output, r.stop) == ([97, END, 98], b"ab", "max_tokens")
    assert r.usage.generated == 3


def test_no_end_comes_before_min_tokens(model):
    eager = dict(logit_bias={END: 1e6}, seed=1)
    assert model.generate("p", **eager).ids == []
    r = model.generate("p", min_tokens=5, **eager)
    assert (len(r.ids), r.stop, r.usage.generated) == (5, END, 6)


def test_stop_strings_are_not_watched_for_before_min_tokens(model):
    r = says(model, "aXbXcX.", stop=["X"], min_tokens=3)
    assert (r.output, r.stop, r.ids) == (b"aXb", "X", [*b"aXbX"])
    assert r.text == "aXb"


def test_ids_end_with_the_one_that_completed_the_stop_string_and_output_before_it(model):
    r = says(model, "one END two", stop=["END", "never"])
    assert (r.output, r.text, r.ids) == (b"one ", "one ", [*b"one END"])
    assert (r.finish_reason, r.stop) == ("stop", "END")
    assert r.usage.generated == len(b"one END")


@pytest.mark.parametrize("word", ["max_tokens", "context", "abort"])
def test_a_stop_string_that_reads_like_another_reason_is_a_stop(model, word):
    r = says(model, f"a {word} b", stop=[word])
    assert (r.finish_reason, r.stop, r.output) == ("stop", word, b"a ")


def test_a_stop_string_begins_in_generated_text_only(model):
    prompt = [*b"say EN"]
    r = model.generate(prompt, forced_ids=[*b"D END"], max_tokens=5, stop="END")
    assert (r.output, r.stop) == (b"D ", "END")


def test_bytes_that_are_no_text_stop_before_the_string_too(model):
    r = model.generate("p", forced_ids=[*b"\xff\xc3X.\xe2\x82"], max_tokens=6, stop="X")
    assert (r.output, r.text) == (b"\xff\xc3", "\ufffd\ufffd")
    r = model.generate("p", forced_ids=[*b"ab\xff!"], max_tokens=4, stop="\ufffd!")
    assert (r.output, r.text) == (b"ab", "ab")


def test_half_a_character_is_shown_once_at_the_end(model):
    stream = model.stream("p", forced_ids=[*"né".encode()[:2], *"é".encode()[:1]], max_tokens=3)
    assert "".join(piece.text for piece in stream) == "n\ufffd\ufffd"
    assert stream.result().output == b"n\xc3\xc3"


texts = st.text(alphabet="ab ⅓é", min_size=1, max_size=12)


@pytest.mark.parametrize("kind", ["bytes", "text"])
@settings(max_examples=25)
@given(said=texts, stops=st.lists(st.text(alphabet="ab é", min_size=1, max_size=3), max_size=3))
def test_a_stop_string_never_shows_a_part_of_itself(kind, said, stops):
    model = small.shared(kind)
    ids = model.encode(said)
    stream = model.stream("", forced_ids=ids, max_tokens=len(ids), stop=stops, ignore_end=True)
    shown = ""
    pieces = list(stream)
    found = {stop: said.find(stop) + len(stop) for stop in stops if stop in said}
    first = min(found.values(), default=None)
    met = max((s for s in found if found[s] == first), key=len, default=None)
    expected = said if met is None else said[: first - len(met)]
    for piece in pieces:
        shown += piece.text
        assert expected.startswith(shown)
    r = stream.result()
    assert shown == r.text == expected
    assert r.stop == (met or "max_tokens")
    assert [i for piece in pieces for i in piece.ids] == r.ids == ids[: len(r.ids)]
    assert r.output == (expected if kind == "text" else expected.encode())


@pytest.mark.parametrize("stop", ["", [""], [3], 5, ["a"] * 17, ["a" * 257], None])
def test_stop_strings_that_cannot_be_honoured_are_refused(model, stop):
    with pytest.raises(RequestError, match="stop"):
        model.generate("p", stop=stop, max_tokens=1)


# ---- the context -------------------------------------------------------------------------------


@pytest.mark.parametrize("length, room", [(253, 3), (254, 2), (255, 1)])
def test_a_full_context_ends_the_request(model, length, room):
    r = model.generate([65] * length, ignore_end=True, logprobs=True)
    assert (len(r.ids), r.finish_reason, r.stop) == (room, "length", "context")
    assert len(r.logprobs) == r.usage.generated == room
    r = model.generate([65] * length, ignore_end=True, max_tokens=1000)
    assert (len(r.ids), r.stop) == (room, "context")


@pytest.mark.parametrize("length", [256, 257, 1000])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(model, length):
    with pytest.raises(RequestError, match=rf"{length} ids and the context is 256.*at most 255"):
        model.generate([65] * length, max_tokens=1)


def test_a_whole_context_can_be_scored_but_not_continued(model):
    assert model.logits([65] * 256).shape == (256, 257)
    with pytest.raises(RequestError, match=r"257 ids and the context is 256.*at most 256"):
        model.logits([65] * 257)


def test_one_invalid_prompt_refuses_the_list_before_any_work(model):
    steps = count_steps(model)
    for bad in ([65] * 256, [257], [-1], [1.5], "\ud800"):
        with pytest.raises(RequestError):
            model.generate(["fine", bad, "fine"], max_tokens=2)
    assert steps() == 0
    assert not model.engine.scheduler.waiting


def count_steps(model):
    before = model.engine.scheduler.schedule
    seen = []
    model.engine.scheduler.schedule = lambda: seen.append(1) or before()

    def count() -> int:
        model.engine.scheduler.schedule = before
        return len(seen)

    return count


def test_an_empty_prompt_is_the_start_id_or_a_refusal(model, engine):
    for empty in (None, "", b"", []):
        assert model.generate(empty, max_tokens=1).prompt_ids == [END]
    with pytest.raises(RequestError, match="empty"):
        engine.add([])


# ---- aborting ----------------------------------------------------------------------------------


def nothing_held(model: Any) -> bool:
    model.engine.check()
    return model.pool.available == model.pool.limit and not model.engine.scheduler.waiting


@pytest.mark.parametrize("pieces", [0, 1, 5])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_closed_or_dropped_stream_frees_its_blocks(pieces, how):
    model = small.load("bytes")
    stream = model.stream([65] * 150, ignore_end=True, seed=1)
    for _ in range(pieces):
        next(stream)
    if how == "close":
        stream.close()
        assert next(stream, None) is None
        assert (stream.result().stop, len(stream.result().ids)) == ("abort", pieces)
    del stream
    gc.collect()
    assert nothing_held(model)


def test_an_abort_frees_blocks_at_once_and_twice_is_once(engine):
    a, b = engine.add([5] * 130, max_tokens=9), engine.add([6] * 130, max_tokens=9)
    engine.step()
    engine.abort(a)
    engine.abort(a)
    assert (a.stop, a.reason, a.blocks) == ("abort", "abort", [])
    engine.check()
    run(engine, b)
    engine.abort(b)
    assert b.stop != "abort"
    assert engine.pool.available == engine.pool.limit


def test_an_engine_that_is_gone_gives_back_what_it_held():
    model = small.load("llama3")
    engine = Engine(model)
    engine.add([5] * 100, max_tokens=50, seed=1, ignore_end=True)
    engine.step()
    assert model.pool.available < model.pool.limit
    del engine
    gc.collect()
    assert nothing_held(model)


def test_engines_of_one_model_share_its_cache_and_do_not_disturb_each_other():
    model = small.load("llama3")
    how = dict(max_tokens=20, seed=1, ignore_end=True)
    prompts = [[5 + i] * (60 + 9 * i) for i in range(4)]
    expected = [model.generate(p, **how).ids for p in prompts]
    engines = [Engine(model, chunk=7 + i) for i in range(3)]
    requests = [e.add(p, **how) for e, p in zip(engines, prompts, strict=False)]
    while not all(r.done for r in requests):
        for engine in engines:
            engine.step()
            engine.check()
        assert model.generate(prompts[3], **how).ids == expected[3]
    assert [r.ids[r.prompt :] for r in requests] == expected[:3]
    assert nothing_held(model)


# ---- a request's own fault ---------------------------------------------------------------------


def test_a_processor_that_raises_fails_its_request_only(engine):
    def fails(ids, logits):
        if len(ids) > 12:
            raise ZeroDivisionError("by design")
        return logits

    how = dict(max_tokens=12, seed=2, logprobs=True, ignore_end=True)
    alone = engine.add([4] * 10, **how)
    run(engine, alone)
    bad = engine.add([4] * 10, processors=[fails], **how)
    good = engine.add([4] * 10, **how)
    run(engine, bad, good)
    assert good.draws == alone.draws
    assert bad.draws == alone.draws[:3]
    assert isinstance(bad.error, SeriatimError)
    assert "ZeroDivisionError: by design" in str(bad.error)
    assert isinstance(bad.error.__cause__, ZeroDivisionError)
    assert bad.blocks == []


def test_an_interrupt_leaves_every_request_able_to_go_on(engine):
    def interrupts(ids, logits):
        if len(ids) == 13 and not told:
            told.append(1)
            raise KeyboardInterrupt
        return logits

    told: list[int] = []
    how = dict(max_tokens=12, seed=2, logprobs=True, ignore_end=True)
    alone = engine.add([4] * 10, **how)
    run(engine, alone)
    requests = [engine.add([4] * 10, processors=some, **how) for some in ([], [interrupts], [], [])]
    with pytest.raises(KeyboardInterrupt):
        run(engine, *requests)
    engine.check()
    run(engine, *requests)
    assert [r.draws for r in requests] == [alone.draws] * 4


def test_an_interrupted_call_leaves_nothing_running(model):
    def interrupts(ids, logits):
        raise KeyboardInterrupt

    for call in (
        lambda **how: model.generate(["a", "b"], **how),
        lambda **how: list(model.stream("a", **how)),
    ):
        with pytest.raises(KeyboardInterrupt):
            call(max_tokens=3, processors=[interrupts])
        assert nothing_held(model)


def test_an_abort_while_a_step_computes_waits_for_its_end(engine):
    """As from a signal, or a stream that the collector drops: the batch stays as it is."""
    how = dict(max_tokens=3, seed=1, ignore_end=True)
    alone = engine.add([5] * 70, **how)
    run(engine, alone)
    model, inner = engine.model, engine.model.runtime

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def step(self, batch: Any) -> np.ndarray:
            engine.abort(gone)
            assert gone.done or gone.blocks
            return inner.step(batch)

    gone, stays = engine.add([6] * 70, **how), engine.add([5] * 70, **how)
    model.runtime = Interrupted()
    run(engine, stays, gone)
    assert (gone.stop, gone.generated, gone.blocks) == ("abort", 0, [])
    assert stays.ids == alone.ids


def test_a_request_may_abort_another_from_within(engine):
    requests: list[Request] = []

    def jealous(ids, logits):
        engine.abort(requests[1])
        return logits

    requests += [engine.add([4] * 9, processors=[jealous], max_tokens=2), engine.add([5] * 9)]
    run(engine, *requests)
    assert requests[0].error is None
    assert requests[1].stop == "abort"


@pytest.mark.parametrize("call", ["generate", "score", "logits", "stream", "step", "save_prefix"])
def test_a_step_within_a_step_fails_the_request_that_asks_for_it_only(tmp_path, call):
    """It would compute in the memory of the logits that others wait for."""
    model = small.load("bytes")
    engine = model.engine
    calls = {
        "generate": lambda: model.generate("x", max_tokens=2),
        "score": lambda: model.score("some text"),
        "logits": lambda: model.logits([1, 2, 3]),
        "stream": lambda: list(model.stream("x", max_tokens=2)),
        "step": Engine(model).step,
        "save_prefix": lambda: model.save_prefix("x", tmp_path / "x.safetensors"),
    }

    def asks(ids, logits):
        calls[call]()
        return logits

    how = dict(max_tokens=6, seed=2, logprobs=True, ignore_end=True)
    alone = engine.add([4] * 9, **how)
    run(engine, alone)
    bad = engine.add([4] * 9, processors=[asks], **how)
    others = [engine.add([4] * 9, **how) for _ in range(2)]
    run(engine, bad, *others)
    assert "within a step of the same model" in str(bad.error)
    assert [r.draws for r in others] == [alone.draws] * 2
    assert nothing_held(model)
    assert model.generate("x", max_tokens=2).usage.generated == 2


@pytest.mark.parametrize("foreign", [lambda other: other.add([1, 2, 3], max_tokens=3), lambda _: 5])
def test_an_engine_is_asked_about_its_own_requests_only(engine, foreign):
    other = Engine(engine.model)
    asked = foreign(other)
    other.step()
    for call in (engine.abort, engine.follow):
        with pytest.raises(RequestError, match="not of this engine"):
            call(asked)
    engine.check()
    if isinstance(asked, Request):
        run(other, asked)
        assert asked.stop == "max_tokens"
        engine.abort(asked)  # one that is done stays as it is


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A model whose embedding of id 7 is NaN, and whose head is another tensor."""
    place = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(small.folder("llama3"), place)
    weights = load_file(place / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] = np.nan
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    assert not json.loads((place / "config.json").read_text()).get("tie_word_embeddings")
    return place


@pytest.mark.parametrize("backend", [dict(threads=1), dict(backend="torch")])
def test_nan_weights_fail_the_request_that_meets_them_and_name_the_tensor(poisoned, backend):
    how = dict(max_tokens=6, seed=1, logprobs=True, ignore_end=True, banned_ids=[7])
    model = seriatim.load(poisoned, **backend)
    engine = Engine(model)
    alone = engine.add([5] * 70, **how)
    run(engine, alone)
    model.pool.forget()
    good, bad, other = (engine.add(p, **how) for p in ([5] * 70, [5] * 64 + [7], [7] * 70))
    run(engine, good, bad, other)
    assert [d.id for d in good.draws] == [d.id for d in alone.draws]
    if "backend" not in backend:  # torch's products depend on the batch, in the last bits
        assert good.draws == alone.draws
    for request in (bad, other):
        assert isinstance(request.error, NumericError)
        assert "embed" in str(request.error)
        assert (request.blocks, request.draws) == ([], [])
    with pytest.raises(NumericError, match="embed"):
        model.generate([7], max_tokens=1)
    with pytest.raises(NumericError, match="embed"):
        model.score([5, 6, 7, 8])


def test_a_trace_may_write_over_the_logits_of_others():
    """Tracing runs the step again in the same memory and stops at the first bad tensor."""
    model = small.load("llama3")
    how = dict(max_tokens=3, seed=1, logprobs=True, ignore_end=True)
    engine = Engine(model)
    alone = engine.add([5] * 20, **how)
    run(engine, alone)

    class Traced:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def step(self, batch: Any) -> np.ndarray:
            self.logits = inner.step(batch)
            return self.logits

        def finite(self) -> np.ndarray:
            fine = inner.finite().copy()
            fine[0] = len(fine) == 1
            return fine

        def trace(self, batch: Any) -> str:
            self.logits[:] = 0
            return "a tensor"

    inner, model.runtime = model.runtime, Traced()
    first, second = (engine.add([5] * 20, **how) for _ in range(2))
    run(engine, first, second)
    assert "the first such tensor is a tensor" in str(first.error)
    assert second.draws == alone.draws


# ---- lack of room ------------------------------------------------------------------------------


class Tight:
    """A model with few blocks, for all that its context says."""

    def __init__(self, model: Any, blocks: int) -> None:
        self.runtime, self.vocab_size = model.runtime, model.vocab_size
        self.context, self.ends = model.context, model.ends
        self.pool = BlockPool(blocks, lambda n: self.runtime.resize(max(n, self.runtime.blocks)))


@pytest.mark.parametrize("length, generate", [(128, True), (129, True), (129, False)])
def test_a_request_that_can_never_fit_is_refused_at_the_door_with_the_numbers(length, generate):
    engine = Engine(Tight(small.load("llama3"), 2))
    with pytest.raises(ResourceError, match=r"needs 3 cache blocks .* the cache holds 2"):
        engine.add([5] * length, generate=generate)
    assert not engine.busy


def test_a_request_that_outgrows_the_cache_fails_instead_of_waiting_for_ever():
    engine = Engine(Tight(small.load("llama3"), 2))
    fits = engine.add([5] * 100, max_tokens=3)
    late = engine.add([6] * 120, max_tokens=100, ignore_end=True)
    run(engine, fits, late)
    assert fits.error is None
    assert isinstance(late.error, ResourceError), "it outgrew what there is"
    assert late.generated == 2 * BLOCK - 120 + 1
    assert engine.pool.available == 2


def test_memory_that_runs_out_means_preemption_and_not_another_answer():
    model = small.load("llama3")
    how = dict(max_tokens=80, seed=3, ignore_end=True)
    prompts = [[i] * 100 for i in (5, 6, 7)]
    expected = [r.ids for r in model.generate(prompts, **how)]
    tight = Tight(small.load("llama3"), 100)

    def grow(blocks: int) -> None:
        if blocks > 4:
            raise ResourceError("no memory")
        tight.runtime.resize(blocks)

    tight.pool = BlockPool(100, grow)
    engine = Engine(tight)
    requests = [engine.add(p, **how) for p in prompts]
    run(engine, *requests)
    assert [r.ids[r.prompt :] for r in requests] == expected
    assert engine.pool.total == 4


@pytest.mark.parametrize(
    "limits", [dict(budget=0), dict(budget=1.5), dict(chunk=0), dict(chunk=-1), dict(most=0)]
)
def test_an_engine_refuses_limits_that_would_stall_it(limits):
    with pytest.raises(RequestError, match=next(iter(limits))):
        Engine(small.shared("bytes"), **limits)


def test_a_sample_index_is_32_bits(engine):
    for sample in (-1, 2**32, 0.5):
        with pytest.raises(RequestError, match="sample"):
            engine.add([5], sample=sample)


# ---- order -------------------------------------------------------------------------------------


def test_priority_comes_before_arrival():
    engine = Engine(small.load("llama3"), most=1)
    how = dict(max_tokens=2, ignore_end=True)
    first = engine.add([5], **how)
    engine.step()
    low, plain, high, later = (engine.add([5], priority=p, **how) for p in (-1, 0, 5, 0))
    ended: list[Request] = []
    while len(ended) < 5:
        ended += [r for r in engine.step() if r.done]
    assert ended == [first, high, plain, later, low]


def test_the_budget_and_the_chunk_bound_what_a_step_computes():
    engine = Engine(small.load("llama3"), budget=10, chunk=4)
    requests = [engine.add([5] * 9, max_tokens=1) for _ in range(3)]
    engine.step()
    assert [r.computed for r in requests] == [4, 4, 2]
    engine.step()
    assert [r.computed for r in requests] == [8, 8, 4]
    run(engine, *requests)


def test_an_idle_engine_does_nothing(engine):
    assert engine.step() == []


def test_a_full_hit_computes_the_last_id_again(engine):
    request = engine.add([5] * 128, max_tokens=1)
    run(engine, request)
    again = engine.add([5] * 128, max_tokens=1)
    run(engine, again)
    assert again.usage.cached == 127
    assert again.usage.missed == ""


def test_usage_accounts_for_every_id(model):
    model.pool.forget()
    prompt = [9] * 150
    for cached in (0, 149):
        usage = model.generate(prompt, max_tokens=5, ignore_end=True).usage
        assert (usage.prompt, usage.cached, usage.generated) == (150, cached, 5)
        assert (usage.drafted, usage.accepted) == (0, 0)
        assert min(usage.queue_ms, usage.prefill_ms, usage.decode_ms) >= 0


# ---- what is reported --------------------------------------------------------------------------

kinds = pytest.mark.parametrize("kind", [*small.KINDS, "bytes"])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.longdouble)
    wide -= wide.max(-1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(-1, keepdims=True))).astype(np.float64)


@kinds
def test_log_probabilities_are_those_of_the_logits(kind):
    """generate's, prompt_logprobs and score's: equal to the bit, and the logits' own."""
    model = small.shared(kind)
    prompt = np.random.default_rng(3).integers(3, model.vocab_size, 100).tolist()
    how = dict(max_tokens=20, seed=5, temperature=0.7, top_k=9, ignore_end=True)
    r = model.generate(prompt, logprobs=2, prompt_logprobs=True, **how)
    ids = [*prompt, *r.ids]
    score = model.score(ids[100:], given=prompt)
    assert score.logprobs == r.logprobs
    assert score.nats == pytest.approx(-sum(r.logprobs), abs=1e-9)
    assert r.prompt_logprobs[0] is None
    assert model.score(prompt).logprobs == r.prompt_logprobs[1:]
    expected = log_softmax(model.logits(ids))
    chosen = expected[np.arange(len(ids) - 1), ids[1:]]
    assert np.abs(chosen - [*r.prompt_logprobs[1:], *r.logprobs]).max() < 1e-9
    for row, top in zip(expected[99:], r.top_logprobs, strict=False):
        assert [i for i, _ in top] == np.argsort(-row, kind="stable")[:2].tolist()


def test_forced_ids_keep_their_real_log_probabilities(model):
    forced = [*b"hello"]
    r = model.generate("p", forced_ids=forced, max_tokens=8, logprobs=True, seed=1)
    assert r.ids[:5] == forced
    assert r.logprobs == model.score(r.ids, given="p").logprobs
    free = model.generate([*r.prompt_ids, *forced], max_tokens=3, seed=1)
    assert r.ids[5:] == free.ids, "what follows is what would follow them as a prompt"


def test_biases_and_masks_reach_the_sampler(model):
    assert model.generate("p", max_tokens=4, logit_bias={65: 1e6}, seed=1).output == b"AAAA"
    r = model.generate("p", max_tokens=30, allowed_ids=[65, 66, 67], banned_ids=[66], seed=1)
    assert set(r.ids) == {65, 67}


def test_penalties_see_the_prompt_or_only_what_is_new(model):
    """A huge presence penalty: no id comes twice. Repetition counts the prompt's ids as well."""
    r = model.generate([*b"abc"], max_tokens=60, presence_penalty=1e6, seed=1, ignore_end=True)
    assert len(set(r.ids)) == 60
    r = model.generate(
        [*range(100)], max_tokens=50, repetition_penalty=1e6, temperature=0, ignore_end=True
    )
    logits = model.logits([*range(100)])[-1]
    best = max(range(100, 257), key=lambda i: (logits[i], -i))
    assert r.ids[0] == best or logits[best] < 0


def test_processors_see_every_id_so_far(model):
    seen = []

    def watches(ids, logits):
        seen.append(list(ids))
        return logits

    r = model.generate("p", max_tokens=3, processors=[watches], seed=1, ignore_end=True)
    whole = [*r.prompt_ids, *r.ids]
    assert seen == [whole[: len(r.prompt_ids) + i] for i in range(3)]


def test_a_result_holds_its_samples_and_not_itself(model):
    r = model.generate("p", n=2, max_tokens=2, seed=1)
    assert [s.samples for s in r.samples] == [[], []]
    assert r.samples[0].ids == r.ids
    assert "samples" not in repr(r)


@pytest.mark.parametrize("n", [0, -1, 129, 10**6, 1.0, True, "2"])
def test_a_number_of_samples_that_cannot_be_honoured_is_refused(model, n):
    with pytest.raises(RequestError, match="n is"):
        model.generate("p", n=n, max_tokens=1)


@pytest.mark.parametrize("how", [dict(n=2), dict(maxtokens=3), dict(prompt_logprobs=21)])
def test_a_stream_refuses_what_it_cannot_honour_before_its_first_piece(model, how):
    with pytest.raises(RequestError, match=next(iter(how))):
        model.stream("p", **how)


def test_prompts_of_every_kind_are_one_prompt_or_a_list(model, tmp_path):
    path = tmp_path / "prompt"
    path.write_bytes(b"hi")
    one = model.generate("hi", max_tokens=4, seed=1)
    assert one.prompt_ids == [END, *b"hi"]
    for same in (b"hi", path, [END, *b"hi"], (END, *b"hi"), np.array([END, *b"hi"])):
        assert model.generate(same, max_tokens=4, seed=1).ids == one.ids
    several = model.generate(
        ["hi", path, [END, 104, 105], np.array([END, 104, 105])], max_tokens=4, seed=1
    )
    assert [r.ids for r in several] == [one.ids] * 4
    for bad in (3, object(), {1: 2}, [[[1]]], [1, "a"], np.array([[1]]), np.array([1.0])):
        with pytest.raises(RequestError):
            model.generate(bad, max_tokens=1)


def test_without_a_codec_ids_come_and_go_and_text_is_refused():
    model = small.shared("llama3")
    r = model.generate([5, 6], max_tokens=3, seed=1)
    assert (r.output, r.text, r.reencodes) == (None, "", None)
    for call in (
        lambda: model.generate("text"),
        lambda: model.generate([5], stop="x"),
        lambda: model.encode("x"),
        lambda: model.decode([5]),
        lambda: model.score("x"),
    ):
        with pytest.raises(RequestError, match="codec"):
            call()


# ---- threads -----------------------------------------------------------------------------------


def test_threads_that_call_one_model_at_once_get_what_they_would_alone():
    model = small.load("bytes")
    prompts = [[65 + i] * (5 + 40 * i) for i in range(5)]
    how = dict(max_tokens=25, seed=4, logprobs=True, ignore_end=True)
    expected = [model.generate(p, **how) for p in prompts]
    seen: dict[int, Any] = {}

    def call(i: int) -> None:
        if i % 2:
            seen[i] = model.generate(prompts[i], **how)
        else:
            stream = model.stream(prompts[i], **how)
            ids = [id for piece in stream for id in piece.ids]
            seen[i] = stream.result()
            assert seen[i].ids == ids

    threads = [threading.Thread(target=call, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, r in enumerate(expected):
        assert (seen[i].ids, seen[i].logprobs) == (r.ids, r.logprobs)
    assert nothing_held(model)


def test_threads_with_engines_of_their_own_get_what_they_would_alone():
    model = small.load("llama3")
    how = dict(max_tokens=25, seed=4, ignore_end=True)
    expected = [model.generate([5 + i] * 70, **how).ids for i in range(3)]
    seen: dict[int, list[int]] = {}

    def call(i: int) -> None:
        engine = Engine(model)
        request = engine.add([5 + i] * 70, **how)
        while not request.done:
            engine.step()
        seen[i] = request.ids[request.prompt :]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[i] for i in range(3)] == expected

"""`verify` holds on a right build, and names the law that a planted fault breaks.

Each fault is planted in the source by monkeypatching, as a mistake in that place would read; those
of C++ by wrapping what computes the logits.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
import tiny

import seriatim
from seriatim import cli, prefixes, verify
from seriatim.codecs._watch import Watch
from seriatim.engine import decoding, reuse, sampler
from seriatim.engine.cache import Block, BlockPool
from seriatim.engine.engine import Engine
from seriatim.engine.sampling import FILTERS, Draw
from seriatim.engine.scheduler import Scheduler
from seriatim.kernels.native import NativeRuntime
from seriatim.kernels.record import Recorder
from seriatim.models.families import llama
from seriatim.verify import definition, report
from seriatim.verify.lab import Lab, alone_with

Patch = Callable[[pytest.MonkeyPatch], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return seriatim.load(folder, threads=1)


def rows(model: Any, *laws: str) -> dict[str, report.Row]:
    """Some of the laws, or all."""
    chosen = [c for c in verify.CHECKS if not laws or c.law in laws]
    assert len(chosen) == len(laws) or not laws
    with alone_with(model):
        return {row.law: row for row in report.rows(chosen, Lab(model), lambda law: None)}


def failed(model: Any, *laws: str) -> set[str]:
    return {law for law, row in rows(model, *laws).items() if row.result == report.FAILED}


# ---- a right build -----------------------------------------------------------------------------


RIGHT = {
    "int8 keys": lambda folder: seriatim.load(folder, kv="int8", threads=2),
    "int8": lambda folder: seriatim.load(folder, precision="int8", threads=1),
    "bf16, one block and a half": lambda folder: seriatim.load(
        folder, precision="bf16", context=100, threads=1
    ),
}


def test_a_right_build_passes(model):
    found = rows(model)
    assert [row for row in found.values() if row.result == "failed"] == []
    assert all(row.power for row in found.values())
    assert {law for law, row in found.items() if row.result == "left out"} <= {"quantised", "torch"}


# All but what depends on no architecture, or takes long on the torch reference.
LAWS = [c.law for c in verify.CHECKS if c.law not in ("filters", "distribution", "torch", "ends")]


@pytest.mark.parametrize("how", RIGHT)
def test_it_passes_in_other_settings(how, folder):
    found = rows(RIGHT[how](folder), *LAWS)
    assert [row for row in found.values() if row.result == "failed"] == []


@pytest.mark.parametrize(
    "kind, options",
    [
        ("mistral", {}), ("llama3", {"kv": "int8"}), ("gpt2", {}), ("qwen3-bf16", {}),
        ("text", {"precision": "int4"}), ("stories260K", {}),
    ],
)  # fmt: skip
def test_other_architectures_pass(kind, options):
    found = rows(small.load(kind, **options), *LAWS)
    assert [row for row in found.values() if row.result == "failed"] == []


def test_torch_passes_within_what_it_promises(folder):
    laws = ("batch", "cache", "threads", "speculators", "noise", "reference", "torch", "windows")
    found = rows(seriatim.load(folder, backend="torch"), *laws)
    assert [row for row in found.values() if row.result == "failed"] == []
    assert [law for law, row in found.items() if row.result == "left out"] == ["threads"]


def test_it_repeats_itself_and_leaves_the_model_as_it_was(few, model):
    before = model.generate([1, 2, 3], max_tokens=9, seed=1).ids
    first, second = model.verify(seed=3), model.verify(seed=3)
    assert first == second
    assert first.ok
    assert model.generate([1, 2, 3], max_tokens=9, seed=1).ids == before
    model.engine.check()


def test_requests_under_way_are_not_disturbed(model):
    stream = model.stream([1, 2, 3], max_tokens=5)
    next(stream)
    with pytest.raises(seriatim.RequestError, match="computing requests"):
        model.verify()
    stream.close()


def test_the_definition_gives_the_published_words_of_philox():
    """Random123's known answers (kat_vectors, philox4x32 10)."""
    words = definition.philox(np.zeros((1, 4), np.uint64), 0)
    assert [f"{w:08x}" for w in words[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = np.full((1, 4), 0xFFFFFFFF, np.uint64)
    words = definition.philox(ones, 2**64 - 1)
    assert [f"{w:08x}" for w in words[0]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


# ---- the inverse: faults that must be seen -----------------------------------------------------


def changed(patch: pytest.MonkeyPatch, owner: Any, name: str, how: Callable[..., Any]) -> None:
    """The method or function with `how(original, *args, **options)` in its place."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **options: how(original, *args, **options))


def stale_after_free(patch):
    """An evicted block is still found."""
    changed(patch, BlockPool, "check", lambda check, pool: None)

    def evict(pool):
        return pool._kept.popitem(last=False)[0]

    patch.setattr(BlockPool, "_evict", evict)


def stale_seen_by_the_books(patch):
    patch.setattr(BlockPool, "_evict", lambda pool: pool._kept.popitem(last=False)[0])


def freed_twice(patch):
    """A free block is handed out and stays free."""
    changed(patch, BlockPool, "check", lambda check, pool: None)

    def take(original, pool):
        block = original(pool)
        if block is not None and block.serial % 5 == 0:
            pool._free.append(block.index)
        return block

    changed(patch, BlockPool, "take", take)


def held_evicted(patch):
    """Blocks of a request that runs are taken from it."""
    changed(patch, BlockPool, "check", lambda check, pool: None)

    def take(original, pool):
        block = original(pool)
        held = [b for b in pool._held.values() if block is None or b.index != block.index]
        if block is None and held:
            pool._serial += 1
            return Block(held[0].index, pool._serial, users=2)
        return block

    changed(patch, BlockPool, "take", take)


def skipped_after_a_hit(patch):
    """The first id after a cached prefix counts as computed."""

    def copy(original, pool, request, onto):
        original(pool, request, onto)
        if 0 < request.computed < len(request.ids) - 1:
            request.computed += 1

    changed(patch, reuse, "copy", copy)


def shifted_after_a_hit(patch):
    """Positions after a cached prefix are one too high."""

    def pack(original, work):
        batch, counts = original(work)
        shift = np.array([item.request.usage.cached > 0 for item in work], np.int32)
        room = np.array([64 * len(item.request.blocks) for item in work], np.int32)
        moved = np.minimum(batch.position + shift[batch.sequence], room[batch.sequence] - 1)
        batch.position[:] = moved
        return batch, counts

    changed(patch, seriatim.engine.engine, "pack", pack)


def miscounted_cache(patch):
    def account(original, pool, request):
        original(pool, request)
        request.usage.cached += 64 * (request.usage.cached > 0)

    changed(patch, reuse, "account", account)


def shared_tenants(patch):
    changed(
        patch, BlockPool, "match", lambda f, pool, ids, tenant, *a, **o: f(pool, ids, "", *a, **o)
    )
    changed(
        patch, BlockPool, "publish", lambda f, pool, b, p, tenant, ids: f(pool, b, p, "", ids)
    )  # fmt: skip


def kept_when_preempted(patch):
    """A preempted request believes one of its blocks to be computed still."""

    def preempt(original, scheduler, request):
        original(scheduler, request)
        request.usage.cached = request.usage.cached
        request.ids[-1:] = [(request.ids[-1] + 1) % 3]

    changed(patch, Scheduler, "_preempt", preempt)


def rows_swapped(patch):
    """Two requests of a step get each other's logits."""

    def run(original, engine, work):
        done, computed = original(engine, work)
        plain = [i for i, c in enumerate(computed) if len(c.logits) == 1]
        if len(plain) > 1:
            a, b = plain[:2]
            computed[a], computed[b] = computed[b], computed[a]
        return done, computed

    changed(patch, Engine, "_run", run)


def one_too_many(patch):
    """The first guess that differs is taken as well."""

    def commit(request, drafts, computed, bounds):
        first = len(computed.logits) - len(drafts) - 1
        for i in range(len(drafts) + 1):
            row = computed.logits[first + i]
            drawn = decoding.sample(request, row, int(computed.best[first + i]), bounds)
            last = i == len(drafts)
            wrong = not last and drawn.id != drafts[i]
            decoding.accept(request, Draw(drafts[i], 0.0) if wrong else drawn, bounds)
            if wrong or last or request.done:
                return
            request.computed += 1

    patch.setattr(seriatim.engine.engine, "commit", commit)


def counted_but_not_taken(patch):
    """One guess more than was right is counted."""

    def commit(original, request, drafts, *rest):
        original(request, drafts, *rest)
        request.usage.accepted += len(drafts) > 2

    changed(patch, seriatim.engine.engine, "commit", commit)


def refused_stays(patch):
    """The key of a guess that was refused counts as computed."""

    def commit(original, request, drafts, *rest):
        before = request.usage.accepted
        original(request, drafts, *rest)
        if drafts and request.usage.accepted == before and not request.done:
            request.computed += 1

    changed(patch, seriatim.engine.engine, "commit", commit)


def at_step_start(patch, what: str):
    """Something of a request is looked at once in a step, not after each guess that was taken."""
    start: dict[int, int] = {}

    def commit(original, request, *rest):
        start[request.number] = len(request.ids)
        original(request, *rest)

    def sample(original, request, *rest):
        known = start[request.number]
        if what == "guides":
            early = request.ids[request.prompt : known]
            stale = [SimpleNamespace(mask=lambda ids, g=g: g.mask(early)) for g in request.guides]
            return with_draw(original, request, rest, guides=stale)
        return with_draw(original, request, rest, known=known)

    def with_draw(original, request, rest, *, guides=None, known=None):
        kept, draw = request.guides, decoding.draw

        def penalised(logits, how, *, ids, **facts):
            padded = [*ids[:known], *([ids[0]] * (len(ids) - known))]
            return draw(logits, how, ids=padded, **facts)

        try:
            request.guides = kept if guides is None else tuple(guides)
            if known is not None:
                decoding.draw = penalised
            return original(request, *rest)
        finally:
            request.guides, decoding.draw = kept, draw

    changed(patch, seriatim.engine.engine, "commit", commit)
    changed(patch, decoding, "sample", sample)


def drawn_with(**how: Callable[[dict[str, Any]], Any]) -> Patch:
    """Draws with some facts changed: keyword by keyword a function of all of them."""

    def plant(patch):
        def draw(original, logits, sampling, **facts):
            facts |= {name: change(facts) for name, change in how.items()}
            return original(logits, sampling, **facts)

        changed(patch, decoding, "draw", draw)

    return plant


def keyed_by_row(patch):
    count = iter(range(1 << 30))
    drawn_with(sample=lambda facts: next(count))(patch)


def picking(**how: Callable[[Any], Any]) -> Patch:
    """Every draw with an option or a fact changed on its way; `position` by a longer list."""

    def plant(patch):
        original = sampler.draw

        def draw(logits, sampling, *, ids, **facts):
            for name, change in how.items():
                if name == "position":
                    ids = [0, *ids]
                elif hasattr(sampling, name):
                    sampling = replace(sampling, **{name: change(getattr(sampling, name))})
                else:
                    facts[name] = change(facts.get(name, 0))
            return original(logits, sampling, ids=ids, **facts)

        patch.setattr(sampler, "draw", draw)
        patch.setattr(decoding, "draw", draw)

    return plant


def scaled_logprobs(patch):
    """Log-probabilities after temperature."""

    def draw(original, logits, how, **facts):
        drawn = original(logits, how, **facts)
        return Draw(drawn.id, drawn.logprob and drawn.logprob / (how.temperature or 1), drawn.top)

    changed(patch, decoding, "draw", draw)


def top_of_another(patch):
    def draw(original, logits, how, **facts):
        drawn = original(logits, how, **facts)
        return Draw(drawn.id, drawn.logprob, drawn.top[::-1])

    changed(patch, decoding, "draw", draw)


def by_chunk(patch):
    """The last bit depends on how many ids a step has."""

    def step(original, runtime, batch):
        logits = original(runtime, batch)
        return nudged(logits) if len(batch.ids) % 17 == 0 else logits

    changed(patch, NativeRuntime, "step", step)


def by_thread(patch):
    """Rows of a second worker are rounded differently."""

    def step(original, runtime, batch):
        logits = original(runtime, batch)
        if runtime.threads > 1:
            logits[:, logits.shape[1] // 2 :] = nudged(logits[:, logits.shape[1] // 2 :])
        return logits

    changed(patch, NativeRuntime, "step", step)


def by_instruction_set(patch):
    def step(original, runtime, batch):
        logits = original(runtime, batch)
        return nudged(logits) if runtime.isa == "plain" else logits

    changed(patch, NativeRuntime, "step", step)


def by_company(patch):
    """The last bit depends on how many sequences run together."""

    def step(original, runtime, batch):
        logits = original(runtime, batch)
        return nudged(logits) if len(batch.block_table) > 3 else logits

    changed(patch, NativeRuntime, "step", step)


def nudged(logits: np.ndarray) -> np.ndarray:
    return np.nextafter(logits, np.float32(np.inf))


def all_off(patch):
    """Every logit is off by a thousandth, in every run."""

    def step(original, runtime, batch):
        return original(runtime, batch) * (
            1 + np.arange(runtime.vocab_size, dtype=np.float32) / 1e5
        )

    changed(patch, NativeRuntime, "step", step)


def leaked(patch):
    """Nothing is held back."""

    def shown(watch):
        text, watch._held = watch._held, ""
        return text

    patch.setattr(Watch, "_shown", shown)


def leaked_at_the_end(patch):
    """What was held back is shown although the stop string was met."""

    def finish(watch):
        rest, watch._held = watch._held + watch._stream.finish(), ""
        return rest + (watch._met or "")[:1]

    patch.setattr(Watch, "finish", finish)


def held_too_short(patch):
    """One character less than the longest tail is held back."""

    def shown(original, watch):
        text = original(watch)
        more, watch._held = watch._held[:1], watch._held[1:]
        return text + more if watch._met is None else text

    changed(patch, Watch, "_shown", shown)


def shortest_stop(patch):
    """Of stop strings that end together the shortest is met."""
    patch.setattr("seriatim.codecs._watch.max", min, raising=False)


def late_minimum(patch):
    """End ids are allowed one id too early."""

    def sample(original, request, *rest):
        how = request.options
        object.__setattr__(how, "min_tokens", how.min_tokens - 1)
        try:
            return original(request, *rest)
        finally:
            object.__setattr__(how, "min_tokens", how.min_tokens + 1)

    changed(patch, decoding, "sample", sample)


def one_more(patch):
    """A request goes on for one id beyond max_tokens."""

    def accept(original, request, drawn, bounds):
        most = request.options.max_tokens
        object.__setattr__(request.options, "max_tokens", most and most + 1)
        try:
            original(request, drawn, bounds)
        finally:
            object.__setattr__(request.options, "max_tokens", most)

    changed(patch, decoding, "accept", accept)


def longer_loops(patch):
    """A cycle may come once more than the limit."""
    changed(patch, decoding, "looping", lambda f, *a, times, **o: f(*a, times=times + 1, **o))


def scored_elsewhere(patch):
    """Later windows begin one id late."""

    def windows(original, *args, **options):
        for w in original(*args, **options):
            later = w.start > w.lead
            yield replace(w, start=w.start + 1, first=w.first - 1) if later else w

    changed(patch, seriatim.api, "windows", windows)


def prefix_moved(patch):
    """What a file holds comes back one position off."""
    changed(
        patch,
        prefixes,
        "_keep",
        lambda f, model, ids, blocks, tenant: f(model, ids, np.roll(blocks, 1, axis=0), tenant),
    )


FAULTS: dict[str, tuple[Patch, str]] = {
    "a stale block after free": (stale_after_free, "eviction"),
    "a stale block after free, in the books": (stale_seen_by_the_books, "eviction"),
    "a free block handed to two requests": (freed_twice, "batch"),
    "a held block taken": (held_evicted, "preemption"),
    "an id skipped after a prefix hit": (skipped_after_a_hit, "cache"),
    "positions off by one after a prefix hit": (shifted_after_a_hit, "cache"),
    "cached ids counted wrong": (miscounted_cache, "cache"),
    "tenants that share": (shared_tenants, "cache"),
    "a preempted request changed": (kept_when_preempted, "preemption"),
    "two rows of logits swapped": (rows_swapped, "batch"),
    "one guess too many taken": (one_too_many, "speculation"),
    "one guess too many counted": (counted_but_not_taken, "speculation"),
    "a refused guess left in the cache": (refused_stays, "speculation"),
    "penalties that ignore guesses": (lambda p: at_step_start(p, "penalties"), "speculation"),
    "masks that ignore guesses": (lambda p: at_step_start(p, "guides"), "speculation"),
    "noise keyed by row": (keyed_by_row, "noise"),
    "samples ignored": (drawn_with(sample=lambda facts: 0), "noise"),
    "noise keyed by generated ids": (
        drawn_with(seed=lambda f: f["seed"] + len(f["ids"]) - f["prompt"]), "noise"
    ),
    "32 bits of the seed": (picking(seed=lambda seed: seed & 0xFFFFFFFF), "noise"),
    "position off by one": (picking(position=lambda ids: ids), "noise"),
    "temperature twice": (picking(temperature=lambda t: t * t), "filters"),
    "one id more by top_k": (picking(top_k=lambda k: k and k + 1), "filters"),
    "a little more by top_p": (picking(top_p=lambda p: min(1.0, p * 1.1)), "filters"),
    "min_p of the sum": (picking(min_p=lambda p: p / 2), "filters"),
    "one id less by typical_p": (picking(typical_p=lambda p: p * 0.9), "filters"),
    "xtc's threshold": (picking(xtc_threshold=lambda p: p * 1.2), "filters"),
    "xtc more often": (picking(xtc_probability=lambda p: min(1.0, p * 1.2)), "filters"),
    "the range of temperatures": (picking(dynatemp_range=lambda r: r * 0.5), "filters"),
    "the exponent of entropies": (picking(dynatemp_exponent=lambda _: 1.0), "filters"),
    "filters in their usual order": (picking(filters=lambda _: FILTERS), "filters"),
    "repetitions one id longer": (picking(dry_allowed_length=lambda n: n + 1), "noise"),
    "the base of repetitions": (picking(dry_base=lambda _: 1.0), "noise"),
    "repetitions beyond the range": (picking(dry_range=lambda _: 0), "noise"),
    "breakers ignored": (picking(dry_breakers=lambda _: ()), "noise"),
    "noise of no sample": (picking(sample=lambda _: 0), "distribution"),
    "log-probabilities after temperature": (scaled_logprobs, "log-probabilities"),
    "alternatives in another order": (top_of_another, "log-probabilities"),
    "a sum that depends on the chunk": (by_chunk, "chunk"),
    "one thread's rows": (by_thread, "threads"),
    "one instruction set": (by_instruction_set, "instruction sets"),
    "a sum that depends on the batch": (by_company, "batch"),
    "logits off in every run": (all_off, "reference"),
    "a stop string's tail leaked": (leaked, "streams"),
    "a stop string's first character at the end": (leaked_at_the_end, "streams"),
    "one character held too few": (held_too_short, "streams"),
    "the wrong one of two stop strings": (shortest_stop, "streams"),
    "one cycle too many": (longer_loops, "ends"),
    "windows of scores off by one": (scored_elsewhere, "log-probabilities"),
    "masks of a step's start": (lambda p: at_step_start(p, "guides"), "constraints"),
    "keys of another prefix": (prefix_moved, "prefix files"),
    "min_tokens off by one": (late_minimum, "ends"),
    "max_tokens off by one": (one_more, "ends"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of lost books
@pytest.mark.parametrize("fault", FAULTS)
def test_it_sees(fault, folder, monkeypatch):
    plant, law = FAULTS[fault]
    plant(monkeypatch)
    assert failed(seriatim.load(folder, threads=1), law) == {law}


def wider_in_forward(patch):
    """The forward pass lets one key more in."""
    changed(
        patch, Recorder, "attention",
        lambda f, ops, *a, window, **o: f(ops, *a, window=window and window + 1, **o),
    )  # fmt: skip


def narrower_in_forward(patch):
    changed(
        patch, Recorder, "attention",
        lambda f, ops, *a, window, **o: f(ops, *a, window=window and window - 1, **o),
    )  # fmt: skip


def wider_in_config(patch):
    changed(patch, llama, "_windows", lambda f, *a: [w and w + 1 for w in f(*a)])


def forgotten_in_later_layers(patch):
    changed(patch, llama, "_windows", lambda f, *a: [w * (i < 1) for i, w in enumerate(f(*a))])


@pytest.mark.parametrize(
    "plant", [wider_in_forward, narrower_in_forward, wider_in_config, forgotten_in_later_layers]
)
def test_it_sees_a_window_off_by_one(plant, monkeypatch):
    plant(monkeypatch)
    assert failed(small.load("mistral"), "windows") == {"windows"}


@pytest.mark.parametrize("part", [0, 1], ids=["keys", "values"])
def test_it_sees_another_heads_scale(part, folder, monkeypatch):
    """On the torch reference, where a cache of int8 can be changed from here."""
    from seriatim.kernels import reference

    def write(original, cache, layer, block, slot, *kv):
        kv = list(kv)
        most = kv[part].abs().amax(-1, keepdim=True)
        kv[part] = kv[part] * (most.roll(1, 1) / most)
        original(cache, layer, block, slot, *kv)

    changed(monkeypatch, reference.Cache, "write", write)
    model = seriatim.load(folder, backend="torch", kv="int8")
    assert failed(model, "heads") == {"heads"}


def test_it_sees_a_damaged_scale_of_a_quantised_matrix(folder):
    model = seriatim.load(folder, precision="int8", threads=1)
    blocks = model.runtime.weights["layers.1.up.weight"]
    blocks.data[0, 0, -64:] *= 2
    assert failed(model, "quantised") == {"quantised"}


def test_a_quantised_folder_needs_its_original_named(folder, tmp_path):
    from seriatim.quantising import quantize

    made = quantize(folder, to="int8", out=tmp_path / "int8").folder
    model = seriatim.load(made, threads=1)
    assert "--original" in rows(model, "quantised")["quantised"].power
    with alone_with(model):
        lab = Lab(model, original=model.load(folder))
        check = next(c for c in verify.CHECKS if c.law == "quantised")
        assert report.row(check, lab).result == "passed"


# ---- the report --------------------------------------------------------------------------------


def test_a_failure_says_where_what_and_what_to_do(folder, monkeypatch):
    by_thread(monkeypatch)
    row = rows(seriatim.load(folder, threads=1), "threads")["threads"]
    assert row.difference is not None
    assert "2 threads" in row.difference["where"]
    assert "position 0" in row.difference["where"], "the first position that differs"
    assert "0x" in row.difference["expected"]
    assert row.difference["seen"] != row.difference["expected"]
    assert "threads=1" in row.fix


def test_what_a_check_raises_is_its_row_and_hides_no_other(model):
    def broken(lab):
        raise ZeroDivisionError("by zero")

    def left(lab):
        raise report.LeftOut("says nothing")

    checks = [
        report.Check("a", "x with y", "do z", broken),
        report.Check("b", "x with y", "do z", left),
        report.Check("c", "x with y", "do z", lambda lab: report.Seen(3, "much")),
    ]
    a, b, c = report.rows(checks, None, lambda law: None)
    assert (a.result, b.result, c.result) == ("failed", "left out", "passed")
    assert a.difference is not None
    assert "by zero" in a.difference["seen"]
    assert (a.fix, b.power, c.cases) == ("do z", "says nothing", 3)
    whole = report.Report("tiny", 0, [a, b, c])
    assert not whole.ok
    assert whole.failures == ["a"]
    assert whole.as_dict()["rows"][2]["power"] == "much"


@pytest.fixture
def few(monkeypatch):
    """Two laws, for tests of what is printed."""
    chosen = [c for c in verify.CHECKS if c.law in ("batch", "threads")]
    monkeypatch.setattr(verify, "CHECKS", chosen)


def command(capfd, *args: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", *map(str, args)])
    out, err = capfd.readouterr()
    return int(left.value.code or 0), out, err


def test_the_command_prints_a_line_for_each_law(few, folder, capfd):
    code, out, err = command(capfd, folder, "--threads", 1)
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, [line[:2] for line in lines]) == (0, [["batch", "passed"], ["threads", "passed"]])
    assert "native" in err
    assert "--thorough" in err, "what was not tried"


def test_the_command_fails_with_the_difference(few, folder, capfd, monkeypatch):
    by_thread(monkeypatch)
    code, out, err = command(capfd, folder, "--threads", 1)
    assert code == 1
    assert "threads is broken" in out
    assert "\nseen\t" in out
    assert "1 of 2 laws are broken: threads" in err


def test_json_holds_the_whole_report(few, folder, capfd, monkeypatch):
    by_thread(monkeypatch)
    code, out, _ = command(capfd, folder, "--threads", 1, "--json", "--seed", 5)
    found = json.loads(out)
    assert (code, found["ok"], found["seed"]) == (1, False, 5)
    assert [row["result"] for row in found["rows"]] == ["passed", "failed"]
    assert found["rows"][1]["difference"]["request"]


def test_a_bad_option_is_refused(model):
    for bad in (dict(seed=-1), dict(seed="x"), dict(thorough=1), dict(original="no/such/folder")):
        with pytest.raises(seriatim.SeriatimError):
            model.verify(**bad)


def test_a_verified_model_serves_as_before():
    model = small.load("text")
    before = model.generate("one", max_tokens=5, seed=1)
    assert model.verify().ok
    assert model.generate("one", max_tokens=5, seed=1).ids == before.ids
    assert model.generate(["two " * 30, "three"], max_tokens=5, seed=1)
    model.engine.check()
